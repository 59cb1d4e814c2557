"""The reasoning tags, and the cut between a thought and the visible answer.

A prompt ends in THINK, so that a completion starts inside the thought:

    completion = thought END_THINK answer end-of-text

Each tag is one token, added with special=False: with special=True every decode that skips special
tokens would drop the tags and merge the thought into the answer.
"""

THINK = "<think>"
END_THINK = "</think>"


def split_completion(completion: str) -> tuple[str, str] | None:
    """(thought, answer) of a completion, or None unless it closes its one thought exactly once.

    >>> split_completion("2+3=5</think>5")
    ('2+3=5', '5')
    >>> split_completion("2+3=5") is None  # never closed: nothing is visible
    True
    >>> split_completion("1</think>2</think>3") is None
    True
    """
    text = completion.removeprefix(THINK)
    if text.count(END_THINK) != 1 or THINK in text:
        return None
    thought, answer = text.split(END_THINK)
    return thought.strip(), answer.strip()


def split_ids(ids: list[int], end_think_id: int) -> tuple[list[int], list[int]]:
    """(thought ids with their END_THINK, visible ids), cut at the first END_THINK.

    Without an END_THINK everything is thought: what is not proven visible stays hidden.

    >>> split_ids([7, 8, 1, 9], end_think_id=1)
    ([7, 8, 1], [9])
    >>> split_ids([7, 8], end_think_id=1)
    ([7, 8], [])
    """
    if end_think_id not in ids:
        return list(ids), []
    cut = ids.index(end_think_id) + 1
    return list(ids[:cut]), list(ids[cut:])
