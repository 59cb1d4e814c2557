r"""Written answers in plain form, and the literal numbers among them. Helps `pipeline.grading.equivalence`.

Plain form says the same with less LaTeX: no math delimiters, no spacing commands, one way to write
a fraction, no text wrappers, no final full stop. It never changes what is said: `42\%` keeps its
percent sign, `x` and `X` stay apart, `1 2` does not become `12`.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

REMEMBERED = 4096  # a vote compares the same few texts again and again


@dataclass(frozen=True)
class Literal:
    """A number as it was written: its exact value, its unit, and what the notation tells."""

    value: Fraction
    unit: str = ""  # in one spelling, "" for a bare number
    is_ratio: bool = False  # written a/b: towards a whole number, that is an unfinished division
    decimals: int = 0  # digits after the decimal point


@lru_cache(REMEMBERED)
def plain(text: str) -> str:
    r"""The plain form of a written answer.

    >>> plain(r"$\left(\dfrac12,\ 3\right)$.")
    '(\\frac{1}{2},3)'
    >>> plain(r"12,\!000\text{ square feet}")
    '12,000 square feet'
    """
    text = _without_delimiters(text.translate(_CHARACTERS).strip())
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _without_braces(text.strip().rstrip(" .,;"))
    # A space between two words, or two numbers, is the only one that means anything.
    return re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])", "", re.sub(r"\s+", " ", text))


@lru_cache(REMEMBERED)
def literal(text: str) -> Literal | None:
    r"""The number that a text in plain form is, or None when it is anything else.

    Whole numbers, decimals, a/b, mixed and scientific notation, with a percent sign, a currency or
    a unit. Arithmetic is not a number: `40+2`, `6\times7`, `x=42`, `41=42` give None.

    >>> literal("18 dollars")
    Literal(value=Fraction(18, 1), unit='$', is_ratio=False, decimals=0)
    >>> [str(literal(text).value) for text in ("1,234", r"3\frac{1}{2}", "50%")]
    ['1234', '7/2', '1/2']
    >>> literal("40+2") is None and literal(r"41\frac{2}{2}") is None
    True
    """
    match = _NUMBER.match(text)
    if match is None:
        return None
    value = _value(match)
    rest = text[match.end() :]
    percent = _PERCENT.fullmatch(rest)
    unit = "" if percent else _unit(rest)
    if value is None or unit is None or (unit and match["money"]):
        return None
    if "-" in (match["sign"], match["sign2"]):
        value = -value
    decimals = len((match["decimal"] or "").partition(".")[2])
    return Literal(
        value=value / 100 if percent else value,
        unit=unit or (match["money"] or ""),
        is_ratio=bool(match["over"] or match["frac_over"]) and not match["whole"],
        decimals=decimals + 2 if percent else decimals,
    )


def split_unit(text: str) -> tuple[str, str]:
    r"""A formula in plain form and the known unit behind it, in one spelling; "" without one.

    >>> split_unit(r"12\sqrt{13}feet"), split_unit("2 x")
    (('12\\sqrt{13}', 'ft'), ('2 x', ''))
    """
    match = _BEHIND_FORMULA.search(text)
    words = [_singular(word) for word in re.findall(r"[A-Za-z]+", match[0])] if match else []
    if not words or not all(word in _KNOWN_UNITS for word in words):
        return text, ""
    return text[: match.start()].strip(), _unit(" " + match[0].strip()) or ""


# Digits in other scripts and signs that have a LaTeX spelling.
_CHARACTERS = str.maketrans(
    {chr(0xFF10 + d): str(d) for d in range(10)}
    | {"\N{MINUS SIGN}": "-", "\N{MULTIPLICATION SIGN}": r"\times ", "\N{DIVISION SIGN}": r"\div "}
    | {
        "\N{FULLWIDTH HYPHEN-MINUS}": "-",
        "π": r"\pi ",
        "∞": r"\infty ",
        "°": r"^\circ ",
        "²": "^2",
        "³": "^3",
        "\xa0": " ",
    }
    | {"≤": r"\le ", "≥": r"\ge ", "±": r"\pm ", "·": r"\cdot ", "\N{UNION}": r"\cup ", "\t": " "}
)

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^\s*\\approx(?![A-Za-z])", ""),
        (r"\*\*|\\displaystyle|\\(?:left|right|big|Big)(?![A-Za-z])", ""),
        (r"\\!\s*|\{,\}\s*(?=\d{3})", lambda m: "," if m[0].startswith("{") else ""),
        (r"(?<=\d)\\,(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\[dtc]?frac(?![A-Za-z])\s*", r"\\frac"),
        (
            r"\\(?:text|textrm|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}",
            r" \1 ",
        ),
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])", "°"),
        (r"\\frac([0-9A-Za-z])", r"\\frac{\1}"),
        (r"(\\frac\{[^{}]*\})\s*([0-9A-Za-z])", r"\1{\2}"),
        (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
        (r"\bsq\. ?", "square "),
        (r"(\\[A-Za-z]+) +(?=\d)", r"\1"),
        (r"([\^_])\s*\{\s*(\w)\s*\}", r"\1\2"),
        (r"\\leq(?![A-Za-z])", r"\\le"),
        (r"\\geq(?![A-Za-z])", r"\\ge"),
        (r"\\\$", "$"),
        (r"\\%", "%"),
    )
)

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>[+-])?(?:(?P<money>[$€£])(?P<sign2>[+-])?)?(?:"
    rf"(?P<whole>\d+)?\\frac\{{(?P<frac_top>-?{_WHOLE})\}}\{{(?P<frac_over>-?{_WHOLE})\}}"
    rf"|(?P<mixed>\d+) (?P<mixed_top>\d+)/(?P<mixed_over>\d+)"
    rf"|(?P<top>{_WHOLE})/(?P<over>{_WHOLE})"
    rf"|(?P<decimal>{_WHOLE}(?:\.\d+)?|\.\d+)"
    r"(?:[eE](?P<e>[+-]?\d{1,2})|(?:\\times|\\cdot)10\^(?:(?P<ten>\d)|\{(?P<tens>-?\d{1,2})\}))?"
    r")(?![\d.])"
)
_PERCENT = re.compile(r"%| ?per ?cents?")
_BEHIND_FORMULA = re.compile(r"(?<=[})\d]) ?[A-Za-z]{2}.*\Z| (?:square |cubic )?[A-Za-z]{2,}\Z")
_UNIT = re.compile(r"( ?)([A-Za-z]+(?:[ /][A-Za-z]+){0,3})(\^(?:[23]|\{[23]\}))?")

# One spelling for the units that answers spell in several ways.
_SPELLINGS = {
    "degree": "°", "dollar": "$", "usd": "$", "buck": "$", "euro": "€", "centimeter": "cm",
    "centimetre": "cm", "millimeter": "mm", "millimetre": "mm", "meter": "m", "metre": "m",
    "kilometer": "km", "kilometre": "km", "inche": "in", "inch": "in", "foot": "ft", "feet": "ft",
    "yard": "yd", "mile": "mi", "gram": "g", "gm": "g", "kilogram": "kg", "pound": "lb",
    "ounce": "oz", "liter": "l", "litre": "l", "milliliter": "ml", "hour": "h", "hr": "h",
    "minute": "min", "second": "s", "sec": "s", "mph": "mi h", "sq": "square",
}  # fmt: skip
_PLAIN_UNITS = "of per day week month year unit cubic"
_KNOWN_UNITS = frozenset((*_SPELLINGS, *_SPELLINGS.values(), *_PLAIN_UNITS.split()))

# Words behind a number that make it another number, or no number at all.
_OTHER_WORDS = """
    hundred thousand million billion trillion dozen pair score half halve third quarter fourth
    fifth sixth seventh eighth ninth tenth hundredth thousandth percent percentage plus minus time
    over divided by squared cubed factorial mod modulo remainder root power base or and to not no
    nor but than less more fewer about i pi e is if are wrong maybe either twice double
    triple sin cos tan cot sec csc log ln exp sqrt
"""
_NOT_A_UNIT = frozenset(_OTHER_WORDS.split())


def _without_delimiters(text: str) -> str:
    r"""The text inside \( \), \[ \] and $ $; a single $ stays, it is a currency."""
    text = re.sub(r"\\[()\[\]](?![A-Za-z])", "", text)
    return re.sub(r"(?<!\\)\$", "", text) if len(re.findall(r"(?<!\\)\$", text)) % 2 == 0 else text


def _without_braces(text: str) -> str:
    """The text inside one pair of braces around all of it: {42} is 42."""
    while re.fullmatch(r"\{[^{}]*\}", text):
        text = text[1:-1].strip()
    return text


def _value(match: re.Match[str]) -> Fraction | None:
    """The number without its sign; None for a zero denominator and an improper mixed number."""
    if match["decimal"]:
        number = Fraction(match["decimal"].replace(",", ""))
        power = match["ten"] or match["tens"]
        # Only 1 <= m < 10 is scientific notation; 420 times 10^-1 is arithmetic left over.
        if power and not (1 <= number < 10 and int(power)):
            return None
        return number * Fraction(10) ** int(power or match["e"] or 0)
    whole = int(match["whole"] or match["mixed"] or 0)
    parts = [match[name] for name in ("frac_top", "mixed_top", "top")]
    overs = [match[name] for name in ("frac_over", "mixed_over", "over")]
    top, over = (int(next(filter(None, p)).replace(",", "")) for p in (parts, overs))
    is_mixed = bool(match["whole"] or match["mixed"])
    if over == 0 or (is_mixed and not 0 < top < over):
        return None
    return whole + Fraction(top, over)


def _unit(rest: str) -> str | None:
    """The unit behind a number in one spelling, "" for none, None for what is not a unit.

    A word that follows without a space must be a unit of at least two letters: 42x is a product.
    """
    if rest in ("", "°"):
        return rest
    match = _UNIT.fullmatch(rest)
    if match is None:
        return None
    words = [_singular(word) for word in re.split(r"[ /]", match[2])]
    if any(word in _NOT_A_UNIT for word in words) or (not match[1] and len(match[2]) < 2):
        return None
    if not all(word in _KNOWN_UNITS or (match[1] and len(word) > 2) for word in words):
        return None
    spelled = [_SPELLINGS.get(word, word) for word in words if word != "per"]
    power = (match[3] or "").strip("^{}")
    return " ".join([{"": "", "2": "square", "3": "cubic"}[power], *spelled]).strip()


def _singular(word: str) -> str:
    word = word.lower()
    return word[:-1] if len(word) > 2 and word.endswith("s") else word
