r"""Formulas in normal form: sums of rational multiples of products of powers.

A formula is a dict {monomial: coefficient}, a monomial a frozenset of (atom, exponent) pairs with
rational exponents. Atoms are tuples:

    ("symbol", name)      ("number", p)           a prime under a root
    ("sum", formula)      a sum under a root or in a denominator
    ("power", base, exponent)                     an exponent that is not a number
    ("call", name, argument, ...)                 \sin x, \log_2 3, n!, \lfloor x\rfloor

Two formulas of one normal form are equal; what has two normal forms may still be equal.
"""

import math
from fractions import Fraction

Atom = tuple
Formula = dict[frozenset, Fraction]
Key = frozenset  # a formula that can be a part of an atom

MAX_TERMS = 200
MAX_BITS = 2048
MAX_EXPANDED = 16  # the largest power of a sum that is multiplied out
MAX_PRIME = 1000


class TooLargeError(ValueError):
    """A formula whose normal form would have too many terms, or whose value too many digits."""


def number(value: Fraction | int) -> Formula:
    """The formula of a rational number; that of 0 is empty."""
    return {frozenset(): Fraction(value)} if value else {}


def atom(*parts: object, exponent: Fraction | int = 1) -> Formula:
    """The formula of one atom, raised to an exponent."""
    return {frozenset({(parts, Fraction(exponent))}): Fraction(1)}


def key(formula: Formula) -> Key:
    """The hashable form of a formula."""
    return frozenset(formula.items())


def constant(formula: Formula) -> Fraction | None:
    """The value of a formula that is a rational number, else None."""
    if not formula:
        return Fraction(0)
    return formula.get(frozenset()) if len(formula) == 1 else None


def add(a: Formula, b: Formula) -> Formula:
    """a + b."""
    total = dict(a)
    for monomial, coefficient in b.items():
        value = total.get(monomial, 0) + coefficient
        if value:
            total[monomial] = value
        else:
            del total[monomial]
    return _bounded(total)


def scale(a: Formula, factor: Fraction | int) -> Formula:
    """a times a rational number."""
    return {m: c * factor for m, c in a.items()} if factor else {}


def multiply(a: Formula, b: Formula) -> Formula:
    """a times b, multiplied out; raises TooLargeError beyond MAX_TERMS or MAX_BITS."""
    if len(a) * len(b) > 2 * MAX_TERMS:
        raise TooLargeError("product")
    total: Formula = {}
    for one, c in a.items():
        for other, d in b.items():
            for monomial, factor in _product(one, other).items():
                total[monomial] = total.get(monomial, 0) + c * d * factor
    return _bounded({m: c for m, c in total.items() if c})


def power(base: Formula, exponent: Formula) -> Formula:
    """base ** exponent; an atom of its own where no rule applies."""
    e = constant(exponent)
    if e is None:
        value = constant(base)
        if value == 1:
            return base
        return atom("power", key(base), key(exponent))
    if not base:
        if e <= 0:
            raise TooLargeError("zero to the power of zero or less")
        return base
    if e == 1 or e == 0:
        return base if e else number(1)
    if len(base) == 1:
        ((monomial, coefficient),) = base.items()
        return multiply(_rational_power(coefficient, e), _monomial_power(monomial, e))
    if e.denominator == 1 and 0 < e <= MAX_EXPANDED:
        result = base
        for _ in range(int(e) - 1):
            result = multiply(result, base)
        return result
    content, primitive = _primitive(base, signed=e.denominator == 1)
    return multiply(_rational_power(content, e), atom("sum", key(primitive), exponent=e))


def multiple(a: Formula, b: Formula) -> Fraction | None:
    """c where a = c b for a rational number c other than 0, else None."""
    if not a or a.keys() != b.keys():
        return None
    monomial = next(iter(a))
    factor = a[monomial] / b[monomial]
    return factor if all(c == factor * b[m] for m, c in a.items()) else None


def sign_of(formula: Formula) -> int:
    """1 or -1, such that formula and -formula have different signs: of the first term."""
    return 1 if formula[min(formula, key=_order)] > 0 else -1


def terms(formula: Key) -> list[tuple[frozenset, Fraction]]:
    """The terms in an order that depends on their content only."""
    return sorted(formula, key=lambda term: _order(term[0]))


def _bounded(formula: Formula) -> Formula:
    if len(formula) > MAX_TERMS:
        raise TooLargeError("terms")
    if any(c.numerator.bit_length() + c.denominator.bit_length() > 2 * MAX_BITS
           for c in formula.values()):  # fmt: skip
        raise TooLargeError("digits")
    return formula


def _order(monomial: frozenset) -> str:
    return str(sorted(map(_stable, monomial)))


def _stable(part: object) -> str:
    """A text that depends on content only: the order in a set varies from run to run."""
    if isinstance(part, frozenset):
        return f"{{{','.join(sorted(map(_stable, part)))}}}"
    if isinstance(part, tuple):
        return f"({','.join(map(_stable, part))})"
    return str(part)


def _product(one: frozenset, other: frozenset) -> Formula:
    exponents: dict[Atom, Fraction] = dict(one)
    for name, e in other:
        exponents[name] = exponents.get(name, 0) + e
    coefficient = Fraction(1)
    for name, e in list(exponents.items()):
        if not e:
            del exponents[name]
        elif name[0] == "number" and abs(e) * name[1].bit_length() <= MAX_BITS:
            whole = math.floor(e)
            coefficient *= Fraction(name[1]) ** whole
            exponents[name] = e - whole
            if not exponents[name]:
                del exponents[name]
    return {frozenset(exponents.items()): coefficient}


def _monomial_power(monomial: frozenset, e: Fraction) -> Formula:
    if e.denominator == 1 or all(name[0] == "number" for name, _ in monomial):
        return _product(frozenset((name, x * e) for name, x in monomial), frozenset())
    if len(monomial) == 1 and next(iter(monomial))[1] == 1:
        return {frozenset((name, e) for name, _ in monomial): Fraction(1)}
    # The root of x^2 is not x.
    return atom("sum", frozenset({(monomial, Fraction(1))}), exponent=e)


def _rational_power(value: Fraction, e: Fraction) -> Formula:
    if value == 1:
        return number(1)
    bits = value.numerator.bit_length() + value.denominator.bit_length()
    if e.denominator == 1 and bits * abs(e) <= MAX_BITS:
        return number(value ** int(e))
    result = number(1)
    if value < 0:
        if e.denominator == 1:
            result = number(-1 if e % 2 else 1)
        elif e == Fraction(1, 2):
            result = atom("symbol", "i")
        else:
            return atom("sum", key(number(value)), exponent=e)
    for whole, sign in ((abs(value.numerator), 1), (value.denominator, -1)):
        for prime, times in _factors(whole):
            factor = frozenset({(("number", prime), Fraction(times * sign * e))})
            result = multiply(result, _product(factor, frozenset()))
    return result


def _factors(whole: int) -> list[tuple[int, int]]:
    """Primes below MAX_PRIME with their exponents, and what is left."""
    found, prime = [], 2
    while prime * prime <= whole and prime < MAX_PRIME:
        times = 0
        while whole % prime == 0:
            whole //= prime
            times += 1
        if times:
            found.append((prime, times))
        prime += 1
    if whole > 1:
        root = math.isqrt(whole)
        found.append((root, 2) if root * root == whole else (whole, 1))
    return found


def _primitive(formula: Formula, *, signed: bool) -> tuple[Fraction, Formula]:
    """(c, formula / c) with whole coefficients without a common factor."""
    top = math.gcd(*(c.numerator for c in formula.values()))
    content = Fraction(top, math.lcm(*(c.denominator for c in formula.values())))
    if signed:
        content *= sign_of(formula)
    return content, {m: c / content for m, c in formula.items()}
