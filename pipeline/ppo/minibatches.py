"""Cut a rollout into minibatches (one optimizer step each) and micro-batches (one forward each)."""

from collections.abc import Callable, Iterable

import torch

Batch = dict[str, torch.Tensor]  # tensors of a rollout by name, the first axis is B


def make_minibatches(
    rollout: Batch, minibatches: int, accumulate: int, generator: torch.Generator
) -> list[list[Batch]]:
    """Return the rollout's minibatches in random order, each as a list of micro-batches.

    Rows of similar length share a micro-batch inside a minibatch, which saves padding and does not
    change the gradient.
    """
    rows = torch.randperm(len(rollout["advantages"]), generator=generator)
    lengths = (rollout["prompt_mask"].sum(dim=1) + rollout["completion_mask"].sum(dim=1)).cpu()
    return [
        [
            {name: value[part] for name, value in rollout.items()}
            for part in minibatch[lengths[minibatch].argsort()].chunk(accumulate)
        ]
        for minibatch in rows.chunk(minibatches)
    ]


def make_micro_batches(
    rollout: Batch,
    minibatches: int,
    accumulate: int,
    generator: torch.Generator,
    sum_over_processes: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
) -> list[Batch]:
    """Return the micro-batches of one epoch, in order, each with its minibatch's token counts.

    `minibatch_tokens` counts the tokens in the loss of the whole minibatch, all processes;
    `minibatch_right_tokens` those of right completions, where the rollout has `right`.
    """

    def total(masks: Iterable[torch.Tensor]) -> torch.Tensor:
        return sum_over_processes(sum(mask_BC.sum() for mask_BC in masks))

    batches = []
    for micro in make_minibatches(rollout, minibatches, accumulate, generator):
        counts = {"minibatch_tokens": total(batch["completion_mask"] for batch in micro)}
        if "right" in rollout:
            counts["minibatch_right_tokens"] = total(
                batch["completion_mask"] & batch["right"].unsqueeze(1) for batch in micro
            )
        batches += [batch | counts for batch in micro]
    return batches
