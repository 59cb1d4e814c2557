"""Random numbers and data order that depend on seed and step alone.

A resumed run draws the same as an uninterrupted one.
"""

import random
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler


def seeded_generator(*place: int | str) -> torch.Generator:
    """Return a generator for one place in a run, such as (seed, process, "sample", step).

    >>> [torch.randint(100, (), generator=seeded_generator(0, "deal", 5)).item() for _ in range(2)]
    [49, 49]
    """
    name = "/".join(map(str, place))
    return torch.Generator().manual_seed(random.Random(name).getrandbits(63))


class SeededEpochSampler(Sampler[int]):
    """The indices of TRL's RepeatSampler in an order that depends on seed and epoch alone.

    RepeatSampler's own order depends on the epochs since the process started. `epoch` is called at
    the start of each epoch.
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
