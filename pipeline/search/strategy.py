"""What a strategy is, its options, and the two that ask the model once: greedy and sample.

Everything a strategy samples is billed to its answer. Tokens are counted by id, never by decoding:

    thought END_THINK | answer end-of-text
    reasoning tokens  | visible tokens
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.prompts import encode_prompts
from pipeline.records import Answer, Rollout, Usage
from pipeline.rollout.sampler import Sampler
from pipeline.tags import END_THINK, THINK, split_ids


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What a strategy may spend and how it samples, checked on construction.

    >>> SearchOptions(n=0)
    Traceback (most recent call last):
    ...
    ValueError: n=0 must be a whole number of at least 1
    """

    n: int = 1  # samples of a question; more than one is a vote
    temperature: float = 0.7  # greedy ignores it
    max_completion_tokens: int = 256  # of one sample; a vote may spend n times as many
    batch_size: int = 64  # sequences decoded side by side; bounds memory
    seed: int = 0
    think: bool = True  # False asks for the answer at once, without a thought

    def __post_init__(self) -> None:
        least = {"n": 1, "max_completion_tokens": 1, "batch_size": 1, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ValueError(f"{name}={value!r} must be a whole number of at least {low}")
        if type(self.temperature) not in (int, float) or not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature!r} must be a number of at least 0")
        if type(self.think) is not bool:
            raise ValueError(f"think={self.think!r} must be true or false")


class Strategy(Protocol):
    """From a batch of questions to one answer each, in the same order."""

    def __call__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[str],
        options: SearchOptions,
    ) -> list[Answer]: ...


def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    options: SearchOptions,
) -> list[Answer]:
    """The answer along the likeliest next tokens; the temperature of the options is not read."""
    _require_one_sample("greedy", options)
    groups = draw(model, tokenizer, questions, options, temperature=0.0)
    return [answer for (answer,) in groups]


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    options: SearchOptions,
) -> list[Answer]:
    """One answer drawn at the temperature of the options."""
    _require_one_sample("sample", options)
    require_temperature("sample", options)
    groups = draw(model, tokenizer, questions, options, temperature=options.temperature)
    return [answer for (answer,) in groups]


def draw(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    options: SearchOptions,
    *,
    temperature: float,
) -> list[list[Answer]]:
    """n samples of every question, [Q][n], all of them decoded in one batched call.

    The usage of each sample names the whole prompt, so that it stands on its own.
    """
    if not questions:
        return []
    prompts = encode_prompts(tokenizer, list(questions), think=options.think)
    sampler = Sampler(
        model,
        tokenizer,
        temperature=temperature,
        max_new_tokens=options.max_completion_tokens,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    answers = read_answers(sampler.sample(prompts, group=options.n), tokenizer, think=options.think)
    assert len(answers) == len(questions) * options.n
    return [answers[i : i + options.n] for i in range(0, len(answers), options.n)]


def read_answers(
    rollout: Rollout, tokenizer: PreTrainedTokenizerBase, *, think: bool
) -> list[Answer]:
    """One Answer a sequence of the rollout, [B], in its order.

    `value` is the value head's estimate where the last token was sampled; None without a value
    head, which a rollout marks by values that are 0 everywhere.
    """
    has_values = bool(rollout.values_BC.any())
    answers = []
    for b, mask_C in enumerate(rollout.mask_completion_BC):
        last = max(int(mask_C.sum()) - 1, 0)
        answers.append(
            _read_answer(
                rollout.completion_ids_BC[b][mask_C].tolist(),
                tokenizer,
                think=think,
                prompt_tokens=int(rollout.mask_prompt_BP[b].sum()),
                truncated=bool(rollout.truncated_B[b]),
                value=float(rollout.values_BC[b, last]) if has_values else None,
            )
        )
    return answers


def require_temperature(name: str, options: SearchOptions) -> None:
    """ValueError when every sample would be the same."""
    if options.temperature == 0:
        raise ValueError(
            f"temperature=0 makes every sample of {name} the same: "
            "raise the temperature or take the strategy greedy"
        )


def _require_one_sample(name: str, options: SearchOptions) -> None:
    if options.n != 1:
        raise ValueError(
            f"n={options.n}, but {name} gives one sample a question: "
            "leave n at 1 or take the strategy consensus"
        )


def _read_answer(
    ids: list[int],
    tokenizer: PreTrainedTokenizerBase,
    *,
    think: bool,
    prompt_tokens: int,
    truncated: bool,
    value: float | None,
) -> Answer:
    end_think_id = tokenizer.convert_tokens_to_ids(END_THINK)
    tags = {end_think_id, tokenizer.convert_tokens_to_ids(THINK)}
    # A model told not to think that thinks all the same is cut like any other: no thought leaks.
    hidden, visible = split_ids(ids, end_think_id) if think or tags & set(ids) else ([], ids)
    thought_ids = [i for i in hidden if i not in tags]
    text = tokenizer.decode(visible, skip_special_tokens=True).strip()
    return Answer(
        text=text,
        thought=tokenizer.decode(thought_ids, skip_special_tokens=True).strip(),
        value=value,
        usage=Usage(
            prompt_tokens=prompt_tokens,
            reasoning_tokens=len(hidden),
            visible_tokens=len(visible),
        ),
        finish_reason="stop" if text and not truncated else "length",
    )
