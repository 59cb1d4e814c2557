r"""Give a word problem other numbers and compute its worked solution anew.

    Jo has 12 pens and buys 30.  12+30=42    becomes    Jo has 47 pens and buys 18.  47+18=65

A small data set is read several times by a short SFT. With other numbers in every pass the model
cannot learn the results by heart (numerical variation: GSM-Symbolic, arXiv:2410.05229; MuggleMath,
arXiv:2310.05506). Only the numbers of the text change, so a variant may be unusual ("47 days of
rain in May"); every equation is computed.

A problem stays as it is unless each line of its thought is one operation on whole numbers, each
operand is one number of the question, one earlier result, or a constant, the last result is the
answer, and a later line uses every other result: one that is not used was compared ("How many pages
are in the longest?"), and with other numbers the comparison may end otherwise. A constant has a
word of the question that implies it (12 with "dozen") or is written there in a form that stays
(1,200): any other could be computed from the numbers without being shown. A difference or quotient
of equal numbers stays too: they may be two quantities ("12 boxes in cases of 12"). Numbers written
as words ("forty-eight") are replaced by words. A word that implies a number ("twice", "a dozen")
keeps it; with the same number in the question the equation could mean either, and the problem stays
as it is.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.grading.arithmetic import numbers_in
from pipeline.records import Problem

TRIES = 200  # draws of numbers until all results are whole and positive
LARGEST = 10_000  # number or result of a variant

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: value for value, word in enumerate(_UNITS.split())} | {
    (f"{ten}-{unit}" if value else ten): tens + value
    for tens, ten in zip(range(20, 100, 10), _TENS.split(), strict=True)
    for value, unit in enumerate(_UNITS.split()[:10])
}
_WORD_OF = {value: word for word, value in _WORDS.items()}
# "one" is more often a pronoun than a number, and a part of 3.5, 1,200 or 3/4 is no number.
_IN_TEXT = re.compile(
    r"(?<![\d.,/\w])\d{1,4}(?!\w|[.,/]\d|/)|\b(?:"
    + "|".join(sorted(set(_WORDS) - {"zero", "one"}, key=len, reverse=True))
    + r")\b(?!-)",
    re.IGNORECASE,
)
_IMPLIED = {
    2: "twice|doubl|half|halves|halv|pair|couple|both",
    3: "thrice|tripl|third",
    4: "quarter|fourth|quadrupl|square",
    5: "fifth|nickel|weekday",
    6: "sixth|half a dozen",
    7: "week|daily|every day|seventh",
    10: "tenth|dime|decade",
    12: "dozen|year|month|foot|feet|inch",
    24: "day|hour",
    25: "quarter",
    30: "month|half an hour",
    60: "hour|minute|second",
    100: "percent|%|cent|dollar|meter|century|hundred",
}
_IMPLIED_WORDS = {n: re.compile(rf"(?:\b|(?=%))(?:{words})") for n, words in _IMPLIED.items()}
_STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


@dataclass(frozen=True)
class _Step:
    """One equation. An operand is ("number", its value in the question),
    ("result", index of an earlier step) or ("constant", value)."""

    operator: str
    operands: tuple[tuple[str, int], tuple[str, int]]


def with_number_variants(problems: Sequence[Problem], *, share: float, seed: int) -> list[Problem]:
    """The problems, about `share` of them with other numbers where their thought allows it."""
    rng = random.Random(f"{seed}/numbers")
    return [with_other_numbers(p, rng) if rng.random() < share else p for p in problems]


def with_other_numbers(problem: Problem, rng: random.Random) -> Problem:
    r"""The problem with other numbers; the same problem where that is not possible.

    >>> pens = Problem(question="Jo has 12 pens and buys six.", thought="12+6=18", answer="18")
    >>> made = with_other_numbers(pens, random.Random(0))
    >>> made.question, made.thought, made.answer
    ('Jo has 59 pens and buys eight.', '59+8=67', '67')
    """
    if problem.untrained_spans or problem.choices or problem.check or problem.turns:
        return problem
    if problem.source == "nano/train":  # generated: the numbers decide the split of a problem
        return problem
    found = [(m, _value(m[0])) for m in _IN_TEXT.finditer(problem.question)]
    stays = _written(_IN_TEXT.sub(" ", problem.question))
    steps = _parsed(problem, {value for _, value in found if value > 1}, stays)
    used = {i for step in steps for kind, i in step.operands if kind == "number"}
    if not used or used & stays or any(_implied(number, problem.question) for number in used):
        return problem
    for _ in range(TRIES):
        values = {old: _other(old, rng) for old in used}
        equations = _equations(steps, values)
        if equations and any(new != old for old, new in values.items()):
            return replace(
                problem,
                question=_question(problem.question, found, values),
                thought="\n".join(equations),
                answer=equations[-1].rpartition("=")[2],
            )
    return problem


def _implied(number: int, question: str) -> bool:
    """Whether a word of the question may stand for the number."""
    words = _IMPLIED_WORDS.get(number)
    return words is not None and words.search(question.lower()) is not None


def _parsed(problem: Problem, numbers: set[int], stays: set[int]) -> list[_Step]:
    """The steps of the thought; [] where they are not what the module requires.

    Args:
        numbers: those of the question that may change
        stays: those that are written in a form that stays
    """
    steps: list[_Step] = []
    results: list[int] = []
    lines = problem.thought.split("\n")

    def operand(text: str) -> tuple[str, int]:
        value = int(text)
        if value in results:
            return "result", results.index(value)
        return ("number", value) if value in numbers else ("constant", value)

    for i, line in enumerate(lines):
        match = _STEP.fullmatch(line.strip())
        if match is None or (match[1] == match[3] and match[2] in "-/"):
            return []
        step = _Step(match[2], (operand(match[1]), operand(match[3])))
        constants = {number for kind, number in step.operands if kind == "constant"} - stays
        if not all(_implied(number, problem.question) for number in constants):
            return []
        result, value = int(match[4]), _result(int(match[1]), match[2], int(match[3]))
        # A result that is also a number of the question, or another result, could be either.
        again = result in results or (result in numbers | stays and i < len(lines) - 1)
        if value != result or again:
            return []
        steps.append(step)
        results.append(result)
    used = {i for step in steps for kind, i in step.operands if kind == "result"}
    if len(used) < len(steps) - 1:
        return []
    return steps if steps and problem.answer.strip() == str(results[-1]) else []


def _written(text: str) -> set[int]:
    """The whole numbers of a text in any form, such as "twelve-pound", 1,200 and 10th."""
    named = {_WORDS[word] for word in re.findall("[a-z]+", text.lower()) if word in _WORDS}
    return named | {int(number) for number in numbers_in(text) if number.denominator == 1}


def _equations(steps: Sequence[_Step], values: dict[int, int]) -> list[str]:
    """The lines of the thought with these numbers; [] unless all results are whole, positive and at
    most LARGEST."""
    lines: list[str] = []
    results: list[int] = []

    def value(kind: str, i: int) -> int:
        return results[i] if kind == "result" else values[i] if kind == "number" else i

    for step in steps:
        a, b = (value(*operand) for operand in step.operands)
        result = _result(a, step.operator, b)
        if result is None or not 0 < result <= LARGEST:
            return []
        results.append(result)
        lines.append(f"{a}{step.operator}{b}={result}")
    return lines


def _question(
    question: str, found: Sequence[tuple[re.Match[str], int]], values: dict[int, int]
) -> str:
    """The question with the new numbers in the places of the old ones."""
    parts, end = [], 0
    for match, old in found:
        parts += [question[end : match.start()], _text(match[0], values.get(old, old))]
        end = match.end()
    return "".join([*parts, question[end:]])


def _result(a: int, operator: str, b: int) -> int | None:
    """`a operator b`, None for a quotient that is not whole."""
    if operator == "/":
        return a // b if b and a % b == 0 else None
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


def _other(old: int, rng: random.Random) -> int:
    """A number with as many digits, round where the old one is; small ones from 2 to 12."""
    if old < 10:
        return rng.randint(2, 12)
    unit = 10 ** (len(str(old)) - len(str(old).rstrip("0")))
    top = 10 ** len(str(old))
    return unit * rng.randint(top // 10 // unit or 1, top // unit - 1)


def _value(text: str) -> int:
    return int(text) if text.isdigit() else _WORDS[text.lower()]


def _text(old: str, new: int) -> str:
    """`new` in digits or, if `old` was a word and there is one, as a word in its case."""
    if old.isdigit() or new not in _WORD_OF:
        return str(new)
    word = _WORD_OF[new]
    return word.capitalize() if old[0].isupper() else word
