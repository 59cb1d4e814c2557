"""Mixtures of several data sets in given shares, as lists or as streams."""

import random
from collections.abc import Iterator, Mapping

from pipeline.records import Problem


def mixture(
    parts: Mapping[str, list[Problem]],
    weights: Mapping[str, float],
    *,
    seed: int,
    size: int | None = None,
    repeat: bool = False,
) -> list[Problem]:
    """Problems of all parts in the given shares, in random order.

    Without `size`, as many as the part with the fewest problems for its weight allows. With
    `repeat` a part with too few problems for `size` is taken several times; otherwise no problem
    occurs twice.

    Raises:
        ValueError: `size` needs more problems of a part than it has, without `repeat`.

    >>> a, b = ([Problem(question=f"{n}{i}?", answer="1") for i in range(9)] for n in "ab")
    >>> made = mixture({"a": a, "b": b}, {"a": 2, "b": 1}, seed=0, size=6)
    >>> sorted(p.question[0] for p in made)
    ['a', 'a', 'a', 'a', 'b', 'b']
    """
    total = sum(weights.values())
    most = min(int(len(parts[name]) * total / weight) for name, weight in weights.items())
    size = most if size is None else size
    if size > most and not (repeat and all(parts.values())):
        scarce = min(weights, key=lambda name: len(parts[name]) / weights[name])
        raise ValueError(
            f"size={size} in these shares needs more of {scarce} than its {len(parts[scarce]):,} "
            f"problems; take at most {most}, or give {scarce} a smaller weight"
        )
    rng = random.Random(seed)
    counts = _counts(weights, size)
    mixed = [p for name, n in counts.items() for p in _taken(parts[name], n, rng)]
    rng.shuffle(mixed)
    return mixed


def _taken(part: list[Problem], count: int, rng: random.Random) -> list[Problem]:
    """`count` problems in random order: the whole part as often as it fits, and a sample."""
    passes, rest = divmod(count, len(part)) if part else (0, count)
    return part * passes + rng.sample(part, rest)


def mixed_stream(
    streams: Mapping[str, Iterator[Problem]], weights: Mapping[str, float], *, seed: int
) -> Iterator[Problem]:
    """Problems drawn from the streams with probabilities proportional to the weights.

    Ends with the first stream that ends: going on without it would change the shares.
    """
    rng, names = random.Random(seed), list(streams)
    while True:
        name = rng.choices(names, [weights[n] for n in names])[0]
        problem = next(streams[name], None)
        if problem is None:
            return
        yield problem


def _counts(weights: Mapping[str, float], size: int) -> dict[str, int]:
    """{name: number of problems} that add up to size, by the largest-remainder method."""
    total = sum(weights.values())
    exact = {name: size * weight / total for name, weight in weights.items()}
    counts = {name: int(share) for name, share in exact.items()}
    rest = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in rest[: size - sum(counts.values())]:
        counts[name] += 1
    return counts
