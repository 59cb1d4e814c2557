"""stages.infer on a file of questions: one row each, resumed exactly, broken rows refused."""

import copy
import json
import threading
from pathlib import Path

import pytest

from pipeline.config import OwnDataConfig
from pipeline.hosts import Place
from pipeline.model import save_policy
from pipeline.records import Answer, Problem, Usage
from pipeline.search import STRATEGIES, SearchOptions
from stages import answer_file as module
from stages import infer
from stages.answer_file import answer_file, read_questions
from stages.infer import InferArguments

PROBLEMS = [Problem(question=f"What is {n} + 1?", answer="", id=str(n)) for n in range(7)]
PAIRS = SearchOptions(batch_size=2, max_completion_tokens=5, temperature=1.0)  # chunks of two


def written(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def questions_of(path: Path, text: str, **own: str) -> list[Problem]:
    path.write_text(text)
    return read_questions(str(path), _Own(**own))


class _Own(OwnDataConfig):
    needs_answers = False


@pytest.fixture
def questions(tmp_path, tiny_policy, tokenizer, monkeypatch) -> Path:
    """A file of three questions beside a checkpoint, in the current folder."""
    save_policy(tiny_policy, tokenizer, tmp_path / "checkpoint")
    rows = [{"id": f"q{n}", "question": f"What is {n} + 1?"} for n in range(3)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "questions.jsonl"


def command(*more: str) -> list[str]:
    start = ["--checkpoint", "checkpoint", "--questions", "questions.jsonl", "--output_dir", "out"]
    return [*start, "--max_completion_tokens", "6", "--device", "cpu", *more]


def test_every_question_has_a_row_in_the_order_of_the_file(questions, capsys):
    infer.main(command())
    rows = written(Path("out"))
    assert [row["id"] for row in rows] == ["q0", "q1", "q2"]
    assert [row["question"] for row in rows] == [f"What is {n} + 1?" for n in range(3)]
    assert all(row.keys() == {*rows[0]} and "thought" not in row for row in rows)
    assert "3 questions" in capsys.readouterr().out


def test_the_answers_are_those_of_the_strategy_and_the_thought_is_there_on_request(
    tmp_path, tiny_policy, tokenizer
):
    asked = [p.question for p in PROBLEMS]
    options = PAIRS.for_model(tokenizer)
    alone = STRATEGIES["greedy"](tiny_policy, tokenizer, asked, options)
    rows = answer_file(
        tiny_policy, tokenizer, PROBLEMS, "greedy", PAIRS, tmp_path / "out", show_reasoning=True
    )
    assert [(r["answer"], r["thought"]) for r in rows] == [(a.text, a.thought) for a in alone]
    assert [r["usage"]["visible_tokens"] for r in rows] == [a.usage.visible_tokens for a in alone]


def test_a_sampled_answer_does_not_depend_on_the_batch_size_or_the_place_in_the_file(
    tmp_path, tiny_policy, tokenizer
):
    asked = [p.question for p in PROBLEMS]
    alone = STRATEGIES["sample"](tiny_policy, tokenizer, asked, PAIRS)
    rows = answer_file(tiny_policy, tokenizer, PROBLEMS[::-1], "sample", PAIRS, tmp_path / "out")
    assert [row["answer"] for row in rows[::-1]] == [answer.text for answer in alone]


def test_a_stopped_run_continues_with_the_answers_of_an_unbroken_one(
    tmp_path, tiny_policy, tokenizer, monkeypatch
):
    whole = answer_file(tiny_policy, tokenizer, PROBLEMS, "sample", PAIRS, tmp_path / "whole")
    sample, asked = STRATEGIES["sample"], []

    def stopped(model, tokenizer, questions, options):
        asked.extend(questions)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return sample(model, tokenizer, questions, options)

    monkeypatch.setitem(STRATEGIES, "sample", stopped)
    with pytest.raises(KeyboardInterrupt):
        answer_file(tiny_policy, tokenizer, PROBLEMS, "sample", PAIRS, tmp_path / "out")
    assert len(written(tmp_path / "out")) == 4
    asked[:] = ["nothing yet"] * 10
    rows = answer_file(tiny_policy, tokenizer, PROBLEMS, "sample", PAIRS, tmp_path / "out")
    assert rows == whole == written(tmp_path / "out")
    assert asked[10:] == [p.question for p in PROBLEMS[4:]]


def test_two_processes_write_the_rows_of_one(tmp_path, tiny_policy, tokenizer, monkeypatch):
    whole = answer_file(tiny_policy, tokenizer, PROBLEMS, "sample", PAIRS, tmp_path / "one")
    here = threading.local()
    monkeypatch.setattr(module, "this_place", lambda: Place(here.rank, 2))
    found: dict[int, list] = {}

    def work(rank: int) -> None:
        here.rank = rank
        policy = copy.deepcopy(tiny_policy)
        found[rank] = answer_file(policy, tokenizer, PROBLEMS, "sample", PAIRS, tmp_path / "two")

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written(tmp_path / "two") == whole == found[0] and found[1] == []


def test_answers_of_other_settings_and_other_results_are_not_mixed(
    tmp_path, tiny_policy, tokenizer
):
    answer_file(tiny_policy, tokenizer, PROBLEMS, "greedy", PAIRS, tmp_path / "out")
    with pytest.raises(ValueError, match="has answers with strategy=greedy"):
        answer_file(tiny_policy, tokenizer, PROBLEMS, "sample", PAIRS, tmp_path / "out")
    with pytest.raises(ValueError, match="has answers with problems="):
        answer_file(tiny_policy, tokenizer, PROBLEMS[:3], "greedy", PAIRS, tmp_path / "out")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="a finished run"):
        answer_file(tiny_policy, tokenizer, PROBLEMS, "greedy", PAIRS, tmp_path / "run")


CONVERSATION = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "And 3 more?"},
]


def test_questions_are_read_from_texts_conversations_and_options(tmp_path):
    told = [*CONVERSATION, {"role": "assistant", "content": "5"}]
    turns = (("user", "1+1?"), ("assistant", "2"))
    for name, row in (("question", CONVERSATION), ("messages", CONVERSATION), ("messages", told)):
        (asked,) = questions_of(tmp_path / "rows.jsonl", json.dumps({name: row}))
        assert (asked.question, asked.turns, asked.answer) == ("And 3 more?", turns, "")
    choice = {"prompt": "Which is a pet?", "options": ["a stone", "a cat"], "label": "B"}
    (asked,) = questions_of(tmp_path / "rows.jsonl", json.dumps(choice))
    assert asked.question == "Which is a pet?\nA) a stone\nB) a cat" and asked.answer == ""
    rows = questions_of(
        tmp_path / "rows.csv", "nr,frage\n7,1+1?\n9,2+2?\n", columns="question=frage,id=nr"
    )
    assert [(p.id, p.question) for p in rows] == [("7", "1+1?"), ("9", "2+2?")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"question": "1+1?"}\n{"question": " "}\n', "row 2: empty question"),
        ('{"question": "1+1?"}\n{"question": 5.5, "x": 1}\n{"x": 1}\n', "row 3: "),
        ('{"frage": "1+1?"}\n', "no column is known to have a question"),
        ('{"messages": [{"role": "system", "content": "be brief"}]}\n', "not of the user"),
        ('{"messages": []}\n', "no messages"),
        ('{"question": "1+1?", "choices": ["a"]}\n', "fewer than two options"),
        ("", "no rows"),
    ],
)
def test_a_row_without_a_question_is_refused_with_its_number(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        questions_of(tmp_path / "rows.jsonl", text)


def test_a_question_that_is_too_long_stops_the_run_or_has_an_empty_answer(
    tmp_path, tiny_policy, tokenizer, monkeypatch
):
    long = Problem(question="1" * 3000, answer="", id="long")
    window = tiny_policy.config.max_position_embeddings
    assert window < 3000
    problems = [PROBLEMS[0], long, PROBLEMS[1]]
    with pytest.raises(ValueError, match=r"question long, .*--too_long empty"):
        answer_file(tiny_policy, tokenizer, problems, "greedy", PAIRS, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    asked = []

    def answered(model, tokenizer, questions, options):
        asked.extend(questions)
        return [Answer(text=question, usage=Usage()) for question in questions]

    monkeypatch.setitem(STRATEGIES, "greedy", answered)
    rows = answer_file(
        tiny_policy, tokenizer, problems, "greedy", PAIRS, tmp_path / "out", too_long="empty"
    )
    assert [row["finish_reason"] for row in rows] == ["stop", "too_long", "stop"]
    assert [row["answer"] for row in rows] == [PROBLEMS[0].question, "", PROBLEMS[1].question]
    assert asked == [PROBLEMS[0].question, PROBLEMS[1].question]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"question": "1+1?", "questions": "rows.jsonl", "output_dir": "out"},
        {"questions": "rows.jsonl"},
        {"question": "1+1?", "output_dir": "out"},
        {"questions": "rows.jsonl", "output_dir": "out", "strategy": "mcts", "tree": "tree.json"},
    ],
)
def test_a_question_and_a_file_of_questions_are_two_commands(fields):
    with pytest.raises(ValueError, match="question"):
        InferArguments(checkpoint="c", **fields)
