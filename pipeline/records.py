"""What travels between the rooms: frozen records, and the key to the names of tensor axes.

A tensor's name ends in its axes, a mask_* is True on what counts:

    Q  questions
    G  completions of one question
    B  sequences, B = Q * G, the completions of one question side by side
    P  prompt tokens, padded on the left
    C  completion tokens, padded on the right
    T  all tokens of a sequence, T = P + C
    V  vocabulary
    D  hidden size
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question with its expected answer.

    >>> Problem(question="What is 2 + 3?", answer="5", thought="2+3=5", level="1").answer
    '5'
    """

    question: str
    answer: str
    thought: str = ""  # a worked solution, one step a line; "" where the data set has none
    level: str = ""  # how hard, in the data set's own words
    source: str = ""  # data set and split, as in "gsm8k/train"
    id: str = ""  # unique within its source
    choices: tuple[str, ...] = ()  # texts of the options, in order A, B, C, ...
    check: str = (
        ""  # JSON for `pipeline.grading.grade` where equality with the answer is not the test
    )
    corrupted_steps: tuple[
        tuple[int, int], ...
    ] = ()  # wrong steps of the thought, characters [start, end)

    @classmethod
    def from_columns(cls, row: Mapping[str, Any]) -> "Problem":
        """The problem of a row of a data set: of every column that is a field, without the others.

        >>> Problem.from_columns({"question": "2+3?", "answer": "5", "prompt": "2+3?"}).answer
        '5'
        """
        return cls(**{f.name: row[f.name] for f in fields(cls) if f.name in row})


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens spent on one answer; all samples of a vote count.

    >>> Usage(prompt_tokens=9, reasoning_tokens=20, visible_tokens=3).completion_tokens
    23
    """

    prompt_tokens: int = 0
    reasoning_tokens: int = 0
    visible_tokens: int = 0

    @property
    def completion_tokens(self) -> int:
        return self.reasoning_tokens + self.visible_tokens

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            visible_tokens=self.visible_tokens + other.visible_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a strategy gives back for one question."""

    text: str  # the visible answer
    thought: str = ""  # the hidden reasoning
    value: float | None = None  # the value head's estimate of correctness, if it has been asked
    usage: Usage = field(default_factory=Usage)
    finish_reason: str = "stop"  # "stop", or "length" when the budget ended the answer
    forced: bool = False  # the budget closed the thought, and the answer was asked for
    notes: dict[str, Any] = field(default_factory=dict)  # what the strategy counted on its way


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Completions as the policy sampled them.

    Two prompts of 2 and 3 tokens, completions of 3 and 1 tokens (the end token included):

        prompt_ids_BP       [[PAD, 5, 6], [7, 8, 9]]      mask_prompt_BP      [[F, T, T], [T, T, T]]
        completion_ids_BC   [[1, 2, EOS], [EOS, PAD, PAD]] mask_completion_BC [[T, T, T], [T, F, F]]
    """

    prompt_ids_BP: torch.Tensor
    mask_prompt_BP: torch.Tensor
    completion_ids_BC: torch.Tensor
    mask_completion_BC: torch.Tensor  # sampled tokens, the end token included
    logprobs_BC: torch.Tensor  # of the sampled tokens at sampling temperature; 0 on padding
    values_BC: torch.Tensor  # V before each token is sampled; 0 on padding, 0 without value head
    truncated_B: torch.Tensor  # True where the budget ended the completion before an end token
