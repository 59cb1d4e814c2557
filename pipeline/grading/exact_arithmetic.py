"""The exact value of an arithmetic expression with numbers, + - * / and brackets."""

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
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+")  # without an exponent: 1e999999999 fills the memory
LONGEST = 200  # characters of an expression; bounds the depth of its brackets

# Called with the two operands, the sign and the result of an operation.
OnOperation = Callable[[Fraction, Fraction, str, Fraction], None]


def exact_value(expression: str, on_operation: OnOperation | None = None) -> Fraction:
    """The value of an expression in Python's notation; decimals are exact.

    Args:
        on_operation: called for every operation of two operands, inner ones first.

    Raises:
        ValueError: it is longer than LONGEST, or not an expression of numbers.
        ZeroDivisionError: a divisor is 0.

    >>> exact_value("2*-3*-3+5*-3-3"), exact_value("(0.1+0.2)*10"), exact_value("-1/3")
    (Fraction(0, 1), Fraction(3, 1), Fraction(-1, 3))
    """
    text = expression.strip()
    if len(text) > LONGEST:
        raise ValueError(f"an expression of {len(text)} characters; at most {LONGEST} are computed")

    def value_of(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            left, right = value_of(node.left), value_of(node.right)
            sign, function = _OPERATIONS[type(node.op)]
            result = function(left, right)
            if on_operation is not None:
                on_operation(left, right, sign, result)
            return result
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = value_of(node.operand)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.Constant):
            number = ast.get_source_segment(text, node) or ""
            if _NUMBER.fullmatch(number):
                return Fraction(number)
        raise ValueError(f"{text!r} is not an expression of numbers with + - * / and brackets")

    try:
        return value_of(ast.parse(text, mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"{text!r} is not an expression of numbers with + - * / and brackets"
        ) from error
