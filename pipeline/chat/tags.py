"""The reasoning tags, and functions that split a completion into thought and visible answer.

A prompt ends in THINK, so that a completion starts inside the thought:

    completion = thought END_THINK answer end-of-text

Each tag is one token, added with special=False: with special=True, decoding without special tokens
would remove the tags and merge the thought into the answer.
"""

THINK = "<think>"
END_THINK = "</think>"


def split_completion(completion: str) -> tuple[str, str] | None:
    """(thought, answer) of a completion, or None unless it has END_THINK exactly once.

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


def split_ids(
    ids: list[int], end_think_id: int, think_id: int | None = None
) -> tuple[list[int], list[int]]:
    """(thought ids with the tags, visible ids), split after the first END_THINK.

    Without END_THINK everything is thought, so an unfinished thought is never shown as an answer.
    With `think_id` a thought that is opened again behind the first one is thought as well, up to
    its END_THINK.

    >>> split_ids([7, 8, 1, 9], end_think_id=1)
    ([7, 8, 1], [9])
    >>> split_ids([7, 8], end_think_id=1)
    ([7, 8], [])
    >>> split_ids([7, 1, 9, 0, 8, 1, 5], end_think_id=1, think_id=0)
    ([7, 1, 0, 8, 1], [9, 5])
    """
    if end_think_id not in ids:
        return list(ids), []
    cut = ids.index(end_think_id) + 1
    hidden, visible = list(ids[:cut]), list(ids[:0])
    inside = False
    for token in ids[cut:]:
        inside = inside or token == think_id
        (hidden if inside else visible).append(token)
        inside = inside and token != end_think_id
    return hidden, visible
