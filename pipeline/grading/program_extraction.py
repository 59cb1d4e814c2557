r"""Extract the program from an answer by the content of its code blocks.

Answers of models have more than their program: usage, output, an earlier attempt. Fences are
unclosed, indented, made of tildes, with a space before the language, or with CRLF. So every block
is read, and the last one of the best kind is taken:

    1. it has what the test needs: it defines the function, or it reads the input
    2. it is Python by its tag, or has a statement: `4`, the output of a program, parses too
    3. it parses

Without a fence it is the whole answer, or the part of it that parses.
"""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

MAX_CHARACTERS = 100_000  # of an answer; a longer one is refused
MAX_TRIES = 8  # closing fences, or lines cut off at the end, that are tried for one block
_NO_PROGRAM = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)
# A test of the data set as `Problem.check` stores it: kind, inputs, outputs, function, prelude.
Test = Mapping[str, Any]
PYTHON = frozenset(("python", "python3", "py", "py3"))

_FENCE = re.compile(r"`{3,}|~{3,}")
_START = re.compile(
    r"(?:async def|def|class|import|from|if|for|while|with|try)\b|@|[A-Za-z_]\w*\s*[=(]"
)
_READS = re.compile(r"\b(?:input\s*\(|stdin\b|fileinput\b|(?:open|read)\s*\(\s*0\b)")


@dataclass(frozen=True)
class Block:
    """One block of an answer: its text and the first word behind its fence, in small letters."""

    text: str
    tag: str = ""


def program_text(visible: str, test: Test | None = None) -> str:
    r"""The program of an answer; "" without one. `test` has the function or the input.

    >>> program_text("So:\n```python\nx = 1\n```\nDone."), program_text("x = 1")
    ('x = 1\n', 'x = 1')
    >>> program_text("```python\ndef f(x): return 2 * x\n```\n```\n4\n```", {"function": "f"})
    'def f(x): return 2 * x\n'
    """
    if len(visible) > MAX_CHARACTERS:
        return ""
    visible = visible.replace("\r\n", "\n").replace("\r", "\n")
    test = test or {}
    prelude = test.get("prelude", "")
    blocks = list(_blocks(visible, prelude))
    if not blocks:
        return visible if _parses(visible, prelude) else _longest_part(visible, test)
    return max(enumerate(blocks), key=lambda pair: (_rank(pair[1], test), pair[0]))[1].text


def defines(program: str, function: str) -> bool:
    """Whether a program defines a function, by whatever means, or a method of its class Solution.

    >>> defines("f = lambda x: x", "f"), defines("def ff(): pass  # def f", "f")
    (True, False)
    """
    tree = _tree(program)
    if tree is None:
        return False
    bodies = [tree.body]
    bodies += [n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Solution"]
    return any(function in _names(node) for body in bodies for node in body)


def _rank(block: Block, test: Test) -> tuple[bool, bool, bool]:
    parses = _parses(block.text, test.get("prelude", ""))
    return (
        parses and _fits_test(block.text, test),
        parses and (block.tag in PYTHON or (not block.tag and _does_something(block.text))),
        parses,
    )


def _fits_test(program: str, test: Test) -> bool:
    if function := test.get("function"):
        return defines(program, function) or not _parses(program)  # a body without its `def` line
    if any(map(str.strip, test.get("inputs", ()))):
        return bool(_READS.search(program))
    return _does_something(program)


def _does_something(program: str) -> bool:
    """Whether a program has a statement that is more than a value, as the output of another is."""
    tree = _tree(program)
    return tree is None or any(
        not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call) for node in tree.body
    )


@dataclass(frozen=True)
class _Fence:
    """An opening fence: its sign, how often, the width of the text before it, what behind."""

    sign: str
    length: int
    indent: int
    tag: str


def _blocks(text: str, prelude: str) -> Iterator[Block]:
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        fence = _opening(lines[at])
        if fence is None:
            at += 1
            continue
        body, at = _body(lines, at + 1, fence, prelude)
        yield Block(body, fence.tag)


def _opening(line: str) -> _Fence | None:
    found = _FENCE.search(line)
    if found is None:
        return None
    before, info = line[: found.start()], line[found.end() :]
    words = info.replace("{", " ").replace(".", " ").replace("}", " ").split()
    # Behind text on the same line only backticks are a fence, and not those of `inline code`.
    prose = before.strip(" \t>")
    if "`" in info or (prose and (found[0][0] == "~" or len(words) > 1)):
        return None
    indent = 0 if prose else len(before)
    return _Fence(found[0][0], len(found[0]), indent, words[0].lower() if words else "")


def _body(lines: list[str], begin: int, fence: _Fence, prelude: str) -> tuple[str, int]:
    """(text of a block, line behind it): up to the first closing fence that leaves a program, since
    a program may have fences in its strings; without one, up to the first; without any, all."""
    found: list[tuple[str, int]] = []
    for at in range(begin, len(lines)):
        last = _before_closing(lines[at], fence)
        if last is None:
            continue
        inside = [*lines[begin:at], last] if last.strip() else lines[begin:at]
        body = _dedented(inside, fence.indent, prelude)
        if _parses(body, prelude):
            return body, at + 1
        found.append((body, at + 1))
        if len(found) == MAX_TRIES:
            break
    return found[0] if found else (_dedented(lines[begin:], fence.indent, prelude), len(lines))


def _before_closing(line: str, fence: _Fence) -> str | None:
    """The text before a closing fence on its line, which may only be code before backticks; None
    for a line that closes no block."""
    line = line.rstrip()
    before = line.rstrip(fence.sign)
    closes = len(line) - len(before) >= fence.length
    return before if closes and (fence.sign == "`" or not before.strip(" \t>")) else None


def _dedented(lines: list[str], indent: int, prelude: str) -> str:
    """Without the indentation of the fence, and of all lines where they parse only so."""
    text = "".join(line[:indent].lstrip(" \t>") + line[indent:] + "\n" for line in lines)
    if _parses(text, prelude):
        return text
    flat = textwrap.dedent(text)
    return flat if _parses(flat) else text


def _longest_part(text: str, test: Test) -> str:
    """From the first line that begins like a program, as much as parses; else all of the text."""
    lines = text.split("\n")
    starts = [i for i, line in enumerate(lines) if _START.match(line)][:MAX_TRIES]
    for start in starts:
        end = len(lines)
        for _ in range(MAX_TRIES):
            part = "\n".join(lines[start:end])
            wrong = _first_wrong_line(part)
            if wrong is None and _fits_test(part, test):
                return part
            if wrong is None or not 1 < wrong <= end - start:
                break
            end = start + wrong - 1
    return text


def _first_wrong_line(program: str) -> int | None:
    """The line, from 1, where the parser stops; None for a program; 0 where it is unknown."""
    try:
        _parse(program)
    except SyntaxError as error:
        return error.lineno or 0
    except _NO_PROGRAM:
        return 0
    return None


def _parses(program: str, prelude: str = "") -> bool:
    """Whether a text is a program, by itself or behind its prelude."""
    whole = _tree(program) is not None or (prelude and _tree(prelude + program) is not None)
    return bool(whole and program.strip())


@lru_cache(16)
def _tree(program: str) -> ast.Module | None:
    try:
        return _parse(program)
    except _NO_PROGRAM:
        return None


def _parse(program: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" in a model's program
        return ast.parse(program)


def _names(node: ast.stmt) -> set[str]:
    """The names that a statement binds, also inside `if` and `try`."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return set().union(*map(_names, inner))
