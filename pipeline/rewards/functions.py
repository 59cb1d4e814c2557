"""Rewards: pure functions from a problem and a completion to a number in [0, 1].

A reward depends on the text alone, so it can be computed again from a log. A malformed completion
gets 0.0 and never raises. Where the grader has no verdict, a reward that depends on it is None,
which TRL treats as missing, not as 0.
"""

import re
from collections.abc import Callable

from pipeline.chat.tags import END_THINK, split_completion
from pipeline.grading import grade
from pipeline.records import Problem

RewardFn = Callable[[Problem, str], float | None]

FREE_CHARACTERS = 200  # of a completion to a problem without a worked solution


def correctness(problem: Problem, completion: str) -> float | None:
    """1.0 when the visible answer equals the expected one, or passes the problem's own tests; None
    without a verdict.

    A number in the thought does not count. Otherwise the policy would learn to list every plausible
    number there.

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
    r"""1.0 for one thought and then one answer, neither of them empty; 0.0 otherwise.

    With a second box, or a second tag, it would be open which answer counts.

    >>> any_problem = Problem(question="", answer="")
    >>> well_formed(any_problem, "2*3=6</think>7"), well_formed(any_problem, "</think>6")
    (1.0, 0.0)
    >>> well_formed(any_problem, r"2*3</think>\boxed{6} or \boxed{7}")
    0.0
    """
    parts = split_completion(completion)
    return float(parts is not None and all(parts) and len(_BOX.findall(parts[1])) <= 1)


def brevity(problem: Problem, completion: str) -> float | None:
    """min(1, free / length) for a right answer, lengths in characters; 0.0 for a wrong answer; None
    without a verdict.

    `free` is the length of the worked solution, as in success weighted by path length
    (arXiv:1807.06757), or FREE_CHARACTERS without one. A shorter completion gets no higher reward.

    >>> five = Problem(question="What is 2 + 3?", answer="5", thought="2+3=5")
    >>> brevity(five, "2+3=5</think>5"), brevity(five, "2+3=6</think>6")
    (1.0, 0.0)
    >>> brevity(five, "1+1=2\\n2+3=5</think>5")  # 20 characters where 14 are free
    0.7
    """
    worked = f"{problem.thought}{END_THINK}{problem.answer}"
    free = len(worked) if problem.thought else FREE_CHARACTERS
    right = correctness(problem, completion)
    return None if right is None else right * min(1.0, free / max(len(completion), 1))


_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
