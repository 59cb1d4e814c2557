"""The evaluation command on a tiny model: output, resumption, errors."""

import gzip
import json
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eval import run, suites
from eval.run import EvalArguments, evaluate_checkpoint
from eval.run_folder import scores, summary
from pipeline.data import hub_rows
from pipeline.model import save_policy
from pipeline.records import Answer, Problem, Usage
from pipeline.search import STRATEGIES, SearchOptions

PROBLEMS = [
    Problem(question=f"What is {n} + 1?", answer=str(n + 1), level=str(n % 2), id=f"p{n}")
    for n in range(7)
]
PAIRS = SearchOptions(batch_size=2, max_completion_tokens=5, temperature=1.0)  # chunks of two


@pytest.fixture
def oracle(monkeypatch) -> Callable:
    """`answered = oracle(die_at="4")`: a strategy that is right on even numbers, and may crash."""

    def install(die_at: str = "") -> list[str]:
        answered = []

        def answer(model, tokenizer, questions, options) -> list[Answer]:
            answered.extend(questions)
            if any(f" {die_at} " in question for question in questions):
                raise KeyboardInterrupt
            return [_add_one_to_even(question) for question in questions]

        monkeypatch.setitem(STRATEGIES, "oracle", answer)
        return answered

    return install


def _add_one_to_even(question: str) -> Answer:
    number = int(question.split()[2])
    return Answer(
        text=str(number + 1) if number % 2 == 0 else "",
        thought=f"{number}+1",
        usage=Usage(prompt_tokens=10, reasoning_tokens=number, visible_tokens=2),
        finish_reason="stop" if number % 2 == 0 else "length",
    )


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_policy, tokenizer) -> Path:
    """A folder with a checkpoint, and a GSM8K of five problems as its data."""
    save_policy(tiny_policy, tokenizer, tmp_path / "checkpoint")
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    rows = [{"question": f"What is {n} + 1?", "answer": f"so\n#### {n + 1}"} for n in range(5)]
    with gzip.open(tmp_path / "data" / "gsm8k" / "test.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    few = replace(suites.SUITES["gsm8k"], size=5, fingerprint="")
    monkeypatch.setitem(suites.SUITES, "gsm8k", few)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _command(**changes: str) -> list[str]:
    arguments = {
        "checkpoint": "checkpoint",
        "suite": "gsm8k",
        "data_root": "data",
        "output_dir": "out",
        "max_completion_tokens": "6",
    }
    return [part for k, v in (arguments | changes).items() for part in (f"--{k}", v)]


def _records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def _without_time(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_the_command_writes_metrics_and_one_record_per_problem(workplace, capsys):
    run.main(_command(strategy="consensus", n="3", batch_size="8"))
    metrics = json.loads((workplace / "out" / "metrics.json").read_text())
    assert (metrics["suite"], metrics["strategy"]) == ("gsm8k", "consensus")
    assert (metrics["checkpoint"], metrics["n"], metrics["rows_read"]) == ("checkpoint", 5, 5)
    assert metrics["ci95"][0] <= metrics["accuracy"] <= metrics["ci95"][1]
    tokens = metrics["tokens"]
    assert tokens["total"] == tokens["prompt"] + tokens["reasoning"] + tokens["visible"]
    assert metrics["options"]["n"] == 3

    records = _records(workplace / "out")
    assert [r["question"] for r in records] == [f"What is {n} + 1?" for n in range(5)]
    assert [r["expected"] for r in records] == ["1", "2", "3", "4", "5"]
    assert {"answer", "correct", "usage", "reasoning", "level", "id"} <= records[0].keys()
    assert "gsm8k consensus: accuracy" in capsys.readouterr().out


def test_every_one_of_several_suites_has_a_folder(workplace, monkeypatch):
    monkeypatch.setitem(
        suites.SUITES, "again", replace(suites.SUITES["gsm8k"], name="again", size=5)
    )
    run.main(_command(suite="gsm8k, again", limit="2"))
    assert len(_records(workplace / "out" / "gsm8k")) == 2
    assert len(_records(workplace / "out" / "again")) == 2


def test_the_command_line_overrides_a_yaml_file(workplace):
    (workplace / "eval.yaml").write_text(
        "suite: gsm8k\ncheckpoint: checkpoint\ndata_root: data\nmax_completion_tokens: 4\n"
        "output_dir: elsewhere\nthink: false\n"
    )
    run.main(["--config", "eval.yaml", "--output_dir", "out"])
    options = json.loads((workplace / "out" / "metrics.json").read_text())["options"]
    assert (options["max_completion_tokens"], options["think"]) == (4, False)


def test_metrics_match_values_calculated_by_hand(tmp_path, oracle, tiny_policy, tokenizer):
    oracle()
    metrics = evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "oracle", PAIRS, tmp_path)
    # Even numbers 0, 2, 4, 6 are right: 4 of 7. Reasoning tokens are 0 + 1 + ... + 6 = 21.
    assert metrics["accuracy"] == metrics["finished"] == 4 / 7
    assert metrics["tokens"] == {"prompt": 70, "reasoning": 21, "visible": 14, "total": 105}
    assert metrics["completion_tokens_per_question"]["mean"] == 5.0
    assert {k: v["accuracy"] for k, v in metrics["by_level"].items()} == {"0": 1.0, "1": 0.0}
    assert {k: v["n"] for k, v in metrics["by_level"].items()} == {"0": 4, "1": 3}
    line = summary(metrics | {"suite": "sums"})
    assert line.startswith(
        "sums oracle: accuracy 57.1% [25.0%, 84.2%], n=7, 5.0 tokens per question"
    )


def test_a_message_names_the_likely_reasons_when_no_answer_is_finished(
    tmp_path, oracle, tiny_policy, tokenizer, capsys
):
    oracle()
    evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "oracle", PAIRS, tmp_path / "some")
    assert "--think false" not in capsys.readouterr().out
    odd = [p for p in PROBLEMS if int(p.question.split()[2]) % 2]
    evaluate_checkpoint(tiny_policy, tokenizer, odd, "oracle", PAIRS, tmp_path / "none")
    said = capsys.readouterr().out
    assert "--max_completion_tokens" in said and "--think false" in said


def test_scores_do_not_depend_on_the_order_of_the_records(tmp_path, oracle, tiny_policy, tokenizer):
    oracle()
    evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "oracle", PAIRS, tmp_path)
    rows = [row | {"seconds": 1.0} for row in _records(tmp_path)]
    assert scores(rows) == scores(rows[::-1])


def test_a_trace_is_correct_when_all_its_equations_are(tmp_path, oracle, tiny_policy, tokenizer):
    oracle()
    evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "oracle", PAIRS, tmp_path)
    traces = ["1+1=2\n2*3=6", "1+1=2\n2*3=7\n2*3=6", "4/0=4", "", "no sum", "9-2=7", "so, 8-1=7"]
    rows = [r | {"reasoning": t} for r, t in zip(_records(tmp_path), traces, strict=True)]
    found = scores(rows)["correct_traces"]
    assert (found["n"], found["share"]) == (5, 3 / 5)  # two traces have no equation
    assert scores(rows[3:5])["correct_traces"] is None


def test_a_resumed_evaluation_answers_only_the_missing_problems(
    tmp_path, oracle, tiny_policy, tokenizer
):
    answered = oracle(die_at="4")
    with pytest.raises(KeyboardInterrupt):
        evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "oracle", PAIRS, tmp_path)
    assert len(_records(tmp_path)) == 4
    assert not (tmp_path / "metrics.json").exists()

    answered = oracle()
    metrics = evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "oracle", PAIRS, tmp_path)
    assert answered == [p.question for p in PROBLEMS[4:]]
    assert metrics["n"] == 7

    answered = oracle()
    assert metrics == evaluate_checkpoint(
        tiny_policy, tokenizer, PROBLEMS, "oracle", PAIRS, tmp_path
    )
    assert answered == []


@pytest.mark.parametrize("left", [0, 10, 40, 41, 65, 99, 100])
def test_a_resumed_evaluation_ends_with_the_rows_of_an_unbroken_one(
    tmp_path, tiny_policy, tokenizer, left
):
    """A kill may leave any part of the file. The samples are random, so seeds must match too."""
    evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "sample", PAIRS, tmp_path)
    records = tmp_path / "records.jsonl"
    unbroken = records.read_bytes()
    records.write_bytes(unbroken[: len(unbroken) * left // 100])
    evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "sample", PAIRS, tmp_path)
    whole = [json.loads(line) for line in unbroken.splitlines()]
    assert _without_time(_records(tmp_path)) == _without_time(whole)


def test_a_long_unfinished_line_is_removed(tmp_path, oracle, tiny_policy, tokenizer):
    oracle()
    evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "oracle", PAIRS, tmp_path)
    records = tmp_path / "records.jsonl"
    first_chunk = b"".join(records.read_bytes().splitlines(keepends=True)[:2])
    records.write_bytes(first_chunk + b"x" * 10_000)
    evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "oracle", PAIRS, tmp_path)
    assert [r["id"] for r in _records(tmp_path)] == [p.id for p in PROBLEMS]


def test_every_chunk_has_its_own_seed(tmp_path, monkeypatch, tiny_policy, tokenizer):
    seeds = []

    def answer(model, tokenizer, questions, options) -> list[Answer]:
        seeds.extend([options.seed] if questions else [])
        return [_add_one_to_even(question) for question in questions]

    monkeypatch.setitem(STRATEGIES, "seeded", answer)
    options = replace(PAIRS, seed=100)
    evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "seeded", options, tmp_path)
    assert seeds == [100, 102, 104, 106]


def test_a_chunk_that_a_kill_left_incomplete_is_answered_again(
    tmp_path, oracle, tiny_policy, tokenizer
):
    oracle()
    evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "oracle", PAIRS, tmp_path)
    lines = (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "records.jsonl").write_text("".join(lines[:3]))
    answered = oracle()
    evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "oracle", PAIRS, tmp_path)
    assert answered == [p.question for p in PROBLEMS[2:]]
    assert len(_records(tmp_path)) == 7


def test_a_folder_refuses_an_evaluation_with_other_settings(
    tmp_path, oracle, tiny_policy, tokenizer
):
    oracle()
    evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "oracle", PAIRS, tmp_path)
    hotter = replace(PAIRS, temperature=1.5)
    with pytest.raises(ValueError, match=r"temperature=1.0, this one has temperature=1.5: choose"):
        evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "oracle", hotter, tmp_path)
    with pytest.raises(ValueError, match=r"problems=7 \(.*problems=3 \("):
        evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS[:3], "oracle", PAIRS, tmp_path)
    with torch.no_grad():
        tiny_policy.value_head.last.bias += 1
    with pytest.raises(ValueError, match="weights="):
        evaluate_checkpoint(tiny_policy, tokenizer, PROBLEMS, "oracle", PAIRS, tmp_path)


def test_a_question_too_long_for_the_model_is_refused_before_the_first_answer(
    tmp_path, oracle, tiny_policy, tokenizer
):
    answered = oracle()
    long = [*PROBLEMS, Problem(question="1 + " * 60 + "1", answer="61")]
    with pytest.raises(ValueError, match="has room for"):
        greedy = replace(PAIRS, max_completion_tokens=200)
        evaluate_checkpoint(tiny_policy, tokenizer, long, "oracle", greedy, tmp_path / "out")
    assert answered == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checkpoint": "./nowhere"}, "./nowhere"),
        ({"checkpoint": "data"}, "config.json"),
        ({"suite": "gsm8"}, "suite='gsm8' does not exist: did you mean 'gsm8k'?"),
        ({"suite": "gsm8k,chess"}, "suite='chess' does not exist: there are"),
        ({"strategy": "concensus"}, "did you mean 'consensus'?"),
        ({"strategy": "greedy", "n": "8"}, "n=8, but greedy gives one sample a question"),
        ({"strategy": "consensus", "n": "2", "temperature": "0"}, "raise the temperature"),
        ({"strategy": "consensus"}, "one sample, which is no vote: give --n 8"),
        ({"device": "cuda:7"}, "device=cuda:7 is not on this machine, which has"),
        ({"data_root": "lost"}, "lost"),
        ({"limit": "0"}, "limit=0 must be at least 1"),
        ({"batch_size": "-1"}, "batch_size=-1 must be at least 1"),
        ({"output_dir": ""}, "--output_dir is missing"),
        ({"n": "many"}, "argument --n: invalid int value: 'many'"),
        ({"colour": "red"}, "--colour"),
        ({"max_completion_tokens": "100000"}, "has room for"),
        ({"config": "lost.yaml"}, "lost.yaml"),
    ],
)
def test_an_invalid_argument_is_one_line_of_error_and_writes_nothing(
    workplace, capsys, changes, said
):
    before = sorted(workplace.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run.main(_command(**changes))
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and said in error and "\n" not in error
    assert sorted(workplace.rglob("*")) == before


@pytest.mark.parametrize(
    "bad", [{"n": 2.7}, {"limit": "ten"}, {"think": "yes"}, {"suite": ["a", "b"]}, {"seed": None}]
)
def test_values_of_wrong_types_in_a_yaml_file_are_refused(bad):
    arguments = {"checkpoint": "c", "suite": "gsm8k", "output_dir": "o"}
    with pytest.raises(ValueError, match=next(iter(bad))):
        EvalArguments(**arguments | bad)


def test_a_suite_with_another_number_of_rows_is_refused(workplace):
    suites.SUITES["gsm8k"] = replace(suites.SUITES["gsm8k"], size=1319)
    with pytest.raises(ValueError, match="gsm8k has 1319 rows, but gsm8k/test has 5"):
        suites.read_suite("gsm8k", "data")


def test_a_limit_spreads_problems_over_the_suite(workplace):
    report = suites.read_suite("gsm8k", "data", limit=2)
    assert [p.question for p in report.problems] == ["What is 0 + 1?", "What is 2 + 1?"]
    assert report.rows_read == 5


def test_levels_select_problems_of_these_levels():
    report = suites.read_suite("nano", limit=10, levels="story1, wording")
    assert {p.level for p in report.problems} == {"story1", "wording"}
    assert (len(report.problems), report.rows_read) == (10, 600)
    with pytest.raises(ValueError, match="has no story99; it has expression, story1"):
        suites.read_suite("nano", levels="story1,story99")


def test_the_options_of_the_command_reach_the_strategy(monkeypatch, workplace):
    seen = []

    def answer(model, tokenizer, questions, options) -> list[Answer]:
        seen.append(options)
        return [Answer(text="1", notes={"rewinds": 2}, forced=True) for _ in questions]

    monkeypatch.setitem(STRATEGIES, "mcts", answer)
    run.main(_command(strategy="mcts", simulations="7", c_puct="0.5", choose="visits"))
    assert (seen[-1].simulations, seen[-1].c_puct, seen[-1].choose) == (7, 0.5, "visits")
    row = _records(workplace / "out")[0]
    assert row["forced"] is True and row["notes"] == {"rewinds": 2}


def test_every_suite_is_registered_under_its_name():
    assert all(name == suite.name for name, suite in suites.SUITES.items())


def test_a_question_that_is_too_long_counts_as_wrong_with_that_option(
    tmp_path, oracle, tiny_policy, tokenizer
):
    answered = oracle()
    long = Problem(question="What is 0 + 1" + " + 0" * 60 + "?", answer="1", id="long")
    problems = [PROBLEMS[0], long, *PROBLEMS[1:]]
    options = replace(PAIRS, max_completion_tokens=100)
    metrics = evaluate_checkpoint(
        tiny_policy, tokenizer, problems, "oracle", options, tmp_path, too_long="wrong"
    )
    assert answered == [p.question for p in PROBLEMS]
    # Four of the seven answers are right; the eighth question has none.
    assert (metrics["accuracy"], metrics["n"], metrics["too_long"]) == (4 / 8, 8, 1)
    row = _records(tmp_path)[1]
    assert (row["id"], row["correct"], row["finish_reason"]) == ("long", False, "too_long")


def test_suite_all_evaluates_what_the_data_root_has_and_names_the_others(workplace, capsys):
    run.main(_command(suite="all", limit="2"))
    printed = capsys.readouterr().out
    found = sorted(path.parent.name for path in (workplace / "out").glob("*/metrics.json"))
    assert found == ["gsm8k", "nano", "nano5", "nano_hard", "o1nano", "quadratics"]
    assert "left out math: no math/test under the data root" in printed
    assert "left out gpqa_diamond: its licence forbids copies; pass its name" in printed


def test_every_data_set_with_a_test_split_has_a_suite():
    measured = {suite.source for suite in suites.SUITES.values()}
    copies = {"gsm8k_equations"}  # the rows of another suite in another format
    held_out = {
        name for name, source in suites.SOURCES.items() if {"test", "all"} & set(source.splits)
    }
    unfrozen = {"apps", "codeforces"}  # their number of rows is not fixed
    assert held_out - copies - unfrozen <= measured
    assert set(suites.GENERATED) <= measured


def test_equal_fingerprints_mean_equal_questions_and_answers():
    one = suites.fingerprint(PROBLEMS)
    assert one == suites.fingerprint([replace(p, id="", level="") for p in PROBLEMS])
    assert one != suites.fingerprint(PROBLEMS[::-1])
    assert one != suites.fingerprint([replace(PROBLEMS[0], answer="2"), *PROBLEMS[1:]])


def test_other_questions_than_those_of_the_suite_are_refused(workplace, monkeypatch, capsys):
    own = suites.fingerprint(suites.read_suite("gsm8k", "data").problems)
    few = replace(suites.SUITES["gsm8k"], fingerprint=own)
    monkeypatch.setitem(suites.SUITES, "gsm8k", few)
    assert suites.read_suite("gsm8k", "data").kept == 5
    path = workplace / "data" / "gsm8k" / "test.jsonl.gz"
    with gzip.open(path, "rt") as file:
        rows = file.read().replace("#### 5", "#### 6")
    with gzip.open(path, "wt") as file:
        file.write(rows)
    with pytest.raises(SystemExit):
        run.main(_command())
    error = capsys.readouterr().err
    assert f"suite gsm8k has the fingerprint {own}" in error
    assert "--suite FILE" in error


def test_a_gated_suite_without_access_is_one_line_of_error_with_its_address(
    workplace, monkeypatch, capsys
):
    def gated(*_args, **_kwargs):
        raise OSError("Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub.\nPlease log in.")

    monkeypatch.setattr(hub_rows, "load_dataset", gated)
    with pytest.raises(SystemExit):
        run.main(_command(suite="gpqa_diamond"))
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert "accept its terms at https://huggingface.co/datasets/Idavidrein/gpqa" in error


def test_the_list_of_suites_has_source_size_and_fingerprint(workplace, capsys):
    suites.main(["--data_root", "data"])
    lines = capsys.readouterr().out.splitlines()
    found = next(line for line in lines if line.startswith("gsm8k "))
    assert "gsm8k/test 5 rows, 5 kept" in found
    assert suites.fingerprint(suites.read_suite("gsm8k", "data").problems) in found
    assert any(line.startswith("math ") and "left out" in line for line in lines)


def test_without_a_data_root_the_suites_are_listed_without_the_hub(monkeypatch, capsys):
    monkeypatch.delenv("THINKHEAD_DATA", raising=False)
    monkeypatch.setattr(hub_rows, "load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    suites.main([])
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == set(suites.SUITES)
    assert next(line for line in lines if line.startswith("gsm8k ")).endswith(
        "on the Hub as openai/gsm8k; read it with --download true, or give --data_root"
    )
    assert "600 rows, 600 kept" in next(line for line in lines if line.startswith("nano "))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_module_runs_as_a_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run"])
    with pytest.raises(SystemExit):
        runpy.run_module("eval.run", run_name="__main__")
    assert capsys.readouterr().err.startswith("error: --")
