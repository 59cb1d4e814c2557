"""Accuracy against tokens: choice of the reference run, cells of the table, plotted points."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval import pareto
from eval.pareto import Point, pareto_table, plot_pareto, read_points, reference_run


def run(folder: Path, name: str, right: list[bool], tokens: int, *, n: int = 1, ask: str = "q"):
    """A finished evaluation of as many questions as there are outcomes."""
    path = folder / f"{name}{n}"
    path.mkdir(parents=True)
    share = sum(right) / len(right)
    metrics = {
        "strategy": name,
        "accuracy": share,
        "ci95": [share - 0.1, share + 0.1],
        "completion_tokens_per_question": {"mean": tokens},
        "options": {"n": n, "simulations": 8, "width": 2, "branches": 3, "retries": 4},
    }
    (path / "metrics.json").write_text(json.dumps(metrics))
    rows = [
        {
            "question": f"{ask}{i}",
            "correct": ok,
            "level": str(i % 2),
            "usage": {"reasoning_tokens": tokens + i % 2, "visible_tokens": 1},
        }
        for i, ok in enumerate(right)
    ]
    (path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path) -> Path:
    run(tmp_path / "in", "consensus", [True, False, False, False], 100, n=4)
    run(tmp_path / "in", "consensus", [True, True, False, False], 400, n=16)
    run(tmp_path / "in", "weighted", [True, True, True, False], 104, n=4)
    run(tmp_path / "in", "mcts", [True, True, True, True], 300)
    run(tmp_path / "in", "beam", [False, False, False, False], 900)
    return tmp_path


def test_a_run_is_compared_with_the_cheapest_reference_that_spent_as_much(folder):
    points = {point.name: point for point in read_points(folder / "in")}
    assert list(points) == ["consensus@4", "weighted@4", "mcts@8", "consensus@16", "beam@2x3"]
    references = {
        name: reference_run(point, list(points.values()), "consensus").name
        for name, point in points.items()
        if point.strategy != "consensus"
    }
    # 104 tokens are as good as 100; 300 need the 400; 900 has only a cheaper one left.
    assert references == {
        "weighted@4": "consensus@4",
        "mcts@8": "consensus@16",
        "beam@2x3": "consensus@16",
    }


def test_the_table_has_the_gain_on_the_same_questions(folder):
    rows = {row[0]: row[3:] for row in pareto_table(read_points(folder / "in"), "consensus")[1:]}
    assert (
        rows["weighted@4"][0].startswith("+50.0 [") and rows["weighted@4"][1] == "consensus@4, 100"
    )
    assert rows["mcts@8"][0].startswith("+50.0 [") and rows["beam@2x3"][0].startswith("-50.0 [")
    assert rows["mcts@8"][0].endswith("p = 0.500")  # two questions won, none lost: 2 / 2^2
    assert rows["consensus@4"] == ["-", "-"]


def test_the_plot_has_one_line_per_strategy_and_tokens_by_level_beside_it(folder):
    left, right = plot_pareto(read_points(folder / "in")).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in left.get_lines()}
    assert lines["consensus"] == [[100, 25], [400, 50]] and lines["mcts"] == [[300, 100]]
    by_level = [line.get_ydata() for line in right.get_lines()]
    assert list(by_level[1]) == [401, 402]  # consensus: of its run with the most tokens


def test_a_named_run_is_the_reference_of_all_others(folder):
    points = read_points(folder / "in")
    rows = pareto_table(points, "consensus@4")[1:]
    assert [row[4] for row in rows] == ["-"] + ["consensus@4, 100"] * (len(points) - 1)


def test_an_unknown_reference_is_refused_in_one_line(folder, capsys):
    arguments = ["--folder", str(folder / "in"), "--output", str(folder / "a.png")]
    with pytest.raises(SystemExit):
        pareto.main([*arguments, "--reference", "consensus@5"])
    assert "reference='consensus@5' is no run in" in capsys.readouterr().err
    assert not (folder / "a.png").exists()


def test_the_command_writes_plot_and_table(folder, capsys):
    output = folder / "out" / "search.png"
    pareto.main(["--folder", str(folder / "in"), "--output", str(output)])
    assert output.stat().st_size > 1000
    assert output.with_suffix(".md").read_text().strip() in capsys.readouterr().out


def test_a_plot_with_the_name_of_its_table_is_refused(folder, capsys):
    with pytest.raises(SystemExit):
        pareto.main(["--folder", str(folder / "in"), "--output", str(folder / "out.md")])
    assert "out.md" in capsys.readouterr().err and not (folder / "out.md").exists()


def test_an_unknown_kind_of_image_leaves_no_table(folder, capsys):
    with pytest.raises(SystemExit):
        pareto.main(["--folder", str(folder / "in"), "--output", str(folder / "out.xyz")])
    assert "xyz" in capsys.readouterr().err and not (folder / "out.md").exists()


def test_mean_tokens_are_grouped_by_level(folder):
    point = next(p for p in read_points(folder / "in") if p.name == "mcts@8")
    assert isinstance(point, Point)
    assert point.tokens_by_level == {"0": 301.0, "1": 302.0}


def test_runs_of_different_questions_are_refused(folder, capsys):
    run(folder / "in" / "x", "sample", [True] * 4, 10, ask="other ")
    with pytest.raises(SystemExit):
        pareto.main(["--folder", str(folder / "in"), "--output", str(folder / "a.png")])
    assert "have different questions" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pareto.main(["--folder", str(folder / "none"), "--output", str(folder / "a.png")])
    assert "run python -m eval.run first" in capsys.readouterr().err


def test_long_names_of_levels_do_not_overlap(folder):
    points = read_points(folder / "in")
    long = [
        replace(p, tokens_by_level={f"a long level {i}": 9.0 for i in range(9)}) for p in points
    ]
    for given, rotation in ((points, 0), (long, 90)):
        axes = plot_pareto(given).axes[1]
        assert {label.get_rotation() for label in axes.get_xticklabels()} == {rotation}


def test_tokens_are_labelled_as_plain_numbers(folder):
    left, right = plot_pareto(read_points(folder / "in")).axes
    assert left.xaxis.get_major_formatter()(100) == "100"
    assert right.yaxis.get_major_formatter()(1000) == "1000"
