"""Configurations that several stages have: model, data, prompt, rewards, output folder."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from transformers.hf_argparser import HfArg

from pipeline.config.checks import (
    Bounds,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitInterval,
    check_divides,
    check_types,
    require,
)
from pipeline.config.weights import parse_mixture, parse_weights


@dataclass
class StageConfig:
    """How the command itself behaves."""

    dry_run: bool = HfArg(
        default=False, help="load and check everything, say what would happen, write nothing"
    )
    overwrite_output_dir: bool = HfArg(
        default=False, help="replace the run that output_dir holds; default: resume it or refuse"
    )
    energy_country: str | None = HfArg(
        default=None,
        help="measure energy and CO2 of the training with codecarbon, for electricity of this "
        "country (ISO code of three letters, such as DEU)",
    )
    energy_intensity: PositiveFloat | None = HfArg(
        default=None, help="g of CO2 per kWh in place of the country's mix"
    )

    def __post_init__(self) -> None:
        check_types(self)


Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]


def launched_with(*names: Literal["deepspeed", "fsdp"]) -> bool:
    """Whether `accelerate launch` uses one of these; both keep float32 weights in the optimizer."""
    values = [os.environ.get(f"ACCELERATE_USE_{name.upper()}", "") for name in names]
    return any(value.lower() in ("1", "true") for value in values)


@dataclass
class ModelConfig:
    """Which model a stage starts from."""

    ONLY_WITH: ClassVar[dict[str, tuple[str, ...]]] = {
        "model=nano": (
            *("nano_hidden_size", "nano_layers", "nano_heads", "nano_intermediate_size"),
            *("nano_rope_theta", "nano_vocab_size", "nano_window"),
        ),
        "load_in_4bit=true": ("bnb_4bit_quant_type", "use_bnb_nested_quant"),
        "use_peft=true": ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
    }

    model: str = HfArg(
        default="nano",
        help="checkpoint folder, user/name[@revision] on the Hub, a .gguf file, smol "
        "(SmolLM2-135M-Instruct), or nano: built from scratch",
    )
    model_revision: str | None = HfArg(default=None, help="branch, tag or commit on the Hub")
    dtype: Literal["float32", "bfloat16", "float16"] = HfArg(
        default="float32",
        help="dtype of the weights; bf16 autocast computes in bfloat16 with float32 weights",
    )
    attn_implementation: Attention | None = HfArg(
        default=None, help="attention of transformers; sequences are packed with sdpa, the default"
    )
    load_in_4bit: bool = HfArg(
        default=False, help="QLoRA: adapters on weights of 4 bits; needs CUDA and bitsandbytes"
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = HfArg(default="nf4", help="type of the 4 bits")
    use_bnb_nested_quant: bool = HfArg(
        default=False, help="quantize the scales of the 4-bit weights too"
    )
    nano_hidden_size: PositiveInt = HfArg(default=128, help="hidden size of nano")
    nano_layers: PositiveInt = HfArg(default=4, help="layers of nano")
    nano_heads: PositiveInt = HfArg(default=4, help="attention heads of nano")
    nano_intermediate_size: PositiveInt = HfArg(default=384, help="hidden size of nano's MLP")
    nano_rope_theta: PositiveFloat = HfArg(
        default=10_000.0, help="base of nano's rotary positions; short texts want less"
    )
    nano_vocab_size: PositiveInt = HfArg(default=640, help="vocabulary size of nano's tokenizer")
    nano_window: PositiveInt = HfArg(default=4096, help="context window of nano in tokens")
    frozen_layers: NonNegativeInt = HfArg(
        default=0, help="layers from the bottom that are not trained"
    )
    use_peft: bool = HfArg(default=False, help="train LoRA adapters and freeze the model itself")
    lora_r: PositiveInt = HfArg(default=16, help="rank of the adapters")
    lora_alpha: PositiveInt = HfArg(default=32, help="adapters are scaled by lora_alpha / lora_r")
    lora_dropout: Annotated[float, Bounds(ge=0, lt=1)] = HfArg(
        default=0.0, help="dropout of the adapters in SFT; PPO has none"
    )
    lora_target_modules: str = HfArg(
        default="all-linear", help="layers with adapters, as in 'q_proj,v_proj'; or all-linear"
    )

    def __post_init__(self) -> None:
        check_types(self)
        self.use_peft |= self.load_in_4bit
        require(
            self.dtype == "float32" or self.use_peft or launched_with("deepspeed", "fsdp"),
            f"dtype={self.dtype} rounds small optimizer steps to nothing; leave it out (bf16=true, "
            "the default on a GPU, computes in bfloat16 and keeps float32 weights), or give "
            "use_peft=true, which trains float32 adapters, or launch with DeepSpeed or FSDP",
        )
        require(
            not self.use_peft or self.model != "nano",
            "use_peft=true needs a trained model, and model=nano is built from scratch; name a "
            "checkpoint or a model on the Hub, or leave use_peft out",
        )
        require(
            not self.frozen_layers or not self.use_peft,
            f"frozen_layers={self.frozen_layers} is for full training, and use_peft=true freezes "
            "all layers; leave one of them out",
        )
        name, _, revision = self.model.partition("@")
        if revision and not Path(self.model).exists():
            require(
                self.model_revision in (None, revision),
                f"model={self.model} names another revision than "
                f"model_revision={self.model_revision}; give one of them",
            )
            self.model, self.model_revision = name, revision
        check_divides(
            self.nano_heads,
            self.nano_hidden_size,
            f"nano_heads={self.nano_heads} must divide nano_hidden_size={self.nano_hidden_size}",
        )


@dataclass(kw_only=True)
class OwnDataConfig:
    """How to read data that has no registered name: files, saved folders and Hub ids."""

    reads_text: ClassVar[bool] = False  # whether a row may be a text instead of a question
    needs_answers: ClassVar[bool] = True  # whether a row must have an answer

    columns: str | None = HfArg(
        default=None,
        help="columns of own data: question=frage,answer=antwort; in YAML also a mapping. "
        "Default: the usual names",
    )
    dataset_config: str | None = HfArg(default=None, help="configuration of a Hub data set")
    dataset_split: str | None = HfArg(
        default=None, help="split of a Hub data set or a saved folder"
    )
    dataset_revision: str | None = HfArg(
        default=None, help="branch, tag or commit of a Hub data set"
    )

    def __post_init__(self) -> None:
        if isinstance(self.columns, dict):
            self.columns = json.dumps(self.columns, ensure_ascii=False)


@dataclass(kw_only=True)
class PromptConfig:
    """What stands before every question; it is stored in the chat template of the checkpoint."""

    system_prompt: str | None = HfArg(
        default=None, help="system message; none removes it; default: as stored"
    )
    few_shot: str | None = HfArg(
        default=None,
        help="worked examples before every question: a file, or a number of training rows; 0 "
        "removes them; default: as stored",
    )
    chat_template: str = HfArg(
        default="own", help="own: the model's, plain: Question: ... Answer:, or a Jinja file"
    )

    def __post_init__(self) -> None:
        if isinstance(self.few_shot, int) and not isinstance(self.few_shot, bool):
            self.few_shot = str(self.few_shot)

    @property
    def counts_rows(self) -> bool:
        """Whether `few_shot` is a number of training rows and not a file."""
        return (self.few_shot or "").lstrip("-").isdigit()


@dataclass(kw_only=True)
class DataConfig(OwnDataConfig, PromptConfig):
    """Which problems a stage trains on."""

    dataset: str = HfArg(
        default="nano",
        help="name of a data set, a file, a folder saved by datasets or a Hub id; several with "
        "commas, or a mixture: gsm8k=2,own.jsonl=1",
    )
    split: str = HfArg(default="train", help="split to train on")
    data_root: str | None = HfArg(
        default=None, help="folder with NAME/SPLIT.jsonl.gz; default: $THINKHEAD_DATA, else the Hub"
    )
    size: PositiveInt | None = HfArg(
        default=None, help="problems to use; default: all, 20,000 of nano"
    )
    shares: str | None = HfArg(
        default=None, help="kinds of nano and their shares, as in 'wording=1,story1=2'"
    )
    decomposed_share: UnitInterval = HfArg(
        default=0.0, help="share of nano's thoughts broken into smaller steps"
    )
    direct_share: UnitInterval = HfArg(
        default=0.0, help="share of problems that SFT trains with an empty thought"
    )
    self_correction_share: UnitInterval = HfArg(
        default=0.0, help="share of thoughts with a step corrected"
    )
    single_operations: bool = HfArg(
        default=False, help="split (2+3)*4=20 in thoughts into 2+3=5 and 5*4=20"
    )
    number_variants: UnitInterval = HfArg(
        default=0.0, help="share of problems that get other numbers, with the thought recomputed"
    )
    overlap: Literal["drop", "refuse", "allow"] = HfArg(
        default="drop", help="what to do with training rows that an evaluation suite contains"
    )
    streaming: bool = HfArg(default=False, help="SFT reads row by row; needs max_steps")
    processes: PositiveInt = HfArg(default=1, help="processes that read and encode rows")
    data_seed_offset: int = HfArg(
        default=0, help="added to the seed of generated problems, for other problems"
    )
    think: bool = HfArg(default=True, help="false: train on answers alone, without a thought")

    def __post_init__(self) -> None:
        OwnDataConfig.__post_init__(self)
        PromptConfig.__post_init__(self)
        check_types(self)
        names = parse_mixture(self.dataset)
        require(
            self.shares is None or "nano" in names,
            f"shares={self.shares!r} are shares of nano, which is not in dataset={self.dataset}; "
            "leave them out",
        )
        require(
            self.decomposed_share == 0 or self.shares is not None,
            f"decomposed_share={self.decomposed_share} does nothing without shares; give shares of "
            "nano",
        )
        self.parsed_shares()

    def parsed_shares(self) -> dict[str, float] | None:
        """{kind: share}, or None where no shares are given."""
        if self.shares is None:
            return None
        return parse_weights("shares", self.shares, example="wording=1,story1=2")


@dataclass
class RewardConfig:
    """Which rewards a completion gets."""

    rewards: str = HfArg(
        default="correctness=1,well_formed=0,steps=0",
        help="functions by name or package.module:function, and their weights",
    )

    def __post_init__(self) -> None:
        check_types(self)
        self.weights()

    def weights(self) -> dict[str, float]:
        """{name: weight}.

        >>> RewardConfig(rewards="correctness=1,steps=0.1").weights()
        {'correctness': 1.0, 'steps': 0.1}
        """
        return parse_weights("rewards", self.rewards, example="correctness=1,steps=0.1")
