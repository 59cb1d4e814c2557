"""Public signatures are documented, and few of them give up on types."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.sources import tree_of

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "stages", "eval")
MOST_ANY = 40

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def modules() -> dict[str, ast.Module]:
    """The parsed source files of the packages by their path."""
    paths = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
    return {
        path.relative_to(ROOT).as_posix(): tree_of(path.read_text(encoding="utf-8"))
        for path in paths
    }


def count_any(node: ast.AST | None) -> int:
    """How often Any stands in an expression, in quoted annotations too.

    >>> count_any(ast.parse("f(Any, dict[str, 'list[Any]'])"))
    2
    """
    total = 0
    for part in ast.walk(node) if node is not None else ():
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and "Any" in part.value:
            total += count_any(ast.parse(part.value))
        total += isinstance(part, ast.Name) and part.id == "Any"
        total += isinstance(part, ast.Attribute) and part.attr == "Any"
    return total


def any_in_signatures(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, number of Any) of functions (parameters and result), class fields and type aliases.

    >>> code = "Row = dict[str, Any]\\ndef f(x: Any, *y: int, **z: Any) -> list[Any]: a: Any = 1"
    >>> list(any_in_signatures(ast.parse(code + "\\nclass A: b: Any")))
    [('Row', 1), ('f', 3), ('A', 1)]
    """
    for node in ast.walk(tree):
        found = 0
        if isinstance(node, Function):
            own = node.args
            named = [*own.posonlyargs, *own.args, *own.kwonlyargs, own.vararg, own.kwarg]
            hints = [argument.annotation for argument in named if argument is not None]
            found = sum(map(count_any, [*hints, node.returns]))
            name = node.name
        elif isinstance(node, ast.ClassDef):
            fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
            found, name = sum(count_any(field.annotation) for field in fields), node.name
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp):
            found, name = count_any(node.value), ast.unparse(node.targets[0])
        if found:
            yield name, found


def undocumented(body: list[ast.stmt], before: str = "") -> Iterator[str]:
    """Names of public functions, classes and methods without a docstring.

    >>> code = "class A:\\n 'It.'\\n def f(self): 1\\n def _g(self): 1\\nif 1:\\n def h(): 1"
    >>> list(undocumented(ast.parse(code).body))
    ['A.f', 'h']
    """
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from undocumented(node.body, before)
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield before + node.name
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node.body, f"{before}{node.name}.")


def test_few_signatures_have_any():
    found = [
        f"{path}: {name} ({count})"
        for path, tree in modules().items()
        for name, count in any_in_signatures(tree)
    ]
    total = sum(int(line.rpartition("(")[2][:-1]) for line in found)
    assert total <= MOST_ANY, "\n".join([f"{total} Any in signatures:", *found])


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_docstring(package):
    missing = [
        f"{path}: {name}"
        for path, tree in modules().items()
        if path.startswith(f"{package}/")
        for name in undocumented(tree.body)
    ]
    assert missing == []


def test_no_docstring_of_a_module_joins_two_of_its_lines():
    # A single backslash at the end of a line joins two lines of a command that --help shows.
    paths = [*modules(), *(p.relative_to(ROOT).as_posix() for p in ROOT.glob("examples/*.py"))]
    joined = []
    for path in paths:
        tree = tree_of((ROOT / path).read_text(encoding="utf-8"))
        lines = tree.body[0].end_lineno - tree.body[0].lineno if ast.get_docstring(tree) else 0
        if (ast.get_docstring(tree, clean=False) or "").count("\n") != lines:
            joined.append(path)
    assert joined == []
