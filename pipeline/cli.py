"""Command line and YAML into dataclasses; a mistake of the user is one line.

`python -m stages.NAME --config nano/ppo.yaml --seed 1`: the file is looked for in the current
folder, then among the configurations of the package.
"""

import re
import shutil
import sys
import textwrap
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from inspect import get_annotations
from pathlib import Path
from typing import NoReturn, TypeVar, get_args, get_type_hints

from trl import TrlParser

from pipeline.config import field_rules, require, require_effect
from pipeline.config_files import find_config, read_arguments, read_preset, see_configs

T = TypeVar("T")

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
    "save_strategy",
    "save_steps",
    "logging_steps",
    "resume_from_checkpoint",
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "hub_private_repo",
    "hub_revision",
)
# Help of fields of transformers where its own leaves something out.
HELP = {
    "output_dir": "folder of the trained policy, its checkpoints and logs",
    "hub_strategy": "end: push the final policy, every_save: every save; checkpoint and "
    "all_checkpoints are refused",
    "resume_from_checkpoint": "a folder checkpoint-N, or last for the newest intact one in "
    "output_dir; an unfinished run in output_dir is resumed without it",
}


class CommandParser(TrlParser):
    """TrlParser that raises ValueErrors of one line, where argparse prints its whole usage.

    `presets` is a folder of YAML files: `--preset NAME`, or `preset: NAME` in the --config, reads
    one of them. A value of the --config or of the command line replaces that of the preset.
    `without_effect` are fields that the command ignores, `refused` those of which it accepts only
    the default; `--help` leaves both out. A field given on the command line that has no effect, in
    this command or with the other values, is refused, unless it depends on one of `set_later`,
    which the user can change while the command runs.
    """

    def __init__(
        self,
        *args: object,
        presets: str | Path | None = None,
        without_effect: Collection[str] = (),
        refused: Collection[str] = (),
        set_later: Collection[str] = (),
        **options: object,
    ):
        # An abbreviation could become ambiguous with the next field, and pass the checks of flags.
        super().__init__(*args, allow_abbrev=False, **options)
        self._presets = presets
        self._without_effect, self._refused = without_effect, refused
        self._set_later = set_later
        self._accept_null()
        self.add_argument(
            "--help_all", action=_HelpAll, nargs=0, dest=SUPPRESS, default=SUPPRESS, help=SUPPRESS
        )

    def format_help(self) -> str:
        """What the command does, and its own fields with their bounds and defaults; the hundreds of
        fields of transformers and TRL are only counted."""
        about = getattr(sys.modules["__main__"], "__doc__", None) or ""
        shown = [(cls, self._shown_fields(cls)) for cls in self.dataclass_types]
        choices = {action.dest: action.choices for action in self._actions}
        hidden = sum(
            len({f.name for f in fields(cls)} - {f.name for f in own} - _declared_here(cls))
            for cls, own in shown
        )
        lines = [*_fitted(about), ""]
        lines += _entry("--config FILE.yaml", "a file of `field: value` lines, read first")
        lines += _entry("--FIELD VALUE", "any field below; replaces that of the file")
        for cls, own in shown:
            rules = field_rules(cls)
            lines += ["", *_fitted((cls.__doc__ or cls.__name__).strip().splitlines()[0])]
            declared = _declared_here(cls)
            for field in own:
                own_help = field.metadata.get("help", "")
                help_ = own_help if field.name in declared else HELP.get(field.name, own_help)
                text = re.split(r"(?<!\.)\. ", str(help_))[0].rstrip(".")
                told = field.default is not False and field.default not in (MISSING, None, "")
                default = [str(field.default)] if told else []
                # A default makes a required field one that may be left out.
                needed = default and rules.get(field.name) == "required"
                range_ = [rules[field.name]] if field.name in rules and not needed else []
                named = [str(choice) for choice in choices.get(field.name) or ()]
                if named and not all(choice in text for choice in named):
                    range_.append(f"one of {', '.join(named)}")
                facts = f" [{'; '.join(default + range_)}]" if default or range_ else ""
                lines += _entry(f"--{field.name}", " ".join(text.split()) + facts)
        if hidden:
            lines += ["", f"{hidden} more fields come from transformers and TRL: --help_all"]
        return "\n".join(lines) + "\n"

    def _shown_fields(self, cls: type) -> list[Field]:
        """The fields of a class for `--help`: required ones first, then the output folder."""
        rules = field_rules(cls)
        hidden = {*self._without_effect, *self._refused, *getattr(cls, "DERIVED", ())}
        order = {True: 0, False: 2}
        return sorted(
            (field for field in _own_fields(cls) if field.name not in hidden),
            key=lambda f: 1 if f.name == "output_dir" else order[rules.get(f.name) == "required"],
        )

    def _accept_null(self) -> None:
        """Let `--field null` and `--field ""` mean no value where a field may have none."""
        for cls in self.dataclass_types:
            for name, hint in get_type_hints(cls).items():
                if type(None) not in get_args(hint):
                    continue
                for action in self._actions:
                    if action.dest == name and callable(action.type):
                        action.type = _or_null(action.type)

    def parse_args_and_config(self, args: Sequence[str] | None = None, **options: object) -> tuple:
        """One instance of every dataclass, of the preset, the --config and the command line."""
        given = _with_values_apart(sys.argv[1:] if args is None else args)
        arguments = self._rename_flags(given)
        config = _config_file(arguments) if "--config" in arguments else {}
        preset = config.get("preset") if self._presets else None
        if self._presets and "--preset" in arguments:
            preset = _taken_value(arguments, "--preset")
        if self._presets and preset is not None:
            self._set_defaults(read_preset(Path(self._presets), str(preset)), f"preset {preset}")
        flags = [a.partition("=")[0] for a in arguments if a.startswith("--")]
        for flag in flags:
            require(
                flag[2:].replace("-", "_") not in self._without_effect,
                f"{flag} does nothing in this command; leave it out",
            )
        found = super().parse_args_and_config(arguments, **options)
        for flag in flags:
            require_effect(found[: len(self.dataclass_types)], flag, set_later=self._set_later)
        return found

    def parse_known_args(self, *args: object, **options: object) -> tuple:
        """argparse's; an unknown argument is refused, with the nearest name."""
        found, unknown = super().parse_known_args(*args, **options)
        if unknown:
            name = unknown[0].partition("=")[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            close = get_close_matches(name, [flag for flag in flags if "-" not in flag[2:]], n=1)
            hint = f"did you mean {close[0]}?" if close else "--help lists them all"
            raise ValueError(f"{name} is no argument here; {hint}")
        return found, unknown

    def set_defaults_with_config(self, **config: object) -> list[str]:
        """Take the values of a --config as defaults; returns what no field takes."""
        if self._presets:
            config.pop("preset", None)  # already read by parse_args_and_config
        return self._set_defaults(config, "--config")

    def _set_defaults(self, config: dict[str, object], where: str) -> list[str]:
        new_names = self._renamed(config)
        config = {new_names.get(key, key): value for key, value in config.items()}
        if isinstance(rewards := config.get("rewards"), str):
            config["rewards"] = _rename_rewards(rewards)
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
        """Raise ValueError, where argparse prints its usage and exits."""
        raise ValueError(f"{message}: --help lists the arguments")


class _HelpAll(Action):
    """Print the help of argparse: all fields."""

    def __call__(self, parser: ArgumentParser, *args: object, **kwargs: object) -> None:
        assert isinstance(parser, CommandParser)
        print(super(CommandParser, parser).format_help())
        parser.exit()


def _or_null(convert: Callable[[str], T]) -> Callable[[str], T | None]:
    """A type of argparse that also reads "null" and "" as None."""

    def read(text: str) -> T | None:
        return None if text in ("null", "") else convert(text)

    read.__name__ = getattr(convert, "__name__", "value")
    return read


def _declared_here(cls: type) -> set[str]:
    """The names of the fields that classes of this project declare."""
    packages = ("pipeline", "stages", "eval", "__main__")
    ours = [c for c in cls.__mro__ if c.__module__.partition(".")[0] in packages]
    return {name for c in ours for name in get_annotations(c)}


def _width() -> int:
    """Columns of the help: those of the terminal, at least 60 and at most 100."""
    return min(max(shutil.get_terminal_size((100, 24)).columns, 60), 100)


def _fitted(text: str) -> list[str]:
    """The lines of a text; a paragraph that is too wide is wrapped, unless it is indented."""
    width, lines = _width(), []
    for paragraph in text.strip().split("\n\n"):
        parts = paragraph.splitlines()
        if (
            not any(part.startswith(" ") for part in parts)
            and max(map(len, parts), default=0) > width
        ):
            parts = textwrap.wrap(" ".join(paragraph.split()), width, break_on_hyphens=False)
        lines += [*parts, ""]
    return lines[:-1]


def _own_fields(cls: type) -> list[Field]:
    """The fields that classes of this project declare, and the everyday ones of their bases."""
    names = _declared_here(cls)
    own = [field for field in fields(cls) if field.name in names]
    return own + [field for field in fields(cls) if field.name in EVERYDAY and field not in own]


def _entry(name: str, text: str) -> list[str]:
    """Lines with a name and its explanation, in two columns."""
    indent = " " * 30
    wrapped = textwrap.wrap(text, _width() - 32) or [""]
    first = f"  {name:<27} {wrapped[0]}" if len(name) <= 27 else f"  {name}\n{indent}{wrapped[0]}"
    return [first, *(indent + line for line in wrapped[1:])]


def _with_values_apart(arguments: Sequence[str]) -> list[str]:
    """`--config=FILE` and `--preset=NAME` as two arguments, as they are without the sign.

    >>> _with_values_apart(["--config=a=b.yaml", "--seed=1"])
    ['--config', 'a=b.yaml', '--seed=1']
    """
    apart = ("--config=", "--preset=")
    return [part for a in arguments for part in (a.split("=", 1) if a.startswith(apart) else [a])]


def _config_file(arguments: list[str]) -> dict[str, object]:
    """Content of the YAML file of --config; its path is put into the arguments."""
    place = arguments.index("--config") + 1
    require(place < len(arguments), f"--config needs the path of a YAML file; {see_configs()}")
    path = find_config(arguments[place])
    require(not path.is_dir(), f"--config {path} is a folder; give a YAML file in it")
    if not path.is_file():
        raise FileNotFoundError(f"--config {path} does not exist; {see_configs()}")
    arguments[place] = str(path)
    return read_arguments(path)


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


def _taken_value(arguments: list[str], flag: str) -> str:
    """The value after a flag; removes both from the list."""
    place = arguments.index(flag)
    require(place + 1 < len(arguments), f"{flag} needs a name; see the folder configs/presets/")
    _, value = arguments.pop(place), arguments.pop(place)
    return value
