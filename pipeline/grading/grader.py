"""Grade a visible answer; used by rewards, metrics and the training of the verifier.

`Problem.check` decides how:

    ""                       same_answer with `Problem.answer` and `Problem.question`
    {"judge": "program"}     the program in the answer passes its tests, in a sandbox
    {"judge": "puzzle"}      reasoning-gym's scorer gives its full score

A verdict depends on the problem and the answer alone: not on wall-clock time, on the load of the
machine, or on earlier calls. Where there is none, `Verdict.right` is None: missing data, not wrong.
"""

import json
import logging
from functools import lru_cache

from pipeline.grading.equivalence import same_answer
from pipeline.grading.math_comparison import comparisons_without_verdict
from pipeline.grading.programs import grade_program
from pipeline.grading.puzzles import grade_puzzle
from pipeline.grading.verdict import Verdict
from pipeline.grading.worker import WorkerError
from pipeline.records import Problem
from pipeline.sandbox import SandboxError

REMEMBERED = 4096  # verdicts; several rewards grade the same completion

logger = logging.getLogger(__name__)


class _NoVerdictError(Exception):
    """Carries a missing verdict past the cache, which keeps results and no exceptions."""

    def __init__(self, verdict: Verdict):
        self.verdict = verdict


def grade(problem: Problem, text: str) -> Verdict:
    r"""The verdict on a visible answer; no text makes it raise.

    `right` is None, no verdict, where a comparison exceeds its processor time twice, where a worker
    process is killed from outside, or where the grader itself raises, which is logged. A verdict is
    remembered, a missing one is computed again at the next call.

    Raises:
        SandboxError: nothing on this machine isolates programs.
        WorkerError: a worker process does not start.

    >>> sum_ = Problem(question="1+1?", answer="2")
    >>> grade(sum_, "The answer is 2.").right, grade(sum_, "3")
    (True, Verdict(right=False, why='another answer'))
    """
    try:
        # By the fields that decide, since a problem may carry lists, which have no hash.
        return _known_verdict(problem.question, problem.answer, problem.check, text)
    except _NoVerdictError as missing:
        return missing.verdict


@lru_cache(REMEMBERED)
def _known_verdict(question: str, answer: str, check: str, text: str) -> Verdict:
    verdict = _verdict(question, answer, check, text)
    if verdict.right is None:
        raise _NoVerdictError(verdict)
    return verdict


def _verdict(question: str, answer: str, check: str, text: str) -> Verdict:
    try:
        return _by_check(check, text) if check else _by_answer(question, answer, text)
    except (SandboxError, WorkerError):
        raise
    except Exception as error:
        logger.exception("the grader raised on %.200r for %.200r", text, question)
        return Verdict(None, f"the grader broke: {type(error).__name__}")


def _by_answer(question: str, answer: str, text: str) -> Verdict:
    with comparisons_without_verdict() as missing:
        if same_answer(text, answer, question):
            return Verdict(True)
    if missing:
        return Verdict(None, "no verdict on a formula")
    return Verdict(False, "another answer")


def _by_check(check: str, text: str) -> Verdict:
    test = json.loads(check)
    return grade_puzzle(check, text) if test["judge"] == "puzzle" else grade_program(text, test)
