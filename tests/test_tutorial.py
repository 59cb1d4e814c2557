"""docs/tutorial.md is followed word for word in a fresh clone, with the sizes that it shows (slow).

`TUTORIAL_CLONE=DIR pytest -m slow tests/test_tutorial.py` keeps the clone in DIR. Left out are the
commands that need the Hub.
"""

import json
import os
import re
import resource
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.doc_clone import clone_tree, run_in
from tests.doc_rules import Rule

PAGE = ROOT / "docs" / "tutorial.md"
MINUTES = 15  # of processor time, which the page promises on two cores


def blocks() -> list[str]:
    """The code blocks for the shell, in order, without lines for the Hub or a GPU."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    kept = ["".join(x for x in b.splitlines(True) if not _is_marked(x)) for b in found]
    return [block for block in kept if block.strip()]


def _is_marked(line: str) -> bool:
    return re.search(r"  # (GPU|Hub|network)", line) is not None


def test_the_tutorial_has_data_reward_and_model_of_the_reader_s_own():
    text = "\n".join(blocks())
    for part in (
        "make tour",
        "--dataset runs/tutorial",
        "--rewards",
        "--model runs/tutorial/llama",
    ):
        assert part in text
    assert len(blocks()) >= 10 and "Qwen/" not in text


def test_every_folder_that_the_tutorial_reads_was_made_before():
    made: set[str] = {"runs/tour/ppo"}
    for block in blocks():
        read = re.findall(r"--(?:checkpoint|model) (runs/\S+)", block)
        written = r"--output_dir (\S+)|save_pretrained\(\"([^\"]+)\"\)"
        made |= {option or call for option, call in re.findall(written, block)}
        assert set(read) <= made, block


@pytest.mark.slow
def test_the_tutorial_is_followed_word_for_word_in_a_fresh_clone(tmp_path):
    folder = Path(os.environ.get("TUTORIAL_CLONE") or tmp_path / "thinkhead")
    if not folder.exists():
        clone_tree(folder)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for block in blocks():
        begin = time.perf_counter()
        status, output = run_in(folder, f"set -e\n{block}", Rule("tutorial"))
        print(f"{time.perf_counter() - begin:.0f} s: {block.splitlines()[0]}")
        assert status == 0, f"{block}\n{output[-4000:]}"
        assert "Traceback" not in output
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{used / 60:.1f} minutes of processor time")
    scores = {
        name: json.loads((folder / f"runs/tutorial/eval_{name}/metrics.json").read_text())
        for name in ("sft", "ppo")
    }
    assert all(score["n"] == 40 for score in scores.values())
    rows = (folder / "runs/tutorial/ppo/log.jsonl").read_text().splitlines()
    assert "reward/one_step" in json.loads(rows[0])
    assert used < MINUTES * 60
