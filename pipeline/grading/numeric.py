"""Read literal numbers: whole numbers, decimals, fractions, percentages."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from pipeline.grading.normalization import REMEMBERED
from pipeline.grading.units import NO_UNIT, Unit, read_unit


@dataclass(frozen=True)
class Literal:
    """A number as it was written: its exact value, its unit, and its notation."""

    value: Fraction
    unit: Unit = NO_UNIT
    is_ratio: bool = False  # written a/b; an unfinished division where a whole number is expected
    is_percent: bool = False  # the value of 50% is 1/2
    decimals: int = 0  # digits after the decimal point


@lru_cache(REMEMBERED)
def literal(text: str, question: str = "") -> Literal | None:
    r"""The number that a text in plain form is, or None when it is anything else.

    Whole numbers, decimals, repeating decimals, a/b, mixed and scientific notation, with a percent
    sign, a currency or a unit. Arithmetic is not a number: `40+2`, `6\times7`, `41=42` give None.

    >>> literal("18 dollars").unit.name
    '$'
    >>> [str(literal(text).value) for text in ("1234", r"3\frac{1}{2}", "50%", r"0.\overline{3}")]
    ['1234', '7/2', '1/2', '1/3']
    >>> literal("40+2") is None and literal(r"41\frac{2}{2}") is None
    True
    """
    match = _NUMBER.match(text)
    if match is None:
        return None
    value = _value(match)
    rest = text[match.end() :]
    is_percent = bool(rest) and bool(_PERCENT.fullmatch(rest))
    unit = NO_UNIT if is_percent else read_unit(rest, question)
    money = match["money"]
    money_unit = read_unit(money) if money else None
    if money and unit is None:  # $18 per day, read as 18 dollar per day
        unit = money_unit = read_unit(f" {_CURRENCIES[money]}{rest}")
    if value is None or unit is None or (unit and money_unit and money_unit != unit):
        return None
    if "-" in (match["sign"], match["sign2"]):
        value = -value
    decimals = len((match["decimal"] or "").partition(".")[2])
    return Literal(
        value=value / 100 if is_percent else value,
        unit=money_unit or unit,
        is_ratio=bool(match["over"] or match["frac_over"]) and not match["whole"],
        is_percent=is_percent,
        decimals=decimals + 2 if is_percent else decimals,
    )


def split_unit(text: str) -> tuple[str, Unit]:
    r"""A formula in plain form and the unit of the table behind it.

    >>> split_unit(r"12\sqrt{13}feet")[1].name, split_unit("2 x")[0]
    ('ft', '2 x')
    """
    match = _BEHIND_FORMULA.search(text)
    unit = read_unit(match[0].rstrip()) if match else None
    if match is None or unit is None or not unit.name or not unit.is_sure:
        return text, NO_UNIT
    return text[: match.start()].strip(), unit


_NUMBER = re.compile(
    r"(?P<sign>[+-])?(?:(?P<money>[$€£¥₹])(?P<sign2>[+-])?)?(?:"
    r"(?P<whole>\d+)?\\frac\{(?P<frac_top>-?\d+)\}\{(?P<frac_over>-?\d+)\}"
    r"|(?P<mixed>\d+) (?P<mixed_top>\d+)/(?P<mixed_over>\d+)"
    r"|(?P<top>\d+)/(?P<over>\d+)"
    r"|(?P<start>\d*\.\d*)\\overline\{(?P<repeated>\d+)\}"
    r"|(?P<decimal>\d+(?:\.\d+)?|\.\d+)"
    r"(?:[eE](?P<e>[+-]?\d{1,2})"
    r"|(?:\\times|\\cdot|\*| ?x ?)10\^(?:(?P<ten>-?\d{1,2})|\{(?P<tens>-?\d{1,2})\}))?"
    r")(?![\d.])"
)
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "gbp", "¥": "yen", "₹": "rupee"}
_PERCENT = re.compile(r"%| ?(?:per ?cents?|pct)")
_BEHIND_FORMULA = re.compile(
    r"(?<=[})\d]) ?[A-Za-z]{2}[^\\]*\Z| [A-Za-z]{2}[A-Za-z /]*(?:\^[23])?\Z"
)


def _value(match: re.Match[str]) -> Fraction | None:
    """The number without its sign; None for a zero denominator and an improper mixed number."""
    if match["decimal"]:
        number = Fraction(match["decimal"])
        power = match["ten"] or match["tens"]
        # Only 1 <= m < 10 is scientific notation; 420 times 10^-1 is an unfinished product.
        if power and not (1 <= number < 10 and int(power)):
            return None
        return number * Fraction(10) ** int(power or match["e"] or 0)
    if match["repeated"]:
        start, digits = match["start"], len(match["repeated"])
        places = len(start.partition(".")[2])
        repeated = Fraction(int(match["repeated"]), (10**digits - 1) * 10**places)
        return (Fraction(start) if start != "." else 0) + repeated
    whole = int(match["whole"] or match["mixed"] or 0)
    parts = [match[name] for name in ("frac_top", "mixed_top", "top")]
    overs = [match[name] for name in ("frac_over", "mixed_over", "over")]
    top, over = (int(next(filter(None, p))) for p in (parts, overs))
    is_mixed = bool(match["whole"] or match["mixed"])
    if over == 0 or (is_mixed and not 0 < top < over):
        return None
    return whole + Fraction(top, over)
