"""PPOConfig: PPO's hyperparameters and the fields that TRL and transformers derive from them.

`num_iterations`, `max_steps` and other fields of GRPOConfig follow from ours and are set here.
`pipeline.ppo.options` has the hyperparameters.
"""

import os
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, fields
from typing import ClassVar

from transformers import PreTrainedModel
from transformers.hf_argparser import HfArg
from trl import GRPOConfig

from pipeline.config import (
    NonNegativeInt,
    PositiveFloat,
    check_divides,
    check_types,
    launched_with,
    require,
    require_defaults,
)
from pipeline.model import has_value_head
from pipeline.ppo.options import PPOOptions
from pipeline.records import Problem
from pipeline.training.hardware import (
    PUSHING,
    PrecisionOptions,
    check_training_arguments,
    configure_hardware,
)
from pipeline.training.optimizer import MuonOptions

# Fields of GRPOConfig that PPO does not use: a value would be ignored, or make the recorded
# log-probabilities those of another distribution. vLLM's samples need no correction by importance
# sampling: the policy itself computes their log-probabilities.
_GRPO_ONLY = """
    cache_implementation chat_template_kwargs delta entropy_coef_delta entropy_coef_max
    entropy_coef_min entropy_target generation_kwargs importance_sampling_level loss_type
    max_tool_calling_iterations min_p multi_objective_aggregation off_policy_mask_threshold
    pad_to_multiple_of repetition_penalty router_aux_loss_coef sapo_temperature_neg
    sapo_temperature_pos scale_rewards top_entropy_quantile top_k top_p
    transformers_continuous_batching_config use_adaptive_entropy use_bias_correction_kl
    use_transformers_continuous_batching use_transformers_paged vespo_k_neg vespo_k_pos
    vespo_lambda_neg vespo_lambda_pos vllm_importance_sampling_cap
    vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min
    vllm_importance_sampling_correction vllm_importance_sampling_mode
"""
GRPO_ONLY = tuple(_GRPO_ONLY.split())
# Fields of TrainingArguments that PPO does not use either. With NEFTune's noise the recorded
# log-probabilities would be those of another policy; the order of questions is TRL's.
SUPERVISED_ONLY = ("label_smoothing_factor", "neftune_noise_alpha", "train_sampling_strategy")


@dataclass
class PPOConfig(PPOOptions, MuonOptions, PrecisionOptions, GRPOConfig):
    """Arguments of ReasoningPPOTrainer: PPOOptions, MuonOptions and those of GRPOConfig."""

    ONLY_WITH: ClassVar[dict[str, tuple[str, ...]]] = PUSHING
    # Fields that follow from PPO's own, so that `--help` leaves them out.
    DERIVED: ClassVar[tuple[str, ...]] = (
        "per_device_train_batch_size",
        "num_train_epochs",
        "max_steps",
        "logging_steps",
        "save_strategy",
        "save_steps",
    )

    save_every: NonNegativeInt = HfArg(
        default=0, help="rollouts between checkpoints; 0: only at the end"
    )
    learning_rate: PositiveFloat = HfArg(default=1e-6, help="peak learning rate")
    max_grad_norm: float = HfArg(default=1.0, help="gradient norm clipping")
    gradient_checkpointing: bool = HfArg(default=False, help="recompute activations to save memory")
    compile_layers: bool = HfArg(
        default=False, help="compile decoder layers for scoring and the update (torch.compile)"
    )
    # With dropout the policy that is trained would not be the one that sampled.
    disable_dropout: bool = HfArg(default=True, help="no dropout in policy and reference")
    num_generations_eval: int | None = HfArg(default=1, help="samples of a question in evaluation")
    # HfArgumentParser wants the None in front.
    report_to: None | str | list[str] = HfArg(default="none", help="tensorboard or trackio")  # noqa: RUF036

    def __post_init__(self) -> None:
        check_types(self)
        self.check_muon()
        self.check_options()
        self._check_unused()
        require(
            not (self.compile_layers and self.gradient_checkpointing),
            "compile_layers=true with gradient_checkpointing=true: a compiled layer keeps what its "
            "backward pass reads; leave one of them out",
        )
        require(
            not self.fp16 or launched_with("deepspeed") or self.deepspeed is not None,
            "fp16=true scales the loss until gradients overflow, and PPO leaves out steps whose "
            "gradients are not finite; leave it out, give bf16=true on a GPU that has it, or "
            "launch with DeepSpeed",
        )
        check_training_arguments(self)
        self._derive()
        configure_hardware(self)
        super().__post_init__()

    def _check_unused(self) -> None:
        rule = "belongs to GRPO and does nothing in PPO; leave it out"
        require_defaults(self, GRPO_ONLY, rule)
        require_defaults(
            self,
            SUPERVISED_ONLY,
            "belongs to supervised training, and PPO trains on samples of the policy as it is; "
            "leave it out",
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
        micro = min(self.micro_batch_size or minibatch, minibatch)
        if self.micro_batch_size not in (None, micro):
            if os.environ.get("RANK", "0") == "0":
                print(
                    f"note: micro_batch_size={self.micro_batch_size} is more than the minibatch of "
                    f"{minibatch} sequences a process, which is used instead"
                )
            self.micro_batch_size = micro
        if self.micro_batch_tokens is None:
            check_divides(
                micro,
                minibatch,
                f"micro_batch_size={micro} must divide the minibatch of {minibatch} sequences "
                "a process",
            )
        by_group = self.zero_variance_groups != "keep" or self.normalize_advantages == "group"
        by_group |= self.value_source == "monte_carlo" or self.rloo_baseline
        if by_group or self.curriculum:
            check_divides(
                processes,
                self.questions_per_rollout,
                f"{processes} processes must divide questions_per_rollout="
                f"{self.questions_per_rollout}, so that no question is divided among them",
            )
        # For Trainer a minibatch is one batch, which the trainer of PPO itself cuts.
        self._set("per_device_train_batch_size", minibatch, "questions_per_rollout")
        self._set("gradient_accumulation_steps", 1, "micro_batch_size")
        self._set("steps_per_generation", self.num_minibatches, "questions_per_rollout")
        self._set("generation_batch_size", None, "questions_per_rollout")
        self._set("num_generations", self.completions_per_question, "completions_per_question")
        self._set("num_iterations", self.ppo_epochs, "ppo_epochs")
        self._set("epsilon", self.clip, "clip")
        self._set("epsilon_high", self.clip_high, "clip_high")
        self._set("beta", self.kl_coef, "kl_coef")  # above 0, TRL loads the reference model
        self._set("max_steps", self.num_rollouts * self.steps_per_rollout, "num_rollouts")
        self._set("save_steps", max(1, self.save_every) * self.steps_per_rollout, "save_every")
        self._set("save_strategy", "steps" if self.save_every else "no", "save_every")
        self._set("num_train_epochs", _defaults(self)["num_train_epochs"], "num_rollouts")
        self._set("logging_steps", self.steps_per_rollout, "ppo_epochs and num_minibatches")

    def _set(self, name: str, value: object, ours: str) -> None:
        """Set a field of TRL's from ours; ValueError where it was given another value."""
        given = getattr(self, name)
        require(
            given in (value, _defaults(self)[name]),
            f"{name}={given} follows from {ours} in PPO; give {ours} instead",
        )
        setattr(self, name, value)


def _defaults(config: PPOConfig) -> dict[str, object]:
    return {field.name: field.default for field in fields(config)}


def check_arguments(
    model: PreTrainedModel,
    args: PPOConfig,
    given: Mapping[str, object],
    *,
    problems: Sequence[Problem],
    need_problems: Mapping[str, object],
    supervised: Sequence[Mapping[str, list[int]]] | None,
) -> None:
    """Raise ValueError for arguments of the trainer that would fail late, or be ignored.

    `given` are the arguments that go to GRPOTrainer, `need_problems` those that need problems.
    """
    if not has_value_head(model):
        raise ValueError("the model has no value head; call attach_value_head(model) first")
    for name in ("tools", "rollout_func", "environment_factory"):
        if name in given:
            raise ValueError(f"{name} belongs to GRPOTrainer and does nothing in PPO; leave it out")
    has_adapters = given.get("peft_config") is not None or hasattr(model, "peft_config")
    if args.kl_coef and not model.config.name_or_path and not has_adapters:
        raise ValueError(
            f"kl_coef={args.kl_coef} needs the reference model, and this model comes from no "
            "folder; load it with load_policy from one written by save_policy, or give kl_coef=0"
        )
    needed_by = [name for name, value in need_problems.items() if value]
    if needed_by and not problems:
        raise ValueError(
            f"{needed_by[0]} reads Problems; give problems=... instead of train_dataset"
        )
    require(
        args.step_lam is None
        or args.value_source == "monte_carlo"
        or need_problems.get("step_rewards") is not None,
        f"step_lam={args.step_lam} needs step rewards; give rewards such as "
        "correctness=1,steps=0.3 (the argument step_rewards) or value_source=monte_carlo, or "
        "leave step_lam out",
    )
    dataset = given.get("train_dataset")
    if isinstance(dataset, Sized) and len(dataset) < args.questions_per_rollout:
        raise ValueError(
            f"questions_per_rollout={args.questions_per_rollout} is more than the "
            f"{len(dataset)} problems to train on; lower it or give more problems"
        )
    if args.curriculum and "level" not in (getattr(dataset, "column_names", None) or ()):
        raise ValueError("curriculum=true needs the column 'level'; add it to the data")
    for name in ("train_dataset", "eval_dataset") if problems else ():
        if "problem" not in (getattr(given.get(name), "column_names", None) or ("problem",)):
            raise ValueError(
                f"{name} beside problems needs the column 'problem'; make it with problem_dataset"
            )
    if args.supervised_coef and supervised is None:
        raise ValueError(
            f"supervised_coef={args.supervised_coef} needs worked solutions; pass "
            "supervised=... (rows of sft_dataset) or set it to 0"
        )
