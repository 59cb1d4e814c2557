r"""math-verify behind a wall: is one short LaTeX expression equal to another? Helps `answers`.

math-verify can hang for ever on a dozen characters, and a signal cannot stop it in a thread. So it
runs in a process of its own (`math_worker.py`), started at the first question and used again, with
a time limit, a memory limit, and an end when this process ends. What no limit has to catch is
refused before: power towers, large factorials, sums, and every command not in a short list.
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
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

logger = logging.getLogger(__name__)

SECONDS = 1.0  # for all comparisons of one judgement; the worker ends a longer one
GRACE_SECONDS = 3.0  # by then it must have said so, or it is killed and started anew
START_SECONDS = 120.0
MAX_CHARACTERS = 300
MAX_REMEMBERED = 8192


class Inquiry:
    """The comparisons of one judgement, which share one second."""

    def __init__(self) -> None:
        self.seconds = SECONDS

    def agree(self, given: str, expected: str) -> bool:
        """Whether math-verify finds two formulas in plain form equal; False when in doubt.

        A computation that does not end in time counts as False; it is logged and counted.
        """
        if not _may_be_asked(given, expected) or self.seconds <= 0:
            return False
        verdict = _remembered.get((given, expected))
        if verdict is None:
            verdict, seconds = _judge.ask(given, expected, self.seconds)
            self.seconds -= seconds
            _remember(given, expected, verdict)
        return verdict == "equal"


def stats() -> dict[str, int]:
    """How often the worker was asked, ran out of time, broke on its input, and was started."""
    return dict(_judge.counts)


_remembered: dict[tuple[str, str], str] = {}


def _remember(given: str, expected: str, verdict: str) -> None:
    """Keep a verdict, since samples of one question repeat it. A timeout is not kept: on a busy
    machine it may have hit an honest answer."""
    if verdict == "timeout":
        logger.warning("judge: no verdict in time on %.80r against %.80r", given, expected)
        return
    if verdict == "failed":
        logger.debug("judge: math-verify cannot read %.80r or %.80r", given, expected)
    if len(_remembered) >= MAX_REMEMBERED:
        _remembered.clear()
    _remembered[given, expected] = verdict


class Judge:
    """A worker process and the lock before it; safe to use from any thread."""

    def __init__(self, worker: Path, options: Sequence[str] = (), package: str = "math_verify"):
        self.worker, self.options, self.package = worker, options, package
        self.counts = dict.fromkeys(("asked", "timeouts", "failures", "starts"), 0)
        self.forget()
        atexit.register(self.close)

    def forget(self) -> None:
        """Start over without a worker: a forked child must not share its parent's."""
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.replies = -1

    def ask(self, given: str, expected: str, seconds: float) -> tuple[str, float]:
        """(verdict, seconds it took), not counting the wait for the lock or for the start."""
        question = json.dumps([given, expected, seconds]).encode() + b"\n"
        with self.lock:
            self._ensure_running()
            begin = time.monotonic()
            verdict = self._answer(question, seconds + GRACE_SECONDS)
            self.counts["asked"] += 1
            self.counts["timeouts"] += verdict == "timeout"
            self.counts["failures"] += verdict == "failed"
            return verdict, time.monotonic() - begin

    def _answer(self, question: bytes, seconds: float) -> str:
        with suppress(BrokenPipeError):  # a worker killed from outside is started anew
            os.write(self.process.stdin.fileno(), question)
        verdict = _read_word(self.replies, seconds)
        if not verdict:
            self.close()
        return verdict or "timeout"

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
        )
        os.close(worker_end)
        if _read_word(self.replies, START_SECONDS) != "ready":
            self.close()
            raise RuntimeError(
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


def _read_word(pipe: int, seconds: float) -> str:
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
