"""Cut sequences into parts of at most so many tokens, as many parts on every process."""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator

# The largest of the processes' numbers, elementwise.
MostOfProcesses = Callable[[list[int]], list[int]]


def most_of_processes(accelerator: Accelerator, counts: list[int]) -> list[int]:
    """Return the largest of the processes' numbers, elementwise; all must call it."""
    mine = torch.tensor([counts], device=accelerator.device)
    return accelerator.gather(mine).amax(dim=0).tolist()


def one_process(counts: list[int]) -> list[int]:
    """Return the numbers of the only process."""
    return counts


def cut_by_tokens(
    lengths: Sequence[int], max_tokens: int, *, max_rows: int | None = None, padded: bool = False
) -> list[int]:
    """Return the number of sequences of each part; a longer sequence than allowed is a part.

    Args:
        lengths: tokens of the sequences, in ascending order.
        max_tokens: most tokens of a part.
        max_rows: most sequences of a part; default: no limit.
        padded: count every sequence of a part as long as its longest.

    >>> cut_by_tokens([1, 2, 3, 4], 6), cut_by_tokens([1, 2, 3, 4], 6, padded=True)
    ([3, 1], [2, 1, 1])
    """
    sizes, tokens = [0], 0
    for length in lengths:
        together = (sizes[-1] + 1) * length if padded else tokens + length
        if sizes[-1] and (together > max_tokens or sizes[-1] == max_rows):
            sizes.append(0)
            tokens = 0
        sizes[-1] += 1
        tokens += length
    return sizes


def into_parts(sizes: list[int], parts: int) -> list[int]:
    """Return at least `parts` sizes, by halving the largest as long as one has two sequences.

    >>> into_parts([5, 2], 4)
    [2, 1, 2, 2]
    """
    sizes = list(sizes)
    while len(sizes) < parts and max(sizes) > 1:
        i = sizes.index(max(sizes))
        sizes[i : i + 1] = [sizes[i] // 2, sizes[i] - sizes[i] // 2]
    return sizes
