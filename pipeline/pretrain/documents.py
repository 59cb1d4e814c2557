"""Documents to train a language model on: texts of problems, without repetitions.

A document is dropped if an earlier one is

    exact        the same characters
    normalised   the same except for case, whitespace and variants of LaTeX
    near         one with an estimated Jaccard similarity of the sets of 8-grams of words of at
                 least SIMILAR (MinHash, Broder 1997; as in Lee et al. 2022, arXiv:2107.06499)

Every document is on one side of a fixed border, training or held out: its side is a hash of its
normalised text, whatever the seed, the order and the other documents are.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import sha256

import numpy as np

from pipeline.data.leak_index import FEWEST_NGRAMS, FirstQuestions, normalised, word_ngrams
from pipeline.data.sft_examples import visible_answer
from pipeline.records import Problem

SIMILAR = 0.8
BANDS, ROWS = 16, 4  # a pair of similarity s is compared with probability 1 - (1 - s^4)^16


def document(problem: Problem, *, think: bool = True) -> str:
    """The plain text of a problem: earlier turns, question, thought and answer, one a line.

    A row of own text is a problem without an answer: its question is the text. A problem with
    `direct` is written without its thought.

    >>> document(Problem(question="2+3?", thought="2+3=5", answer="5"))
    '2+3?\\n2+3=5\\n5'
    """
    turns = [text for _, text in problem.turns]
    thought = problem.thought if think and not problem.direct else ""
    answer = visible_answer(problem) if problem.answer else ""
    return "\n".join(part for part in (*turns, problem.question, thought, answer) if part)


class SeenDocuments:
    """The documents so far; finds the degree in which a new one repeats one of them.

    Keeps hashes of every document in memory; with near=False no signatures.
    """

    def __init__(self, *, near: bool = True) -> None:
        self.near = near
        self.count = 0
        self.firsts = FirstQuestions()
        self.signatures: dict[int, np.ndarray] = {}
        self.bands: dict[int, int] = {}  # hash of a band -> the first document

    def repeats(self, text: str) -> str | None:
        """ "exact", "normalised", "near" or None; the text is added if it is new."""
        found = self.firsts.find(text)
        if found is not None and found[0] != "number_swapped":
            return found[0]
        if self.near and self._is_near(text):
            return "near"
        self.firsts.add(text, self.count)
        self.count += 1
        return None

    def _is_near(self, text: str) -> bool:
        """Whether an added document is similar; otherwise the signature of the text is added."""
        ngrams = word_ngrams(text)
        if len(ngrams) < FEWEST_NGRAMS:
            return False
        signature = minhash(ngrams)
        keys = (signature * _FACTORS).reshape(BANDS, ROWS).sum(axis=1).tolist()
        for other in {self.bands[key] for key in keys if key in self.bands}:
            if np.mean(self.signatures[other] == signature) >= SIMILAR:
                return True
        self.signatures[self.count] = signature
        for key in keys:
            self.bands.setdefault(key, self.count)
        return False


_RANDOM = np.random.default_rng(0)
_FACTORS = _RANDOM.integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)
_SUMMANDS = _RANDOM.integers(0, 2**63, BANDS * ROWS, dtype=np.uint64)


def minhash(ngrams: Iterable[int]) -> np.ndarray:
    """The signature of a set of 64-bit hashes, uint64 of BANDS * ROWS minima.

    The share of equal entries of two signatures estimates the Jaccard similarity of the sets.
    """
    hashes = np.fromiter(ngrams, np.int64).astype(np.uint64)
    # Multiply-shift hashing, modulo 2^64; one function at a time, as a document can be long.
    return np.array([(a * hashes + b).min() for a, b in zip(_FACTORS, _SUMMANDS, strict=True)])


def without_repeats(
    documents: Iterable[str], dropped: Counter[str], *, near: bool = True
) -> Iterator[str]:
    """The documents that repeat no earlier one; the others are counted in `dropped` by degree."""
    seen = SeenDocuments(near=near)
    for text in documents:
        degree = seen.repeats(text)
        if degree is None:
            yield text
        else:
            dropped[degree] += 1


def is_held_out(text: str, share: float) -> bool:
    """Whether a document belongs to the held-out share, by a hash of its normalised text."""
    digest = sha256(normalised(text).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
