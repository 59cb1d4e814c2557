"""The examples run as they stand: the minimal PPO loop, a reward of one's own, and the commands of
own_data.md."""

import ast
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from examples import custom_reward, ppo_minimal, prompting
from pipeline.data import load_problems
from pipeline.model import load_policy, save_policy
from pipeline.records import Problem
from pipeline.rewards import Rubric
from stages import sft
from stages.common import parse

ROOT = Path(__file__).parents[1]
CLEANRL = {
    "charts/SPS",
    "charts/episodic_length",
    "charts/episodic_return",
    "charts/learning_rate",
    "losses/approx_kl",
    "losses/clipfrac",
    "losses/entropy",
    "losses/explained_variance",
    "losses/policy_loss",
    "losses/value_loss",
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Commands set the number of threads; the tests after this file keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def checkpoint(tiny_policy, tokenizer, tmp_path) -> Path:
    save_policy(tiny_policy, tokenizer, tmp_path / "sft")
    return tmp_path / "sft"


@pytest.fixture
def few_problems(monkeypatch) -> None:
    """Making all of nano's 20,000 training problems takes seconds."""

    def load(name, split, data_root=None, limit=None):
        return load_problems(name, split, data_root, min(limit or 64, 64))

    monkeypatch.setattr(ppo_minimal, "load_problems", load)


@pytest.fixture
def train(few_problems, checkpoint, tmp_path) -> Callable[..., list[dict[str, float]]]:
    """`train(num_rollouts=3)`: the rows that ppo_minimal logs for a small run of the tiny model."""

    def run(name: str = "ppo", **options) -> list[dict[str, float]]:
        small = {
            "num_rollouts": 2,
            "questions": 4,
            "completions": 4,
            "num_minibatches": 2,
            "max_completion_length": 6,
            "eval_problems": 4,
            "eval_samples": 2,
        }
        folders = {"model": str(checkpoint), "output_dir": str(tmp_path / name)}
        return ppo_minimal.main(ppo_minimal.Args(**folders, **(small | options)))

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_policy(folder)[0].state_dict()


def brief(problem: Problem, completion: str) -> float:
    """What a random policy learns in seconds: to write fewer characters."""
    return 1.0 - min(len(completion), 20) / 20


# ---- ppo_minimal ----


def test_the_minimal_loop_logs_the_names_of_cleanrl_and_saves_a_checkpoint(train, tmp_path):
    *rollouts, final = train()
    assert [row["iteration"] for row in rollouts] == [1, 2]
    assert all(row.keys() >= CLEANRL for row in rollouts)
    assert final["eval/gain_low"] <= final["eval/gain_mean"] <= final["eval/gain_high"]
    lines = (tmp_path / "ppo" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [*rollouts, final]
    before, after = weights(tmp_path / "sft"), weights(tmp_path / "ppo")
    assert before.keys() == after.keys()


def test_the_learning_rate_decays_linearly_over_the_rollouts(train):
    rows = train(num_rollouts=4, learning_rate=4e-4)[:-1]
    rates = [row["charts/learning_rate"] for row in rows]
    assert rates == pytest.approx([4e-4, 3e-4, 2e-4, 1e-4])


def test_the_minimal_loop_raises_a_reward_that_a_random_policy_can_raise(train, monkeypatch):
    monkeypatch.setattr(ppo_minimal, "reward", brief)
    options = {"questions": 16, "learning_rate": 3e-2, "kl_coef": 0.0, "eval_problems": 32}
    final = train(num_rollouts=8, **options)[-1]
    assert final["eval/gain_low"] > 0.1


def test_the_return_is_the_reward_less_the_kl_penalty(train, monkeypatch):
    monkeypatch.setattr(ppo_minimal, "reward", brief)
    row = train(num_rollouts=3, learning_rate=3e-2, kl_coef=0.5)[-2]
    penalty = 0.5 * row["charts/kl"] * row["charts/episodic_length"]
    assert abs(penalty) > 0.001
    expected = row["charts/accuracy"] - penalty
    assert row["charts/episodic_return"] == pytest.approx(expected, abs=1e-5)


def test_a_minibatch_in_parts_has_the_gradient_of_the_whole(train, monkeypatch, tmp_path):
    monkeypatch.setattr(ppo_minimal, "reward", brief)
    for parts in (1, 2):
        options = {"learning_rate": 1e-4, "max_grad_norm": 1e9}
        train(name=f"parts{parts}", num_rollouts=1, micro_batches=parts, **options)
    whole, in_parts = weights(tmp_path / "parts1"), weights(tmp_path / "parts2")
    began = weights(tmp_path / "sft")
    assert any(not torch.equal(whole[name], began[name]) for name in whole)
    for name in whole:
        torch.testing.assert_close(in_parts[name], whole[name], rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_run(train):
    names = ("charts/accuracy", "charts/episodic_length", "losses/entropy", "losses/policy_loss")
    one, other = ([[row[n] for n in names] for row in train()[:-1]] for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"completions": 1}, "completions=1 .*at least 2"),
        ({"eval_problems": 0}, "eval_problems=0 .*--num_processes"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(train, options, said):
    with pytest.raises(ValueError, match=said):
        train(**options)


def test_the_minimal_loop_is_short_and_imports_no_trainer():
    source = (ROOT / "examples" / "ppo_minimal.py").read_text()
    assert len(source.splitlines()) <= 250
    imported = {
        name
        for node in ast.walk(ast.parse(source))
        for name in (
            [node.module]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert "accelerate" in imported
    assert not any("trl" in name or "trainer" in name for name in imported)


@pytest.mark.slow
def test_two_processes_train_one_policy_on_different_questions(launch, checkpoint, tmp_path):
    process = launch(
        tmp_path,
        *("--config_file", ROOT / "accelerate_config.yaml", "--num_processes", 2),
        *(ROOT / "examples" / "ppo_minimal.py", "--model", checkpoint),
        *("--output_dir", tmp_path / "ppo", "--num_rollouts", 2, "--questions", 4),
        *("--completions", 2, "--num_minibatches", 2, "--micro_batches", 2),
        *("--max_completion_length", 6, "--eval_problems", 5, "--eval_samples", 2),
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    lines = (tmp_path / "ppo" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line).get("iteration") for line in lines] == [1, 2, None]
    began, ended = weights(checkpoint), weights(tmp_path / "ppo")
    assert any(not torch.equal(began[name], ended[name]) for name in began)


@pytest.mark.slow
def test_ppo_raises_the_share_of_right_samples_on_questions_it_was_not_trained_on(tmp_path):
    """Sums of two numbers of one digit, after so little SFT that about half of the samples are
    right."""
    names = itertools.permutations(["Ada", "Ben", "Cleo", "Dan", "Eva", "Finn"], 2)
    rows = [
        {
            "question": f"{one} has {a} pens, {other} {b}. How many is that?",
            "answer": f"Together {a}+{b}=<<{a}+{b}={a + b}>>{a + b}.\n#### {a + b}",
        }
        for (one, other), a, b in itertools.product(names, range(2, 10), range(2, 10))
    ]
    random.Random(0).shuffle(rows)
    folder = tmp_path / "data" / "gsm8k"
    folder.mkdir(parents=True)
    for split, part in (("test", rows[:200]), ("train", rows[200:])):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, part)))
    arguments = f"""--model nano --nano_hidden_size 64 --nano_layers 2
        --nano_intermediate_size 192 --dataset gsm8k_equations --data_root {tmp_path / "data"}
        --output_dir {tmp_path / "sft"} --max_steps 150 --muon true
        --learning_rate 4e-3 --per_device_train_batch_size 16 --disable_tqdm true"""
    classes = (sft.ModelConfig, sft.DataConfig, sft.ReasoningSFTConfig, sft.StageConfig)
    sft.run(*parse(classes, "", arguments.split()))
    args = ppo_minimal.Args(
        model=str(tmp_path / "sft"),
        output_dir=str(tmp_path / "ppo"),
        dataset="gsm8k_equations",
        data_root=str(tmp_path / "data"),
        num_rollouts=40,
        questions=32,
        num_minibatches=2,
        learning_rate=3e-4,
        max_completion_length=24,
        eval_problems=200,
    )
    final = ppo_minimal.main(args)[-1]
    assert final["eval/gain_low"] > 0.0


# ---- custom_reward ----


def test_the_custom_reward_has_one_value_for_each_kind_of_completion():
    problem = Problem(question="Compute 2+3", answer="5")
    value = {
        "2+3=5</think>5": 1.0,
        "2+3=6</think>6": 1.0,  # consistent, though wrong
        "1+1=2\n2+3=5</think>2": 0.0,
        "2+3</think>": 0.0,  # no equation, no answer
        "</think>5": 0.0,
        "2+3=5": 0.0,  # the thought is never closed
        "": 0.0,
    }
    assert {text: custom_reward.answers_from_thought(problem, text) for text in value} == value


def test_the_custom_reward_is_found_by_its_name():
    name = "examples.custom_reward:answers_from_thought"
    rubric = Rubric({"correctness": 1.0, name: 0.2})
    problem = Problem(question="Compute 2+3", answer="5")
    assert rubric.total(problem, "2+3=6</think>6") == pytest.approx(0.2)


def test_the_example_with_a_custom_reward_trains_and_saves(checkpoint, tmp_path, monkeypatch):
    arguments = ["--model", str(checkpoint), "--output_dir", str(tmp_path / "out")]
    small = ["--num_rollouts", "1", "--questions", "2", "--max_completion_length", "8"]
    monkeypatch.setattr(sys, "argv", ["custom_reward.py", *arguments, *small])
    custom_reward.main()
    assert weights(tmp_path / "out").keys() == weights(checkpoint).keys()


# ---- own_data.md ----


@pytest.mark.slow
def test_the_commands_of_own_data_run_as_written(tmp_path):
    text = (ROOT / "examples" / "own_data.md").read_text()
    commands = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert len(commands) == 6
    for name in ("configs", "eval", "examples", "pipeline", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    own = {"PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for command in commands:
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=tmp_path,
            env=os.environ | own | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    made = tmp_path / "runs" / "own"
    card = json.loads((made / "card" / "data_card.json").read_text())
    kept = {name: split["kept"] for name, split in card["splits"].items()}
    assert kept == {"runs/own/train.jsonl": 200, "runs/own/test.jsonl": 20}
    assert weights(made / "ppo").keys() == weights(made / "sft").keys()
    assert json.loads((made / "eval" / "metrics.json").read_text())["n"] == 20


def test_the_forms_of_a_suite_have_the_same_ids_and_answers(tmp_path, capsys):
    prompting.main(f"--suite nano --limit 5 --output_dir {tmp_path}".split())
    assert capsys.readouterr().out.startswith("5 problems in 4 forms")
    rows = {
        name: [json.loads(line) for line in (tmp_path / name / "questions.jsonl").open()]
        for name in prompting.FORMS
    }
    plain = rows.pop("plain")
    for form in rows.values():
        assert [(r["id"], r["answer"]) for r in form] == [(r["id"], r["answer"]) for r in plain]
        assert [r["question"] for r in form] != [r["question"] for r in plain]
