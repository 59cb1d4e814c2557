"""Perplexity of a language model on held-out blocks: exp of the mean loss of a token, in nats."""

import math
from collections.abc import Iterable, Mapping

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.pretrain.packing import IGNORED


@torch.no_grad()
def held_out_loss(
    model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]], accelerator: Accelerator
) -> float:
    """The mean cross-entropy of all labels of the batches, in nats; every token weighs the same.

    The batches are those of a prepared data loader; all processes must call it. The model is
    evaluated without dropout and left in its mode.
    """
    was_training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    try:
        for batch in batches:
            labels_BT = batch["labels"][:, 1:]
            plain = {name: value for name, value in batch.items() if name != "labels"}
            with accelerator.autocast():
                logits_BTV = model(**plain, use_cache=False)["logits"][:, :-1]
            ce_BT = nn.functional.cross_entropy(
                logits_BTV.float().transpose(1, 2),
                labels_BT,
                ignore_index=IGNORED,
                reduction="none",
            )
            counts_B = (labels_BT != IGNORED).sum(dim=1)
            sums_B = ce_BT.sum(dim=1)
            if accelerator.num_processes > 1:
                # Rows, since a process may be given some twice for batches of equal size.
                sums_B, counts_B = accelerator.gather_for_metrics((sums_B, counts_B))
            nats, tokens = nats + float(sums_B.sum()), tokens + int(counts_B.sum())
    finally:
        model.train(was_training)
    return nats / tokens


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that has no float.

    >>> round(perplexity(math.log(640)))
    640
    """
    return math.exp(loss) if loss < 700 else math.inf
