"""Replay: groups of hard questions from earlier rollouts in place of groups without variance."""

from dataclasses import fields

import pytest
import torch

from pipeline.ppo.groups import ScoredRollout, join_groups, select_completions, take_group
from pipeline.ppo.options import PPOOptions
from pipeline.ppo.replay import ReplayBuffer
from pipeline.records import Rollout
from tests.test_groups import scored

NAN = float("nan")


def buffer(**options) -> ReplayBuffer:
    given = {"group": 2, "size": 8, "age": 3, "success": 0.5, "right_outcome": 1.0} | options
    return ReplayBuffer(**given)


def outcomes(stored: ScoredRollout | None) -> list[float]:
    assert stored is not None
    return stored.outcomes_B.tolist()


def assert_equal(one: ScoredRollout, other: ScoredRollout) -> None:
    for field in fields(Rollout):
        mine, theirs = getattr(one.rollout, field.name), getattr(other.rollout, field.name)
        assert mine.dtype == theirs.dtype and torch.equal(mine, theirs), field.name
    assert torch.equal(one.outcomes_B, other.outcomes_B) and one.steps == other.steps


def test_only_groups_with_variance_and_low_success_are_kept():
    kept = buffer(group=4)
    #             no variance   1 of 4 right  3 of 4 right   none right, but rewards differ
    kept.add(scored([0.0] * 4 + [1, 0, 0, 0] + [1, 1, 1, 0] + [0.5, 0, 0, 0], prompt=1, width=2))
    assert outcomes(kept.take(9)) == [1.0, 0.0, 0.0, 0.0]


def test_a_completion_without_an_outcome_is_not_right():
    kept = buffer(group=3)
    kept.add(scored([1.0, NAN, 0.0], prompt=1, width=2))
    assert kept.take(1) is not None


def test_the_groups_used_least_come_first_and_of_those_the_newest():
    kept = buffer()
    kept.add(scored([1.0, 0.0], 1, 2))
    kept.add(scored([0.0, 1.0], 1, 2))
    assert outcomes(kept.take(1)) == [0.0, 1.0]
    assert outcomes(kept.take(1)) == [1.0, 0.0]
    assert outcomes(kept.take(2)) == [0.0, 1.0, 1.0, 0.0]


def test_old_groups_and_the_oldest_of_too_many_are_dropped():
    kept = buffer(age=2, size=3)
    kept.add(scored([1.0, 0.0] * 2, 1, 2))
    kept.add(scored([0.0, 1.0] * 2, 1, 2))
    assert len(kept.groups) == 3 and outcomes(kept.take(3)) == [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    kept.add(scored([0.0, 0.0], 1, 2))  # the third rollout: the first one's group is 2 rollouts old
    assert {one.rollout for one in kept.groups} == {2}
    kept.add(scored([0.0, 0.0], 1, 2))
    assert kept.take(1) is None


def test_a_group_that_is_taken_out_and_joined_again_is_the_same():
    steps = [[(0, 0.1)], [], [(1, 0.2)], []]
    both = scored([1.0, 0.0, 0.0, 1.0], prompt=3, width=2, steps=steps)
    again = join_groups([take_group(both, place, 2) for place in range(2)])
    assert_equal(again, both)


def test_padding_that_all_rows_share_is_not_stored():
    wide = scored([1.0, 0.0], prompt=4, width=5)
    wide.rollout.mask_prompt_BP[:, :3] = False
    wide.rollout.mask_completion_BC[:, 2:] = False
    stored = take_group(wide, 0, 2)
    assert stored.rollout.prompt_ids_BP.shape == (2, 1)
    assert stored.rollout.logprobs_BC.shape == (2, 2)


def test_stored_groups_replace_those_without_variance_with_their_own_log_probabilities():
    kept = buffer()
    kept.add(scored([1.0, 0.0], prompt=1, width=5))
    now = scored([0.0, 0.0, 1.0, 0.0, 1.0, 1.0], prompt=2, width=3)
    chosen, counts_B, left_out_Q = select_completions(
        now,
        PPOOptions(zero_variance_groups="replay", completions_per_question=2),
        lambda count, attempt: pytest.fail("nothing is sampled"),
        gather=lambda x: x,
        replay=kept.take,
    )
    assert left_out_Q is not None and left_out_Q.tolist() == [False, False, True]  # one was stored
    assert counts_B.tolist() == [True] * 4 + [False] * 2
    assert chosen.outcomes_B.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0, 1.0]
    assert chosen.rollout.logprobs_BC[0].tolist() == [-5.0] * 5
    assert chosen.rollout.logprobs_BC[2].tolist() == [-23.0] * 3 + [0.0] * 2


@pytest.mark.parametrize("steps", [None, [[(0, 0.25)], [], [], [(1, -1.0)]]])
def test_a_buffer_that_is_saved_and_loaded_goes_on_the_same(tmp_path, steps):
    kept, again = buffer(), buffer()
    kept.add(scored([1.0, 0.0, 0.0, 1.0], prompt=2, width=3, steps=steps))
    kept.take(1)
    kept.save(tmp_path / "replay-0.safetensors")
    again.load(tmp_path / "replay-0.safetensors")
    for one in (kept, again):
        one.add(scored([0.0, 1.0, 1.0, 1.0], prompt=1, width=2, steps=steps))
    for count in (1, 2, 3):
        mine, theirs = kept.take(count), again.take(count)
        assert mine is not None and theirs is not None
        assert_equal(mine, theirs)
    assert [(one.rollout, one.uses) for one in kept.groups] == [
        (one.rollout, one.uses) for one in again.groups
    ]


def test_an_empty_buffer_can_be_saved(tmp_path):
    kept = buffer()
    kept.add(scored([0.0, 0.0], 1, 2))
    kept.save(tmp_path / "replay-0.safetensors")
    again = buffer()
    again.load(tmp_path / "replay-0.safetensors")
    assert again.groups == [] and again.rollouts == 1
