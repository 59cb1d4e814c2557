"""Configurations as dataclasses, a mistake in one clear line. `command` fills them.

TrlParser rejects unknown keys but not wrong values: `n: 2.7` passes an int field and `mode: zzz` a
Literal. Each configuration therefore calls `check_types(self)` on construction, before anything is
made.
"""

import types
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from transformers.hf_argparser import HfArg


def check_types(config: Any) -> None:
    """Raise ValueError for a field whose value does not fit its annotation; `1e-5` in quotes, or as
    YAML reads it, becomes the float it looks like."""
    hints = get_type_hints(type(config))
    for field in fields(config):
        kinds = _kinds(hints[field.name])
        value = getattr(config, field.name)
        if kinds is None or _fits(value, kinds):
            continue
        fixed = _as_number(value, kinds)
        if fixed is None:
            raise ValueError(
                f"{field.name}={value!r} is of type {type(value).__name__}; it must be "
                f"{' or '.join(_say(kind) for kind in kinds)}"
            )
        setattr(config, field.name, fixed)


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


def _kinds(hint: Any) -> tuple | None:
    """The simple types a value may have, or None where the annotation is not simple."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    simple = (int, float, bool, str, type(None))
    ok = all(option in simple or get_origin(option) is Literal for option in options)
    return options if ok else None


def _fits(value: Any, kinds: tuple) -> bool:
    for kind in kinds:
        if get_origin(kind) is Literal:
            if value in get_args(kind):
                return True
        elif kind is float:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return True
        elif kind is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return True
        elif isinstance(value, kind):
            return True
    return False


def _as_number(value: Any, kinds: tuple) -> float | None:
    if isinstance(value, str) and float in kinds:
        try:
            return float(value)
        except ValueError:
            return None
    return None


def _say(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    return {
        type(None): "null",
        float: "a number",
        int: "a whole number",
        bool: "true or false",
    }.get(kind, "text")


@dataclass
class StageConfig:
    """How the command itself behaves."""

    dry_run: bool = HfArg(
        default=False, help="load and check all, say what would happen, train and write nothing"
    )

    def __post_init__(self):
        check_types(self)


@dataclass
class ModelConfig:
    """Which model a stage starts from."""

    model: str = HfArg(
        default="nano",
        help="checkpoint folder, user/name[@revision] on the Hub, or nano: made here from scratch",
    )
    model_revision: str | None = HfArg(default=None, help="branch, tag or commit on the Hub")
    nano_hidden_size: int = HfArg(default=128, help="width of nano")
    nano_layers: int = HfArg(default=4, help="layers of nano")
    nano_heads: int = HfArg(default=4, help="attention heads of nano")
    nano_intermediate_size: int = HfArg(default=384, help="width of nano's MLP")
    nano_rope_theta: float = HfArg(
        default=10_000.0, help="base of nano's rotary positions; short texts want less"
    )
    nano_vocab_size: int = HfArg(default=640, help="size of the vocabulary nano learns")
    use_peft: bool = HfArg(default=False, help="train LoRA adapters; the model itself stays")
    lora_r: int = HfArg(default=16, help="rank of the adapters")
    lora_alpha: int = HfArg(default=32, help="adapters count lora_alpha / lora_r times")
    lora_dropout: float = HfArg(default=0.0, help="dropout of the adapters in SFT; PPO has none")
    lora_target_modules: str = HfArg(
        default="all-linear", help="layers with adapters, as in 'q_proj,v_proj'; or all-linear"
    )

    def __post_init__(self):
        check_types(self)
        require(self.lora_r >= 1, f"lora_r={self.lora_r} must be at least 1")
        require(self.lora_alpha >= 1, f"lora_alpha={self.lora_alpha} must be at least 1")
        require(
            0.0 <= self.lora_dropout < 1.0, f"lora_dropout={self.lora_dropout} must lie in [0, 1)"
        )
        require(
            not self.use_peft or self.model != "nano",
            "use_peft=true needs a model that has learned something, and model=nano is made from "
            "scratch; name a checkpoint or a model on the Hub, or leave use_peft out",
        )
        name, _, revision = self.model.partition("@")
        if revision and not Path(self.model).exists():
            require(
                self.model_revision in (None, revision),
                f"model={self.model} names another revision than "
                f"model_revision={self.model_revision}; give one of them",
            )
            self.model, self.model_revision = name, revision
        for name in ("hidden_size", "layers", "heads", "intermediate_size", "vocab_size"):
            value = getattr(self, f"nano_{name}")
            require(value >= 1, f"nano_{name}={value} must be at least 1")
        check_divides(
            self.nano_heads,
            self.nano_hidden_size,
            f"nano_heads={self.nano_heads} must divide nano_hidden_size={self.nano_hidden_size}",
        )


@dataclass
class DataConfig:
    """Which problems a stage trains on."""

    dataset: str = HfArg(
        default="nano", help="name of a data set, several with commas, or a mixture: gsm8k=2,math=1"
    )
    split: str = HfArg(default="train", help="split to train on")
    data_root: str | None = HfArg(
        default=None, help="folder with NAME/SPLIT.jsonl.gz; default: $THINKHEAD_DATA, else the Hub"
    )
    size: int | None = HfArg(default=None, help="problems to use; default: all, 20,000 of nano")
    shares: str | None = HfArg(
        default=None, help="kinds of nano and their shares, as in 'wording=1,story1=2'"
    )
    decomposed_share: float = HfArg(
        default=0.0, help="share of nano's thoughts that are told in smaller steps"
    )
    self_correction_share: float = HfArg(
        default=0.0, help="share of thoughts in which a wrong step is made, noticed and mended"
    )
    overlap: Literal["drop", "refuse", "allow"] = HfArg(
        default="drop", help="what becomes of training rows that an evaluation suite holds"
    )
    streaming: bool = HfArg(default=False, help="SFT reads row by row; needs max_steps")
    processes: int = HfArg(default=1, help="processes that read and encode rows")
    data_seed_offset: int = HfArg(default=0, help="another draw of made-up problems")
    think: bool = HfArg(default=True, help="false: train on answers alone, without a thought")

    def __post_init__(self):
        check_types(self)
        require(self.size is None or self.size >= 1, f"size={self.size} must be at least 1")
        require(
            self.shares is None or self.dataset == "nano",
            f"shares={self.shares!r} are shares of nano, not of dataset={self.dataset}; "
            "leave them out",
        )
        require(
            0.0 <= self.decomposed_share <= 1.0,
            f"decomposed_share={self.decomposed_share} must lie in [0, 1]",
        )
        require(
            0.0 <= self.self_correction_share <= 1.0,
            f"self_correction_share={self.self_correction_share} must lie in [0, 1]",
        )
        require(self.processes >= 1, f"processes={self.processes} must be at least 1")
        require(
            self.decomposed_share == 0 or self.shares is not None,
            f"decomposed_share={self.decomposed_share} does nothing without shares; give shares of nano",
        )
        self.parsed_shares()

    def parsed_shares(self) -> dict[str, float] | None:
        """{kind: share}, or None where no shares are given."""
        if self.shares is None:
            return None
        parsed = {}
        for item in self.shares.split(","):
            kind, _, share = item.partition("=")
            try:
                parsed[kind.strip()] = float(share)
            except ValueError:
                raise ValueError(
                    f"shares={self.shares!r} must look like 'wording=1,story1=2'; {item!r} does not"
                ) from None
        return parsed


@dataclass
class RewardConfig:
    """What a completion is paid for."""

    rewards: str = HfArg(
        default="correctness=1,well_formed=0,steps=0",
        help="functions by name or package.module:function, and their weights",
    )

    def __post_init__(self):
        check_types(self)
        self.weights()

    def weights(self) -> dict[str, float]:
        """{name: weight}.

        >>> RewardConfig(rewards="correctness=1,steps=0.1").weights()
        {'correctness': 1.0, 'steps': 0.1}
        """
        parsed = {}
        for item in self.rewards.split(","):
            name, _, weight = item.rpartition("=")
            try:
                parsed[name.strip()] = float(weight)
            except ValueError:
                raise ValueError(
                    f"rewards={self.rewards!r} must look like 'correctness=1,steps=0.1'; "
                    f"{item!r} does not"
                ) from None
        return parsed
