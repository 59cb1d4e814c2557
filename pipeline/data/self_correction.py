"""Self-correction traces: a wrong step is written, noticed and corrected.

    26-20=16                 the corrupted step, masked out (`Problem.untrained_spans`)
    No, 26-20 is not 16.     trained
    26-20=6                  trained

The model learns what follows a mistake without learning to make one. The reward `self_correction`
in `pipeline.rewards` measures whether it corrects its own mistakes.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from pipeline.records import Problem

NOTICES = (
    "No, {left} is not {wrong}.",
    "Wait, {left} is not {wrong}. Again:",
    "That is wrong: {left} is not {wrong}.",
)
MAX_LINE = 200  # characters; a longer line is a paragraph, not a step

_NUMBER = r"\d{1,15}(?:\.\d{1,6})?"
_STEP = re.compile(
    rf"(?P<left>{_NUMBER}(?:\s*[-+*/x]\s*\$?{_NUMBER})+)\s*=\s*"
    rf"\$?(?P<right>-?{_NUMBER})(?![\d.,]*\d)"
)


def with_self_corrections(problems: Sequence[Problem], *, share: float, seed: int) -> list[Problem]:
    """The problems, about `share` of them with a self-correction where the thought has a step."""
    rng = random.Random(seed)
    return [with_self_correction(p, rng) if rng.random() < share else p for p in problems]


def with_self_correction(problem: Problem, rng: random.Random) -> Problem:
    r"""The problem with one step of its thought first written wrong, then noticed and corrected.

    Unchanged if the thought has no equation, or has a corrupted step already.

    >>> sum = Problem(question="2*3+1?", thought="2*3=6\n6+1=7", answer="7")
    >>> made = with_self_correction(sum, random.Random(1))
    >>> made.thought.splitlines()
    ['2*3=7', 'Wait, 2*3 is not 7. Again:', '2*3=6', '6+1=7']
    >>> [made.thought[start:end] for start, end in made.untrained_spans]
    ['2*3=7\n']
    """
    lines = problem.thought.splitlines(keepends=True)
    steps = [(i, m) for i, line in enumerate(lines) if len(line) <= MAX_LINE
             for m in _STEP.finditer(line)]  # fmt: skip
    if not steps or problem.untrained_spans:
        return problem
    index, match = rng.choice(steps)
    wrong = wrong_number(match["right"], rng)
    line = lines[index]
    corrupted = (
        f"{line[: match.start('right')]}{wrong}{line[match.end('right') :]}".rstrip("\n") + "\n"
    )
    notice = rng.choice(NOTICES).format(left=match["left"], wrong=wrong)
    start = sum(map(len, lines[:index]))
    thought = "".join([*lines[:index], corrupted, notice, "\n", *lines[index:]])
    return replace(problem, thought=thought, untrained_spans=((start, start + len(corrupted)),))


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
