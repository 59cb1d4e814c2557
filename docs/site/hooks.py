"""Pages of the site that are not in docs/: copies of README and its like, and the reference.

mkdocs reads this file (`hooks` in mkdocs.yml). The reference is made from the code at every build:
`reference_fields` has the fields of every command, `reference_modules` the functions.
"""

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

from reference_fields import field_pages  # noqa: E402
from reference_modules import module_pages  # noqa: E402

# Page of the site -> file of the repository.
COPIES = {
    "index.md": "README.md",
    "own_data.md": "examples/own_data.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
PAGE_OF = {source: page for page, source in COPIES.items()}
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s#]+)")
_generated: dict[str, str] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the reference and append it to the navigation."""
    fields, modules = field_pages(), module_pages(ROOT)
    _generated.clear()
    _generated.update({page.path: page.text for page in (*fields, *modules)})
    config.nav.append(
        {
            "Reference": [
                {"Configuration fields": [{page.title: page.path} for page in fields]},
                {"Functions": [{page.title: page.path} for page in modules]},
            ]
        }
    )
    config.watch += [str(ROOT / source) for source in COPIES.values()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the copies and the reference."""
    copied = {page: (ROOT / source).read_text(encoding="utf-8") for page, source in COPIES.items()}
    for path, text in (copied | _generated).items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text with links between files of the repository as links between pages."""
    path = page.file.src_uri
    if path in _generated:
        return markdown
    source = COPIES.get(path, f"docs/{path}")
    return LINK.sub(lambda found: found[1] + _target(source, path, found[2]), markdown)


def _target(source: str, page: str, target: str) -> str:
    """A link of the file `source`, relative to the page that shows it."""
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    there = PAGE_OF.get(file, file.removeprefix("docs/"))
    return posixpath.relpath(there, posixpath.dirname(page) or ".")
