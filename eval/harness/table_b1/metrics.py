"""Scores of Table B1: choices, exact match and F1 of spans, and metrics of a whole task.

An answer that names no choice counts as wrong, and as label 0 in F1 and in Matthews' correlation.
A question of SQuAD without an answer wants the word for it: no text at all is no answer.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.grading.equivalence import final_answer

LETTERS = string.ascii_uppercase
UNANSWERABLE = "unanswerable"
Pair = tuple[float, float]  # expected and found


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float | Pair]:
    """The scores of one document; `doc` is made by `eval.harness.table_b1.tasks`.

    >>> doc = {"kind": "choice", "choices": ["no", "yes"], "label": 1, "metrics": ["acc"]}
    >>> process_results(doc, ["B. yes"])
    {'acc': 1.0}
    """
    text = plain_answer(results[0])
    if doc["kind"] == "span":
        exact, f1 = best_span_scores(text, doc["answers"], held_out=doc["held_out"])
        return {"exact": exact, "f1": f1}
    if doc["kind"] == "number":
        pair = (float(doc["label"]), number_in(text))
        return {"pearson": pair, "spearman": pair}
    found = chosen(text, doc["choices"])
    scores: dict[str, float | Pair] = {"acc": float(found == doc["label"])}
    pair = (float(doc["label"]), float(found or 0))
    scores |= {"binary_f1": pair, "mcc": pair}
    return {name: scores[name] for name in doc["metrics"]}


def plain_answer(text: str) -> str:
    """The content of a box, else the text itself without spaces around it."""
    return final_answer(text) or "" if "\\boxed{" in text else text.strip()


def chosen(text: str, choices: Sequence[str]) -> int | None:
    """The index of the choice that an answer names by its letter or its words, else None.

    >>> [chosen(t, ["no", "yes"]) for t in ("Yes.", "(A) no", "The answer is B", "A lot", "maybe")]
    [1, 0, 1, None, None]
    """
    own = [normalized(choice) for choice in choices]
    if (words := normalized(text)) in own:
        return own.index(words)
    letters = LETTERS[: len(choices)]
    named = re.search(rf"(?i:\b(?:answer|option|choice)(?: is)?:? *)\(?([{letters}])\b", text)
    leading = re.match(rf"\(?([{letters}])(?:[).:]|\s*$)", text)
    match = named or leading
    return letters.index(match.group(1)) if match else None


def normalized(text: str) -> str:
    """The text as SQuAD and CoQA compare it: lower case, no punctuation, no articles.

    >>> normalized("The  Eiffel Tower!")
    'eiffel tower'
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def span_scores(text: str, answer: str) -> tuple[float, float]:
    """(exact match, F1 of the words) after `normalized`, as in the script of SQuAD.

    >>> span_scores("in the Eiffel Tower", "Eiffel Tower")
    (0.0, 0.8)
    """
    found, expected = normalized(text).split(), normalized(answer).split()
    exact = float(found == expected)
    if not found or not expected:
        return exact, exact
    same = sum((Counter(found) & Counter(expected)).values())
    return exact, 2 * same / (len(found) + len(expected))


def best_span_scores(
    text: str, answers: Sequence[str], *, held_out: bool = False
) -> tuple[float, float]:
    """The best scores over the answers; no answers: the question has none.

    `held_out`: CoQA's mean over leaving out one of several answers, as its human score is made.
    """
    if not answers:
        right = float(normalized(text) == UNANSWERABLE)
        return right, right
    pairs = [span_scores(text, answer) for answer in answers]
    if not held_out or len(pairs) == 1:
        return max(exact for exact, _ in pairs), max(f1 for _, f1 in pairs)
    kept = [[pair for j, pair in enumerate(pairs) if j != i] for i in range(len(pairs))]
    best = [(max(e for e, _ in rest), max(f for _, f in rest)) for rest in kept]
    return sum(e for e, _ in best) / len(best), sum(f for _, f in best) / len(best)


def number_in(text: str) -> float:
    """The first number of an answer, limited to STS-B's 0 to 5; 0 without one."""
    match = re.search(r"-?\d+(?:\.\d+)?", text)
    return min(5.0, max(0.0, float(match.group()))) if match else 0.0


def binary_f1(pairs: Sequence[Pair]) -> float:
    """F1 of label 1.

    >>> binary_f1([(1, 1), (1, 0), (0, 1), (0, 0)])
    0.5
    """
    both = sum(e == f == 1 for e, f in pairs)
    either = sum((e == 1) + (f == 1) for e, f in pairs)
    return 2 * both / either if either else 0.0


def mcc(pairs: Sequence[Pair]) -> float:
    """Matthews' correlation of two labels: Pearson's of their numbers; 0 if one is constant."""
    return pearson(pairs)


def pearson(pairs: Sequence[Pair]) -> float:
    """Pearson's correlation; 0 if one side is constant.

    >>> round(pearson([(0, 1), (1, 2), (2, 3)]), 6), pearson([(0, 1), (1, 1)])
    (1.0, 0.0)
    """
    expected, found = np.asarray(pairs, dtype=float).T
    if np.ptp(expected) == 0 or np.ptp(found) == 0:
        return 0.0
    return float(np.corrcoef(expected, found)[0, 1])


def spearman(pairs: Sequence[Pair]) -> float:
    """Spearman's correlation, equal numbers with their mean rank."""
    return pearson(list(zip(*(_ranks(side) for side in zip(*pairs, strict=True)), strict=True)))


def _ranks(numbers: Sequence[float]) -> list[float]:
    ordered = np.sort(numbers)
    low, high = (np.searchsorted(ordered, numbers, side=s) for s in ("left", "right"))
    return [float(rank) for rank in (low + high - 1) / 2]


CORPUS_METRICS: dict[str, Callable[[Sequence[Pair]], float]] = {
    "binary_f1": binary_f1,
    "mcc": mcc,
    "pearson": pearson,
    "spearman": spearman,
}
