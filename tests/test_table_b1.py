"""The paper's Table B1 and GPQA: documents, metrics, and one run of the harness on own rows."""

import gzip
import json
from importlib.util import find_spec

import numpy as np
import pytest
import yaml

from eval.harness.table_b1 import __main__ as command
from eval.harness.table_b1.metrics import (
    best_span_scores,
    binary_f1,
    chosen,
    mcc,
    number_in,
    pearson,
    process_results,
    span_scores,
    spearman,
)
from eval.harness.table_b1.tasks import GLUE, TASKS, task_docs
from pipeline.model import attach_reasoning_layer, new_reasoning_layer, save_policy

PAIR = {"sentence1": "A man eats.", "sentence2": "Somebody eats."}
ROWS = {
    "cola": [{"sentence": "They sang.", "label": 1}, {"sentence": "Sang they is.", "label": 0}],
    "sst2": [{"sentence": "a fine {film}", "label": 1}],
    "mrpc": [{**PAIR, "label": 1}, {**PAIR, "label": 0}],
    "qqp": [{"question1": "Why?", "question2": "How?", "label": 0}],
    "stsb": [{**PAIR, "label": 4.2}, {**PAIR, "label": 1.0}],
    "mnli": [{"premise": "It rains.", "hypothesis": "It is wet.", "label": 1}],
    "qnli": [{"question": "Who?", "sentence": "Ann.", "label": 0}],
    "rte": [{**PAIR, "label": 0}],
    "wnli": [{**PAIR, "label": 1}, {**PAIR, "label": -1}],
    "squad_v2": [
        {
            "context": "The tower is in Paris.",
            "question": "Where is it?",
            "answers": {"text": ["Paris", "in Paris", "Paris"], "answer_start": [16, 13, 16]},
        },
        {"context": "It is.", "question": "When?", "answers": {"text": [], "answer_start": []}},
    ],
    "coqa": [
        {
            "story": "Tom has a red cat.",
            "questions": {"input_text": ["Who has a cat?", "Which colour?"]},
            "answers": {"input_text": ["Tom", "red"]},
            "additional_answers": {"0": {"input_text": ["Tom does", "it is red"]}},
        }
    ],
    "winogrande": [
        {"sentence": "Ann helped Bob, so _ was glad.", "option1": "Ann", "option2": "Bob"}
        | {"answer": "2"}
    ],
    "hellaswag": [
        {"activity_label": "Baking", "ctx": "He [title] mixes [step] eggs", "label": "2"}
        | {"endings": ["and sleeps.", "and sings.", "and bakes.", "and runs."]}
    ],
    "gpqa": [
        {"Question": "Which decays?", "Correct Answer": " muon "}
        | {f"Incorrect Answer {i}": f"no {i}" for i in (1, 2, 3)}
    ],
}


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, rows in ROWS.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        if name == "coqa":
            with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
                file.write(lines)
        else:
            (folder / f"{name}.jsonl").write_text(lines)
    return str(folder)


@pytest.mark.parametrize("name", TASKS)
def test_the_expected_answer_of_every_task_has_the_best_score(name, root):
    docs = task_docs(name, root)
    assert docs
    for doc in docs:
        scores = process_results(doc, [doc["answer"]])
        assert set(scores) == set(TASKS[name].metrics)
        for score in scores.values():
            assert (
                score == 1.0
                or (isinstance(score, tuple) and score[0] == score[1])
                or (name == "coqa" and score > 0)
            )


@pytest.mark.parametrize("name", TASKS)
def test_an_answer_that_names_nothing_is_wrong(name, root):
    for doc in task_docs(name, root):
        for score in process_results(doc, ["I do not know."]).values():
            assert score == 0.0 or (isinstance(score, tuple) and score[1] == 0.0)


def test_rows_without_a_label_are_left_out_and_a_missing_field_is_named(root, tmp_path):
    assert len(task_docs("wnli", root)) == 1
    (tmp_path / "cola.jsonl").write_text('{"sentence": "x"}\n')
    with pytest.raises(ValueError, match=r"row 1 of cola .*label"):
        task_docs("cola", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="squad_v2"):
        task_docs("squad_v2", str(tmp_path))


def test_the_turns_of_a_conversation_show_the_true_answers_before_them(root):
    first, second = task_docs("coqa", root)
    assert "A: Tom" not in first["question"] and "Q: Who has a cat?\nA: Tom" in second["question"]
    assert second["answers"] == ["red", "it is red"]


def test_the_choices_of_gpqa_have_one_order_and_the_right_one_is_its_label(root):
    (doc,), (again,) = task_docs("gpqa", root), task_docs("gpqa", root)
    assert doc == again
    assert doc["choices"][doc["label"]] == "muon"


def test_coqa_leaves_out_one_answer_at_a_time():
    exact, f1 = best_span_scores("red", ["red", "it is red"], held_out=True)
    assert exact == 0.5  # without the first, "it is red" is left, which is not "red"
    assert f1 == pytest.approx((0.5 + 1.0) / 2)  # 2 * 1 / (1 + 3)


def test_squad_s_questions_without_an_answer():
    assert best_span_scores("Unanswerable.", []) == (1.0, 1.0)
    assert best_span_scores("Paris", []) == best_span_scores("", []) == (0.0, 0.0)
    assert span_scores("", "Paris") == (0.0, 0.0)


def test_metrics_of_a_task_by_hand():
    pairs = [(1, 1), (1, 1), (1, 0), (0, 1), (0, 0), (0, 0)]
    assert binary_f1(pairs) == pytest.approx(2 / 3)
    assert mcc(pairs) == pytest.approx((2 * 2 - 1 * 1) / 9)
    assert spearman([(1, 10), (2, 20), (3, 400)]) == pytest.approx(1.0)
    assert spearman([(1, 1), (2, 1), (3, 2)]) == pytest.approx(3**0.5 / 2)
    assert pearson([(1, 2), (2, 1)]) == pytest.approx(-1.0)
    assert pearson([(1, 3), (2, 3)]) == 0.0
    assert np.isfinite(pearson([(1, 1)]))


def test_letters_and_numbers_in_answers():
    assert chosen("Answer: B", ["x", "y"]) == 1
    assert chosen("C", ["x", "y"]) is None
    assert chosen("A dog barks", ["x", "y"]) is None
    assert process_results({"kind": "number", "label": 3.0}, ["\\boxed{4.5}"])["pearson"] == (
        3,
        4.5,
    )
    assert [number_in(t) for t in ("about 3.5 of 5", "9", "none")] == [3.5, 5.0, 0.0]


def test_the_table_means_glue_over_its_tasks():
    scores = {name: {"acc": 0.5} for name in GLUE} | {"squad_v2": {"exact": 0.1, "f1": 0.2}}
    scores["stsb"] = {"pearson": 0.9, "spearman": 0.7}
    table = command.table_b1(scores)
    assert table["GLUE (9 of 9)"] == pytest.approx((8 * 0.5 + 0.8) / 9)
    assert table["squad_v2"] == 0.2


def test_a_model_with_a_reasoning_layer_is_refused(tiny_policy, tokenizer, root, tmp_path, capsys):
    layer = new_reasoning_layer(tiny_policy, think_id=4, end_think_id=5)
    save_policy(attach_reasoning_layer(tiny_policy, layer), tokenizer, tmp_path / "c")
    start = ["--checkpoint", str(tmp_path / "c"), "--only_tasks", "true"]
    with pytest.raises(SystemExit):
        command.main([*start, "--data_root", root, "--output_dir", str(tmp_path / "out")])
    assert "evaluate it with eval.run" in capsys.readouterr().err


def test_the_task_files_are_written(tiny_policy, tokenizer, root, tmp_path):
    save_policy(tiny_policy, tokenizer, tmp_path / "c")
    start = ["--checkpoint", str(tmp_path / "c"), "--only_tasks", "true", "--tasks", "glue,gpqa"]
    command.main([*start, "--data_root", root, "--output_dir", str(tmp_path / "out")])
    files = sorted(path.stem for path in (tmp_path / "out" / "tasks").glob("*.yaml"))
    assert files == sorted([*GLUE, "gpqa"])

    class Loader(yaml.SafeLoader):
        """Reads `!function` as a name."""

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    task = yaml.load((tmp_path / "out" / "tasks" / "mrpc.yaml").read_text(), Loader)
    assert [row["aggregation"] for row in task["metric_list"]] == ["mean", "scoring.binary_f1"]


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is an optional package")
def test_the_harness_runs_every_task_on_own_rows(tiny_policy, tokenizer, root, tmp_path, capfd):
    save_policy(tiny_policy, tokenizer, tmp_path / "c")
    arguments = ["--tasks", "glue,squad_v2,coqa,winogrande,hellaswag,gpqa"]
    arguments += ["--checkpoint", str(tmp_path / "c"), "--max_completion_tokens", "4"]
    command.main([*arguments, "--data_root", root, "--output_dir", str(tmp_path / "out")])
    stored = json.loads((tmp_path / "out" / "table_b1.json").read_text())
    assert set(stored["tasks"]) == set(TASKS)
    for name, task in TASKS.items():
        assert set(stored["tasks"][name]) == set(task.metrics)
    assert "GLUE (9 of 9)" in capfd.readouterr().out
