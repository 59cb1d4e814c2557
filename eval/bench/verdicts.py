"""A contender: verdicts on short answers by our judge or by plain math-verify, or on the data sets'
own programs in the sandbox.

Answers are GSM8K-like: a number, said in some of the ways that models say it, a third of them
wrong.
"""

import json
from collections.abc import Callable

from eval.bench.lap import Laps, read_task
from pipeline.answers import same_answer
from pipeline.data import load_problems
from pipeline.records import Problem
from pipeline.runtime import prepare_cpu
from pipeline.sandbox import judge_program

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


def by_math_verify() -> Callable[[str, str], bool]:
    from math_verify import parse, verify

    return lambda visible, expected: verify(parse(expected), parse(visible))


def programs(data_root: str) -> list[Problem]:
    return [p for name in PROGRAM_SETS for p in load_problems(*name, data_root)]


def main() -> None:
    laps, task = Laps(), read_task()
    prepare_cpu()
    if task["judged"] == "programs":
        everything = programs(task["data_root"])
    else:
        everything = answers()
        same = same_answer if task["judged"] == "answers" else by_math_verify()
    while True:
        laps.begin()
        if task["judged"] == "programs":
            good = sum(
                judge_program(problem.answer, json.loads(problem.check), level=laps.mode).passed
                for problem in everything
            )
        else:
            good = sum(same(*pair) == right for *pair, right in everything)
        count = len(everything)
        laps.end(samples=count, tokens=count, agreed=good / count)


if __name__ == "__main__":
    main()
