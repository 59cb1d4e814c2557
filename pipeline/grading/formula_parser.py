r"""Parse formulas and relations in plain form into normal form (`polynomials`).

Letters side by side are a product: 3mg is 3 m g. Words, and 1/2x, which people read in two ways,
are not formulas.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from pipeline.grading import polynomials
from pipeline.grading.formula_tokens import FUNCTIONS, GREEK, UnreadableError, tokens
from pipeline.grading.polynomials import Formula, Key, TooLargeError

MAX_CHARACTERS = 300
MAX_DEPTH = 24


@dataclass(frozen=True)
class Statement:
    """A formula, or a relation between two."""

    sign: str  # "", "=", r"\ne", "<" or r"\le"
    sides: tuple[Key, ...]

    def difference(self) -> Formula:
        """The formula, or the left side minus the right one."""
        left, *right = (dict(side) for side in self.sides)
        return polynomials.add(left, polynomials.scale(right[0], -1)) if right else left


@lru_cache(4096)
def read(text: str) -> Statement | None:
    """The formula or relation that a text in plain form is; None for anything else."""
    if len(text) > MAX_CHARACTERS or not _FORMULA.fullmatch(text):
        return None
    try:
        return _Parser(text).statement()
    except (UnreadableError, TooLargeError):
        return None


_FORMULA = re.compile(r"[A-Za-z0-9+\-*/^_(){}\[\]|=<>.!\\ °']+")
_RELATIONS = {"=": "=", "<": "<", ">": ">", r"\le": r"\le", r"\ge": r"\ge", r"\ne": r"\ne"}
_CLOSING = {"(": ")", "[": "]", "{": "}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_ENDS = frozenset((*_CLOSING.values(), "+", "-", *_RELATIONS))
_TIMES = frozenset(("*", r"\cdot", r"\times"))
_OVER = frozenset(("/", r"\div"))


class _Parser:
    """Recursive descent over the tokens of one formula."""

    def __init__(self, text: str) -> None:
        self.tokens = tokens(text)
        self.at = 0
        self.depth = 0
        self.bars = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def next(self) -> str:
        token = self.peek()
        if not token:
            raise UnreadableError("the end")
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        if self.next() != token:
            raise UnreadableError(token)

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnreadableError("too deep")

    def statement(self) -> Statement:
        left = self.sum()
        sign = _RELATIONS.get(self.next(), "") if self.peek() in _RELATIONS else ""
        if not sign and self.peek():
            raise UnreadableError(self.peek())
        if not sign:
            return Statement("", (polynomials.key(left),))
        right = self.sum()
        if self.peek():
            raise UnreadableError(self.peek())
        if sign in (">", r"\ge"):
            left, right, sign = right, left, {">": "<", r"\ge": r"\le"}[sign]
        return Statement(sign, (polynomials.key(left), polynomials.key(right)))

    def sum(self) -> Formula:
        self.enter()
        total = polynomials.number(0)
        sign = self.next() if self.peek() in ("+", "-") else "+"
        while True:
            term = self.product()
            total = polynomials.add(total, polynomials.scale(term, 1 if sign == "+" else -1))
            if self.peek() not in ("+", "-"):
                break
            sign = self.next()
        self.depth -= 1
        return total

    def product(self) -> Formula:
        total = self.factor()
        is_quotient, was_number = False, self.was_number()
        while (token := self.peek()) and token not in _ENDS and not (token == "|" and self.bars):
            if token in _OVER:
                self.next()
                divisor = polynomials.power(self.signed_factor(), polynomials.number(-1))
                total, is_quotient = polynomials.multiply(total, divisor), True
            elif token in _TIMES:
                self.next()
                total, is_quotient = polynomials.multiply(total, self.signed_factor()), False
            elif is_quotient or (was_number and token[0] in ".0123456789"):
                raise UnreadableError("1/2x, or two numbers side by side")
            else:
                total = polynomials.multiply(total, self.factor())
            was_number = self.was_number()
        return total

    def was_number(self) -> bool:
        return self.tokens[self.at - 1][0] in ".0123456789"

    def signed_factor(self) -> Formula:
        if self.peek() in ("+", "-"):
            sign = -1 if self.next() == "-" else 1
            return polynomials.scale(self.factor(), sign)
        return self.factor()

    def factor(self) -> Formula:
        """A primary with its factorial signs and its exponent."""
        base = self.primary()
        for _ in range(3):
            if self.peek() == "!":
                self.next()
                base = _factorial(base)
            elif self.peek() == "°":
                self.next()
                base = polynomials.multiply(base, polynomials.atom("symbol", "°"))
            elif self.peek() == "^":
                self.next()
                return polynomials.power(base, self.exponent())
        if self.peek() in ("!", "°", "^"):
            raise UnreadableError(self.peek())
        return base

    def exponent(self) -> Formula:
        if self.peek() == "{":
            exponent = self.group()
        elif self.peek() == "-":
            self.next()
            exponent = polynomials.scale(self.primary(single=True), -1)
        elif self.peek() == "(":
            raise UnreadableError("^(: TeX and people read it in two ways")
        else:
            exponent = self.primary(single=True)
        if self.peek() == "^":
            raise UnreadableError("a tower of powers")
        return exponent

    def group(self) -> Formula:
        """What one pair of brackets encloses."""
        closing = _CLOSING[self.next()]
        inside = self.sum()
        self.expect(closing)
        return inside

    def argument(self) -> Formula:
        r"""The argument of a TeX command: a group, or one letter or digit."""
        return self.group() if self.peek() == "{" else self.primary(single=True)

    def primary(self, *, single: bool = False) -> Formula:
        """A number, a symbol, a bracket or a call; with `single` at most one digit or letter."""
        token = self.peek()
        if not token:
            raise UnreadableError("the end")
        if token[0] in ".0123456789":
            if single and len(token) > 1:
                raise UnreadableError("more than one digit without braces")
            return polynomials.number(Fraction(self.next()))
        if token in ("(", "[", "{"):
            return self.group()
        if token in (r"\lfloor", r"\lceil"):
            name = {r"\lfloor": "floor", r"\lceil": "ceil"}[token]
            return polynomials.atom("call", name, polynomials.key(self.group()))
        if token == "|":
            return self.absolute()
        if token[0] == "\\":
            return self.command()
        if token.isalpha():
            return self.symbol()
        raise UnreadableError(token)

    def absolute(self) -> Formula:
        if self.bars:
            raise UnreadableError("| in |")
        self.next()
        self.bars += 1
        inside = self.sum()
        self.bars -= 1
        self.expect("|")
        if not inside:
            return inside
        inside = polynomials.scale(inside, polynomials.sign_of(inside))
        value = polynomials.constant(inside)
        if value is not None:
            return polynomials.number(value)
        return polynomials.atom("call", "abs", polynomials.key(inside))

    def command(self) -> Formula:
        r"""A command with its arguments: \frac, \sqrt, \binom, a function, a Greek letter."""
        self.enter()
        found = self.called(self.next()[1:])
        self.depth -= 1
        return found

    def called(self, name: str) -> Formula:
        if name == "frac":
            top = self.argument()
            return polynomials.multiply(
                top, polynomials.power(self.argument(), polynomials.number(-1))
            )
        if name == "sqrt":
            return self.root()
        if name in ("binom", "dbinom", "tbinom"):
            arguments = (polynomials.key(self.argument()) for _ in range(2))
            return polynomials.atom("call", "binom", *arguments)
        if name in FUNCTIONS:
            return self.call(name)
        if name in GREEK:
            return self.symbol(name)
        raise UnreadableError(name)

    def root(self) -> Formula:
        degree = self.group() if self.peek() == "[" else polynomials.number(2)
        inside = self.group() if self.peek() in ("{", "(") else self.primary(single=True)
        return polynomials.power(inside, polynomials.power(degree, polynomials.number(-1)))

    def call(self, name: str) -> Formula:
        base = polynomials.number(10)
        if name == "log" and self.peek() == "_":
            self.next()
            base = self.argument()
        exponent = polynomials.number(1)
        if self.peek() == "^":
            self.next()
            exponent = self.exponent()
            if polynomials.constant(exponent) == -1:
                raise UnreadableError("an inverse function, or a reciprocal")
        if self.peek() == "(":
            argument = self.group()
            if self.peek() == "^":
                raise UnreadableError("sin(x)^2")
        else:
            argument = self.operand()
        if name == "exp":
            return polynomials.power(polynomials.atom("symbol", "e"), argument)
        arguments = (argument, base) if name == "log" else (argument,)
        called = polynomials.atom("call", name, *map(polynomials.key, arguments))
        return polynomials.power(called, exponent)

    def operand(self) -> Formula:
        r"""The argument of a function without brackets: \sin 2x\cos x has 2x."""
        total = self.factor()
        while (token := self.peek()) and (
            (token.isalpha() and token not in FUNCTIONS) or token[1:] in GREEK or token == r"\frac"
        ):
            total = polynomials.multiply(total, self.factor())
        return total

    def symbol(self, greek: str = "") -> Formula:
        name = greek or self.next()
        if self.peek() == "_":
            self.next()
            name += f"_{self.subscript()}"
        while self.peek() == "'":
            name += self.next()
        if name in ("f", "g") and self.peek() == "(":
            return polynomials.atom("call", name, polynomials.key(self.group()))
        return polynomials.atom("symbol", name)

    def subscript(self) -> str:
        if self.peek() != "{":
            return self.next()
        end = self.tokens.index("}", self.at) if "}" in self.tokens[self.at :] else -1
        inside = self.tokens[self.at + 1 : end]
        if end < 0 or "{" in inside:
            raise UnreadableError("a subscript in a subscript")
        self.at = end + 1
        return "".join(inside)


def _factorial(base: Formula) -> Formula:
    value = polynomials.constant(base)
    if value is None or value.denominator != 1 or not 0 <= value <= 60:
        return polynomials.atom("call", "factorial", polynomials.key(base))
    product = 1
    for factor in range(2, int(value) + 1):
        product *= factor
    return polynomials.number(product)
