"""Streams as data sets of the library `datasets`, which start without hashing what they read."""

from collections.abc import Callable, Iterator, Mapping

from datasets import IterableDataset


class _Passes:
    """Starts a pass over the rows of a stream.

    `datasets` copies and hashes it to name a cache, which a stream has not; a closure alone would
    take ten seconds.
    """

    def __init__(self, rows: Callable[[], Iterator[Mapping[str, object]]] | None) -> None:
        self.rows = rows

    def __call__(self) -> Iterator[Mapping[str, object]]:
        assert self.rows is not None
        yield from self.rows()

    def __deepcopy__(self, memo: dict[int, object]) -> "_Passes":
        return self

    def __reduce__(self) -> tuple[type, tuple[None]]:
        return _Passes, (None,)


def stream_of(rows: Callable[[], Iterator[Mapping[str, object]]]) -> IterableDataset:
    """Return the stream whose passes `rows` starts.

    >>> list(stream_of(lambda: iter([{"n": 1}, {"n": 2}])))
    [{'n': 1}, {'n': 2}]
    """
    return IterableDataset.from_generator(_Passes(rows))
