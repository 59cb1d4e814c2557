r"""Split a written answer into its parts: lists, sets, intervals, matrices."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

MAX_SIGNS = 4  # \pm in one piece; four stand for sixteen values
MAX_DEPTH = 32  # of nested brackets


@dataclass(frozen=True)
class Parts:
    """The kind of an answer, and its parts in plain form."""

    kind: str  # "atom", "set", "union", a pair of brackets, or the shape of a matrix
    texts: Sequence[str]

    @property
    def ordered(self) -> bool:
        """Whether the order counts: not for a list of roots, but for a list of words."""
        has_words = any(re.search(r"(?<!\\)\b[A-Za-z]{3}", text) for text in self.texts)
        return self.kind not in ("set", "union") or has_words


def parts(text: str) -> Parts:
    r"""The parts of a text in plain form; a list without brackets counts as a set.

    >>> [parts(text).kind for text in ("(1,2)", "[1,2)", r"\{1,2\}", "1 or 2", "x+1")]
    ['()', '[)', 'set', 'set', 'atom']
    >>> parts(r"1\pm\sqrt{2}").texts
    ['1+\\sqrt{2}', '1-\\sqrt{2}']
    """
    if matrix := _MATRIX.fullmatch(text):
        rows = [row.split("&") for row in matrix[2].removesuffix(r"\\").split(r"\\")]
        shape = ",".join(str(len(row)) for row in rows)
        return Parts(f"matrix {shape}", [cell.strip() for row in rows for cell in row])
    if len(union := pieces(text, r"\cup")) > 1:
        return Parts("union", union)
    listed = split_list(text)
    if len(listed) == 1 and text.startswith(r"\{") and text.endswith(r"\}"):
        elements = pieces(text[2:-2], ",")
        return Parts("set", [value for piece in elements for value in _signed(piece)])
    if len(listed) > 1 or 0 < len(re.findall(_SIGN, text)) <= MAX_SIGNS:
        return Parts("set", [value for piece in listed for value in _signed(piece)])
    if text[:1] in "([" and text[-1:] in ")]" and len(inside := pieces(text[1:-1], ",")) > 1:
        return Parts(text[0] + text[-1], inside)
    return Parts("atom", [text])


def split_list(text: str) -> list[str]:
    """The answers that commas, "and" and "or" separate at the top level."""
    return pieces(_AND.sub(",", text), ",")


def pieces(text: str, separator: str) -> list[str]:
    """The text cut at the separators that no bracket encloses."""
    if separator not in text:
        return [text]
    found, begin, depth = [], 0, 0
    for token in re.finditer(r"\\cup(?![A-Za-z])|\\[{}]|[()\[\]{},]", text):
        depth += _BRACKETS.get(token[0], 0)
        if depth < 0:
            return [text]
        if token[0] == separator and depth == 0:
            found.append(text[begin : token.start()].strip())
            begin = token.end()
    return [*found, text[begin:].strip()]


def is_too_deep(text: str) -> bool:
    """Whether more than MAX_DEPTH brackets are nested."""
    depth = 0
    for bracket in re.findall(r"[()\[\]{}]", text):
        depth += _BRACKETS[bracket]
        if depth > MAX_DEPTH:
            return True
    return False


def without_parentheses(text: str) -> str:
    """The text inside the parentheses around all of it: (-3) is -3, (1,2) and (B) stay.

    >>> without_parentheses("((7))"), without_parentheses("(1,2)"), without_parentheses("(1)(2)")
    ('7', '(1,2)', '(1)(2)')
    """
    while text.startswith("(") and text.endswith(")") and not _CHOICE.fullmatch(text):
        inside = text[1:-1]
        if len(pieces(f"{inside},", ",")) != 2:  # a list, or brackets that close before the end
            break
        text = inside.strip()
    return text


_MATRIX = re.compile(r"\\begin\{([pb]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_AND = re.compile(r",? ?\b(?:and|or)\b ?|;")
_CHOICE = re.compile(r"\([A-Z]\)")
_SIGN = r"\\(?:pm|mp)(?![A-Za-z]) *"
_BRACKETS = {"(": 1, "[": 1, "{": 1, r"\{": 1, ")": -1, "]": -1, "}": -1, r"\}": -1}


def _signed(text: str) -> list[str]:
    r"""The values that \pm stands for: two for each, independently; \mp takes the other sign."""
    tokens = re.split(rf"({_SIGN})", text)
    signs = [token.strip() for token in tokens[1::2]]
    if not 0 < len(signs) <= MAX_SIGNS:
        return [text]
    choices = [("+", "-")] * len(signs)
    if r"\mp" in signs:
        together = [["+-"[(sign == r"\mp") ^ k] for sign in signs] for k in (0, 1)]
    else:
        together = [list(choice) for choice in product(*choices)]
    values = []
    for chosen in together:
        mixed = [tokens[0], *(x for pair in zip(chosen, tokens[2::2], strict=True) for x in pair)]
        values.append("".join(mixed).removeprefix("+"))
    return values
