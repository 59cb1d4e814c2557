r"""Do two written answers agree? THE one judge: of rewards, of votes, and of metrics.

The judge doubts. An answer that a policy should not be paid for, or a metric should not count, is
refused even where a person would be lenient, in this order:

1. Equal in plain form (`_literals.plain`: less LaTeX, same content) is equal.
2. If a literal number is expected, the answer must itself be one, of exactly the same value. So
   40+2, 41=42, 6\times7, x=42, [42,42] are not 42: computing it was the question. The answer may
   add a unit (18 dollars) or leave it out, never contradict it; 42% is 0.42.
3. A choice (B), yes, no, or a word is compared as such; x is not X.
4. Lists, tuples, sets, intervals, matrices are compared part by part: (1,2) is not \{1,2\}.
5. Two short formulas about the same letters go to math-verify, behind a wall (`_math_judge`).
   Without a verdict in 1 s they are different, and `grader_stats` counts it.
"""

import re
from collections.abc import Callable, Sequence

from pipeline.grading.numeric import Literal, literal, plain, split_unit
from pipeline.grading.structure import parts
from pipeline.grading.worker_pool import Inquiry, stats

MAX_CHARACTERS = 4096
MAX_PARTS = 64


def same_answer(answer: str, expected: str) -> bool:
    r"""Whether a visible answer states the expected one; an empty answer never does.

    Pass the visible part of a completion: a number inside a thought is not an answer.

    >>> same_answer("The answer is 1,234.", "1234"), same_answer(r"\boxed{\frac12}", "0.5")
    (True, True)
    >>> same_answer("40+2", "42"), same_answer("(1,2)", r"\{1,2\}"), same_answer("", "")
    (False, False, False)
    """
    given, wanted = final_answer(answer), final_answer(expected)
    if not given or not wanted or max(len(given), len(wanted)) > MAX_CHARACTERS:
        return False
    given, wanted, ask = plain(given), plain(wanted), Inquiry().agree
    bare = _without_name(given, wanted) or _without_unit(given, wanted)
    return _agree(given, wanted, ask) or (bare is not None and _agree(*bare, ask))


def final_answer(visible: str) -> str:
    r"""What a visible answer commits to: its last box; else what follows its last "answer is", up
    to the end of that sentence; else all of it.

    >>> final_answer(r"So \boxed{3}, no: \boxed{4}."), final_answer("The answer is 3.5. Easy!")
    ('4', '3.5')
    >>> final_answer(" 42 ")
    '42'
    """
    box = boxed(visible)
    if box is not None:
        return box.strip()
    stated = _ANSWER_IS.split(visible)
    if len(stated) == 1:
        return visible.strip()
    # A full stop ends the sentence before a capital only: 34 sq. units.
    return re.split(r"\n|\.\s+(?=[A-Z])|\.$", stated[-1].strip(), maxsplit=1)[0].strip()


def boxed(text: str) -> str | None:
    r"""The contents of the last \boxed or \fbox, braces matched; None without one, or if the last
    one never closes.

    >>> boxed(r"\boxed{1} or \boxed{\frac{1}{2}}"), boxed(r"is $\boxed 2$."), boxed(r"\boxed{4")
    ('\\frac{1}{2}', '2', None)
    """
    starts = list(re.finditer(r"\\(?:boxed|fbox)(?![A-Za-z])\s*", text))
    if not starts:
        return None
    begin = starts[-1].end()
    if text[begin : begin + 1] != "{":
        return re.split(r"[\s$}]|\.$|\.\s", text[begin:], maxsplit=1)[0] or None
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text[begin:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return text[begin + 1 : begin + token.start()]
    return None


def grader_stats() -> dict[str, int]:
    """How often math-verify was asked, timed out, failed to read its input, and was started."""
    return stats()


Ask = Callable[[str, str], bool]

_ANSWER_IS = re.compile(r"\banswer\s*(?:\bis\b\s*:?|:)", re.IGNORECASE)
_CHOICE = re.compile(r"\(([A-Z])\)|([A-Z])")
_CHOSEN = re.compile(r"(?:[Oo]ption |[Cc]hoice )?\(?([A-Z])(?:\)|[.:]\)?)?")
_CHOSEN_WITH_TEXT = re.compile(r"\(?([A-Z])(?:\)|[.:])(.+)", re.DOTALL)
_OTHER_CHOICE = re.compile(r"(?<![A-Za-z])[A-Z](?![a-z A-Z'])|\b(?:or|and)\(?[A-Z]\b|[A-Z]\)")
_VERDICTS = frozenset(("yes", "no", "maybe", "true", "false", "valid", "invalid"))
_NAMED = re.compile(r"([A-Za-z]|[a-z]\([a-z]\))(=|\\in(?![A-Za-z]))(.+)", re.DOTALL)
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|in|ne|neq)(?![A-Za-z])")


def _agree(given: str, expected: str, ask: Ask) -> bool:
    """Whether two texts in plain form say the same; `ask` settles formulas."""
    if not given or not expected:
        return False
    if _folded(given) == _folded(expected):
        return True
    wanted = literal(expected)
    if wanted is not None:
        found = literal(given)
        return found is not None and _numbers_agree(found, wanted)
    if choice := _CHOICE.fullmatch(expected):
        return _chosen(given) == (choice[1] or choice[2])
    ours, theirs = parts(given), parts(expected)
    if ours.kind != theirs.kind:
        return False
    if theirs.kind == "atom":
        # An equation to be solved for x must not pass for x=5.
        return not _NAMED.fullmatch(expected) and ask(given, expected)
    return _parts_agree(ours.texts, theirs.texts, ask, ordered=theirs.ordered)


def _folded(text: str) -> str:
    r"""Without the case of yes and no and of the first letter of a word; \Delta and AB keep theirs.

    >>> _folded("YES"), _folded("Red Car"), _folded("X"), _folded(r"\Delta")
    ('yes', 'red car', 'X', '\\Delta')
    """
    if text.lower() in _VERDICTS:
        return text.lower()
    return re.sub(r"(?<![\\A-Za-z])[A-Z](?=[a-z]{2})", lambda m: m[0].lower(), text)


def _numbers_agree(given: Literal, expected: Literal) -> bool:
    if given.unit and expected.unit and given.unit != expected.unit:
        return False
    if given.is_ratio and expected.value.denominator == 1:
        return False  # 84/2 for 42 repeats the question
    if given.value == expected.value:
        return True
    # Data sets write 5/6 as 0.8333333333; the exact answer must not be wrong there.
    is_rounded = expected.decimals >= 4 and not 0 < given.decimals <= expected.decimals
    return is_rounded and round(given.value, expected.decimals) == expected.value


def _chosen(given: str) -> str | None:
    """The letter of the one option that an answer names: "B", "(B)", "Option B", "B) Paris"."""
    if match := _CHOSEN.fullmatch(given):
        return match[1]
    match = _CHOSEN_WITH_TEXT.fullmatch(given)
    return match[1] if match and not _OTHER_CHOICE.search(match[2]) else None


def _without_name(given: str, expected: str) -> tuple[str, str] | None:
    r"""Both without the name that is expected, as in x=5 or x\in[0,1]; None where it is not so.

    An answer may leave the name out or state it too, but not another name.
    """
    wanted, stated = _NAMED.fullmatch(expected), _NAMED.fullmatch(given)
    if wanted is None or _RELATION.search(wanted[3]):
        return None
    if stated is None:
        return None if _RELATION.search(given) else (given, wanted[3])
    return (stated[3], wanted[3]) if stated.group(1, 2) == wanted.group(1, 2) else None


def _without_unit(given: str, expected: str) -> tuple[str, str] | None:
    r"""Both formulas without the unit of 12\sqrt{13} feet; None for a number, whose unit has been
    looked at, and where the units contradict."""
    if literal(expected) is not None:
        return None
    (given, stated), (expected, wanted) = split_unit(given), split_unit(expected)
    contradict = stated and wanted and stated != wanted
    return (given, expected) if (stated or wanted) and not contradict else None


def _parts_agree(given: Sequence[str], expected: Sequence[str], ask: Ask, *, ordered: bool) -> bool:
    """Whether the parts agree one by one; without an order, whether they can be paired off."""
    if len(given) != len(expected) or len(given) > MAX_PARTS:
        return False
    if ordered:
        return all(_agree(a, b, ask) for a, b in zip(given, expected, strict=True))
    left = list(expected)
    for part in given:
        partner = next((i for i, other in enumerate(left) if _agree(part, other, ask)), None)
        if partner is None:
            return False
        del left[partner]
    return True
