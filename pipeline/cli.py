"""Command line and YAML into dataclasses; a mistake of the user is one line.

`python -m stages.NAME --config nano/ppo.yaml --seed 1`: the file is looked for in the current
folder, then among the configurations of the package.
"""

import re
import sys
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from inspect import get_annotations
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import TrlParser

from pipeline.config import field_rules, require

# The folder stands beside the package: in a checkout, in an editable install and in a wheel.
CONFIGS = Path(__file__).parents[1] / "configs"

# Old names of fields, accepted for one release where the command has the new one.
RENAMED_FIELDS = {
    "alike_groups": "zero_variance_groups",
    "careful_share": "decomposed_share",
    "critic_epochs": "verifier_epochs",
    "critic_hidden": "verifier_hidden",
    "critic_learning_rate": "verifier_learning_rate",
    "laps": "iterations",
    "path_critic": "verifier",
    "path_critic_learning_rate": "verifier_learning_rate",
    "path_critic_steps": "verifier_steps",
    "revision_share": "self_correction_share",
    "sibling_baseline": "rloo_baseline",
}
RENAMED_REWARDS = {"steps_hold": "correct_steps"}

# Fields of transformers and TRL that `--help` lists; `--help_all` lists all of them.
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


def find_config(name: str | Path) -> Path:
    """Path of a configuration, a file or a folder: in the current folder, else in the package.

    `nano/ppo.yaml` and `configs/nano/ppo.yaml` name the same file of the package. What is in
    neither place comes back as it is.
    """
    path = Path(name)
    if path.exists() or path.is_absolute() or ".." in path.parts:
        return path
    packaged = packaged_config(path)
    return packaged if packaged.exists() else path


def packaged_config(name: str | Path) -> Path:
    """Path of a configuration of the package, relative where it lies below the current folder."""
    parts = Path(name).parts
    path = CONFIGS.joinpath(*(parts[1:] if parts[:1] == ("configs",) else parts))
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


class CommandParser(TrlParser):
    """TrlParser that raises ValueErrors of one line, where argparse prints its whole usage.

    `presets` is a folder of YAML files: `--preset NAME`, or `preset: NAME` in the --config, reads
    one of them. A value of the --config or of the command line replaces that of the preset.
    """

    def __init__(self, *args: Any, presets: str | Path | None = None, **options: Any):
        super().__init__(*args, **options)
        self._presets = presets
        self.add_argument(
            "--help_all", action=_HelpAll, nargs=0, dest=SUPPRESS, default=SUPPRESS, help=SUPPRESS
        )

    def format_help(self) -> str:
        """What the command does, and its own fields with their bounds and defaults; the hundreds of
        fields of transformers and TRL are only counted."""
        about = getattr(sys.modules["__main__"], "__doc__", None) or ""
        shown = [(cls, _own_fields(cls)) for cls in self.dataclass_types]
        hidden = sum(len(fields(cls)) - len(own) for cls, own in shown)
        lines = [*about.strip().splitlines(), ""]
        lines += _entry("--config FILE.yaml", "a file of `field: value` lines, read first")
        lines += _entry("--FIELD VALUE", "any field below; replaces that of the file")
        for cls, own in shown:
            rules = field_rules(cls)
            lines += ["", (cls.__doc__ or cls.__name__).strip().splitlines()[0]]
            for field in own:
                text = str(field.metadata.get("help", "")).split(". ")[0].rstrip(".")
                default = [] if field.default in (MISSING, None, "") else [str(field.default)]
                range_ = [rules[field.name]] if field.name in rules else []
                facts = f" [{'; '.join(default + range_)}]" if default or range_ else ""
                lines += _entry(f"--{field.name}", " ".join(text.split()) + facts)
        if hidden:
            lines += ["", f"{hidden} more fields come from transformers and TRL: --help_all"]
        return "\n".join(lines) + "\n"

    def parse_args_and_config(self, args: Sequence[str] | None = None, **options: Any) -> tuple:
        arguments = self._rename_flags(sys.argv[1:] if args is None else list(args))
        config = _config_file(arguments) if "--config" in arguments else {}
        preset = config.get("preset") if self._presets else None
        if self._presets and "--preset" in arguments:
            preset = _taken_value(arguments, "--preset")
        if preset is not None:
            self._set_defaults(_read_preset(Path(self._presets), str(preset)), f"preset {preset}")
        return super().parse_args_and_config(arguments, **options)

    def parse_known_args(self, *args: Any, **options: Any) -> tuple:
        """argparse's; an unknown argument is refused, with the nearest name."""
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
            config.pop("preset", None)  # already read by parse_args_and_config
        return self._set_defaults(config, "--config")

    def _set_defaults(self, config: dict[str, Any], where: str) -> list[str]:
        new_names = self._renamed(config)
        config = {new_names.get(key, key): value for key, value in config.items()}
        if isinstance(config.get("rewards"), str):
            config["rewards"] = _rename_rewards(config["rewards"])
        known = [action.dest for action in self._actions]
        for key in config:
            close = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "--help lists them all"
            require(key in known, f"{key!r} in the {where} is no argument here; {hint}")
        return super().set_defaults_with_config(**config)

    def _renamed(self, names: Collection[str]) -> dict[str, str]:
        """{old name: present name} of the given fields that were renamed; says so."""
        known = {action.dest for action in self._actions}
        found = {n: RENAMED_FIELDS[n] for n in names if n not in known and n in RENAMED_FIELDS}
        found = {old: new for old, new in found.items() if new in known}
        for old, new in found.items():
            twice = new in names or list(found.values()).count(new) > 1
            _note_renamed(old, new, twice=twice)
        return found

    def _rename_flags(self, arguments: list[str]) -> list[str]:
        """The arguments with the present names of fields and rewards."""
        names = [
            a[2:].partition("=")[0].replace("-", "_") if a.startswith("--") else ""
            for a in arguments
        ]
        new_names = self._renamed(names)
        renamed = []
        for place, (argument, name) in enumerate(zip(arguments, names, strict=True)):
            if name in new_names:
                argument = f"--{new_names[name]}{argument[2 + len(name) :]}"
            if name == "rewards" or (place and names[place - 1] == "rewards"):
                argument = _rename_rewards(argument)
            renamed.append(argument)
        return renamed

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}: --help lists the arguments")


class _HelpAll(Action):
    """Print the help of argparse: all fields."""

    def __call__(self, parser: Any, *args: Any, **kwargs: Any) -> None:
        print(super(CommandParser, parser).format_help())
        parser.exit()


class StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses what YAML would misread silently.

    A repeated key; an alias (a few hundred bytes of them can fill the memory); `12:30` and `012`,
    which YAML 1.1 reads as 750 and 10.
    """

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
    """The fields that classes of this project declare, and the everyday ones of their bases."""
    packages = ("pipeline", "stages", "eval", "__main__")
    ours = [c for c in cls.__mro__ if c.__module__.partition(".")[0] in packages]
    names = {name for c in ours for name in get_annotations(c)}
    own = [field for field in fields(cls) if field.name in names]
    return own + [field for field in fields(cls) if field.name in EVERYDAY and field not in own]


def _entry(name: str, text: str) -> list[str]:
    """Lines with a name and its explanation, in two columns."""
    indent = " " * 30
    wrapped = textwrap.wrap(text, 68) or [""]
    first = f"  {name:<27} {wrapped[0]}" if len(name) <= 27 else f"  {name}\n{indent}{wrapped[0]}"
    return [first, *(indent + line for line in wrapped[1:])]


def _config_file(arguments: list[str]) -> dict[str, Any]:
    """Content of the YAML file of --config; its path is put into the arguments."""
    place = arguments.index("--config") + 1
    require(place < len(arguments), f"--config needs the path of a YAML file; {_available()}")
    path = find_config(arguments[place])
    if not path.is_file():
        raise FileNotFoundError(f"--config {path} does not exist; {_available()}")
    arguments[place] = str(path)
    return _read_arguments(path)


def _available() -> str:
    """Where the configurations of the package are."""
    return f"see the folder {packaged_config('')}/"


def _rename_rewards(text: str) -> str:
    """`rewards` with the present names of its functions; says so."""
    for old, new in RENAMED_REWARDS.items():
        pattern = rf"(?<![\w.:]){old}(?=\s*=)"
        if re.search(pattern, text):
            _note_renamed(old, new, twice=re.search(rf"\b{new}\b", text) is not None)
            text = re.sub(pattern, new, text)
    return text


def _note_renamed(old: str, new: str, *, twice: bool) -> None:
    require(not twice, f"{old} is now {new}, and both are given; leave {old} out")
    print(f"note: {old} is now {new}", file=sys.stderr)


def _read_preset(folder: Path, name: str) -> dict[str, Any]:
    """Content of the preset of that name."""
    path = folder / f"{name}.yaml"
    names = sorted(preset.stem for preset in folder.glob("*.yaml"))
    require(
        name in names, f"preset {name!r} is not one of {', '.join(names) or 'none'} in {folder}/"
    )
    return _read_arguments(path)


def _taken_value(arguments: list[str], flag: str) -> str:
    """The value after a flag; removes both from the list."""
    place = arguments.index(flag)
    require(place + 1 < len(arguments), f"{flag} needs a name; see the folder configs/presets/")
    _, value = arguments.pop(place), arguments.pop(place)
    return value


def _read_arguments(path: Path) -> dict[str, Any]:
    """Content of a YAML file of arguments."""
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
