"""What a PPO run is made of, with the paper's values (Table A1) as defaults.

    rollout    Q questions x G completions, sampled by one policy
    epoch      one pass over the rollout
    minibatch  the sequences behind one optimizer step
    micro      the sequences in memory at once; changes the memory, never the result

From these follow the names that TRL and transformers know (`num_iterations`, `max_steps`, ...).
Give ours; theirs are set here. What the paper does not have is in `ppo_options`.
"""

import os
from dataclasses import dataclass, fields
from typing import Annotated, Any

from transformers.hf_argparser import HfArg
from trl import GRPOConfig

from pipeline.config import (
    Bounds,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitInterval,
    check_divides,
    check_types,
    require,
)
from pipeline.ppo.options import PPOOptions
from pipeline.training.hardware import configure_hardware
from pipeline.training.optimizer import MuonOptions

# What GRPOTrainer reads and PPO does not; a value would be ignored, or spoil the log-probabilities.
GRPO_ONLY = (
    "chat_template_kwargs",
    "delta",
    "generation_kwargs",
    "importance_sampling_level",
    "loss_type",
    "min_p",
    "multi_objective_aggregation",
    "off_policy_mask_threshold",
    "repetition_penalty",
    "scale_rewards",
    "top_entropy_quantile",
    "top_k",
    "top_p",
    "use_adaptive_entropy",
    "use_transformers_continuous_batching",
)


@dataclass
class PPOConfig(PPOOptions, MuonOptions, GRPOConfig):
    """Proximal policy optimization (arXiv:1707.06347) with a charge for leaving the reference."""

    num_rollouts: PositiveInt = HfArg(default=100, help="rollouts to collect; each is one PPO step")
    questions_per_rollout: PositiveInt = HfArg(
        default=32, help="Q, questions in a rollout, all processes"
    )
    completions_per_question: Annotated[
        int, Bounds(ge=2, why="the data loading of GRPOTrainer samples groups")
    ] = HfArg(default=8, help="G, samples of a question")
    ppo_epochs: PositiveInt = HfArg(default=4, help="passes over a rollout before it is dropped")
    num_minibatches: PositiveInt = HfArg(default=4, help="optimizer steps a pass")
    micro_batch_size: PositiveInt | None = HfArg(
        default=None, help="sequences a forward and process; default: a whole minibatch"
    )
    gamma: UnitInterval = HfArg(
        default=1.0, help="discount; 1.0 because an answer is worth the same late"
    )
    lam: UnitInterval = HfArg(
        default=0.95, help="GAE lambda: 0 trusts the value head, 1 the outcome"
    )
    clip: PositiveFloat = HfArg(default=0.2, help="how far a probability ratio may fall")
    clip_high: PositiveFloat | None = HfArg(default=None, help="how far it may rise; default: clip")
    value_clip: PositiveFloat | None = HfArg(
        default=0.2, help="how far a value may move; null: any way"
    )
    value_coef: NonNegativeFloat = HfArg(default=0.5, help="weight of the value loss")
    kl_coef: NonNegativeFloat = HfArg(
        default=0.05, help="price of one nat of drift from the reference"
    )
    entropy_coef: NonNegativeFloat = HfArg(default=0.01, help="weight of the entropy bonus")
    rloo_baseline: bool = HfArg(
        default=False, help="correct V by how the question's other completions did"
    )
    supervised_coef: NonNegativeFloat = HfArg(
        default=0.0, help="weight of the SFT loss on worked solutions that joins each update"
    )
    supervised_batch_size: PositiveInt = HfArg(
        default=16, help="worked solutions an optimizer step and process, where supervised_coef > 0"
    )
    value_warmup: NonNegativeInt = HfArg(
        default=0, help="first rollouts that train only the value head"
    )
    value_learning_rate: PositiveFloat | None = HfArg(
        default=None, help="learning rate of the value head; default: learning_rate"
    )
    save_every: NonNegativeInt = HfArg(
        default=0, help="rollouts between checkpoints; 0: only at the end"
    )
    temperature: PositiveFloat = HfArg(
        default=1.0, help="of sampling, and of the policy that is trained"
    )
    learning_rate: PositiveFloat = HfArg(default=1e-6, help="peak learning rate")
    max_completion_length: PositiveInt = HfArg(
        default=256, help="C, the budget of a completion in tokens"
    )
    max_grad_norm: float = HfArg(default=1.0, help="gradient norm bound")
    bf16: bool | None = HfArg(default=None, help="bfloat16 autocast; default: on a GPU that has it")
    gradient_checkpointing: bool = HfArg(default=False, help="trade time for memory")
    # With dropout the policy that is trained would not be the one that sampled.
    disable_dropout: bool = HfArg(default=True, help="no dropout in policy and reference")
    num_generations_eval: int | None = HfArg(default=1, help="samples a question in evaluation")
    # HfArgumentParser wants the None in front.
    report_to: None | str | list[str] = HfArg(default="none", help="tensorboard or trackio")  # noqa: RUF036

    def __post_init__(self):
        check_types(self)
        self.check_muon()
        self.check_options()
        self._check_grpo_only()
        self._derive()
        configure_hardware(self)
        super().__post_init__()

    @property
    def rollout_size(self) -> int:
        """B of a rollout, all processes."""
        return self.questions_per_rollout * self.completions_per_question

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps a rollout."""
        return self.ppo_epochs * self.num_minibatches

    def _check_grpo_only(self) -> None:
        defaults = _defaults(self)
        for name in GRPO_ONLY:
            value = getattr(self, name, None)
            require(
                name not in defaults or value == defaults[name],
                f"{name}={value!r} belongs to GRPO and does nothing in PPO; leave it out",
            )

    def _derive(self) -> None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        rollout = self.rollout_size
        check_divides(
            self.num_minibatches * processes,
            rollout,
            f"num_minibatches={self.num_minibatches} x {processes} processes must divide the "
            f"rollout of {self.questions_per_rollout} questions x {self.completions_per_question} "
            f"completions = {rollout} sequences",
        )
        minibatch = rollout // self.num_minibatches // processes
        micro = self.micro_batch_size or minibatch
        check_divides(
            micro,
            minibatch,
            f"micro_batch_size={micro} must divide the minibatch of {minibatch} sequences "
            "a process",
        )
        if self.zero_variance_groups != "keep" or self.curriculum:
            check_divides(
                processes,
                self.questions_per_rollout,
                f"{processes} processes must divide questions_per_rollout="
                f"{self.questions_per_rollout}, so that no question is divided among them",
            )
        self._set("per_device_train_batch_size", micro, "micro_batch_size")
        self._set("gradient_accumulation_steps", minibatch // micro, "micro_batch_size")
        self._set("steps_per_generation", rollout // processes // micro, "questions_per_rollout")
        self._set("generation_batch_size", None, "questions_per_rollout")
        self._set("num_generations", self.completions_per_question, "completions_per_question")
        self._set("num_iterations", self.ppo_epochs, "ppo_epochs")
        self._set("epsilon", self.clip, "clip")
        self._set("epsilon_high", self.clip_high, "clip_high")
        self._set("beta", self.kl_coef, "kl_coef")  # above 0, TRL brings the reference model along
        self._set("max_steps", self.num_rollouts * self.steps_per_rollout, "num_rollouts")
        self._set("save_steps", max(1, self.save_every) * self.steps_per_rollout, "save_every")
        self.logging_steps = self.steps_per_rollout
        self.save_strategy = "steps" if self.save_every else "no"

    def _set(self, name: str, value: Any, ours: str) -> None:
        """Set a field of TRL's that follows from ours, unless something else was asked for."""
        given = getattr(self, name)
        require(
            given in (value, _defaults(self)[name]),
            f"{name}={given} follows from {ours} in PPO; give {ours} instead",
        )
        setattr(self, name, value)


def _defaults(config: Any) -> dict[str, Any]:
    return {field.name: field.default for field in fields(config)}
