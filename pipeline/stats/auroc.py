"""Does the value head tell right completions from wrong ones?

The area under the ROC curve is the chance that a right completion has a higher value than a wrong
one: 0.5 knows nothing, 1.0 everything. Pooled over all questions it also pays for knowing which
questions are hard; within a question it asks only what a search over samples needs.
"""

import torch


def auroc(scores: torch.Tensor, right: torch.Tensor) -> float:
    """Share of (right, wrong) pairs whose right one scores higher, ties half; nan without a pair.

    From the ranks, as Mann and Whitney's U, so that it takes n log n.

    >>> auroc(torch.tensor([0.1, 0.9, 0.4, 0.4]), torch.tensor([False, True, True, False]))
    0.875
    """
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = scores.double().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    ranks = (last - (counts - 1) / 2)[inverse]  # the mean rank of those that tie, from 1
    above = ranks[right].sum() - positives * (positives + 1) / 2
    return (above / (positives * negatives)).item()


def auroc_within(scores_QG: torch.Tensor, right_QG: torch.Tensor) -> float:
    """The same over pairs of completions of one question, all pairs pooled.

    >>> auroc_within(torch.tensor([[0.9, 0.1], [0.2, 0.3]]), torch.tensor([[1, 0], [1, 0]]) > 0)
    0.5
    """
    pair_QGG = right_QG.unsqueeze(2) & ~right_QG.unsqueeze(1)
    ahead_QGG = (scores_QG.unsqueeze(2) - scores_QG.unsqueeze(1)).sign() / 2 + 0.5
    pairs = pair_QGG.sum()
    return (ahead_QGG[pair_QGG].sum() / pairs).item() if pairs else float("nan")
