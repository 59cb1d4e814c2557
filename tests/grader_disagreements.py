"""Print where the grader and plain math-verify differ on the labelled pairs, as a Markdown table.

python -m tests.grader_disagreements > docs/grader_disagreements.md
"""

import logging

from math_verify import parse, verify

from pipeline.grading import same_answer
from tests import equivalence_pairs
from tests.test_equivalence import EQUAL, WRONG, numbers_in_forms, pairs


def plain(answer: str, expected: str) -> bool:
    """math-verify as its README uses it."""
    return bool(verify(parse(f"${expected}$"), parse(answer)))


def main() -> None:
    logging.disable(logging.CRITICAL)
    wrong = (*pairs(WRONG), *pairs(equivalence_pairs.WRONG))
    right = (*pairs(EQUAL), *numbers_in_forms(), *pairs(equivalence_pairs.RIGHT))
    labelled = [(a, e, False) for a, e in wrong] + [(a, e, True) for a, e in right]
    rows, mistakes = [], {"grader": 0, "math-verify": 0}
    for answer, expected, label in labelled:
        ours, theirs = same_answer(answer, expected), plain(answer, expected)
        mistakes["grader"] += ours != label
        mistakes["math-verify"] += theirs != label
        if ours != theirs:
            shown = (f"`{text!r}`".replace("|", "\\|") for text in (expected, answer))
            rows.append(f"| {' | '.join(shown)} | {label} | {ours} | {theirs} |")
    print("# Where the grader and plain math-verify differ\n")
    print(f"Of {len(labelled)} labelled pairs the grader gets {mistakes['grader']} wrong, "
          f"plain math-verify {mistakes['math-verify']}.\n")  # fmt: skip
    print("| expected | answer | label | grader | math-verify |\n| :-- | :-- | :-- | :-- | :-- |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
