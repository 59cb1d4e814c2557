r"""Read units and count nouns behind a number, by tables.

What follows a number is a unit only if it is in the table of units or a count noun
(`count_nouns`). Everything else (hundred, lakh, tenths, less, x) changes the number or is a factor
of a product, and makes the text something other than a number.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from pipeline.grading.count_nouns import count_noun, singular


@dataclass(frozen=True)
class Unit:
    """A unit or count noun in one spelling."""

    name: str = ""  # "" for none; "cm", "square ft", "mi/hour", "°", "$"
    nouns: frozenset[str] = frozenset()  # the words of a count noun: {"red", "apple"}
    is_sure: bool = True  # False for letters that may be variables: 5 m, 3mg
    is_tight: bool = False  # directly behind the number

    def contradicts(self, other: "Unit") -> bool:
        """Whether both are given and differ. Units are not converted: 5 m is not 500 cm."""
        if not self or not other:
            return False
        if self.nouns and other.nouns:
            return not (self.nouns <= other.nouns or other.nouns <= self.nouns)
        return self.name != other.name

    def __bool__(self) -> bool:
        return bool(self.name or self.nouns)


NO_UNIT = Unit()


@lru_cache(4096)
def read_unit(text: str, question: str = "") -> Unit | None:
    """The unit that a text behind a number in plain form is; None if it is not one.

    >>> read_unit(" miles per hour").name, read_unit("cm^2").name, read_unit(" lakh")
    ('mi/hour', 'square cm', None)
    >>> read_unit(" gloops") is None, sorted(read_unit(" gloops", "How many gloops?").nouns)
    (True, ['gloop'])
    """
    if not text:
        return NO_UNIT
    if text in _SYMBOLS:
        return Unit(_SYMBOLS[text])
    match = _PHRASE.fullmatch(text)
    if match is None:
        return None
    tokens = re.findall(r"/|[A-Za-z]+", match[2])
    is_tight = not match[1]
    measure = _measure(tokens, (match[3] or "").strip("^{}"), is_tight=is_tight)
    if measure is not None or is_tight or match[3]:
        return measure
    nouns = count_noun([token.lower() for token in tokens], question, _UNITS)
    return Unit(nouns=nouns) if nouns else None


def spelled_out(text: str) -> str | None:
    r"""Single letters that \text{} marks as units, as words: m/s is meter/second; else None.

    >>> spelled_out(" m/s"), spelled_out("x"), spelled_out("cm")
    ('meter/second', None, None)
    """
    tokens = [token.strip() for token in text.split("/")]
    if not all(token in _UNITS or token in _LETTERS for token in tokens):
        return None
    if not any(token in _LETTERS for token in tokens):
        return None
    return "/".join(_LETTERS.get(token, token) for token in tokens)


_SYMBOLS = {
    "°": "°", "°C": "°C", "°F": "°F", "$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹", "¢": "cent",
    " $": "$", " €": "€", " £": "£", " ¥": "¥", " ₹": "₹", " ¢": "cent", " °C": "°C", " °F": "°F",
}  # fmt: skip
_PHRASE = re.compile(r"( ?)([A-Za-z]+(?:[ /-][A-Za-z]+){0,5})(\^(?:[23]|\{[23]\}))?")

# Each line: the one spelling, then the others, all in the singular and lower case.
_TABLE = """
    $ dollar usd buck | € euro eur | £ gbp quid | ¥ yen jpy yuan rmb | ₹ rupee inr
    cent penny | ° degree deg | rad radian | % percentage
    mm millimeter millimetre | cm centimeter centimetre | meter metre | km kilometer kilometre
    in inch inche | ft foot feet | yd yard | mi mile | unit | acre | hectare
    second sec | millisecond msec | min minute | hour hr | day | week wk | month | year yr
    decade | century | fortnight
    mg milligram | gram gm | kg kilogram kilo kgs | ton tonne | lb pound | oz ounce | stone
    ml milliliter millilitre | cl centiliter | liter litre | gallon gal | quart qt | pint pt
    tablespoon tbsp | teaspoon tsp | cup
    mi/hour mph | km/hour kph kmph | byte | bit | kb kilobyte | mb megabyte | gb gigabyte
    newton | joule | watt | kw kilowatt | kwh | volt | ampere amp | ohm | hertz hz | khz | mhz
    calorie cal | kcal kilocalorie | pascal | kelvin | mole mol | lumen | knot
"""
_UNITS = {
    spelling: line.split()[0] for line in re.split(r"[|\n]", _TABLE) for spelling in line.split()
}
_LETTERS = {
    "m": "meter", "s": "second", "g": "gram", "h": "hour", "l": "liter", "L": "liter",
    "N": "newton", "J": "joule", "W": "watt", "V": "volt", "K": "kelvin",
}  # fmt: skip
# Abbreviations that are a product as well: m g h, m l^2.
_MAY_BE_PRODUCTS = frozenset(("mg", "ml", "gm", "cl", "pt", "mi", "in", "cal", "gal", "amp", "mol"))
_MAY_BE_POWERS = frozenset(["mm", "cm", "meter", "km", "in", "ft", "yd", "mi", "unit", "second"])
_POWERS = {"square": "square", "sq": "square", "cubic": "cubic", "cu": "cubic"}
_POWERS |= {"2": "square", "3": "cubic"}
_PER = frozenset(("per", "/", "a", "an", "each"))


def _measure(tokens: list[str], power: str, *, is_tight: bool) -> Unit | None:
    """A unit of the table, with "square" or "cubic" before it and "per" another behind it."""
    names: list[str] = []
    is_sure, prefix = True, ""
    for i, token in enumerate(tokens):
        word = token.lower()
        if word in _PER and names and not prefix:
            names.append("/")
        elif word in _POWERS and not prefix:
            prefix = _POWERS[word]
        elif (name := _unit_name(token)) and (not names or names[-1] == "/"):
            power_of_last = _POWERS[power] if power and i == len(tokens) - 1 else ""
            if (prefix or power_of_last) and name not in _MAY_BE_POWERS:
                return None
            names.append(f"{prefix or power_of_last} {name}".strip())
            prefix = ""
            is_sure &= token not in _LETTERS and not (is_tight and word in _MAY_BE_PRODUCTS)
        else:
            return None
    while names and names[-1] == "/":  # 5 dollars each
        del names[-1]
    if not names or prefix:
        return None
    return Unit(re.sub(" ?/ ?", "/", " ".join(names)), is_sure=is_sure, is_tight=is_tight)


def _unit_name(token: str) -> str:
    if token in _LETTERS:
        return _LETTERS[token]
    word = token.lower()
    return _UNITS.get(word) or _UNITS.get(singular(word), "")
