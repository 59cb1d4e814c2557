"""The report on hand-written runs: its cells, and the runs it refuses to compare."""

import json
import runpy
from pathlib import Path

import pytest

from eval import compare, pareto
from eval.compare import accuracy_table, example_answer, gain_table, read_variant
from eval.report_page.curves import plot_learning_curve, plot_value_curves, reward_curves
from eval.run_folder import read_run, runs_below, scores
from eval.tables import markdown_table


def _record(n: int, *, correct: bool, tokens: int = 10, thought: str = "1+1=2") -> dict:
    return {
        "id": f"p{n}",
        "level": "1",
        "question": f"What is {n} + 1?",
        "expected": str(n + 1),
        "answer": str(n + 1) if correct else "0",
        "correct": correct,
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 5, "reasoning_tokens": tokens, "visible_tokens": 2},
        "value": None,
        "reasoning": thought,
        "seconds": 0.5,
    }


def _write(folder: Path, outcomes: str, *, suite: str = "nano", n: int = 1, **record) -> Path:
    """A run of eval.run; outcomes as in "110": the first two problems right, the third wrong."""
    records = [_record(i, correct=o == "1", **record) for i, o in enumerate(outcomes)]
    about = {"suite": suite, "strategy": "consensus" if n > 1 else "greedy", "options": {"n": n}}
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(about | scores(records)))
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


@pytest.fixture
def variants(tmp_path) -> dict:
    """base answers 1 of 8, sft 5 of 8 (it wins five and loses one), ppo 7 of 8."""
    outcomes = {"base": "10000000", "sft": "01111100", "ppo": "11111110"}
    return {name: read_variant(_write(tmp_path / name, o)) for name, o in outcomes.items()}


def test_a_cell_has_accuracy_interval_and_tokens(variants):
    header, base, sft, _ppo = accuracy_table(variants)
    assert header == ["variant", "nano greedy"]
    # Wilson of 1 and 5 of 8; 10 reasoning and 2 visible tokens
    assert base == ["base", "12.5 [2.2, 47.1] · 12"]
    assert sft == ["sft", "62.5 [30.6, 86.3] · 12"]


def test_a_gain_is_over_the_row_above_on_the_same_problems(variants):
    header, sft, ppo = gain_table(variants)
    assert header == ["variant", "nano greedy"]
    # five won, one lost: (5 - 1) / 8 and p = 14 / 64
    assert sft[0] == "base to sft"
    assert sft[1].startswith("+50.0 [") and sft[1].endswith("p = 0.219")
    # two won, none lost: 2 / 8 and p = 2 / 2^2
    assert ppo[0] == "sft to ppo"
    assert ppo[1].startswith("+25.0 [") and ppo[1].endswith("p = 0.500")


def test_a_named_baseline_is_what_every_other_row_is_compared_with(variants):
    _header, *rows = gain_table(variants, "ppo")
    assert [row[0] for row in rows] == ["ppo to base", "ppo to sft"]
    assert rows[1][1].startswith("-25.0 [")


def test_samples_of_a_vote_make_a_column_of_their_own(tmp_path):
    _write(tmp_path / "run" / "one", "10")
    _write(tmp_path / "run" / "vote", "11", n=64)
    other = _write(tmp_path / "other", "10")
    variants = {"ppo": read_variant(tmp_path / "run"), "sft": read_variant(other)}
    header, ppo, sft = accuracy_table(variants)
    assert header == ["variant", "nano greedy", "nano consensus@64"]
    assert "-" not in ppo and sft[2] == "-"
    assert gain_table(variants)[1][2] == "-"


def test_a_shorter_evaluation_is_paired_on_its_own_problems(tmp_path, variants):
    short = read_variant(_write(tmp_path / "short", "1111"))
    for pair in ({"base": variants["base"], "b": short}, {"b": short, "base": variants["base"]}):
        assert gain_table(pair)[1][1].endswith(" · n=4")


def test_problems_worded_differently_are_paired_by_their_ids(tmp_path, variants):
    other = _write(tmp_path / "other", "11011100")
    records = other / "records.jsonl"
    records.write_text(records.read_text().replace('"question": "', '"question": "Think. '))
    pair = {"sft": variants["sft"], "other": read_variant(other)}
    # one won, one lost: p = 1
    assert gain_table(pair, pair_by="id")[1][1].endswith("p = 1.000")
    records.write_text(records.read_text().replace('"expected": "', '"expected": "1', 1))
    pair["other"] = read_variant(other)
    with pytest.raises(ValueError, match="sft and other answered different problems of nano"):
        gain_table(pair, pair_by="id")


@pytest.mark.parametrize("pair_by", ["question", "id"])
def test_a_problem_that_is_there_twice_counts_twice(tmp_path, pair_by):
    runs = {}
    for name, outcomes in {"a": "0000", "b": "1000"}.items():
        folder = _write(tmp_path / name, outcomes)
        row = [_record(0, correct=o == "1") for o in outcomes]
        (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in row))
        runs[name] = read_variant(folder)
    assert gain_table(runs, pair_by=pair_by)[1][1].startswith("+25.0 [")  # one of four


def test_different_problems_are_never_paired(tmp_path, variants):
    other = _write(tmp_path / "other", "1111")
    records = other / "records.jsonl"
    records.write_text(records.read_text().replace('"question": "', '"question": "other ', 1))
    with pytest.raises(ValueError, match="base and other answered different problems of nano"):
        gain_table({"base": variants["base"], "other": read_variant(other)})


def test_strategies_are_compared_on_the_same_suite(tmp_path):
    folders = _write(tmp_path / "greedy", "1000"), _write(tmp_path / "vote", "1110", n=4)
    pair = {f.name: read_variant(f, "suite") for f in folders}
    header, gain = gain_table(pair)
    assert header == ["variant", "nano"]
    assert gain[0] == "greedy to vote"
    assert gain[1].startswith("+50.0 [")  # two of four problems won
    assert gain_table({f.name: read_variant(f) for f in folders})[1][1:] == ["-", "-"]


def test_a_folder_with_one_suite_twice_is_refused(tmp_path):
    _write(tmp_path / "run" / "a", "10")
    _write(tmp_path / "run" / "b", "11")
    with pytest.raises(ValueError, match="holds 'nano greedy' twice"):
        read_variant(tmp_path / "run")


def test_a_vertical_bar_in_a_name_is_escaped_in_markdown():
    assert markdown_table([["a|b", "c"]]).splitlines()[0] == r"| a\|b | c |"


def test_the_example_is_a_right_answer_of_median_length():
    records = [
        _record(0, correct=False, tokens=1, thought="wrong"),
        _record(1, correct=True, tokens=9, thought="long"),
        _record(2, correct=True, tokens=2, thought="short"),
        _record(3, correct=True, tokens=5, thought="middling"),
        _record(4, correct=True, tokens=5, thought=""),
    ]
    text = example_answer(records)
    assert "middling" in text and "What is 3 + 1?" in text
    assert "5 tokens, hidden from the user" in text and "2 tokens, right" in text


def test_without_a_right_answer_the_example_is_a_wrong_one_with_the_expected_answer():
    assert "wrong, expected 1" in example_answer([_record(0, correct=False)])


def test_a_thought_cannot_close_its_code_block():
    text = example_answer([_record(0, correct=True, thought="```\n# heading\n````")])
    assert "`````text\n```\n# heading\n````\n`````" in text


def test_the_command_writes_tables_curve_and_example(tmp_path, capsys):
    for name, outcomes in {"sft": "0101", "ppo": "1101"}.items():
        _write(tmp_path / name, outcomes)
    state = {"log_history": [{"step": s, "reward": s / 10, "eval_accuracy": 0.5} for s in range(9)]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    runs = f"sft={tmp_path / 'sft'},ppo={tmp_path / 'ppo'}"
    output = tmp_path / "deep" / "report.md"
    history = str(tmp_path / "trainer_state.json")
    compare.main(["--runs", runs, "--output", str(output), "--log_history", history])

    text = output.read_text()
    assert "| sft | 50.0 [15.0, 85.0] · 12 |" in text
    assert "| sft to ppo | +25.0 [+0.0, +75.0], p = 1.000 |" in text
    assert "![Learning curve](report.png)" in text and "1+1=2" in text
    assert (tmp_path / "deep" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "50.0 [15.0, 85.0]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "r.md"], "--runs is missing"),
        (["--runs", "sft", "--output", "r.md"], "must read NAME=DIR"),
        (["--runs", "sft=lost", "--output", "r.md"], "lost holds no metrics.json"),
        (["--runs", "a=x,a=y", "--output", "r.md"], "names a variant twice"),
        (["--runs", "a=x", "--output", "r.md", "--baseline", "b"], "baseline='b' is not one of a"),
        (["--runs", "a=run", "--output", "r.md", "--log_history", "lost.json"], "lost.json"),
    ],
)
def test_an_invalid_argument_gives_a_one_line_error_and_writes_nothing(
    tmp_path, monkeypatch, capsys, arguments, message
):
    _write(tmp_path / "run", "10")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        compare.main(arguments)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert not list(tmp_path.glob("r.*"))


def test_a_report_with_the_name_of_its_plot_is_refused(tmp_path, capsys):
    folder = _write(tmp_path / "a", "110")
    log = tmp_path / "trainer_state.json"
    log.write_text(json.dumps({"log_history": [{"step": 1, "reward": 0.5}]}))
    command = ["--runs", f"a={folder}", "--log_history", str(log)]
    with pytest.raises(SystemExit):
        compare.main([*command, "--output", str(tmp_path / "out.png")])
    assert "out.png" in capsys.readouterr().err and not (tmp_path / "out.png").exists()


def test_the_learning_curve_has_rewards_and_accuracies_only():
    history = [
        {"step": 1, "reward": 0.1, "rewards/correctness/mean": 0.0, "rewards/correctness/std": 0.3},
        {"step": 2, "reward": float("nan"), "reward/brevity": 0.4, "loss": 2.0, "reward_std": 1.0},
        {"step": 2, "eval_accuracy": 0.2, "epoch": 1.0},
    ]
    (axes,) = plot_learning_curve(history).axes
    points = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    labelled = {label: xy for label, xy in points.items() if not label.startswith("_")}
    assert labelled == {
        "reward": [[1, 0.1]],
        "reward/correctness": [[1, 0.0]],
        "reward/brevity": [[2, 0.4]],
        "eval accuracy": [[2, 0.2]],
    }


def test_a_training_metric_is_drawn_raw_and_as_a_running_mean():
    history = [{"step": s, "reward": float(s % 2)} for s in range(40)]
    (axes,) = plot_learning_curve(history).axes
    raw, mean = (line.get_ydata() for line in axes.get_lines())
    assert list(raw[:3]) == [0, 1, 0]
    assert list(mean[:3]) == [0, 0.5, 0.5]  # a window of 40 / 20 = 2 steps


def test_a_legend_has_fewer_columns_where_a_name_is_long():
    def columns(name: str) -> int:
        rewards = {f"rewards/{name}{i}/mean": 0.5 for i in range(4)}
        return plot_learning_curve([{"step": 1, **rewards}], (8, 4)).legends[0]._ncols

    assert (columns("short"), columns("a" * 40), columns("a" * 200)) == (4, 2, 1)


def test_the_total_reward_is_left_out_where_it_equals_its_only_part():
    alone = [{"step": s, "reward": s / 4, "reward/correctness": s / 4} for s in (1, 2)]
    assert list(reward_curves(alone)) == ["reward/correctness"]
    alone[1]["reward"] += 0.1
    assert list(reward_curves(alone)) == ["reward", "reward/correctness"]


def test_a_log_without_rewards_is_refused_and_its_keys_are_named():
    with pytest.raises(ValueError, match="it has: loss, step"):
        plot_learning_curve([{"step": 1, "loss": 2.0}])


def test_the_values_of_a_run_are_drawn_where_the_log_has_them():
    history = [
        {"step": 1, "reward": 0.1, "value/auroc_within": 0.5, "value/auroc": 0.9},
        {"step": 2, "value/auroc_within": None, "explained_variance": -3.0},
        {"step": 3, "value/auroc_within": 0.75, "value/auroc_within_steps": float("nan")},
    ]
    figure = plot_value_curves(history, (4, 3))
    assert figure is not None
    points = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].get_lines()}
    labelled = {label: xy for label, xy in points.items() if not label.startswith("_")}
    # A running mean over one step; AUROC over all pairs also ranks questions, and is left out.
    assert labelled == {
        "value/auroc_within": [[1, 0.5], [3, 0.75]],
        "explained_variance": [[2, -3.0]],
    }
    assert plot_value_curves(history[:0], (4, 3)) is None


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_module_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report"])
    with pytest.raises(SystemExit):
        runpy.run_module("eval.compare", run_name="__main__")
    assert capsys.readouterr().err.startswith("error: --")


def test_folders_of_samples_below_a_folder_are_left_out(tmp_path, capsys):
    _write(tmp_path / "a" / "greedy", "110")
    samples = tmp_path / "a" / "samples"
    samples.mkdir()
    metrics = {"suite": "nano", "strategy": "samples", "options": {"n": 4}}
    (samples / "metrics.json").write_text(json.dumps(metrics))
    (samples / "records.jsonl").write_text("{}\n")
    assert list(read_variant(tmp_path / "a")) == ["nano greedy"]
    assert len(runs_below(tmp_path / "a")) == 1
    with pytest.raises(ValueError, match=r"samples was not written by eval\.run"):
        read_run(samples)
    with pytest.raises(ValueError, match=r"greedy was not written by eval\.samples"):
        read_run(tmp_path / "a" / "greedy", "samples")
    with pytest.raises(FileNotFoundError, match=r"eval\.run"):
        runs_below(samples)


@pytest.mark.parametrize(
    "damage", [lambda text: text[: len(text) // 2], lambda _: "", lambda _: "3"]
)
@pytest.mark.parametrize("name", ["metrics.json", "records.jsonl"])
@pytest.mark.parametrize("command", [compare, pareto])
def test_a_damaged_file_is_named(tmp_path, capsys, command, name, damage):
    folder = _write(tmp_path / "a", "110")
    text = (folder / name).read_text()
    if name == "records.jsonl":
        damage = lambda text: text[:-20]  # noqa: E731
    (folder / name).write_text(damage(text))
    runs = ["--runs", f"a={folder}"] if command is compare else ["--folder", str(folder)]
    with pytest.raises(SystemExit) as stop:
        command.main([*runs, "--output", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and str(folder / name) in error and "Traceback" not in error


def test_a_run_without_some_of_its_records_is_refused(tmp_path):
    folder = _write(tmp_path / "a", "110")
    records = folder / "records.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(ValueError, match=r"2 records, and metrics\.json counts 3"):
        read_run(folder)
