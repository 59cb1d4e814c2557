"""The fields of every command: name, type, bound, default and help, from its dataclasses."""

import contextlib
import importlib
import io
import types
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from inspect import get_annotations
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints
from unittest.mock import patch

from site_page import SitePage, cell, code

from pipeline.cli import HELP, CommandParser
from pipeline.config import field_rules
from stages.__main__ import COMMANDS

OURS = ("pipeline", "stages", "eval")
# Commands whose first argument is a name, each with fields of its own.
SUBCOMMANDS = {"eval.bench": ("ppo", "serve", "shared_eval", "signal", "stability", "gpu")}
NAMES = {
    bool: "true or false",
    str: "text",
    int: "whole number",
    float: "number",
    type(None): "null",
}


class ParserMade(BaseException):
    """A command has made its parser; nothing else of it is run."""

    def __init__(self, parser: ArgumentParser):
        super().__init__()
        self.parser = parser


def field_pages() -> list[SitePage]:
    """One page for each command, in the order of `thinkhead`."""
    words = [
        (name, module, [word])
        for name, module in COMMANDS.items()
        for word in SUBCOMMANDS.get(module, ("",))
    ]
    return [_page(name, module, [w for w in words if w]) for name, module, words in words]


def parser_of(module: str, words: Sequence[str] = ()) -> ArgumentParser:
    """The parser that a command reads its arguments with; the command itself is not run."""

    def stop(parser: ArgumentParser, *_: object, **__: object) -> None:
        raise ParserMade(parser)

    script = importlib.import_module(f"{module}.__main__" if _is_package(module) else module)
    main = script.command if module == "stages.data" else script.main
    silent = io.StringIO()
    with (
        patch.object(CommandParser, "parse_args_and_config", stop),
        patch.object(ArgumentParser, "parse_args", stop),
        contextlib.redirect_stdout(silent),
        contextlib.redirect_stderr(silent),
    ):
        try:
            main([*words])
        except ParserMade as made:
            return made.parser
    raise AssertionError(f"{module} made no parser")


def rows_of(cls: type, *, own: bool) -> Iterator[tuple[str, str, str, str, str]]:
    """(name, type, bound, default, help) of the fields that this project declares, or of the rest.

    Fields that the command derives from others are left out.
    """
    declared, rules = _declared(cls), field_rules(cls)
    hints = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        if (field.name in declared) != own or field.name in getattr(cls, "DERIVED", ()):
            continue
        help_ = field.metadata.get("help", "")
        help_ = help_ if own else HELP.get(field.name, help_)
        bound = rules.get(field.name, "")
        yield field.name, _kind(hints[field.name]), bound, _default(field), str(help_ or "")


def _page(name: str, module: str, words: Sequence[str]) -> SitePage:
    command = " ".join(["python -m", module, *words])
    about = (importlib.import_module(module).__doc__ or "").strip().splitlines()[:1]
    lines = [f"# Fields of `{command}`", "", *map(cell, about), ""]
    parser = parser_of(module, words)
    if isinstance(parser, CommandParser):
        lines += ["In a YAML file `field: value`, on the command line `--field value`.", ""]
        lines += [line for cls in parser.dataclass_types for line in _section(cls)]
    else:
        lines += ["```text", parser.format_help().strip(), "```"]
    path = f"reference/fields/{'_'.join([name, *words])}.md"
    return SitePage(path, " ".join([name, *words]), "\n".join(lines))


def _section(cls: type) -> list[str]:
    """Heading, purpose and fields of a dataclass; those of its library bases are folded."""
    lines = [f"## {cls.__name__}", "", cell((cls.__doc__ or "").strip().splitlines()[0]), ""]
    lines += _table(list(rows_of(cls, own=True)))
    rest = list(rows_of(cls, own=False))
    if rest:
        base = next(c for c in cls.__mro__ if c.__module__.partition(".")[0] not in OURS)
        where = f"{base.__module__.partition('.')[0]}.{base.__name__}"
        lines += ["", f'??? note "{len(rest)} more fields, of {where}"', ""]
        lines += ["    " + line for line in _table(rest)]
    return [*lines, ""]


def _table(rows: list[tuple[str, str, str, str, str]]) -> list[str]:
    if not rows:
        return ["No field of its own."]
    lines = ["| field | type | bound | default | |", "| :-- | :-- | :-- | :-- | :-- |"]
    for name, kind, bound, default, help_ in rows:
        shown = code(default) if default not in ("", "required") else default
        lines.append(f"| {code(name)} | {cell(kind)} | {cell(bound)} | {shown} | {cell(help_)} |")
    return lines


def _declared(cls: type) -> set[str]:
    """The names of the fields that classes of this project declare."""
    ours = [c for c in cls.__mro__ if c.__module__.partition(".")[0] in OURS]
    return {name for c in ours for name in get_annotations(c)}


def _kind(hint: object) -> str:
    """The type of a field in words."""
    if get_origin(hint) is Annotated:
        return _kind(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind(option) for option in get_args(hint)))
    if isinstance(hint, type) and get_origin(hint) is None:
        return NAMES.get(hint, hint.__name__)
    return str(hint).replace("typing.", "")


def _default(field: Field) -> str:
    if field.default is not MISSING:
        value = field.default
    elif field.default_factory is not MISSING:
        value = field.default_factory()
    else:
        return "required"
    value = getattr(value, "value", value)  # of an enum
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _is_package(module: str) -> bool:
    return hasattr(importlib.import_module(module), "__path__")
