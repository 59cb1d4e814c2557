"""Five thousand damaged rows: read = kept + dropped by reason, whatever stands in them."""

import gzip
import json
import math
import multiprocessing
import random
import time
from collections.abc import Callable

import pytest

from pipeline.data.problems import read_problems, stream_problems
from pipeline.data.registry import SOURCES
from tests.test_converters import GOOD_ROWS

Damage = Callable[[random.Random, dict], object]


def _replace(value: object) -> Damage:
    return lambda rng, row: row | {rng.choice(list(row)): value}


DAMAGE: tuple[Damage, ...] = (
    lambda rng, row: {k: v for k, v in row.items() if k != rng.choice(list(row))},
    *map(_replace, (None, math.nan, math.inf, True, [], {}, "", " ", "\ud800", -1, 10**30)),
    _replace([[[["deep"]]] * 3]),
    _replace("<think></think>" * 5 + "\x00\u202e"),
    _replace("x" * 200_000),
    lambda rng, row: row | {"extra": 1},
    lambda rng, row: [row],
    lambda rng, row: "text",
    lambda rng, row: json.dumps(row).encode()[: rng.randrange(1, 40)],
    lambda rng, row: b"\xff\xfe" + json.dumps(row).encode("utf-16"),
    lambda rng, row: b"[" * 3000,
    lambda rng, row: row,
    lambda rng, row: {**row, **{rng.choice(list(row)): {"text": 1, "label": [2]}}},
)


def line(made: object) -> bytes:
    return made if isinstance(made, bytes) else json.dumps(made).encode()


@pytest.mark.parametrize(
    ("processes", "start"),
    [(1, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)],
)
def test_five_thousand_damaged_rows_are_all_accounted_for(tmp_path, processes, start, monkeypatch):
    # A forked process has its imports already, which take a spawned one seconds.
    monkeypatch.setattr(
        "pipeline.data.problems.get_context", lambda _: multiprocessing.get_context(start)
    )
    rng, begin, read = random.Random(0), time.process_time(), 0
    names = ["gsm8k"] if processes > 1 else list(SOURCES)
    rows_each = -(-5000 // len(SOURCES))
    for name in names:
        source = SOURCES[name]
        rows = [
            line(rng.choice(DAMAGE)(rng, dict(GOOD_ROWS[name][0]))).replace(b"\n", b" ")
            for _ in range(rows_each)
        ]
        rows = [row if row.strip() else b"{}" for row in rows]
        path = tmp_path / source.folder / f"{source.splits[0]}.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(b"\n".join(rows))
        report = read_problems(name, source.splits[0], tmp_path, processes=processes)
        assert report.rows_read == rows_each == report.kept + sum(report.dropped.values())
        assert all(p.question.strip() and p.answer.strip() for p in report.problems)
        assert all(reason and len(reason) < 80 for reason in report.dropped)
        assert list(stream_problems(name, source.splits[0], tmp_path)) == report.problems
        read += report.rows_read
    assert processes > 1 or read >= 5000
    assert time.process_time() - begin < 60
