"""A key that saves comparisons: answers with different keys do not agree.

`same_answer` compares two answers in up to milliseconds, so grouping n different ones by it takes
n * n / 2 comparisons. Most answers are numbers or single words, which have a key.
"""

import re
from fractions import Fraction

from pipeline.grading.announcements import MAX_CHARACTERS, final_answer
from pipeline.grading.normalization import plain
from pipeline.grading.numeric import literal

# Shorter words may be variables or units; of longer ones only the letters count.
_WORD = re.compile(r"[A-Za-z]{4,}")
MAX_DECIMALS = 3  # from four decimals on, a number may be the rounded form of another

ComparisonKey = Fraction | str


def comparison_key(answer: str, question: str = "") -> ComparisonKey | None:
    """Return a number's value or a word's letters; None where only `same_answer` can tell.

    Two answers with keys agree only if their keys are equal. The converse does not hold: 5 apples
    and 5 pears have one key.

    >>> comparison_key("1,234"), comparison_key("The answer is 0.5"), comparison_key("Paris")
    (Fraction(1234, 1), Fraction(1, 2), 'paris')
    >>> comparison_key("20%"), comparison_key("2x+1"), comparison_key("0.3333")
    (None, None, None)
    """
    text = final_answer(answer)
    if not text or len(text) > MAX_CHARACTERS:
        return None
    text = plain(text)
    if _WORD.fullmatch(text):
        return text.lower()
    number = literal(text, question)
    if number is None or not number.unit.is_sure or number.is_percent:
        return None
    return number.value if number.decimals <= MAX_DECIMALS else None
