"""Which samples are trained on: distinct right ones, at most some of each question.

RFT (arXiv:2308.01825) keeps the distinct right reasoning paths of a question; STaR
(arXiv:2203.14465) repeats sampling and fine-tuning.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TypedDict

from pipeline.chat.tags import END_THINK
from pipeline.grading import grade
from pipeline.grading.distinct import distinct, plain_spaces
from pipeline.records import Problem


class SampleRow(TypedDict):
    """One sampled completion, a line of samples.jsonl."""

    question: int  # index of the problem
    completion: str  # thought, END_THINK and answer, without the end token
    right: bool | None  # None without a verdict


def is_right(problem: Problem, completion: str, *, truncated: bool) -> bool | None:
    """Return whether the answer of a completion is right; None where it cannot be graded.

    A completion that is truncated or does not close its thought is wrong.

    >>> problem = Problem(question="2+3?", answer="5")
    >>> is_right(problem, "2+3=5</think>5", truncated=False)
    True
    >>> is_right(problem, "2+3=5", truncated=False)
    False
    """
    _, tag, answer = completion.partition(END_THINK)
    if truncated or not tag:
        return False
    return grade(problem, answer).right


def kept_solutions(
    problems: Sequence[Problem],
    rows: Iterable[SampleRow],
    *,
    most: int,
    control_tokens: Collection[str] = (),
) -> list[Problem]:
    """Return the problems with sampled thoughts and answers to train on, in the order of the rows.

    Kept are right completions; the thoughts of one question differ in more than spaces and line
    breaks, and are the first `most` of them. One with an empty thought is kept as `direct`. Those
    with a control token, such as a second END_THINK, are left out: SFT could not encode them as
    they were sampled.

    >>> problem = Problem(question="2+3?", answer="5")
    >>> rows = [
    ...     {"question": 0, "completion": text, "right": right}
    ...     for text, right in [("2+3=5</think>5", True), ("3+2=5</think>5", True),
    ...                         ("2+3=5\\n</think>5", True), ("2+3=6</think>6", False)]
    ... ]
    >>> [solution.thought for solution in kept_solutions([problem], rows, most=2)]
    ['2+3=5', '3+2=5']
    """
    found = []
    for row in rows:
        thought, _, answer = (part.strip() for part in row["completion"].partition(END_THINK))
        broken = any(token in thought or token in answer for token in control_tokens)
        if row["right"] and not broken:
            found.append((row["question"], thought, answer))
    kept = distinct(
        found, lambda item: plain_spaces(item[1]), question=lambda item: item[0], most=most
    )
    return [
        # untrained_spans are of the thought that the data set has.
        replace(problems[q], thought=thought, answer=answer, direct=not thought, untrained_spans=())
        for q, thought, answer in kept
    ]


def newest_distinct(solutions: Sequence[Problem], *, most: int) -> list[Problem]:
    """The solutions of several rounds, at most `most` different ones of a question; the last ones
    are preferred, because the policy has become better.

    >>> old, new = (Problem(question="2+3?", answer="5", thought=t) for t in ("2+3=5", "3+2=5"))
    >>> [solution.thought for solution in newest_distinct([old, new, old], most=1)]
    ['2+3=5']
    """
    return distinct(
        reversed(solutions),
        lambda solution: plain_spaces(solution.thought),
        question=lambda solution: str(solution.prompt),
        most=most,
    )[::-1]
