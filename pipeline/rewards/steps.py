"""Steps: every sum written in a thought, checked by a calculator, and a reward where it stands.

A reward for steps is the easiest one to cheat: summed, it pays for writing true sums that lead
nowhere, and the policy stops answering (arXiv:2504.15275). Here the answer alone decides how much
is paid, and the steps decide where:

    right answer   +1, shared by the steps that lead to it; less FALSE_STEP for every false one
                   that is not mended, and REPEATED_STEP for every repeated one
    wrong answer   -1, at the first false step that stands; without one, at the completion's end

So beyond the first step that leads to a right answer, no step that is added, repeated or copied
raises the sum; among wrong answers the sum is the same, whatever they wrote, so that writing no
steps is no way out; and no wrong answer earns more than a right one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import islice

from pipeline.chat.tags import END_THINK
from pipeline.grading.arithmetic import Equation, equations_in, numbers_in
from pipeline.grading.equivalence import final_answer
from pipeline.records import Problem
from pipeline.rewards.functions import correctness

# Prices on the way to a right answer; together at most 1.
FALSE_STEP = 0.25
REPEATED_STEP = 0.05

MAX_STEPS = 4096  # of a thought; a completion of 32,000 tokens has about as many


@dataclass(frozen=True, kw_only=True)
class Step:
    """One written sum, `a op b = c` or `a op b op c = d`, and what a calculator says about it."""

    text: str
    start: int  # the characters [start, end) of the thought
    end: int
    holds: bool  # the left side is exactly the right one
    grounded: bool = False  # its operands are known where it stands, one of them from the question
    used: bool = False  # its result leads to the answer, directly or through later steps
    repeated: bool = False  # an earlier step says the same
    mended: bool = False  # false, and a later step has the same left side and holds

    @property
    def stands_false(self) -> bool:
        """Whether it is false and nothing later mends it."""
        return not self.holds and not self.mended

    @property
    def leads(self) -> bool:
        """Whether it is a part of the way from the question to the answer."""
        return self.holds and self.grounded and self.used and not self.repeated


def check_steps(question: str, thought: str, answer: str = "") -> list[Step]:
    """The steps of a thought, checked.

    Known are the numbers of the question and the results of true and grounded steps, with their
    place values (46 is 40 and 6), and small constants (one digit with zeros behind it, 12, 24, 52,
    365). A step on constants alone is not grounded: 1+1=2 says nothing about the question.
    Without an answer, the last result is taken for it. Steps beyond the first MAX_STEPS are not
    read: they are neither paid nor charged. The time is proportional to the text.

    >>> [step.leads for step in check_steps("12 and 7, times 3?", "12+7=19\\n1+1=2\\n19*3=57")]
    [True, False, True]
    >>> check_steps("", "12+7=18")[0].holds
    False
    """
    sums = list(islice(equations_in(thought), MAX_STEPS))
    known, seen, steps = _with_places(numbers_in(question)), set(), []
    for each in sums:
        step = Step(
            text=thought[each.start : each.end],
            start=each.start,
            end=each.end,
            holds=each.holds,
            grounded=_is_grounded(each.operands, known),
            repeated=each.key in seen,
        )
        steps.append(step)
        seen.add(each.key)
        if step.holds and step.grounded:
            known |= _places(each.result) | {each.result}
    return _with_mended(_with_used(steps, sums, answer), sums)


def step_rewards(problem: Problem, completion: str) -> list[tuple[int, float]] | None:
    """(offset of the last character, reward) of every step, in the order of the completion; None
    without a verdict on the answer.

    A wrong answer without a false step that stands has its -1 at the last character of the
    completion. Text that never closes its thought is a wrong answer. The rewards add up to a
    number in [-1, 1].

    >>> problem = Problem(question="12 and 7, times 3?", answer="57")
    >>> step_rewards(problem, "12+7=19\\n19*3=57</think>57")
    [(6, 0.5), (14, 0.5)]
    >>> step_rewards(problem, "12+7=18\\n18*3=54</think>54")
    [(6, -1.0), (14, 0.0)]
    """
    thought, _, answer = completion.partition(END_THINK)
    steps = check_steps(problem.question, thought, final_answer(answer))
    ends = [step.end - 1 for step in steps]
    right = correctness(problem, completion)
    if right is None:
        return None
    if right:
        return list(zip(ends, _shared(steps), strict=True))
    first = next((i for i, step in enumerate(steps) if step.stands_false), None)
    blamed = [(end, -1.0 if i == first else 0.0) for i, end in enumerate(ends)]
    return blamed if first is not None else [*blamed, (max(len(completion) - 1, 0), -1.0)]


def correct_steps(problem: Problem, completion: str) -> float:
    """The share of written steps that hold; 0.0 without any. For the log: as a reward, it would
    pay for easy sums.

    >>> correct_steps(Problem(question="", answer=""), "1+1=2 and 2*2=5</think>")
    0.5
    """
    steps = check_steps(problem.question, completion.partition(END_THINK)[0])
    return sum(step.holds for step in steps) / len(steps) if steps else 0.0


def coherence(problem: Problem, completion: str) -> float | None:
    """The share of written steps that lead from the question to a right answer: true, grounded,
    used and said once; 0.0 for a wrong answer; None without a verdict.

    >>> problem = Problem(question="12 and 7, times 3?", answer="57")
    >>> coherence(problem, "12+7=19\\n1+1=2\\n19*3=57\\n19*3=57</think>57")
    0.5
    """
    thought, _, answer = completion.partition(END_THINK)
    right = correctness(problem, completion)
    if not right:
        return right
    steps = check_steps(problem.question, thought, final_answer(answer))
    if not steps:
        return 0.0
    return sum(step.leads for step in steps) / len(steps)


def self_correction(problem: Problem, completion: str) -> float:
    """1.0 for a thought with a false step in which every false one is mended. For the log: as a
    reward, it would pay for making mistakes.

    >>> problem = Problem(question="", answer="")
    >>> self_correction(problem, "12+7=18\\nNo, 12+7 is not 18.\\n12+7=19</think>")
    1.0
    """
    false = [s for s in check_steps(problem.question, completion.partition(END_THINK)[0])
             if not s.holds]  # fmt: skip
    return float(bool(false) and all(step.mended for step in false))


_CONSTANTS = frozenset(map(Fraction, (12, 24, 52, 365)))


def _with_places(numbers: set[Fraction]) -> set[Fraction]:
    """The numbers and their place values: 346 with 300, 40 and 6."""
    return numbers.union(*(_places(number) for number in numbers))


@lru_cache(4096)
def _places(number: Fraction) -> frozenset[Fraction]:
    if number.denominator != 1:
        return frozenset((number,))
    digits = str(abs(number.numerator))
    return frozenset(Fraction(int(d) * 10**k) for k, d in enumerate(reversed(digits)) if d != "0")


def _is_grounded(operands: Sequence[Fraction], known: set[Fraction]) -> bool:
    """Whether all are known or constants, and one of them comes from the question."""
    return any(n in known for n in operands) and all(
        n in known or _is_constant(n) for n in operands
    )


def _is_constant(number: Fraction) -> bool:
    one_digit = number >= 0 and number.denominator == 1 and len(_places(number)) <= 1
    return one_digit or number in _CONSTANTS


def _with_used(steps: list[Step], sums: Sequence[Equation], answer: str) -> list[Step]:
    """The steps with `used` filled in, from the answer backwards."""
    needed = set(numbers_in(answer)) or {each.result for each in sums[-1:]}
    marked = []
    for step, each in zip(reversed(steps), reversed(sums), strict=True):
        places = _places(each.result)
        used = each.result in needed or (len(places) > 1 and places <= needed)
        marked.append(replace(step, used=used))
        if used:
            needed.update(each.operands)  # a new set a step would take quadratic time
    return marked[::-1]


def _with_mended(steps: list[Step], sums: Sequence[Equation]) -> list[Step]:
    """The steps with `mended` filled in, from the last one backwards."""
    true_later, marked = set(), []
    for step, each in zip(reversed(steps), reversed(sums), strict=True):
        left = (each.operands, each.operators)
        marked.append(replace(step, mended=not step.holds and left in true_later))
        if step.holds:
            true_later.add(left)
    return marked[::-1]


def _shared(steps: list[Step]) -> list[float]:
    """The rewards of the steps to a right answer."""
    leading = sum(step.leads for step in steps)
    prices = [FALSE_STEP if s.stands_false else REPEATED_STEP if s.repeated else 0.0 for s in steps]
    scale = min(1.0, 1 / sum(prices)) if any(prices) else 0.0
    return [
        1 / leading if step.leads else -scale * price if price else 0.0
        for step, price in zip(steps, prices, strict=True)
    ]
