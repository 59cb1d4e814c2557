"""Variants trained with several seeds: means and differences by hand."""

import json
from pathlib import Path

import pytest

from eval.run_folder import scores
from eval.seeds import OUTCOMES, main, outcome_matrix, seed_table


def rows(right: str, thoughts: str = "") -> list[dict]:
    """`right` as in "110"; `thoughts` as in "+-.": a correct equation, a false one, none."""
    written = {"+": "1+1=2", "-": "1+1=3", ".": "so"}
    return [
        {
            "id": f"p{n}",
            "level": "1",
            "question": f"{n}?",
            "expected": "1",
            "answer": "1",
            "correct": mark == "1",
            "finish_reason": "stop",
            "usage": {"prompt_tokens": 5, "reasoning_tokens": 3, "visible_tokens": 1},
            "reasoning": written[(thoughts or "." * len(right))[n]],
            "seconds": 0.1,
        }
        for n, mark in enumerate(right)
    ]


def write(folder: Path, records: list[dict], strategy: str = "greedy") -> Path:
    folder.mkdir(parents=True)
    about = {"suite": "nano", "strategy": strategy, "options": {"n": 1}}
    (folder / "metrics.json").write_text(json.dumps(about | scores(records)))
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def test_a_row_has_the_mean_over_seeds_and_the_gain_of_each_seed():
    table = seed_table(
        {"sft": [rows("1000"), rows("1100")], "ppo": [rows("1100"), rows("1101")]},
        OUTCOMES["Accuracy"],
    )
    _, sft, ppo = table
    # 25% and 50%, then 50% and 75%: (2 + 3) of 8 less (1 + 2) of 8
    assert sft[1].startswith("37.5 [") and sft[2:] == ["25.0, 50.0", "", ""]
    assert ppo[1].startswith("62.5 [") and ppo[2] == "50.0, 75.0"
    assert ppo[3].startswith("+25.0 [") and ppo[4] == "+25.0, +25.0"


def test_a_problem_counts_once_however_many_seeds_there_are():
    """Ten seeds that agree give the interval of one: problems are resampled, not runs."""
    one = seed_table({"a": [rows("1000")], "b": [rows("1110")]}, OUTCOMES["Accuracy"])
    ten = seed_table({"a": [rows("1000")] * 10, "b": [rows("1110")] * 10}, OUTCOMES["Accuracy"])
    assert [row[1] for row in one] == [row[1] for row in ten]
    assert [row[3] for row in one] == [row[3] for row in ten]


def test_a_mean_over_equal_problems_has_an_interval_with_a_width():
    table = seed_table(
        {"a": [rows("0000"), rows("0000")], "b": [rows("1111"), rows("1111")]}, OUTCOMES["Accuracy"]
    )
    assert [row[1] for row in table[1:]] == ["0.0 [0.0, 49.0]", "100.0 [51.0, 100.0]"]  # Wilson


def test_traces_without_an_equation_are_left_out_of_their_pair():
    all_correct = OUTCOMES["Share of traces with all equations correct"]
    assert outcome_matrix([rows("11", "+.")], all_correct)[0].tolist() == [1.0]
    before, after = [rows("1111", "+-.-")], [rows("1111", "++++")]
    _, first, second = seed_table({"a": before, "b": after}, all_correct)
    assert first[2] == "33.3" and second[2] == "100.0"  # one of three; four of four
    assert second[4] == "+66.7"  # two of the three that both have
    assert seed_table({"a": [rows("11")]}, all_correct) is None


def test_a_variant_without_any_equation_is_left_out_of_the_table():
    all_correct = OUTCOMES["Share of traces with all equations correct"]
    table = seed_table(
        {"direct": [rows("11", "..")], "sft": [rows("11", "+-")], "ppo": [rows("11", "++")]},
        all_correct,
    )
    assert [row[0] for row in table] == ["variant", "sft", "ppo"]
    assert [row[4] for row in table] == ["by seed", "", "+50.0"]
    apart = seed_table({"a": [rows("11", "+.")], "b": [rows("11", ".+")]}, all_correct)
    assert apart[2][3:] == ["", ""]  # no problem has both


def test_a_named_baseline_is_what_every_other_row_is_compared_with():
    table = seed_table(
        {"a": [rows("10")], "b": [rows("11")], "c": [rows("11")]}, OUTCOMES["Accuracy"], "a"
    )
    assert [row[4] for row in table] == ["by seed", "", "+50.0", "+50.0"]


def test_the_command_writes_both_tables(tmp_path, capsys):
    folders = {
        name: [write(tmp_path / f"{name}{s}", rows(right, "+-")) for s in (1, 2)]
        for name, right in (("sft", "10"), ("ppo", "11"))
    }
    joined = ",".join(f"{name}={'+'.join(map(str, seeds))}" for name, seeds in folders.items())
    output = tmp_path / "deep" / "seeds.md"
    main(["--runs", joined, "--output", str(output)])
    text = output.read_text()
    assert "## Accuracy on nano greedy" in text
    assert "## Share of traces with all equations correct on nano greedy" in text
    assert "| ppo | 100.0 [34.2, 100.0] | 100.0, 100.0 | +50.0 [" in text
    assert "seeds.md" in capsys.readouterr().out


def test_strategies_are_compared_over_seeds(tmp_path, capsys):
    plain = [write(tmp_path / f"plain{i}", rows(right)) for i, right in enumerate(("1000", "1100"))]
    voted = [write(tmp_path / f"vote{i}", rows("1110"), "consensus") for i in range(2)]
    runs = ",".join(f"{n}={x}+{y}" for n, (x, y) in {"greedy": plain, "vote": voted}.items())
    main(["--runs", runs, "--compare_by", "suite", "--output", str(tmp_path / "seeds.md")])
    text = (tmp_path / "seeds.md").read_text()
    assert "Accuracy on nano," in text
    # (2 + 1) of 8 problems won
    assert "+37.5 [" in text
    capsys.readouterr()


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("", "--runs is missing"),
        ("a=x+y,b=z", "every variant needs the same seeds in the same order"),
        ("a=x,a=y", "names a variant twice"),
    ],
)
def test_invalid_runs_are_refused_in_one_line(runs, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--runs", runs, "--output", str(tmp_path / "out.md")])
    assert message in capsys.readouterr().err


def test_runs_of_different_problems_are_refused(tmp_path, capsys):
    a, b = write(tmp_path / "a", rows("10")), write(tmp_path / "b", rows("101"))
    with pytest.raises(SystemExit):
        main(["--runs", f"a={a},b={b}", "--output", str(tmp_path / "out.md")])
    error = capsys.readouterr().err
    assert "the runs a, 1. and b, 1. of nano greedy answered different problems" in error
    assert not (tmp_path / "out.md").exists()


def test_seeds_without_a_common_evaluation_are_refused_with_what_there_is(tmp_path, capsys):
    write(tmp_path / "x", rows("10"))
    write(tmp_path / "y", rows("10"), strategy="sample")
    output = tmp_path / "seeds.md"
    with pytest.raises(SystemExit) as stop:
        main(["--runs", f"A={tmp_path / 'x'}+{tmp_path / 'y'}", "--output", str(output)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "nano greedy, nano sample" in error
    assert not output.exists()
    write(tmp_path / "x" / "more", rows("11"), strategy="sample")
    main(["--runs", f"A={tmp_path / 'x'}+{tmp_path / 'y'}", "--output", str(output)])
    assert "nano sample" in output.read_text() and "nano greedy" not in output.read_text()
