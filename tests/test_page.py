"""The report page: whole, self-contained, and nothing a model says can break out of its place."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eval.report_page import page
from eval.report_page.page import choose, cost_grid
from eval.report_page.parts import answer, calibration_figure, table, tree
from eval.report_page.svg import Series, plot, ticks
from eval.run_folder import scores
from eval.value_trace import pieces, value_tokens
from pipeline.model import save_policy

HOSTILE = '</span><script>alert(1)</script><img src=x onerror="x">&amp;'
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Checker(HTMLParser):
    """Counts elements, keeps ids, links and the text; every end tag must close what is open."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
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
    value = {"ece": 0.1, "brier": 0.2, "auroc": 0.6, "within_question_auroc": None}
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


def test_the_page_is_whole_and_loads_nothing(tmp_path, tiny_policy, tokenizer, capsys):
    text = write_page(tmp_path, tiny_policy, tokenizer).read_text(encoding="utf-8")
    found = Checker(text)
    assert found.count["section"] == 6 and found.count["table"] == 4
    assert found.count["svg"] == 3 and found.count["script"] == 1
    assert "img" not in found.count and "onerror" not in {name for _, name, _ in found.attributes}
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
    assert found.count["section"] == 2 and "svg" not in found.count


def test_every_token_stands_on_the_colour_of_its_own_value():
    tokens = [{"text": HOSTILE, "value": 0.2, "visible": False}]
    tokens += [{"text": "5", "value": 0.6, "visible": True}]
    record = {"question": "q", "expected": "6", "answer": "5", "correct": False, "tokens": tokens}
    html = answer(record, 0.2, 1.0)
    found = Checker(html)
    # 0.2 is the lowest value, 0.6 half-way to the highest
    assert found.values("style") == ["--v:0.000", "--v:0.500"]
    assert found.values("title") == ["V 0.200", "V 0.600"]
    assert found.values("class").count("visible") == 1
    assert "expected 6" in found.text and "wrong" in found.values("class")


def test_the_pieces_of_a_completion_are_its_text_again(tokenizer):
    text = "naïve → 5 Äpfel\n1+1=2</think>2"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    hidden = ids.index(tokenizer.convert_tokens_to_ids("</think>")) + 1
    found = pieces(tokenizer, ids, [i / 10 for i in range(len(ids))], hidden=hidden)
    assert "".join(piece["text"] for piece in found) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece["text"] for piece in found)
    assert [p["text"] for p in found if p["visible"]] == ["2"]
    assert found[0]["value"] == 0.0 and found[-1]["value"] == (len(ids) - 1) / 10


def test_values_come_from_the_value_head_and_not_from_nowhere(tiny_policy, tokenizer):
    rows = [{"question": "1 + 1?", "expected": "2"}]
    before = value_tokens(tiny_policy, tokenizer, rows, 6)[0]["tokens"]
    tiny_policy.value_head.last.bias.data += 1
    after = value_tokens(tiny_policy, tokenizer, rows, 6)[0]["tokens"]
    assert [t["text"] for t in before] == [t["text"] for t in after]
    for old, new in zip(before, after, strict=True):
        assert new["value"] == pytest.approx(old["value"] + 1, abs=1e-5)


def test_a_tree_has_every_state_once_and_its_most_visited_way_open():
    html = tree(TREE, 0)
    found = Checker(html)
    # states 1 and 3 are leaves, state 2 folds; the prompt is the headline
    assert (found.count["code"], found.count["details"]) == (3, 1)
    assert "open" in {name for tag, name, _ in found.attributes if tag == "details"}
    assert found.text.index("1+1=2") < found.text.index("1+1=3")
    assert HOSTILE in found.text and "→ 2" in found.text
    assert found.values("data-fold") == found.values("id") == ["tree0"]


def test_a_file_that_is_no_tree_is_named(tmp_path):
    (tmp_path / "odd.json").write_text('{"nodes": []}')
    with pytest.raises(ValueError, match=r"odd\.json is no search tree"):
        page.tree_section(str(tmp_path), 1)
    (tmp_path / "odd.json").unlink()
    with pytest.raises(ValueError, match="holds no JSON file"):
        page.tree_section(str(tmp_path), 1)


def test_right_and_wrong_answers_take_turns():
    rows = [{"id": i, "correct": i % 4 != 0} for i in range(12)]
    picked = choose(rows, 6)
    assert [row["correct"] for row in picked] == [True, False] * 3
    assert len(choose(rows[1:4], 6)) == 3  # three right ones and no wrong one


def test_cells_and_costs_are_what_the_metrics_say(tmp_path):
    variants = {"a": page.read_variant(_write_run(tmp_path / "a", "10"))}
    assert cost_grid(variants)[1] == ["a: nano greedy", "2", "10", "20", "4", "34", "1"]
    assert "&lt;b&gt;" in table([["x"], ["<b>"]])


def test_a_point_stands_where_its_numbers_say():
    drawing = plot([Series("s", [0, 1], [0, 2], points=True)], x_label="x", y_label="y")
    places = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawing)
    # the drawing runs from 46 to 408 and, upwards, from 228 to 10
    assert places == [("46.0", "228.0"), ("408.0", "10.0")]


def test_doublings_are_equal_steps_on_a_logarithmic_axis():
    s = Series("s", [10, 20, 40], [0, 1, 2], points=True)
    drawing = plot([s], x_label="x", y_label="y", log_x=True)
    x = [float(v) for v in re.findall(r'<circle cx="([\d.]+)"', drawing)]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.1)


@pytest.mark.parametrize("ends", [(0, 1), (-0.3, 0.2), (17, 900), (0.001, 0.0011)])
def test_ticks_are_few_round_and_inside(ends):
    found = ticks(*ends)
    assert 2 <= len(found) <= 6
    assert all(ends[0] - 1e-9 <= t <= ends[1] + 1e-9 for t in found)


def test_a_flat_curve_and_missing_figures_can_be_drawn():
    assert "<svg" in plot([Series("s", [1, 2], [0.5, 0.5])], x_label="x", y_label="y")
    value = {"ece": 0.0, "auroc": None, "within_question_auroc": None, "bins": []}
    assert "within a question none" in calibration_figure({"a": value})


def test_a_checkpoint_without_a_value_head_is_refused(tmp_path, tiny_policy, tokenizer, capsys):
    save_policy(tiny_policy, tokenizer, tmp_path / "c")
    (tmp_path / "c" / "value_head.safetensors").unlink()
    run = _write_run(tmp_path / "a", "10")
    arguments = ["--output", f"{tmp_path}/p", "--checkpoint", f"{tmp_path}/c"]
    with pytest.raises(SystemExit):
        page.main(["--runs", f"a={run}", *arguments])
    assert "has no value head to colour thoughts with" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
