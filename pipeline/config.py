"""Configurations: a command line and YAML into dataclasses, a mistake in one clear line.

TrlParser rejects unknown keys but not wrong values: `n: 2.7` passes an int field and `mode: zzz` a
Literal. Each configuration therefore calls `check_types(self)` on construction, before anything is
made.
"""

import re
import sys
import textwrap
import types
from argparse import SUPPRESS, Action
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields
from difflib import get_close_matches
from inspect import get_annotations
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from transformers.hf_argparser import HfArg
from trl import TrlParser

# What `--help` tells beside our own fields; `--help_all` tells everything.
EVERYDAY = (
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "max_length",
    "seed",
    "save_steps",
    "logging_steps",
    "resume_from_checkpoint",
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "hub_private_repo",
    "hub_revision",
)


class CommandParser(TrlParser):
    """TrlParser whose complaints are ValueErrors of one line, like every other mistake of a user.

    argparse prints the whole usage before its message, and a missing --config is a traceback.

    `presets` is a folder of YAML files: `--preset NAME`, or `preset: NAME` in the --config, reads
    one of them. What the --config or the command line says wins over it.
    """

    def __init__(self, *args: Any, presets: str | None = None, **options: Any):
        super().__init__(*args, **options)
        self._presets = presets
        self.add_argument(
            "--help_all", action=_HelpAll, nargs=0, dest=SUPPRESS, default=SUPPRESS, help=SUPPRESS
        )

    def format_help(self) -> str:
        """What a newcomer needs: what the command does, and the fields that are ours. The hundreds
        that transformers and TRL bring are counted only."""
        about = getattr(sys.modules["__main__"], "__doc__", None) or ""
        shown = [(cls, _own_fields(cls)) for cls in self.dataclass_types]
        hidden = sum(len(fields(cls)) - len(own) for cls, own in shown)
        lines = [*about.strip().splitlines(), ""]
        lines += _entry("--config FILE.yaml", "a file of `field: value` lines, read first")
        lines += _entry("--FIELD VALUE", "any field below; goes before the file")
        for cls, own in shown:
            lines += ["", (cls.__doc__ or cls.__name__).strip().splitlines()[0]]
            for field in own:
                said = str(field.metadata.get("help", "")).split(". ")[0].rstrip(".")
                default = "" if field.default in (MISSING, None, "") else f" [{field.default}]"
                lines += _entry(f"--{field.name}", " ".join(said.split()) + default)
        if hidden:
            lines += ["", f"{hidden} more fields come from transformers and TRL: --help_all"]
        return "\n".join(lines) + "\n"

    def parse_args_and_config(self, args: Sequence[str] | None = None, **options: Any) -> tuple:
        arguments = sys.argv[1:] if args is None else list(args)
        config = _config_file(arguments) if "--config" in arguments else {}
        preset = config.get("preset") if self._presets else None
        if self._presets and "--preset" in arguments:
            preset = _taken_value(arguments, "--preset")
        if preset is not None:
            self._set_defaults(_read_preset(Path(self._presets), str(preset)), f"preset {preset}")
        return super().parse_args_and_config(arguments, **options)

    def set_defaults_with_config(self, **config: Any) -> list[str]:
        if self._presets:
            config.pop("preset", None)  # it has been read already
        return self._set_defaults(config, "--config")

    def _set_defaults(self, config: dict[str, Any], where: str) -> list[str]:
        known = [action.dest for action in self._actions]
        for key in config:
            close = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "--help lists them all"
            require(key in known, f"{key!r} in the {where} is no argument here; {hint}")
        return super().set_defaults_with_config(**config)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}: --help lists the arguments")


class _HelpAll(Action):
    """Everything that argparse knows."""

    def __call__(self, parser: Any, *args: Any, **kwargs: Any) -> None:
        print(super(CommandParser, parser).format_help())
        parser.exit()


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


class StrictLoader(yaml.SafeLoader):
    """safe_load that refuses what would be misread in silence: a key that stands twice, an anchor
    (a few hundred bytes of them fill the memory), `12:30` and `012`, which YAML 1.1 takes for 750
    and 10."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise _yaml_error("an alias is not allowed here", self.peek_event())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in getattr(node, "value", ()):
            if key.value in seen if isinstance(key.value, str) else False:
                raise _yaml_error(f"the key {key.value!r} stands twice", key)
            seen.add(key.value if isinstance(key.value, str) else id(key))
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        if ":" in node.value or re.fullmatch(r"[-+]?0[0-7_]+", node.value):
            raise _yaml_error(f"{node.value} would be read as another number; quote it", node)
        return super().construct_yaml_int(node)


StrictLoader.add_constructor("tag:yaml.org,2002:int", StrictLoader.construct_yaml_int)


def _yaml_error(what: str, at: Any) -> yaml.YAMLError:
    mark = at.start_mark
    return yaml.YAMLError(f"line {mark.line + 1}: {what}")


def _own_fields(cls: type) -> list[Field]:
    """The fields that our classes declare, and those of the others that one meets every day."""
    rooms = ("pipeline", "stages", "eval", "__main__")
    ours = [c for c in cls.__mro__ if c.__module__.partition(".")[0] in rooms]
    names = {name for c in ours for name in get_annotations(c)}
    told = [field for field in fields(cls) if field.name in names]
    return told + [field for field in fields(cls) if field.name in EVERYDAY and field not in told]


def _entry(name: str, text: str) -> list[str]:
    """Lines of a name and what it means, in two columns."""
    indent = " " * 30
    wrapped = textwrap.wrap(text, 68) or [""]
    first = f"  {name:<27} {wrapped[0]}" if len(name) <= 27 else f"  {name}\n{indent}{wrapped[0]}"
    return [first, *(indent + line for line in wrapped[1:])]


def _config_file(arguments: list[str]) -> dict[str, Any]:
    """What the YAML file of --config holds."""
    after = arguments[arguments.index("--config") + 1 :]
    require(bool(after), "--config needs the path of a YAML file; see the folder configs/")
    path = Path(after[0])
    if not path.is_file():
        raise FileNotFoundError(f"--config {path} does not exist; see the folder configs/")
    return _read_arguments(path)


def _read_preset(folder: Path, name: str) -> dict[str, Any]:
    """What the preset of that name holds."""
    path = folder / f"{name}.yaml"
    names = sorted(preset.stem for preset in folder.glob("*.yaml"))
    require(
        name in names, f"preset {name!r} is not one of {', '.join(names) or 'none'} in {folder}/"
    )
    return _read_arguments(path)


def _taken_value(arguments: list[str], flag: str) -> str:
    """The value behind a flag; both leave the list."""
    place = arguments.index(flag)
    require(place + 1 < len(arguments), f"{flag} needs a name")
    _, value = arguments.pop(place), arguments.pop(place)
    return value


def _read_arguments(path: Path) -> dict[str, Any]:
    """The arguments that a YAML file holds."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or "nested too deeply"
        raise ValueError(f"--config {path} is no YAML for arguments: {reason}") from error
    require(
        isinstance(content, dict),
        f"--config {path} holds no arguments; write one a line, such as `seed: 1`",
    )
    return content


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
        default=None, help="folder with NAME/SPLIT.jsonl.gz; default: $REASONER_DATA, else the Hub"
    )
    size: int | None = HfArg(default=None, help="problems to use; default: all, 20,000 of nano")
    shares: str | None = HfArg(
        default=None, help="kinds of nano and their shares, as in 'wording=1,story1=2'"
    )
    careful_share: float = HfArg(
        default=0.0, help="share of nano's thoughts that are told in smaller steps"
    )
    revision_share: float = HfArg(
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
            0.0 <= self.careful_share <= 1.0,
            f"careful_share={self.careful_share} must lie in [0, 1]",
        )
        require(
            0.0 <= self.revision_share <= 1.0,
            f"revision_share={self.revision_share} must lie in [0, 1]",
        )
        require(self.processes >= 1, f"processes={self.processes} must be at least 1")
        require(
            self.careful_share == 0 or self.shares is not None,
            f"careful_share={self.careful_share} does nothing without shares; give shares of nano",
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
