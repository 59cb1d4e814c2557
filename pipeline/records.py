"""Records passed between the packages, and the naming convention of tensor axes.

The name of a tensor ends in its axes; a mask_* is True on the elements that are used:

    Q  questions
    G  completions per question
    B  sequences, B = Q * G; the completions of one question are adjacent
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
    level: str = ""  # difficulty as the data set names it
    source: str = ""  # data set and split, as in "gsm8k/train"
    id: str = ""  # unique within its source
    choices: tuple[str, ...] = ()  # texts of the options, in order A, B, C, ...
    check: str = ""  # JSON for `pipeline.grading.grade` if not graded by comparison of answers
    untrained_spans: tuple[tuple[int, int], ...] = ()  # [start, end) in `thought` without SFT loss
    turns: tuple[tuple[str, str], ...] = ()  # (role, text) of the messages before the question
    direct: bool = False  # SFT trains an empty thought and the answer, not `thought`

    @property
    def prompt(self) -> str | list[dict[str, str]]:
        """What the model is asked: the question, or the conversation that ends in it.

        >>> problem = Problem(question="And 3?", answer="4", turns=(("user", "1+1?"),))
        >>> [message["content"] for message in problem.prompt]
        ['1+1?', 'And 3?']
        """
        if not self.turns:
            return self.question
        turns = (*self.turns, ("user", self.question))
        return [{"role": role, "content": text} for role, text in turns]

    @classmethod
    def from_columns(cls, row: Mapping[str, Any]) -> "Problem":
        """The problem of a data set row; columns that are not fields are ignored.

        >>> Problem.from_columns({"question": "2+3?", "answer": "5", "prompt": "2+3?"}).answer
        '5'
        """
        return cls(**{f.name: row[f.name] for f in fields(cls) if f.name in row})


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens spent on one answer, including all samples of a vote.

    >>> Usage(prompt_tokens=9, reasoning_tokens=20, visible_tokens=3).completion_tokens
    23
    """

    prompt_tokens: int = 0
    reasoning_tokens: int = 0
    visible_tokens: int = 0

    @property
    def completion_tokens(self) -> int:
        """Reasoning and visible tokens."""
        return self.reasoning_tokens + self.visible_tokens

    @property
    def total_tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            visible_tokens=self.visible_tokens + other.visible_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Result of a strategy for one question."""

    text: str  # the visible answer
    thought: str = ""  # the hidden reasoning
    value: float | None = None  # estimated probability of a correct answer, if computed
    usage: Usage = field(default_factory=Usage)
    finish_reason: str = "stop"  # "length" if the token budget ran out or there is no visible text
    forced: bool = False  # END_THINK was forced because of the budget
    notes: dict[str, Any] = field(default_factory=dict)  # counts of the strategy, such as samples


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Completions sampled from the policy, with the data that PPO needs.

    Two prompts of 2 and 3 tokens, completions of 3 and 1 tokens (the end token included):

        prompt_ids_BP       [[PAD, 5, 6], [7, 8, 9]]      mask_prompt_BP      [[F, T, T], [T, T, T]]
        completion_ids_BC   [[1, 2, EOS], [EOS, PAD, PAD]] mask_completion_BC [[T, T, T], [T, F, F]]
    """

    prompt_ids_BP: torch.Tensor
    mask_prompt_BP: torch.Tensor
    completion_ids_BC: torch.Tensor
    mask_completion_BC: torch.Tensor  # sampled tokens including the end token
    logprobs_BC: torch.Tensor  # at the sampling temperature; 0 on padding
    values_BC: torch.Tensor  # V before each token; 0 on padding and without a value head
    truncated_B: torch.Tensor  # True if the completion has no end token
