"""Configurations as dataclasses whose values are checked on construction.

TrlParser rejects unknown keys but not wrong values: `n: 2.7` passes an int field and `mode: zzz` a
Literal. Each configuration therefore calls `check_types(self)` in `__post_init__`. A range is part
of the type of its field, `Annotated[float, Bounds(ge=0, le=1)]` or one of the names below; only
rules between several fields are code.
"""

import json
import os
import types
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    ClassVar,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from transformers.hf_argparser import HfArg

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Bounds:
    """Range of a number: `ge` and `le` include their bound, `gt` and `lt` do not.

    `why` is the reason of the rule, for the error message. NaN lies in no range.

    >>> str(Bounds(ge=1)), str(Bounds(gt=0)), str(Bounds(ge=0, lt=1))
    ('at least 1', 'above 0', 'in [0, 1)')
    """

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    why: str = ""

    def __contains__(self, value: float) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        low, high = (b if a is None else a for a, b in ((self.ge, self.gt), (self.le, self.lt)))
        if high is None:
            return f"above {low:g}" if self.ge is None else f"at least {low:g}"
        left, right = "(" if self.ge is None else "[", ")" if self.le is None else "]"
        return f"in {left}{low:g}, {high:g}{right}"


@dataclass(frozen=True)
class NonEmpty:
    """A text that has to be given."""

    def __contains__(self, value: str) -> bool:
        return bool(value.strip())

    def __str__(self) -> str:
        return "required"


Required = Annotated[str, NonEmpty()]
PositiveInt = Annotated[int, Bounds(ge=1)]
NonNegativeInt = Annotated[int, Bounds(ge=0)]
PositiveFloat = Annotated[float, Bounds(gt=0)]
NonNegativeFloat = Annotated[float, Bounds(ge=0)]
UnitInterval = Annotated[float, Bounds(ge=0, le=1)]
Votes = Annotated[int, Bounds(ge=2, why="one sample is no vote")]


def check_types(config: "DataclassInstance") -> None:
    """Raise ValueError for a field whose value does not fit its annotation, bounds included.

    `1e-5` in quotes, or as YAML reads it, becomes the float it stands for.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        kinds, rules = _kinds_and_rules(hints[field.name])
        value = getattr(config, field.name)
        if kinds is not None and not _fits(value, kinds):
            number = _as_number(value, kinds)
            if number is None:
                allowed = " or ".join(_name(kind) for kind in kinds)
                raise ValueError(f"{field.name}={value!r} must be {allowed}{_default(field)}")
            setattr(config, field.name, value := number)
        for rule in rules:
            if value is not None and value not in rule:
                raise ValueError(_broken(rule, field, value, optional=type(None) in (kinds or ())))


def field_rules(cls: type) -> dict[str, str]:
    """{field: rule} of the fields with one, such as {"lam": "in [0, 1]", "n": ">= 1"}."""
    hints = get_type_hints(cls, include_extras=True)
    rules = {name: _kinds_and_rules(hint)[1] for name, hint in hints.items()}
    texts = {name: str(found[0]) for name, found in rules.items() if found}
    return {n: t.replace("at least", ">=").replace("above", ">") for n, t in texts.items()}


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)


def check_divides(part: int, whole: int, rule: str) -> None:
    """Raise ValueError unless part divides whole; `rule` says which is which.

    >>> check_divides(3, 8, "num_minibatches=3 must divide the rollout of 8 sequences")
    Traceback (most recent call last):
    ValueError: num_minibatches=3 must divide the rollout of 8 sequences; 8 / 3 = 2.67
    """
    require(
        part > 0 and whole % part == 0,
        f"{rule}; {whole} / {part} = {whole / part:.2f}" if part > 0 else rule,
    )


def _kinds_and_rules(hint: object) -> tuple[tuple | None, list[Bounds | NonEmpty]]:
    """The simple types that an annotation allows, None where it is not simple, and its rules."""
    kinds, rules = [], []
    for option in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        if get_origin(option) is Annotated:
            option, *extras = get_args(option)
            rules += [extra for extra in extras if isinstance(extra, Bounds | NonEmpty)]
        kinds.append(option)
    simple = (int, float, bool, str, type(None))
    ok = all(kind in simple or get_origin(kind) is Literal for kind in kinds)
    return (tuple(kinds), rules) if ok else (None, [])


def _broken(rule: Bounds | NonEmpty, field: Field, value: object, *, optional: bool) -> str:
    """The error message for a value outside the rule of its field."""
    if isinstance(rule, NonEmpty):
        return f"--{field.name} is missing: pass --{field.name} or set it in the --config"
    verb = "lie" if str(rule).startswith("in ") else "be"
    why = f": {rule.why}" if rule.why else ""
    return f"{field.name}={value} must {verb} {rule}{', or null' * optional}{why}{_default(field)}"


def _default(field: Field) -> str:
    """The end of an error message: the default of a field, where it has one."""
    return "" if field.default in (MISSING, None) else f"; the default is {field.default}"


def _fits(value: object, kinds: tuple) -> bool:
    for kind in kinds:
        if get_origin(kind) is Literal:
            if value in get_args(kind):
                return True
        elif kind in (int, float):
            if isinstance(value, (int, kind)) and not isinstance(value, bool):
                return True
        elif isinstance(value, kind):
            return True
    return False


def _as_number(value: object, kinds: tuple) -> float | None:
    if isinstance(value, str) and float in kinds:
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _name(kind: object) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    names: dict[object, str] = {
        type(None): "null",
        float: "a number",
        int: "a whole number",
        bool: "true or false",
    }
    return names.get(kind, "text")


@dataclass
class StageConfig:
    """How the command itself behaves."""

    dry_run: bool = HfArg(
        default=False, help="load and check everything, say what would happen, write nothing"
    )
    overwrite_output_dir: bool = HfArg(
        default=False, help="replace the run that output_dir holds; default: resume it or refuse"
    )

    def __post_init__(self) -> None:
        check_types(self)


Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]


def _has_float32_masters() -> bool:
    """Whether `accelerate launch` uses DeepSpeed or FSDP: the optimizer has float32 weights."""
    names = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
    return any(os.environ.get(name, "").lower() in ("1", "true") for name in names)


@dataclass
class ModelConfig:
    """Which model a stage starts from."""

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
            self.dtype == "float32" or self.use_peft or _has_float32_masters(),
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
    self_correction_share: UnitInterval = HfArg(
        default=0.0, help="share of thoughts with a step corrected"
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
        require(
            self.shares is None or self.dataset == "nano",
            f"shares={self.shares!r} are shares of nano, not of dataset={self.dataset}; "
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
        return _weights("shares", self.shares, example="wording=1,story1=2")


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
        return _weights("rewards", self.rewards, example="correctness=1,steps=0.1")


def _weights(field: str, text: str, *, example: str) -> dict[str, float]:
    """{name: number} of a text like 'a=1,b=2'."""
    parsed = {}
    for item in text.split(","):
        name, sign, number = item.rpartition("=")
        try:
            parsed[name.strip()] = float(sign and number)
        except ValueError:
            raise ValueError(
                f"{field}={text!r} must look like {example!r}; {item!r} does not"
            ) from None
    return parsed
