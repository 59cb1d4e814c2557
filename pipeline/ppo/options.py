"""The hyperparameters of PPO: a plain dataclass, which the core uses without a trainer.

The defaults are the paper's values (Table A1); fields that the paper does not have do nothing at
their default. docs/ppo.md has the equations and where they come from.

    rollout    Q questions x G completions, sampled by one policy
    epoch      one pass over the rollout
    minibatch  the sequences behind one optimizer step
    micro      the sequences in memory at once; changes the memory, never the result
"""

from dataclasses import dataclass
from typing import Any, Literal

from transformers.hf_argparser import HfArg

from pipeline.config import check_divides, require


@dataclass
class PPOOptions:
    """Hyperparameters of Proximal Policy Optimization (arXiv:1707.06347) with a KL penalty.

    Raises:
        ValueError: from `check_options`, where a value is out of its range.
    """

    # ---- size of a rollout and of the update ----
    num_rollouts: int = HfArg(default=100, help="rollouts to collect; each is one PPO step")
    questions_per_rollout: int = HfArg(default=32, help="Q, questions in a rollout, all processes")
    completions_per_question: int = HfArg(default=8, help="G, samples a question; at least 2")
    ppo_epochs: int = HfArg(default=4, help="passes over a rollout before it is dropped")
    num_minibatches: int = HfArg(default=4, help="optimizer steps a pass")
    micro_batch_size: int | None = HfArg(
        default=None, help="sequences a forward and process; default: a whole minibatch"
    )
    max_completion_length: int = HfArg(default=256, help="C, the budget of a completion in tokens")
    temperature: float = HfArg(default=1.0, help="of sampling, and of the policy that is trained")
    sampling_batch_size: int = HfArg(
        default=256, help="sequences a process samples at once; more where memory allows"
    )
    # ---- advantages ----
    gamma: float = HfArg(default=1.0, help="discount; 1.0 because an answer is worth the same late")
    lam: float = HfArg(default=0.95, help="GAE lambda: 0 trusts the value head, 1 the outcome")
    value_lam: float | None = HfArg(
        default=None, help="GAE lambda of the value head's targets; default: lam"
    )
    lam_alpha: float | None = HfArg(
        default=None, help="policy lambda by length, 1 - 1 / (lam_alpha * length); default: lam"
    )
    rloo_baseline: bool = HfArg(
        default=False, help="subtract the mean reward of the question's other completions"
    )
    # ---- loss ----
    clip: float = HfArg(default=0.2, help="how far a probability ratio may fall")
    clip_high: float | None = HfArg(default=None, help="how far it may rise; default: clip")
    dual_clip: float | None = HfArg(
        default=None, help="upper bound of the ratio where the advantage is negative, above 1"
    )
    value_clip: float | None = HfArg(default=0.2, help="how far a value may move; null: no bound")
    value_coef: float = HfArg(default=0.5, help="weight of the value loss")
    entropy_coef: float = HfArg(default=0.01, help="weight of the entropy bonus")
    positive_nll_coef: float = HfArg(
        default=0.0, help="weight of the negative log-likelihood of the policy's right completions"
    )
    right_outcome: float = HfArg(
        default=1.0, help="a completion is right where its outcome is at least this"
    )
    supervised_coef: float = HfArg(
        default=0.0, help="weight of the SFT loss on worked solutions that joins each update"
    )
    supervised_batch_size: int = HfArg(
        default=16, help="worked solutions an optimizer step and process, where supervised_coef > 0"
    )
    value_warmup: int = HfArg(default=0, help="first rollouts that train only the value head")
    value_learning_rate: float | None = HfArg(
        default=None, help="learning rate of the value head; default: learning_rate"
    )
    policy_steps_per_rollout: int | None = HfArg(
        default=None, help="policy steps a rollout; the value head takes all; default: all"
    )
    # ---- KL penalty ----
    kl_coef: float = HfArg(default=0.05, help="weight of the KL penalty, reward a nat")
    kl_in: Literal["reward", "loss"] = HfArg(
        default="reward", help="subtract the KL penalty from the reward, or add it to the loss"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = HfArg(
        default="k1", help="estimator of the KL from the sampled tokens"
    )
    kl_controller: Literal["fixed", "adaptive"] = HfArg(
        default="fixed", help="adaptive: kl_coef moves the KL towards kl_target"
    )
    kl_target: float = HfArg(default=0.1, help="KL in nats a token that adaptive aims at")
    kl_horizon: int = HfArg(default=10_000, help="sequences over which adaptive takes effect")
    # ---- which questions and completions are trained on ----
    zero_variance_groups: Literal["keep", "skip", "resample"] = HfArg(
        default="keep", help="questions whose completions all earn the same: keep, skip, resample"
    )
    resample_tries: int = HfArg(default=3, help="most rounds of resampling such groups")
    mask_truncated_completions: bool = HfArg(
        default=False, help="leave completions that ran out of budget out of the loss"
    )
    overlong_penalty: float = HfArg(
        default=0.0, help="taken from the reward of a completion that uses up its whole budget"
    )
    overlong_buffer: int = HfArg(
        default=0, help="last tokens of the budget over which overlong_penalty grows; 0: a step"
    )
    curriculum: bool = HfArg(
        default=False, help="draw levels by the variance of their success, p (1 - p)"
    )
    curriculum_decay: float = HfArg(
        default=0.9, help="weight of a rollout in a level's success rate, against the next one's"
    )
    curriculum_floor: float = HfArg(
        default=0.05, help="added to a level's p (1 - p), so that every level is drawn"
    )
    # ---- verifier, alarms, samples ----
    verifier: bool = HfArg(
        default=False, help="fit a verifier to the rollouts, for search; the policy does not change"
    )
    verifier_steps: int = HfArg(default=4, help="its optimizer steps a rollout")
    verifier_learning_rate: float = HfArg(default=3e-3, help="its learning rate")
    alarms: Literal["warn", "stop", "off"] = HfArg(
        default="warn", help="where a run collapses: print a line, end the run, or nothing"
    )
    alarm_patience: int = HfArg(default=5, help="rollouts in a row before an alarm")
    alarm_kl: float = HfArg(default=1.0, help="alarm above this KL, in nats a token")
    alarm_entropy: float = HfArg(
        default=0.05, help="alarm below this share of the first rollouts' entropy"
    )
    alarm_length: float = HfArg(
        default=3.0, help="alarm above this multiple of the first rollouts' length"
    )
    log_samples: int = HfArg(
        default=4, help="completions a rollout written to samples.jsonl; 0: none"
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
        """Raise ValueError, with value and rule, for the first field that is out of its range."""
        for names, holds, rule in RANGES:
            for name in names.split():
                value = getattr(self, name)
                require(value is None or holds(value), f"{name}={value} {rule}")
        require(
            self.completions_per_question >= 2,
            f"completions_per_question={self.completions_per_question} must be at least 2: "
            "GRPOTrainer, whose data loading is used, samples groups",
        )
        require(
            self.dual_clip is None or self.dual_clip > 1,
            f"dual_clip={self.dual_clip} must be above 1: below, it would bound every token with "
            "a negative advantage",
        )
        self._check_combinations()

    def _check_combinations(self) -> None:
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


# (fields, test, rule). None is allowed wherever a field's type allows it.
RANGES: tuple[tuple[str, Any, str], ...] = (
    ("gamma lam value_lam curriculum_decay", lambda x: 0.0 <= x <= 1.0, "must lie in [0, 1]"),
    (
        "clip temperature lam_alpha kl_target kl_horizon curriculum_floor alarm_length "
        "verifier_learning_rate",
        lambda x: x > 0,
        "must be above 0",
    ),
    ("clip_high value_clip value_learning_rate", lambda x: x > 0, "must be above 0, or null"),
    (
        "value_coef kl_coef entropy_coef value_warmup supervised_coef overlong_penalty "
        "overlong_buffer positive_nll_coef log_samples alarm_kl alarm_entropy",
        lambda x: x >= 0,
        "must be at least 0",
    ),
    (
        "num_rollouts questions_per_rollout ppo_epochs num_minibatches max_completion_length "
        "supervised_batch_size sampling_batch_size resample_tries alarm_patience verifier_steps",
        lambda x: x >= 1,
        "must be at least 1",
    ),
    ("micro_batch_size", lambda x: x >= 1, "must be at least 1, or null"),
)
