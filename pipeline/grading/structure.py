r"""A written answer taken apart into the answers it consists of. Helps `pipeline.grading.equivalence`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Parts:
    """What holds an answer together, and its parts in plain form."""

    kind: str  # "atom", "set", "union", a pair of brackets, or the shape of a matrix
    texts: Sequence[str]

    @property
    def ordered(self) -> bool:
        """A list of roots has no order; a list of words may have been asked for in one."""
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
    if len(union := _pieces(text, r"\cup")) > 1:
        return Parts("union", union)
    listed = _pieces(_AND.sub(",", text), ",")
    if len(listed) > 1 or r"\pm" in text:
        return Parts("set", [sign for piece in listed for sign in _both_signs(piece)])
    if text.startswith(r"\{") and text.endswith(r"\}"):
        elements = _pieces(text[2:-2], ",")
        return Parts("set", [sign for piece in elements for sign in _both_signs(piece)])
    if text[:1] in "([" and text[-1:] in ")]" and len(inside := _pieces(text[1:-1], ",")) > 1:
        return Parts(text[0] + text[-1], inside)
    return Parts("atom", [text])


_MATRIX = re.compile(r"\\begin\{([pb]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_AND = re.compile(r",? ?\b(?:and|or)\b ?")
_BRACKETS = {"(": 1, "[": 1, "{": 1, r"\{": 1, ")": -1, "]": -1, "}": -1, r"\}": -1}


def _pieces(text: str, separator: str) -> list[str]:
    """The text cut at the separators that no bracket encloses."""
    pieces, begin, depth = [], 0, 0
    for token in re.finditer(r"\\cup(?![A-Za-z])|\\[{}]|[()\[\]{},]", text):
        depth += _BRACKETS.get(token[0], 0)
        if depth < 0:
            return [text]
        if token[0] == separator and depth == 0:
            pieces.append(text[begin : token.start()].strip())
            begin = token.end()
    return [*pieces, text[begin:].strip()]


def _both_signs(text: str) -> list[str]:
    r"""What \pm stands for: two values."""
    if text.count(r"\pm") != 1:
        return [text]
    return [re.sub(r"\\pm *", sign, text).removeprefix("+") for sign in "+-"]
