"""Groups without variance of the reward: found, and replaced by others."""

import torch

from pipeline.ppo.groups import ScoredRollout, replace_groups, zero_variance
from pipeline.records import Rollout

NAN = float("nan")


def scored(
    outcomes: list[float], prompt: int, width: int, steps: list | None = None
) -> ScoredRollout:
    """Completions of `width` tokens on prompts of `prompt` tokens; row i is made of the number
    10 * i + its length."""
    rows = len(outcomes)
    marks_B = torch.arange(rows).unsqueeze(1) * 10 + width
    return ScoredRollout(
        Rollout(
            prompt_ids_BP=marks_B.expand(rows, prompt),
            mask_prompt_BP=torch.ones(rows, prompt, dtype=torch.bool),
            completion_ids_BC=marks_B.expand(rows, width),
            mask_completion_BC=torch.ones(rows, width, dtype=torch.bool),
            logprobs_BC=-marks_B.expand(rows, width).float(),
            values_BC=marks_B.expand(rows, width).float(),
            truncated_B=torch.zeros(rows, dtype=torch.bool),
        ),
        torch.tensor(outcomes),
        steps,
    )


def test_a_group_has_no_variance_where_all_rewards_are_equal():
    totals_B = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, NAN, 1.0, NAN, NAN])
    assert zero_variance(totals_B, group=2).tolist() == [True, True, False, True, True]


def test_step_rewards_count_in_the_variance_of_a_group():
    steps = [[], [(0, 0.5)], [], []]
    totals_B = scored([0.0] * 4, 1, 2, steps).totals()
    assert totals_B.tolist() == [0.0, 0.5, 0.0, 0.0]
    assert zero_variance(totals_B, group=2).tolist() == [False, True]


def test_fresh_groups_replace_those_without_variance_and_no_others():
    kept = scored([1.0, 1.0, 0.0, 1.0, 0.0, 0.0], prompt=3, width=2)
    fresh = scored([0.0, 0.0, 1.0, 0.0], prompt=1, width=5)
    zero_variance_Q, fresh_zero_variance_Q = (
        torch.tensor([True, False, True]),
        torch.tensor([True, False]),
    )
    made, left_Q = replace_groups(kept, fresh, zero_variance_Q, fresh_zero_variance_Q, group=2)
    assert left_Q.tolist() == [False, False, True]  # one fresh question differs, it goes first
    assert made.outcomes_B.tolist() == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    rollout = made.rollout
    # Rows 2 and 3 of the fresh ones stand first: prompts at the right edge, completions at the left
    assert rollout.prompt_ids_BP[:3].tolist() == [[0, 0, 25], [0, 0, 35], [22, 22, 22]]
    assert rollout.mask_prompt_BP[:3].tolist() == [[False, False, True]] * 2 + [[True] * 3]
    assert rollout.completion_ids_BC[1:3].tolist() == [[35] * 5, [22, 22, 0, 0, 0]]
    assert rollout.mask_completion_BC.sum(dim=1).tolist() == [5, 5, 2, 2, 2, 2]
    assert rollout.logprobs_BC[2].tolist() == [-22.0, -22.0, 0.0, 0.0, 0.0]


def test_steps_move_with_their_completions():
    kept = scored([0.0] * 4, 1, 2, [[(0, 0.1)], [(0, 0.1)], [], [(1, 0.2)]])
    fresh = scored([1.0, 0.0], 1, 2, [[(1, 0.7)], []])
    made, _ = replace_groups(
        kept, fresh, torch.tensor([True, False]), torch.tensor([False]), group=2
    )
    assert made.steps == [[(1, 0.7)], [], [], [(1, 0.2)]]


def test_fresh_groups_without_variance_replace_nothing():
    kept = scored([1.0, 1.0], 1, 2)
    made, left_Q = replace_groups(kept, kept, torch.tensor([True]), torch.tensor([True]), group=2)
    assert made is kept and left_Q.tolist() == [True]
