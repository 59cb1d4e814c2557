"""A contender: verdicts on short answers by our judge or by plain math-verify, or on the data sets'
own programs in the sandbox.

Answers are GSM8K-like: a number, said in some of the ways that models say it, a third of them
wrong.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import math_verify

from eval.bench.iteration import Iterations, read_task
from pipeline.data import load_problems
from pipeline.grading import same_answer
from pipeline.grading.programs import grade_program
from pipeline.runtime import prepare_cpu

ANSWERS = 1_500
PROGRAM_SETS = (("humaneval", "test"), ("mbpp", "train"), ("mbpp", "validation"), ("mbpp", "test"))
WAYS = ("{}", "The answer is {}.", r"\boxed{{{}}}", "${}", "{}.00", "{} apples", "{} kg")


def answers() -> list[tuple[str, str, bool]]:
    """(visible answer, expected, whether it is right), the same ones each time."""
    pairs = []
    for i, problem in enumerate(load_problems("nano", "train")[:ANSWERS]):
        right = i % 3 != 2
        said = problem.answer if right else str(int(problem.answer) + 1 + i % 9)
        pairs.append((WAYS[i % len(WAYS)].format(said), problem.answer, right))
    return pairs


def same_by_math_verify(visible: str, expected: str) -> bool:
    return math_verify.verify(math_verify.parse(expected), math_verify.parse(visible))


def verdicts(task: dict[str, Any]) -> Callable[[str], Iterator[bool]]:
    """All verdicts of a lap of this mode: whether each is as it should be."""
    if task["judged"] == "programs":
        golds = [p for name in PROGRAM_SETS for p in load_problems(*name, task["data_root"])]
        return lambda level: (
            grade_program(gold.answer, json.loads(gold.check), level=level).passed for gold in golds
        )
    same = same_answer if task["judged"] == "answers" else same_by_math_verify
    pairs = answers()
    return lambda mode: (same(*pair) == right for *pair, right in pairs)


def main() -> None:
    iterations, task = Iterations(), read_task()
    prepare_cpu()
    judge = verdicts(task)
    while True:
        iterations.begin()
        found = list(judge(iterations.mode))
        iterations.end(samples=len(found), tokens=len(found), agreed=sum(found) / len(found))


if __name__ == "__main__":
    main()
