"""The chat page in a browser: it asks this server only, shows answer, thought and tree; it fits."""

from pathlib import Path

import pytest

from pipeline.chat.tags import END_THINK
from tests.browser import NEEDS_BROWSER, seen_by
from tests.serving import served

LOOK = Path(__file__).with_name("look_chat.py")

pytestmark = NEEDS_BROWSER


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize(("width", "theme"), [(400, "light"), (1600, "dark")])
def test_a_question_is_answered_on_the_page(planted, width, theme, shown):
    model = planted(
        {f"12+7=19\nso 19{END_THINK}It is <b>19</b>.<eos>": 1.0}, value=lambda text: 0.5
    )
    with served(model, model.tokenizer, show_reasoning=shown) as running:
        seen = seen_by(LOOK, f"{running.url}/", width, theme, "mcts")
    assert seen["texts"] == ["What is 12 + 7?\nThink first.", "It is <b>19</b>."]
    assert seen["thoughts"] == (["12+7=19\nso 19"] if shown else [])
    assert any("Search tree" in box for box in seen["boxes"]) is shown
    assert "reasoning +" in seen["notes"][0]
    assert seen["console"] == []
    assert all(url.startswith(running.url) for url in seen["requests"])
    assert seen["width"] == width and seen["needed"] <= width and seen["send"] <= width
    dark = sum(map(int, seen["paper"].removeprefix("rgb(").rstrip(")").split(","))) < 200
    assert dark is (theme == "dark")
