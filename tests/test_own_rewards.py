"""Reward functions of the user that fail: one line that names them, and no rollout is lost."""

import sys
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.model import load_policy, save_policy
from pipeline.model.atomic import checkpoints
from pipeline.ppo.rollout import reward_parts, step_reward_tokens
from pipeline.records import Problem
from pipeline.training.reward_errors import RewardError
from stages import ppo

PROBLEM = Problem(question="2+3?", answer="5")
# (module, what the line must say after the name of the reward)
FAULTS = {
    "ValueError": (
        "def num(problem, text):\n    return float(text[:0])\n",
        "raised ValueError: could not convert string to float: '' (own_rewards.py:2); correct",
    ),
    "OSError": (
        "def num(problem, text):\n    open('no/such')\n",
        "raised FileNotFoundError: [Errno 2] No such file or directory: 'no/such' "
        "(own_rewards.py:2); correct",
    ),
    "KeyError": (
        "def num(problem, text):\n    return {}['x']\n",
        "raised KeyError: 'x' (own_rewards.py:2); correct",
    ),
    "list": (
        "\ndef num(problem, text):\n    return [1.0]\n",
        "returned [1.0] (list) (own_rewards.py:2), and must return a number, or None",
    ),
    "text": (
        "def num(problem, text):\n    return '1'\n",
        "returned '1' (str) (own_rewards.py:1), and must return a number, or None",
    ),
    "signature": (
        "\n\ndef num(text):\n    return 1.0\n",
        "raised TypeError: num() takes 1 positional argument but 2 were given (own_rewards.py:3); "
        "correct the function, then run the same command again",
    ),
    "closed thought alone": (
        "def num(problem, text):\n    return 1.0 if '</think>' not in text else 1 / 0\n",
        "raised ZeroDivisionError: ",
    ),
}
MODULE_FAULTS = {
    "syntax": ("def num(problem, text)\n    return 1.0\n", "own_rewards.py, line 1)"),
    "import": ("import no_such_module\n", "cannot be imported: No module named 'no_such_module'"),
    "code": ("x = 1\ny = {}['a']\n", "own_rewards.py:2); correct the module"),
}


@pytest.fixture
def command(tiny_policy, tokenizer, tmp_path, monkeypatch, capsys):
    """`command(module text, *arguments)` -> (exit code, output, error lines) of stages.ppo with the
    function `num` of that module as a reward, in 3 rollouts of 8 with 2 steps each."""
    save_policy(tiny_policy, tokenizer, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # files change within one second
    threads = torch.get_num_threads()

    def run(module: str, *arguments: str, out: str = "out") -> tuple[object, str, list[str]]:
        sys.modules.pop("own_rewards", None)
        Path("own_rewards.py").write_text(module)
        code: object = 0
        try:
            ppo.main(
                ["--model", "model", "--shares", "wording=1", "--size", "8", "--output_dir", out,
                 "--rewards", "correctness=1,own_rewards:num=0.5", "--num_rollouts", "3",
                 "--questions_per_rollout", "4", "--completions_per_question", "2",
                 "--num_minibatches", "2", "--ppo_epochs", "1", "--max_completion_length", "8",
                 "--save_every", "0", "--disable_tqdm", "true", *arguments]
            )  # fmt: skip
        except SystemExit as stopped:
            code = stopped.code
        captured = capsys.readouterr()
        return code, captured.out, [x for x in captured.err.splitlines() if "error: " in x]

    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize("dry_run", ["false", "true"])
@pytest.mark.parametrize(("module", "message"), FAULTS.values(), ids=FAULTS)
def test_a_reward_function_that_fails_is_named_before_the_first_rollout(
    command, module, message, dry_run
):
    code, _, errors = command(module, "--dry_run", dry_run)
    assert code == 2 and len(errors) == 1, errors
    assert errors[0].startswith(f"error: reward own_rewards:num {message}")
    assert not list(Path("out").glob("*.jsonl"))


@pytest.mark.parametrize(("module", "message"), MODULE_FAULTS.values(), ids=MODULE_FAULTS)
def test_a_module_that_cannot_be_imported_is_named(command, module, message):
    code, _, errors = command(module, "--dry_run", "true")
    assert code == 2 and len(errors) == 1
    assert errors[0].startswith("error: reward 'own_rewards:num' cannot be imported: ")
    assert message in errors[0]


GOOD = "def num(problem, text):\n    return len(text) / 100\n"
LATE = """
CALLS = []

def num(problem, text):
    CALLS.append(text)
    if len(CALLS) > 2 + 2 * 8 + 3:
        raise KeyError("late")
    return len(text) / 100
"""


def test_a_reward_that_fails_in_a_late_rollout_leaves_a_checkpoint_to_continue_from(command):
    code, said, errors = command(LATE)
    assert code == 2 and "reward own_rewards:num raised KeyError: 'late'" in errors[0]
    assert [path.name for path in checkpoints(Path("out"))] == ["checkpoint-4"]
    assert "checkpoint-4; the same command continues from it" in said
    code, said, errors = command(LATE.replace("2 + 2 * 8", "2"))  # fails again at the same step
    assert code == 2 and [path.name for path in checkpoints(Path("out"))] == ["checkpoint-4"]
    code, said, errors = command(GOOD)
    assert code == 0 and "checkpoint-4" in said, errors
    assert command(GOOD, out="unbroken")[0] == 0
    one, other = (load_policy(name)[0].state_dict() for name in ("out", "unbroken"))
    assert all(torch.equal(one[name], other[name]) for name in other)
    logs = [Path(name, "log.jsonl").read_text().splitlines() for name in ("out", "unbroken")]
    assert len(logs[0]) == len(logs[1])


def test_a_reward_that_fails_in_the_first_rollout_leaves_no_checkpoint(command):
    code, _, errors = command(LATE.replace("2 + 2 * 8", "2"))
    assert code == 2 and "KeyError: 'late'" in errors[0] and checkpoints(Path("out")) == []
    assert command(GOOD)[0] == 0


@pytest.mark.parametrize(
    "value", [1, True, np.float32(0.5), torch.tensor(0.5), Fraction(1, 2), None, float("inf")]
)
def test_everything_that_is_a_number_is_a_reward(value):
    parts_BF = reward_parts({"own": lambda problem, text: value}, [PROBLEM], ["5"])
    wanted = torch.tensor([[torch.nan if value is None else float(value)]])
    assert torch.equal(parts_BF.nan_to_num(nan=-1.0), wanted.nan_to_num(nan=-1.0))


class Failing:
    def __call__(self, problem: Problem, text: str) -> float:
        raise RuntimeError("no luck")


def _fails(scale: float, problem: Problem, text: str) -> float:
    raise RuntimeError("no luck")


@pytest.mark.parametrize("function", [Failing(), partial(_fails, 1.0)], ids=["object", "partial"])
def test_an_object_or_a_partial_function_is_named_with_its_file(function: Callable):
    with pytest.raises(RewardError, match=r"RuntimeError: no luck \(.*test_own_rewards\.py:\d+\)"):
        reward_parts({"own": function}, [PROBLEM], ["5"])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (3, r"returned 3 \(int\)"),
        ([1.0], r"returned \[1.0\] \(list\)"),
        ([(0, "1")], r"returned \[\(0, '1'\)\] \(list\)"),
        ([(0, None)], r"returned \[\(0, None\)\] \(list\)"),
        (ValueError("no luck"), "raised ValueError: no luck"),
    ],
)
def test_step_rewards_that_are_no_pairs_are_named(tokenizer, found, message):
    def steps(problem: Problem, text: str) -> object:
        if isinstance(found, Exception):
            raise found
        return found

    with pytest.raises(RewardError, match=rf"step_rewards {message}.*test_own_rewards\.py:\d+\)"):
        step_reward_tokens(steps, tokenizer, [PROBLEM], ["5"], [[1]])


def test_an_evaluation_whose_reward_fails_leaves_a_checkpoint(make_ppo, policy, tmp_path):
    def own(completions: list, **columns: object) -> list[float]:
        if not policy.training:
            raise KeyError("in the evaluation")
        return [1.0] * len(completions)

    rows = [{"prompt": [{"role": "user", "content": "2+3?"}]}] * 2
    trainer = make_ppo(
        policy, own, own={"eval_dataset": rows}, eval_strategy="steps", eval_steps=1, save_every=0
    )
    trainer.args.per_device_eval_batch_size = 2
    with pytest.raises(RewardError, match="KeyError: 'in the evaluation'"):
        trainer.train()
    assert [path.name for path in checkpoints(tmp_path / "ppo")] == ["checkpoint-1"]
