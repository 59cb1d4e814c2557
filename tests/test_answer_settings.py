"""Stored answers and grades are those of one chat template, of the problems' tests, of a verifier.

The commands that write such folders: eval.run, eval.samples, eval.contest, stages.infer.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eval.contest import hold_contest
from eval.run import evaluate_checkpoint
from eval.samples import sample_checkpoint
from pipeline.answers.settings import problems_fingerprint
from pipeline.model import Verifier, attach_verifier
from pipeline.records import Answer, Problem
from pipeline.search import SearchOptions
from stages.answer_file import answer_file

OPTIONS = SearchOptions(batch_size=2, max_completion_tokens=5, temperature=1.0)


def _check(output: str) -> str:
    return json.dumps({"judge": "program", "kind": "stdio", "inputs": [""], "outputs": [output]})


PROBLEM = Problem(question="Print 1.", answer="", id="a", check=_check("1"))
COMMANDS: dict[str, Callable] = {
    "eval.run": lambda model, tokenizer, problems, folder: evaluate_checkpoint(
        model, tokenizer, problems, "greedy", OPTIONS, folder
    ),
    "eval.samples": lambda model, tokenizer, problems, folder: sample_checkpoint(
        model, tokenizer, problems, OPTIONS, folder
    ),
    "eval.contest": lambda model, tokenizer, problems, folder: hold_contest(
        model, tokenizer, problems, [1500.0], OPTIONS, folder
    ),
    "stages.infer": lambda model, tokenizer, problems, folder: answer_file(
        model, tokenizer, problems, "greedy", OPTIONS, folder
    ),
}


@pytest.fixture
def model(tiny_policy, monkeypatch):
    """A policy with a verifier; contests have no submissions, and need no sandbox."""
    attach_verifier(tiny_policy, Verifier(hidden=4).eval())
    monkeypatch.setattr("eval.contest.sample_answers", lambda *_args, **_options: [[]])
    monkeypatch.setattr(
        "eval.samples.sample_answers", lambda *_args, **_options: [[Answer(text="1")]]
    )
    return tiny_policy


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("changed", ["chat_template", "checks", "verifier"])
def test_answers_under_another_template_test_or_verifier_are_refused(
    command, changed, model, tokenizer, tmp_path
):
    answer, problem = COMMANDS[command], PROBLEM
    answer(model, tokenizer, [problem], tmp_path)
    answer(model, tokenizer, [problem], tmp_path)
    if changed == "chat_template":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template += "\n"
    elif changed == "checks":
        problem = replace(problem, check=_check("2"))
    else:
        attach_verifier(model, Verifier(hidden=4).eval())
        with torch.no_grad():
            model.__dict__["verifier"].last.bias += 1
    with pytest.raises(ValueError, match=f" with {changed}="):
        answer(model, tokenizer, [problem], tmp_path)


def test_a_removed_verifier_is_another_setting(model, tokenizer, tmp_path):
    COMMANDS["eval.run"](model, tokenizer, [PROBLEM], tmp_path)
    attach_verifier(model, None)
    with pytest.raises(ValueError, match="this one has verifier=None"):
        COMMANDS["eval.run"](model, tokenizer, [PROBLEM], tmp_path)


def test_a_folder_of_an_earlier_version_is_compared_by_what_it_stores(model, tokenizer, tmp_path):
    COMMANDS["stages.infer"](model, tokenizer, [PROBLEM], tmp_path)
    path: Path = tmp_path / "settings.json"
    stored = json.loads(path.read_text())
    del stored["chat_template"], stored["verifier"], stored["checks"]
    path.write_text(json.dumps(stored))
    assert len(COMMANDS["stages.infer"](model, tokenizer, [PROBLEM], tmp_path)) == 1


def test_answers_and_evaluations_are_not_continued_by_each_other(model, tokenizer, tmp_path):
    for first, second, held in (
        ("eval.run", "stages.infer", "an evaluation"),
        ("stages.infer", "eval.run", "answers"),
    ):
        COMMANDS[first](model, tokenizer, [PROBLEM], tmp_path / first)
        with pytest.raises(ValueError, match=f"holds {held}; give another --output_dir"):
            COMMANDS[second](model, tokenizer, [PROBLEM], tmp_path / first)


def test_problems_without_tests_keep_the_hash_of_earlier_versions():
    problem = Problem(question="2+3?", answer="5", id="a", turns=(("user", "1+1?"),))
    assert problems_fingerprint([problem]) == "1 (5a3bd4c36b3f7aca)"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_question_without_room_for_its_answer_is_refused_before_the_first_one(
    command, model, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(model.config, "max_position_embeddings", 6)  # OPTIONS need 5
    with pytest.raises(ValueError, match="5 tokens per answer, but beside question a,"):
        COMMANDS[command](model, tokenizer, [PROBLEM], tmp_path)
    assert list(tmp_path.iterdir()) == []
