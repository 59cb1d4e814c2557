"""Run untrusted programs in isolation.

There are two levels of isolation (`launch`); a level is used only after a hostile program was
isolated by it on this machine (`probe`). Where neither works, `SandboxError` says what is missing
and nothing is run, since a plain subprocess isolates nothing. No level protects against a
vulnerability of the kernel itself.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.sandbox.launch import LEVELS, Limits, SandboxError, confined_process
from pipeline.sandbox.outcome import Outcome, collect
from pipeline.sandbox.probe import require_level, working_levels

__all__ = [
    "LEVELS",
    "Limits",
    "Outcome",
    "SandboxError",
    "require_level",
    "run_program",
    "start_confined",
    "working_levels",
]


def run_program(
    program: str, stdin: str = "", limits: Limits | None = None, level: str | None = None
) -> Outcome:
    """The outcome of one Python program on `stdin`, at a level of isolation (default: the strongest
    that works here).

    >>> run_program("print(int(input()) + 1)", "41").stdout
    '42\\n'
    """
    limits = limits or Limits()
    spec = {"mode": "program", "program": _text(program)}
    with start_confined(
        spec, limits, level, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        return collect(process, _text(stdin).encode(), limits)


@contextmanager
def start_confined(
    spec: dict,
    limits: Limits,
    level: str | None,
    pass_fds: tuple[int, ...] = (),
    *,
    stdin: int,
    stdout: int,
    stderr: int = subprocess.PIPE,
) -> Iterator[subprocess.Popen[bytes]]:
    """A confined process at a level that works here (None: the strongest); killed at the end.

    Raises SandboxError where it cannot be started.
    """
    with confined_process(
        spec, limits, require_level(level), pass_fds, stdin=stdin, stdout=stdout, stderr=stderr
    ) as process:
        yield process


def _text(text: str) -> str:
    """The text without lone surrogates, which UTF-8 cannot encode: they become question marks."""
    return text.encode(errors="replace").decode()
