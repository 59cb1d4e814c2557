from fractions import Fraction

import pytest

from pipeline.grading.exact_arithmetic import LONGEST, exact_value


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2+3*4", "14"),
        ("(2+3)*4", "20"),
        ("10-4-3", "3"),
        ("12/4/3", "1"),
        ("25--24", "49"),
        ("0.1+0.2", "3/10"),
        (".5*4", "2"),
        ("1/3+1/6", "1/2"),
        (" 7 ", "7"),
    ],
)
def test_the_value_is_exact(expression, value):
    assert exact_value(expression) == Fraction(value)


@pytest.mark.parametrize(
    "expression",
    ["", "x+1", "2**3", "7//2", "1<2", "(1+2", "f(2)", "True", "1j", "1e9", "0x10", "9e999999999"],
)
def test_anything_else_is_refused(expression):
    with pytest.raises(ValueError, match="not an expression of numbers"):
        exact_value(expression)


def test_a_long_expression_is_refused_before_it_is_parsed():
    assert exact_value("1" + "+1" * (LONGEST // 2 - 1)) == LONGEST // 2
    with pytest.raises(ValueError, match=f"at most {LONGEST}"):
        exact_value("1" + "+1" * LONGEST)


def test_a_division_by_zero_has_its_own_error():
    with pytest.raises(ZeroDivisionError):
        exact_value("1/(2-2)")


def test_operations_are_reported_inner_ones_first():
    heard = []
    exact_value("(1+2)*(3-5)", lambda *operation: heard.append(operation))
    assert heard == [(1, 2, "+", 3), (3, 5, "-", -2), (3, -2, "*", -6)]
