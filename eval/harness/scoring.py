"""Functions called by lm-evaluation-harness: the visible part of a completion and its two scores.

exact_match  the final answer equals the expected one as a string, as the harness' own metric
same_answer  the grader of eval.run: an equivalent answer, or one that passes the problem's check
"""

from collections.abc import Mapping, Sequence
from typing import Any

from eval.baseline import grade_whole_text
from pipeline.chat.tags import END_THINK
from pipeline.grading import grade
from pipeline.grading.equivalence import final_answer
from pipeline.records import Problem


def visible(resps: Sequence[Sequence[str]], docs: Sequence[dict]) -> list[list[str]]:
    """The completions of every document without thoughts, for prompts that open one."""
    return [[visible_part(text) for text in texts] for texts in resps]


def direct(resps: Sequence[Sequence[str]], docs: Sequence[dict]) -> list[list[str]]:
    """The completions for prompts without a thought: all of each, or what follows a thought that
    the model wrote nevertheless."""
    return [[visible_part(t) if END_THINK in t else t.strip() for t in texts] for texts in resps]


def visible_part(completion: str) -> str:
    """The text after the first end of a thought; empty if the thought never ends.

    >>> visible_part("2+3=5</think>5"), visible_part("2+3=5")
    ('5', '')
    """
    _thought, _end, answer = completion.partition(END_THINK)
    return answer.strip()


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The scores of one document.

    >>> process_results({"answer": "1234"}, ["1,234"])
    {'exact_match': 0.0, 'same_answer': 1.0}
    """
    (text,) = results
    exact = final_answer(text) == final_answer(doc["answer"])
    problem = Problem.from_columns({"question": "", **doc})
    verdict = grade_whole_text(problem, text) if doc.get("baseline") else grade(problem, text)
    return {"exact_match": float(exact), "same_answer": float(verdict.passed)}
