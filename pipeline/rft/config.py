"""Settings of rejection sampling fine-tuning."""

from dataclasses import dataclass
from typing import Annotated

from transformers.hf_argparser import HfArg

from pipeline.config import Bounds, PositiveFloat, PositiveInt, check_types


@dataclass
class RFTConfig:
    """How many rounds, and what is sampled and kept in each.

    The samples of a run are rounds * questions_per_round * completions_per_question; PPO's are
    num_rollouts * questions_per_rollout * completions_per_question.
    """

    rounds: PositiveInt = HfArg(default=3, help="rounds of sampling and fine-tuning")
    questions_per_round: PositiveInt | None = HfArg(
        default=None, help="questions of a round, other ones in each; default: all"
    )
    completions_per_question: PositiveInt = HfArg(default=8, help="samples of a question")
    max_kept: PositiveInt = HfArg(
        default=4, help="most distinct right completions of a question that are trained on"
    )
    accumulate: bool = HfArg(
        default=True, help="train on what all rounds so far kept; false: on the last round's"
    )
    restart: bool = HfArg(
        default=False, help="every round trains the initial model (STaR); false: the last round's"
    )
    temperature: Annotated[float, Bounds(gt=0, why="at 0 all samples are equal")] = HfArg(
        default=1.0, help="sampling temperature"
    )
    max_completion_length: PositiveInt = HfArg(default=256, help="most tokens of a sample")
    sampling_batch_size: PositiveInt = HfArg(default=256, help="sequences sampled at a time")
    round_epochs: PositiveFloat = HfArg(default=1.0, help="epochs over the kept completions")

    def __post_init__(self) -> None:
        check_types(self)
