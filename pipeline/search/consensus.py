"""Self-consistency: sample many thoughts, let their answers vote (arXiv:2203.11171).

Votes are counted over what the answers mean, not how they are written: `same_answer`, the judge of
rewards and metrics, decides which of them agree.
"""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.answers import final_answer, same_answer
from pipeline.records import Answer, Usage
from pipeline.search.strategy import SearchOptions, draw, require_temperature


def vote(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    options: SearchOptions,
) -> list[Answer]:
    """The answer most of n samples agree on, for every question.

    The questions and their samples are decoded in one batch, prompts encoded once a question.
    """
    require_temperature("consensus", options)
    groups = draw(model, tokenizer, questions, options, temperature=options.temperature)
    return [elect(samples) for samples in groups]


def elect(samples: Sequence[Answer]) -> Answer:
    """The winner of a vote, in the words and with the thought of the first sample that cast it.

    A sample that ran out of budget casts no vote; without any vote the text is empty and the
    finish reason "length". The usage counts the completions of all samples and the prompt once,
    since they share it. `value` is the mean over the samples that voted for the winner.

    >>> votes = [Answer(text=t, usage=Usage(prompt_tokens=5, visible_tokens=2)) for t in "788"]
    >>> won = elect(votes)
    >>> won.text, won.usage.prompt_tokens, won.usage.visible_tokens
    ('8', 5, 6)
    """
    finished = [s for s in samples if s.finish_reason == "stop"]
    groups = clusters([s.text for s in finished])
    usage = replace(
        sum((s.usage for s in samples), Usage()), prompt_tokens=samples[0].usage.prompt_tokens
    )
    if not groups:
        lost = replace(samples[0], text="", value=_mean_value(samples))
        return replace(lost, usage=usage, finish_reason="length")
    voters = [finished[i] for i in groups[0]]
    return replace(voters[0], usage=usage, value=_mean_value(voters))


def clusters(texts: Sequence[str]) -> list[list[int]]:
    """Positions of the texts that state the same answer: most votes first, ties to the answer
    seen first; a text without an answer belongs nowhere.

    Equal strings are put together before the judge is asked, and it compares each distinct string
    with the first one of a cluster only: 64 samples that agree cost no call at all.

    >>> clusters(["7", "The answer is 8", "8", ""])
    [[1, 2], [0]]
    """
    by_string: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        if answer := final_answer(text):
            by_string.setdefault(answer, []).append(i)

    found: dict[str, list[int]] = {}
    for answer, positions in by_string.items():
        known = next((first for first in found if _agree(answer, first)), answer)
        found.setdefault(known, []).extend(positions)
    return sorted((sorted(members) for members in found.values()), key=_most_votes_first)


def _agree(one: str, other: str) -> bool:
    # The judge takes 42 for an expected 40+2, not the other way round: a vote needs both.
    return same_answer(one, other) and same_answer(other, one)


def _most_votes_first(members: list[int]) -> tuple[int, int]:
    return -len(members), members[0]


def _mean_value(samples: Sequence[Answer]) -> float | None:
    values = [s.value for s in samples if s.value is not None]
    return sum(values) / len(values) if values else None
