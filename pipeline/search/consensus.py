"""Self-consistency: a vote over the answers of many samples (arXiv:2203.11171).

Answers are grouped by `same_answer`, the equivalence check that rewards and metrics use, given
the question. With a value head a vote is weighted by

    exp(V / value_temperature)

where V is the verifier's score of the completion, or without a verifier the value head's estimate
before the last token. Only differences between the samples of a question matter. As the temperature
approaches 0 the highest value decides; at infinity all weights are equal. Identical completions
count once: their probability is part of their value already, and counting repeats would add the
sampling noise of a majority vote.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from heapq import merge

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.prompts import Question, question_text
from pipeline.grading import same_answer
from pipeline.grading.comparison_key import ComparisonKey, comparison_key
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
    """The majority answer of n samples per question.

    All samples of all questions are decoded together; each prompt is encoded once.
    """
    require_temperature("consensus", options)
    groups = sample_answers(model, tokenizer, questions, options, temperature=options.temperature)
    return [
        select_by_vote(samples, question=question_text(question))
        for samples, question in zip(groups, questions, strict=True)
    ]


def weighted(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """The answer with the greatest total weight among n samples weighted by value."""
    return _by_value("weighted", model, tokenizer, questions, options, options.value_temperature)


def best_of_n(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """The sample of the highest value among n: the weighted vote at value temperature 0."""
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
        select_by_vote(samples, value_weights(samples, value_temperature), question_text(question))
        for samples, question in zip(groups, questions, strict=True)
    ]


def select_by_vote(
    samples: Sequence[Answer], weights: Sequence[float] | None = None, question: str = ""
) -> Answer:
    """The winning answer: text and thought of the sample of greatest weight in the winning group.

    Samples that ran out of budget do not vote. Without votes the text is empty and the finish
    reason "length". The usage counts the completions of all samples, and the prompt once. `value`
    is the mean over the samples of the winning group.

    >>> votes = [Answer(text=t, usage=Usage(prompt_tokens=5, visible_tokens=2)) for t in "788"]
    >>> won = select_by_vote(votes)
    >>> won.text, won.usage.prompt_tokens, won.usage.visible_tokens
    ('8', 5, 6)
    >>> select_by_vote(votes, weights=[3.0, 1.0, 1.0]).text
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
    """A vote in which each distinct completion has the square root of its probability as weight.

    A baseline for the strategies that use a value head: it needs none.
    """
    require_temperature("likelihood", options)
    groups = sample_answers(model, tokenizer, questions, options, temperature=options.temperature)
    found = []
    for samples, question in zip(groups, questions, strict=True):
        weights = _weights(samples, [s.notes["logprob"] for s in samples], temperature=2.0)
        found.append(select_by_vote(samples, weights, question_text(question)))
    return found


def value_weights(samples: Sequence[Answer], temperature: float) -> list[float]:
    """exp((V - max V) / temperature) of each sample; 0 for unfinished ones and repeats.

    The maximum is that of the finished samples. At temperature 0 the first one of the highest value
    has all weight.

    >>> samples = [Answer(text=t, value=v) for t, v in [("7", 0.5), ("7", 0.5), ("8", 0.1)]]
    >>> value_weights(samples, 0.0), value_weights(samples, math.inf)
    ([1.0, 0.0, 0.0], [1.0, 0.0, 1.0])
    """
    return _weights(samples, [_known_value(sample) for sample in samples], temperature)


def _weights(samples: Sequence[Answer], scores: Sequence[float], temperature: float) -> list[float]:
    """`value_weights` by any score. The difference to the best one never underflows for all."""
    first: dict[tuple[str, str], int] = {}  # index of each distinct finished completion
    for i, sample in enumerate(samples):
        if sample.finish_reason == "stop":
            first.setdefault((sample.thought, sample.text), i)
    weights = [0.0] * len(samples)
    if not first:
        return weights
    best = max(first.values(), key=lambda i: (scores[i], -i))
    for i in first.values():
        if temperature == 0:
            weights[i] = float(i == best)
        else:
            weights[i] = math.exp((scores[i] - scores[best]) / temperature)
    return weights


def _known_value(sample: Answer) -> float:
    assert sample.value is not None, "the policy has no value head"
    return sample.value


def clusters(
    texts: Sequence[str], weights: Sequence[float] | None = None, question: str = ""
) -> list[list[int]]:
    """Indices of the texts grouped by equivalent answers, by descending votes or sum of weights.

    Ties are in order of first occurrence; texts without an answer are left out. Equal strings are
    grouped first, and `same_answer` compares each distinct string only with the first of a group
    that may agree with it by `comparison_key`: numbers and words are grouped in linear time. With
    the question, 20% and 20 agree where it asks for a percentage.

    >>> clusters(["7", "The answer is 8", "8", ""])
    [[1, 2], [0]]
    """
    by_string: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        if answer := final_answer(text):
            by_string.setdefault(answer, []).append(i)

    found: dict[str, list[int]] = {}
    firsts = _FirstAnswers()
    for answer, positions in by_string.items():
        key = comparison_key(answer, question)
        known = next(
            (f for f in firsts.candidates(key) if _same_answer_both_ways(answer, f, question)), None
        )
        if known is None:
            firsts.add(answer, key)
        found.setdefault(known or answer, []).extend(positions)

    def by_weight(members: list[int]) -> tuple[float, int]:
        votes = len(members) if weights is None else math.fsum(weights[i] for i in members)
        return -votes, members[0]

    return sorted((sorted(members) for members in found.values()), key=by_weight)


class _FirstAnswers:
    """The first answer of every group, in order, by `comparison_key`."""

    def __init__(self) -> None:
        self._all: list[tuple[int, str]] = []
        self._by_key: dict[ComparisonKey | None, list[tuple[int, str]]] = {}

    def add(self, answer: str, key: ComparisonKey | None) -> None:
        self._all.append((len(self._all), answer))
        self._by_key.setdefault(key, []).append(self._all[-1])

    def candidates(self, key: ComparisonKey | None) -> Iterator[str]:
        """Those that an answer with this key may agree with, in order; without a key, all."""
        if key is None:
            return (answer for _, answer in self._all)
        keyed, unkeyed = self._by_key.get(key, []), self._by_key.get(None, [])
        return (answer for _, answer in merge(keyed, unkeyed))


def _same_answer_both_ways(one: str, other: str, question: str) -> bool:
    # Asymmetric: 42 is accepted for an expected 40+2, but not 40+2 for an expected 42.
    return same_answer(one, other, question) and same_answer(other, one, question)


def _mean_value(samples: Sequence[Answer]) -> float | None:
    values = [s.value for s in samples if s.value is not None]
    return sum(values) / len(values) if values else None
