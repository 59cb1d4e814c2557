"""The area under the ROC curve, by counting pairs."""

import math

import pytest
import torch

from pipeline.stats.auroc import auroc, auroc_within


def by_pairs(scores: list[float], right: list[bool]) -> float:
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, is_right in zip(scores, right, strict=True)
        for b, other in zip(scores, right, strict=True)
        if is_right and not other
    ]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_give_what_counting_pairs_gives(ties):
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(40, generator=generator)
    scores = (scores * 4).round() if ties else scores
    right = torch.rand(40, generator=generator) < 0.3
    assert auroc(scores, right) == pytest.approx(by_pairs(scores.tolist(), right.tolist()))


def test_knowing_which_questions_are_hard_is_not_knowing_which_completions_are_right():
    # The values say 0.9 for the easy question and 0.1 for the hard one, whatever the completion.
    values = torch.tensor([[0.9, 0.9, 0.9, 0.9], [0.1, 0.1, 0.1, 0.1]])
    right = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert auroc(values.flatten(), right.flatten()) == 0.75
    assert auroc_within(values, right) == 0.5


def test_within_a_question_only_its_own_pairs_count():
    values = torch.tensor([[0.2, 0.1], [0.9, 0.8], [0.5, 0.4]])
    right = torch.tensor([[True, False], [False, True], [True, True]])
    assert auroc_within(values, right) == 0.5  # one pair right, one wrong, one no pair


def test_without_a_pair_there_is_no_area():
    all_right = torch.ones(3, dtype=torch.bool)
    assert math.isnan(auroc(torch.rand(3), all_right))
    assert math.isnan(auroc_within(torch.rand(1, 3), all_right.unsqueeze(0)))


def test_turning_the_scores_round_turns_the_area_round():
    scores, right = torch.tensor([0.1, 0.5, 0.3, 0.9]), torch.tensor([True, False, True, True])
    assert auroc(-scores, right) == pytest.approx(1 - auroc(scores, right))
