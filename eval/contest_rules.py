"""Rules of a contest with hidden tests: submissions until one is accepted, penalty, standing.

A program that was submitted before is not submitted again. The penalty is ICPC's: 20 points for
every rejected submission of a problem that is solved in the end, none for other problems.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from eval.codeforces import RatedProblem, rate
from pipeline.config import parse_weights
from pipeline.grading.program_extraction import program_text
from pipeline.grading.verdict import Verdict
from pipeline.records import Problem

REJECTED = 20  # points of penalty for a rejected submission


class Submission(TypedDict):
    """One submitted answer; `accepted` is None where it could not be graded."""

    answer: str
    accepted: bool | None
    why: str


class ContestRow(TypedDict):
    """A problem of the contest with its submissions in order."""

    id: str
    level: str
    question: str
    rating: float
    submissions: list[Submission]
    repeated: int  # samples that were left out because an earlier one has the same program
    correct: bool


@dataclass(frozen=True)
class Standing:
    """Result of a contest."""

    solved: int
    n: int
    penalty: int
    submissions: int  # of all problems
    first_try: int  # problems solved by the first submission
    no_verdict: int  # submissions that could not be graded; they count as rejected


def submit(
    problem: Problem,
    answers: Sequence[str],
    submissions: int,
    judge: Callable[[Problem, str], Verdict],
) -> tuple[list[Submission], int]:
    """(submissions up to the first accepted one, at most `submissions`; repeated samples).

    >>> problem = Problem(question="?", answer="b")
    >>> judge = lambda problem, text: Verdict(text == problem.answer)
    >>> made, repeated = submit(problem, ["a", "a", "b", "c"], 10, judge)
    >>> [each["answer"] for each in made], repeated
    (['a', 'b'], 1)
    """
    made: list[Submission] = []
    seen: set[str] = set()
    repeated = 0
    for answer in answers:
        program = _program(problem, answer)
        if program in seen:
            repeated += 1
            continue
        if len(made) == submissions:
            break
        seen.add(program)
        verdict = judge(problem, answer)
        made.append({"answer": answer, "accepted": verdict.right, "why": verdict.why})
        if verdict.passed:
            break
    return made, repeated


def standing(rows: Sequence[ContestRow]) -> Standing:
    """Solved problems and penalty of a contest."""
    solved = [row for row in rows if row["correct"]]
    every = [each for row in rows for each in row["submissions"]]
    return Standing(
        solved=len(solved),
        n=len(rows),
        penalty=REJECTED * sum(len(row["submissions"]) - 1 for row in solved),
        submissions=len(every),
        first_try=sum(len(row["submissions"]) == 1 for row in solved),
        no_verdict=sum(each["accepted"] is None for each in every),
    )


def rating_of(
    rows: Sequence[ContestRow], submissions: int, contestants: Sequence[float] = ()
) -> dict[str, float]:
    """Maximum-likelihood rating, interval and percentile, as `eval.codeforces.rate`."""
    rated = [
        RatedProblem(
            rating=row["rating"],
            verdicts=[each["accepted"] is True for each in row["submissions"]] or [False],
        )
        for row in rows
    ]
    return rate(rated, submissions, contestants)


def parse_ratings(text: str) -> dict[str, float]:
    """{level: rating} of a text like "introductory=1000,interview=1600"; {} of an empty one.

    Raises:
        ValueError: an entry is not level=number.
    """
    example = "introductory=1000,interview=1600"
    return parse_weights("ratings", text, example=example) if text else {}


def problem_rating(problem: Problem, ratings: Mapping[str, float]) -> float:
    """The rating of a problem: that of its level in `ratings`, or its level if it is a number.

    Raises:
        ValueError: neither is there.

    >>> problem_rating(Problem(question="", answer="", level="1500"), {})
    1500.0
    """
    if problem.level in ratings:
        return ratings[problem.level]
    try:
        rating = float(problem.level)
    except ValueError:
        rating = math.nan
    if not math.isfinite(rating):
        raise ValueError(
            f"problem {problem.id or problem.question[:40]!r} has level={problem.level!r}, which "
            "is no rating; give --ratings, as in introductory=1000,interview=1600,competition=2200"
        )
    return rating


def _program(problem: Problem, answer: str) -> str:
    """What two equal submissions have in common: the program without spaces at line ends."""
    text = program_text(answer, json.loads(problem.check)) if problem.check else answer
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
