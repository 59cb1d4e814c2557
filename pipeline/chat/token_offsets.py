"""Character offsets of tokens in the decoded text, tags of their own tokens, ends of lines."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from pipeline.chat.tags import END_THINK, THINK

# What THINK and END_THINK become where ordinary tokens spell them.
SPELLED_TAGS = tuple(f"[{tag[1:-1]}]" for tag in (THINK, END_THINK))
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


def decode_completions(tokenizer: PreTrainedTokenizerBase, ids: Sequence[list[int]]) -> list[str]:
    """The text of each completion, in which only the token of a reasoning tag reads as that tag.

    Generation and evaluation end a thought at the id of END_THINK. A tag that ordinary tokens spell
    becomes [/think], of the same length, so that no reward takes it for the end of a thought.
    """
    texts = tokenizer.batch_decode(ids)
    return [_with_own_tags(tokenizer, text, row) for text, row in zip(texts, ids, strict=True)]


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


def _with_own_tags(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> str:
    for tag, spelled in zip((THINK, END_THINK), SPELLED_TAGS, strict=True):
        if tag not in text:
            continue
        tag_id = tokenizer.convert_tokens_to_ids(tag)
        if text.count(tag) == ids.count(tag_id) or tag not in tokenizer.get_vocab():
            continue
        ends = token_end_offsets(tokenizer, ids)
        own = {end for end, token in zip(ends, ids, strict=True) if token == tag_id}
        at = text.find(tag)
        while at >= 0:
            end = at + len(tag)
            if end not in own:
                text = f"{text[:at]}{spelled}{text[end:]}"
            at = text.find(tag, end)
    return text


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
