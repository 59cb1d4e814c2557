"""Is a visible answer right? THE grader of rewards, metrics and critics.

    ""                       same_answer with `Problem.answer` and `Problem.question`
    {"judge": "program"}     the program in the answer passes its tests, in a sandbox
    {"judge": "puzzle"}      reasoning-gym's scorer gives its full mark

A verdict depends on the problem and the answer alone: not on the clock, on what else the machine
does, or on what was asked before. Where there is none, `Verdict.right` is None: missing, not wrong.
"""

import json
import logging
from functools import lru_cache

from pipeline.grading.equivalence import same_answer
from pipeline.grading.programs import Verdict, grade_program
from pipeline.grading.puzzles import judge_puzzle
from pipeline.grading.worker_pool import WorkerError, unanswered
from pipeline.records import Problem
from pipeline.sandbox import SandboxError

REMEMBERED = 4096  # several rewards ask for the verdict on the same completion

logger = logging.getLogger(__name__)


def grade(problem: Problem, text: str) -> Verdict:
    r"""The verdict on a visible answer; no text makes it raise.

    `right` is None, no verdict, where a comparison exceeds its processor time twice, where a worker
    is killed from outside, or where the grader itself breaks, which is logged.

    Raises SandboxError or WorkerError where this machine cannot judge such problems at all:
    nothing isolates programs, or the process that computes does not start.

    >>> sum_ = Problem(question="1+1?", answer="2")
    >>> grade(sum_, "The answer is 2.").right, grade(sum_, "3")
    (True, Verdict(right=False, why='another answer'))
    """
    # By the fields that decide, since a problem may carry lists, which have no hash.
    return _grade(problem.question, problem.answer, problem.check, text)


@lru_cache(REMEMBERED)
def _grade(question: str, answer: str, check: str, text: str) -> Verdict:
    try:
        return _checked(check, text) if check else _compared(question, answer, text)
    except (SandboxError, WorkerError):
        raise
    except Exception as error:
        logger.exception("the grader broke on %.200r for %.200r", text, question)
        return Verdict(None, f"the grader broke: {type(error).__name__}")


def _compared(question: str, answer: str, text: str) -> Verdict:
    with unanswered() as missing:
        if same_answer(text, answer, question):
            return Verdict(True)
    if missing:
        return Verdict(None, "no verdict on a formula")
    return Verdict(False, "another answer")


def _checked(check: str, text: str) -> Verdict:
    test = json.loads(check)
    return judge_puzzle(check, text) if test["judge"] == "puzzle" else grade_program(text, test)
