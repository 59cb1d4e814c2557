"""Comparison of two formulas by math-verify; loaded by `worker_process.py`."""

from collections.abc import Callable
from functools import partial

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from math_verify import verify

DIGITS = 30
TOLERANCE = sympy.Float("1e-20")

# math-verify's own clean-up drops what looks like a unit (\frac{a}{b}c becomes a/b) and the case of
# letters. The texts arrive in plain form, so none of it is needed.
CONVERSION = ConversionConfig(lowercase_symbols=False)


def prepare() -> None:
    """Compare once before the fork: sympy imports half of itself at its first comparison."""
    equal("x^2+2x+1", "(x+1)^2")
    equal("x^2=y", "2x^2=2y")
    equal(r"\sin(2x)", r"2\sin x\cos x")


def comparison(first: str, second: str) -> Callable[[], bool]:
    """The call that compares two formulas."""
    return partial(equal, first, second)


def equal(first: str, second: str) -> bool:
    """Whether math-verify finds two LaTeX expressions equal and their values agree to 20 digits.

    math-verify alone rounds to six decimals, where 2^{-98} equals 2^{-99} and 1.414214 a root.
    """
    a, b = (latex2sympy(t, normalization_config=None, conversion_config=CONVERSION)
            for t in (first, second))  # fmt: skip
    # The values first: they settle most differences in a tenth of the time.
    return _values_agree(a, b) and bool(verify(a, b, timeout_seconds=None))


def _values_agree(a: sympy.Basic, b: sympy.Basic) -> bool:
    """Whether a and b agree to 20 digits with numbers in place of their symbols.

    Of an equation the difference of its sides is taken; one may be a multiple of the other's.
    Intervals and inequalities have no value; there math-verify alone decides.
    """
    if isinstance(a, sympy.Eq) and isinstance(b, sympy.Eq):
        one, two = (_value(a, at) / _value(b, at) for at in (0, 1))
        return bool(abs(one - two) <= TOLERANCE * abs(two))
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        one, two = _value(a), _value(b)
        return bool(a == b or abs(one - two) <= TOLERANCE * abs(two))
    return not isinstance(a, sympy.Eq | sympy.Expr) and not isinstance(b, sympy.Eq | sympy.Expr)


def _value(expression: sympy.Basic, at: int = 0) -> sympy.Expr:
    """The value at a point that depends only on `at` and on the names of the symbols."""
    if isinstance(expression, sympy.Eq):
        expression = expression.lhs - expression.rhs
    point = {
        s: sympy.Rational(sum(str(s).encode()) * 997 + 313 * at, 7919 + 104729 * at)
        for s in expression.free_symbols
    }
    # A decimal is exact here: 0.4 pi is 2 pi / 5.
    exact = {f: sympy.Rational(str(f)) for f in expression.atoms(sympy.Float)}
    return expression.xreplace(exact).subs(point).evalf(DIGITS)
