"""The report page: complete, self-contained, and model output stays text."""

import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from eval.report_page import page
from eval.report_page.curves import plot_calibration, plot_learning_curve, svg_data_uri
from eval.report_page.page import (
    MACROS,
    calibration_figure,
    cost_table,
    position,
    scaling_figure,
    search_tree,
    select_answers,
)
from eval.run_folder import scores
from eval.value_trace import token_values, trace_values
from pipeline.model import save_policy

HOSTILE = '</span><script>alert(1)</script><img src=x onerror="x">&amp;'
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Checker(HTMLParser):
    """Counts elements and keeps attributes and text; every end tag must close the open element."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(str(text))  # Markup would escape what is added to it
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _tag, key, value in self.attributes if key == name]


def _node(n: int, parent: int, children=(), *, visits: int = 1, text: str = "step", **more) -> dict:
    plain = {"prior": 0.5, "value": 0.4, "total": 0.4 * visits, "ended": False, "answer": ""}
    return (
        {"id": n, "parent": parent, "text": text, "visits": visits}
        | plain
        | more
        | {"children": list(children)}
    )


TREE = {
    "question": "1 + 1?",
    "nodes": [
        _node(0, -1, [1, 2], visits=3, text=""),
        _node(1, 0, visits=0, text="1+1=3"),
        _node(2, 0, [3], visits=2, text="1+1=2"),
        _node(3, 2, visits=1, text=HOSTILE, ended=True, answer="2"),
    ],
    "playouts": [],
}


def _write_run(folder: Path, outcomes: str) -> Path:
    records = [
        {
            "id": f"p{n}",
            "level": "1",
            "question": f"What is {n} + 1? {HOSTILE}",
            "expected": str(n + 1),
            "answer": str(n + 1) if o == "1" else "0",
            "correct": o == "1",
            "finish_reason": "stop",
            "usage": {"prompt_tokens": 5, "reasoning_tokens": 10, "visible_tokens": 2},
            "value": None,
            "reasoning": "1+1=2",
            "seconds": 0.5,
        }
        for n, o in enumerate(outcomes)
    ]
    options = {"n": 1, "max_completion_tokens": 8, "think": True}
    about = {"suite": "nano", "strategy": "greedy", "options": options}
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(about | scores(records)))
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def _write_samples(folder: Path) -> None:
    rows = [
        {
            "samples": [
                {"answer": "1", "vote": v, "correct": v == 0, "tokens": 9, "value": 0.5 + 0.1 * v}
                for v in votes
            ]
        }
        for votes in ([0, 0, 1, 0], [1, 1, 0, 1], [0, 1, 0, 0])
    ]
    value = {"ece": 0.1, "brier": 0.2, "auroc": 0.6, "within_question_auroc_pooled": None}
    bins = [{"n": 2, "confidence": 0.45, "right": {"mean": 0.5, "low": 0.1, "high": 0.9}}]
    folder.mkdir()
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "metrics.json").write_text(json.dumps({"value": value | {"bins": bins}}))


def write_page(folder: Path, tiny_policy, tokenizer) -> Path:
    """A page with every section, made by the command."""
    save_policy(tiny_policy, tokenizer, folder / "checkpoint")
    runs = {name: _write_run(folder / name, o) for name, o in {"a": "1000", "b": "1101"}.items()}
    _write_samples(folder / "samples")
    log = [{"step": i, "reward": i / 10, "eval_accuracy": 0.5} for i in range(5)]
    (folder / "state.json").write_text(json.dumps({"log_history": log}))
    (folder / "trees").mkdir()
    (folder / "trees" / "0.json").write_text(json.dumps(TREE))
    cell = {"mean": 0.5, "low": 0.3, "high": 0.7, "tokens": 20, "strategy": "mcts"}
    stored = {"arguments": {"suite": "nano", "votes": 4}, "rows": [{"name": "x", "single": cell}]}
    (folder / "ablation").mkdir()
    (folder / "ablation" / "ablation.json").write_text(json.dumps(stored))
    arguments = {
        "runs": ",".join(f"{name}={path}" for name, path in runs.items()),
        "checkpoint": folder / "checkpoint",
        "samples": f"b={folder / 'samples'}",
        "log_history": folder / "state.json",
        "trees": folder / "trees",
        "ablation": folder / "ablation",
        "output": folder / "page.html",
        "answers": 3,
        "title": "A <title>",
    }
    page.main([str(part) for k, v in arguments.items() for part in (f"--{k}", v)])
    return folder / "page.html"


def test_the_page_has_every_section_and_loads_nothing(tmp_path, tiny_policy, tokenizer, capsys):
    text = write_page(tmp_path, tiny_policy, tokenizer).read_text(encoding="utf-8")
    found = Checker(text)
    assert found.count["section"] == 6 and found.count["table"] == 6
    assert found.count["img"] == 3 and found.count["script"] == 1
    images = [value for tag, name, value in found.attributes if (tag, name) == ("img", "src")]
    assert all(image.startswith("data:image/svg+xml;base64,") for image in images)
    assert "onerror" not in {name for _, name, _ in found.attributes}
    links = [*found.values("href"), *found.values("src"), *found.values("action")]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"@import|url\(|https?://", text)
    assert "default-src 'none'" in text
    ids = found.values("id")
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert HOSTILE in found.text and "A <title>" in found.text


def test_a_section_without_its_files_is_left_out(tmp_path, capsys):
    run = _write_run(tmp_path / "a", "10")
    page.main(["--runs", f"a={run}", "--output", str(tmp_path / "p.html")])
    found = Checker((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert found.count["section"] == 2 and "img" not in found.count
    assert found.values("href") == ["data:,", "#accuracy", "#cost"]


def test_every_token_has_the_colour_of_its_own_value():
    tokens = [{"text": HOSTILE, "value": 0.2, "visible": False}]
    tokens += [{"text": "5", "value": 0.6, "visible": True}]
    record = {"question": "q", "expected": "6", "answer": "5", "correct": False, "tokens": tokens}
    html = MACROS.answer(record, 0.2, 1.0)
    found = Checker(html)
    # 0.2 is the lowest value, 0.6 half-way to the highest
    assert found.values("style") == ["--v:0.000", "--v:0.500"]
    assert found.values("title") == ["V 0.200", "V 0.600"]
    assert found.values("class").count("visible") == 1
    assert "expected 6" in found.text and "wrong" in found.values("class")
    assert HOSTILE + "5" in found.text  # no whitespace between tokens


def test_the_texts_of_the_tokens_join_to_the_completion(tokenizer):
    text = "naïve → 5 Äpfel\n1+1=2</think>2"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    hidden = ids.index(tokenizer.convert_tokens_to_ids("</think>")) + 1
    found = token_values(tokenizer, ids, [i / 10 for i in range(len(ids))], hidden=hidden)
    assert "".join(piece["text"] for piece in found) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece["text"] for piece in found)
    assert [p["text"] for p in found if p["visible"]] == ["2"]
    assert found[0]["value"] == 0.0 and found[-1]["value"] == (len(ids) - 1) / 10


def test_the_values_of_a_trace_are_those_of_the_value_head(tiny_policy, tokenizer):
    rows = [{"question": "1 + 1?", "expected": "2"}]
    before = trace_values(tiny_policy, tokenizer, rows, 6)[0]["tokens"]
    tiny_policy.value_head.last.bias.data += 1
    after = trace_values(tiny_policy, tokenizer, rows, 6)[0]["tokens"]
    assert [t["text"] for t in before] == [t["text"] for t in after]
    for old, new in zip(before, after, strict=True):
        assert new["value"] == pytest.approx(old["value"] + 1, abs=1e-5)


def test_a_tree_has_every_state_once_and_its_most_visited_path_open():
    html = search_tree(TREE, "tree0")
    found = Checker(html)
    # states 1 and 3 are leaves, state 2 folds; the prompt is the headline
    assert (found.count["code"], found.count["details"]) == (3, 1)
    # the mean value (0.4 + 0.4 * visits) / (1 + visits) is 0.4 everywhere
    assert found.values("style") == ["--v:0.500"] * 3
    assert "open" in {name for tag, name, _ in found.attributes if tag == "details"}
    assert found.text.index("1+1=2") < found.text.index("1+1=3")
    assert HOSTILE in found.text and "→ 2" in found.text
    assert found.values("data-fold") == found.values("id") == ["tree0"]


def test_an_error_names_the_file_that_is_no_tree(tmp_path):
    (tmp_path / "odd.json").write_text('{"nodes": []}')
    with pytest.raises(ValueError, match=r"odd\.json is no search tree"):
        page.tree_section(str(tmp_path), 1)
    (tmp_path / "odd.json").unlink()
    with pytest.raises(ValueError, match="holds no JSON file"):
        page.tree_section(str(tmp_path), 1)


def test_no_tree_is_shown_where_none_is_asked_for(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(TREE))
    assert page.tree_section(str(tmp_path), 0) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"question": "?", "nodes": []}', "\xff"])
def test_a_damaged_tree_is_named(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        page.tree_section(str(tmp_path), 1)
    path.write_text(json.dumps(TREE | {"nodes": [{"text": "a"}]}))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        page.tree_section(str(tmp_path), 1)


@pytest.mark.parametrize("text", ["{", "{}"])
def test_a_damaged_ablation_is_named(tmp_path, text):
    (tmp_path / "ablation.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "ablation.json"))):
        page.ablation_section(str(tmp_path))


def test_right_and_wrong_answers_alternate():
    rows = [{"id": i, "correct": i % 4 != 0} for i in range(12)]
    picked = select_answers(rows, 6)
    assert [row["correct"] for row in picked] == [True, False] * 3
    assert len(select_answers(rows[1:4], 6)) == 3  # three right answers and no wrong one


@pytest.mark.parametrize(
    ("outcomes", "count", "shown"),
    [("000", 1, "0"), ("0000", 4, "0000"), ("1000", 4, "1000"), ("1111", 4, "1111")],
)
def test_answers_of_the_other_kind_fill_the_places_of_one_that_is_rare(outcomes, count, shown):
    rows = [{"correct": mark == "1"} for mark in outcomes]
    assert [row["correct"] for row in select_answers(rows, count)] == [m == "1" for m in shown]


def test_cells_and_costs_are_what_the_metrics_say(tmp_path):
    variants = {"a": page.read_variant(_write_run(tmp_path / "a", "10"))}
    assert cost_table(variants)[1] == ["a: nano greedy", "2", "10", "20", "4", "34", "1"]
    assert "&lt;b&gt;" in MACROS.table([["x"], ["<b>"]])


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [(0.6, 0.2, 1.0, "0.500"), (3, 0, 1, "1.000"), (-3, 0, 1, "0.000"), (5, 5, 5, "0.500")],
)
def test_the_position_of_a_value_is_clipped_and_central_in_an_empty_range(
    value, low, high, expected
):
    assert position(value, low, high) == expected


def test_the_calibration_plot_has_the_share_right_at_each_mean_value_with_its_interval():
    right = {"mean": 0.5, "low": 0.1, "high": 0.9}
    bins = [{"n": 2, "confidence": 0.45, "right": right}]
    (axes,) = plot_calibration({"a": {"bins": bins}}, (4, 3)).axes
    diagonal, points = axes.get_lines()[:2]
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert points.get_xydata().tolist() == [[0.45, 0.5]]
    (bar,) = axes.collections
    assert bar.get_segments()[0].flatten() == pytest.approx([0.45, 0.1, 0.45, 0.9])


def test_all_of_a_marker_at_0_and_1_is_drawn():
    bins = [
        {"n": 1, "confidence": c, "right": {"mean": c, "low": c, "high": c}} for c in (0.0, 1.0)
    ]
    axes = plot_calibration({"PPO": {"bins": bins}}, (4, 3)).axes[0]
    assert axes.get_ylim()[0] < 0.0 and axes.get_ylim()[1] > 1.0


def test_figures_without_any_bin_or_area_are_drawn():
    value = {"ece": 0.0, "auroc": None, "within_question_auroc_pooled": None, "bins": []}
    assert "within a question none" in calibration_figure({"a": value})
    older = {"ece": 0.0, "auroc": None, "within_question_auroc": 0.25, "bins": []}
    assert "within a question 0.25" in calibration_figure({"a": older})


def test_a_figure_has_the_plotted_values_as_a_table():
    points = [{"k": k, "tokens": 9.0 * k, "accuracy": 0.25 * k} for k in (1, 2, 3)]
    law = {"intercept": 0.0, "per_doubling": 0.1, "saturates_at": None, "ceiling": 0.8, "r2": None}
    result = {"points": points, "law": law, "per_doubling": {"mean": 0.1, "low": 0.0, "high": 0.2}}
    found = Checker(scaling_figure({"<b>": result}))
    assert found.count["td"] == 3 * 4 and "b" not in found.count
    assert "<b>218.050.0" in found.text  # variant, samples, tokens, accuracy in %
    assert found.values("alt") == ["Plot: Accuracy of a majority vote"]


def test_an_embedded_figure_is_valid_svg_and_the_same_bytes_every_time():
    log = [{"step": i, "reward": i / 10, f"reward/{HOSTILE}": i / 20} for i in range(5)]
    first, second = (svg_data_uri(plot_learning_curve(log)) for _ in range(2))
    assert first == second
    svg = ElementTree.fromstring(b64decode(first.partition(",")[2]))
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert not list(svg.iter("{http://www.w3.org/2000/svg}script"))


def test_a_checkpoint_without_a_value_head_is_refused(tmp_path, tiny_policy, tokenizer, capsys):
    save_policy(tiny_policy, tokenizer, tmp_path / "c")
    (tmp_path / "c" / "value_head.safetensors").unlink()
    run = _write_run(tmp_path / "a", "10")
    arguments = ["--output", f"{tmp_path}/p", "--checkpoint", f"{tmp_path}/c"]
    with pytest.raises(SystemExit):
        page.main(["--runs", f"a={run}", *arguments])
    assert "has no value head to colour thoughts with" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
