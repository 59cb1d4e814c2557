"""Self-correction traces: a wrong step is written, noticed and corrected.

    26-20=16                 the corrupted step, masked out (`Problem.untrained_spans`)
    No, 26-20 is not 16.     trained
    26-20=6                  trained

The model learns what follows a mistake without learning to make one. The reward `self_correction`
in `pipeline.rewards` measures whether it corrects its own mistakes.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline.grading.arithmetic import equations_in
from pipeline.records import Problem

NOTICES = (
    "No, {left} is not {wrong}.",
    "Wait, {left} is not {wrong}. Again:",
    "That is wrong: {left} is not {wrong}.",
)
MAX_LINE = 200  # characters; a longer line is a paragraph, not a step

_RIGHT = re.compile(r"\s*\$?(-?\d{1,15}(?:\.\d{1,6})?)")


def with_self_corrections(problems: Sequence[Problem], *, share: float, seed: int) -> list[Problem]:
    """The problems, about `share` of them with a self-correction where the thought has a step."""
    rng = random.Random(seed)
    return [with_self_correction(p, rng) if rng.random() < share else p for p in problems]


def with_self_correction(problem: Problem, rng: random.Random) -> Problem:
    r"""The problem with one step of its thought first written wrong, then noticed and corrected.

    A step is a whole equation that holds: "4+6" of -4+6=2 may be the wrong number that is denied.
    Unchanged if the thought has no step, or has a corrupted one already.

    >>> sum = Problem(question="2*3+1?", thought="2*3=6\n6+1=7", answer="7")
    >>> made = with_self_correction(sum, random.Random(1))
    >>> made.thought.splitlines()
    ['2*3=7', 'Wait, 2*3 is not 7. Again:', '2*3=6', '6+1=7']
    >>> [made.thought[start:end] for start, end in made.untrained_spans]
    ['2*3=7\n']
    """
    lines = problem.thought.splitlines(keepends=True)
    steps = [(i, step) for i, line in enumerate(lines) for step in _steps(line)]
    if not steps or problem.untrained_spans:
        return problem
    index, (left, start, end) = rng.choice(steps)
    line = lines[index]
    wrong = wrong_number(line[start:end], rng)
    corrupted = f"{line[:start]}{wrong}{line[end:]}".rstrip("\n") + "\n"
    notice = rng.choice(NOTICES).format(left=left, wrong=wrong)
    begin = sum(map(len, lines[:index]))
    thought = "".join([*lines[:index], corrupted, notice, "\n", *lines[index:]])
    return replace(problem, thought=thought, untrained_spans=((begin, begin + len(corrupted)),))


def _steps(line: str) -> Iterator[tuple[str, int, int]]:
    """(left side, start, end) of the equations of a line that hold; [start, end) is the result.

    >>> list(_steps("So -4+6=2, and 3*$2 = $6."))
    [('-4+6', 8, 9), ('3*$2', 23, 24)]
    """
    if len(line) > MAX_LINE:
        return
    for equation in equations_in(line):
        left, _, right = line[equation.start : equation.end].rpartition("=")
        result = _RIGHT.fullmatch(right)
        if equation.holds and result is not None and "\\" not in left:
            yield left.strip().removeprefix("$"), equation.end - len(result[1]), equation.end


def wrong_number(right: str, rng: random.Random) -> str:
    """Another number with the sign of `right`: one or ten off, or with one other digit.

    >>> wrong_number("19", random.Random(0)) != "19"
    True
    """
    whole, dot, rest = right.partition(".")
    sign, digits = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    value, unit = int(digits), 10 ** rng.randrange(len(digits))
    digit = value // unit % 10
    misread = value + unit * (rng.choice([d for d in range(10) if d != digit]) - digit)
    options = [n for n in (value + 1, value - 1, value + 10, value - 10, misread) if n >= 0]
    return f"{sign}{rng.choice(options)}{dot}{rest}"
