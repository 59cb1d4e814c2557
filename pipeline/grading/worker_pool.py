r"""math-verify behind a wall: is one short LaTeX expression equal to another? Helps `answers`.

math-verify can hang for ever on a dozen characters, and a signal cannot stop it in a thread. So it
runs in a process of its own (`math_worker.py`), started at the first question and used again, with
limits on processor time and memory, and an end when this process ends. What no limit has to catch
is refused before: power towers, large factorials, sums, and every command not in a short list.

No verdict depends on the clock, since on a busy machine an honest comparison waits. The worker
limits the processor time of a comparison; one that exceeds it is repeated in a fresh process with
the second of TRIES. After that it has no verdict, neither equal nor different: see `unanswered`.
"""

import atexit
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from multiprocessing.connection import wait
from pathlib import Path

logger = logging.getLogger(__name__)

TRIES = (1.0, 2.0)  # seconds of processor time of one comparison: at first, and once more
BUDGET_SECONDS = 3.0  # of processor time for all comparisons of one judgement
SILENCE_SECONDS = 600.0  # of the clock: a worker that says nothing for so long is replaced
START_SECONDS = 600.0  # of the clock
MAX_CHARACTERS = 300
MAX_REMEMBERED = 8192
SETTLED = frozenset(("equal", "different", "failed"))

Pair = tuple[str, str]


class WorkerError(RuntimeError):
    """The process that computes cannot be started on this machine."""


class Inquiry:
    """The comparisons of one judgement, which share BUDGET_SECONDS of processor time."""

    def __init__(self) -> None:
        self.seconds = BUDGET_SECONDS

    def agree(self, given: str, expected: str) -> bool:
        """Whether math-verify finds two formulas in plain form equal; False when in doubt.

        A comparison without a verdict counts as False here; it is logged, counted, and noted for
        `unanswered`.
        """
        if not _may_be_asked(given, expected):
            return False
        verdict = "timeout"
        if self.seconds > 0:
            # A remembered comparison costs what it cost at first, so that what is left for the
            # next one does not depend on what was asked before.
            verdict, seconds = _remembered.get((given, expected)) or _settled(given, expected)
            self.seconds -= seconds
        if verdict not in SETTLED:
            _note(given, expected)
        return verdict == "equal"


@contextmanager
def unanswered() -> Iterator[list[Pair]]:
    """The list of comparisons, (given, expected), that end without a verdict inside the block."""
    found: list[Pair] = []
    token = _unanswered.set(found)
    try:
        yield found
    finally:
        _unanswered.reset(token)


def stats() -> dict[str, int]:
    """How often the worker was asked, ran out of time, broke on its input, was lost, was started,
    and how many comparisons were left without a verdict."""
    return dict(_judge.counts)


_remembered: dict[Pair, tuple[str, float]] = {}
_unanswered: ContextVar[list[Pair] | None] = ContextVar("unanswered", default=None)


def _settled(given: str, expected: str) -> tuple[str, float]:
    """(verdict, seconds of processor time), kept, since samples of one question repeat it."""
    verdict, seconds = _judge.settle(given, expected, TRIES)
    if verdict == "failed":
        logger.debug("judge: math-verify cannot read %.80r or %.80r", given, expected)
    if len(_remembered) >= MAX_REMEMBERED:
        _remembered.clear()
    if verdict != "lost":  # what became of a worker says nothing about the pair
        _remembered[given, expected] = verdict, seconds
    return verdict, seconds


def _note(given: str, expected: str) -> None:
    logger.warning("judge: no verdict on %.80r against %.80r", given, expected)
    found = _unanswered.get()
    if found is not None:
        found.append((given, expected))


class Judge:
    """A worker process and the lock before it; safe to use from any thread."""

    def __init__(self, worker: Path, options: Sequence[str] = (), package: str = "math_verify"):
        self.worker, self.options, self.package = worker, options, package
        kinds = ("asked", "timeouts", "failures", "lost", "starts", "no_verdict")
        self.counts = dict.fromkeys(kinds, 0)
        self.forget()
        atexit.register(self.close)

    def forget(self) -> None:
        """Start over without a worker: a forked child must not share its parent's."""
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.replies = -1

    def settle(
        self, given: str, expected: str, tries: Sequence[float] = TRIES
    ) -> tuple[str, float]:
        """(verdict, seconds of processor time in all), asked again where there was no verdict.

        `tries` are limits of processor time in seconds. Without a verdict after the last one it is
        "timeout" or "lost".
        """
        spent = 0.0
        for seconds in tries:
            verdict, used = self.ask(given, expected, seconds)
            spent += used
            if verdict in SETTLED:
                return verdict, spent
        self.counts["no_verdict"] += 1
        return verdict, spent

    def ask(self, given: str, expected: str, seconds: float) -> tuple[str, float]:
        """(verdict, seconds of processor time), of at most `seconds` of it.

        equal, different   the verdict
        failed             the input broke the computation
        timeout            it needed more processor time
        lost               the process was killed from outside, or was silent for SILENCE_SECONDS
        """
        question = json.dumps([given, expected, seconds]).encode() + b"\n"
        with self.lock:
            self._ensure_running()
            verdict, used = self._answer(question)
            self.counts["asked"] += 1
            counted = {"timeout": "timeouts", "failed": "failures", "lost": "lost"}.get(verdict)
            if counted:
                self.counts[counted] += 1
        return verdict, seconds if verdict == "timeout" else used

    def _answer(self, question: bytes) -> tuple[str, float]:
        with suppress(BrokenPipeError):  # a worker killed from outside is started anew
            os.write(self.process.stdin.fileno(), question)
        verdict, _, used = _read_line(self.replies, SILENCE_SECONDS).partition(" ")
        if not verdict:
            self.close()
        return verdict or "lost", float(used or 0.0)

    def _ensure_running(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        self.close()
        self.counts["starts"] += 1
        self.replies, worker_end = os.pipe()
        # -P keeps this folder off the worker's import path, where `data` or `model` would be found.
        # Its stdout is left to what libraries print. In a session of its own, no Ctrl-C reaches it.
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(self.worker), str(worker_end), *self.options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=(worker_end,),
            start_new_session=True,
            env=os.environ | {"PYTHONHASHSEED": "0"},  # sets of symbols in the same order each time
        )
        os.close(worker_end)
        if _read_line(self.replies, START_SECONDS) != "ready":
            self.close()
            raise WorkerError(
                f"the process that runs {self.package} did not start; its error stands above. "
                f"Try: {sys.executable} -c 'import {self.package}'"
            )

    def close(self) -> None:
        """End the worker; a child of it in the middle of a computation ends by its own timer."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            os.close(self.replies)
            self.process = None


def _read_line(pipe: int, seconds: float) -> str:
    """The next line that comes out of a pipe, or "" when none comes in time."""
    line, deadline = b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        ready = wait([pipe], max(0, deadline - time.monotonic()))
        piece = os.read(pipe, 64) if ready else b""
        if not piece:
            return ""
        line += piece
    return line.decode().strip()


_WORKER = Path(__file__).with_name("math_worker.py")
_GREEK = r"\\(?:pi|alpha|beta|gamma|delta|theta|lambda|mu|phi|omega)(?![A-Za-z])"
_COMMANDS = re.compile(
    rf"{_GREEK}|\\(?:frac|sqrt|cdot|times|div|infty|le|ge|sin|cos|tan|cot|sec|csc|arcsin|arccos"
    r"|arctan|log|ln|exp)(?![A-Za-z])"
)
_SIGNS = re.compile(r"[A-Za-z0-9+\-*/^_(){}\[\]|=<>.!\\ ]+")
_RELATION = re.compile(r"[=<>]|\\[lg]e(?![A-Za-z])")
_SMALL_RATIO = re.compile(r"\\frac\{(-?\d{1,2})\}\{(\d{1,2})\}")
_REFUSED = re.compile(
    r"\d \d"  # two numbers side by side: a sum to the parser
    r"|\\sqrt(?![\[{])|/(?:\d+|[A-Za-z])[A-Za-z(\\]"  # 1/2x: half of x, or one over 2x?
    r"|\d_|\^-?\d\d|\^\("  # a base, and exponents that TeX reads differently from people
    r"|\^\w\^|\^\{[^{}]*[\^{]|\^\{-?(?:\d{3}|6[5-9]|[7-9]\d)"  # towers and large powers
    r"|\d{40}|[^\d]!|!!|(?:\d{3,}|[3-9]\d|2[1-9])!"  # large numbers and factorials
)
_NAME = re.compile(r"[A-Z]{2}|[A-Za-z]{4}")  # as products, any order of letters would be equal


def _may_be_asked(given: str, expected: str) -> bool:
    r"""Whether both are short harmless formulas about the same letters.

    >>> _may_be_asked("2x+2", "2(x+1)"), _may_be_asked("x", "X"), _may_be_asked("9^{9^{9}}", "7")
    (True, False, False)
    """
    if not (_is_formula(given) and _is_formula(expected)):
        return False
    relations = len(_RELATION.findall(given)), len(_RELATION.findall(expected))
    return relations in ((0, 0), (1, 1)) and _names(given) == _names(expected)


def _is_formula(text: str) -> bool:
    without_commands = _COMMANDS.sub("|", text)
    return (
        len(text) <= MAX_CHARACTERS
        and bool(_SIGNS.fullmatch(text))
        and "\\" not in without_commands
        and bool(re.search(r"\d|[+\-*/^=<>|]", without_commands))
        and not _NAME.search(without_commands)
        and not _REFUSED.search(_SMALL_RATIO.sub(r"(\1/\2)", text))
        and not re.search(r"\d\\frac\{\d+\}\{\d+\}", text)
    )


def _names(text: str) -> set[str]:
    """The letters and Greek letters of a formula."""
    return set(re.findall(_GREEK, text)) | set(re.sub(r"\\[A-Za-z]+|[^A-Za-z]", "", text))


_judge = Judge(_WORKER)
os.register_at_fork(after_in_child=_judge.forget)
