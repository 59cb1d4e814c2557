"""Cut a rollout into minibatches (one optimizer step each) and micro-batches (one forward each)."""

from collections.abc import Callable

import torch

from pipeline.scoring import Completions
from pipeline.training.token_budget import MostOfProcesses, cut_by_tokens, into_parts

Batch = dict[str, torch.Tensor]  # tensors of a rollout by name, the first axis is B
# What a model scores: the arguments of `prepare_completions`, in order.
SCORED = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


def make_minibatches(
    rollout: Batch, minibatches: int, accumulate: int, generator: torch.Generator
) -> list[list[Batch]]:
    """Return the rollout's minibatches in random order, each as a list of micro-batches.

    Rows of similar length share a micro-batch inside a minibatch, which saves padding and does not
    change the gradient.
    """
    rows = torch.randperm(len(rollout["advantages"]), generator=generator)
    lengths = sequence_lengths(rollout)
    return [
        [
            {name: value[part] for name, value in rollout.items()}
            for part in minibatch[lengths[minibatch].argsort()].chunk(accumulate)
        ]
        for minibatch in rows.chunk(minibatches)
    ]


class MicroBatch(dict[str, torch.Tensor]):
    """Tensors of a part of a rollout by name.

    Args:
        named: the tensors.
        rows: int64, on the CPU: which rows of the rollout they are.
    """

    def __init__(self, named: Batch | None = None, rows: torch.Tensor | None = None):
        super().__init__(named or {})
        self.rows = rows
        self.completions: Completions | None = None  # the same, made ready for scoring


def make_micro_batches(
    rollout: Batch,
    minibatches: int,
    generator: torch.Generator,
    cut: Callable[[list[list[int]]], list[list[int]]],
    sum_over_processes: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    token_mean: str = "minibatch",
) -> list[list[MicroBatch]]:
    """Return the minibatches of one epoch in random order, each as its micro-batches, which have
    the token counts of their minibatch.

    `minibatch_tokens` counts the tokens in the loss of the whole minibatch, all processes, or with
    token_mean="rollout" those of a minibatch of the rollout on average, a float;
    `minibatch_right_tokens` counts those of right completions, where the rollout has `right`.

    Args:
        cut: from the lengths of each minibatch's sequences, in ascending order, to the number of
            sequences of each of its micro-batches.
    """
    found, lengths_B = [], sequence_lengths(rollout)
    rows = [
        minibatch[lengths_B[minibatch].argsort()]
        for minibatch in torch.randperm(len(lengths_B), generator=generator).chunk(minibatches)
    ]
    sizes = cut([lengths_B[part].tolist() for part in rows])
    mask_BC = rollout["completion_mask"]
    if token_mean == "rollout":
        tokens = [sum_over_processes(mask_BC.sum()) / len(rows)] * len(rows)
    else:
        tokens = [sum_over_processes(mask_BC[part].sum()) for part in rows]
    for part, part_sizes, part_tokens in zip(rows, sizes, tokens, strict=True):
        counts = {"minibatch_tokens": part_tokens}
        if "right" in rollout:
            right_BC = (mask_BC & rollout["right"].unsqueeze(1))[part]
            counts["minibatch_right_tokens"] = sum_over_processes(right_BC.sum())
        found.append(
            [
                MicroBatch({name: value[few] for name, value in rollout.items()} | counts, few)
                for few in part.split(part_sizes)
            ]
        )
    return found


def sequence_lengths(rollout: Batch) -> torch.Tensor:
    """lengths_B: tokens of prompt and completion that are in the loss, int64, on the CPU."""
    return (rollout["prompt_mask"].sum(dim=1) + rollout["completion_mask"].sum(dim=1)).cpu()


def cut_evenly(micro_batch_size: int) -> Callable[[list[list[int]]], list[list[int]]]:
    """Return a `cut` into micro-batches of so many sequences; the last may have fewer."""

    def cut(lengths: list[list[int]]) -> list[list[int]]:
        return [
            [
                min(micro_batch_size, len(of_minibatch) - first)
                for first in range(0, len(of_minibatch), micro_batch_size)
            ]
            for of_minibatch in lengths
        ]

    return cut


def cut_to_budget(
    max_tokens: int, max_rows: int | None, padded: bool, most_of_processes: MostOfProcesses
) -> Callable[[list[list[int]]], list[list[int]]]:
    """Return a `cut` into micro-batches of at most so many tokens and sequences; every process has
    as many micro-batches, since those of models divided among processes are computed together."""

    def cut(lengths: list[list[int]]) -> list[list[int]]:
        sizes = [
            cut_by_tokens(of_minibatch, max_tokens, max_rows=max_rows, padded=padded)
            for of_minibatch in lengths
        ]
        parts = most_of_processes([len(of_minibatch) for of_minibatch in sizes])
        return [into_parts(mine, most) for mine, most in zip(sizes, parts, strict=True)]

    return cut
