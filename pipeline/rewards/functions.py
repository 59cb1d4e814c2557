"""Rewards: pure functions from a problem and a completion to a number in [0, 1].

A reward reads text and nothing else, so it can be tested in one line and replayed on a log.
Untrusted input is the normal case here: a malformed completion earns 0.0, it never raises. Where
the grader has no verdict, a reward that asks it is None: missing, as TRL understands it, not 0.
"""

import re
from collections.abc import Callable

from pipeline.chat.tags import split_completion
from pipeline.grading import grade
from pipeline.records import Problem

RewardFn = Callable[[Problem, str], float | None]

AMPLE_CHARACTERS = 200  # nobody is hurried below this


def correctness(problem: Problem, completion: str) -> float | None:
    """1.0 when the visible answer equals the expected one, or passes the problem's own tests; None
    without a verdict.

    A number that stands only in the thought does not count. Otherwise the policy learns to list
    every plausible number and let the judge choose.

    >>> six = Problem(question="What is 2 * 3?", answer="6")
    >>> correctness(six, "2*3=6</think>6"), correctness(six, "6, or 5, or 7</think>")
    (1.0, 0.0)
    """
    parts = split_completion(completion)
    if parts is None:
        return 0.0
    right = grade(problem, parts[1]).right
    return None if right is None else float(right)


def well_formed(problem: Problem, completion: str) -> float:
    r"""1.0 for one thought and then one answer, neither of them empty, whatever they say.

    A second box, or a second tag, would let the answer be chosen after the fact.

    >>> any_problem = Problem(question="", answer="")
    >>> well_formed(any_problem, "2*3=6</think>7"), well_formed(any_problem, "</think>6")
    (1.0, 0.0)
    >>> well_formed(any_problem, r"2*3</think>\boxed{6} or \boxed{7}")
    0.0
    """
    parts = split_completion(completion)
    return float(parts is not None and all(parts) and len(_BOX.findall(parts[1])) <= 1)


def brevity(problem: Problem, completion: str) -> float | None:
    """1.0 for a right answer in ample space, then ample / length; 0.0 for a wrong answer; None
    without a verdict.

    Ample is twice the worked solution, at least AMPLE_CHARACTERS: shorter than that earns nothing
    more, so it never pays to leave out a thought, only to leave out a second one.

    >>> five = Problem(question="What is 2 + 3?", answer="5")
    >>> brevity(five, "2+3=5</think>5"), brevity(five, "2+3=6</think>6")
    (1.0, 0.0)
    >>> brevity(five, "x" * 391 + "</think>5")  # 400 characters where 200 are ample
    0.5
    """
    ample = max(AMPLE_CHARACTERS, 2 * len(problem.thought + problem.answer))
    right = correctness(problem, completion)
    return None if right is None else right * min(1.0, ample / max(len(completion), 1))


_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
