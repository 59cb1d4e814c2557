"""Decompose each step of a worked solution into digit-wise steps.

    as it is      47*36=1692
    decomposed    40*30=1200, 40*6=240, 1200+240=1440, 7*30=210, 1440+210=1650, 7*6=42, 1650+42=1692

SFT on a mixture of both teaches both styles. PPO then raises the probability of the style that more
often ends in a correct answer.
"""

from itertools import chain as joined

Chain = tuple[str, ...]  # steps in order, each "a op b=c"


def decompose(chain: Chain) -> Chain:
    """The chain with every step replaced by smaller steps that end in the same result.

    >>> decompose(("54-17=37", "37*2=74"))
    ('54-10=44', '44-7=37', '30*2=60', '7*2=14', '60+14=74')
    """
    return tuple(part for step in chain for part in _decompose_step(step))


def _decompose_step(step: str) -> Chain:
    operator = next(c for c in step if c in "+-*/")
    a, b = map(int, step.split("=")[0].split(operator))
    if operator in "+-":
        return _by_place(a, operator, b)
    return _product(a, b) if operator == "*" else _quotient(a, b)


def _by_place(a: int, operator: str, b: int) -> Chain:
    """Steps that add or subtract `b` place by place; a sum without carries is one step.

    >>> _by_place(47, "+", 36), _by_place(47, "+", 32), _by_place(54, "-", 12)
    (('47+30=77', '77+6=83'), ('47+32=79',), ('54-10=44', '44-2=42'))
    >>> _by_place(66, "-", 61)
    ('66-60=6', '6-1=5')
    """
    first, *rest = _places(b)
    if not rest or (operator == "+" and _digit_by_digit(a, operator, b)):
        return (_step(a, operator, b),)
    between = a + first if operator == "+" else a - first
    return (_step(a, operator, first), *_by_place(between, operator, sum(rest)))


def _digit_by_digit(a: int, operator: str, b: int) -> bool:
    """Whether no column carries (+), or borrows or cancels to 0 (-)."""
    digits = [(int(x), int(y)) for x, y in zip(reversed(str(a)), reversed(str(b)), strict=False)]
    if operator == "+":
        return all(x + y <= 9 for x, y in digits)
    return all(x > y for x, y in digits)


def _product(a: int, b: int) -> Chain:
    """Partial products place by place, each added to the sum as soon as it is computed."""
    steps, total = [], 0
    for x, y in [(x, y) for x in _places(a) for y in _places(b)]:
        steps.append(_step(x, "*", y))
        steps += _by_place(total, "+", x * y) if total else ()
        total += x * y
    return tuple(steps)


def _quotient(a: int, b: int) -> Chain:
    """Steps of an exact quotient, long division with a times table up to 9 * 9.

    First ten times the divisor, which shows whether the quotient has tens; their product is
    subtracted. A divisor of two digits is then multiplied by 1, 2, 3, ... and each product is
    subtracted from the rest, until the difference is 0. Without the differences a model memorises
    where lists of multiples ended in training, and misses the ends of held-out questions.

    >>> _quotient(64, 4)
    ('4*10=40', '64-40=24', '24/4=6', '10+6=16')
    >>> _quotient(63, 7), _quotient(90, 3)
    (('7*10=70', '63/7=9'), ('3*10=30', '3*30=90', '90-90=0', '90/3=30'))
    >>> _quotient(84, 42)
    ('42*1=42', '84-42=42', '42*2=84', '84-84=0', '84/42=2')
    """
    tens, ones = a // b // 10 * 10, a // b % 10
    rest, in_table = a - b * tens, b < 10
    steps = [_step(b, "*", 10)] if in_table else []
    if tens and _step(b, "*", tens) not in steps:
        steps.append(_step(b, "*", tens))
    if tens:
        steps.append(_step(a, "-", b * tens))
    if not in_table:
        tried = [(_step(b, "*", k), *_subtract(rest, b * k)) for k in range(1, ones + 1)]
        steps += joined.from_iterable(tried)
    if tens and ones:
        return (*steps, _step(rest, "/", b), _step(tens, "+", ones))
    return (*steps, _step(a, "/", b))


def _subtract(a: int, b: int) -> Chain:
    """`a - b` in one step where no column borrows or cancels to 0, otherwise place by place."""
    in_one_step = a == b or _digit_by_digit(a, "-", b)
    return (_step(a, "-", b),) if in_one_step else _by_place(a, "-", b)


def _places(number: int) -> list[int]:
    """346 as 300, 40 and 6."""
    digits = str(number)
    places = [int(d) * 10 ** (len(digits) - 1 - i) for i, d in enumerate(digits)]
    return [place for place in places if place] or [0]


def _step(a: int, operator: str, b: int) -> str:
    results = {"+": a + b, "-": a - b, "*": a * b}
    return f"{a}{operator}{b}={results.get(operator, a // b if b else 0)}"
