"""The benchmark of shared evaluations: real processes, forked, on an evaluation of a second."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import pytest

from eval.bench import evaluating, shared_eval
from eval.bench.__main__ import main
from tests.forked import Forked

NUMBERS = {"problems": 4, "n": 2, "batch_size": 4, "tokens": 6, "iterations": 1, "warmup": 1}
SMALL = [word for name, number in NUMBERS.items() for word in (f"--{name}", str(number))]


class ForkedProcess:
    """What the benchmark uses of subprocess.Popen."""

    def __init__(self, command: list[str], *, env: Mapping[str, str], stderr: TextIO, **others):
        folder, log = Path(command[-1]), os.dup(stderr.fileno())

        def work() -> None:
            for descriptor in (2, sys.stderr.fileno()):  # Forked has made another one
                os.dup2(log, descriptor)
            evaluating.main(folder)

        self.code: int | None = None
        self.pid = Forked(work, variables=env).pid
        os.close(log)

    def poll(self) -> int | None:
        if self.code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if found else None
        return self.code

    def wait(self, timeout: float = 60) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("forked", timeout)
            time.sleep(0.01)
        return code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


@pytest.fixture
def forked(monkeypatch) -> None:
    monkeypatch.setattr(shared_eval, "Popen", ForkedProcess)


def test_one_and_two_processes_are_timed_and_their_records_compared(forked, tmp_path, capsys):
    path = tmp_path / "found.json"
    main(["shared_eval", *SMALL, "--output", str(path)])
    found = json.loads(path.read_text())
    assert found["same_records"] and {name: len(x) for name, x in found["iterations"].items()} == {
        "1": 1,
        "2": 1,
    }
    one, two = (found["figures"][name] for name in ("1", "2"))
    assert found["ratio"] == pytest.approx(one["wall_s"] / two["wall_s"])
    assert one["cpu_s"] > 0 and two["cpu_s"] > 0
    said = capsys.readouterr().out
    assert f"2 processes are {found['ratio']:.2f} times as fast as one" in said
    assert f"| 2 | {two['wall_s']:.2f} | {two['cpu_s']:.2f} |" in said


def test_records_that_differ_fail_the_benchmark(forked, tmp_path, monkeypatch, capsys):
    read = shared_eval.read_records
    monkeypatch.setattr(
        shared_eval, "read_records", lambda folder: [{"folder": str(folder)}, *read(folder)]
    )
    with pytest.raises(SystemExit) as ended:
        main(["shared_eval", *SMALL, "--output", str(tmp_path / "found.json")])
    assert ended.value.code == 2
    assert "the records of 2 processes differ from those of one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--processes", "1"], "processes=1 is compared with itself"),
        (["--problems", "8"], "1 chunks of batch_size / n problems leave some of 2 processes"),
        (["--shape", "none"], "shape='none' is none of nano"),
    ],
)
def test_an_evaluation_that_says_nothing_is_refused(options, said, capsys):
    with pytest.raises(SystemExit):
        main(["shared_eval", *options])
    assert said in capsys.readouterr().err
