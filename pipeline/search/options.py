"""Options of all strategies: token budget, sampling, search settings."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from pipeline.chat.prompts import thinks_by_default
from pipeline.config import check_types, require

DEFAULT_SAMPLE_TOKENS = 256


@dataclass(kw_only=True)
class SearchOptions:
    """Token budget, sampling and search settings; checked on construction.

    >>> SearchOptions(n=0)
    Traceback (most recent call last):
    ...
    ValueError: n=0 must be a whole number of at least 1
    """

    n: int = HfArg(default=1, help="samples per question; strategies that vote use more than one")
    temperature: float = HfArg(default=0.7, help="sampling temperature; not used by greedy")
    max_sample_tokens: int | None = HfArg(
        default=None, help="most tokens from the prompt to one answer; default: the total, or 256"
    )
    max_completion_tokens: int | None = HfArg(
        default=None, help="most tokens of everything spent on an answer; default: all samples"
    )
    answer_tokens: int = HfArg(
        default=32, help="reserved for the answer when the budget closes a thought; 0: never closes"
    )
    reasoning_effort: Literal["low", "medium", "high"] | None = HfArg(
        default=None, help="sets max_completion_tokens to that of `efforts`"
    )
    efforts: str = HfArg(
        default="low=256,medium=1024,high=4096", help="max_completion_tokens of each effort"
    )
    batch_size: int = HfArg(default=64, help="sequences decoded in one batch; limits memory")
    seed: int = HfArg(default=0, help="the same seed gives the same answers")
    think: bool | None = HfArg(
        default=None,
        help="false: answer without a thought; default: as the model was trained",
    )

    value_temperature: float = HfArg(
        default=0.4,
        help="a vote weighs exp(value / this); near 0: best value wins, inf: equal",
    )
    step_tokens: int = HfArg(default=48, help="beam, mcts, revise: most tokens of a step")
    branches: int = HfArg(default=4, help="beam, mcts: steps sampled from a state")
    width: int = HfArg(default=4, help="beam: states kept after every step")
    simulations: int = HfArg(default=32, help="mcts: leaves expanded per question")
    leaves: int = HfArg(default=4, help="mcts: leaves of a question expanded in parallel")
    playouts: int = HfArg(default=1, help="mcts: answers sampled from every expanded leaf")
    c_puct: float = HfArg(default=1.0, help="mcts: weight of the prior relative to the value")
    choose: Literal["votes", "visits"] = HfArg(
        default="votes", help="mcts: select the answer by value-weighted votes or by visits"
    )
    first_samples: int = HfArg(default=2, help="adaptive: samples of the first round")
    posterior: float = HfArg(
        default=0.95, help="adaptive: stop when the leading answer wins with this probability"
    )
    sure_value: float = HfArg(
        default=0.8, help="adaptive: stop at an answer of at least this value"
    )
    fall: float = HfArg(default=0.3, help="revise: rewind a step if the value falls by more")
    retries: int = HfArg(default=4, help="revise, calculator, random_cut: most steps sampled again")

    def __post_init__(self) -> None:
        _check_numbers(self)
        check_types(self)
        self.effort_tokens()
        require(
            self.reasoning_effort is None or self.max_completion_tokens is None,
            f"reasoning_effort={self.reasoning_effort} sets max_completion_tokens, which is also "
            "given: leave one of them out",
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
        """These options with `think` set: None becomes what the model was trained with."""
        if self.think is not None:
            return self
        return replace(self, think=thinks_by_default(tokenizer))

    @property
    def total_tokens(self) -> int | None:
        """Most tokens of everything spent on an answer; None if the strategy sets it."""
        if self.reasoning_effort is not None:
            return self.effort_tokens()[self.reasoning_effort]
        return self.max_completion_tokens

    @property
    def sample_tokens(self) -> int:
        """Most tokens from the prompt to one answer.

        >>> SearchOptions().sample_tokens, SearchOptions(max_completion_tokens=9).sample_tokens
        (256, 9)
        """
        bounds = [b for b in (self.max_sample_tokens, self.total_tokens) if b is not None]
        return min(bounds, default=DEFAULT_SAMPLE_TOKENS)


_MINIMUM = {
    "n": 1,
    "batch_size": 1,
    "seed": 0,
    "answer_tokens": 0,
    "step_tokens": 1,
    "branches": 1,
    "width": 1,
    "simulations": 1,
    "leaves": 1,
    "playouts": 0,
    "first_samples": 1,
    "retries": 0,
}
_OPTIONAL = ("max_sample_tokens", "max_completion_tokens")


def _check_numbers(options: SearchOptions) -> None:
    least = _MINIMUM | {k: 1 for k in _OPTIONAL if getattr(options, k) is not None}
    for name, low in least.items():
        value = getattr(options, name)
        if type(value) is not int or value < low:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {low}")
    for name in ("temperature", "c_puct", "fall"):
        value = getattr(options, name)
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r} must be a number of at least 0")
    value = options.value_temperature
    if type(value) not in (int, float) or not value > 0:
        raise ValueError(f"value_temperature={value!r} must be a number above 0")
    value = options.posterior
    if type(value) not in (int, float) or not 0.5 <= value <= 1:
        raise ValueError(f"posterior={value!r} must be a number in [0.5, 1]")
    if options.think is not None and type(options.think) is not bool:
        raise ValueError(f"think={options.think!r} must be true or false")
