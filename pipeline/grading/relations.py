r"""Read answers that name the unknown (x=5), and inequalities as intervals."""

import re

from pipeline.grading.structure import pieces, split_list

_GREEK = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|chi"
    "|psi|omega|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega"
)
_NAME = (
    rf"(?:(?:[A-Za-z]|\\(?:{_GREEK})(?![A-Za-z]))(?:_(?:\w|\{{\w+\}}))?'*"
    r"(?:\([A-Za-z0-9,+-]{1,12}\))?|[A-Z]{2,3})"
)
_NAMED = re.compile(rf"({_NAME}|\({_NAME}(?:,{_NAME})+\))(?:(=)|(\\in)(?![A-Za-z]))(.+)", re.DOTALL)
_SET = re.compile(r" ?(?:[\[(]|\\(?:\{|mathbb|emptyset))")
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|in|ne)(?![A-Za-z])")
_ORDER = re.compile(r"(<|>|\\[lg]e(?![A-Za-z])|\\ne(?![A-Za-z]))")
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\ne": r"\ne"}


def has_relation(text: str) -> bool:
    """Whether a text has an equality, an inequality or a membership sign."""
    return bool(_RELATION.search(text))


def named(text: str) -> tuple[str, str] | None:
    r"""(name with its sign, value) of a text such as x=5, f(x)=x+1, (p,q)=(3,2), x\in[0,1).

    None where the value is a relation or has the name in it, as in x=x+1.

    >>> named("x=5"), named("5=x"), named("x=x+1")
    (('x=', '5'), None, None)
    """
    match = _NAMED.fullmatch(text)
    if match is None or has_relation(match[4]) or (match[3] and not _SET.match(match[4])):
        return None
    letter = (re.match(r"\\?[A-Za-z]+", match[1]) or [""])[0]
    formula = re.sub(r"(?<![A-Za-z\\])[A-Za-z]{4,}", "", match[4])
    if letter and re.search(rf"{re.escape(letter)}(?![A-Za-z])", _spaced(formula)):
        return None
    return match[1] + (match[2] or match[3]), match[4].strip()


def unnamed(text: str) -> tuple[tuple[str, ...], list[str]]:
    r"""(names, values): of a named value, or of a list of them. No names where it is neither.

    >>> unnamed("x=1,x=2"), unnamed("x=1,y=2"), unnamed("x=1,2")
    ((('x=',), ['1,2']), (('x=', 'y='), ['1', '2']), (('x=',), ['1,2']))
    """
    if (whole := named(text)) is not None:
        return (whole[0],), [whole[1]]
    texts = split_list(text)
    listed = [pair for piece in texts if (pair := named(piece)) is not None]
    if len(texts) < 2 or len(listed) < len(texts):
        return (), [text]
    names = tuple(dict.fromkeys(name for name, _ in listed))
    values = [value for _, value in listed]
    if len(names) == 1:
        return names, [",".join(values)]
    return (names, values) if len(names) == len(values) else ((), [text])


def interval(text: str) -> tuple[str, str] | None:
    r"""(name, the interval) of an inequality about a name; None for anything else.

    "or" joins intervals, "and" takes what two bounds have in common.

    >>> interval(r"x\ge5"), interval(r"-2\le x<7")[1], interval("x<1 or x>3")[1]
    (('x', '[5,\\infty)'), '[-2,7)', '(-\\infty,1)\\cup(3,\\infty)')
    """
    if not _ORDER.search(text):
        return None
    texts = re.split(r",? ?\bor\b ?|\\cup(?![A-Za-z])", text)
    either = [pair for piece in texts if (pair := _both(piece)) is not None]
    if len(either) < len(texts) or len({name for name, _ in either}) != 1:
        return None
    return either[0][0], r"\cup".join(found for _, found in either)


def _both(text: str) -> tuple[str, str] | None:
    """The interval of one inequality, or of a lower and an upper bound that "and" joins."""
    texts = re.split(r" ?\band\b ?", text)
    bounds = [pair for piece in texts if (pair := _bounded(piece)) is not None]
    if len(bounds) < len(texts) or len(bounds) > 2:
        return None
    if len(bounds) == 1:
        return bounds[0]
    lower = [b for _, b in bounds if b.endswith(r",\infty)")]
    upper = [b for _, b in bounds if b.startswith(r"(-\infty,")]
    if bounds[0][0] != bounds[1][0] or len(lower) != 1 or len(upper) != 1:
        return None
    return bounds[0][0], lower[0].removesuffix(r"\infty)") + upper[0].removeprefix(r"(-\infty,")


def _bounded(text: str) -> tuple[str, str] | None:
    r"""The interval of x<b, a<x or a<x<b; x\ne a is a union of two."""
    sides = [side.strip() for side in _ORDER.split(text.strip())]
    if not all(sides) or len(sides) not in (3, 5) or len(pieces(text, ",")) > 1:
        return None
    if len(sides) == 3:
        first, sign, second = sides
        if not re.fullmatch(_NAME, first):
            first, sign, second = second, _FLIPPED[sign], first
        if not re.fullmatch(_NAME, first) or _mentions(second, first):
            return None
        return first, {
            "<": rf"(-\infty,{second})", r"\le": rf"(-\infty,{second}]",
            ">": rf"({second},\infty)", r"\ge": rf"[{second},\infty)",
            r"\ne": rf"(-\infty,{second})\cup({second},\infty)",
        }[sign]  # fmt: skip
    low, left, name, right, high = sides
    if left in (">", r"\ge"):
        low, left, right, high = high, _FLIPPED[right], _FLIPPED[left], low
    if left not in ("<", r"\le") or right not in ("<", r"\le"):
        return None
    if not re.fullmatch(_NAME, name) or _mentions(low + high, name):
        return None
    return name, f"{'[' if left != '<' else '('}{low},{high}{']' if right != '<' else ')'}"


def _mentions(value: str, name: str) -> bool:
    return has_relation(value) or bool(re.search(rf"{re.escape(name)}(?![A-Za-z])", _spaced(value)))


def _spaced(formula: str) -> str:
    """The letters of a formula apart from each other, its commands in one piece."""
    return re.sub(r"(\\[A-Za-z]+|[A-Za-z])", r"\1 ", formula)
