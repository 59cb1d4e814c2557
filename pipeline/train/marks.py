"""Where in the tokens a place in the text lies."""

from bisect import bisect_left
from itertools import accumulate

from transformers import PreTrainedTokenizerBase


def token_ends(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """For each token, the number of characters of the decoded text up to and including it.

    Non-decreasing, and the last one is the length of the whole text.
    """
    text = tokenizer.decode(ids)
    lengths = [len(piece) for piece in tokenizer.batch_decode([[token] for token in ids])]
    if sum(lengths) == len(text):
        return list(accumulate(lengths))
    # Tokens that share a character, or lose a leading space alone: decode every prefix instead.
    ends = [min(len(tokenizer.decode(ids[: k + 1])), len(text)) for k in range(len(ids))]
    return list(accumulate(ends, max))


def marks_to_tokens(
    marks: list[tuple[int, float]], ends: list[int]
) -> list[tuple[int, float]]:
    """(token index, reward) for (character offset, reward): the token that holds the character.

    >>> marks_to_tokens([(3, 0.5)], ends=[2, 4, 6])
    [(1, 0.5)]
    """
    last = len(ends) - 1
    return [(min(bisect_left(ends, offset + 1), last), reward) for offset, reward in marks]
