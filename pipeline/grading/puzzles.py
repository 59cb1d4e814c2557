"""Is an answer to a puzzle right? reasoning-gym's own scorer says so, in a process of its own.

Some scorers pass the answer to Python's `eval`. What those are given is held to a few signs first:
numbers, lists, arithmetic, no attribute and no call but of a known function.
"""

import json
import os
import re
from pathlib import Path

from pipeline.grading.equivalence import final_answer
from pipeline.grading.worker_pool import Judge
from pipeline.sandbox.run import require_level

SECONDS = 5.0  # of one scoring; the first of a task makes its data too
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


def puzzle_is_right(check: str, visible: str) -> bool:
    """Whether the scorer of the puzzle gives its full mark; False when in doubt."""
    answer = final_answer(visible)
    if (
        not answer
        or len(answer) > MAX_CHARACTERS
        or not harmless(json.loads(check)["task"], answer)
    ):
        return False
    require_level("landlock")
    return _judge.ask(check, answer, SECONDS)[0] == "equal"


def puzzle_stats() -> dict[str, int]:
    """How often the scorer was asked, ran out of time, broke on its input, and was started."""
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
