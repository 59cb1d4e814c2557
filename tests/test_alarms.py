"""Alarms on made-up curves: each collapse raises its own alarm, and a healthy run none."""

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.model import load_policy, save_policy
from pipeline.ppo import batch
from pipeline.training.alarms import RULES, AlarmCallback, Alarms, RunStoppedError, Thresholds

ROLLOUTS = 40
COLLAPSE = 12  # where the planted curves begin to go wrong


def healthy(seed: int) -> list[dict[str, Any]]:
    """A run that learns: reward up, entropy down to a fifth, drift and length up a little."""
    rng = random.Random(seed)
    rows = []
    for i in range(ROLLOUTS):
        done = i / ROLLOUTS
        noise = rng.uniform(0.8, 1.2)
        rows.append(
            {
                "reward": 0.2 + 0.5 * done,
                "reward/correctness": 0.2 + 0.5 * done * noise,
                "reward/well_formed": 0.6 + 0.3 * done,
                "entropy": 0.5 * math.exp(-1.6 * done) * noise,
                "kl": 0.1 * done * noise,
                "groups/zero_variance": 0.4 + 0.4 * rng.random(),
                "completions/mean_length": 50 * (1 + done) * noise,
                "completions/truncated": 0.05,
                "completions/repeated": 0.04,
            }
        )
    return rows


def planted(name: str, value: Any) -> list[dict[str, Any]]:
    """The healthy run, with one number that goes its own way from COLLAPSE on; `value` takes the
    rollouts since and the healthy number."""
    rows = healthy(0)
    for i, row in enumerate(rows[COLLAPSE:]):
        row[name] = value(i, row[name])
    return rows


def both_ways() -> list[dict[str, Any]]:
    rows = planted("reward/well_formed", lambda i, x: min(1.0, 0.9 + i / 20))
    for i, row in enumerate(rows[COLLAPSE:]):
        row["reward/correctness"] = max(0.0, 0.2 - i / 30)
    return rows


PLANTED = {
    "entropy collapse": planted("entropy", lambda i, x: x * 0.5**i),
    "KL explosion": planted("kl", lambda i, x: 0.1 * 1.5**i),
    "zero-variance rewards": planted("groups/zero_variance", lambda i, x: 1.0),
    "length explosion": planted("completions/mean_length", lambda i, x: 50 * 1.15**i),
    "repeated tokens": planted("completions/repeated", lambda i, x: min(1.0, 0.1 * i)),
    "form without content": both_ways(),
}


def alarms_of(rows: list[dict[str, Any]], **thresholds: Any) -> dict[int, list[str]]:
    alarms = Alarms(Thresholds(**thresholds))
    said = {i: alarms.feed(row) for i, row in enumerate(rows)}
    return {i: lines for i, lines in said.items() if lines}


@pytest.mark.parametrize("name", PLANTED)
def test_a_collapse_raises_its_alarm_within_twenty_rollouts(name):
    said = alarms_of(PLANTED[name])
    (at, lines), *others = said.items()
    assert others == [] and len(lines) == 1
    assert lines[0].startswith(f"alarm: {name}: ")
    assert COLLAPSE < at <= COLLAPSE + 20


def test_every_rule_has_its_collapse():
    assert set(PLANTED) == set(RULES)


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_run_raises_no_alarm(seed):
    assert alarms_of(healthy(seed)) == {}


def test_a_negative_kl_raises_the_alarm_as_well():
    rows = planted("kl", lambda i, x: -0.1 * 1.5**i)
    assert "KL explosion" in next(iter(alarms_of(rows).values()))[0]


def test_one_bad_rollout_is_no_collapse():
    rows = healthy(0)
    rows[20] |= {"kl": 50.0, "groups/zero_variance": 1.0, "completions/mean_length": 5000.0}
    assert alarms_of(rows) == {}


def test_a_number_that_is_missing_or_not_finite_is_no_alarm():
    rows = planted("kl", lambda i, x: None if i % 3 else math.nan)
    assert alarms_of(rows) == {}


def test_patience_is_the_number_of_rollouts_in_a_row():
    rows = planted("groups/zero_variance", lambda i, x: 1.0)
    assert list(alarms_of(rows, patience=3)) == [COLLAPSE + 2]
    assert list(alarms_of(rows, patience=8)) == [COLLAPSE + 7]


def run(callback: AlarmCallback, rows: list[dict[str, Any]], past: list | None = None) -> None:
    state = SimpleNamespace(log_history=past or [], is_world_process_zero=True)
    callback.on_train_begin(None, state, None)
    for row in rows:
        callback.on_log(None, state, None, logs={"eval_reward": 0.1})
        callback.on_log(None, state, None, logs=row)


def test_the_callback_prints_one_line(capsys):
    run(AlarmCallback(Thresholds(), stop=False), PLANTED["KL explosion"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith("alarm: KL explosion: KL from the reference")


def test_the_callback_can_end_the_run():
    with pytest.raises(RunStoppedError, match=r"alarm: KL explosion: .*alarms=stop"):
        run(AlarmCallback(Thresholds(), stop=True), PLANTED["KL explosion"])


def test_a_resumed_run_remembers_its_start_and_repeats_no_alarm(capsys):
    rows = PLANTED["length explosion"]
    run(AlarmCallback(Thresholds(), stop=False), rows[30:], past=rows[:30])
    assert capsys.readouterr().out.count("alarm: ") == 0  # it was said before rollout 30
    run(AlarmCallback(Thresholds(), stop=False), rows[20:], past=rows[:20])
    assert capsys.readouterr().out.count("alarm: length explosion") == 1


# ---- in a trainer ----


def test_a_reward_that_is_always_one_stops_the_run_by_name(make_ppo, policy):
    trainer = make_ppo(
        policy,
        lambda completions, **columns: [1.0] * len(completions),
        num_rollouts=20,
        alarms="stop",
    )
    with pytest.raises(RunStoppedError, match="zero-variance rewards"):
        trainer.train()
    assert trainer.state.global_step <= 6


def test_a_policy_that_repeats_itself_stops_the_run_by_name(make_ppo, policy):
    taste = policy.lm_head.weight.new_zeros(policy.config.vocab_size)
    taste[100] = 50.0
    policy.lm_head.register_forward_hook(lambda module, args, output: output + taste)
    rewards = iter(range(10_000))
    trainer = make_ppo(
        policy,
        lambda completions, **columns: [float(next(rewards) % 2) for _ in completions],
        num_rollouts=20,
        alarms="stop",
    )
    with pytest.raises(RunStoppedError, match="repeated tokens"):
        trainer.train()


def test_a_reward_for_length_stops_the_run_by_name(make_ppo, policy):
    trainer = make_ppo(
        policy,
        lambda completions, completion_ids, **columns: [len(ids) / 48 for ids in completion_ids],
        num_rollouts=20,
        completions_per_question=8,
        max_completion_length=48,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        alarm_patience=3,
        alarms="stop",
    )
    with pytest.raises(RunStoppedError, match="length explosion"):
        trainer.train()


def test_a_kl_penalty_of_the_wrong_sign_stops_the_run_by_name(
    make_ppo, policy, tokenizer, tmp_path, monkeypatch
):
    save_policy(policy, tokenizer, tmp_path / "sft")
    original = batch.kl_penalty
    monkeypatch.setattr(batch, "kl_penalty", lambda *a, **k: -original(*a, **k))
    rewards = iter(range(10_000))
    trainer = make_ppo(
        load_policy(tmp_path / "sft")[0],
        lambda completions, **columns: [float(next(rewards) % 2) for _ in completions],
        num_rollouts=20,
        kl_coef=1.0,
        completions_per_question=8,
        ppo_epochs=4,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        alarm_patience=3,
        alarms="stop",
    )
    with pytest.raises(RunStoppedError, match="KL explosion"):
        trainer.train()


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_learns_raises_no_alarm(make_ppo, policy, seed, capsys):
    def starts_with_its_end(completions: list, **columns: Any) -> list[float]:
        return [float(len(message["content"]) < 4) for (message,) in completions]

    trainer = make_ppo(policy, starts_with_its_end, num_rollouts=15, seed=seed, alarms="stop")
    trainer.train()
    assert "alarm" not in capsys.readouterr().out


def test_alarms_can_be_off(make_ppo, policy, capsys):
    trainer = make_ppo(
        policy, lambda completions, **c: [1.0] * len(completions), num_rollouts=8, alarms="off"
    )
    trainer.train()
    assert "alarm" not in capsys.readouterr().out
