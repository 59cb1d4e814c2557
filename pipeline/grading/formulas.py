r"""Whether two formulas are equal, mostly without a computer algebra system.

A formula in plain form is parsed (`formula_parser`) into a normal form (`polynomials`). Formulas of
one normal form are equal; those whose values differ at two points are not. Only the rest goes to
math-verify, in letters and commands that it reads in one way. What cannot be parsed goes there
unchanged.
"""

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache

from pipeline.grading import polynomials
from pipeline.grading.formula_parser import MAX_CHARACTERS, Statement, read
from pipeline.grading.formula_tokens import FUNCTIONS, UnreadableError
from pipeline.grading.formula_values import value
from pipeline.grading.polynomials import Key, TooLargeError

TOLERANCE = 1e-8

Comparison = Callable[[str, str], bool]


def formulas_agree(given: str, expected: str, math_verify: Comparison) -> bool:
    r"""Whether two formulas in plain form are equal; `math_verify` decides what is left open.

    >>> never = lambda given, expected: False
    >>> formulas_agree(r"x^{\frac{n}{2}}", "x^{n/2}", never), formulas_agree("mgh", "m g h", never)
    (True, True)
    >>> formulas_agree("2y=x", "y=x/2", never), formulas_agree(r"\ln 2", r"\log_2 3", never)
    (True, False)
    """
    ours, theirs = read(given), read(expected)
    if ours is None or theirs is None:
        return math_verify(given, expected)
    if ours.sign != theirs.sign or _symbols(ours) != _symbols(theirs):
        return False
    if None not in (_letters(given), _letters(expected)):  # perhaps a word, where the order matters
        return _letters(given) == _letters(expected)
    try:
        same = _same(ours, theirs)
    except TooLargeError:
        return math_verify(given, expected)
    if same is not None:
        return same
    shown = _for_math_verify(ours, theirs)
    return shown is not None and math_verify(*shown)


def _same(ours: Statement, theirs: Statement) -> bool | None:
    """Whether the normal forms are equal (for relations: up to a factor); None if undecided."""
    a, b = ours.difference(), theirs.difference()
    if a == b:
        return True
    if ours.sign:
        factor = polynomials.multiple(a, b)
        if factor is not None:
            return factor > 0 or ours.sign in ("=", r"\ne")
    a1, b1, a2, b2 = (value(f, seed) for seed in (1, 2) for f in (a, b))
    if a1 is None or b1 is None or a2 is None or b2 is None:
        return None
    if ours.sign:  # a and b may differ by a factor that is the same everywhere
        is_close = abs(a1 * b2 - a2 * b1) <= TOLERANCE * (abs(a1 * b2) + abs(a2 * b1))
    else:
        is_close = all(abs(x - y) <= TOLERANCE * (abs(x) + abs(y)) for x, y in ((a1, b1), (a2, b2)))
    return None if is_close else False


def _letters(text: str) -> str | None:
    """A text of single letters without its spaces; None for anything else."""
    return text.replace(" ", "") if re.fullmatch(r"[A-Za-z](?: ?[A-Za-z])*", text) else None


def _symbols(statement: Statement) -> frozenset[str]:
    return frozenset().union(*map(_names, statement.sides))


@lru_cache(4096)
def _names(part: object) -> frozenset[str]:
    """The symbols in a formula, a monomial or an atom."""
    if isinstance(part, tuple) and part and part[0] == "symbol":
        return frozenset((part[1],))
    if isinstance(part, tuple | frozenset):
        return frozenset().union(*map(_names, part))
    return frozenset()


_LETTERS_OF_MATH_VERIFY = """
    pi alpha beta gamma delta theta lambda mu phi omega
"""
_MATH_VERIFY_READS = frozenset(_LETTERS_OF_MATH_VERIFY.split())
_LETTERS = "xyzabcuvwpqrstkmnhjlXYZUVWRTPKMGHFABD"


def _for_math_verify(ours: Statement, theirs: Statement) -> tuple[str, str] | None:
    """Both in the commands and letters that math-verify is given; None for a long one.

    Calls that it does not know become a letter, the same one for the same argument.
    """
    used = _symbols(ours) | _symbols(theirs)
    free = iter([letter for letter in _LETTERS if letter not in used])
    names: dict[object, str] = {}
    try:
        shown = _statement_text(ours, names, free), _statement_text(theirs, names, free)
    except (StopIteration, UnreadableError):
        return None
    return shown if max(map(len, shown)) <= MAX_CHARACTERS else None


def _statement_text(statement: Statement, names: dict, free: Iterator[str]) -> str:
    return f" {statement.sign} ".join(_text(side, names, free) for side in statement.sides)


def _text(formula: Key, names: dict, free: Iterator[str]) -> str:
    terms = []
    for monomial, coefficient in polynomials.terms(formula):
        factors = [_power_text(name, e, names, free) for name, e in monomial]
        top, over = abs(coefficient.numerator), coefficient.denominator
        if over != 1:
            factors.insert(0, rf"\frac{{{top}}}{{{over}}}")
        elif top != 1 or not factors:
            factors.insert(0, str(top))
        terms.append(("-" if coefficient < 0 else "+") + r" \cdot ".join(factors))
    return "".join(terms).removeprefix("+") or "0"


def _power_text(name: tuple, e: Fraction, names: dict, free: Iterator[str]) -> str:
    base = _atom_text(name, names, free)
    if e == 1:
        return base
    if e == Fraction(1, 2):
        return rf"\sqrt{{{base}}}"
    is_closed = len(base) == 1 or name[0] == "sum"  # already in parentheses
    return f"{base}^{{{e}}}" if is_closed else f"({base})^{{{e}}}"


def _atom_text(name: tuple, names: dict, free: Iterator[str]) -> str:
    kind = name[0]
    if kind == "number":
        return str(name[1])
    if kind == "sum":
        return f"({_text(name[1], names, free)})"
    if kind == "symbol" and len(name[1]) == 1 and name[1].isalpha():
        return name[1]
    if kind == "symbol" and name[1] in _MATH_VERIFY_READS:
        return rf"\{name[1]}"
    if kind == "power":
        exponent = _text(name[2], names, free)
        if re.search(r"[{^]", exponent):
            raise UnreadableError("an exponent with a power in it")
        return f"({_text(name[1], names, free)})^{{{exponent}}}"
    if kind == "call" and name[1] in FUNCTIONS - {"log", "sinh", "cosh", "tanh"}:
        return rf"\{name[1]}({_text(name[2], names, free)})"
    if name not in names:
        names[name] = next(free)
    return names[name]
