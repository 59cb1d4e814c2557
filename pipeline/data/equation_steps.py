"""Rewrite equations of several operations as equations of one operation each.

    (13+17)-15=15      becomes    13+17=30
                                  30-15=15

A model computes a digit of a result in one forward pass, so an equation with several operations
hides results that it would have to compute at once. The values are exact (fractions). A line stays
as it is where it does not hold, where a result between is negative or no finite decimal of few
digits, or where its left side is anything but numbers, + - * / and brackets.
"""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

_OPERATIONS: dict[type[ast.operator], tuple[str, Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}
_ARITHMETIC = re.compile(r"[\d.+\-*/() ]+")
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")
MOST_DECIMALS = 4  # of a result between
LONGEST = 200  # characters of an equation that is rewritten; bounds the depth of the brackets


def single_operations(thought: str) -> str:
    r"""The thought with each line of several operations replaced by one line an operation.

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
    if not equals or len(line) > LONGEST or not _ARITHMETIC.fullmatch(left):
        return None
    result = _decimal(right.strip())
    try:
        tree = ast.parse(left.strip(), mode="eval").body
        steps: list[str] = []
        value = _evaluate(tree, left.strip(), steps)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None
    if len(steps) < 2 or value != result:
        return None
    # The last result as the line has it: 20.00 stays 20.00.
    return [*steps[:-1], f"{steps[-1].rpartition('=')[0]}={right.strip()}"]


def _evaluate(node: ast.expr, text: str, steps: list[str]) -> Fraction:
    """The value of an expression; appends the equation of each of its operations, inner first."""
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        a = _evaluate(node.left, text, steps)
        b = _evaluate(node.right, text, steps)
        sign, function = _OPERATIONS[type(node.op)]
        value = function(a, b)
        steps.append(f"{_written(a)}{sign}{_written(b)}={_written(value)}")
        return value
    number = _decimal(ast.get_source_segment(text, node) or "")
    if number is None:
        raise ValueError("not a number")
    return number


def _decimal(text: str) -> Fraction | None:
    return Fraction(text) if _NUMBER.fullmatch(text) else None


def _written(value: Fraction) -> str:
    """An integer or a finite decimal; ValueError for other numbers and below 0."""
    scaled = value * 10**MOST_DECIMALS
    if scaled.denominator != 1 or scaled < 0:
        raise ValueError("a result between is negative or no finite decimal of few digits")
    whole, decimals = divmod(scaled.numerator, 10**MOST_DECIMALS)
    return f"{whole}.{decimals:0{MOST_DECIMALS}d}".rstrip("0").rstrip(".")
