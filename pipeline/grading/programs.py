r"""Does a program do what was asked? Decided here, outside the sandbox that it runs in.

A test is JSON, made by `pipeline.data` (`Problem.check`), of one of three kinds:

    stdio    {"inputs": [text], "outputs": [text]}            stdin in, stdout compared line by line
    calls    {"function", "inputs": [[args]], "outputs": []}  one call each, its value compared
    asserts  {"function", "setup", "tests", "prelude"}        the data set's own assert statements

Expected outputs never enter the sandbox of the program, and nothing that it prints, patches, exits
with or kills is a verdict. Assert statements run in a second sandbox, which knows the data set's
own solution and not the program; the function they call is a messenger to the first, and only plain
values travel between the two, as JSON.
"""

import json
import math
import os
import selectors
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from pipeline.grading.program_extraction import defines, program_text
from pipeline.grading.verdict import Verdict
from pipeline.sandbox._guard import PROTOCOL_LINE, decode, encode
from pipeline.sandbox.run import Limits, run_program, started
from pipeline.sandbox.thread_states import NO_VERDICT, Patience

Test = Mapping[str, Any]

MAX_DIGITS = 100_000  # of an integer that a program returns; the guard writes no longer one

# What the sites that such tasks come from import for their users.
USUAL_IMPORTS = (
    "import bisect, collections, functools, heapq, itertools, math, random, re, string\n"
    "from collections import *\nfrom functools import *\nfrom itertools import *\n"
    "from math import *\nfrom typing import *\n"
)


def grade_program(
    visible: str, test: Test, limits: Limits | None = None, level: str | None = None
) -> Verdict:
    r"""The verdict on the program in a visible answer, which never depends on the clock.

    A program that exceeds its processor time or its memory, or sleeps too long, fails its test. One
    that gets no processor within `limits.wall_seconds` is run again, and then has no verdict.

    Raises SandboxError where nothing isolates the program.

    >>> test = {"kind": "stdio", "inputs": ["2\n", "5\n"], "outputs": ["4\n", "10"]}
    >>> grade_program("```python\nprint(2 * int(input()))\n```", test).passed
    True
    """
    limits = limits or Limits()
    program = program_text(visible, test)
    if not program.strip():
        return Verdict(False, "no program")
    graded = _GRADERS[test["kind"]]
    verdict = graded(program, test, limits, level)
    return graded(program, test, limits, level) if verdict.right is None else verdict


def same_output(stdout: str, expected: str) -> bool:
    r"""Equal line by line; only spaces at the ends of lines and empty lines at the end are idle.

    >>> same_output("1 \n2\n\n", "1\n2"), same_output("1\n", "1\n2"), same_output("1\n2\n3", "1\n2")
    (True, False, False)
    """
    ours, theirs = ([row.rstrip() for row in t.rstrip().splitlines()] for t in (stdout, expected))
    return ours == theirs


def same_value(value: Any, expected: Any) -> bool:
    """Equal plain values, however deep and large; a tuple may stand for a list, since JSON knows no
    tuples, and a float may differ in its last digits. True is not 1, NaN is NaN.

    >>> same_value((1, 2.0), [1, 2]), same_value(True, 1), same_value([1], [1, 1])
    (True, False, False)
    >>> same_value(1.5, 10**400), same_value({"a": (1,)}, {"a": [1]})
    (False, True)
    """
    left = [(value, expected)]
    while left:
        ours, theirs = left.pop()
        if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
            if len(ours) != len(theirs):
                return False
            left += zip(ours, theirs, strict=True)
        elif isinstance(ours, dict) and isinstance(theirs, dict):
            if ours.keys() != theirs.keys():
                return False
            left += [(ours[key], theirs[key]) for key in theirs]
        elif not _same_atom(ours, theirs):
            return False
    return True


def _same_atom(value: Any, expected: Any) -> bool:
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, float) and isinstance(expected, int | float):
        return value == expected or _close(value, expected)
    try:
        return bool(value == expected)
    except RecursionError:  # sets within sets
        return False


def _close(value: float, expected: float) -> bool:
    """Whether they differ by 1e-9 of the expected number at most; NaN is close to NaN."""
    if math.isnan(value):
        return isinstance(expected, float) and math.isnan(expected)
    if not math.isfinite(value) or (isinstance(expected, float) and not math.isfinite(expected)):
        return False
    # Fractions, since 10**400 is no float.
    return abs(Fraction(value) - Fraction(expected)) * 10**9 <= abs(Fraction(expected))


def _grade_stdio(program: str, test: Test, limits: Limits, level: str | None) -> Verdict:
    """One process a case, so that no case leaves anything to the next."""
    for stdin, expected in zip(test["inputs"], test["outputs"], strict=True):
        outcome = run_program(program, stdin, limits, level)
        if not outcome.finished:
            return _ended(outcome.ended)
        if not same_output(outcome.stdout, expected):
            return Verdict(False, "other output")
    return Verdict(True)


def _ended(why: str) -> Verdict:
    """The verdict on a program that ended early, or was ended."""
    return Verdict(None if why == NO_VERDICT else False, why)


def _grade_calls(program: str, test: Test, limits: Limits, level: str | None) -> Verdict:
    with _answering(USUAL_IMPORTS + program, test["function"], limits, level) as line:
        for args, expected in zip(test["inputs"], test["outputs"], strict=True):
            answer = line.ask(encode([args, {}]))
            if answer is None:
                return _ended(line.ended)
            if "value" not in answer:
                return Verdict(False, str(answer.get("error")))
            if not _expected_value(answer["value"], expected):
                return Verdict(False, "other value")
    return Verdict(True)


def _expected_value(encoded: Any, expected: Any) -> bool:
    # APPS wraps some expected values in a list of one.
    wrapped = isinstance(expected, list) and len(expected) == 1
    try:
        value = decode(encoded, {})
        return same_value(value, expected) or (wrapped and same_value(value, expected[0]))
    except Exception:  # nonsense instead of a value; what it breaks is not the expected one
        return False


def _grade_asserts(program: str, test: Test, limits: Limits, level: str | None) -> Verdict:
    function = test["function"]
    if not defines(program, function):
        program = test.get("prelude", "") + program
    orders = {"mode": "tests", "setup": test["setup"], "tests": test["tests"]}
    with (
        _answering(program, function, limits, level) as theirs,
        _guard(orders | {"function": function}, limits, level) as ours,
    ):
        message = ours.read()
        while message is not None and "call" in message:
            answer = theirs.ask(message["call"])
            if answer is None:
                return _ended(theirs.ended)
            message = ours.ask(answer)
        if message is None:
            return _ended(ours.ended)
    verdict = str(message.get("verdict"))
    return Verdict(verdict == "passed", "" if verdict == "passed" else verdict)


_GRADERS = {"stdio": _grade_stdio, "calls": _grade_calls, "asserts": _grade_asserts}


@dataclass
class _Line:
    """A line of questions to a guard and of answers from it, both JSON, while patience lasts."""

    ask_fd: int
    reply_fd: int
    patience: Patience
    buffer: bytes = b""

    @property
    def ended(self) -> str:
        """Why there was no answer."""
        return self.patience.ended or "no answer"

    def ask(self, message: Any) -> Any:
        """The answer, or None where none comes in time, or what comes is no answer."""
        data = json.dumps(message).encode() + b"\n"
        try:
            while data and self._wait(self.ask_fd, selectors.EVENT_WRITE):
                data = data[os.write(self.ask_fd, data) :]
        except BrokenPipeError:
            return None
        return None if data else self.read()

    def read(self) -> Any:
        while b"\n" not in self.buffer and len(self.buffer) < PROTOCOL_LINE:
            if not self._wait(self.reply_fd, selectors.EVENT_READ):
                return None
            piece = os.read(self.reply_fd, 1 << 16)
            if not piece:
                return None
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\n")
        try:
            message = json.loads(line, parse_int=_integer)
        except (ValueError, RecursionError):
            return None
        return message if isinstance(message, dict) else None

    def _wait(self, fd: int, event: int) -> bool:
        with selectors.DefaultSelector() as ready:
            ready.register(fd, event)
            return bool(self.patience.select(ready))


def _integer(digits: str) -> int:
    """An integer of up to MAX_DIGITS; int() alone refuses more than 4,300 digits, as 2000! has."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits) if len(digits) < 4000 else int(Decimal(digits))


def _answering(program: str, function: str, limits: Limits, level: str | None) -> Any:
    return _guard({"mode": "calls", "program": program, "function": function}, limits, level)


@contextmanager
def _guard(orders: Test, limits: Limits, level: str | None) -> Iterator[_Line]:
    """A guard that is asked through two pipes; what it prints goes nowhere."""
    (their_ask, ask), (reply, their_reply) = os.pipe(), os.pipe()
    os.set_blocking(ask, False)
    spec = {**orders, "ask_fd": their_ask, "reply_fd": their_reply}
    nowhere = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    try:
        with started(spec, limits, level, (their_ask, their_reply), **nowhere) as process:
            for fd in (their_ask, their_reply):
                os.close(fd)
            their_ask = their_reply = -1
            yield _Line(ask, reply, Patience(process.pid, limits))
    finally:
        for fd in (ask, reply, their_ask, their_reply):
            if fd >= 0:
                os.close(fd)
