"""What a strategy may spend and how it searches: one flat dataclass, checked on construction."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from transformers import PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from pipeline.chat.prompts import thinks_by_default
from pipeline.config import (
    Bounds,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_types,
    require,
)

DEFAULT_SAMPLE_TOKENS = 256
FiniteFloat = Annotated[float, Bounds(ge=0, lt=math.inf)]


@dataclass(kw_only=True)
class SearchOptions:
    """What a strategy may spend, how it samples, and the settings of those that search.

    >>> SearchOptions(n=0)
    Traceback (most recent call last):
    ...
    ValueError: n=0 must be at least 1; the default is 1
    """

    n: PositiveInt = HfArg(default=1, help="samples of a question; more than one is a vote")
    temperature: FiniteFloat = HfArg(default=0.7, help="of sampling; greedy ignores it")
    max_sample_tokens: PositiveInt | None = HfArg(
        default=None, help="bound of one way from the prompt to an answer; default: all, or 256"
    )
    max_completion_tokens: PositiveInt | None = HfArg(
        default=None, help="bound of everything spent on an answer; default: what its ways may take"
    )
    answer_tokens: NonNegativeInt = HfArg(
        default=32, help="kept for the answer when the budget closes a thought; 0 never closes one"
    )
    reasoning_effort: Literal["low", "medium", "high"] | None = HfArg(
        default=None, help="takes max_completion_tokens from efforts"
    )
    efforts: str = HfArg(
        default="low=256,medium=1024,high=4096", help="max_completion_tokens of each effort"
    )
    batch_size: PositiveInt = HfArg(
        default=64, help="sequences decoded side by side; bounds memory"
    )
    seed: NonNegativeInt = HfArg(default=0, help="the same seed gives the same answers")
    think: bool | None = HfArg(
        default=None,
        help="false asks for the answer without a thought; default: as the model was trained",
    )

    value_temperature: PositiveFloat = HfArg(
        default=0.4, help="a vote weighs exp(value / this): near 0 the best one decides, inf: none"
    )
    step_tokens: PositiveInt = HfArg(
        default=48, help="beam, mcts, revise: tokens of a step at most"
    )
    branches: PositiveInt = HfArg(default=4, help="beam, mcts: steps sampled from a state")
    width: PositiveInt = HfArg(default=4, help="beam: states kept after every step")
    simulations: PositiveInt = HfArg(default=32, help="mcts: leaves expanded a question")
    leaves: PositiveInt = HfArg(default=4, help="mcts: leaves of a question expanded side by side")
    playouts: NonNegativeInt = HfArg(
        default=1, help="mcts: answers sampled from every expanded leaf"
    )
    c_puct: FiniteFloat = HfArg(
        default=1.0, help="mcts: weight of the policy's prior against the value"
    )
    choose: Literal["votes", "visits"] = HfArg(
        default="votes", help="mcts: the answer of the most value-weighted votes, or visits"
    )
    first_samples: PositiveInt = HfArg(default=2, help="adaptive: samples of the first round")
    posterior: Annotated[float, Bounds(ge=0.5, le=1)] = HfArg(
        default=0.95, help="adaptive: a vote ends when its leader wins with this probability"
    )
    sure_value: float = HfArg(
        default=0.8, help="adaptive: an answer of this value is sure, nothing more is sampled"
    )
    fall: FiniteFloat = HfArg(
        default=0.3, help="revise: a step is rewound when its value falls by more"
    )
    retries: NonNegativeInt = HfArg(
        default=4, help="revise, calculator: steps sampled anew, in all"
    )

    def __post_init__(self) -> None:
        check_types(self)
        self.effort_tokens()
        require(
            self.reasoning_effort is None or self.max_completion_tokens is None,
            f"reasoning_effort={self.reasoning_effort} sets max_completion_tokens, which is given "
            "as well: leave one of them out",
        )

    def effort_tokens(self) -> dict[str, int]:
        """{effort: max_completion_tokens}.

        >>> SearchOptions(efforts="low=64,medium=128,high=256").effort_tokens()["medium"]
        128
        """
        parsed = {}
        for item in self.efforts.split(","):
            name, _, tokens = (part.strip() for part in item.partition("="))
            if name not in ("low", "medium", "high") or not tokens.isdigit() or not int(tokens):
                raise ValueError(
                    f"efforts={self.efforts!r} must look like 'low=256,medium=1024,high=4096'; "
                    f"{item!r} does not"
                )
            parsed[name] = int(tokens)
        require(len(parsed) == 3, f"efforts={self.efforts!r} must name low, medium and high")
        return parsed

    def for_model(self, tokenizer: PreTrainedTokenizerBase) -> "SearchOptions":
        """These options with `think` decided: where it is None, as the model was trained."""
        if self.think is not None:
            return self
        return replace(self, think=thinks_by_default(tokenizer))

    @property
    def total_tokens(self) -> int | None:
        """The bound of everything, or None where it is left to the strategy."""
        if self.reasoning_effort is not None:
            return self.effort_tokens()[self.reasoning_effort]
        return self.max_completion_tokens

    @property
    def sample_tokens(self) -> int:
        """The bound of one way from the prompt to an answer.

        >>> SearchOptions().sample_tokens, SearchOptions(max_completion_tokens=9).sample_tokens
        (256, 9)
        """
        bounds = [b for b in (self.max_sample_tokens, self.total_tokens) if b is not None]
        return min(bounds, default=DEFAULT_SAMPLE_TOKENS)
