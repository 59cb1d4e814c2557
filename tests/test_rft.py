"""Rejection sampling fine-tuning: what is kept, and a run that is interrupted and continued."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import device
from pipeline.model import load_policy, save_policy
from pipeline.records import Problem
from pipeline.rft import sampling
from pipeline.rft.config import RFTConfig
from pipeline.rft.selection import is_right, kept_solutions
from stages import rft

PROBLEMS = [Problem(question=f"What is {n} + 1?", answer=str(n + 1)) for n in range(3)]


def row(question: int, completion: str, right: bool | None) -> dict:
    return {"question": question, "completion": completion, "right": right}


def test_kept_are_distinct_right_completions_and_empty_thoughts_are_marked():
    rows = [
        row(0, "0+1=1</think>1", True),
        row(0, "0+1=1\n</think>1", True),  # differs in a line break
        row(0, "1+0=1</think>1.0", True),
        row(0, "0+1=2</think>2", False),
        row(1, "</think>2", True),
        row(1, "1+1=2</think>2", None),
    ]
    kept = kept_solutions(PROBLEMS, rows, most=4)
    assert [(s.question, s.thought, s.answer) for s in kept] == [
        ("What is 0 + 1?", "0+1=1", "1"),
        ("What is 0 + 1?", "1+0=1", "1.0"),
        ("What is 1 + 1?", "", "2"),
    ]
    assert [s.direct for s in kept] == [False, False, True]
    assert len(kept_solutions(PROBLEMS, rows, most=1)) == 2
    broken = [row(0, "0+1=1</think>1<think>", True)]
    assert kept_solutions(PROBLEMS, broken, most=4, control_tokens=["<think>"]) == []


def test_every_token_of_a_sampled_thought_is_trained_whatever_its_worked_solution_masks():
    practice = replace(PROBLEMS[0], thought="0+1=1", untrained_spans=((0, 4),))
    (solution,) = kept_solutions([practice], [row(0, "1+0=1</think>1", True)], most=1)
    assert solution.thought == "1+0=1" and solution.untrained_spans == ()


def test_an_answer_counts_only_after_a_closed_thought_within_the_budget():
    assert is_right(PROBLEMS[0], "0+1=1</think>1", truncated=False) is True
    assert is_right(PROBLEMS[0], "0+1=1</think>1", truncated=True) is False
    assert is_right(PROBLEMS[0], "0+1=1 1", truncated=False) is False


def test_rounds_use_other_questions_until_all_were_used():
    used = [rft.round_questions(5, 2, number, seed=1) for number in (1, 2, 3)]
    assert len(set(used[0] + used[1])) == 4 and len(used[2]) == 2
    assert rft.round_questions(5, 2, 2, seed=1) == used[1] != rft.round_questions(5, 2, 2, seed=2)


def test_an_interrupted_round_ends_with_the_same_samples(
    tiny_policy, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(sampling, "CHUNK", 1)
    config = RFTConfig(completions_per_question=2, max_completion_length=6)
    counted: list[int] = []

    def draw(path: Path) -> list[dict]:
        counted.clear()
        return sampling.draw_samples(
            tiny_policy, tokenizer, PROBLEMS, [2, 0, 1], config, path,
            seed=0, round_number=1, progress=counted.append,
        )  # fmt: skip

    whole = draw(tmp_path / "whole.jsonl")
    assert [r["question"] for r in whole] == [2, 2, 0, 0, 1, 1] and sum(counted) == 6
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    # A kill in the middle of the second chunk and of a line.
    (tmp_path / "cut.jsonl").write_text("".join(lines[:3]) + lines[3][:9])
    assert draw(tmp_path / "cut.jsonl") == whole and counted == [2, 2, 2]
    assert (tmp_path / "cut.jsonl").read_text() == "".join(lines)
    assert draw(tmp_path / "cut.jsonl") == whole and counted == [6]


def test_damaged_samples_are_named_with_the_remedy(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"question": 0\n' * 2)
    with pytest.raises(ValueError, match=r"samples.jsonl is damaged .*overwrite_output_dir"):
        sampling.stored_chunks(path, questions=2, group=1)


@pytest.fixture
def command(tiny_policy, tokenizer, tmp_path, monkeypatch):
    """`command(*arguments)`: stages.rft on three questions; every completion counts as right."""
    save_policy(tiny_policy, tokenizer, tmp_path / "start")
    rows = [{"question": p.question, "answer": p.answer} for p in PROBLEMS]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.setattr(sampling, "is_right", lambda problem, text, *, truncated: True)
    # A tiny policy does not close its thoughts.
    monkeypatch.setattr(
        sampling.Sampler, "sample", _with_answers(sampling.Sampler.sample, tokenizer)
    )

    def run(*arguments: str) -> Path:
        out = tmp_path / "out"
        rft.main(
            ["--model", str(tmp_path / "start"), "--dataset", str(tmp_path / "own.jsonl"),
             "--output_dir", str(out), "--rounds", "2", "--completions_per_question", "2",
             "--max_completion_length", "6", "--learning_rate", "1e-2", "--save_strategy", "no",
             "--per_device_train_batch_size", "2", "--disable_tqdm", "true",
             "--overlap", "allow", *arguments]
        )  # fmt: skip
        return out

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def _with_answers(sample, tokenizer):
    def sampled(self, prompts, **options):
        rollout = sample(self, prompts, **options)
        rollout.completion_ids_BC[:, 3] = tokenizer.convert_tokens_to_ids("</think>")
        return rollout

    return sampled


def test_a_run_trains_on_its_own_completions_and_continues_where_it_was(command, capsys):
    out = command()
    printed = capsys.readouterr().out
    state = json.loads((out / "rft.json").read_text())
    assert [figures["samples"] for figures in state["rounds"]] == [6, 6]
    assert state["rounds"][0]["right"] == state["rounds"][0]["solved"] == 1.0
    assert f"RFT checkpoint: {out}" in printed and "samples: 12" in printed
    assert printed.count("next: ") == 1 and "eval.run" in printed.splitlines()[-1]
    lines = [line.strip() for line in printed.splitlines()]
    for number in (1, 2):  # after the round, and in the summary
        of_round = [line for line in lines if line.startswith(f"round {number}: 100.0% of 6")]
        assert len(of_round) == 2 and of_round[0].count("round ") == 1
    kept = [json.loads(line) for line in (out / "round-1" / "kept.jsonl").read_text().splitlines()]
    assert len(kept) == state["rounds"][0]["trained_on"] and kept[0].keys() >= {"thought"}
    whole = {name: p.clone() for name, p in load_policy(out, value_head="optional")[0].state_dict().items()}  # noqa: E501  # fmt: skip
    start = load_policy(out.parent / "start")[0].state_dict()
    assert any(not torch.equal(p, start[name]) for name, p in whole.items())
    # As after a kill in the second round.
    (out / "run.json").unlink()
    (out / "config.json").unlink()
    (out / "rft.json").write_text(json.dumps({**state, "rounds": state["rounds"][:1]}))
    command()
    again = load_policy(out, value_head="optional")[0].state_dict()
    assert all(torch.equal(p, again[name]) for name, p in whole.items())
    assert json.loads((out / "rft.json").read_text()) == state
    with pytest.raises(SystemExit):
        command()
    assert "holds a finished run" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--think false", "--streaming true --max_steps 2"])
def test_options_that_would_train_the_data_set_and_not_the_samples_are_refused(
    command, capsys, option
):
    with pytest.raises(SystemExit):
        command(*option.split())
    name, value = option.split()[:2]
    assert f"{name.removeprefix('--')}={value} " in capsys.readouterr().err


def test_all_samples_are_trained_with_their_thoughts_whatever_the_shares_say(
    command, monkeypatch, tmp_path
):
    trained = []
    shares = tmp_path / "shares.yaml"
    shares.write_text("direct_share: 1\nself_correction_share: 1\n")

    def train(model, data, args, *, problems, following):
        trained.append((data, problems))
        raise ValueError("enough")

    monkeypatch.setattr(rft.sft, "run", train)
    with pytest.raises(SystemExit):
        command("--config", str(shares))
    ((data, problems),) = trained
    assert data.direct_share == data.self_correction_share == 0
    assert all(problem.thought for problem in problems)


def test_a_dry_run_writes_nothing(command, capsys):
    out = command("--dry_run", "true")
    assert "2 rounds of 6 samples" in capsys.readouterr().out and not out.exists()


def test_a_run_without_a_right_sample_ends_in_one_line(command, monkeypatch, capsys):
    monkeypatch.setattr(sampling, "is_right", lambda problem, text, *, truncated: False)
    with pytest.raises(SystemExit):
        command()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: none of the 6 samples of round 1 is right")
    with pytest.raises(SystemExit):
        command("--temperature", "0.5")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "holds rounds with temperature=1.0, and this run has temperature=0.5" in error


@pytest.mark.parametrize("changed", ["starting weights", "problems"])
def test_samples_of_another_model_or_of_other_rows_are_not_trained_on(
    command, tiny_policy, tokenizer, tmp_path, monkeypatch, capsys, changed
):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sampling, "is_right", lambda problem, text, *, truncated: False)
        command()  # ends after the samples of the first round
    if changed == "problems":
        own = tmp_path / "own.jsonl"
        own.write_text(json.dumps({"question": "1+1?", "answer": "2"}) + "\n" + own.read_text())
    else:
        with torch.no_grad():
            tiny_policy.lm_head.weight.mul_(1.5)
        save_policy(tiny_policy, tokenizer, tmp_path / "start")
    with pytest.raises(SystemExit) as stop:
        command()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and f"holds rounds with {changed}=" in error
    assert "--overwrite_output_dir true" in error


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_samples_are_made_in_bfloat16_where_training_computes_in_it(
    command, monkeypatch, fast, dtype
):
    monkeypatch.setattr(device, "cpu_bfloat16_is_fast", lambda: fast)
    found = []

    def record(model, *rest, **named):
        found.append(model.dtype)
        return []

    monkeypatch.setattr(rft, "draw_samples", record)
    with pytest.raises(SystemExit):  # nothing is right
        command("--cpu_bf16", "true")
    assert found == [dtype]
