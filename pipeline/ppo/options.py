"""The hyperparameters of PPO: a plain dataclass, which the core uses without a trainer.

Clip range, epochs, value and entropy coefficient default to the paper's Table A1. Most other fields
change nothing at their default; docs/ppo.md names those that do, the equations and their sources.

    rollout    Q questions x G completions, sampled by one policy
    epoch      one pass over the rollout
    minibatch  the sequences of one optimizer step
    micro      the sequences of one forward pass; changes memory use, not the result beyond rounding
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

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
    """Hyperparameters of Proximal Policy Optimization (arXiv:1707.06347) with a KL penalty.

    Raises:
        ValueError: from `check_options`, where a value is out of its range.
    """

    ONLY_WITH: ClassVar[dict[str, tuple[str, ...]]] = {
        "value_source=monte_carlo": ("monte_carlo_samples",),
        "value_coef": ("value_detach",),
        "supervised_coef": ("supervised_batch_size",),
        "supervised_mode=alternate": ("supervised_steps",),
        "kl_coef": ("kl_in", "kl_estimator", "alarm_kl"),
        "kl_controller=adaptive": ("kl_target", "kl_horizon"),
        "zero_variance_groups=resample": ("resample_tries",),
        "zero_variance_groups=replay": ("replay_size", "replay_age", "replay_success"),
        "curriculum=true": ("curriculum_decay", "curriculum_floor"),
        "verifier=true": ("verifier_steps", "verifier_learning_rate"),
        "alarms=warn/stop": ("alarm_patience", "alarm_kl", "alarm_entropy", "alarm_length"),
    }

    # ---- size of a rollout and of the update ----
    num_rollouts: PositiveInt = HfArg(default=100, help="rollouts to collect; each is one PPO step")
    questions_per_rollout: PositiveInt = HfArg(default=32, help="Q, over all processes")
    completions_per_question: Annotated[
        int, Bounds(ge=2, why="the data loading of GRPOTrainer samples groups")
    ] = HfArg(default=8, help="G, samples of a question")
    ppo_epochs: PositiveInt = HfArg(default=4, help="passes over a rollout")
    num_minibatches: PositiveInt = HfArg(default=4, help="optimizer steps of an epoch")
    micro_batch_size: PositiveInt | None = HfArg(
        default=None, help="sequences of a forward, per process; default: a minibatch"
    )
    micro_batch_tokens: PositiveInt | None = HfArg(
        default=None,
        help="most tokens of a forward, per process, prompts included; default: no limit",
    )
    max_completion_length: PositiveInt = HfArg(default=256, help="C, tokens of a completion")
    temperature: PositiveFloat = HfArg(
        default=1.0, help="temperature of sampling and of the trained policy"
    )
    sampling_batch_size: PositiveInt | None = HfArg(
        default=None,
        help="sequences that a process samples at a time; default: 256, fewer where GPU memory is "
        "short",
    )
    # ---- advantages ----
    gamma: UnitInterval = HfArg(default=1.0, help="discount factor")
    lam: UnitInterval = HfArg(default=0.95, help="GAE lambda: 0 is TD(0), 1 is Monte Carlo")
    value_lam: UnitInterval | None = HfArg(
        default=None, help="GAE lambda of the value targets; default: lam"
    )
    lam_alpha: PositiveFloat | None = HfArg(
        default=None, help="lambda 1 - 1 / (lam_alpha * length); default: lam"
    )
    rloo_baseline: bool = HfArg(
        default=False, help="correct V by the leave-one-out mean of the question's returns"
    )
    step_lam: UnitInterval | None = HfArg(
        default=None,
        help="lambda at step ends, 0: credit in the step; default: lam",
    )
    value_source: Literal["head", "none", "verifier", "monte_carlo", "model"] = HfArg(
        default="head",
        help="V of the advantages: head, none, verifier, monte_carlo, model",
    )
    value_model: str | None = HfArg(
        default=None,
        help="folder that the value model starts from; default: the policy",
    )
    monte_carlo_samples: PositiveInt = HfArg(
        default=4, help="monte_carlo: completions sampled from each end of a step"
    )
    normalize_advantages: Literal["batch", "group", "none"] = HfArg(
        default="batch",
        help="mean 0, variance 1 of advantages in a batch, a group or none",
    )
    policy_token_share: Annotated[float, Bounds(gt=0, le=1)] = HfArg(
        default=1.0, help="share of tokens with a policy loss, by entropy"
    )
    # ---- loss ----
    token_mean: Literal["minibatch", "rollout"] = HfArg(
        default="minibatch",
        help="divide a minibatch's sum over tokens by its own tokens, or by the rollout's mean",
    )
    minibatch_shuffle: Literal["epoch", "rollout"] = HfArg(
        default="epoch",
        help="shuffle completions into minibatches in every epoch, or once for a whole rollout",
    )
    clip: PositiveFloat = HfArg(default=0.2, help="the ratio is clipped below 1 - clip")
    clip_high: PositiveFloat | None = HfArg(
        default=None, help="and above 1 + clip_high; default: clip"
    )
    dual_clip: (
        Annotated[float, Bounds(gt=1, why="a lower one would bound tokens that did not change")]
        | None
    ) = HfArg(default=None, help="bound of the ratio of negative advantages")
    value_clip: PositiveFloat | None = HfArg(
        default=0.2, help="largest change of a value in its loss; null: no clipping"
    )
    value_coef: NonNegativeFloat = HfArg(default=0.5, help="weight of the value loss")
    value_detach: bool = HfArg(
        default=False, help="train only the value head by the value loss, not the trunk"
    )
    entropy_coef: NonNegativeFloat = HfArg(default=0.01, help="weight of the entropy bonus")
    positive_nll_coef: NonNegativeFloat = HfArg(
        default=0.0, help="weight of the NLL of sampled completions that are right"
    )
    right_outcome: float = HfArg(default=1.0, help="least outcome of a right completion")
    supervised_coef: NonNegativeFloat = HfArg(
        default=0.0, help="weight of an SFT loss on worked solutions"
    )
    supervised_batch_size: PositiveInt = HfArg(
        default=16, help="worked solutions of an optimizer step, per process"
    )
    supervised_mode: Literal["joint", "alternate"] = HfArg(
        default="joint", help="joint: part of every update; alternate: steps of its own"
    )
    supervised_steps: PositiveInt = HfArg(
        default=1, help="alternate: optimizer steps on solutions after a rollout"
    )
    ema_decay: Annotated[float, Bounds(gt=0, lt=1)] | None = HfArg(
        default=None, help="decay of averaged weights, saved in ema/; default: none"
    )
    value_warmup: NonNegativeInt = HfArg(
        default=0, help="number of first rollouts that train only the value head"
    )
    value_learning_rate: PositiveFloat | None = HfArg(
        default=None, help="learning rate of the value head; default: learning_rate"
    )
    policy_steps_per_rollout: int | None = HfArg(
        default=None,
        help="policy steps in a rollout; default: all, as the value head",
    )
    target_kl: PositiveFloat | None = HfArg(
        default=None,
        help="leave out the epochs of a rollout after one whose last minibatch has an approx_kl "
        "above it; default: never",
    )
    # ---- KL penalty ----
    kl_coef: NonNegativeFloat = HfArg(default=0.05, help="weight of the KL to the reference")
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
    # ---- which questions and completions are trained on ----
    zero_variance_groups: Literal["keep", "skip", "resample", "replay"] = HfArg(
        default="keep", help="questions with equal rewards: keep, skip, resample, replay"
    )
    resample_tries: PositiveInt = HfArg(default=3, help="resample: rounds of replacement at most")
    replay_size: PositiveInt = HfArg(
        default=256, help="replay: questions of earlier rollouts kept, per process"
    )
    replay_age: PositiveInt = HfArg(default=4, help="replay: rollouts for which they are kept")
    replay_success: Annotated[float, Bounds(gt=0, lt=1)] = HfArg(
        default=0.5, help="replay: highest share of right completions of a question that is kept"
    )
    mask_truncated_completions: bool = HfArg(
        default=False, help="leave completions that ran out of budget out of the loss"
    )
    overlong_penalty: NonNegativeFloat = HfArg(
        default=0.0, help="subtracted from rewards at max_completion_length"
    )
    overlong_buffer: NonNegativeInt = HfArg(
        default=0, help="last tokens of a linear ramp of that penalty; 0: no ramp"
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
    # ---- verifier, alarms, samples ----
    verifier: bool = HfArg(default=False, help="also train a verifier on the rollouts, for search")
    verifier_steps: PositiveInt = HfArg(
        default=4, help="optimizer steps of the verifier in a rollout"
    )
    verifier_learning_rate: PositiveFloat = HfArg(
        default=3e-3, help="learning rate of the verifier"
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
        default=4, help="completions of a rollout that each process adds to samples.jsonl"
    )

    @property
    def rollout_size(self) -> int:
        """B of a rollout, all processes."""
        return self.questions_per_rollout * self.completions_per_question

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps a rollout."""
        return self.ppo_epochs * self.num_minibatches

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
            self.kl_controller == "fixed" or self.rollout_size < 5 * self.kl_horizon,
            f"kl_horizon={self.kl_horizon} is too short for rollouts of {self.rollout_size} "
            "sequences: kl_controller=adaptive would multiply kl_coef by 0 or less; give "
            f"kl_horizon={self.rollout_size // 5 + 1} or more",
        )
        require(
            not self.verifier or self.temperature == 1.0,
            f"verifier reads log-probabilities at temperature 1, and temperature="
            f"{self.temperature}; give temperature=1 or verifier=false",
        )
        require(
            self.value_source != "verifier" or self.verifier,
            "value_source=verifier needs a verifier; give verifier=true",
        )
        require(
            self.value_model is None or self.value_source == "model",
            f"value_model={self.value_model} is not used by value_source={self.value_source}; "
            "give value_source=model",
        )
        require(
            self.value_source in ("head", "none") or self.gamma == 1.0,
            f"value_source={self.value_source} estimates returns without discount, and gamma="
            f"{self.gamma}; give gamma=1",
        )
        require(
            not self.rloo_baseline or self.gamma == 1.0 or self.value_source == "none",
            f"rloo_baseline=true compares V with returns without discount, and gamma={self.gamma}; "
            "give gamma=1 or rloo_baseline=false",
        )
        require(
            self.value_source != "monte_carlo" or not self.rloo_baseline,
            "rloo_baseline=true with value_source=monte_carlo: V of the question is the mean of "
            "its other completions already, and the correction would count a completion's own "
            "reward; give rloo_baseline=false",
        )
        require(
            self.value_source != "monte_carlo" or self.zero_variance_groups != "replay",
            "value_source=monte_carlo samples on from every state again, which costs what "
            "zero_variance_groups=replay saves; give resample or skip",
        )
        require(
            self.supervised_mode == "joint" or self.supervised_coef > 0,
            "supervised_mode=alternate trains on worked solutions with weight supervised_coef=0; "
            "give supervised_coef=1",
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
        require(
            self.target_kl is None or self.policy_steps_per_rollout is None,
            f"target_kl={self.target_kl} leaves out steps that policy_steps_per_rollout="
            f"{self.policy_steps_per_rollout} would accumulate; give one of them",
        )
        require(
            self.target_kl is None or self.ppo_epochs > 1,
            f"target_kl={self.target_kl} does nothing with ppo_epochs=1; give 2 or more",
        )
        if self.policy_steps_per_rollout is not None:
            check_divides(
                self.policy_steps_per_rollout,
                self.steps_per_rollout,
                f"policy_steps_per_rollout={self.policy_steps_per_rollout} must divide the "
                f"{self.ppo_epochs} epochs x {self.num_minibatches} minibatches = "
                f"{self.steps_per_rollout} steps of a rollout",
            )
