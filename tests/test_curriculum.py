"""Levels are drawn by the variance of their success, also in a resumed run."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from pipeline.ppo.curriculum import LevelCurriculum
from pipeline.training.reward_errors import RewardError

LEVELS = ["easy"] * 10 + ["middle"] * 10 + ["hard"] * 4


def curriculum(**options) -> LevelCurriculum:
    return LevelCurriculum(LEVELS, **{"seed": 1, "decay": 0.9, "floor": 0.05, **options})


def trained_curriculum() -> LevelCurriculum:
    """Easy questions always right, hard ones never, middle ones half the time."""
    made = curriculum()
    for _ in range(20):
        made.update([0] * 8 + [10] * 8 + [20] * 8, [True] * 8 + [True, False] * 4 + [False] * 8)
    return made


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_completions_every_level_has_the_same_share():
    assert curriculum().shares() == pytest.approx({"easy": 1 / 3, "middle": 1 / 3, "hard": 1 / 3})


def test_a_success_rate_has_the_value_by_hand():
    made = curriculum(decay=0.5)
    made.update([0, 1], [True, True])
    made.update([2, 3], [False, True])
    # right 0.5 * 2 + 1 = 2, seen 0.5 * 2 + 2 = 3, and one of each kind added: 3 / 5
    assert made.success("easy") == pytest.approx(0.6)
    assert made.success("hard") == 0.5


def test_the_level_that_is_sometimes_right_is_drawn_most():
    shares = trained_curriculum().shares()
    drawn = Counter(LEVELS[index] for index in trained_curriculum().draw(3000, generator()))
    assert shares["middle"] > 0.5
    for level, share in shares.items():
        assert drawn[level] / 3000 == pytest.approx(share, abs=0.03)
        assert share > 0.1  # the floor


def test_a_level_is_shuffled_once_a_pass(monkeypatch):
    made, plain = [], random.Random
    monkeypatch.setattr(random, "Random", lambda seed: made.append(seed) or plain(seed))
    level_curriculum = curriculum()
    for _ in range(3):
        level_curriculum.draw(6, generator())
    assert len(made) == len(set(made))


def test_inside_a_level_no_question_comes_twice_before_all_came_once():
    made = curriculum()
    drawn = [index for index in made.draw(200, generator()) if LEVELS[index] == "hard"]
    assert len(drawn) >= 16
    for start in range(0, 16, 4):
        assert sorted(drawn[start : start + 4]) == [20, 21, 22, 23]
    assert drawn[0:4] != drawn[4:8] or drawn[4:8] != drawn[8:12]  # each pass in its own order


def test_a_resumed_curriculum_draws_what_an_uninterrupted_one_draws():
    unbroken = trained_curriculum()
    unbroken.draw(7, generator(1))
    resumed = curriculum()
    resumed.load_state_dict(json.loads(json.dumps(unbroken.state_dict())))
    assert resumed.draw(30, generator(2)) == unbroken.draw(30, generator(2))
    assert resumed.shares() == unbroken.shares()


def test_a_state_of_other_levels_is_refused():
    state = LevelCurriculum(["one"], seed=1, decay=0.9, floor=0.05).state_dict()
    with pytest.raises(ValueError, match="has the levels one, the data easy, hard, middle"):
        curriculum().load_state_dict(state)


def test_questions_without_a_level_are_a_level():
    made = LevelCurriculum(["", "a"], seed=1, decay=0.9, floor=0.05)
    assert made.names == ["a", "no level"]


def test_a_rollout_that_a_reward_function_ended_is_no_part_of_the_state(make_ppo, tiny_policy):
    """It is drawn and counted again when the run goes on from the checkpoint."""
    options = {"curriculum": True, "num_rollouts": 2, "zero_variance_groups": "resample"}
    states, calls = [], []

    def length(completions: list, **columns: object) -> list[float]:
        calls.append(len(completions))
        states.append(trainer.curriculum.state_dict())
        if len(calls) == 3:  # the second rollout, after its first completions were counted
            raise KeyError("late")
        return [float(len(calls) == 1 and k % 2) for k in range(len(completions))]

    trainer = make_ppo(tiny_policy, length, **options)
    with pytest.raises(RewardError, match="late"):
        trainer.train()
    (checkpoint,) = Path(trainer.args.output_dir).glob("checkpoint-*")
    saved = json.loads((checkpoint / "controllers.json").read_text())["curriculum"]
    assert sum(saved["seen"].values()) == 8 and saved["asked"] == states[0]["asked"]
    assert states[1]["asked"] != states[0]["asked"]
