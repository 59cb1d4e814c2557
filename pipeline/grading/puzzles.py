"""Grade an answer to a puzzle by reasoning-gym's own scorer, in a worker process.

Some scorers pass the answer to Python's `eval`. These only get answers of numbers, lists and
arithmetic, without attributes and without calls but those of a few known functions.
"""

import json
import re

from pipeline.grading.equivalence import final_answer
from pipeline.grading.verdict import Verdict
from pipeline.grading.worker import SETTLED, Worker
from pipeline.sandbox.run import require_level

TRIES = (3.0, 6.0)  # seconds of processor time of one scoring, in the first and second try
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

_worker = Worker("puzzle_worker", package="reasoning_gym", is_confined=True)


def grade_puzzle(check: str, visible: str) -> Verdict:
    """The verdict on a visible answer: right where the scorer of the puzzle gives its full score.

    An answer on which the scorer raises is wrong. `right` is None where the last of TRIES exceeds
    its processor time or loses its process.

    Raises SandboxError where nothing isolates the scorer.
    """
    answer = final_answer(visible)
    if not answer:
        return Verdict(False, "no answer")
    if len(answer) > MAX_CHARACTERS or not harmless(json.loads(check)["task"], answer):
        return Verdict(False, "answer refused before scoring")
    require_level("landlock")
    outcome, _ = _worker.compare(check, answer, TRIES)
    if outcome in SETTLED:
        return Verdict(outcome == "equal", "" if outcome == "equal" else outcome)
    return Verdict(None, f"no verdict: {outcome}")


def harmless(task: str, answer: str) -> bool:
    """Whether an answer may be passed to the scorer of a task.

    >>> harmless("countdown", "94*4 - 61 - 6"), harmless("countdown", "exit()")
    (True, False)
    """
    if task not in EVALUATED:
        return True
    plain = re.sub(r"\b(?:sin|cos|tan|exp|log|sqrt)(?=\()", "", answer)
    return bool(_SIGNS.fullmatch(plain)) and not _MORE_THAN_A_VALUE.search(plain)


_SIGNS = re.compile(r"[\[\]()'\", \n0-9A-Za-z_+\-*/^.]*")
_MORE_THAN_A_VALUE = re.compile(r"__|\.\s*[A-Za-z_]|[A-Za-z_\])]\s*[(\[]|\b(?:for|if|in)\b")
