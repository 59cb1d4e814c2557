"""Self-consistency: sample many thoughts, let their answers vote (arXiv:2203.11171).

Votes are counted over what the answers mean, not how they are written: `same_answer`, the grader of
rewards and metrics, decides which of them agree, given the question. With a value head a vote may
weigh

    exp(V / value_temperature)

V the critic's score of the completion, or the value head's where its last token was sampled. Only
differences between the samples of a question count. Near 0 the best value decides, at infinity all
values weigh alike. Twins, completions that say the same word for word, weigh once: how likely they
are is in their value already, and counting them again is the sampling noise a plain vote has.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.prompts import Question, question_text
from pipeline.grading import same_answer
from pipeline.grading.equivalence import final_answer
from pipeline.records import Answer, Usage
from pipeline.search.options import SearchOptions
from pipeline.search.strategy import require_temperature, require_values, sample_answers


def vote(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """The answer most of n samples agree on, for every question.

    The questions and their samples are decoded in one batch, prompts encoded once a question.
    """
    require_temperature("consensus", options)
    groups = sample_answers(model, tokenizer, questions, options, temperature=options.temperature)
    return [
        elect(samples, question=question_text(question))
        for samples, question in zip(groups, questions, strict=True)
    ]


def weighted(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """The answer with the greatest weight among n samples, each weighed by its value."""
    return _by_value("weighted", model, tokenizer, questions, options, options.value_temperature)


def best_of_n(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """The one of n samples with the highest value: what is left of a vote at temperature 0."""
    return _by_value("best_of_n", model, tokenizer, questions, options, 0.0)


def _by_value(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
    value_temperature: float,
) -> list[Answer]:
    require_temperature(name, options)
    if questions:
        require_values(name, model)
    groups = sample_answers(model, tokenizer, questions, options, temperature=options.temperature)
    return [
        elect(samples, value_weights(samples, value_temperature), question_text(question))
        for samples, question in zip(groups, questions, strict=True)
    ]


def elect(
    samples: Sequence[Answer], weights: Sequence[float] | None = None, question: str = ""
) -> Answer:
    """The winner of a vote, in the words and with the thought of the sample with the greatest
    weight that cast it; among equals, the first.

    A sample that ran out of budget casts no vote; without any vote the text is empty and the
    finish reason "length". The usage counts the completions of all samples and the prompt once,
    since they share it. `value` is the mean over the samples that voted for the winner.

    >>> votes = [Answer(text=t, usage=Usage(prompt_tokens=5, visible_tokens=2)) for t in "788"]
    >>> won = elect(votes)
    >>> won.text, won.usage.prompt_tokens, won.usage.visible_tokens
    ('8', 5, 6)
    >>> elect(votes, weights=[3.0, 1.0, 1.0]).text
    '7'
    """
    weights = [1.0] * len(samples) if weights is None else weights
    finished = [i for i, s in enumerate(samples) if s.finish_reason == "stop"]
    groups = clusters([samples[i].text for i in finished], [weights[i] for i in finished], question)
    usage = replace(
        sum((s.usage for s in samples), Usage()), prompt_tokens=samples[0].usage.prompt_tokens
    )
    notes = {"samples": len(samples), "votes": [len(group) for group in groups]}
    if not groups:
        lost = replace(samples[0], text="", value=_mean_value(samples), notes=notes)
        return replace(lost, usage=usage, finish_reason="length")
    voters = [finished[i] for i in groups[0]]
    best = samples[max(voters, key=lambda i: (weights[i], -i))]
    value = _mean_value([samples[i] for i in voters])
    return replace(best, usage=usage, value=value, notes=notes)


def likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """A vote in which each different completion weighs as the root of its own probability.

    It needs no value head: what a critic adds has to be seen beyond it.
    """
    require_temperature("likelihood", options)
    groups = sample_answers(model, tokenizer, questions, options, temperature=options.temperature)
    found = []
    for samples, question in zip(groups, questions, strict=True):
        roots = [math.exp(s.notes["logprob"] / 2) for s in samples]
        weights = [w if first else 0.0 for w, first in zip(roots, _firsts(samples), strict=True)]
        found.append(elect(samples, weights, question_text(question)))
    return found


def value_weights(samples: Sequence[Answer], temperature: float) -> list[float]:
    """exp((V - best) / temperature) of each, 0 for a twin; at temperature 0, all weight is on the
    first of the best.

    >>> samples = [Answer(text=t, value=v) for t, v in [("7", 0.5), ("7", 0.5), ("8", 0.1)]]
    >>> value_weights(samples, 0.0), value_weights(samples, math.inf)
    ([1.0, 0.0, 0.0], [1.0, 0.0, 1.0])
    """
    values = [sample.value for sample in samples]
    best = max(values, default=0.0)
    if temperature == 0:
        return [float(i == values.index(best)) for i in range(len(values))]
    return [
        math.exp((value - best) / temperature) if first else 0.0
        for value, first in zip(values, _firsts(samples), strict=True)
    ]


def _firsts(samples: Sequence[Answer]) -> list[bool]:
    """Whether each is the first to say what it says."""
    seen: set[tuple[str, str]] = set()
    return [
        (says := (sample.thought, sample.text)) not in seen and not seen.add(says)
        for sample in samples
    ]


def clusters(
    texts: Sequence[str], weights: Sequence[float] | None = None, question: str = ""
) -> list[list[int]]:
    """Positions of the texts that state the same answer: most votes first, or the greatest sum of
    weights; ties to the answer seen first; a text without an answer belongs nowhere.

    Equal strings are put together without a comparison, and each distinct string is compared with
    the first one of a cluster only. With the question, 20% and 20 agree where it asks for a
    percentage.

    >>> clusters(["7", "The answer is 8", "8", ""])
    [[1, 2], [0]]
    """
    by_string: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        if answer := final_answer(text):
            by_string.setdefault(answer, []).append(i)

    found: dict[str, list[int]] = {}
    for answer, positions in by_string.items():
        known = next((first for first in found if _agree(answer, first, question)), answer)
        found.setdefault(known, []).extend(positions)

    def most_first(members: list[int]) -> tuple[float, int]:
        votes = len(members) if weights is None else math.fsum(weights[i] for i in members)
        return -votes, members[0]

    return sorted((sorted(members) for members in found.values()), key=most_first)


def _agree(one: str, other: str, question: str) -> bool:
    # The grader accepts 42 for an expected 40+2, not the other way round: a vote needs both.
    return same_answer(one, other, question) and same_answer(other, one, question)


def _mean_value(samples: Sequence[Answer]) -> float | None:
    values = [s.value for s in samples if s.value is not None]
    return sum(values) / len(values) if values else None
