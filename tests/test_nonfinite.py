"""Six kinds of numbers that are not finite, none of which reaches the weights."""

import copy
import itertools
import json
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from pipeline.model import load_policy, save_policy
from pipeline.ppo import update
from pipeline.records import Problem
from pipeline.training.nonfinite import MOST, NonfiniteError, NoRewardError

QUIET = {"value_coef": 0.5, "entropy_coef": 0.01, "weight_decay": 0.1}


def even_length(completions: list, **columns: Any) -> list[float]:
    return [float(len(message["content"]) % 2 == 0) for (message,) in completions]


def one_is(value: float):
    return lambda completions, **columns: [value, *([1.0] * (len(completions) - 1))]


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def spoil(trainer: Any, field: str, value: float) -> None:
    """One number of every rollout becomes `value`."""
    sample = trainer.collector.sample

    def spoiled(*args: Any) -> Any:
        rollout = sample(*args)
        getattr(rollout, field)[0, 0] = value
        return rollout

    trainer.collector.sample = spoiled


def spoil_gradients(trainer: Any, value: float = math.nan) -> None:
    trainer.model.value_head.last.bias.register_hook(lambda gradient: gradient * value)


INJECTED = {
    "reward NaN": (one_is(math.nan), lambda trainer: None),
    "reward Inf": (one_is(math.inf), lambda trainer: None),
    "log-probability -Inf": (even_length, lambda t: spoil(t, "logprobs_BC", -math.inf)),
    "value overflow": (even_length, lambda t: spoil(t, "values_BC", math.inf)),
    "gradient NaN": (even_length, spoil_gradients),
    "gradient Inf": (even_length, lambda t: spoil_gradients(t, math.inf)),
}


@pytest.mark.parametrize(("reward", "inject"), INJECTED.values(), ids=INJECTED)
def test_a_non_finite_number_does_not_change_the_weights_and_is_counted(
    make_ppo, policy, capsys, reward, inject
):
    before = weights(policy)
    trainer = make_ppo(policy, reward, **QUIET)
    inject(trainer)
    trainer.train()
    assert torch.equal(weights(policy), before)
    assert trainer.nonfinite.total == 1
    assert "not finite: " in capsys.readouterr().out
    assert [row["not_finite"] for row in trainer.state.log_history if "not_finite" in row] == [1]


@pytest.mark.parametrize(("reward", "inject"), INJECTED.values(), ids=INJECTED)
def test_three_in_a_row_end_the_run(make_ppo, policy, reward, inject):
    before = weights(policy)
    trainer = make_ppo(policy, reward, num_rollouts=9, **QUIET)
    inject(trainer)
    with pytest.raises(NonfiniteError, match=r"3 in a row.*; the run ends, lower learning_rate"):
        trainer.train()
    assert torch.equal(weights(policy), before)
    assert trainer.nonfinite.total == MOST == 3


def test_a_log_probability_of_the_update_that_is_not_finite_is_caught_by_its_gradient(
    make_ppo, policy, monkeypatch
):
    original = update.policy_loss
    monkeypatch.setattr(
        update, "policy_loss", lambda new, old, *a, **k: original(new + math.inf, old, *a, **k)
    )
    before = weights(policy)
    trainer = make_ppo(policy, even_length, **QUIET)
    trainer.train()
    assert torch.equal(weights(policy), before)
    assert trainer.nonfinite.total == 1


def test_advantages_without_variance_are_zero_and_leave_the_policy_alone(make_ppo, policy):
    """Where every token has the same advantage its standardized form is 0, not 0 / 0."""
    before = weights(policy)
    with torch.no_grad():
        policy.value_head.last.weight.zero_()
    before = weights(policy)
    trainer = make_ppo(
        policy,
        lambda completions, **columns: [1.0] * len(completions),
        lam=1.0,
        value_coef=0.0,
        entropy_coef=0.0,
    )
    trainer.train()
    assert trainer.rollout_batch["advantages"].abs().max() == 0
    assert torch.equal(weights(policy), before)
    assert trainer.nonfinite.total == 0


def test_one_non_finite_rollout_is_left_out_and_the_run_continues(make_ppo, policy):
    answers = iter([1.0, math.nan, 1.0, 1.0])

    def sometimes(completions: list, **columns: Any) -> list[float]:
        first = next(answers)
        return [first, *([0.0] * (len(completions) - 1))]

    trainer = make_ppo(policy, sometimes, num_rollouts=4)
    seen = []
    release = trainer.release_gradients
    trainer.release_gradients = lambda: (
        seen.append(weights(trainer.model)),
        release(),
    )
    trainer.train()
    seen.append(weights(policy))
    moved = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert moved == [True, False, True, True]
    assert (trainer.nonfinite.total, trainer.nonfinite.in_a_row) == (1, 0)


def test_a_non_finite_rollout_leaves_no_state_in_the_optimizer(make_ppo, policy):
    trainer = make_ppo(policy, one_is(math.nan), **QUIET)
    trainer.train()
    assert trainer.optimizer.state_dict()["state"] == {}


def test_none_still_means_that_a_reward_does_not_apply(make_ppo, policy):
    trainer = make_ppo(policy, one_is(None))
    trainer.train()
    assert trainer.nonfinite.total == 0


def nothing(completions: list, **columns: Any) -> list[None]:
    return [None] * len(completions)


def test_a_rollout_without_any_reward_does_not_change_the_weights(make_ppo, policy, capsys):
    before = weights(policy)
    trainer = make_ppo(policy, nothing, num_rollouts=2, **QUIET)
    trainer.train()
    assert torch.equal(weights(policy), before)
    assert (trainer.nonfinite.total, trainer.nonfinite.without_reward_in_a_row) == (0, 2)
    assert capsys.readouterr().out.count("no reward: ") == 2


def test_a_run_without_any_reward_ends_in_an_error(make_ppo, policy):
    trainer = make_ppo(policy, nothing, num_rollouts=9, **QUIET)
    with pytest.raises(NoRewardError, match=r"3 in a row.*; the run ends, correct the reward"):
        trainer.train()


def test_a_reward_now_and_then_keeps_the_run_going(make_ppo, policy):
    turns = itertools.count()

    def sometimes(completions: list, **columns: Any) -> list[float | None]:
        return [None if next(turns) % 24 else 1.0 for _ in completions]

    trainer = make_ppo(policy, sometimes, num_rollouts=6, **QUIET)
    trainer.train()
    assert trainer.nonfinite.without_reward_in_a_row < MOST


@pytest.mark.parametrize("code", [0, None, 3])
def test_a_reward_that_raises_system_exit_is_an_error_whatever_its_code(make_ppo, policy, code):
    def leaves(completions: list, **columns: Any) -> list[float]:
        raise SystemExit(code)

    with pytest.raises(NoRewardError, match=rf"reward leaves raised SystemExit\({code!r}\)"):
        make_ppo(policy, leaves).train()


def test_a_step_reward_that_raises_system_exit_is_an_error(make_ppo, policy):
    def leaves(problem: Any, completion: str) -> list:
        raise SystemExit(0)

    with pytest.raises(NoRewardError, match="step_rewards raised SystemExit"):
        problems = [Problem(question="2+3?", answer="5")] * 6
        own = {"step_rewards": leaves, "problems": problems, "train_dataset": None}
        make_ppo(policy, own=own).train()


def yielded(completions: list, **columns: Any) -> Iterator[float]:
    yield from even_length(completions)


async def awaited(completions: list, **columns: Any) -> list[float]:
    return even_length(completions)


class Called:
    __name__ = "called"

    async def __call__(self, completions: list, **columns: Any) -> list[float]:
        return even_length(completions)


@pytest.mark.parametrize("reward", [yielded, awaited, Called()], ids=["yields", "awaits", "object"])
def test_a_reward_may_yield_or_be_awaited_and_pays_the_same(make_ppo, policy, reward):
    plain = make_ppo(copy.deepcopy(policy), even_length, **QUIET)
    other = make_ppo(policy, reward, **QUIET)
    plain.train(), other.train()
    assert torch.equal(weights(plain.model), weights(policy))


def test_what_is_not_finite_is_seen_in_a_reward_that_is_awaited(make_ppo, policy):
    async def broken(completions: list, **columns: Any) -> list[float]:
        return [math.nan, *([1.0] * (len(completions) - 1))]

    trainer = make_ppo(policy, broken)
    trainer.train()
    assert trainer.nonfinite.total == 1


def test_a_bad_rollout_does_not_move_the_price_of_drift(make_ppo, policy, tokenizer, tmp_path):
    save_policy(policy, tokenizer, tmp_path / "sft")
    model, _ = load_policy(tmp_path / "sft")
    options = {"kl_coef": 0.1, "kl_controller": "adaptive", "kl_horizon": 80}
    trainer = make_ppo(model, one_is(math.nan), **options)
    trainer.train()
    assert trainer.kl.coef == 0.1


def test_the_counts_are_saved_with_the_checkpoint(make_ppo, policy, tmp_path):
    trainer = make_ppo(policy, one_is(math.nan), save_every=1)
    trainer.train()
    saved = json.loads((tmp_path / "ppo" / "checkpoint-1" / "controllers.json").read_text())
    assert saved["nonfinite"] == {
        "total": 1,
        "in_a_row": 1,
        "left_out": True,
        "without_reward_in_a_row": 0,
    }


def test_without_the_check_the_weights_become_nan(make_ppo, policy):
    """The tests above fail where the check is missing."""
    trainer = make_ppo(copy.deepcopy(policy), even_length, **QUIET)
    trainer.nonfinite.gradients_are_finite = lambda parameters: True
    spoil_gradients(trainer)
    trainer.train()
    assert not weights(trainer.model).isfinite().all()
