"""Read answers that give each of several people a role, as knights and knaves do."""

import re

_STATEMENT = re.compile(r"[*_]*([A-Za-z][A-Za-z'-]*)[*_]*(?: is an? |: ?)[*_]*([A-Za-z]+)")
_BETWEEN = re.compile(r"(?:[\s,.;*_-]|\band\b|\(?\b\d{1,2}[.)])*")


def roles(text: str) -> frozenset[tuple[str, str]]:
    """The (name, role) pairs, in small letters, of a text of nothing else; else empty.

    >>> sorted(roles("Mia is a knave, and Abe is a knight."))
    [('abe', 'knight'), ('mia', 'knave')]
    >>> roles("(1) Abe is a knight\\n(2) Mia is a knave") == roles("Mia: knave; Abe: knight")
    True
    >>> roles("Abe is a knight or Mia is a knave"), roles("42")
    (frozenset(), frozenset())
    """
    found, at = set(), _skip(text, 0)
    while at < len(text):
        statement = _STATEMENT.match(text, at)
        if statement is None:
            return frozenset()
        found.add((statement[1].lower(), statement[2].lower()))
        at = _skip(text, statement.end())
    return frozenset(found)


def _skip(text: str, at: int) -> int:
    between = _BETWEEN.match(text, at)
    assert between is not None
    return between.end()
