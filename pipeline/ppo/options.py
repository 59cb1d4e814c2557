"""What PPO can do beyond the paper: every field does nothing at its default.

docs/ppo.md has the equations and where they come from.
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
    """Fields of PPOConfig that refine the algorithm, and those that watch over a run."""

    kl_in: Literal["reward", "loss"] = HfArg(
        default="reward", help="charge the drift to the reward, or add it to the loss"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = HfArg(
        default="k1", help="how drift is estimated from the sampled tokens"
    )
    kl_controller: Literal["fixed", "adaptive"] = HfArg(
        default="fixed", help="adaptive: kl_coef follows the drift towards kl_target"
    )
    kl_target: PositiveFloat = HfArg(
        default=0.1, help="drift in nats a token that adaptive aims at"
    )
    kl_horizon: PositiveInt = HfArg(
        default=10_000, help="sequences over which adaptive takes effect"
    )
    value_lam: UnitInterval | None = HfArg(
        default=None, help="GAE lambda of the value head's targets; default: lam"
    )
    lam_alpha: PositiveFloat | None = HfArg(
        default=None, help="policy lambda by length, 1 - 1 / (lam_alpha * length); default: lam"
    )
    dual_clip: Annotated[float, Bounds(gt=1, why="1 is the ratio before any step")] | None = HfArg(
        default=None, help="upper bound of the ratio where the advantage is negative; default: none"
    )
    policy_steps_per_rollout: int | None = HfArg(
        default=None, help="steps of the policy a rollout, the value head takes all; default: all"
    )
    sampling_batch_size: PositiveInt = HfArg(
        default=256, help="sequences a process samples side by side; more where memory allows"
    )
    zero_variance_groups: Literal["keep", "skip", "resample"] = HfArg(
        default="keep", help="questions whose completions all earn the same: keep, skip, resample"
    )
    resample_tries: PositiveInt = HfArg(
        default=3, help="times that alike questions are replaced, at most"
    )
    overlong_penalty: NonNegativeFloat = HfArg(
        default=0.0, help="taken from a completion that uses up its whole budget"
    )
    overlong_buffer: NonNegativeInt = HfArg(
        default=0, help="last tokens of the budget over which overlong_penalty sets in; 0: at once"
    )
    positive_nll_coef: NonNegativeFloat = HfArg(
        default=0.0, help="weight of the likelihood of the policy's own right completions"
    )
    right_outcome: float = HfArg(
        default=1.0, help="outcome from which on a completion counts as right"
    )
    verifier: bool = HfArg(
        default=False, help="fit a verifier to the rollouts, for search; the policy is as is"
    )
    verifier_steps: PositiveInt = HfArg(default=4, help="its optimizer steps a rollout")
    verifier_learning_rate: PositiveFloat = HfArg(default=3e-3, help="its learning rate")
    curriculum: bool = HfArg(default=False, help="ask the levels at which there is most to learn")
    curriculum_decay: UnitInterval = HfArg(
        default=0.9, help="weight of a rollout in a level's success rate, against the next one's"
    )
    curriculum_floor: PositiveFloat = HfArg(
        default=0.05, help="added to a level's p (1 - p), so that every level is asked"
    )
    alarms: Literal["warn", "stop", "off"] = HfArg(
        default="warn", help="what follows when a run collapses: a line, the end, nothing"
    )
    alarm_patience: PositiveInt = HfArg(default=5, help="rollouts in a row before an alarm")
    alarm_kl: NonNegativeFloat = HfArg(
        default=1.0, help="drift in nats a token that raises the alarm"
    )
    alarm_entropy: NonNegativeFloat = HfArg(
        default=0.05, help="share of the first rollouts' entropy below which the alarm is raised"
    )
    alarm_length: PositiveFloat = HfArg(
        default=3.0, help="times the first rollouts' length above which the alarm is raised"
    )
    log_samples: NonNegativeInt = HfArg(
        default=4, help="completions a rollout written to samples.jsonl; 0: none"
    )

    def check_options(self) -> None:
        """Raise ValueError where options contradict each other."""
        require(
            self.kl_in == "reward" or self.kl_estimator != "k1",
            "kl_estimator=k1 in the loss has a gradient of 0 on average; give k2 or k3 with "
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
