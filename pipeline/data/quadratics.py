"""Quadratic equations with integer coefficients, and worked solutions whose lines can be checked.

    Solve 2x^2+5x-3=0.            x = -3 or x = 1/2

    a=2, b=5, c=-3                the coefficients
    5*5=25                        the discriminant b*b - 4*a*c
    4*2*-3=-24
    25--24=49
    7*7=49                        its root; if it is negative, `-7<0` instead, and no more lines
    2*2=4                         the roots (-b -+ 7) / (2*a)
    -5-7=-12
    -12/4=-3
    -5+7=2
    2/4=1/2
    2*-3*-3+5*-3-3=0              each root in the equation
    2*1/2*1/2+5*1/2-3=0

The example is that of the paper's appendix E.
"""

import hashlib
import math
import random
import re
from fractions import Fraction

from pipeline.grading.exact_arithmetic import LONGEST, exact_value
from pipeline.records import Problem

Coefficients = tuple[int, int, int]

KINDS = {"integers": 4, "fractions": 4, "double": 1, "none": 1}  # shares of the kinds of roots
NO_ROOT = "no real solution"
TEST_SIZE, TRAIN_SIZE = 300, 20_000
SEED = 0
_TERMS = re.compile(r"(?P<a>-?\d*)x\^2(?P<b>[+-]\d*x)?(?P<c>[+-]\d+)?=0")


def quadratic_problems(split: str, limit: int | None = None) -> list[Problem]:
    """The problems of the suite `quadratics`; a train problem is never a test problem.

    Raises:
        ValueError: the split is neither train nor test.

    >>> len(quadratic_problems("test")), quadratic_problems("test", 1)[0].level in KINDS
    (300, True)
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} must be train or test; choose one of them")
    size = TEST_SIZE if split == "test" else limit or TRAIN_SIZE
    rng = random.Random(f"{split} {SEED}")
    found: list[Problem] = []
    seen: set[Coefficients] = set()
    kinds = [kind for kind, share in KINDS.items() for _ in range(share)]
    while len(found) < size:
        kind = kinds[len(found) % len(kinds)]
        coefficients = _draw(kind, rng)
        if in_test(coefficients) != (split == "test") or (split == "test" and coefficients in seen):
            continue
        seen.add(coefficients)
        found.append(make_problem(coefficients, level=kind, id=str(len(found)), split=split))
    rng.shuffle(found)
    return found[:limit]


def make_problem(
    coefficients: Coefficients, *, level: str = "", id: str = "", split: str = ""
) -> Problem:
    """The problem of a*x^2 + b*x + c = 0, with its worked solution.

    Raises:
        ValueError: a is 0, or the roots are irrational.

    >>> make_problem((2, 5, -3)).answer
    'x = -3 or x = 1/2'
    """
    roots = roots_of(coefficients)
    return Problem(
        question=f"Solve {equation(coefficients)}.",
        answer=" or ".join(f"x = {root}" for root in roots) or NO_ROOT,
        thought=worked_solution(coefficients),
        level=level,
        source=f"quadratics/{split}" if split else "quadratics",
        id=id,
    )


def roots_of(coefficients: Coefficients) -> list[Fraction]:
    """The real roots in rising order, one for a double root.

    Raises:
        ValueError: a is 0, or the roots are irrational.

    >>> roots_of((1, -4, 4)), roots_of((1, 0, 1))
    ([Fraction(2, 1)], [])
    """
    a, b, c = coefficients
    if a == 0:
        raise ValueError(f"a=0 makes {b}x+{c}=0 linear; give another a")
    discriminant = b * b - 4 * a * c
    if discriminant < 0:
        return []
    root = math.isqrt(discriminant)
    if root * root != discriminant:
        raise ValueError(
            f"{equation(coefficients)} has irrational roots, since {discriminant} is no square; "
            "give other coefficients"
        )
    return sorted({Fraction(-b - root, 2 * a), Fraction(-b + root, 2 * a)})


def equation(coefficients: Coefficients) -> str:
    """The equation as text, without terms that are 0.

    >>> equation((2, 5, -3)), equation((1, -1, 0)), equation((-1, 0, 4))
    ('2x^2+5x-3=0', 'x^2-x=0', '-x^2+4=0')
    """
    a, b, c = coefficients
    head = {1: "", -1: "-"}.get(a, str(a))
    middle = {0: "", 1: "+x", -1: "-x"}.get(b, f"{b:+d}x")
    return f"{head}x^2{middle}{f'{c:+d}' if c else ''}=0"


def coefficients_in(question: str) -> Coefficients | None:
    """The coefficients of the equation in a question; None without one.

    >>> coefficients_in("Solve 2x^2+5x-3=0."), coefficients_in("Solve -x^2-x=0.")
    ((2, 5, -3), (-1, -1, 0))
    """
    match = _TERMS.search(question.replace(" ", ""))
    if match is None:
        return None
    a, b = ((text or "").removesuffix("x") for text in (match["a"], match["b"]))
    unit = {"": 1, "+": 1, "-": -1}
    return (
        unit[a] if a in unit else int(a),
        0 if match["b"] is None else unit[b] if b in unit else int(b),
        int(match["c"] or 0),
    )


def worked_solution(coefficients: Coefficients) -> str:
    """The solution by the quadratic formula as in the module's docstring, one step a line."""
    a, b, c = coefficients
    roots = roots_of(coefficients)
    square, product = b * b, 4 * a * c
    discriminant = square - product
    lines = [f"a={a}, b={b}, c={c}", f"{b}*{b}={square}", f"4*{a}*{c}={product}"]
    lines.append(f"{square}-{product}={discriminant}")
    if not roots:
        return "\n".join([*lines, f"{discriminant}<0"])
    root, below = math.isqrt(discriminant), 2 * a
    lines += [f"{root}*{root}={discriminant}", f"2*{a}={below}"]
    for sign in ("-", "+") if root else ("+",):
        above = -b + (root if sign == "+" else -root)
        lines += [f"{-b}{sign}{root}={above}", f"{above}/{below}={Fraction(above, below)}"]
    middle, last = (f"{b:+d}*{{r}}" if b else ""), (f"{c:+d}" if c else "")
    lines += [f"{a}*{r}*{r}{middle.format(r=r)}{last}=0" for r in roots]
    return "\n".join(lines)


def check_quadratic_thought(question: str, thought: str) -> list[bool]:
    """Whether each line of a thought is correct.

    `a=2, b=5, c=-3` must have the coefficients of the question; any other line must be an equation
    or an inequality of numbers that holds exactly.

    >>> check_quadratic_thought("Solve x^2-4=0.", "a=1, b=0, c=-4\\n0*0=0\\n4*1*-4=16\\nso")
    [True, True, False, False]
    """
    return [_line_holds(line, coefficients_in(question)) for line in thought.splitlines()]


def in_test(coefficients: Coefficients) -> bool:
    """Whether an equation belongs to the test split: one in ten does."""
    digest = hashlib.sha256(str(coefficients).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 10 == 0


def _draw(kind: str, rng: random.Random) -> Coefficients:
    """Coefficients whose roots are of a kind of KINDS."""
    if kind == "none":
        while True:
            a, b, c = rng.randint(1, 9), rng.randint(-9, 9), rng.randint(1, 12)
            if b * b < 4 * a * c:
                return a, b, c
    p, r = rng.randint(-20, 20), rng.randint(-20, 20)
    q, s = rng.choice((1, 1, 1, 2, 3)), 1
    p *= q  # integer roots p / q and r, with a leading coefficient q
    if kind == "fractions":
        q, s = rng.choice((2, 3, 4, 5)), rng.choice((1, 1, 2, 3))
        p = rng.choice([k for k in range(-9, 10) if math.gcd(k, q) == 1])
    if kind == "double":
        q = s = rng.choice((1, 1, 2, 3))
        p = r = rng.randint(-60, 60)
    elif Fraction(p, q) == Fraction(r, s):
        return _draw(kind, rng)
    return q * s, -(q * r + s * p), p * r


def _line_holds(line: str, coefficients: Coefficients | None) -> bool:
    named = re.fullmatch(r"a=(-?\d{1,9}), b=(-?\d{1,9}), c=(-?\d{1,9})", line.strip())
    if named:
        return coefficients == tuple(map(int, named.groups()))
    parts = re.fullmatch(r"([-+*/()\d\s]+)(=|<)([-+*/()\d\s]+)", line.strip())
    if parts is None or len(line) > LONGEST:
        return False
    try:
        left, right = (exact_value(parts[i]) for i in (1, 3))
    except (ValueError, ZeroDivisionError):
        return False
    return left == right if parts[2] == "=" else left < right
