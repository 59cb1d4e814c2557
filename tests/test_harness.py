"""Task files for lm-evaluation-harness, and the comparison of its verdicts with eval.run's."""

import json
from pathlib import Path

import pytest
import yaml

from eval.harness import __main__ as command
from eval.harness.agreement import agreement, describe_agreement, main, read_theirs
from eval.harness.scoring import process_results, visible
from pipeline.model import save_policy
from pipeline.records import Problem

PROBLEMS = [Problem(question=f"{n} + 1?", answer=str(n + 1), id=f"p{n}") for n in range(3)]


class _Loader(yaml.SafeLoader):
    """Reads `!function scoring.visible` as the harness does, as a name."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def _ours(question: str, answer: str, correct: bool) -> dict:
    return {"question": question, "expected": "5", "answer": answer, "correct": correct}


def _theirs(question: str, text: str, same: float, exact: float | None = None) -> dict:
    exact = same if exact is None else exact
    about = {"doc": {"question": question}, "filtered_resps": [text]}
    return about | {"same_answer": same, "exact_match": exact}


def test_a_thought_is_not_an_answer():
    resps = [["1+1=2</think>2"], ["5, as I thought"], ["a</think>b</think>c"]]
    assert visible(resps, [{}, {}, {}]) == [["2"], [""], ["b</think>c"]]
    assert process_results({"answer": "5"}, [""]) == {"exact_match": 0.0, "same_answer": 0.0}


def test_the_harness_grades_with_the_question():
    doc = {"question": "What percentage of the cars is red?", "answer": "20"}
    assert process_results(doc, ["20%"]) == {"exact_match": 0.0, "same_answer": 1.0}
    assert process_results(doc | {"question": "How many?"}, ["20%"])["same_answer"] == 0.0


def test_the_task_file_has_the_data_the_scoring_and_the_token_limit(tmp_path, tokenizer):
    command.write_task(tmp_path, "nano", PROBLEMS, 77, tokenizer)
    task = yaml.load((tmp_path / "nano.yaml").read_text(), _Loader)
    assert task["task"] == "thinkhead_nano"
    assert task["generation_kwargs"] == {"until": [], "do_sample": False, "max_gen_toks": 77}
    data = Path(task["dataset_kwargs"]["data_files"]["test"])
    assert [json.loads(line)["answer"] for line in data.read_text().splitlines()] == ["1", "2", "3"]
    assert task["doc_to_text"] == "{{question}}"
    assert task["process_results"] == "scoring.process_results"
    assert (tmp_path / "scoring.py").is_file()


def test_only_tasks_writes_the_task_files_and_runs_nothing(
    tmp_path, tiny_policy, tokenizer, monkeypatch, capsys
):
    monkeypatch.setattr(command, "run_harness", lambda _command: pytest.fail("was run"))
    arguments = ["--suites", "nano,o1nano", "--limit", "4", "--only_tasks", "true"]
    save_policy(tiny_policy, tokenizer, tmp_path / "c")
    command.main(["--checkpoint", str(tmp_path / "c"), "--output_dir", str(tmp_path), *arguments])
    assert (tmp_path / "o1nano" / "task" / "o1nano.yaml").is_file()
    printed = capsys.readouterr().out
    assert printed.count("lm_eval run --model hf") == 2 and "--apply_chat_template" in printed


@pytest.mark.parametrize("name", ["DATA", "TOKENS"])
def test_a_suite_may_have_the_name_of_a_mark_of_the_template(tmp_path, tokenizer, name):
    command.write_task(tmp_path, name, PROBLEMS, 77, tokenizer)
    task = yaml.load((tmp_path / f"{name}.yaml").read_text(), _Loader)
    assert task["task"] == f"thinkhead_{name}"
    assert task["dataset_kwargs"]["data_files"]["test"] == str(tmp_path / "problems.jsonl")
    assert task["generation_kwargs"]["max_gen_toks"] == 77


def test_the_harness_loads_the_folder_that_the_checkpoint_was_resolved_to(
    tmp_path, tiny_policy, tokenizer, monkeypatch, capsys
):
    save_policy(tiny_policy, tokenizer, tmp_path / "c")
    monkeypatch.setattr(command, "resolve_checkpoint", lambda _name: tmp_path / "c")
    arguments = ["--suites", "nano", "--limit", "2", "--only_tasks", "true"]
    command.main(["--checkpoint", "user/name@v2", "--output_dir", str(tmp_path), *arguments])
    assert f"pretrained={tmp_path / 'c'}," in capsys.readouterr().out


def test_own_rows_are_a_task_named_after_their_file_and_conversations_are_refused(
    tmp_path, tiny_policy, tokenizer, capsys
):
    save_policy(tiny_policy, tokenizer, tmp_path / "c")
    rows = tmp_path / "my rows.jsonl"
    rows.write_text(json.dumps({"question": "1+1?", "answer": "2"}))
    arguments = ["--checkpoint", str(tmp_path / "c"), "--output_dir", str(tmp_path / "out")]
    arguments += ["--suites", str(rows), "--only_tasks", "true"]
    command.main(arguments)
    assert (tmp_path / "out" / "my_rows.jsonl" / "task" / "my_rows.jsonl.yaml").is_file()
    assert "--tasks thinkhead_my_rows.jsonl " in capsys.readouterr().out
    with pytest.raises(ValueError, match="two suites of one name"):
        command.HarnessArguments(
            checkpoint="c", output_dir="o", suites="a/t.jsonl,b/t.jsonl", only_tasks=True
        )
    turns = [("user", "1+1?"), ("assistant", "2"), ("user", "And 3?"), ("assistant", "5")]
    messages = [{"role": role, "content": text} for role, text in turns]
    rows.write_text(json.dumps({"messages": messages}))
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert "my rows.jsonl has conversations" in capsys.readouterr().err


def test_vllm_is_the_harness_model_class_and_chooses_device_and_batch(
    tmp_path, tiny_policy, tokenizer, capsys
):
    save_policy(tiny_policy, tokenizer, tmp_path / "c")
    options = ["--suites", "nano", "--limit", "2", "--only_tasks", "true", "--engine", "vllm"]
    command.main(["--checkpoint", str(tmp_path / "c"), "--output_dir", str(tmp_path), *options])
    printed = capsys.readouterr().out
    assert f"--model vllm --model_args pretrained={tmp_path / 'c'},dtype=auto " in printed
    assert "--device" not in printed and "--batch_size auto" in printed


def test_without_the_harness_one_line_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda _name: None)
    with pytest.raises(SystemExit):
        command.main(["--checkpoint", "c", "--output_dir", str(tmp_path)])
    error = capsys.readouterr().err.strip()
    assert "pip install '.[harness]'" in error and "\n" not in error


def test_verdicts_are_paired_by_question_and_every_difference_has_a_reason():
    ours = [
        _ours("a", "5", True),
        _ours("b", "4", False),
        _ours("c", "", False),
        _ours("d", "5", True),
        _ours("e", "5", True),
        _ours("f", "5", True),
    ]
    theirs = [
        _theirs("f", "5.0", 1.0, exact=0.0),
        _theirs("e", "5", 0.0),
        _theirs("d", "", 0.0),
        _theirs("c", "5", 1.0),
        _theirs("b", "5", 1.0),
        _theirs("a", "5", 1.0),
    ]
    figures = agreement(ours, theirs)
    assert (figures["n"], figures["only_ours"]) == (6, 0)
    assert figures["agree"] == pytest.approx(2 / 6)  # a and f
    assert figures["agree_exact_match"] == pytest.approx(1 / 6)  # a alone
    assert figures["same_words"] == pytest.approx(2 / 6)  # a and e
    assert figures["reasons"] == {
        "other words": 1,
        "no answer of ours": 1,
        "no answer of theirs": 1,
        "other grader": 1,
    }
    assert "6 problems: verdicts agree on 33.33%" in describe_agreement(figures)


def test_problems_of_one_question_are_paired_by_their_ids():
    ours = [{**_ours("sort it", text, text == "a"), "id": text} for text in ("a", "b")]
    theirs = [_theirs("sort it", text, float(text == "a")) for text in ("a", "b")]
    for row, name in zip(theirs, ("a", "b"), strict=True):
        row["doc"]["id"] = name
    assert agreement(ours, theirs)["agree"] == agreement(ours, theirs)["same_words"] == 1.0


def test_a_completion_with_a_line_separator_of_unicode_is_one_row(tmp_path):
    row = _theirs("a", "one\u2028two\x85three", 1.0)
    text = json.dumps(row, ensure_ascii=False) + "\n"  # as the harness writes it
    (tmp_path / "samples_nano.jsonl").write_text(text, encoding="utf-8")
    assert read_theirs(tmp_path) == [row]


def test_two_evaluations_without_a_question_in_common_are_refused():
    with pytest.raises(ValueError, match="share no question"):
        agreement([_ours("a", "5", True)], [_theirs("b", "5", 1.0)])


def test_the_command_reads_both_folders(tmp_path, capsys):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "metrics.json").write_text(json.dumps({"accuracy": 1.0}))
    (tmp_path / "ours" / "records.jsonl").write_text(json.dumps(_ours("a", "5", True)) + "\n")
    samples = tmp_path / "theirs" / "out" / "model" / "samples_thinkhead_nano_2026.jsonl"
    samples.parent.mkdir(parents=True)
    samples.write_text(json.dumps(_theirs("a", "5", 1.0)) + "\n")
    output = tmp_path / "agree.json"
    folders = ["--ours", str(tmp_path / "ours"), "--theirs", str(tmp_path / "theirs")]
    main([*folders, "--output", str(output)])
    assert json.loads(output.read_text())["agree"] == 1.0
    assert "agree on 100.00%" in capsys.readouterr().out


def test_a_folder_without_samples_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no samples_.*: run python -m eval.harness"):
        read_theirs(tmp_path)
