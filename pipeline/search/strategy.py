"""The strategy interface, and the strategies with one sample: greedy and sample.

The usage of an answer counts everything that was sampled for it, by token ids:

    thought END_THINK | answer end-of-text
    reasoning tokens  | visible tokens
"""

import math
from collections.abc import Sequence
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.prompts import Question
from pipeline.generation.shared_prefix import PartialSequence
from pipeline.model import has_value_head
from pipeline.records import Answer
from pipeline.search.options import SearchOptions
from pipeline.search.session import ExpandRequest, SearchSession


class Strategy(Protocol):
    """Answers a batch of questions; answers are in the order of the questions.

    An answer depends on model, question and options only, not on the other questions or on
    `batch_size`, beyond rounding.
    """

    def __call__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        options: SearchOptions,
    ) -> list[Answer]: ...


def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """One answer by greedy decoding; `options.temperature` is not used."""
    _require_one_sample("greedy", options)
    groups = sample_answers(model, tokenizer, questions, options, temperature=0.0)
    return [answer for (answer,) in groups]


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """One answer sampled at `options.temperature`."""
    _require_one_sample("sample", options)
    require_temperature("sample", options)
    groups = sample_answers(model, tokenizer, questions, options, temperature=options.temperature)
    return [answer for (answer,) in groups]


def sample_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
    *,
    temperature: float,
) -> list[list[Answer]]:
    """Up to n samples of every question, [Q][<= n], decoded together if the budget allows.

    If the budget does not cover n samples of full length, they are decoded in rounds: tokens that
    short samples leave pay for further ones. The usage of each sample includes the whole prompt.
    """
    if not questions:
        return []
    session = SearchSession(
        model, tokenizer, questions, options, max_paths=options.n, temperature=temperature
    )
    groups: list[list[PartialSequence]] = [[] for _ in questions]
    sample_until(session, groups, [options.n] * len(questions))
    return [samples_of(session, q, group) for q, group in enumerate(groups)]


def sample_until(
    session: SearchSession, groups: list[list[PartialSequence]], counts: Sequence[int]
) -> None:
    """Append samples to groups[q] until it has counts[q] or its budget is used up."""
    while requests := [
        ExpandRequest(q=q, sequence=session.roots[q], stream=(0, i))
        for q, (group, count) in enumerate(zip(groups, counts, strict=True))
        for i in range(len(group), len(group) + _parallel_samples(session, q, group, count))
    ]:
        for request, sequence in zip(requests, session.finish(requests), strict=True):
            assert sequence is not None  # `_parallel_samples` has the tokens for it
            groups[request.q].append(sequence)


def samples_of(
    session: SearchSession, q: int, sequences: Sequence[PartialSequence]
) -> list[Answer]:
    """Completed sequences of question q as answers, each with its own usage."""
    return [
        session.answer(q, b, session.own_usage(b), logprob=math.fsum(b.logprobs)) for b in sequences
    ]


def _parallel_samples(
    session: SearchSession, q: int, group: list[PartialSequence], count: int
) -> int:
    """Number of further samples whose full length the remaining budget covers, at least 1.

    0 if the budget is smaller than the longest sample so far.
    """
    budget = session.budgets[q]
    longest = max((sequence.length for sequence in group), default=1)
    if budget.left < longest:  # another sample would hardly reach its answer
        return 0
    return min(count - len(group), max(1, budget.left // budget.path))


def require_temperature(name: str, options: SearchOptions) -> None:
    """Raise ValueError for temperature 0, at which all samples are equal."""
    if options.temperature == 0:
        raise ValueError(
            f"temperature=0 makes every sample of {name} the same: "
            "raise the temperature or take the strategy greedy"
        )


def require_values(name: str, model: PreTrainedModel) -> None:
    """Raise ValueError if the model has no value head."""
    if not has_value_head(model):
        raise ValueError(
            f"{name} needs a value head, and this checkpoint has no value_head.safetensors: "
            "use a PPO checkpoint or the strategy consensus"
        )


def _require_one_sample(name: str, options: SearchOptions) -> None:
    """Raise ValueError for n > 1 with a strategy that draws one sample."""
    if options.n != 1:
        raise ValueError(
            f"n={options.n}, but {name} gives one sample a question: "
            "leave n at 1 or take the strategy consensus"
        )
