"""Accuracy against tokens: who is compared with whom, and what a table says."""

import json
from pathlib import Path

import pytest

from eval import pareto
from eval.pareto import Point, read_points, rival, table


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
    rivals = {
        name: rival(point, list(points.values()), "consensus").name
        for name, point in points.items()
        if point.strategy != "consensus"
    }
    # 104 tokens are as good as 100; 300 need the 400; 900 has only a cheaper one left.
    assert rivals == {
        "weighted@4": "consensus@4",
        "mcts@8": "consensus@16",
        "beam@2x3": "consensus@16",
    }


def test_the_table_has_the_gain_on_the_same_questions(folder):
    lines = {line.split("|")[1].strip(): line for line in table_lines(folder)}
    assert "+50.0 [" in lines["weighted@4"] and "consensus@4, 100" in lines["weighted@4"]
    assert "+50.0 [" in lines["mcts@8"] and "-50.0 [" in lines["beam@2x3"]
    assert "p = 0.500" in lines["mcts@8"]  # two questions won, none lost: 2 / 2^2
    assert "| - | - |" in lines["consensus@4"]


def table_lines(folder: Path) -> list[str]:
    return table(read_points(folder / "in"), "consensus").splitlines()[2:]


def test_a_run_by_its_name_is_the_rival_of_all_others(folder):
    points = read_points(folder / "in")
    lines = table(points, "consensus@4").splitlines()[2:]
    assert sum("consensus@4, 100 |" in line for line in lines) == len(points) - 1
    assert "| - | - |" in lines[0]


def test_a_reference_that_is_not_there_is_told_in_one_line(folder, capsys):
    arguments = ["--folder", str(folder / "in"), "--output", str(folder / "a.png")]
    with pytest.raises(SystemExit):
        pareto.main([*arguments, "--reference", "consensus@5"])
    assert "reference='consensus@5' is no run in" in capsys.readouterr().err
    assert not (folder / "a.png").exists()


def test_the_command_draws_and_prints(folder, capsys):
    output = folder / "out" / "search.png"
    pareto.main(["--folder", str(folder / "in"), "--output", str(output)])
    assert output.stat().st_size > 1000
    assert output.with_suffix(".md").read_text().strip() in capsys.readouterr().out


def test_tokens_are_told_by_level(folder):
    point = next(p for p in read_points(folder / "in") if p.name == "mcts@8")
    assert isinstance(point, Point)
    assert point.tokens_by_level == {"0": 301.0, "1": 302.0}


def test_runs_on_other_questions_do_not_mix(folder, capsys):
    run(folder / "in" / "x", "sample", [True] * 4, 10, ask="other ")
    with pytest.raises(SystemExit):
        pareto.main(["--folder", str(folder / "in"), "--output", str(folder / "a.png")])
    assert "asked different questions" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pareto.main(["--folder", str(folder / "none"), "--output", str(folder / "a.png")])
    assert "run python -m eval.run first" in capsys.readouterr().err
