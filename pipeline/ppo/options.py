"""Options of PPO beyond the paper; at its default, each one is off.

docs/ppo.md has the equations and their sources.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from transformers.hf_argparser import HfArg

from pipeline.config import (
    Bounds,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitInterval,
    check_divides,
    require,
)


@dataclass
class PPOOptions:
    """Fields of PPOConfig: variants of the algorithm, and monitoring."""

    kl_in: Literal["reward", "loss"] = HfArg(
        default="reward", help="subtract the KL from the reward, or add it to the loss"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = HfArg(
        default="k1", help="estimator of the KL from the sampled tokens: k1, k2, k3"
    )
    kl_controller: Literal["fixed", "adaptive"] = HfArg(
        default="fixed", help="adaptive: kl_coef is adjusted to keep the KL at kl_target"
    )
    kl_target: PositiveFloat = HfArg(default=0.1, help="adaptive: KL in nats per token")
    kl_horizon: PositiveInt = HfArg(default=10_000, help="adaptive: horizon in sequences")
    value_lam: UnitInterval | None = HfArg(
        default=None, help="GAE lambda of the value targets; default: lam"
    )
    lam_alpha: PositiveFloat | None = HfArg(
        default=None, help="length-adaptive lambda, 1 - 1 / (lam_alpha * length); default: lam"
    )
    dual_clip: (
        Annotated[float, Bounds(gt=1, why="a lower one would bound tokens that did not change")]
        | None
    ) = HfArg(
        default=None, help="upper bound of the ratio where the advantage is negative; default: none"
    )
    policy_steps_per_rollout: int | None = HfArg(
        default=None,
        help="optimizer steps of the policy in a rollout; default: all, as the value head",
    )
    sampling_batch_size: PositiveInt = HfArg(
        default=256, help="sequences that a process samples at a time"
    )
    zero_variance_groups: Literal["keep", "skip", "resample"] = HfArg(
        default="keep", help="questions whose completions have equal rewards: keep, skip, resample"
    )
    resample_tries: PositiveInt = HfArg(default=3, help="resample: rounds of replacement at most")
    overlong_penalty: NonNegativeFloat = HfArg(
        default=0.0, help="subtracted from the reward of a completion of max_completion_length"
    )
    overlong_buffer: NonNegativeInt = HfArg(
        default=0, help="last tokens over which that penalty grows linearly; 0: no ramp"
    )
    positive_nll_coef: NonNegativeFloat = HfArg(
        default=0.0, help="weight of the NLL of sampled completions that are right"
    )
    right_outcome: float = HfArg(default=1.0, help="least outcome of a right completion")
    verifier: bool = HfArg(default=False, help="also train a verifier on the rollouts, for search")
    verifier_steps: PositiveInt = HfArg(
        default=4, help="optimizer steps of the verifier in a rollout"
    )
    verifier_learning_rate: PositiveFloat = HfArg(
        default=3e-3, help="learning rate of the verifier"
    )
    curriculum: bool = HfArg(
        default=False, help="sample questions of the levels with the highest variance p (1 - p)"
    )
    curriculum_decay: UnitInterval = HfArg(
        default=0.9, help="decay of the moving average p of a level's success rate"
    )
    curriculum_floor: PositiveFloat = HfArg(
        default=0.05, help="added to p (1 - p), so that every level is sampled"
    )
    alarms: Literal["warn", "stop", "off"] = HfArg(
        default="warn", help="when a run collapses: warn, stop the run, or off"
    )
    alarm_patience: PositiveInt = HfArg(default=5, help="consecutive rollouts before an alarm")
    alarm_kl: NonNegativeFloat = HfArg(default=1.0, help="alarm above this KL in nats per token")
    alarm_entropy: NonNegativeFloat = HfArg(
        default=0.05, help="alarm below this share of the first rollouts' entropy"
    )
    alarm_length: PositiveFloat = HfArg(
        default=3.0, help="alarm above this multiple of the first rollouts' length"
    )
    log_samples: NonNegativeInt = HfArg(
        default=4, help="completions of a rollout written to samples.jsonl"
    )

    def check_options(self) -> None:
        """Raise ValueError where options contradict each other."""
        require(
            self.kl_in == "reward" or self.kl_estimator != "k1",
            "kl_estimator=k1 in the loss has an expected gradient of 0; give k2 or k3 with "
            "kl_in=loss",
        )
        require(
            self.kl_controller == "fixed" or self.kl_coef > 0,
            "kl_controller=adaptive multiplies kl_coef, and 0 stays 0; give kl_coef above 0",
        )
        require(
            not self.verifier or self.temperature == 1.0,
            f"verifier reads log-probabilities at temperature 1, and temperature="
            f"{self.temperature}; give temperature=1 or verifier=false",
        )
        require(
            self.overlong_buffer < self.max_completion_length,
            f"overlong_buffer={self.overlong_buffer} must be below "
            f"max_completion_length={self.max_completion_length}",
        )
        require(
            not self.overlong_buffer or self.overlong_penalty > 0,
            f"overlong_buffer={self.overlong_buffer} does nothing without overlong_penalty; "
            "give overlong_penalty=1",
        )
        if self.policy_steps_per_rollout is not None:
            check_divides(
                self.policy_steps_per_rollout,
                self.steps_per_rollout,
                f"policy_steps_per_rollout={self.policy_steps_per_rollout} must divide the "
                f"{self.ppo_epochs} epochs x {self.num_minibatches} minibatches = "
                f"{self.steps_per_rollout} steps of a rollout",
            )
