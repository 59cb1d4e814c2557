"""Groups of completions of one question: find those without variance, and replace them.

Where all G completions of a question have the same reward, the group has no policy gradient. DAPO
(arXiv:2503.14476, 3.2) leaves such groups out and samples others until the batch is full. A value
head still learns from them, so leaving them out is an option.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch.nn.functional import pad

from pipeline.ppo.options import PPOOptions
from pipeline.records import Rollout


@dataclass(frozen=True)
class ScoredRollout:
    """Completions with their rewards."""

    rollout: Rollout
    outcomes_B: torch.Tensor  # NaN where no reward function applies
    steps: list[list[tuple[int, float]]] | None  # (token index, reward) of each step
    rows_B: Sequence[Mapping[str, object]] = ()  # of the data set; () where nothing reads them

    def totals(self) -> torch.Tensor:
        """Return totals_B, outcome plus step rewards; NaN where no reward function applies."""
        if self.steps is None:
            return self.outcomes_B
        sums = [sum(reward for _, reward in steps) for steps in self.steps]
        return self.outcomes_B + torch.tensor(sums).to(self.outcomes_B)


def zero_variance(totals_B: torch.Tensor, group: int) -> torch.Tensor:
    """Return zero_variance_Q: True where all completions of a question that have a reward have the
    same.

    >>> zero_variance(torch.tensor([1.0, 1.0, 1.0, 0.0, float("nan"), 1.0]), group=2).tolist()
    [True, False, True]
    """
    totals_QG = totals_B.view(-1, group)
    top_Q = totals_QG.nan_to_num(nan=-torch.inf).amax(dim=1)
    bottom_Q = totals_QG.nan_to_num(nan=torch.inf).amin(dim=1)
    return top_Q - bottom_Q <= 0


def select_completions(
    scored: ScoredRollout,
    options: PPOOptions,
    resample: Callable[[int, int], ScoredRollout],
    *,
    gather: Callable[[torch.Tensor], torch.Tensor],
    replay: Callable[[int], ScoredRollout | None] | None = None,
) -> tuple[ScoredRollout, torch.Tensor, torch.Tensor | None]:
    """Return (scored, counts_B, zero_variance_Q): what to train on, by `zero_variance_groups` and
    `mask_truncated_completions`.

    counts_B is False for completions that are left out of the loss. zero_variance_Q marks the
    groups that were left out; None where all are kept.

    Args:
        resample: (number of questions, attempt) -> as many new groups, scored. Every process calls
            it as often and for as many, because rewards are gathered from all of them.
        gather: concatenates a tensor of all processes.
        replay: number of groups -> at most as many groups with variance of earlier rollouts.
    """
    counts_B = torch.ones_like(scored.outcomes_B, dtype=torch.bool)
    zero_variance_Q = None
    group = options.completions_per_question
    if options.zero_variance_groups != "keep":
        zero_variance_Q = zero_variance(scored.totals(), group)
        tries = options.resample_tries if options.zero_variance_groups == "resample" else 0
        for attempt in range(tries):
            wanted = int(gather(zero_variance_Q.sum().view(1)).max())
            if not wanted:
                break
            fresh = resample(wanted, attempt)
            scored, zero_variance_Q = replace_groups(
                scored, fresh, zero_variance_Q, zero_variance(fresh.totals(), group), group
            )
        stored = replay(int(zero_variance_Q.sum())) if replay is not None else None
        if stored is not None:
            none_Q = torch.zeros(len(stored.outcomes_B) // group, dtype=torch.bool)
            scored, zero_variance_Q = replace_groups(scored, stored, zero_variance_Q, none_Q, group)
        counts_B = ~zero_variance_Q.repeat_interleave(group)
    if options.mask_truncated_completions:
        counts_B = counts_B & ~scored.rollout.truncated_B
    return scored, counts_B, zero_variance_Q


def replace_groups(
    kept: ScoredRollout,
    fresh: ScoredRollout,
    zero_variance_Q: torch.Tensor,
    fresh_zero_variance_Q: torch.Tensor,
    group: int,
) -> tuple[ScoredRollout, torch.Tensor]:
    """Replace groups without variance by fresh groups with variance, in order.

    Returns (scored, zero_variance_Q) after the replacement; fresh groups that are left over are
    dropped.
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
    """Return `kept` with row i replaced by row rows[i] of `fresh`."""
    here, there = list(rows), list(rows.values())
    tensors = {}
    for field in fields(Rollout):
        mine, other = _same_width(
            field.name, getattr(kept.rollout, field.name), getattr(fresh.rollout, field.name)
        )
        tensors[field.name] = mine.clone()
        tensors[field.name][here] = other[there].to(mine)
    outcomes_B = kept.outcomes_B.clone()
    outcomes_B[here] = fresh.outcomes_B[there].to(outcomes_B)
    steps = kept.steps
    if steps and fresh.steps:
        steps = [fresh.steps[rows[i]] if i in rows else own for i, own in enumerate(steps)]
    rows_B = kept.rows_B
    if rows_B and fresh.rows_B:
        rows_B = [fresh.rows_B[rows[i]] if i in rows else own for i, own in enumerate(rows_B)]
    return ScoredRollout(Rollout(**tensors), outcomes_B, steps, rows_B)


def take_group(scored: ScoredRollout, place: int, group: int) -> ScoredRollout:
    """Return a copy of group number `place` on the CPU, without padding that all its rows share and
    without its rows of the data set."""
    here = slice(place * group, (place + 1) * group)
    rollout = {field.name: getattr(scored.rollout, field.name)[here] for field in fields(Rollout)}
    prompt = int(rollout["mask_prompt_BP"].sum(dim=1).max())
    completion = int(rollout["mask_completion_BC"].sum(dim=1).max())
    for name, x in rollout.items():
        if name.endswith("_BP"):
            x = x[:, x.shape[1] - prompt :]
        elif name.endswith("_BC"):
            x = x[:, :completion]
        rollout[name] = x.detach().cpu().clone()
    steps = None if scored.steps is None else scored.steps[here]
    return ScoredRollout(Rollout(**rollout), scored.outcomes_B[here].detach().cpu().clone(), steps)


def join_groups(groups: Sequence[ScoredRollout]) -> ScoredRollout:
    """Return the groups side by side, padded to the longest."""
    tensors = {
        field.name: torch.cat(
            list(_same_width(field.name, *(getattr(one.rollout, field.name) for one in groups)))
        )
        for field in fields(Rollout)
    }
    steps = None
    if all(one.steps is not None for one in groups):
        steps = [row for one in groups for row in one.steps or ()]
    outcomes_B = torch.cat([one.outcomes_B for one in groups])
    return ScoredRollout(Rollout(**tensors), outcomes_B, steps)


def _same_width(name: str, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return the tensors padded to one width: prompts (_BP) on the left, completions (_BC) on the
    right. The padding is masked, and 0 is a token id of every vocabulary."""
    if not name.endswith(("_BP", "_BC")):
        return tensors
    width = max(x.shape[1] for x in tensors)
    gaps = [width - x.shape[1] for x in tensors]
    left = name.endswith("_BP")
    return [pad(x, (gap, 0) if left else (0, gap)) for x, gap in zip(tensors, gaps, strict=True)]
