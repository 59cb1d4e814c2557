"""docs/paper.md names only files, tests, commands and headings that exist."""

import ast
import re
from functools import cache
from importlib.util import find_spec

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split(" | ")]
    for line in TEXT.partition("## ")[0].splitlines()
    if line.startswith("| ") and not line.startswith(("| section", "| :--"))
]
CODE = re.findall(r"`([^`]+)`", TEXT)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@cache
def headings(name: str) -> set[str]:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return {slug(line.lstrip("#")) for line in text.splitlines() if line.startswith("#")}


def test_every_section_of_the_paper_has_its_row():
    assert all(len(row) == 7 for row in ROWS), [row for row in ROWS if len(row) != 7]
    named = {section.strip() for row in ROWS for section in row[0].split(",")}
    expected = "1 3.1 3.2 3.3 3.4 3.6 4.1.1 4.1.2 4.2.1 4.2.2 4.2.3 4.3 4.3.3 4.4 4.5"
    expected += " 5.1 5.2 5.3 6.1 6.2.1 6.2.2 6.2.3 6.3 7.3 A1 B1 C1 D E"
    assert named == set(expected.split())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1]}"[:40])
def test_what_a_row_names_exists(row):
    _, _, code, command, test, _, differs = row
    for path in re.findall(r"`([^`]+)`", code):
        assert (ROOT / path).is_file(), path
    for name in re.findall(r"`([^`]+)`", test):
        path, _, function = name.partition("::")
        body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        assert function in {n.name for n in body if isinstance(n, ast.FunctionDef)}, name
    for line in re.findall(r"`([^`]+)`", command):
        assert line.startswith("python -m "), line
        assert find_spec(line.split()[2]) is not None, line
    assert code != "-" or differs != "-", "a part without code needs a reason"
    assert code == "-" or test != "-", "code without a test"


def test_every_link_leads_to_a_heading():
    links = re.findall(r"\]\(([\w.]*)(?:#([\w-]+))?\)", TEXT)
    assert len(links) > 10
    for name, anchor in links:
        assert (ROOT / "docs" / (name or "paper.md")).is_file(), name
        assert not anchor or anchor in headings(name or "paper.md"), f"{name}#{anchor}"


def test_the_functions_named_below_the_table_are_there():
    from pipeline.chat import prompting
    from pipeline.search import completion

    for name in ("prompting_advice", "delimited"):
        assert name in TEXT and hasattr(prompting, name)
    assert "check_room" in TEXT and hasattr(completion, "check_room")
