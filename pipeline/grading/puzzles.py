"""Is an answer to a puzzle right? reasoning-gym's own scorer says so, in a process of its own.

Some scorers pass the answer to Python's `eval`. What those are given is held to a few signs first:
numbers, lists, arithmetic, no attribute and no call but of a known function.
"""

import json
import os
import re
from pathlib import Path

from pipeline.grading.equivalence import final_answer
from pipeline.grading.verdict import Verdict
from pipeline.grading.worker_pool import SETTLED, Judge
from pipeline.sandbox.run import require_level

TRIES = (3.0, 6.0)  # seconds of processor time of one scoring: at first, and if not enough
MAX_CHARACTERS = 4096
EVALUATED = frozenset(
    (
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    )
)

_judge = Judge(Path(__file__).with_name("puzzle_worker.py"), ["locked"], package="reasoning_gym")
os.register_at_fork(after_in_child=_judge.forget)


def judge_puzzle(check: str, visible: str) -> Verdict:
    """Whether the scorer of the puzzle gives its full mark, which never depends on the clock.

    An answer on which the scorer breaks is wrong; without a verdict after the last of TRIES,
    `right` is None.

    Raises SandboxError where nothing isolates the scorer.
    """
    answer = final_answer(visible)
    if not answer:
        return Verdict(False, "no answer")
    if len(answer) > MAX_CHARACTERS or not harmless(json.loads(check)["task"], answer):
        return Verdict(False, "not an answer to show to the scorer")
    require_level("landlock")
    verdict, _ = _judge.settle(check, answer, TRIES)
    if verdict in SETTLED:
        return Verdict(verdict == "equal", "" if verdict == "equal" else verdict)
    return Verdict(None, f"no verdict: {verdict}")


def puzzle_stats() -> dict[str, int]:
    """How often the scorer was asked, ran out of time, broke on its input, was lost, was started,
    and how many answers were left without a verdict."""
    return dict(_judge.counts)


def harmless(task: str, answer: str) -> bool:
    """Whether an answer may be shown to the scorer of a task.

    >>> harmless("countdown", "94*4 - 61 - 6"), harmless("countdown", "exit()")
    (True, False)
    """
    if task not in EVALUATED:
        return True
    plain = re.sub(r"\b(?:sin|cos|tan|exp|log|sqrt)(?=\()", "", answer)
    return bool(_SIGNS.fullmatch(plain)) and not _MORE_THAN_A_VALUE.search(plain)


_SIGNS = re.compile(r"[\[\]()'\", \n0-9A-Za-z_+\-*/^.]*")
_MORE_THAN_A_VALUE = re.compile(r"__|\.\s*[A-Za-z_]|[A-Za-z_\])]\s*[(\[]|\b(?:for|if|in)\b")
