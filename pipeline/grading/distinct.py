"""Distinct completions: which of several solutions of a question count as the same."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def plain_spaces(text: str) -> str:
    """The words of a text, separated by one space: two texts with equal words are one solution.

    >>> plain_spaces(" 2+3=5\\n  5*2=10\\n")
    '2+3=5 5*2=10'
    """
    return " ".join(text.split())


def distinct(
    items: Iterable[Item],
    identity: Callable[[Item], Hashable],
    *,
    question: Callable[[Item], Hashable] = lambda item: None,
    most: int | None = None,
) -> list[Item]:
    """The items in their order, without those that repeat the identity of an earlier one of the
    same question; at most the first `most` of each question.

    >>> distinct(["a1", "b1", "a1", "a2", "a3"], identity=str, question=lambda x: x[0], most=2)
    ['a1', 'b1', 'a2']
    """
    seen: dict[Hashable, set[Hashable]] = defaultdict(set)
    kept = []
    for item in items:
        known, this = seen[question(item)], identity(item)
        if this not in known and (most is None or len(known) < most):
            known.add(this)
            kept.append(item)
    return kept
