"""Evaluate a formula in normal form at a point."""

import cmath
import math
import zlib
from collections.abc import Callable

from pipeline.grading.polynomials import Atom, Formula, Key, key


def value(formula: Formula, seed: int) -> complex | None:
    """The value with numbers in place of the symbols, which depend on names and the seed only;
    None where it has none or is too large."""
    try:
        return _value(key(formula), seed)
    except (ArithmeticError, ValueError, RecursionError):
        return None


def _value(formula: Key, seed: int) -> complex:
    total = 0j
    for monomial, coefficient in formula:
        term = complex(coefficient)
        for name, e in monomial:
            term *= _atom_value(name, seed) ** float(e)
        total += term
    if not cmath.isfinite(total):
        raise OverflowError
    return total


def _atom_value(name: Atom, seed: int) -> complex:
    kind = name[0]
    if kind == "symbol":
        if name[1] in _CONSTANTS:
            return _CONSTANTS[name[1]]
        return complex(0.35 + zlib.crc32(f"{seed}{name[1]}".encode()) / 2**32)
    if kind == "number":
        return complex(name[1])
    if kind == "sum":
        return _value(name[1], seed)
    if kind == "power":
        return _value(name[1], seed) ** _value(name[2], seed)
    return _CALLS[name[1]](*(_value(argument, seed) for argument in name[2:]))


def _real(z: complex) -> float:
    if abs(z.imag) > 1e-9:
        raise ValueError("not real")
    return z.real


_CONSTANTS = {"pi": complex(math.pi), "e": complex(math.e), "i": 1j}
_CALLS: dict[str, Callable[..., complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan,
    "cot": lambda z: 1 / cmath.tan(z), "sec": lambda z: 1 / cmath.cos(z),
    "csc": lambda z: 1 / cmath.sin(z), "arcsin": cmath.asin, "arccos": cmath.acos,
    "arctan": cmath.atan, "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh,
    "ln": cmath.log, "log": lambda z, base: cmath.log(z) / cmath.log(base),
    "abs": lambda z: complex(abs(z)),
    "floor": lambda z: complex(math.floor(_real(z))),
    "ceil": lambda z: complex(math.ceil(_real(z))),
    "factorial": lambda z: complex(math.gamma(_real(z) + 1)),
    "binom": lambda n, k: complex(
        math.gamma(_real(n) + 1) / math.gamma(_real(k) + 1) / math.gamma(_real(n - k) + 1)
    ),
    # Any function: unequal arguments have unequal values.
    "f": lambda z: cmath.sin(1.7 * z + 0.3) + 2, "g": lambda z: cmath.sin(2.3 * z + 0.7) + 3,
}  # fmt: skip
