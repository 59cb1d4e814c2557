"""SFT loss on worked solutions inside a PPO update.

The paper's training loop (4.5) alternates a supervised step and a PPO step. Here both losses share
one optimizer step: the supervised gradient has less variance and limits the drift of the policy.
The examples of a step follow from its number, so a resumed run trains on the same.
"""

import random
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch

from pipeline.data.sft_examples import thought_and_answer_masks


class SupervisedPart:
    """Batches of worked solutions and their loss of two parts.

    Args:
        rows: those of `pipeline.data.sft_examples.sft_dataset`.
        batch_size: rows an optimizer step and process.

    Raises:
        ValueError: where there are fewer rows than `batch_size`.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, list[int]]],
        *,
        batch_size: int,
        end_think_id: int,
        seed: int,
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
        # The order of one pass is kept, and not shuffled again in every optimizer step.
        self._order = lru_cache(maxsize=1)(self._shuffled)

    def loss(
        self, logprobs_BT: torch.Tensor, ids_BT: torch.Tensor, mask_BT: torch.Tensor
    ) -> torch.Tensor:
        """Return CE(thought) + CE(answer), each a mean over its tokens, of a batch."""
        parts = thought_and_answer_masks(ids_BT, mask_BT, self.end_think_id)
        return sum(-(logprobs_BT * part).sum() / part.sum().clamp(min=1) for part in parts)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (ids_BT, mask_completion_BT), padded on the right, where a causal model needs no
        attention mask."""
        chosen = [self.rows[index] for index in self._indices(step)]
        width = max(len(row["input_ids"]) for row in chosen)
        ids_BT = torch.zeros(len(chosen), width, dtype=torch.long)
        mask_BT = torch.zeros(len(chosen), width, dtype=torch.bool)
        for row, example in enumerate(chosen):
            ids_BT[row, : len(example["input_ids"])] = torch.tensor(example["input_ids"])
            mask_BT[row, : len(example["input_ids"])] = torch.tensor(example["completion_mask"]) > 0
        return ids_BT, mask_BT

    def _indices(self, step: int) -> list[int]:
        """Return the examples of a step: a slice of a shuffle, of which each pass has a new one."""
        steps_per_pass = len(self.rows) // self.batch_size
        shuffle, place = divmod(step, steps_per_pass)
        return self._order(shuffle)[place * self.batch_size : (place + 1) * self.batch_size]

    def _shuffled(self, shuffle: int) -> list[int]:
        order = list(range(len(self.rows)))
        random.Random(f"{self.seed}/{shuffle}").shuffle(order)
        return order
