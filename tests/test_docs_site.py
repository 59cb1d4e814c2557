"""The web site of the docs: its navigation, the pages made from the code, and a strict build."""

import importlib
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from tests.conftest import ROOT

MKDOCS = find_spec("mkdocs") is not None and find_spec("mkdocstrings") is not None
needs_mkdocs = pytest.mark.skipif(not MKDOCS, reason="needs the extra `docs`: make venv")
# Pages of the navigation that docs/site/hooks.py copies from elsewhere.
COPIED = {"index.md", "own_data.md", "contributing.md", "changelog.md"}


@pytest.fixture
def site(monkeypatch):
    """`site("reference_fields")`: a module of docs/site."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "site"))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


def test_the_navigation_has_every_page_once():
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- [^:]+: (\S+\.md)$", config, flags=re.M)
    there = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(there | COPIED)


def test_no_generated_page_is_tracked():
    assert not (ROOT / "docs" / "reference").exists()
    assert "/site/" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_fields_of_a_command_have_type_bound_default_and_help(site):
    from pipeline.ppo.config import PPOConfig

    rows = {row[0]: row for row in site("reference_fields").rows_of(PPOConfig, own=True)}
    assert rows["lam"][1:4] == ("number", "in [0, 1]", "0.95")
    assert rows["ppo_epochs"][1:3] == ("whole number", ">= 1")
    assert rows["kl_controller"][1] == "`fixed` or `adaptive`"
    assert all(help_ for *_, help_ in rows.values())


def test_a_page_has_all_dataclasses_of_its_command_and_runs_nothing(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fields = site("reference_fields")
    assert [c.__name__ for c in fields.parser_of("stages.serve").dataclass_types] == [
        "ServeArguments"
    ]
    page = fields._page("kill_test", "eval.bench.kill_test", [])
    assert "--kills" in page.text and list(tmp_path.iterdir()) == []


def test_text_of_help_is_shown_and_not_read_as_markup(site):
    page = site("site_page")
    assert page.cell("a_b | c <think> `x|y`") == "a\\_b \\| c \\<think\\> `x\\|y`"
    assert page.cell("see [`Trainer`](https://x.y) now") == "see Trainer now"
    assert page.code("a|b") == "`a\\|b`"


@needs_mkdocs
def test_examples_and_tags_of_docstrings_are_shown_as_they_are(site):
    blocks = site("doctest_blocks")
    assert blocks.fenced("Add.\n\n>>> 1 + 1\n2") == "Add.\n\n```pycon\n>>> 1 + 1\n2\n```"
    assert blocks.fenced("between <think> and `</think>`") == "between &lt;think> and `</think>`"


def test_every_public_module_is_on_a_page(site):
    pages = site("reference_modules").module_pages(ROOT)
    shown = set(re.findall(r"^::: (\S+)$", "\n".join(page.text for page in pages), flags=re.M))
    assert {"pipeline.ppo.advantages", "pipeline.records", "stages.ppo", "eval.run"} <= shown
    files = [p for p in (ROOT / "pipeline").glob("*/*.py") if not p.stem.startswith("_")]
    names = {f"pipeline.{p.parent.name}.{p.stem}" for p in files}
    assert names <= shown


@pytest.mark.slow
@needs_mkdocs
def test_the_site_builds_without_a_warning_and_has_its_pages(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    quiet = {"NO_MKDOCS_2_WARNING": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        build, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "WARNING" not in done.stderr
    text = (tmp_path / "reference" / "pipeline.ppo" / "index.html").read_text(encoding="utf-8")
    assert "length_adaptive_lambda" in text and "Raises" in text
    text = (tmp_path / "reference" / "fields" / "ppo" / "index.html").read_text(encoding="utf-8")
    assert "kl_controller" in text and "per_device_train_batch_size" in text
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "https://fonts." not in text and "</table>" in text
