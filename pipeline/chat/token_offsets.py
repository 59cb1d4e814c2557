"""Character offsets of tokens in the decoded text, and tokens that end a line."""

from bisect import bisect_left
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # decoded from the first bytes of a character
MAX_SHARED = 8  # tokens in one character, which has at most four bytes


def token_end_offsets(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """For each token, the length in characters of the decoded text up to and including it.

    Non-decreasing; the last one is the length of the whole text. A character of several tokens
    counts from its last token on.
    """
    text = tokenizer.decode(ids)
    pieces = tokenizer.batch_decode([[token] for token in ids])
    if "".join(pieces) == text:
        return list(accumulate(map(len, pieces)))
    ends = _ends_in_context(tokenizer, ids)
    return [min(end, len(text)) for end in ends[:-1]] + [len(text)]


def offsets_to_tokens(rewards: list[tuple[int, float]], ends: list[int]) -> list[tuple[int, float]]:
    """(token index, reward) for (character offset, reward); the token that contains the character.

    >>> offsets_to_tokens([(3, 0.5)], ends=[2, 4, 6])
    [(1, 0.5)]
    """
    last = len(ends) - 1
    return [(min(bisect_left(ends, offset + 1), last), reward) for offset, reward in rewards]


def step_end_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of all tokens whose text contains a newline; cached on the tokenizer."""
    known = tokenizer.__dict__.get("_step_end_ids")
    if known is None:
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        known = frozenset(i for i, text in enumerate(texts) if "\n" in text)
        tokenizer.__dict__["_step_end_ids"] = known
    return known


def _ends_in_context(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """token_end_offsets for tokens that share a character, or lose leading space if decoded alone.

    Each token is decoded together with the piece of text before it: decoding all text before it
    takes quadratic time. So would an unfinished character that never ends; a piece therefore has at
    most MAX_SHARED tokens.
    """
    ends, done, before, here = [], 0, 0, 0
    for k in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[before:k])
        if not text.endswith(UNFINISHED) or k - here >= MAX_SHARED:
            done += max(len(text) - len(tokenizer.decode(ids[before:here])), 0)
            before, here = here, k
        ends.append(done)
    return ends
