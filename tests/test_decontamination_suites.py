"""Decontamination in training: rows that a suite holds are dropped or refused, and counted."""

import gzip
import json
from itertools import islice

import pytest

from eval.suites import SUITES
from pipeline.config import DataConfig
from pipeline.data import decontamination
from pipeline.data.decontamination import decontaminate, held_out_problems
from pipeline.data.problems import GENERATED, read_problems
from pipeline.data.registry import SOURCES
from pipeline.records import Problem
from stages.training_problems import problem_stream, training_problems, with_thoughts


def write(root, name: str, split: str, *questions: str) -> None:
    path = root / name / f"{split}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    field = {"math": "problem"}.get(name, "question")
    rows = [{field: q, "answer": "2+1=<<2+1=3>>3\n#### 3", "solution": "2+1=\\boxed{3}"}
            for q in questions]  # fmt: skip
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(map(json.dumps, rows)) + "\n")


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "gsm8k", "train", "One and 1?", "Two  and 2?", "Three and 3?", "Four and 4?")
    write(tmp_path, "gsm8k", "test", "two and 2?", "Three and 8?")
    write(tmp_path, "math", "train", "Five?", "Six?")
    write(tmp_path, "math", "test", "Four and 4?", "Seven?")
    return str(tmp_path)


def questions(problems) -> list[str]:
    return [problem.question for problem in problems]


def test_every_suite_is_guarded():
    for suite in SUITES.values():
        generated = suite.source in GENERATED and suite.split == "test"
        assert generated or suite.split in SOURCES[suite.source].held_out


def test_rows_of_any_suite_at_hand_are_dropped_and_counted(root, capsys):
    problems = training_problems(DataConfig(dataset="gsm8k", data_root=root), seed=0)
    assert questions(problems) == ["One and 1?", "Three and 3?"]
    printed = capsys.readouterr().out
    assert "1 in gsm8k/test, 1 in math/test also there and dropped; 1 differ" in printed


def test_the_stages_may_refuse_instead(root):
    data = DataConfig(dataset="gsm8k", data_root=root, overlap="refuse")
    with pytest.raises(ValueError, match=r"1 in gsm8k/test, 1 in math/test\); remove them"):
        training_problems(data, seed=0)


def test_allow_keeps_every_row(root):
    data = DataConfig(dataset="gsm8k", data_root=root, overlap="allow")
    assert len(training_problems(data, seed=0)) == 4


def test_training_on_a_suite_itself_is_refused(root):
    data = DataConfig(dataset="gsm8k", split="test", data_root=root)
    with pytest.raises(ValueError, match="all 2 rows of dataset=gsm8k are in evaluation suites"):
        training_problems(data, seed=0)


def test_made_up_problems_are_compared_with_made_up_suites_only(root):
    origins = [origin for origin, _ in held_out_problems(["nano"], root)]
    assert origins == [f"{name}/test" for name in GENERATED]
    data = DataConfig(shares="wording=1,story2=1", size=300)
    assert len(training_problems(data, seed=0)) == 300  # apart by construction


def test_a_planted_made_up_problem_is_found():
    (_, found), *_ = held_out_problems(["nano"])
    planted = [*found[:3], Problem(question="Something else?", answer="1")]
    result = decontaminate(planted, ["nano"])
    assert questions(result.kept) == ["Something else?"]
    assert sum(result.removed.values()) == 3


def test_a_stream_is_guarded_row_by_row(root):
    data = DataConfig(dataset="gsm8k", data_root=root, streaming=True)
    start = problem_stream(data, seed=0)
    assert questions(start()) == questions(start()) == ["One and 1?", "Three and 3?"]
    refusing = DataConfig(dataset="gsm8k", data_root=root, streaming=True, overlap="refuse")
    with pytest.raises(ValueError, match="gsm8k/train:2 is in an evaluation suite"):
        list(problem_stream(refusing, seed=0)())


def test_a_mixture_keeps_its_shares_and_repeats_nothing(root):
    data = DataConfig(dataset="gsm8k=1,math=2", data_root=root, overlap="allow")
    problems = training_problems(data, seed=0)
    assert sorted(p.source for p in problems) == ["gsm8k/train", "math/train", "math/train"]
    assert len({p.question for p in problems}) == 3


def test_a_mixture_that_asks_for_too_much_names_the_scarce_part(root):
    data = DataConfig(dataset="gsm8k=1,math=2", data_root=root, size=6, overlap="allow")
    with pytest.raises(ValueError, match="needs more of math than its 2 problems; take at most 3"):
        training_problems(data, seed=0)


def test_a_mixed_stream_keeps_the_shares_about(root):
    data = DataConfig(dataset="gsm8k=1,math=1", data_root=root, streaming=True, overlap="allow")
    sources = [p.source for p in islice(problem_stream(data, seed=3)(), 20)]
    assert {"gsm8k/train", "math/train"} == set(sources) and len(sources) <= 6


@pytest.mark.parametrize("dataset", ["gsm8k=2,math", "gsm8k=0", "gsm8k=-1,math=1", "gsm8k=much"])
def test_weights_are_given_to_all_or_to_none(dataset):
    with pytest.raises(ValueError, match=r"dataset='gsm8k=.*(give every name a weight|look like)"):
        training_problems(DataConfig(dataset=dataset), seed=0)


def test_revisions_are_made_in_the_share_asked_for(root, capsys):
    data = DataConfig(dataset="gsm8k_equations", data_root=root, self_correction_share=1.0)
    assert all(problem.untrained_spans for problem in training_problems(data, seed=0))
    assert "2 of 2 thoughts contain a self-correction" in capsys.readouterr().out


def test_thoughts_are_left_empty_in_the_share_asked_for_and_stay_the_same_with_the_seed(capsys):
    data = DataConfig(
        dataset="nano", shares="story2=1", size=400, direct_share=0.6, overlap="allow"
    )
    problems = training_problems(data, seed=0)
    empty = sum(problem.direct for problem in problems)
    assert 210 <= empty <= 270  # 240 +- 3 standard deviations of 9.8
    assert f"{empty} of 400 thoughts are left empty" in capsys.readouterr().out
    assert training_problems(data, seed=0) == problems
    plain = training_problems(DataConfig(**(data.__dict__ | {"direct_share": 0.0})), seed=0)
    assert [p.question for p in plain] == [p.question for p in problems]
    assert not any(p.direct for p in plain)


@pytest.fixture
def divided_root(tmp_path):
    names = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hal", "Ida", "Jon", "Kim", "Leo")
    rows = [
        {"body": f"{name} has 2 {thing}.", "question": "And 3 more?", "answer": "5", "id": name}
        | {"formula": "2+3=5"}
        for name in names
        for thing in ("hens", "cups")
    ]
    path = tmp_path / "asdiv" / "all.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path)


def test_a_divided_data_set_leaves_rows_to_train_on_and_a_test_part(divided_root):
    parts = {s: read_problems("asdiv", s, divided_root).problems for s in ("all", "train", "test")}
    assert set(questions(parts["train"])) | set(questions(parts["test"])) == set(
        questions(parts["all"])
    )
    assert not set(questions(parts["train"])) & set(questions(parts["test"]))
    assert 0 < len(parts["test"]) < len(parts["train"])
    trained = training_problems(DataConfig(dataset="asdiv", data_root=divided_root), seed=0)
    assert trained == parts["train"]
    assert [p.thought for p in trained[:2]] == ["2+3=5"] * 2


def test_all_rows_of_a_divided_data_set_are_kept_from_other_training(divided_root):
    with_test = dict(held_out_problems(["asdiv"], divided_root))
    whole = dict(held_out_problems(["gsm8k"], divided_root))
    assert "asdiv/test" in with_test and "asdiv/all" not in with_test
    assert "asdiv/all" in whole and "asdiv/test" not in whole


def test_questions_that_differ_in_their_numbers_are_in_the_same_part(tmp_path):
    path = tmp_path / "multiarith" / "all.jsonl"
    path.parent.mkdir()
    rows = [{"question": f"A hen lays {n} eggs. How many?", "final_ans": str(n)} for n in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = [
        len(read_problems("multiarith", split, tmp_path).problems) for split in ("train", "test")
    ]
    assert sorted(sizes) == [0, 9]


def test_rows_without_a_thought_are_left_out_of_sft_and_counted(capsys):
    worked = Problem(question="1+1?", answer="2", thought="1+1=2")
    bare = Problem(question="1+2?", answer="3")
    assert with_thoughts([worked, bare], DataConfig()) == [worked]
    assert "1 of 2 rows have no thought" in capsys.readouterr().out
    assert with_thoughts([bare], DataConfig(think=False)) == [bare]
    with pytest.raises(ValueError, match="--think false"):
        with_thoughts([bare], DataConfig())


def test_the_index_of_held_out_questions_is_cached_until_a_file_changes(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("THINKHEAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decontamination, "SLOW", 0)
    root = tmp_path / "data"
    question = "Ann has nine red hens and Bob has two more hens than Ann has, how many are there?"
    write(root, "gsm8k", "test", question)
    made, origins = decontamination.held_out_index(["gsm8k"], root)
    assert "questions" in capsys.readouterr().err
    reads = []
    streamed = decontamination.stream_problems
    monkeypatch.setattr(
        decontamination, "stream_problems", lambda *a: reads.append(a) or streamed(*a)
    )
    cached, same = decontamination.held_out_index(["gsm8k"], root)
    assert same == origins and origins[-1] == "gsm8k/test"
    asked = [f"Once: {question}", question.upper(), question.replace("nine", "9"), "2 + 3?"]
    for text in asked:
        problem = Problem(question=text, answer="")
        assert cached.find(problem) == made.find(problem)
    assert made.holds(Problem(question=asked[0], answer=""))
    assert capsys.readouterr().err == ""
    assert reads == []
    write(root, "gsm8k", "test", question, "Another question?")
    assert len(decontamination.held_out_index(["gsm8k"], root)[1]) == len(origins) + 1
    assert len(reads) == 1


def test_a_damaged_cache_file_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("THINKHEAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decontamination, "SLOW", 0)
    write(tmp_path / "data", "gsm8k", "test", "One question?")
    _, origins = decontamination.held_out_index(["gsm8k"], tmp_path / "data")
    (file,) = (tmp_path / "cache" / "held_out").glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    assert decontamination.held_out_index(["gsm8k"], tmp_path / "data")[1] == origins
