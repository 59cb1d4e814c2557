"""Generated arithmetic problems with worked solutions: the task that nano learns.

Three kinds. Every thought has one checkable equation a line, `12+7=19`. A share of the thoughts is
decomposed into smaller steps (`pipeline.data.decomposed`):

    wording     the four one-step wordings of o1-nano, on two-digit numbers
    expression  two or three operations, fully bracketed
    story1..8   word problems in plain English of one to eight steps

Further kinds are in no suite; they are training data:

    product     the wording of a product alone
    quotient    the wording of a quotient, half of them with a larger dividend: there are only a few
                hundred exact quotients of two-digit numbers, which a model would memorise
    practice    PRACTICE equations of one operation, of which only the results are trained
    scenario1..3  word problems about money, time, groups and prices, of one to three steps

Train and test are disjoint by construction: a hash of the chain of operations with its numbers
assigns a problem to one split, so no question and no chain of one split occurs in the other.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from pipeline.data.decomposed import Chain, decompose
from pipeline.data.scenarios import scenario
from pipeline.data.word_problems import word_problem
from pipeline.records import Problem

DRILLS = ("product", "quotient", "practice")
SCENARIOS = ("scenario1", "scenario2", "scenario3")
PRACTICE = 8  # equations of one thought
KINDS = ("wording", "expression", *(f"story{steps}" for steps in range(1, 9)), *DRILLS, *SCENARIOS)
NANO = ("wording", "expression", "story1", "story2", "story3", "story4")
NANO_HARD = ("story5", "story6", "story7", "story8")

# The kinds of a suite, in equal shares, and the size of its test split.
SUITES = {
    "nano": (NANO, 600),
    "nano_hard": (NANO_HARD, 500),
    "nano5": (("story5",), 600),
    "o1nano": (("wording",), 400),
}
TRAIN_SIZE = 20_000
LARGEST = 200  # result in an expression
SUITE_SEED = 0

Generator = Callable[[random.Random], tuple[str, Chain]]


def make_arithmetic_problems(
    shares: dict[str, float],
    *,
    size: int,
    seed: int,
    split: str = "train",
    decomposed_share: float = 0.0,
) -> list[Problem]:
    """`size` problems of one split in random order, the kinds in the given shares.

    Test problems are distinct; training repeats the few exact quotients. A thought is decomposed
    with probability `decomposed_share`, on which the questions do not depend.

    Raises:
        ValueError: an unknown kind or split, or a share below 0.

    >>> [p.thought for p in make_arithmetic_problems({"wording": 1}, size=2, seed=4)]
    ['85-11=74', '65/13=5']
    """
    for kind, share in shares.items():
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
        if share < 0:
            raise ValueError(f"share={share} of kind {kind!r} must be at least 0")
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} must be train or test; choose one of them")
    rng = random.Random(f"{seed}/{split}")
    problems: list[Problem] = []
    seen: set[str] = set()
    for kind, count in _counts(shares, size).items():
        problems += _draw_problems(kind, count, split, rng, seen)
    rng.shuffle(problems)
    style = random.Random(f"{seed}/{split}/style")
    return [_decomposed_thought(p) if style.random() < decomposed_share else p for p in problems]


def suite_problems(name: str, split: str, limit: int | None = None) -> list[Problem]:
    """The problems of one suite, the same on every call; `limit` takes the first of them.

    >>> len(suite_problems("nano", "test")), len(suite_problems("nano_hard", "test", limit=7))
    (600, 7)
    """
    size = (limit or TRAIN_SIZE) if split == "train" else SUITES[name][1]
    return list(_suite_problems(name, split, size)[:limit])


# Every training compares its problems with those of all suites, which takes a second to make them.
@lru_cache(maxsize=8)
def _suite_problems(name: str, split: str, size: int) -> tuple[Problem, ...]:
    shares = dict.fromkeys(SUITES[name][0], 1.0)
    return tuple(make_arithmetic_problems(shares, size=size, seed=SUITE_SEED, split=split))


def in_test(chain: Chain) -> bool:
    """Whether a chain of operations belongs to the test split.

    One in ten does; one in three of the few hundred exact quotients of two-digit numbers.
    """
    text = ";".join(chain)
    rare = len(chain) == 1 and "/" in text
    digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return digest % 30 < (10 if rare else 3)


def _counts(shares: dict[str, float], size: int) -> dict[str, int]:
    """{kind: number of problems}, in the given shares; they add up to `size`."""
    total, counts, taken, upto = sum(shares.values()), {}, 0, 0.0
    if total <= 0:
        raise ValueError(f"shares={shares} must have at least one above 0")
    for kind, share in shares.items():
        upto += share
        counts[kind] = round(size * upto / total) - taken
        taken += counts[kind]
    return counts


def _draw_problems(
    kind: str, count: int, split: str, rng: random.Random, seen: set[str]
) -> list[Problem]:
    generate = _generator_of(kind)
    problems: list[Problem] = []
    tries = 0
    while len(problems) < count:
        tries += 1
        if tries > 50 * count + 10_000:
            raise ValueError(
                f"found only {len(problems)} distinct {split} problems of kind {kind!r}, wanted "
                f"{count}; give a smaller size"
            )
        question, chain = generate(rng)
        if in_test(chain) is not (split == "test"):
            continue
        # Training may repeat a question: there are only a few hundred exact quotients.
        if split == "test" and question in seen:
            continue
        seen.add(question)
        problem = _problem(kind, question, chain, split)
        problems.append(_results_only(problem) if kind == "practice" else problem)
    return problems


def _generator_of(kind: str) -> Generator:
    if kind == "wording":
        return _wording
    if kind == "expression":
        return _expression
    if kind == "product":
        return lambda rng: _one_operation(rng.randint(10, 99), "*", rng.randint(10, 99))
    if kind == "quotient":
        return _quotient_drill
    if kind == "practice":
        return _practice
    if kind in SCENARIOS:
        return lambda rng: scenario(rng, int(kind.removeprefix("scenario")))
    return lambda rng: word_problem(rng, int(kind.removeprefix("story")))


def _problem(kind: str, question: str, chain: Chain, split: str) -> Problem:
    return Problem(
        question=question,
        answer=chain[-1].split("=")[1],
        thought="\n".join(chain),
        level=kind,
        source=f"nano/{split}",
        id=hashlib.sha256(question.encode()).hexdigest()[:12],
    )


def _results_only(problem: Problem) -> Problem:
    """The problem with the loss of its thought on the results alone: the operands are random."""
    spans, start = [], 0
    for line in problem.thought.split("\n"):
        spans.append((start, start + line.index("=") + 1))
        start += len(line) + 1
    return replace(problem, untrained_spans=tuple(spans))


def _decomposed_thought(problem: Problem) -> Problem:
    if problem.untrained_spans:
        return problem
    chain = tuple(problem.thought.split("\n"))
    return replace(problem, thought="\n".join(decompose(chain)))


def _wording(rng: random.Random) -> tuple[str, Chain]:
    operator = rng.choice("+-*/")
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    if operator == "-":
        a, b = max(a, b), min(a, b)
    if operator == "/":
        b = rng.choice([d for d in range(2, a + 1) if a % d == 0])
    return _one_operation(a, operator, b)


def _quotient_drill(rng: random.Random) -> tuple[str, Chain]:
    """A quotient with a one-digit or a two-digit divisor, equally often.

    In half of them the quotient is larger by a multiple of ten, with a dividend below 1,000.
    Decomposed, these end in the division of a two-digit number: each list of multiples follows so
    many dividends that a model learns where it ends, also for held-out questions, instead of
    memorising pairs. With ten alone, the lists up to 12*7 and 12*8 would be in no training row:
    84/12, 96/12, 204/12 and 216/12 are test problems.
    """
    b = rng.randint(2, 9) if rng.random() < 1 / 2 else rng.randint(10, 49)
    quotient = rng.randint(2, 99 // b)
    if rng.random() < 0.5:
        return _one_operation(b * quotient, "/", b)
    if b > 9:
        larger = quotient + 10 * rng.randint(1, (999 // b - quotient) // 10)
        return _one_operation(b * larger, "/", b)
    return _one_operation(b * (quotient % 10 + 10 * rng.randint(1, 9)), "/", b)


def _practice(rng: random.Random) -> tuple[str, Chain]:
    """PRACTICE equations that share nothing; subtractions and quotients, the harder ones, more."""
    chain = tuple(_practice_equation(rng) for _ in range(PRACTICE))
    return f"Write {PRACTICE} equations, the last one with {chain[-1].split('=')[0]}", chain


def _practice_equation(rng: random.Random) -> str:
    """One equation with numbers as word problems have them, at most 198."""
    operator = rng.choices("+-*/", weights=(2, 5, 3, 4))[0]
    if operator in "+-":
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        return f"{a}+{b}={a + b}" if operator == "+" else f"{max(a, b)}-{min(a, b)}={abs(a - b)}"
    a, b = rng.randint(2, 12), rng.randint(2, 15)
    if operator == "/":
        return f"{a * b}/{a}={b}"
    return f"{a}*{b}={a * b}" if rng.random() < 0.5 else f"{b}*{a}={a * b}"


def _one_operation(a: int, operator: str, b: int) -> tuple[str, Chain]:
    """(question, chain) of one operation, in the wording of o1-nano.

    >>> _one_operation(84, "/", 28)
    ('Calculate the quotient of 84 and 28', ('84/28=3',))
    """
    names = {"+": "sum of", "-": "difference between", "*": "product of", "/": "quotient of"}
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
    return f"Calculate the {names[operator]} {a} and {b}", (f"{a}{operator}{b}={value}",)


def _expression(rng: random.Random) -> tuple[str, Chain]:
    while True:
        text, value, chain = _tree(rng, rng.randint(2, 3))
        if 0 <= value <= LARGEST:
            return f"Compute {text.removeprefix('(').removesuffix(')')}", chain


def _tree(rng: random.Random, operations: int) -> tuple[str, int, Chain]:
    """(text, value, chain) of a random bracketed expression with that many operations."""
    if operations == 0:
        number = rng.randint(2, 20)
        return str(number), number, ()
    while True:
        left = rng.randint(0, operations - 1)
        a_text, a, a_steps = _tree(rng, left)
        b_text, b, b_steps = _tree(rng, operations - 1 - left)
        operator = rng.choice("+-*/")
        value = _apply(operator, a, b)
        if value is not None:
            step = f"{a}{operator}{b}={value}"
            return f"({a_text}{operator}{b_text})", value, (*a_steps, *b_steps, step)


def _apply(operator: str, a: int, b: int) -> int | None:
    """The value of `a operator b` as a whole number from 0 to LARGEST, None where it is too hard.

    Products need a factor of one digit and one of at most 30, quotients a divisor of one digit.
    """
    if operator == "+":
        value = a + b
    elif operator == "-":
        value = a - b
    elif operator == "*":
        value = a * b if min(a, b) <= 9 and max(a, b) <= 30 else -1
    else:
        value = a // b if 2 <= b <= 9 and a % b == 0 else -1
    return value if 0 <= value <= LARGEST else None
