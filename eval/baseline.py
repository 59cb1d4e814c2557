"""Grade a baseline: a model without reasoning tokens, which answers in sentences."""

import re
from collections.abc import Sequence

from pipeline.data.few_shot import without_system
from pipeline.grading import grade
from pipeline.grading.equivalence import final_answer
from pipeline.grading.normalization import plain
from pipeline.grading.numeric import literal
from pipeline.grading.verdict import Verdict
from pipeline.records import Problem

LAST_NUMBER = "last number"  # `why` of a verdict on it
_NUMBER = re.compile(r"(?<![\w.])-?[$€£]?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?%?")


def grade_whole_text(problem: Problem, text: str) -> Verdict:
    r"""The verdict on everything that a baseline wrote.

    The grader finds an announced answer (\boxed{}, "The answer is ...", ####). Where the final
    answer is wrong, a number is expected and no check of its own decides, the last number of the
    final answer, or of the whole text without an announcement, is graded instead.

    >>> apples = Problem(question="How many?", answer="7")
    >>> grade_whole_text(apples, "3 and 4 make 7 apples in the end.")
    Verdict(right=True, why='last number')
    >>> grade_whole_text(apples, "She has 7 apples, not 8.").right
    False
    """
    verdict = grade(problem, text)
    if verdict.right is not False or problem.check:
        return verdict
    if literal(plain(final_answer(problem.answer)), problem.question) is None:
        return verdict
    number = last_number(final_answer(text))
    if number is None:
        return verdict
    return Verdict(grade(problem, number).right, LAST_NUMBER)


def few_shot_turns(problems: Sequence[Problem]) -> list[dict[str, str]]:
    """Examples as turns: the question, then its solution, if any, and "The answer is ...".

    The earlier turns of a conversation stand before its question.
    """
    turns = []
    for problem in problems:
        turns += [{"role": role, "content": text} for role, text in without_system(problem)]
        solution = f"{problem.thought}\nThe answer is {problem.answer}.".strip()
        turns += [
            {"role": "user", "content": problem.question},
            {"role": "assistant", "content": solution},
        ]
    return turns


def last_number(text: str) -> str | None:
    """The last number as it is written, None without one.

    >>> last_number("He paid $1,250.50."), last_number("10-5=5"), last_number("none")
    ('$1,250.50', '5', None)
    """
    found = _NUMBER.findall(text)
    return found[-1] if found else None
