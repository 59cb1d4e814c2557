"""A program that nobody has read, run where it can do no harm; the verdict is the caller's.

Two levels of isolation (`launch`), each believed only after a hostile program has been tried in it
here (`probe`). Where neither holds, `SandboxError` says what is missing and nothing is run: a plain
subprocess stops next to nothing. No level stops a hole in the kernel itself.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.sandbox.launch import LEVELS, Limits, SandboxError, guarded
from pipeline.sandbox.outcome import Outcome, collect
from pipeline.sandbox.probe import require_level, working_levels

__all__ = [
    "LEVELS",
    "Limits",
    "Outcome",
    "SandboxError",
    "require_level",
    "run_program",
    "started",
    "working_levels",
]


def run_program(
    program: str, stdin: str = "", limits: Limits | None = None, level: str | None = None
) -> Outcome:
    """The outcome of one Python program, fed with `stdin`, at a level of isolation (default: the
    strongest that works here).

    >>> run_program("print(int(input()) + 1)", "41").stdout
    '42\\n'
    """
    limits = limits or Limits()
    spec = {"mode": "program", "program": _text(program)}
    with started(spec, limits, level, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        return collect(process, _text(stdin).encode(), limits)


@contextmanager
def started(
    spec: dict, limits: Limits, level: str | None, pass_fds: tuple[int, ...] = (), **pipes: int
) -> Iterator[subprocess.Popen]:
    """A guard on its orders, at a level that works here (None: the strongest); killed and waited
    for at the end, whatever it does. Raises SandboxError where it cannot be started."""
    with guarded(spec, limits, require_level(level), pass_fds, **pipes) as process:
        yield process


def _text(text: str) -> str:
    """Lone surrogates are no characters; a program that holds one is refused by its own syntax."""
    return text.encode(errors="replace").decode()
