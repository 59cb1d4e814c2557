"""The supervised part of a PPO update: worked solutions beside the policy's own.

The paper's training loop (4.5) alternates a supervised step and a PPO step. Here both losses share
one optimizer step, so that the supervised one holds the policy where the noise of the other would
carry it off. Which examples join a step follows from its number: a resumed run sees the same.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.data.sft_examples import thought_and_answer_masks


class SupervisedPart:
    """Batches of worked solutions, and their two-part loss.

    `rows` are those of `pipeline.data.sft_examples.sft_dataset`.
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], *, batch_size: int, end_think_id: int, seed: int
    ):
        if len(rows) < batch_size:
            raise ValueError(
                f"{len(rows)} worked solutions are fewer than supervised_batch_size={batch_size}; "
                "lower it or give more"
            )
        self.rows = rows
        self.batch_size = batch_size
        self.end_think_id = end_think_id
        self.seed = seed

    def loss(
        self, logprobs_BT: torch.Tensor, ids_BT: torch.Tensor, mask_BT: torch.Tensor
    ) -> torch.Tensor:
        """CE(thought) + CE(answer), each a mean over its tokens, of a batch."""
        parts = thought_and_answer_masks(ids_BT, mask_BT, self.end_think_id)
        return sum(-(logprobs_BT * part).sum() / part.sum().clamp(min=1) for part in parts)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids_BT, mask_completion_BT) padded on the right, where a causal model needs no mask."""
        chosen = [self.rows[index] for index in self._indices(step)]
        width = max(len(row["input_ids"]) for row in chosen)
        ids_BT = torch.zeros(len(chosen), width, dtype=torch.long)
        mask_BT = torch.zeros(len(chosen), width, dtype=torch.bool)
        for row, example in enumerate(chosen):
            ids_BT[row, : len(example["input_ids"])] = torch.tensor(example["input_ids"])
            mask_BT[row, : len(example["input_ids"])] = torch.tensor(example["completion_mask"]) > 0
        return ids_BT, mask_BT

    def _indices(self, step: int) -> list[int]:
        """Every example once before any comes twice: the slice of a shuffle `step` falls on."""
        steps_per_pass = len(self.rows) // self.batch_size
        shuffle, place = divmod(step, steps_per_pass)
        order = list(range(len(self.rows)))
        random.Random(f"{self.seed}/{shuffle}").shuffle(order)
        return order[place * self.batch_size : (place + 1) * self.batch_size]
