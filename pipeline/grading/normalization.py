r"""Convert written answers to plain form: less LaTeX, the same content.

Plain form has no math delimiters, no spacing and font commands, one spelling of each relation and
bracket, one way to write a fraction, no commas inside numbers, no final full stop. The content
stays: `42\%` keeps its percent sign, `x` and `X` stay apart, `1 2` does not become `12`.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from pipeline.grading.units import spelled_out

REMEMBERED = 4096  # texts; a vote compares the same few repeatedly

Replacement = str | Callable[[re.Match[str]], str]


@lru_cache(REMEMBERED)
def plain(text: str, *, groups_digits: bool = True) -> str:
    r"""The plain form of a written answer.

    A comma directly between groups of three digits belongs to the number, except in brackets and
    where `groups_digits` is False; a comma with a space behind it separates two answers.

    >>> plain(r"$\left(\dfrac12,\ 3\right)$.")
    '(\\frac{1}{2},3)'
    >>> plain(r"12,\!000\text{ square feet}"), plain("32, 349")
    ('12000 square feet', '32,349')
    """
    if not text.isascii():
        text = _ascii(text)
    # Without long runs of spaces no pattern below takes quadratic time.
    text = _without_delimiters(re.sub(r"\s+", " ", text).strip())
    if "\\" in text:
        text = _without_wrappers(text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if groups_digits and "," in text:
        text = _with_digits_joined(text)
    text = _without_enclosure(text.strip().rstrip(" .,;"))
    # Only a space between two words, or two numbers, has a meaning.
    return re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])", "", re.sub(r" +", " ", text))


_MINUS = "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d"
_CHARACTERS = {
    "\N{MULTIPLICATION SIGN}": r"\times ", "\N{DIVISION SIGN}": r"\div ", "∞": r"\infty ",
    "°": r"^\circ ", "√": r"\sqrt ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ",
    "∓": r"\mp ", "·": r"\cdot ", "⋅": r"\cdot ", "\N{UNION}": r"\cup ",
    "\N{INTERSECTION}": r"\cap ", "∅": r"\emptyset ", "∈": r"\in ", "⌊": r"\lfloor ",
    "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "…": r"\ldots ", "≈": r"\approx ",
    "\N{DIVIDES}": "|", "\N{RATIO}": ":", "\N{FRACTION SLASH}": "/", "\N{DIVISION SLASH}": "/",
    "\N{ASTERISK OPERATOR}": "*", "\N{FULLWIDTH COMMA}": ", ", "。": ".",
    "\N{ARABIC THOUSANDS SEPARATOR}": ",", "\N{ARABIC DECIMAL SEPARATOR}": ".",
    "“": '"', "”": '"', "\N{LEFT SINGLE QUOTATION MARK}": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    **dict.fromkeys(_MINUS, "-"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u2061\u2062", ""),
}  # fmt: skip
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉"


def _ascii(text: str) -> str:
    """The text with LaTeX for mathematical characters, and digits of every script as 0-9.

    Thin and no-break spaces between groups of three digits belong to the number.
    """
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", "", text)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}", text)
    text = re.sub(rf"[{_SUPERSCRIPTS}]+", lambda m: f"^{{{_digits(m[0], _SUPERSCRIPTS)}}}", text)
    text = re.sub(rf"[{_SUBSCRIPTS}]+", lambda m: f"_{{{_digits(m[0], _SUBSCRIPTS)}}}", text)
    return "".join(ch if ch.isascii() else _ascii_character(ch) for ch in text)


def _digits(text: str, alphabet: str) -> str:
    return "".join("0123456789-"[alphabet.index(ch)] for ch in text)


@lru_cache(1024)
def _ascii_character(ch: str) -> str:
    if ch in _CHARACTERS:
        return _CHARACTERS[ch]
    if ch.isdecimal():
        return str(unicodedata.decimal(ch))
    if ch.isspace():
        return " "
    folded = unicodedata.normalize("NFKC", ch)
    if len(fraction := folded.split("\N{FRACTION SLASH}")) == 2 and all(fraction):
        return rf"\frac{{{fraction[0]}}}{{{fraction[1]}}}"
    kind, _, letter = unicodedata.name(folded, "").rpartition(" LETTER ") if len(folded) == 1 else (
        "", "", "")  # fmt: skip
    if kind in ("GREEK SMALL", "GREEK CAPITAL") and letter.isalpha():
        return rf"\{letter.lower() if kind.endswith('SMALL') else letter.capitalize()} "
    if unicodedata.name(ch, "").startswith("DOUBLE-STRUCK CAPITAL"):
        return rf"\mathbb{{{folded}}}"
    is_styled = 0xFF01 <= ord(ch) <= 0xFF5E or 0x1D400 <= ord(ch) <= 0x1D7FF
    return folded if is_styled and folded.isascii() else ch


def _without_delimiters(text: str) -> str:
    r"""The text inside \( \), \[ \] and $ $; a single $ stays, it is a currency."""
    text = re.sub(r"(?<!\\)\\[()\[\]]", "", text)
    text = re.sub(r"\bUS(?=\\?\$)", "", text)
    return re.sub(r"(?<!\\)\$", "", text) if len(re.findall(r"(?<!\\)\$", text)) % 2 == 0 else text


_FONTS = (
    "text|textrm|textbf|textit|textsf|texttt|textnormal|textup|emph|mathrm|mathbf|mathit|mathsf"
    "|mathtt|mathnormal|mbox|hbox|operatorname|bm|boldsymbol|pmb|underline|ensuremath"
)
_ARGUMENT = r"((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)"
_WRAPPER = re.compile(rf"\\(?:{_FONTS})\s*\{{{_ARGUMENT}\}}")
_UNIT_WRAPPER = re.compile(
    r"(?<=[\d}).])(?:\s|~|\\[,;: !])*\\(?:text|textrm|mathrm|mbox|operatorname)\s*"
    r"\{\s*([A-Za-z]{1,12}(?:\s*/\s*[A-Za-z]{1,12})?)\s*\}"
)
_SWITCH = re.compile(
    r"\\(?:textcolor|color)\s*\{[^{}]*\}|\\(?:bf|rm|it|tt|sf|bfseries|displaystyle|textstyle)"
    r"(?![A-Za-z])"
)


def _without_wrappers(text: str) -> str:
    r"""The text without font and colour commands; \text{ m} behind a number is a metre."""
    text = _UNIT_WRAPPER.sub(lambda m: f" {spelled_out(m[1]) or m[1]} ", text)
    text = _SWITCH.sub("", text)
    for _ in range(4):  # nested ones
        text, found = _WRAPPER.subn(r" \1 ", text)
        if not found:
            break
    return text


_REWRITES: tuple[tuple[re.Pattern[str], Replacement], ...] = tuple(
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        (r"^\s*\\approx(?![A-Za-z])", ""),
        (r"(?<=[A-Za-z0-9)])\*\*(\w+|(?=\())", lambda m: f"^{{{m[1]}}}" if m[1] else "^"),
        (r"\*\*|__(?=\S)|\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\.?", ""),
        (r"^\s*([*_`\"])(.*)\1\.?\s*$", r"\2"),
        (r"\\!\s*|\{,\}\s*(?=\d{3})", ""),
        (r"(?<=\d)\\,(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)\\[,;: ]|(?<=\S)~|\\q?quad(?![A-Za-z])", " "),
        (r"\\(?:[dtc]?frac|nicefrac|sfrac)(?![A-Za-z])\s*", r"\\frac"),
        (r"\^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?|\\degree(?![A-Za-z])", "°"),
        (r"\\frac([0-9A-Za-z])", r"\\frac{\1}"),
        (r"(\\frac\{[^{}]*\})\s*([0-9A-Za-z])", r"\1{\2}"),
        (r"(?<![A-Za-z\\])sqrt(?=[({])", r"\\sqrt"),
        (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
        (r"(?<=[.\d])\\(?:bar|overline|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))", r"\\overline{\1\2}"),
        (r"\bsq\. ?", "square "),
        (r"\bcu\. ?", "cubic "),
        (r"(\\[A-Za-z]+) +(?=\d)", r"\1"),
        (r"([\^_])\s*\{\s*(\w)\s*\}", r"\1\2"),
        (r">=|\\(?:geq|geqslant|geqq)(?![A-Za-z])", r"\\ge "),
        (r"<=|\\(?:leq|leqslant|leqq)(?![A-Za-z])", r"\\le "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\neq(?![A-Za-z])|\\not\s*=|(?<=\s)!=", r"\\ne "),
        (r"\\(?:mid|vert|lvert|rvert)(?![A-Za-z])", "|"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"(\\\{\s*[A-Za-z]\s*):", r"\1|"),
        (r"\\(?:lbrack)(?![A-Za-z])", "["),
        (r"\\(?:rbrack)(?![A-Za-z])", "]"),
        (r"\\(?:varnothing|O)(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"\\bigcup(?![A-Za-z])|(?<=[)\]])\s*U\s*(?=[(\[])", r"\\cup "),
        (r"\\(?:dots|cdots|dotsc)(?![A-Za-z])|(?<=[,+])\s*\.\.\.", r"\\ldots "),
        (r"\\var(epsilon|phi|theta|rho|sigma)(?![A-Za-z])", r"\\\1"),
        (r"\\mathbb\s*\{?\s*([A-Z])\s*\}?", r"\\mathbb{\1}"),
        (r"\\hline(?![A-Za-z])|(?<=\\\\)\s*\[[^\[\]]{0,9}\]", ""),
        (
            r"([(\[])\s*\\begin\{(array|smallmatrix|matrix)\}\s*(?:\{[clr| ]*\})?"
            r"((?:(?!\\begin|\\end).)*)\\end\{\2\}\s*[)\]]",
            r"\\begin{pmatrix}\3\\end{pmatrix}",
        ),
        (r"\\pounds(?![A-Za-z])", "£"),
        (r"\\euro(?![A-Za-z])", "€"),
        (r"\\yen(?![A-Za-z])", "¥"),
        (r"\\cents?(?![A-Za-z])", "¢"),
        (r"\\\$", "$"),
        (r"\\%", "%"),
    )
)

_GROUPED = re.compile(r"[(\[]|\\\{|[)\]]|\\\}|(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")


def _with_digits_joined(text: str) -> str:
    r"""The text without the commas inside numbers: 1,234 outside of brackets is 1234."""
    depth = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal depth
        token = match[0]
        if not token[0].isdigit():
            depth += 1 if token in ("(", "[", r"\{") else -1
            return token
        return token if depth > 0 else token.replace(",", "")

    return _GROUPED.sub(replace, text)


def _without_enclosure(text: str) -> str:
    """The text inside the braces around all of it: {42} is 42."""
    while text.startswith("{") and text.endswith("}") and _closes_last(text):
        text = text[1:-1].strip()
    return text


def _closes_last(text: str) -> bool:
    """Whether the bracket at the beginning is closed by the last character."""
    opening, closing, depth = text[0], text[-1], 0
    for i, ch in enumerate(text):
        depth += (ch == opening) - (ch == closing)
        if depth == 0:
            return i == len(text) - 1
    return False
