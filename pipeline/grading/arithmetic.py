"""Find equations and numbers in running text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache


@dataclass(frozen=True)
class Equation:
    """A written `a op b ... = result` at the characters [start, end) of a text."""

    start: int
    end: int
    operands: tuple[Fraction, ...]
    operators: tuple[str, ...]  # + - * /, one fewer than operands
    result: Fraction

    @cached_property
    def value(self) -> Fraction | None:
        """The value of the left side, products first; None for a division by zero."""
        terms = [self.operands[0]]
        for operator, number in zip(self.operators, self.operands[1:], strict=True):
            if operator == "*":
                terms[-1] *= number
            elif operator == "/":
                if not number:
                    return None
                terms[-1] /= number
            else:
                terms.append(number if operator == "+" else -number)
        return sum(terms, Fraction())

    @property
    def holds(self) -> bool:
        """Whether the left side equals the result exactly."""
        return self.value == self.result

    @cached_property
    def key(self) -> tuple:
        """Equal for equations that differ only in the order of operands: 12+7=19 and 7+12=19."""
        swaps = set(self.operators) in ({"+"}, {"*"})
        operands = tuple(sorted(self.operands)) if swaps else self.operands
        return operands, self.operators, self.result


def equations_in(text: str) -> Iterator[Equation]:
    """The equations of a text in order, without those that are a part of a longer one.

    >>> [text[s.start : s.end] for text in ["So 2+3 = 5."] for s in equations_in(text)]
    ['2+3 = 5']
    >>> list(equations_in("(2+3)*4=20")), list(equations_in("2+3=5+1"))
    ([], [])
    """
    signs = _LABEL.sub(_with_em_dash, text).translate(_SIGNS)
    for match in _SUM.finditer(signs):
        line = signs[max(0, match.start() - 40) : match.start()].rpartition("\n")[2]
        is_cut = _CUT_BEFORE.search(line) and not _WHOLE_BEFORE.search(line)
        if is_cut or _WORDS_BEFORE.search(line) or _CUT_AFTER.match(signs, match.end()):
            continue
        left, _, right = match[0].rpartition("=")
        first, *rest = _OPERAND.finditer(left)
        yield Equation(
            start=match.start(),
            end=match.end(),
            operands=tuple(_number(m["number"]) for m in (first, *rest)),
            operators=tuple(_OPERATORS.get(m["operator"], m["operator"]) for m in rest),
            result=_number(right),
        )


def equations_hold(text: str) -> bool:
    """Whether every equation of a text holds; True for a text without any.

    >>> equations_hold("2+3=5, 5*4=20"), equations_hold("2+3=5, 5*4=21"), equations_hold("none")
    (True, False, True)
    """
    return all(each.holds for each in equations_in(text))


def numbers_in(text: str) -> set[Fraction]:
    """The numbers of a text, in digits or in words.

    >>> sorted(map(str, numbers_in("Two dozen eggs at $1,200.50")))
    ['12', '2', '2401/2']
    """
    words = re.findall(r"[a-z]+", text.lower())
    named = {_WORDS[word] for word in words if word in _WORDS}
    return named | {_number(match[0]) for match in _NUMBER.finditer(text)}


# A number of up to 15 digits, with thousands in threes and a currency before it.
_DIGITS = r"(?:(?:\d{1,3}(?:,\d{3}){1,4}(?!\d)|\d{1,15})(?:\.\d{1,15})?|\.\d{1,15})(?!\d|\.\d)"
_NUMBER = re.compile(rf"(?<![\d.]){_DIGITS}")
# An en dash behind a label, as behind "Step 1", is no minus.
_LABEL = re.compile(r"^[ \t]*[A-Za-z]{2,}(?: \d{1,3})?[ \t]+\u2013(?=[ \t])", re.MULTILINE)
# One character for another, so that offsets stay. An em dash is punctuation.
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),
        **dict.fromkeys("\N{MULTIPLICATION SIGN}\N{DOT OPERATOR}\N{ASTERISK OPERATOR}·", "*"),
        **dict.fromkeys("\N{DIVISION SIGN}\N{DIVISION SLASH}\N{FRACTION SLASH}", "/"),
        **{"\N{FULLWIDTH PLUS SIGN}": "+", "\N{FULLWIDTH EQUALS SIGN}": "="},
    }
)
_OPERATORS = {"x": "*", "X": "*", r"\times": "*", r"\cdot": "*", r"\div": "/"}
_SIGNED = rf"-?\$?{_DIGITS}"
# Behind x a sign would make 2x-5=13 a product.
_OPERATOR = r"(?:[-+*/]|[xX](?=[ \t]*[$.\d])|\\times|\\cdot|\\div)"
_SUM = re.compile(
    rf"(?<!\d)(?!(?<=\d,)\d{{3}}){_SIGNED}"  # not from the 000 of 16,000 on
    rf"(?:[ \t]*{_OPERATOR}[ \t]*{_SIGNED}){{1,12}}[ \t]*=[ \t]*{_SIGNED}"
)
_OPERAND = re.compile(rf"(?:(?<=\d)[ \t]*(?P<operator>{_OPERATOR})[ \t]*)?(?P<number>{_SIGNED})")
# A part of a longer equation is another one: 3+4=9 in 2+3+4=9, 7=19 in 12+7=19+5.
_CUT_BEFORE = re.compile(r"[\w.)\]=^+*/√\\-][ \t]*\Z")
_WHOLE_BEFORE = re.compile(
    r"(?:^|[\s(<$:,;])[A-Za-z]{2,}[.,:;]?[ \t]+\Z"  # So 3+4=7
    r"|[.,:;][ \t]+\Z|[A-Za-z][ \t]*=[ \t]*\Z"  # 1. 3+4=7, total = 3+4=7
    r"|^[ \t]*(?:\(?\d{1,2}\)|[-*])[ \t]+\Z"  # (1) 3+4=7, - 3+4=7
)
_WORDS_BEFORE = re.compile(  # 20% of 50+5=15, 4 plus 3+5=12
    r"(?:%|\b(?:percent|half|thirds?|quarters?|fourths?|fifths?))[ \t]+of[ \t]+\Z"
    r"|\b(?:plus|minus|times)[ \t]+\Z"
)
_CUT_AFTER = re.compile(
    r"[ \t]*(?:[+*/^=!%]|[-xX][ \t]*\d|\\(?:times|cdot|div)(?![A-Za-z]))"
    # 2b+1, 5(3-1), 5_8, 6:48, 6\frac13, 5,\!040; 1 1/2, 1 and 1/2
    r"|[A-Za-z][ \t]*(?:[+*=]|-[ \t]*\d)|\((?![ \t]*[A-Za-z]{2})|_|:\d"
    r"|\\[dt]?frac|,?\\!|(?: and)? \d+/\d+(?![ \t]+of\b)"
    # 7/2=3 R1, 7/2=3\text{ remainder }1
    r"|(?:\\text\{|[\\ ,;])*(?:(?:with |and )?(?:a )?remainder|[Rr][ \t]?\d)"
)

_NUMBER_WORDS = """
    1 one once|2 two twice double half pair both|3 three triple third thrice|4 four quarter fourth
    5 five fifth|6 six sixth|7 seven seventh week|8 eight eighth|9 nine ninth|10 ten tenth
    11 eleven|12 twelve dozen|20 twenty|30 thirty|40 forty|50 fifty|60 sixty|100 hundred
"""
_WORDS = {
    word: Fraction(value)
    for entry in re.split(r"[|\n]", _NUMBER_WORDS.strip())
    for value, *words in [entry.split()]
    for word in words
}


def _with_em_dash(label: re.Match[str]) -> str:
    return f"{label[0][:-1]}—"


@lru_cache(4096)
def _number(text: str) -> Fraction:
    return Fraction(re.sub(r"[$,\s]", "", text))
