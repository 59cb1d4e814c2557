"""Options of the search strategies: token budgets, sampling, and the settings of each search."""

import math
from dataclasses import dataclass, fields, replace
from typing import Annotated, ClassVar, Literal

from transformers import PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from pipeline.chat.plain import has_reasoning_tokens
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
    """Token budgets, sampling, and the settings of each search.

    >>> SearchOptions(n=0)
    Traceback (most recent call last):
    ...
    ValueError: n=0 must be at least 1; the default is 1
    """

    ONLY_WITH: ClassVar[dict[str, tuple[str, ...]]] = {
        "reasoning_effort=low/medium/high": ("efforts",),
        "strategy=sample/consensus/likelihood/weighted/best_of_n/beam/mcts/adaptive/revise/"
        "calculator/random_cut": ("temperature",),
        "strategy=weighted/beam/mcts/adaptive": ("value_temperature",),
        "strategy=beam/mcts/revise/calculator/random_cut": ("step_tokens",),
        "strategy=beam/mcts": ("branches",),
        "strategy=beam": ("width",),
        "strategy=mcts": ("simulations", "leaves", "playouts", "c_puct", "choose"),
        "strategy=adaptive": ("first_samples", "posterior", "sure_value"),
        "strategy=revise": ("fall",),
        "strategy=revise/calculator/random_cut": ("retries",),
    }

    n: PositiveInt = HfArg(default=1, help="samples of a question")
    temperature: FiniteFloat = HfArg(default=0.7, help="sampling temperature; greedy ignores it")
    max_sample_tokens: PositiveInt | None = HfArg(
        default=None,
        help="tokens of one path from prompt to answer; default: all of the budget, or 256",
    )
    max_completion_tokens: PositiveInt | None = HfArg(
        default=None,
        help="tokens of an answer, search included; default: the sum of its paths",
    )
    answer_tokens: NonNegativeInt = HfArg(
        default=32, help="reserved for the answer when the budget ends a thought; 0: none"
    )
    reasoning_effort: Literal["low", "medium", "high"] | None = HfArg(
        default=None, help="sets max_completion_tokens, see efforts"
    )
    efforts: str = HfArg(
        default="low=256,medium=1024,high=4096", help="max_completion_tokens of each effort"
    )
    batch_size: PositiveInt = HfArg(default=64, help="sequences decoded at a time; bounds memory")
    seed: NonNegativeInt = HfArg(default=0, help="random seed")
    think: bool | None = HfArg(
        default=None,
        help="false: answer without a thought; default: as the model was trained",
    )

    value_temperature: PositiveFloat = HfArg(
        default=0.4, help="a vote has weight exp(value / value_temperature); inf: equal weights"
    )
    step_tokens: PositiveInt = HfArg(
        default=48, help="beam, mcts, revise, calculator, random_cut: tokens of a step"
    )
    branches: PositiveInt = HfArg(default=4, help="beam, mcts: steps sampled per state")
    width: PositiveInt = HfArg(default=4, help="beam: width")
    simulations: PositiveInt = HfArg(default=32, help="mcts: expanded leaves of a question")
    leaves: PositiveInt = HfArg(default=4, help="mcts: leaves of a question expanded at a time")
    playouts: NonNegativeInt = HfArg(default=1, help="mcts: answers sampled per expanded leaf")
    c_puct: FiniteFloat = HfArg(default=1.0, help="mcts: exploration constant of PUCT")
    choose: Literal["votes", "visits"] = HfArg(
        default="votes", help="mcts: the answer with the most value-weighted votes, or visits"
    )
    first_samples: PositiveInt = HfArg(
        default=2, help="adaptive: samples after two rounds, of which the first has one"
    )
    posterior: Annotated[float, Bounds(ge=0.5, le=1)] = HfArg(
        default=0.95, help="adaptive: stop when the leading answer wins with this probability"
    )
    sure_value: float = HfArg(default=0.8, help="adaptive: stop at an answer of this value")
    fall: FiniteFloat = HfArg(
        default=0.3, help="revise: resample a step that lowers the value by more"
    )
    retries: NonNegativeInt = HfArg(
        default=4, help="revise, calculator, random_cut: resampled steps in total"
    )

    def __post_init__(self) -> None:
        check_types(self)
        self.effort_tokens()
        require(
            self.reasoning_effort is None or self.max_completion_tokens is None,
            f"reasoning_effort={self.reasoning_effort} sets max_completion_tokens, which is also "
            "given: leave one of them out",
        )

    def effort_tokens(self) -> dict[str, int]:
        """{effort: max_completion_tokens}.

        Raises:
            ValueError: `efforts` has another form, or does not name all three.

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

    @property
    def options(self) -> "SearchOptions":
        """The search options alone, without the fields of a subclass."""
        return SearchOptions(**{f.name: getattr(self, f.name) for f in fields(SearchOptions)})

    def for_model(self, tokenizer: PreTrainedTokenizerBase) -> "SearchOptions":
        """These options with `think` set; where it is None, as the model was trained.

        It stays None for a baseline, whose own chat template decides.
        """
        if self.think is not None or not has_reasoning_tokens(tokenizer):
            return self
        return replace(self, think=thinks_by_default(tokenizer))

    @property
    def total_tokens(self) -> int | None:
        """Budget of an answer in tokens; None where the strategy decides."""
        if self.reasoning_effort is not None:
            return self.effort_tokens()[self.reasoning_effort]
        return self.max_completion_tokens

    @property
    def sample_tokens(self) -> int:
        """Budget of one path from the prompt to an answer, in tokens.

        >>> SearchOptions().sample_tokens, SearchOptions(max_completion_tokens=9).sample_tokens
        (256, 9)
        """
        bounds = [b for b in (self.max_sample_tokens, self.total_tokens) if b is not None]
        return min(bounds, default=DEFAULT_SAMPLE_TOKENS)
