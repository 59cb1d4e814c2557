"""Configuration of PPO, with the values of the paper (Table A1) as defaults.

    rollout      Q questions x G completions, sampled by one policy
    epoch        one pass over the rollout
    minibatch    the sequences of one optimizer step
    micro-batch  the sequences of one forward pass; it changes memory use, not the result

The fields of TRL and transformers with the same meaning (`num_iterations`, `max_steps`, ...) are
set from these. Options that the paper does not have are in `pipeline.ppo.options`.
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

# Fields of GRPOTrainer that PPO ignores, or that would make its log-probabilities wrong.
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
    """Proximal policy optimization (arXiv:1707.06347) with a KL penalty to the reference."""

    num_rollouts: PositiveInt = HfArg(default=100, help="rollouts to collect; each is one PPO step")
    questions_per_rollout: PositiveInt = HfArg(default=32, help="Q, over all processes")
    completions_per_question: Annotated[
        int, Bounds(ge=2, why="the data loading of GRPOTrainer samples groups")
    ] = HfArg(default=8, help="G, samples of a question")
    ppo_epochs: PositiveInt = HfArg(default=4, help="passes over a rollout")
    num_minibatches: PositiveInt = HfArg(default=4, help="optimizer steps of an epoch")
    micro_batch_size: PositiveInt | None = HfArg(
        default=None, help="sequences of a forward pass, per process; default: a minibatch"
    )
    gamma: UnitInterval = HfArg(default=1.0, help="discount factor")
    lam: UnitInterval = HfArg(default=0.95, help="GAE lambda: 0 is TD(0), 1 is Monte Carlo")
    clip: PositiveFloat = HfArg(default=0.2, help="the ratio is clipped below 1 - clip")
    clip_high: PositiveFloat | None = HfArg(
        default=None, help="and above 1 + clip_high; default: clip"
    )
    value_clip: PositiveFloat | None = HfArg(
        default=0.2, help="largest change of a value in the value loss; null: no clipping"
    )
    value_coef: NonNegativeFloat = HfArg(default=0.5, help="weight of the value loss")
    kl_coef: NonNegativeFloat = HfArg(default=0.05, help="weight of the KL to the reference")
    entropy_coef: NonNegativeFloat = HfArg(default=0.01, help="weight of the entropy bonus")
    rloo_baseline: bool = HfArg(
        default=False, help="correct V by the leave-one-out mean of the question's returns"
    )
    supervised_coef: NonNegativeFloat = HfArg(
        default=0.0, help="weight of an SFT loss on worked solutions, added to each update"
    )
    supervised_batch_size: PositiveInt = HfArg(
        default=16, help="worked solutions of an optimizer step, per process"
    )
    value_warmup: NonNegativeInt = HfArg(
        default=0, help="number of first rollouts that train only the value head"
    )
    value_learning_rate: PositiveFloat | None = HfArg(
        default=None, help="learning rate of the value head; default: learning_rate"
    )
    save_every: NonNegativeInt = HfArg(
        default=0, help="rollouts between checkpoints; 0: only at the end"
    )
    temperature: PositiveFloat = HfArg(
        default=1.0, help="temperature of sampling and of the trained policy"
    )
    learning_rate: PositiveFloat = HfArg(default=1e-6, help="peak learning rate")
    max_completion_length: PositiveInt = HfArg(default=256, help="C, tokens of a completion")
    max_grad_norm: float = HfArg(default=1.0, help="gradient norm clipping")
    bf16: bool | None = HfArg(default=None, help="bfloat16 autocast; default: on a GPU that has it")
    gradient_checkpointing: bool = HfArg(default=False, help="recompute activations to save memory")
    # With dropout, the probability ratio would not start at 1.
    disable_dropout: bool = HfArg(default=True, help="no dropout in policy and reference")
    num_generations_eval: int | None = HfArg(default=1, help="samples of a question in evaluation")
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
        """Sequences of a rollout, over all processes."""
        return self.questions_per_rollout * self.completions_per_question

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps of a rollout."""
        return self.ppo_epochs * self.num_minibatches

    def _check_grpo_only(self) -> None:
        """Raise ValueError for a field of GRPO that PPO does not use."""
        defaults = _defaults(self)
        for name in GRPO_ONLY:
            value = getattr(self, name, None)
            require(
                name not in defaults or value == defaults[name],
                f"{name}={value!r} belongs to GRPO and does nothing in PPO; leave it out",
            )

    def _derive(self) -> None:
        """Set the fields of TRL and transformers that follow from ours."""
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
                f"{self.questions_per_rollout}, so that no question is split between them",
            )
        self._set("per_device_train_batch_size", micro, "micro_batch_size")
        self._set("gradient_accumulation_steps", minibatch // micro, "micro_batch_size")
        self._set("steps_per_generation", rollout // processes // micro, "questions_per_rollout")
        self._set("generation_batch_size", None, "questions_per_rollout")
        self._set("num_generations", self.completions_per_question, "completions_per_question")
        self._set("num_iterations", self.ppo_epochs, "ppo_epochs")
        self._set("epsilon", self.clip, "clip")
        self._set("epsilon_high", self.clip_high, "clip_high")
        self._set("beta", self.kl_coef, "kl_coef")  # above 0, TRL loads the reference model
        self._set("max_steps", self.num_rollouts * self.steps_per_rollout, "num_rollouts")
        self._set("save_steps", max(1, self.save_every) * self.steps_per_rollout, "save_every")
        self.logging_steps = self.steps_per_rollout
        self.save_strategy = "steps" if self.save_every else "no"

    def _set(self, name: str, value: Any, ours: str) -> None:
        """Set a field of TRL; ValueError where it was given another value."""
        given = getattr(self, name)
        require(
            given in (value, _defaults(self)[name]),
            f"{name}={given} follows from {ours} in PPO; give {ours} instead",
        )
        setattr(self, name, value)


def _defaults(config: Any) -> dict[str, Any]:
    return {field.name: field.default for field in fields(config)}
