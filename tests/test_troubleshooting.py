"""Every message that docs/troubleshooting.md quotes is one that the source can print."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
MESSAGES = re.findall(r"^```text\n(.*)\n```$", PAGE.read_text(encoding="utf-8"), flags=re.M)
LITERAL = 25  # characters of a pattern besides its values: shorter ones match too much


def patterns(source: str) -> Iterator[str]:
    """A regular expression for every text and f-string of a source: values are `.*`, the names of
    texts at the top of the module these texts."""
    tree = ast.parse(source)
    names = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.escape(node.value)
        elif isinstance(node, ast.JoinedStr):
            yield "".join(_part(part, names) for part in node.values)


def _part(part: ast.expr, names: dict[str, str]) -> str:
    if isinstance(part, ast.Constant):
        return re.escape(str(part.value))
    value = part.value if isinstance(part, ast.FormattedValue) else part
    name = value.id if isinstance(value, ast.Name) else ""
    return re.escape(names[name]) if name in names else ".*"


@cache
def known() -> list[re.Pattern[str]]:
    """The patterns of the packages that have enough text of their own."""
    files = [
        path for name in ("pipeline", "stages", "eval") for path in (ROOT / name).rglob("*.py")
    ]
    found = {p for path in files for p in patterns(path.read_text(encoding="utf-8"))}
    return [
        re.compile(p, flags=re.S)
        for p in found
        if len(re.sub(r"\\(.)", r"\1", p.replace(".*", ""))) >= LITERAL
    ]


def is_printed(message: str) -> bool:
    """Whether a text of the source, with values in its gaps, is the message.

    `check_divides` of pipeline.config appends the division to a rule, and an alarm has its name.
    """
    text = re.sub(r"^(error: |alarm: [\w -]+: )", "", message)
    rule = re.sub(r"; \d+ / \d+ = [\d.]+$", "", text)
    return any(pattern.fullmatch(said) for said in (message, text, rule) for pattern in known())


def test_there_are_many_messages():
    assert len(MESSAGES) >= 30
    assert len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_one_of_the_source(message):
    assert is_printed(message)


def test_a_message_with_another_wording_is_found_out():
    assert is_printed("error: model=nano is untrained, and PPO starts from an SFT checkpoint; "
                      "give --model runs/nano/sft")  # fmt: skip
    assert not is_printed("error: model=nano is untrained; PPO starts from an SFT checkpoint")
    assert not is_printed("error: the server needs uvicorn")
