"""Rewrite equations of several operations as equations of one operation each.

    (13+17)-15=15      becomes    13+17=30
                                  30-15=15

A model computes a digit of a result in one forward pass, so an equation with several operations
has intermediate results that are not written down. The values are exact (fractions). A line stays
as it is where it does not hold, where an intermediate result is negative or no finite decimal of
few digits, or where its left side is anything but numbers, + - * / and brackets.
"""

import re
from dataclasses import replace
from fractions import Fraction

from pipeline.grading.exact_arithmetic import LONGEST, exact_value
from pipeline.records import Problem

_ARITHMETIC = re.compile(r"[\d.+\-*/() ]+")
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")
MOST_DECIMALS = 4  # of an intermediate result


def with_single_operations(problem: Problem) -> Problem:
    """The problem with `single_operations` of its thought.

    Unchanged if parts of the thought are not trained, whose places would no longer be right.
    """
    if problem.untrained_spans:
        return problem
    return replace(problem, thought=single_operations(problem.thought))


def single_operations(thought: str) -> str:
    r"""The thought with each line of several operations replaced by one line per operation.

    >>> single_operations("(13+17)-15=15")
    '13+17=30\n30-15=15'
    >>> single_operations("5*4=20\nThe rest is 1/3+1/3=2/3")
    '5*4=20\nThe rest is 1/3+1/3=2/3'
    """
    return "\n".join(
        step for line in thought.split("\n") for step in (_single_operations(line) or [line])
    )


def _single_operations(line: str) -> list[str] | None:
    """The equations of one operation of a line; None if the line has to stay as it is."""
    left, equals, right = line.rpartition("=")
    right = right.strip()
    is_equation = equals and _ARITHMETIC.fullmatch(left) and _NUMBER.fullmatch(right)
    if not is_equation or len(line) > LONGEST:
        return None
    steps: list[str] = []

    def write(a: Fraction, b: Fraction, sign: str, result: Fraction) -> None:
        steps.append(f"{_decimal(a)}{sign}{_decimal(b)}={_decimal(result)}")

    try:
        value = exact_value(left, write)
    except (ValueError, ZeroDivisionError):
        return None
    if len(steps) < 2 or value != Fraction(right):
        return None
    # The last result as the line has it: 20.00 stays 20.00.
    return [*steps[:-1], f"{steps[-1].rpartition('=')[0]}={right}"]


def _decimal(value: Fraction) -> str:
    """A number as an integer or a finite decimal; ValueError for other numbers and below 0."""
    scaled = value * 10**MOST_DECIMALS
    if scaled.denominator != 1 or scaled < 0:
        raise ValueError(f"{value} is negative or has more than {MOST_DECIMALS} decimals")
    whole, decimals = divmod(scaled.numerator, 10**MOST_DECIMALS)
    return f"{whole}.{decimals:0{MOST_DECIMALS}d}".rstrip("0").rstrip(".")
