"""Whether a question asks for a percentage."""

import re
from functools import lru_cache

_SENTENCE = re.compile(r"[.?!]\s+(?=[A-Z\"(])|\n")
_ASKED = re.compile(
    r"\b(?:what|which|how many|by what|find the|determine the|calculate the|compute the)\b"
    r"(?:(?!\d)[^,;:]){0,60}?\bpercent(?:age)?\b"
    r"|\b(?:as|in)\s+(?:a\s+|the\s+nearest\s+(?:whole\s+)?)?percent(?:age)?s?\b"
    r"|\bnearest\s+(?:\w+\s+){0,2}percent\b",
    re.IGNORECASE,
)
_GIVEN = re.compile(r"\b(?:such that|so that|given that|if)\b.*?,", re.IGNORECASE)


@lru_cache(512)
def asks_percent(question: str) -> bool:
    """Whether a question asks for a percentage rather than mentions one.

    >>> asks_percent("20 of 80 cars are red. What percentage of the cars is red?")
    True
    >>> asks_percent("A percentage of 20 is paid. How much is it?"), asks_percent("")
    (False, False)
    """
    if "percent" not in question.lower():
        return False
    return any(_ASKED.search(_GIVEN.sub("", part)) for part in _SENTENCE.split(question))
