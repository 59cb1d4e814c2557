r"""Whether two written answers agree; used by rewards, votes and metrics.

The comparison is strict: an answer that should not be rewarded is refused even where a person would
be lenient. In this order:

1. Equal in plain form (`normalization`: less LaTeX, same content) is equal.
2. If a literal number is expected, the answer must itself be one, of exactly the same value. So
   40+2, 41=42, 6\times7, [42,42] are not 42: computing it was the question. The answer may add a
   unit (18 dollars) or leave it out, never contradict it (`units`); 42% is 0.42, or 42 where the
   question asks for a percentage.
3. A choice (B), yes, no, or a word is compared as such; x is not X.
4. Lists, tuples, sets, intervals, matrices are compared part by part: (1,2) is not \{1,2\}. A name
   of the unknown may be added or left out: x=5 is 5 (`relations`). Roles of several people, as of
   knights and knaves, are compared in any order (`roles`).
5. Two short formulas about the same letters are compared in normal form and at two points
   (`formulas`); what that leaves open goes to math-verify in a worker process (`math_comparison`).
   A formula copied from the question is refused unless it is the expected text: "Expand $(x+1)^2$".
   Without an outcome in bounded processor time they count as different here, `grade` has no
   verdict, and `grader_stats` counts it.

No text raises or takes unbounded time: long or deeply nested answers are refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from math import gcd

from pipeline.grading.announcements import MAX_CHARACTERS, boxed, final_answer, readings
from pipeline.grading.formulas import formulas_agree
from pipeline.grading.math_comparison import ComparisonBudget
from pipeline.grading.normalization import plain
from pipeline.grading.numeric import Literal, literal, split_unit
from pipeline.grading.percent import asks_percent
from pipeline.grading.relations import has_relation, interval, named, unnamed
from pipeline.grading.roles import roles
from pipeline.grading.structure import is_too_deep, parts, split_list, without_parentheses

__all__ = ["boxed", "final_answer", "same_answer"]

MAX_PARTS = 64
MAX_COMPARISONS = 5_000  # of parts for one answer


def same_answer(answer: str, expected: str, question: str = "") -> bool:
    r"""Whether a visible answer states the expected one; an empty answer never does.

    Pass the visible part of a completion: a number inside a thought is not an answer. With the
    question, plurals that it uses may follow a number (5 gloops), and 20% is 20 where it asks
    for a percentage.

    >>> same_answer("The answer is 1,234.", "1234"), same_answer(r"\boxed{\frac12}", "0.5")
    (True, True)
    >>> same_answer("40+2", "42"), same_answer("(1,2)", r"\{1,2\}"), same_answer("", "")
    (False, False, False)
    >>> same_answer("20%", "20", "What percentage is red?"), same_answer("20%", "20")
    (True, False)
    """
    wanted = final_answer(expected)
    comparison = _Comparison(question)
    return any(
        all(comparison.states(given, wanted) for given in reading) for reading in readings(answer)
    )


_CHOICE = re.compile(r"\(([A-Z])\)|([A-Z])")
_CHOSEN = re.compile(
    r"(?:[Oo]ption |[Cc]hoice |[Oo]ption(?=\()|[Cc]hoice(?=\())?"
    r"(?:\(?([A-Z])(?:\)|[.:]\)?)?|\[([A-Z])\])"
    r"(?: ?is(?: the)? (?:correct|right)(?: (?:answer|option|choice))?)?"
)
_CHOSEN_WITH_TEXT = re.compile(
    r"(?:(?:[Oo]ption|[Cc]hoice) ?)?\(?([A-Z])(?:\)|[.:])(.+)", re.DOTALL
)
_OTHER_CHOICE = re.compile(r"(?<![A-Za-z])[A-Z](?![a-z A-Z'])|\b(?:or|and)\(?[A-Z]\b|[A-Z]\)")
_OPTION = re.compile(r"^\(?([A-Z])\) (.+)$", re.MULTILINE)
_LETTERS_FIRST = re.compile(r"[A-Z](?:,|\W*$| (?:and|or)\b)")
_TRUTH_WORDS = frozenset(("yes", "no", "maybe", "true", "false", "valid", "invalid"))
# A variable: no command, no unit or conjunction, neither e nor i.
_LETTER = re.compile(r"(?<![A-Za-z\\])(?!(?:and|or)\b)[A-Za-z]{1,3}(?![A-Za-z])(?<![^A-Za-z][ei])")
_FORMULA = re.compile(
    r"\\\[(.{1,300}?)\\\]|\\\((.{1,300}?)\\\)|\$\$(.{1,300}?)\$\$|(?<!\\)\$(.{1,300}?)(?<!\\)\$",
    re.DOTALL,
)
_CHOICE_OF_FORMULAS = re.compile(r"\b(?:[Ww]hich|larger|smaller|greater|less)\b")
_RATIO = re.compile(r"([1-9]\d*):([1-9]\d*)")


@dataclass
class _Comparison:
    """One comparison of two answers: the question, and what is left of its budgets."""

    question: str
    budget: ComparisonBudget = field(default_factory=ComparisonBudget)
    comparisons: int = MAX_COMPARISONS

    def states(self, given: str, expected: str) -> bool:
        """Whether a final answer, as it was written, states the expected one."""
        if not given or not expected or max(len(given), len(expected)) > MAX_CHARACTERS:
            return False
        if is_too_deep(given) or is_too_deep(expected):
            return False
        ours, theirs = plain(given), plain(expected)
        if len(wanted := roles(theirs)) > 1:
            return roles(ours) == wanted
        if self.agree(ours, theirs) or self._agree_without_names(ours, theirs):
            return True
        if self._agree_without_units(ours, theirs):
            return True
        # 32,349 is a number, but a list where a list is expected.
        listed = plain(given, groups_digits=False)
        return listed != ours and parts(theirs).kind == "set" and self.agree(listed, theirs)

    def agree(self, given: str, expected: str) -> bool:
        """Whether two texts in plain form say the same."""
        self.comparisons -= 1
        if not given or not expected or self.comparisons < 0:
            return False
        if _folded(given) == _folded(expected):
            return True
        if choice := _CHOICE.fullmatch(expected):
            return _chosen(given, self.question) == (choice[1] or choice[2])
        given, expected = without_parentheses(given), without_parentheses(expected)
        wanted = literal(expected, self.question)
        if wanted is not None and wanted.unit.is_sure:
            found = literal(given, self.question)
            if found is not None:
                return self._numbers_agree(found, wanted)
            return _is_ratio_of(given, wanted)
        if ratio := _RATIO.fullmatch(expected):
            found = literal(given)
            return found is not None and _is_ratio_of(ratio[0], found)
        return self._structures_agree(given, expected)

    def _structures_agree(self, given: str, expected: str) -> bool:
        """Whether two intervals, lists, matrices or formulas agree."""
        bounds = interval(given), interval(expected)
        if len({found[0] for found in bounds if found}) == 1:  # the same unknown, or one unnamed
            given, expected = (
                found[1] if found else text
                for found, text in zip(bounds, (given, expected), strict=True)
            )
        ours, theirs = parts(given), parts(expected)
        if ours.kind != theirs.kind:
            return False
        if theirs.kind == "atom":
            return self._atoms_agree(given, expected)
        return self._parts_agree(ours.texts, theirs.texts, ordered=theirs.ordered)

    def _parts_agree(self, given: Sequence[str], expected: Sequence[str], *, ordered: bool) -> bool:
        """Whether the parts agree one by one; without an order, whether they can be paired off."""
        if len(given) != len(expected) or len(given) > MAX_PARTS:
            return False
        if ordered:
            return all(self.agree(a, b) for a, b in zip(given, expected, strict=True))
        left = list(expected)
        for part in given:
            partner = next((i for i, other in enumerate(left) if self.agree(part, other)), None)
            if partner is None:
                return False
            del left[partner]
        return True

    def _atoms_agree(self, given: str, expected: str) -> bool:
        wanted = named(expected)
        if wanted is not None:
            # An equation to be solved for x must not pass for x=5.
            stated = named(given)
            if stated is None or stated[0] != wanted[0]:
                return False
            return self.agree(stated[1], wanted[1])
        found = literal(given)
        if found is None and given in _formulas_of(self.question):
            return False  # "Expand $(x+1)^2$" must not be answered by (x+1)^2
        if found is not None and not found.unit and not found.is_percent:
            given = _as_formula(found)
        return formulas_agree(given, expected, self.budget.agree)

    def _agree_without_names(self, given: str, expected: str) -> bool:
        r"""Whether they agree without the name of the unknown, as in x=5 or x\in[0,1].

        One of them may leave the name out; two names must be the same. Values of different names
        have an order: x=1,y=2 is 1,2 and (1,2) but not 2,1.
        """
        (our_names, ours), (their_names, theirs) = unnamed(given), unnamed(expected)
        if not (our_names or their_names) or len(their_names) > 1:
            return False
        if our_names and their_names:
            return our_names == their_names and self.agree(ours[0], theirs[0])
        if their_names:
            return not has_relation(given) and self.agree(given, theirs[0])
        if len(our_names) == 1:
            # y=x+0 must not pass for x: of a formula about letters only the text may follow a name.
            is_value = literal(expected, self.question) is not None or not _LETTER.search(expected)
            return (
                self.agree(ours[0], expected) if is_value else _folded(ours[0]) == _folded(expected)
            )
        listed = parts(expected)
        theirs = list(listed.texts) if listed.kind == "()" else split_list(expected)
        return list(our_names) == sorted(our_names) and self._parts_agree(
            ours, theirs, ordered=True
        )

    def _agree_without_units(self, given: str, expected: str) -> bool:
        r"""Whether formulas agree without the unit of 12\sqrt{13} feet. Of a literal number the
        unit has been looked at, and a choice has none: (B) a stone."""
        has_none = _RATIO.fullmatch(expected) or _CHOICE.fullmatch(expected)
        if has_none or literal(expected, self.question) is not None:
            return False
        (ours, stated), (theirs, wanted) = split_unit(given), split_unit(expected)
        if not (stated or wanted) or stated.contradicts(wanted):
            return False
        return self.agree(ours, theirs)

    def _numbers_agree(self, given: Literal, expected: Literal) -> bool:
        if given.unit.contradicts(expected.unit):
            return False
        if not (given.unit.is_sure or expected.unit) and given.unit.is_tight:
            return False  # 5m is a product unless metres are expected
        if given.is_ratio and expected.value.denominator == 1:
            return False  # 84/2 for 42 repeats the question
        if given.is_percent != expected.is_percent and asks_percent(self.question):
            if given.is_percent:
                return given.value * 100 == expected.value
            if given.value == expected.value * 100:
                return True
        if given.value == expected.value:
            return True
        # Data sets write 5/6 as 0.8333333333; the exact answer must not be wrong there.
        is_rounded = expected.decimals >= 4 and not 0 < given.decimals <= expected.decimals
        return is_rounded and round(given.value, expected.decimals) == expected.value


def _folded(text: str) -> str:
    r"""Without the case of yes and no and of the first letter of a word; \Delta and AB keep theirs.

    >>> _folded("YES"), _folded("Red Car"), _folded("X"), _folded(r"\Delta")
    ('yes', 'red car', 'X', '\\Delta')
    """
    if text.lower() in _TRUTH_WORDS:
        return text.lower()
    return re.sub(r"(?<![\\A-Za-z])[A-Z](?=[a-z]{2})", lambda m: m[0].lower(), text)


def _chosen(given: str, question: str) -> str | None:
    """The letter of the one option that an answer in plain form names, None if there is none.

    "B", "(B)", "[B]", "Option B is correct", "B) Paris", "Option B: Paris"; with the question also
    its option B in other forms, "B, Paris", "B - Paris" and "B (Paris)", or with a capital letter
    alone in its text, "B) 78 F", and none for the text of another option.
    """
    if match := _CHOSEN.fullmatch(given):
        return match[1] or match[2]
    if letter := _written_options(question).get(_folded(given)):
        return letter
    match = _CHOSEN_WITH_TEXT.fullmatch(given)
    if match is None or _OTHER_CHOICE.search(match[2]):
        return None
    options = _OPTION.findall(question)
    named = {letter for letter, text in options if _folded(plain(text)) == _folded(match[2])}
    return match[1] if not named or match[1] in named else None


@lru_cache(512)
def _formulas_of(question: str) -> frozenset[str]:
    r"""The formulas between the math delimiters of a question, in plain form; none where one of
    them may be the answer.

    >>> sorted(_formulas_of(r"Add $(x+1)$ to \[ x^2 \]")), _formulas_of("Which of $a$ and $b$?")
    (['x+1', 'x^2'], frozenset())
    """
    if _CHOICE_OF_FORMULAS.search(question):
        return frozenset()
    found = (next(filter(None, groups)) for groups in _FORMULA.findall(question))
    short = (formula for formula in found if not is_too_deep(formula))
    return frozenset(without_parentheses(plain(formula)) for formula in short)


@lru_cache(512)
def _written_options(question: str) -> dict[str, str]:
    """{option in plain form: its letter} of the lines "B) Paris" or "(B) Paris" of a question."""
    found: dict[str, str] = {}
    for letter, text in _OPTION.findall(question):
        forms = [f"{letter}) {text}", f"({letter}) {text}", f"[{letter}] {text}"]
        forms += [f"{letter}. {text}", f"{letter}: {text}", f"{letter} ({text})"]
        forms += [f"{letter} - {text}", f"Option {letter}: {text}", f"Option ({letter}) {text}"]
        if not _LETTERS_FIRST.match(text):  # "B, C" names two options
            forms.append(f"{letter}, {text}")
        found |= {_folded(plain(form)): letter for form in forms}
    return found


def _is_ratio_of(text: str, fraction: Literal) -> bool:
    """Whether a text such as 2:3 is a reduced ratio, and the fraction 2/3 its value."""
    match = _RATIO.fullmatch(text)
    if match is None or not fraction.is_ratio or fraction.unit:
        return False
    top, over = int(match[1]), int(match[2])
    return gcd(top, over) == 1 and fraction.value == Fraction(top, over)


def _as_formula(number: Literal) -> str:
    r"""A literal number as the parser of formulas reads it: 1e3 is 1000, 0.5 is \frac{1}{2}."""
    top, over = number.value.numerator, number.value.denominator
    return str(top) if over == 1 else rf"\frac{{{top}}}{{{over}}}"
