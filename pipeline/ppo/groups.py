"""The completions of a question side by side: which groups teach nothing, and putting others there.

Where all G completions of a question earn the same, nothing sets one above the other. DAPO
(arXiv:2503.14476, 3.2) leaves such questions out and samples others until the batch is full. With a
value head they still teach what the question is worth; leaving them out is a choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch.nn.functional import pad

from pipeline.records import Rollout


@dataclass(frozen=True)
class ScoredRollout:
    """Completions and what they were paid."""

    rollout: Rollout
    outcomes_B: torch.Tensor  # nan where no function could judge
    steps: list[list[tuple[int, float]]] | None  # (token, reward) of each paid step

    def totals(self) -> torch.Tensor:
        """totals_B: outcome and steps together, nan where not judged."""
        if self.steps is None:
            return self.outcomes_B
        paid = [sum(reward for _, reward in marks) for marks in self.steps]
        return self.outcomes_B + torch.tensor(paid).to(self.outcomes_B)


def zero_variance(totals_B: torch.Tensor, group: int) -> torch.Tensor:
    """zero_variance_Q: True where no two judged completions of a question earned different totals.

    >>> zero_variance(torch.tensor([1.0, 1.0, 1.0, 0.0, float("nan"), 1.0]), group=2).tolist()
    [True, False, True]
    """
    totals_QG = totals_B.view(-1, group)
    top_Q = totals_QG.nan_to_num(nan=-torch.inf).amax(dim=1)
    bottom_Q = totals_QG.nan_to_num(nan=torch.inf).amin(dim=1)
    return top_Q - bottom_Q <= 0


def replace_groups(
    kept: ScoredRollout,
    fresh: ScoredRollout,
    zero_variance_Q: torch.Tensor,
    fresh_zero_variance_Q: torch.Tensor,
    group: int,
) -> tuple[ScoredRollout, torch.Tensor]:
    """(judged, zero_variance_Q): fresh groups that differ take the places of kept ones that do not.

    Fresh groups without a place are dropped.
    """
    places = zero_variance_Q.nonzero().flatten()
    good = (~fresh_zero_variance_Q).nonzero().flatten()[: len(places)]
    places = places[: len(good)]
    rows = {
        int(place) * group + g: int(source) * group + g
        for place, source in zip(places, good, strict=True)
        for g in range(group)
    }
    left = zero_variance_Q.clone()
    left[places] = False
    return (_with_rows(kept, fresh, rows) if rows else kept), left


def _with_rows(kept: ScoredRollout, fresh: ScoredRollout, rows: dict[int, int]) -> ScoredRollout:
    """`kept`, with row i of it replaced by row rows[i] of `fresh`."""
    here, there = list(rows), list(rows.values())
    tensors = {}
    for field in fields(Rollout):
        mine, other = _same_width(
            field.name, getattr(kept.rollout, field.name), getattr(fresh.rollout, field.name)
        )
        tensors[field.name] = mine.clone()
        tensors[field.name][here] = other[there]
    outcomes_B = kept.outcomes_B.clone()
    outcomes_B[here] = fresh.outcomes_B[there]
    steps = kept.steps and [
        fresh.steps[rows[i]] if i in rows else marks for i, marks in enumerate(kept.steps)
    ]
    return ScoredRollout(Rollout(**tensors), outcomes_B, steps)


def _same_width(name: str, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
    """The tensors, padded on the side that their name tells: prompts left, completions right.

    What fills the gap is masked, and 0 is a token of every vocabulary.
    """
    if not name.endswith(("_BP", "_BC")):
        return tensors
    width = max(x.shape[1] for x in tensors)
    gaps = [width - x.shape[1] for x in tensors]
    left = name.endswith("_BP")
    return [pad(x, (gap, 0) if left else (0, gap)) for x, gap in zip(tensors, gaps, strict=True)]
