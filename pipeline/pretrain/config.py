"""Configuration of pretraining: what is read and held out, and the arguments of the Trainer."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from transformers import IntervalStrategy, TrainingArguments
from transformers.hf_argparser import HfArg

from pipeline.config import (
    Bounds,
    DataConfig,
    PositiveFloat,
    PositiveInt,
    check_types,
    require,
)
from pipeline.training.hardware import (
    PUSHING,
    SAVING,
    PrecisionOptions,
    check_training_arguments,
    configure_hardware,
)
from pipeline.training.optimizer import MuonOptions


@dataclass(kw_only=True)
class PretrainDataConfig(DataConfig):
    """Which documents are trained on, and which are held out."""

    ONLY_WITH: ClassVar[dict[str, tuple[str, ...]]] = {"streaming=true": ("shuffle_buffer",)}
    reads_text: ClassVar[bool] = True

    held_out_share: Annotated[float, Bounds(ge=0, lt=1)] = HfArg(
        default=0.01, help="share of the documents that perplexity is measured on; 0 for none"
    )
    near_duplicates: bool = HfArg(
        default=False, help="keep documents that share most of their 8-grams with an earlier one"
    )
    shuffle_buffer: PositiveInt = HfArg(
        default=10_000, help="streaming: documents among which the next one is drawn"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("few_shot", "system_prompt"):
            require(
                getattr(self, name) is None,
                f"{name} is part of a prompt, and pretraining has none; leave it out and give it "
                "to stages.sft",
            )


@dataclass
class PretrainConfig(MuonOptions, PrecisionOptions, TrainingArguments):
    """TrainingArguments with the length of a block, MuonOptions, and defaults for pretraining."""

    ONLY_WITH: ClassVar[dict[str, tuple[str, ...]]] = {**PUSHING, **SAVING}

    max_length: PositiveInt = HfArg(default=512, help="tokens of a block of packed documents")
    num_train_epochs: float = HfArg(default=1.0, help="passes over the blocks")
    learning_rate: PositiveFloat = HfArg(default=6e-4, help="peak learning rate")
    weight_decay: float = HfArg(default=0.1, help="weight decay")
    adam_beta2: float = HfArg(default=0.95, help="AdamW's second beta")
    lr_scheduler_type: str = HfArg(
        default="cosine",
        help="cosine, or warmup_stable_decay with lr_scheduler_kwargs {num_decay_steps: N}",
    )
    warmup_steps: float = HfArg(default=0.02, help="steps of warm-up; below 1 a share of all steps")
    logging_steps: float = HfArg(default=10, help="steps between two rows of the log")
    eval_strategy: IntervalStrategy | str = HfArg(
        default="steps", help="when perplexity is measured, beside the end"
    )
    eval_steps: float | None = HfArg(
        default=0.1, help="steps between two perplexities; below 1 a share of all steps"
    )
    # HfArgumentParser wants the None in front.
    report_to: None | str | list[str] = HfArg(default="none", help="tensorboard or trackio")  # noqa: RUF036

    def __post_init__(self) -> None:
        check_types(self)
        require(self.max_length >= 2, f"max_length={self.max_length} must be at least 2")
        self.check_muon()
        check_training_arguments(self)
        configure_hardware(self)
        super().__post_init__()
        require(
            self.lr_scheduler_type != "warmup_stable_decay"
            or "num_decay_steps" in (self.lr_scheduler_kwargs or {}),
            "lr_scheduler_type=warmup_stable_decay needs its last part: give "
            "lr_scheduler_kwargs={num_decay_steps: N}, a tenth to a fifth of all steps",
        )
        if self.max_steps > 0:
            self.check_decay(self.max_steps)

    def steps_of(self, blocks: int) -> int:
        """Optimizer steps of a training on so many blocks."""
        if self.max_steps > 0:
            return self.max_steps
        batches = math.ceil(math.ceil(blocks / self.train_batch_size) / self.world_size)
        steps = math.ceil(batches / self.gradient_accumulation_steps)
        return math.ceil(self.num_train_epochs * steps)

    def check_decay(self, steps: int) -> None:
        """Raise ValueError if the decay of warmup_stable_decay is longer than the `steps` after the
        warm-up: the learning rate would never reach its peak."""
        given = self.lr_scheduler_kwargs or {}
        if self.lr_scheduler_type != "warmup_stable_decay" or "num_stable_steps" in given:
            return
        decay, left = given["num_decay_steps"], steps - self.get_warmup_steps(steps)
        require(
            decay <= left,
            f"num_decay_steps={decay} must be at most {left}, the steps after the warm-up of "
            f"{steps} in all; a tenth to a fifth of all steps is usual",
        )
