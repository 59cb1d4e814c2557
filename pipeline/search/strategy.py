"""What a strategy is, and the two that ask the model once: greedy and sample.

Everything a strategy samples is billed to its answer. Tokens are counted by id, never by decoding:

    thought END_THINK | answer end-of-text
    reasoning tokens  | visible tokens
"""

import math
from collections.abc import Sequence
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.prompts import Question
from pipeline.generation.shared_prefix import Branch
from pipeline.model import has_value_head
from pipeline.records import Answer
from pipeline.search.options import SearchOptions
from pipeline.search.session import ExpandRequest, SearchSession


class Strategy(Protocol):
    """From a batch of questions to one answer each, in the same order.

    An answer is a function of model, question and options: neither the questions beside it nor
    `batch_size` change it, beyond rounding.
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
    """The answer along the likeliest next tokens; the temperature of the options is not read."""
    _require_one_sample("greedy", options)
    groups = sample_answers(model, tokenizer, questions, options, temperature=0.0)
    return [answer for (answer,) in groups]


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    options: SearchOptions,
) -> list[Answer]:
    """One answer drawn at the temperature of the options."""
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
    """Up to n samples of every question, [Q][<= n], in one batch where the budget lets them.

    A budget that does not hold n samples of full length is spent in waves: what short samples leave
    over pays for further ones. The usage of each sample names the whole prompt, so that it stands
    on its own.
    """
    if not questions:
        return []
    session = SearchSession(
        model, tokenizer, questions, options, max_paths=options.n, temperature=temperature
    )
    groups: list[list[Branch]] = [[] for _ in questions]
    fill(session, groups, [options.n] * len(questions))
    return [samples_of(session, q, group) for q, group in enumerate(groups)]


def fill(session: SearchSession, groups: list[list[Branch]], counts: Sequence[int]) -> None:
    """Whole samples into groups[q] until it has counts[q], or its budget ends."""
    while requests := [
        ExpandRequest(q=q, branch=session.roots[q], stream=(0, i))
        for q, (group, count) in enumerate(zip(groups, counts, strict=True))
        for i in range(len(group), len(group) + _wave(session, q, group, count))
    ]:
        for request, branch in zip(requests, session.finish(requests), strict=True):
            groups[request.q].append(branch)


def samples_of(session: SearchSession, q: int, branches: Sequence[Branch]) -> list[Answer]:
    """Whole samples of a question as answers, each with its own cost."""
    return [
        session.answer(q, b, session.own_usage(b), logprob=math.fsum(b.logprobs)) for b in branches
    ]


def _wave(session: SearchSession, q: int, group: list[Branch], count: int) -> int:
    """How many further samples can run side by side without a thought closed for lack of tokens."""
    budget = session.budgets[q]
    longest = max((len(branch.ids) for branch in group), default=1)
    if budget.left < longest:  # another one would hardly come to its answer
        return 0
    return min(count - len(group), max(1, budget.left // budget.path))


def require_temperature(name: str, options: SearchOptions) -> None:
    """ValueError when every sample would be the same."""
    if options.temperature == 0:
        raise ValueError(
            f"temperature=0 makes every sample of {name} the same: "
            "raise the temperature or take the strategy greedy"
        )


def require_values(name: str, model: PreTrainedModel) -> None:
    """ValueError where a strategy would ask a value head that is not there."""
    if not has_value_head(model):
        raise ValueError(
            f"{name} is led by a value head, and this checkpoint has no value_head.safetensors: "
            "take a checkpoint of PPO, or the strategy consensus"
        )


def _require_one_sample(name: str, options: SearchOptions) -> None:
    if options.n != 1:
        raise ValueError(
            f"n={options.n}, but {name} gives one sample a question: "
            "leave n at 1 or take the strategy consensus"
        )
