"""The sources of the packages as syntax trees, parsed once in a process."""

import ast
from functools import cache


@cache
def tree_of(source: str) -> ast.Module:
    """The tree of a text. Shared: do not change it."""
    return ast.parse(source)
