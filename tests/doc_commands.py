"""The commands of README, docs and examples, with the marks of those that no test can run.

Where a command needs more than a CPU and local files, it ends in `# GPU`, `# Hub`, `# network` (an
installation) or several of them with commas in a code block, and is followed by `(Hub)` in a
sentence or a table. Everything else is run by tests/test_docs_as_written.py.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.conftest import ROOT

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md"))),
    *(f"examples/{p.name}" for p in sorted((ROOT / "examples").glob("*.md"))),
]
MARK = r"(?:GPU|Hub|network)(?:, (?:GPU|Hub|network))*"
PROGRAMS = re.compile(
    r"(?:python -m |thinkhead |make |accelerate launch |python - |pip install |pre-commit )"
)
# In sentences and tables these are names of programs and advice, not steps to follow.
ONLY_IN_BLOCKS = ("python - ", "pip install ", "pre-commit ")


@dataclass(frozen=True)
class DocCommand:
    """One command as a reader would copy it."""

    document: str
    text: str
    marks: tuple[str, ...]  # GPU, Hub, network: why no test runs it
    around: str  # the text beside it
    in_block: bool

    @property
    def is_name(self) -> bool:
        """Whether a sentence only names the program, without arguments."""
        if self.in_block or self.text.startswith(("make ", "python -m tests.")):
            return False
        return len(self.text.split()) <= 3


def commands(document: str, text: str) -> Iterator[DocCommand]:
    """Every command of a document, in order: blocks first, then those inside sentences."""
    text = re.sub(r"\\\n *", "", text)
    lines = text.splitlines()
    fenced = ""
    for number, line in enumerate(lines):
        around = "\n".join(lines[max(0, number - 12) : number + 3])
        if line.startswith("```"):
            fenced = "" if fenced else line.removeprefix("```") or "text"
        indented = not fenced and line.startswith("    ")
        if not (indented or fenced in ("bash", "sh")) or not PROGRAMS.match(line.strip()):
            continue
        indent = "    " if indented else ""
        command, _, comment = line.strip().partition(" #")
        found = re.match(rf"\s*({MARK})\b", comment)
        marks = tuple(found[1].split(", ")) if found else ()
        command = _with_input(command.strip(), lines[number:], indent)
        yield DocCommand(document, command, marks, around, True)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    prose = "\n".join(line for line in prose.splitlines() if not line.startswith("    "))
    for found in re.finditer(rf"`([^`\n]+)`(?:\s\(({MARK})\))?", prose):
        command = found[1]
        if PROGRAMS.match(command) and not command.startswith(ONLY_IN_BLOCKS):
            marks = tuple(found[2].split(", ")) if found[2] else ()
            yield DocCommand(document, command, marks, text, False)


def _with_input(command: str, lines: list[str], indent: str) -> str:
    """The command with the lines of its here-document, where it has one."""
    found = re.search(r"<<'(\w+)'", command)
    if not found:
        return command
    body = [line.removeprefix(indent) for line in lines[1:]]
    return "\n".join([command, *body[: body.index(found[1]) + 1]])


def all_commands() -> list[DocCommand]:
    """Every command once per document."""
    found = {}
    for document in DOCUMENTS:
        for command in commands(document, (ROOT / document).read_text(encoding="utf-8")):
            found.setdefault((document, command.text, command.in_block), command)
    return list(found.values())


ALL = all_commands()
