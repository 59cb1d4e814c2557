r"""Grade programs by tests, outside the sandbox that they run in.

A test is JSON, made by `pipeline.data` (`Problem.check`), of one of three kinds:

    stdio    {"inputs": [text], "outputs": [text]}            stdin in, stdout compared line by line
    calls    {"function", "inputs": [[args]], "outputs": []}  one call each, its value compared
    asserts  {"function", "setup", "tests", "prelude"}        the data set's own assert statements

Expected outputs never enter the sandbox of the program, so nothing that it prints, patches, kills
or exits with becomes a verdict. Assert statements run in a second sandbox, which has the reference
solution and not the program; the function they call is evaluated in the first one, and only plain
values pass between the two, as JSON.
"""

import json
import math
import os
import selectors
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from pipeline.grading.program_extraction import Test, defines, program_text
from pipeline.grading.verdict import Verdict
from pipeline.sandbox._confined import PROTOCOL_LINE, decode, encode
from pipeline.sandbox.run import Limits, run_program, start_confined
from pipeline.sandbox.waiting import NO_VERDICT, ProcessWaiter

MAX_DIGITS = 100_000  # of an integer that a program returns; longer ones are not sent

# What the programming sites of these tasks import for their users.
USUAL_IMPORTS = (
    "import bisect, collections, functools, heapq, itertools, math, random, re, string\n"
    "from collections import *\nfrom functools import *\nfrom itertools import *\n"
    "from math import *\nfrom typing import *\n"
)


def grade_program(
    visible: str, test: Test, limits: Limits | None = None, level: str | None = None
) -> Verdict:
    r"""The verdict on the program in a visible answer; it does not depend on wall-clock time.

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
    r"""Whether outputs are equal by line; ignores spaces at line ends and empty lines at the end.

    >>> same_output("1 \n2\n\n", "1\n2"), same_output("1\n", "1\n2"), same_output("1\n2\n3", "1\n2")
    (True, False, False)
    """
    ours, theirs = ([row.rstrip() for row in t.rstrip().splitlines()] for t in (stdout, expected))
    return ours == theirs


def same_value(value: object, expected: object) -> bool:
    """Whether plain values of any depth and size are equal.

    A tuple equals a list, since JSON has no tuples, and a float may differ in its last digits. True
    is not 1, NaN is NaN.

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


def _same_atom(value: object, expected: object) -> bool:
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, float) and isinstance(expected, int | float):
        return value == expected or _close(value, expected)
    try:
        return bool(value == expected)
    except RecursionError:  # sets within sets
        return False


def _close(value: float, expected: float) -> bool:
    """Whether the relative difference is at most 1e-9; NaN is close to NaN."""
    if math.isnan(value):
        return isinstance(expected, float) and math.isnan(expected)
    if not math.isfinite(value) or (isinstance(expected, float) and not math.isfinite(expected)):
        return False
    # Fractions, since 10**400 is no float.
    return abs(Fraction(value) - Fraction(expected)) * 10**9 <= abs(Fraction(expected))


def _grade_stdio(program: str, test: Test, limits: Limits, level: str | None) -> Verdict:
    """The verdict by stdin and stdout; one process a case, so that cases share no state."""
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
    with _program_channel(USUAL_IMPORTS + program, test["function"], limits, level) as channel:
        for args, expected in zip(test["inputs"], test["outputs"], strict=True):
            answer = channel.request(encode([args, {}]))
            if answer is None:
                return _ended(channel.ended)
            if "value" not in answer:
                return Verdict(False, str(answer.get("error")))
            if not _expected_value(answer["value"], expected):
                return Verdict(False, "other value")
    return Verdict(True)


def _expected_value(encoded: object, expected: object) -> bool:
    # APPS wraps some expected values in a list of one.
    alone = expected[0] if isinstance(expected, list) and len(expected) == 1 else expected
    try:
        value = decode(encoded, {})
        return same_value(value, expected) or same_value(value, alone)
    except Exception:  # no value; what cannot be decoded is not the expected value
        return False


def _grade_asserts(program: str, test: Test, limits: Limits, level: str | None) -> Verdict:
    function = test["function"]
    if not defines(program, function):
        program = test.get("prelude", "") + program
    spec = {"mode": "tests", "setup": test["setup"], "tests": test["tests"]}
    with (
        _program_channel(program, function, limits, level) as theirs,
        _channel(spec | {"function": function}, limits, level) as ours,
    ):
        message = ours.read()
        while message is not None and "call" in message:
            answer = theirs.request(message["call"])
            if answer is None:
                return _ended(theirs.ended)
            message = ours.request(answer)
        if message is None:
            return _ended(ours.ended)
    verdict = str(message.get("verdict"))
    return Verdict(verdict == "passed", "" if verdict == "passed" else verdict)


_GRADERS = {"stdio": _grade_stdio, "calls": _grade_calls, "asserts": _grade_asserts}


@dataclass
class _Channel:
    """Requests to a confined process and its replies, both lines of JSON, within its limits."""

    request_fd: int
    reply_fd: int
    waiter: ProcessWaiter
    buffer: bytes = b""

    @property
    def ended(self) -> str:
        """Why there was no reply."""
        return self.waiter.ended or "no answer"

    def request(self, message: object) -> dict[str, object] | None:
        """The reply; None where none arrives within the limits, or it is not a JSON object."""
        data = json.dumps(message).encode() + b"\n"
        try:
            while data and self._wait(self.request_fd, selectors.EVENT_WRITE):
                data = data[os.write(self.request_fd, data) :]
        except BrokenPipeError:
            return None
        return None if data else self.read()

    def read(self) -> dict[str, object] | None:
        """The next reply; None as in `request`."""
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
            return bool(self.waiter.select(ready))


def _integer(digits: str) -> int:
    """An integer of up to MAX_DIGITS; int() alone refuses more than 4,300 digits, as 2000! has."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits) if len(digits) < 4000 else int(Decimal(digits))


def _program_channel(
    program: str, function: str, limits: Limits, level: str | None
) -> AbstractContextManager[_Channel]:
    return _channel({"mode": "calls", "program": program, "function": function}, limits, level)


@contextmanager
def _channel(spec: dict[str, object], limits: Limits, level: str | None) -> Iterator[_Channel]:
    """A confined process behind two pipes; what it prints is dropped."""
    (their_request, request), (reply, their_reply) = os.pipe(), os.pipe()
    os.set_blocking(request, False)
    spec = {**spec, "request_fd": their_request, "reply_fd": their_reply}
    try:
        with start_confined(
            spec,
            limits,
            level,
            (their_request, their_reply),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            for fd in (their_request, their_reply):
                os.close(fd)
            their_request = their_reply = -1
            yield _Channel(request, reply, ProcessWaiter(process.pid, limits))
    finally:
        for fd in (request, reply, their_request, their_reply):
            if fd >= 0:
                os.close(fd)
