"""The chat page in a browser: it asks this server only, shows answer, thought and tree, and fits.

PAGE_BROWSER is the path of a Python that has PyQt6-WebEngine, if this one does not.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.chat.tags import END_THINK
from tests.serving import served

LOOK = Path(__file__).with_name("look_chat.py")
PYTHON = os.environ.get("PAGE_BROWSER", sys.executable)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.executable == PYTHON and importlib.util.find_spec("PyQt6") is None,
        reason="needs PyQt6-WebEngine: install it, or set PAGE_BROWSER to a Python that has it",
    ),
]


def look(url: str, width: int, theme: str, strategy: str) -> dict:
    command = [PYTHON, str(LOOK), url, str(width), theme, strategy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr
    return json.loads(lines[-1])


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize(("width", "theme"), [(400, "light"), (1600, "dark")])
def test_a_question_is_answered_on_the_page(planted, width, theme, shown):
    model = planted(
        {f"12+7=19\nso 19{END_THINK}It is <b>19</b>.<eos>": 1.0}, value=lambda text: 0.5
    )
    with served(model, model.tokenizer, show_reasoning=shown) as running:
        seen = look(f"{running.url}/", width, theme, "mcts")
    assert seen["texts"] == ["What is 12 + 7?\nThink first.", "It is <b>19</b>."]
    assert seen["thoughts"] == (["12+7=19\nso 19"] if shown else [])
    assert any("Search tree" in box for box in seen["boxes"]) is shown
    assert "reasoning +" in seen["notes"][0]
    assert seen["console"] == []
    assert all(url.startswith(running.url) for url in seen["requests"])
    assert seen["width"] == width and seen["needed"] <= width and seen["send"] <= width
    dark = sum(map(int, seen["paper"].removeprefix("rgb(").rstrip(")").split(","))) < 200
    assert dark is (theme == "dark")
