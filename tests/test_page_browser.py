"""The report page in a browser: no requests, no console messages, readable at every width."""

from pathlib import Path

import pytest

from tests.browser import NEEDS_BROWSER, seen_by

LOOK = Path(__file__).with_name("look.py")

pytestmark = NEEDS_BROWSER


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    """A page with a wide table, a plot, coloured tokens and three search trees."""
    from eval.report_page.curves import plot_learning_curve, svg_data_uri
    from eval.report_page.page import MACROS, PLOT_SIZE, render_page, search_tree

    tokens = [{"text": f"t{i} ", "value": i / 40, "visible": i > 38} for i in range(41)]
    record = {"question": "q " * 80, "expected": "6", "answer": "5", "correct": False}
    nodes = [
        {
            "id": i,
            "parent": i - 1,
            "text": "x" * 90,
            "visits": 9 - i,
            "value": 0.5,
            "total": 0.0,
            "prior": 0.5,
            "children": [i + 1] if i < 5 else [],
            "ended": i == 5,
            "answer": "7",
        }
        for i in range(6)
    ]
    log = [{"step": s, "reward": s / 1000} for s in (0, 1000)]
    image = svg_data_uri(plot_learning_curve(log, PLOT_SIZE))
    table = [["variant", *[f"suite {i}" for i in range(12)]], ["a", *["12.5 [1.0, 2.0]"] * 12]]
    sections = {
        "Accuracy": [MACROS.table(table)],
        "Curves": [MACROS.plots([MACROS.figure("Training", image, values=table)])],
        "Thoughts": [MACROS.answer(record | {"tokens": tokens}, 0.0, 1.0, open=True)],
        "Search": [search_tree({"question": "q", "nodes": nodes}, f"tree{i}") for i in range(3)],
    }
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render_page("What the model learned", sections), encoding="utf-8")
    return path


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_opens_from_disk_and_can_be_read(page_file, width, theme):
    seen = seen_by(LOOK, page_file, width, theme)
    assert (seen["console"], seen["requests"]) == ([], [])
    assert seen["width"] == width and seen["needed"] <= width  # tables scroll in their own box
    # The smallest text of a plot has 9 points: 12 pixels before scaling.
    assert seen["images"] and all(12 * scale >= 9 for scale in seen["images"])
    assert seen["loaded"] is True
    dark_paper = sum(map(int, seen["paper"].removeprefix("rgb(").rstrip(")").split(","))) < 200
    assert dark_paper is (theme == "dark")
    assert seen["other"] != seen["paper"]  # the button switches the theme
    assert seen["trees"] == [{"nodes": 4, "unfolded": True, "folded": True}] * 3
    assert len(set(seen["tokens"])) > 30  # different values have different colours
