"""Random numbers and orders that follow from the place in a run alone.

A run that is resumed draws what the unbroken one would have drawn.
"""

import random
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler


def seeded_generator(*place: int | str) -> torch.Generator:
    """Random numbers for one place, such as (seed, process, "sample", step).

    >>> [torch.randint(100, (), generator=seeded_generator(0, "deal", 5)).item() for _ in range(2)]
    [49, 49]
    """
    name = "/".join(map(str, place))
    return torch.Generator().manual_seed(random.Random(name).getrandbits(63))


class SeededEpochSampler(Sampler[int]):
    """The indices of trl's RepeatSampler, in an order that follows from seed and epoch.

    Its own follows from the epochs since the process began. `epoch` is asked at the start of each.
    """

    def __init__(self, questions: Sampler[int], *, seed: int, epoch: Callable[[], int]):
        self.questions = questions
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.questions)

    def __iter__(self) -> Iterator[int]:
        if self.questions.shuffle:
            self.questions.generator.manual_seed(self.seed + self.epoch())
        return iter(self.questions)
