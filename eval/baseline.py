"""Grade a baseline: a model without reasoning tokens, which answers in sentences."""

import re

from eval.suites import find_suite
from pipeline.data import read_problems
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


def few_shot_turns(suite: str, count: int, data_root: str | None = None) -> list[dict[str, str]]:
    """The first `count` usable training rows of the suite's data set, as questions and answers.

    An answer is the worked solution, if there is one, and "The answer is ...". Raises ValueError
    where the data set has no training split, or fewer rows.
    """
    if not count:
        return []
    problems = read_problems(find_suite(suite).source, "train", data_root, 2 * count).problems
    if len(problems) < count:
        raise ValueError(
            f"few_shot={count}, and the training split of {suite} begins with {len(problems)} "
            "usable rows; lower it"
        )
    turns = []
    for problem in problems[:count]:
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
