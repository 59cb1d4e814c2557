"""Process rewards: the equations in a thought, checked by exact arithmetic, each with a reward.

A sum of step rewards is easy to exploit: the policy writes true equations that lead nowhere, and
stops answering (arXiv:2504.15275). Here the answer bounds the total reward, and the steps determine
where it is given:

    right answer   +1, shared by the steps that lead to it, if there are any; minus FALSE_STEP for
                   every false one that is not corrected, and REPEATED_STEP for every repeated one
    wrong answer   -1, at the first false step that is not corrected; without one, at the last
                   character of the completion

So beyond the first step that leads to a right answer, no step that is added, repeated or copied
raises the total; the total of wrong answers does not depend on their steps, so that leaving them
out gains nothing; and no wrong answer gets more than a right one.
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

# Penalties in completions with a right answer; together at most 1.
FALSE_STEP = 0.25
REPEATED_STEP = 0.05

MAX_STEPS = 4096  # of a thought; a completion of 32,000 tokens has about as many


@dataclass(frozen=True, kw_only=True)
class Step:
    """One written equation, `a op b = c` or `a op b op c = d`, and the result of its check."""

    text: str
    start: int  # the characters [start, end) of the thought
    end: int
    holds: bool  # the left side equals the right side exactly
    grounded: bool = False  # its operands are known there, one of them from the question
    used: bool = False  # its result leads to the answer, directly or through later steps
    repeated: bool = False  # an earlier step is the same equation
    corrected: bool = False  # false, and a later step has the same left side and holds

    @property
    def is_uncorrected_error(self) -> bool:
        """Whether it is false and no later step corrects it."""
        return not self.holds and not self.corrected

    @property
    def leads(self) -> bool:
        """Whether it is a part of the derivation from the question to the answer."""
        return self.holds and self.grounded and self.used and not self.repeated


def check_steps(question: str, thought: str, answer: str = "") -> list[Step]:
    """The checked steps of a thought.

    Known are the numbers of the question and the results of true and grounded steps, with their
    place values (46 is 40 and 6), and small constants (one digit with zeros behind it, 12, 24, 52,
    365). A step on constants alone is not grounded: 1+1=2 is not about the question.
    Without an answer, the last result counts as the answer. Steps beyond the first MAX_STEPS are
    ignored. The time is proportional to the length of the text.

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
    return _with_corrected(_with_used(steps, sums, answer), sums)


def step_rewards(problem: Problem, completion: str) -> list[tuple[int, float]] | None:
    """(offset of the last character, reward) of every step, in the order of the completion; None
    without a verdict on the answer.

    A wrong answer without an uncorrected false step has its -1 at the last character of the
    completion. Text that does not close its thought is a wrong answer. The sum of the
    rewards is in [-1, 1].

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
    first = next((i for i, step in enumerate(steps) if step.is_uncorrected_error), None)
    penalties = [(end, -1.0 if i == first else 0.0) for i, end in enumerate(ends)]
    return penalties if first is not None else [*penalties, (max(len(completion) - 1, 0), -1.0)]


def correct_steps(problem: Problem, completion: str) -> float:
    """The share of written steps that hold; 0.0 without any. For the log: as a reward, it would
    favour easy equations.

    >>> correct_steps(Problem(question="", answer=""), "1+1=2 and 2*2=5</think>")
    0.5
    """
    steps = check_steps(problem.question, completion.partition(END_THINK)[0])
    return sum(step.holds for step in steps) / len(steps) if steps else 0.0


def coherence(problem: Problem, completion: str) -> float | None:
    """The share of written steps that lead from the question to a right answer: true, grounded,
    used and not repeated; 0.0 for a wrong answer; None without a verdict.

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
    """1.0 for a thought with a false step in which every false one is corrected. For the log: as a
    reward, it would favour making mistakes.

    >>> problem = Problem(question="", answer="")
    >>> self_correction(problem, "12+7=18\\nNo, 12+7 is not 18.\\n12+7=19</think>")
    1.0
    """
    false = [s for s in check_steps(problem.question, completion.partition(END_THINK)[0])
             if not s.holds]  # fmt: skip
    return float(bool(false) and all(step.corrected for step in false))


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
            # In place: a new set for each step would take quadratic time.
            needed.update(each.operands)
    return marked[::-1]


def _with_corrected(steps: list[Step], sums: Sequence[Equation]) -> list[Step]:
    """The steps with `corrected` filled in, from the last one backwards."""
    true_later, marked = set(), []
    for step, each in zip(reversed(steps), reversed(sums), strict=True):
        left = (each.operands, each.operators)
        marked.append(replace(step, corrected=not step.holds and left in true_later))
        if step.holds:
            true_later.add(left)
    return marked[::-1]


def _shared(steps: list[Step]) -> list[float]:
    """The rewards of the steps of a completion with a right answer."""
    leading = sum(step.leads for step in steps)
    penalties = [
        FALSE_STEP if s.is_uncorrected_error else REPEATED_STEP if s.repeated else 0.0
        for s in steps
    ]
    scale = min(1.0, 1 / sum(penalties)) if any(penalties) else 0.0
    return [
        1 / leading if step.leads else -scale * penalty if penalty else 0.0
        for step, penalty in zip(steps, penalties, strict=True)
    ]
