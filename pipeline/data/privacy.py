"""Find personal data and secrets in training text: e-mail addresses, phone numbers, keys.

Only forms that are unlikely by chance are counted, since arithmetic is full of digits: a phone
number needs its separators, a card number its check digit (Luhn). Names, street addresses and
phone numbers written as plain digits are not found.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from pipeline.records import Problem

PLACES = 3  # ids of problems that a card names for each kind
# Domains and numbers that are reserved for examples (RFC 2606).
_EXAMPLE = re.compile(
    r"@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|[\w-]+\.(?:test|invalid|example))$"
)
_KEYS = (
    r"AKIA[0-9A-Z]{16}",  # AWS
    r"gh[pousr]_[A-Za-z0-9]{36}",  # GitHub
    r"github_pat_\w{60,}",
    r"hf_[A-Za-z0-9]{30,}",  # Hugging Face
    r"sk-[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic
    r"[sr]k_live_[A-Za-z0-9]{16,}",  # Stripe
    r"xox[abprs]-[A-Za-z0-9-]{10,}",  # Slack
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",  # a JSON web token
)
PATTERNS: dict[str, re.Pattern[str]] = {
    "email": re.compile(r"(?<![\w.+-])[\w.+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}\b"),
    "phone": re.compile(
        r"(?<![\w.)/+*=-])(?<![\d)] )"
        r"(?:\+\d{1,3}[ .-](?:\(?\d{1,4}\)?[ .-]){1,4}\d{2,4}|\(\d{3}\) ?\d{3}-\d{4}"
        r"|\d{3}-\d{3}-\d{4})(?![\w*/=+-]|\.\d)(?! ?[*/=])"
    ),
    "social_security": re.compile(r"(?<![\w.+*/=-])\d{3}-\d{2}-\d{4}(?![\w*/=+-])(?! ?[*/=])"),
    "card": re.compile(r"(?<![\d-])\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?![\d-])"),
    "key": re.compile(r"(?<!\w)(?:" + "|".join(_KEYS) + r")(?!\w)"),
    "private_key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "password": re.compile(
        r"(?i)\b(?:password|passwd|pwd|secret|api_?key|access_?token)\b[\"']?\s*[:=]\s*"
        r"([\"'])[^\"'\s]{6,}\1"
    ),
}


def find_private(text: str) -> Iterator[tuple[str, str]]:
    """(kind, the text found) of everything that looks private; kinds are those of PATTERNS.

    >>> list(find_private("Write to ann@mail.org or +49 30 1234 567"))
    [('email', 'ann@mail.org'), ('phone', '+49 30 1234 567')]
    """
    for kind, pattern in PATTERNS.items():
        for match in pattern.finditer(text):
            if _CHECKS.get(kind, _any)(match.group()):
                yield kind, match.group()


def privacy_card(problems: Sequence[Problem]) -> dict[str, object]:
    """{"rows", "rows_with_findings", "found": {kind: count}, "where": {kind: ids of problems}}.

    Question, thought and answer are checked. The texts themselves are not in the card: it is
    published beside the data.
    """
    found = dict.fromkeys(PATTERNS, 0)
    where: dict[str, list[str]] = {}
    rows = 0
    for problem in problems:
        texts = (problem.question, problem.thought, problem.answer)
        hits = [kind for text in texts for kind, _ in find_private(text)]
        rows += bool(hits)
        for kind in hits:
            found[kind] += 1
            places = where.setdefault(kind, [])
            if problem.id not in places and len(places) < PLACES:
                places.append(problem.id)
    return {
        "rows": len(problems),
        "rows_with_findings": rows,
        "found": found,
        "where": where,
    }


def _any(text: str) -> bool:
    return True


def _is_card_number(text: str) -> bool:
    """Whether the digits have the check digit of Luhn's formula."""
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
    return (sum(doubled) + sum(digits[::-2])) % 10 == 0 and any(digits)


def _is_own_email(text: str) -> bool:
    return not _EXAMPLE.search(text.lower())


def _is_phone(text: str) -> bool:
    return 9 <= sum(c.isdigit() for c in text) <= 15


_CHECKS: dict[str, Callable[[str], bool]] = {
    "card": _is_card_number,
    "email": _is_own_email,
    "phone": _is_phone,
}
