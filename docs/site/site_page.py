"""A page that is made at build time, and text that Markdown shows as it is."""

import re
from typing import NamedTuple


class SitePage(NamedTuple):
    """Path below docs/, title in the navigation, Markdown."""

    path: str
    title: str
    text: str


def cell(text: object) -> str:
    """A text as a cell of a table, without markup of its own but code in backticks."""
    line = " ".join(str(text).split())
    line = re.sub(r"\[`?([^\]`]+)`?\]\([^)]*\)", r"\1", line)  # links into other projects' docs
    line = re.sub(r"``?([^`]+)``?", r"`\1`", line)
    parts = re.split(r"(`[^`]*`)", line)
    kept = [part if part.startswith("`") else _escaped(part) for part in parts]
    return "".join(kept).replace("|", "\\|")


def code(text: object) -> str:
    """A text as code in a cell of a table."""
    return "`" + " ".join(str(text).split()).replace("|", "\\|") + "`"


def _escaped(text: str) -> str:
    return re.sub(r"([*_\[\]<>{}])", r"\\\1", text)
