"""A command line and YAML into dataclasses; what is mistyped is said in one line."""

import re
import sys
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from inspect import get_annotations
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import TrlParser

from pipeline.config import require

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

    def parse_known_args(self, *args: Any, **options: Any) -> tuple:
        """argparse's; what nobody declared is refused, with the nearest name."""
        found, unknown = super().parse_known_args(*args, **options)
        if unknown:
            name = unknown[0].partition("=")[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            close = get_close_matches(name, [flag for flag in flags if "-" not in flag[2:]], n=1)
            hint = f"did you mean {close[0]}?" if close else "--help lists them all"
            raise ValueError(f"{name} is no argument here; {hint}")
        return found, unknown

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
        names = [key for key, _ in getattr(node, "value", ()) if isinstance(key.value, str)]
        for key in names:
            if key.value in seen:
                raise _yaml_error(f"the key {key.value!r} stands twice", key)
            seen.add(key.value)
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
    require(place + 1 < len(arguments), f"{flag} needs a name; see the folder configs/presets/")
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
