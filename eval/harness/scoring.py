"""What lm-evaluation-harness calls: the visible part of a completion, and two verdicts on it.

exact_match  the answer as written is the expected one as written: the harness' own measure
same_answer  the answer states the expected one, or passes the problem's own check: the judge of
             eval.run
"""

from collections.abc import Sequence
from typing import Any

from pipeline.chat.tags import END_THINK
from pipeline.grading import grade
from pipeline.grading.equivalence import final_answer
from pipeline.records import Problem


def visible(resps: Sequence[Sequence[str]], docs: Sequence[dict]) -> list[list[str]]:
    """The completions of every document without their thoughts."""
    return [[visible_part(text) for text in texts] for texts in resps]


def direct(resps: Sequence[Sequence[str]], docs: Sequence[dict]) -> list[list[str]]:
    """The completions of a model that was asked for its answer alone: all of each, or what follows
    a thought that it had all the same."""
    return [[visible_part(t) if END_THINK in t else t.strip() for t in texts] for texts in resps]


def visible_part(completion: str) -> str:
    """What follows the first end of a thought; nothing where the thought never ends.

    >>> visible_part("2+3=5</think>5"), visible_part("2+3=5")
    ('5', '')
    """
    _thought, _end, answer = completion.partition(END_THINK)
    return answer.strip()


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """
    >>> process_results({"answer": "1234"}, ["1,234"])
    {'exact_match': 0.0, 'same_answer': 1.0}
    """
    (text,) = results
    exact = final_answer(text) == final_answer(doc["answer"])
    problem = Problem.from_columns({"question": "", **doc})
    return {"exact_match": float(exact), "same_answer": float(grade(problem, text).passed)}
