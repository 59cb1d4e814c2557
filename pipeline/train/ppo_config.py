"""What a PPO run is made of, with the paper's values (Table A1) as defaults.

    rollout    Q questions x G completions, sampled by one policy
    epoch      one pass over the rollout
    minibatch  the sequences behind one optimizer step
    micro      the sequences in memory at once; changes the memory, never the result

From these follow the names that TRL and transformers know (`num_iterations`, `max_steps`, ...). Give
ours; theirs are set here.
"""

import os
from dataclasses import dataclass

import torch
from transformers.hf_argparser import HfArg
from trl import GRPOConfig

from pipeline.config import check_divides, check_types, require


@dataclass
class PPOConfig(GRPOConfig):
    """Proximal policy optimization (arXiv:1707.06347) with a charge for leaving the reference."""

    num_rollouts: int = HfArg(default=100, help="rollouts to collect; each is one PPO step")
    questions_per_rollout: int = HfArg(default=32, help="Q, questions in a rollout, all processes")
    completions_per_question: int = HfArg(default=8, help="G, samples a question; at least 2")
    ppo_epochs: int = HfArg(default=4, help="passes over a rollout before it is dropped")
    num_minibatches: int = HfArg(default=4, help="optimizer steps a pass")
    micro_batch_size: int | None = HfArg(
        default=None, help="sequences a forward and process; default: a whole minibatch"
    )
    gamma: float = HfArg(default=1.0, help="discount; 1.0 because an answer is worth the same late")
    lam: float = HfArg(default=0.95, help="GAE lambda: 0 trusts the value head, 1 the outcome")
    clip: float = HfArg(default=0.2, help="how far a probability ratio may fall")
    clip_high: float | None = HfArg(default=None, help="how far it may rise; default: clip")
    value_clip: float | None = HfArg(default=0.2, help="how far a value may move; null: any way")
    value_coef: float = HfArg(default=0.5, help="weight of the value loss")
    kl_coef: float = HfArg(default=0.05, help="price of one nat of drift from the reference")
    entropy_coef: float = HfArg(default=0.01, help="weight of the entropy bonus")
    value_warmup: int = HfArg(default=0, help="first rollouts that train only the value head")
    value_learning_rate: float | None = HfArg(
        default=None, help="learning rate of the value head; default: learning_rate"
    )
    muon: bool = HfArg(default=False, help="Muon for the trunk's matrices instead of AdamW")
    save_every: int = HfArg(default=0, help="rollouts between checkpoints; 0: only at the end")
    # TRL's default generates with dropout off already; the rest of its defaults fit.
    temperature: float = HfArg(default=1.0, help="of the sampling, and of the policy that is trained")
    learning_rate: float = HfArg(default=1e-6, help="peak learning rate")
    max_completion_length: int = HfArg(default=256, help="C, the budget of a completion in tokens")
    max_grad_norm: float = HfArg(default=1.0, help="gradient norm bound")
    bf16: bool | None = HfArg(default=None, help="bfloat16 autocast; default: on a GPU that has it")
    gradient_checkpointing: bool = HfArg(default=False, help="trade time for memory")
    report_to: None | str | list[str] = HfArg(default="none", help="tensorboard, trackio or none")

    def __post_init__(self):
        check_types(self)
        self._check_ranges()
        self._derive()
        if not torch.cuda.is_available():
            self.use_cpu = True
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        super().__post_init__()

    @property
    def rollout_size(self) -> int:
        """B of a rollout, all processes."""
        return self.questions_per_rollout * self.completions_per_question

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps a rollout."""
        return self.ppo_epochs * self.num_minibatches

    def _check_ranges(self) -> None:
        for name in ("gamma", "lam"):
            value = getattr(self, name)
            require(0.0 <= value <= 1.0, f"{name}={value} must lie in [0, 1]")
        for name in ("clip", "temperature", "learning_rate"):
            value = getattr(self, name)
            require(value > 0, f"{name}={value} must be above 0")
        for name in ("value_coef", "kl_coef", "entropy_coef", "value_warmup", "save_every"):
            value = getattr(self, name)
            require(value >= 0, f"{name}={value} must be at least 0")
        for name in ("num_rollouts", "questions_per_rollout", "ppo_epochs", "num_minibatches"):
            value = getattr(self, name)
            require(value >= 1, f"{name}={value} must be at least 1")
        require(
            self.completions_per_question >= 2,
            f"completions_per_question={self.completions_per_question} must be at least 2: "
            "GRPOTrainer, whose data loading is used, samples groups",
        )
        require(
            self.value_clip is None or self.value_clip > 0,
            f"value_clip={self.value_clip} must be above 0, or null for no clipping",
        )

    def _derive(self) -> None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        rollout = self.rollout_size
        check_divides(
            self.num_minibatches * processes,
            rollout,
            f"num_minibatches={self.num_minibatches} x {processes} processes must divide the rollout "
            f"of {self.questions_per_rollout} questions x {self.completions_per_question} "
            f"completions = {rollout} sequences",
        )
        minibatch = rollout // self.num_minibatches // processes
        micro = self.micro_batch_size or minibatch
        check_divides(
            micro,
            minibatch,
            f"micro_batch_size={micro} must divide the minibatch of {minibatch} sequences a process",
        )
        self.per_device_train_batch_size = micro
        self.gradient_accumulation_steps = minibatch // micro
        self.steps_per_generation = rollout // processes // micro
        self.generation_batch_size = None
        self.num_generations = self.completions_per_question
        self.num_iterations = self.ppo_epochs
        self.epsilon, self.epsilon_high = self.clip, self.clip_high
        self.beta = self.kl_coef  # above 0, TRL brings the reference model along
        self.max_steps = self.num_rollouts * self.steps_per_rollout
        self.logging_steps = self.steps_per_rollout
        self.save_strategy = "steps" if self.save_every else "no"
        self.save_steps = max(1, self.save_every) * self.steps_per_rollout
