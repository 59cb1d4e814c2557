"""Docstrings for Markdown: `>>>` examples and indented lines as code, `<think>` as text."""

import re
from typing import Any

import griffe

COMMAND = re.compile(r"(?:python -m|python |thinkhead |accelerate |make )\S")
TAG = re.compile(r"<(?=[/a-zA-Z])")
BRACKET = re.compile(r"\[(?![^\]]*\]\()")


class DoctestBlocks(griffe.Extension):
    """Put fences around the examples of every docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of a module, class or function after it is read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The text with fences around paragraphs of examples (`>>>`) and of commands.

    >>> fenced("Add.\\n\\n>>> 1 + 1\\n2").splitlines()[2:]
    ['```pycon', '>>> 1 + 1', '2', '```']
    """
    return "\n\n".join(map(_shown, re.split(r"\n\s*\n", text)))


def _shown(paragraph: str) -> str:
    if paragraph.startswith("    "):
        return paragraph
    if paragraph.lstrip().startswith(">>>"):
        return f"```pycon\n{paragraph.strip()}\n```"
    if COMMAND.match(paragraph):
        return f"```bash\n{paragraph.strip()}\n```"
    return escaped(paragraph)


def escaped(paragraph: str) -> str:
    """The paragraph with tags and brackets outside backticks escaped, links excepted.

    >>> escaped("<think> in [0, 1], `[a]`")
    '&lt;think> in \\\\[0, 1], `[a]`'
    """
    parts = re.split(r"(`[^`]*`)", paragraph)
    return "".join(
        part if part.startswith("`") else TAG.sub("&lt;", BRACKET.sub(r"\\[", part))
        for part in parts
    )
