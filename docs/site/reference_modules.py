"""A page for every package, with the docstrings of its modules; mkdocstrings renders them."""

import ast
from pathlib import Path

from site_page import SitePage

# Folders of programs that other libraries load by their own rules.
LEFT_OUT = ("custom_generate", "assets", "metrics")


def module_pages(root: Path) -> list[SitePage]:
    """Pages of `pipeline` package by package, then `stages` and `eval`."""
    packages = sorted(p.parent for p in (root / "pipeline").glob("*/__init__.py"))
    pages = [_page(root, "pipeline", sorted((root / "pipeline").glob("*.py")))]
    pages += [_page(root, f"pipeline.{p.name}", sorted(p.glob("*.py"))) for p in packages]
    pages.append(_page(root, "stages", sorted((root / "stages").glob("*.py"))))
    pages.append(_page(root, "eval", sorted((root / "eval").glob("*.py"))))
    for package in sorted((root / "eval").glob("*/__init__.py")):
        if package.parent.name not in LEFT_OUT:
            files = sorted(package.parent.glob("*.py"))
            pages.append(_page(root, f"eval.{package.parent.name}", files))
    return [page for page in pages if ":::" in page.text]


def _page(root: Path, package: str, files: list[Path]) -> SitePage:
    lines = [f"# {package}", ""]
    for file in files:
        name = package if file.stem == "__init__" else f"{package}.{file.stem}"
        if file.stem.startswith("_") and file.stem != "__init__":
            continue
        if file.stem == "__init__":
            doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            if not doc:
                continue
            options = ["    options:", "      show_root_heading: false", "      members: false"]
            lines += [f"::: {name}", *options, ""]
        else:
            lines += [f"::: {name}", ""]
    return SitePage(f"reference/{package}.md", package, "\n".join(lines))
