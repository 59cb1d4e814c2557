"""A sampler whose batches have examples of similar length, in random order.

transformers' `group_by_length` orders the batches of each pool from long to short. As the length of
a thought follows its difficulty, training would alternate between hard and easy batches.
"""

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

POOL = 16  # batches whose examples are sorted together


class BucketSampler(Sampler[int]):
    """Indices of all examples, in an order that depends on seed and epoch alone."""

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int):
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch, as accelerate does for every sampler."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(
            bucketed(self.lengths, self.batch_size, random.Random(f"{self.seed}/{self.epoch}"))
        )


def bucketed(lengths: Sequence[int], batch_size: int, rng: random.Random) -> list[int]:
    """Return a permutation of the indices whose batches have examples of similar length.

    >>> bucketed([9, 1, 8, 2], batch_size=2, rng=random.Random(0))
    [1, 3, 2, 0]
    """
    order = list(range(len(lengths)))
    rng.shuffle(order)
    pool = batch_size * POOL
    result = []
    for start in range(0, len(order), pool):
        by_length = sorted(order[start : start + pool], key=lambda index: lengths[index])
        batches = [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
        # The last batch of the last pool may be short; anywhere else later ones would shift.
        short = [batches.pop()] if len(batches[-1]) < batch_size else []
        rng.shuffle(batches)
        result += [index for batch in batches + short for index in batch]
    return result
