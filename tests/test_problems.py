"""Data sets by name, on rows made here and on the local copy of the data where there is one."""

import gzip
import json
import os
from pathlib import Path

import pytest

from pipeline.data import hub_rows
from pipeline.data.problems import GENERATED, available_splits, load_problems, read_problems
from pipeline.data.registry import SOURCES
from pipeline.records import Problem

MIRROR = Path(os.environ.get("THINKHEAD_DATA") or Path(__file__).parents[2] / "shared" / "data")
mirror = pytest.mark.skipif(
    not MIRROR.is_dir(), reason=f"no local data: neither THINKHEAD_DATA nor {MIRROR} is a folder"
)


def write(path: Path, *lines: object) -> Path:
    """A file with one line an item: bytes as they are, everything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(b"\n".join(raw) + b"\n")
    return path


def read_rows(root: Path, name: str, *rows: object):
    source = SOURCES[name]
    split = source.splits[0]
    write(root / source.folder / f"{split}.jsonl.gz", *rows)
    return read_problems(name, split, root)


def test_a_broken_row_is_reported_by_line_and_reason_and_the_rest_is_read(tmp_path):
    good = {"question": "1+1?", "answer": "#### 2"}
    lines = [good, b"{broken", b"", good, [1], b'"\xff"', {"question": "?"}, good | {"answer": "2"}]
    report = read_rows(tmp_path, "gsm8k", *lines, good | {"question": " "})
    assert report.kept == 2
    assert report.rows_read == 8  # nine lines, one of them blank
    assert [(row.line, row.reason) for row in report.examples] == [
        (2, "not valid JSON"),
        (5, "not a JSON object"),
        (6, "not valid UTF-8"),
        (7, "missing field answer"),
        (8, "no answer"),
        (9, "empty question"),
    ]
    assert report.examples[0].excerpt == "{broken"


@pytest.mark.parametrize("field", ["question", "answer", "thought"])
@pytest.mark.parametrize("half", ["\ud83d", "\ude00"])
def test_half_of_a_character_is_a_reason_to_drop_a_row(tmp_path, field, half):
    good = {"question": "1+1?", "answer": "It is 2.\n#### 2"}
    spoilt = {
        "question": good | {"question": f"1+1{half}?"},
        "thought": good | {"answer": f"It is {half} 2.\n#### 2"},
        "answer": good | {"answer": f"It is 2.\n#### 2{half}"},
    }[field]
    whole = good | {"question": "\U0001f600?"}  # as JSON two halves, and one character when read
    report = read_rows(tmp_path, "gsm8k", good, spoilt, whole)
    assert report.dropped == {"not valid Unicode (a lone surrogate)": 1}
    assert [problem.question for problem in report.problems] == ["1+1?", "\U0001f600?"]


def test_only_the_first_few_rows_of_a_reason_are_kept_as_examples(tmp_path):
    report = read_rows(tmp_path, "gsm8k", *[b"?"] * 9)
    assert report.dropped == {"not valid JSON": 9}
    assert [row.line for row in report.examples] == [1, 2, 3]


def test_a_truncated_archive_names_the_last_good_line(tmp_path):
    rows = [{"question": f"{i} + {i * i}?", "answer": f"#### {i + i * i}"} for i in range(2000)]
    path = write(tmp_path / "gsm8k" / "test.jsonl.gz", *rows)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"truncated after line \d+ .*download the file again"):
        read_problems("gsm8k", "test", tmp_path)


def test_plain_jsonl_is_read_like_the_compressed_file(tmp_path):
    write(tmp_path / "multiarith" / "all.jsonl", {"question": "1+1?", "final_ans": "2"})
    assert load_problems("multiarith", "all", tmp_path)[0].answer == "2"


def test_source_and_id_say_where_a_problem_comes_from(tmp_path):
    rows = [{"question": f"{i}?", "final_ans": "2"} for i in range(3)]
    write(tmp_path / "multiarith" / "all.jsonl.gz", *rows)
    problems = load_problems("multiarith", "all", tmp_path)
    assert [(p.source, p.id) for p in problems] == [("multiarith/all", i) for i in "123"]


def test_limit_counts_usable_problems(tmp_path):
    rows = [b"?", *({"question": f"{i}?", "answer": f"#### {i}"} for i in range(9))]
    write(tmp_path / "gsm8k" / "test.jsonl.gz", *rows)
    assert [p.answer for p in load_problems("gsm8k", "test", tmp_path, limit=2)] == ["0", "1"]
    with pytest.raises(ValueError, match="limit=0 must be at least 1"):
        load_problems("gsm8k", "test", tmp_path, limit=0)


def test_the_environment_variable_is_the_default_data_root(tmp_path, monkeypatch):
    write(tmp_path / "gsm8k" / "test.jsonl.gz", {"question": "1+1?", "answer": "#### 2"})
    monkeypatch.setenv("THINKHEAD_DATA", str(tmp_path))
    assert len(load_problems("gsm8k", "test")) == 1
    assert available_splits("gsm8k") == ("test",)


def test_dropped_rows_are_warned_of(tmp_path, caplog):
    write(tmp_path / "gsm8k" / "test.jsonl.gz", {"question": "1?", "answer": "#### 1"}, b"?")
    load_problems("gsm8k", "test", tmp_path)
    assert "1 of 2 rows dropped (not valid JSON: 1), the first in line 2" in caplog.text


def test_a_file_without_one_usable_row_is_an_error(tmp_path):
    write(tmp_path / "gsm8k" / "test.jsonl.gz", {"frage": "1?"})
    with pytest.raises(ValueError, match=r"has no usable row among 1.*missing field answer"):
        load_problems("gsm8k", "test", tmp_path)


def test_an_unknown_name_suggests_the_nearest_one():
    with pytest.raises(ValueError, match=r"'gsm8'; did you mean 'gsm8k'\? Known: .*math500"):
        load_problems("gsm8", "train")


def test_an_unknown_split_lists_the_splits():
    with pytest.raises(ValueError, match=r"split='dev' is not one of arc_easy: train, validation"):
        load_problems("arc_easy", "dev")


def test_a_missing_data_root_and_a_missing_file_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere' is not a folder; .*NAME/SPLIT\.jsonl\.gz"):
        load_problems("gsm8k", "train", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"train\.jsonl\.gz \(or \.jsonl\) is missing; .*Hub"):
        load_problems("gsm8k", "train", tmp_path)


def fake_hub(monkeypatch, parts):
    """load_dataset that answers from {(id, config, split): rows} and raises what it finds there."""

    def load_dataset(hub_id, config, *, split):
        found = parts[hub_id, config, split]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(hub_rows, "load_dataset", load_dataset)


def test_without_a_data_root_all_parts_are_read_from_the_hub(monkeypatch):
    tasks = dict(SOURCES["bbh"].hub_parts["test"])
    fake_hub(
        monkeypatch,
        {("lukaemon/bbh", t, s): [{"input": t, "target": "no"}] for t, s in tasks.items()},
    )
    problems = load_problems("bbh", "test", data_root="")
    assert len(problems) == 27
    assert all(p.question == p.level for p in problems)  # the configuration is the task
    assert len({p.id for p in problems}) == 27


def test_an_unreachable_hub_is_one_line_with_the_way_out(monkeypatch):
    error = ConnectionError("Couldn't reach\n'openai/gsm8k' on the Hub")
    fake_hub(monkeypatch, {("openai/gsm8k", "main", "test"): error})
    with pytest.raises(
        ValueError, match=r"Couldn't reach 'openai/gsm8k'.*THINKHEAD_DATA"
    ) as caught:
        load_problems("gsm8k", "test", data_root="")
    assert "\n" not in str(caught.value)


def test_a_gated_data_set_says_where_to_accept_its_terms(monkeypatch, tmp_path):
    error = FileNotFoundError("Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub.")
    fake_hub(monkeypatch, {("Idavidrein/gpqa", "gpqa_diamond", "train"): error})
    # No local copy is expected of gpqa, so the Hub is asked although there is a data root.
    with pytest.raises(ValueError, match=r"huggingface\.co/datasets/Idavidrein/gpqa.*hf auth"):
        load_problems("gpqa_diamond", "test", tmp_path)


def test_a_split_that_the_hub_lacks_names_the_file_to_bring():
    with pytest.raises(ValueError, match=r"has: labelled\); give data_root.*pubmedqa/test\.jsonl"):
        load_problems("pubmedqa", "test", data_root="")


def test_generated_problems_come_before_the_data_sets(monkeypatch):
    made = [Problem(question="1+1?", answer="2")]
    monkeypatch.setitem(GENERATED, "sums", lambda split, limit: made[:limit])
    assert load_problems("sums", "train", limit=1) == made
    assert read_problems("sums", "train").rows_read == 1


@mirror
@pytest.mark.parametrize(
    ("name", "split", "rows", "dropped"),
    [
        ("gsm8k", "train", 7473, {}),
        ("gsm8k", "test", 1319, {}),
        ("math", "train", 7500, {"no answer": 2}),  # their solutions end in an empty \boxed{}
        ("math", "test", 5000, {}),
    ],
)
def test_gsm8k_and_math_are_read_completely(name, split, rows, dropped):
    report = read_problems(name, split, MIRROR)
    assert (report.rows_read, report.dropped) == (rows, dropped)


@mirror
@pytest.mark.parametrize("name", [n for n in SOURCES if (MIRROR / SOURCES[n].folder).is_dir()])
def test_every_file_of_the_mirror_adds_up(name):
    splits = available_splits(name, MIRROR)
    assert splits
    for split in splits:
        report = read_problems(name, split, MIRROR)
        assert report.rows_read == report.kept + sum(report.dropped.values())
        assert report.kept > 0.95 * report.rows_read
        assert len({problem.id for problem in report.problems}) == report.kept
        for problem in report.problems:
            assert not problem.choices or problem.answer in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@mirror
def test_gsm8k_answers_are_plain_numbers():
    for split in ("train", "test"):
        for problem in load_problems("gsm8k", split, MIRROR):
            float(problem.answer)


@mirror
def test_math500_answers_are_what_math_boxes():
    boxed_answers = {p.id: p.answer for p in load_problems("math", "test", MIRROR)}
    assert all(boxed_answers[p.id] == p.answer for p in load_problems("math500", "test", MIRROR))
