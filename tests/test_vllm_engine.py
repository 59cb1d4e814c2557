"""Evaluation with vLLM: the answers of our own engine, from a stub with vLLM's interface."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from eval import run
from pipeline import device
from pipeline.generation.vllm_engine import VLLM_STRATEGIES, load_vllm, use_vllm, vllm_dtype
from pipeline.model import (
    attach_reasoning_layer,
    attach_value_head,
    new_reasoning_layer,
    save_policy,
)
from pipeline.search import STRATEGIES, SearchOptions
from tests import vllm_stub

QUESTIONS = ["What is 2 plus 3?", "Compute 7*8", "A longer question, with some words. 1+1?"]
ROWS = [{"question": q, "answer": "5"} for q in QUESTIONS]


@pytest.fixture
def checkpoint(tiny_policy, tokenizer, tmp_path, monkeypatch):
    """A saved policy that prefers `</think>` and the end now and then, and the stub of vLLM."""
    monkeypatch.setitem(sys.modules, "vllm", vllm_stub.module())
    torch.manual_seed(1)
    tiny_policy.lm_head.weight.data.normal_(std=0.6)
    save_policy(attach_value_head(tiny_policy.eval()), tokenizer, tmp_path / "policy")
    return tmp_path / "policy"


def answers(model, tokenizer, strategy: str, options: SearchOptions, checkpoint=None) -> list:
    if checkpoint is None:
        return STRATEGIES[strategy](model, tokenizer, QUESTIONS, options)
    with use_vllm(load_vllm(checkpoint)):
        return STRATEGIES[strategy](model, tokenizer, QUESTIONS, options)


@pytest.mark.parametrize("answer_tokens", [0, 4, 64])
def test_greedy_answers_are_those_of_our_own_engine(
    checkpoint, tiny_policy, tokenizer, answer_tokens
):
    options = SearchOptions(max_sample_tokens=24, answer_tokens=answer_tokens)
    ours = answers(tiny_policy, tokenizer, "greedy", options)
    theirs = answers(tiny_policy, tokenizer, "greedy", options, checkpoint)
    # Thoughts closed by the budget among them; our engine has a value, vLLM has none.
    assert any(answer.forced for answer in ours) == (answer_tokens > 0)
    for one, other in zip(ours, theirs, strict=True):
        assert one.value is not None and other.value is None
        assert other == replace(one, value=None, notes=other.notes)


def test_samples_differ_within_a_question_and_follow_from_the_seed(
    checkpoint, tiny_policy, tokenizer
):
    options = SearchOptions(n=6, temperature=1.0, max_sample_tokens=12)
    first, again = (
        answers(tiny_policy, tokenizer, "consensus", options, checkpoint) for _ in range(2)
    )
    assert first == again
    other = answers(tiny_policy, tokenizer, "consensus", replace(options, seed=1), checkpoint)
    assert first != other
    # 6 answers of 12 tokens at most, and the prompt counted once.
    assert all(12 < a.usage.reasoning_tokens + a.usage.visible_tokens <= 72 for a in first)


def test_all_samples_of_all_questions_are_in_one_call(checkpoint, tiny_policy, tokenizer):
    llm = load_vllm(checkpoint)
    options = SearchOptions(n=4, temperature=1.0, max_sample_tokens=8, answer_tokens=0)
    with use_vllm(llm):
        STRATEGIES["consensus"](tiny_policy, tokenizer, QUESTIONS, options)
    assert llm.calls == [12]


def test_the_command_evaluates_and_names_the_engine(checkpoint, tmp_path, capsys):
    suite = tmp_path / "own.jsonl"
    suite.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = ["--checkpoint", str(checkpoint), "--suite", str(suite), "--max_sample_tokens", "8"]
    run.main([*command, "--engine", "vllm", "--output_dir", str(tmp_path / "vllm")])
    run.main([*command, "--output_dir", str(tmp_path / "own")])
    found = [
        [json.loads(line) for line in (tmp_path / name / "records.jsonl").read_text().splitlines()]
        for name in ("vllm", "own")
    ]
    differing = {
        k for pair in zip(*found, strict=True) for k in pair[0] if pair[0][k] != pair[1][k]
    }
    assert differing <= {"seconds", "value", "notes"}
    settings = [json.loads((tmp_path / n / "settings.json").read_text()) for n in ("vllm", "own")]
    assert settings[0]["engine"] == "vllm" and "engine" not in settings[1]
    # The model on the CPU has decoded nothing there.
    metrics = json.loads((tmp_path / "vllm" / "metrics.json").read_text())
    assert metrics["engine"] == "vllm" and "device" not in metrics
    # The records of one engine are not continued with the other.
    with pytest.raises(SystemExit):
        run.main([*command, "--engine", "vllm", "--output_dir", str(tmp_path / "own")])
    assert "engine" in capsys.readouterr().err


@pytest.mark.parametrize("fast", [True, False])
def test_vllm_is_given_a_dtype_that_it_knows(monkeypatch, fast):
    monkeypatch.setattr(device, "bfloat16_is_fast", lambda where: fast)
    assert [vllm_dtype(name) for name in ("auto", "float16", "fastest")] == [
        "auto",
        "float16",
        "bfloat16" if fast else "float32",
    ]


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - set(VLLM_STRATEGIES)))
def test_a_strategy_with_values_or_steps_is_refused(checkpoint, tmp_path, strategy):
    options = {"n": 2} if strategy in ("likelihood", "weighted", "best_of_n", "adaptive") else {}
    with pytest.raises(ValueError, match=rf"strategy={strategy} needs"):
        run.EvalArguments(
            checkpoint=str(checkpoint),
            suite="nano",
            output_dir=str(tmp_path),
            strategy=strategy,
            engine="vllm",
            **options,
        )


def test_without_the_package_the_engine_is_refused(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    with pytest.raises(ValueError, match="pip install vllm"):
        run.EvalArguments(checkpoint="x", suite="nano", output_dir=str(tmp_path), engine="vllm")


def test_a_reasoning_layer_is_refused(checkpoint, tiny_policy, tokenizer, tmp_path):
    layer = new_reasoning_layer(tiny_policy, think_id=4, end_think_id=5)
    save_policy(attach_reasoning_layer(tiny_policy, layer), tokenizer, tmp_path / "layer")
    arguments = run.EvalArguments(
        checkpoint=str(tmp_path / "layer"), suite="nano", output_dir=str(tmp_path), engine="vllm"
    )
    with pytest.raises(ValueError, match="leave engine out"):
        run.load_with_engine(arguments)
