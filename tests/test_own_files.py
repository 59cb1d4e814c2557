"""Own data as files, saved folders and Hub ids: what is read, and what is refused how."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from pipeline.config import DataConfig, OwnDataConfig, parse_mixture
from pipeline.data import hub_rows
from pipeline.data.problems import read_problems, stream_problems
from pipeline.records import Problem
from stages.training_problems import training_problems

ROWS = [
    {"question": f"{n} pens and é?", "thought": f"{n}+1={n + 1}", "answer": f"{n + 1}"}
    for n in range(120)
]


def write(path: Path, content: str | bytes) -> str:
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def as_csv(path: Path, separator: str = ",", encoding: str = "utf-8") -> str:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, ROWS[0], delimiter=separator)
        writer.writeheader()
        writer.writerows(ROWS)
    return str(path)


def lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, str]:
    """{kind of data: its path}, all with ROWS."""
    root = tmp_path_factory.mktemp("own")
    data = Dataset.from_list(ROWS)
    data.to_parquet(root / "a.parquet")
    data.save_to_disk(root / "saved")
    DatasetDict({"train": data, "test": data.select(range(3))}).save_to_disk(root / "splits")
    found = {
        "jsonl": write(root / "a.jsonl", lines(ROWS)),
        "jsonl.gz": write(root / "a.jsonl.gz", lines(ROWS)),
        "json": write(root / "a.json", json.dumps(ROWS, indent=1)),
        "json.gz": write(root / "a.json.gz", json.dumps({"data": ROWS})),
        "json lines": write(root / "lines.json", lines(ROWS)),
        "csv": as_csv(root / "a.csv"),
        "csv with semicolons and a byte order mark": as_csv(root / "b.csv", ";", "utf-8-sig"),
        "jsonl with a byte order mark": write(root / "b.jsonl", "\ufeff" + lines(ROWS)),
        "parquet": str(root / "a.parquet"),
        "saved folder": str(root / "saved"),
        "saved folder with splits": str(root / "splits"),
    }
    found["csv.gz"] = write(root / "a.csv.gz", Path(found["csv"]).read_bytes())
    found["parquet.gz"] = write(root / "a.parquet.gz", Path(found["parquet"]).read_bytes())
    return found


def texts(problems: list[Problem]) -> list[tuple[str, str, str]]:
    return [(p.question, p.thought, p.answer) for p in problems]


def test_every_kind_of_own_data_has_the_same_problems(kinds):
    wanted = [tuple(row.values()) for row in ROWS]
    for kind, path in kinds.items():
        report = read_problems(path, "train")
        assert texts(report.problems) == wanted, kind
        assert (report.rows_read, report.dropped) == (len(ROWS), {}), kind
        assert report.problems[0].source == path


def test_a_stream_has_the_problems_of_the_file(kinds):
    for kind in ("jsonl.gz", "csv", "parquet", "saved folder"):
        streamed = list(stream_problems(kinds[kind], "train"))
        assert streamed == read_problems(kinds[kind], "train").problems, kind


MMLU = [
    {"question": "Find the order of Z_4.", "choices": ["1", "0", "3", "2"], "answer": 1},
    {"question": "How many roots has x^2-1?", "choices": ["3", "1", "0", "2"], "answer": 3},
    {"question": "Capital of France?", "choices": ["Rome", "Paris", "Bonn", "Oslo"], "answer": 1},
]


def test_integers_of_a_multiple_choice_file_are_indices_where_all_of_them_can_be(tmp_path):
    path = tmp_path / "mmlu.parquet"
    Dataset.from_list(MMLU).to_parquet(path)
    assert [p.answer for p in read_problems(str(path), "test").problems] == ["B", "D", "B"]
    assert [p.answer for p in stream_problems(str(path), "test")] == ["B", "D", "B"]
    beyond = write(tmp_path / "a.jsonl", lines(MMLU * 34 + [MMLU[2] | {"answer": 4}]))
    assert read_problems(beyond, "test").dropped == {"answer is not among the options": 1}


def test_an_integer_that_is_no_index_of_its_options_is_a_text_and_doubtful_rows_are_dropped(
    tmp_path,
):
    five = {"question": "2+3?", "choices": ["3", "5"], "answer": 5}
    path = write(tmp_path / "a.jsonl", lines([five]))
    assert [p.answer for p in read_problems(path, "test").problems] == ["B"]
    doubtful = "answer is the text of one option and the index of another"
    path = write(tmp_path / "b.jsonl", lines([five, *MMLU]))
    report = read_problems(path, "test")
    assert [p.answer for p in report.problems] == ["B", "B"] and report.dropped == {doubtful: 2}
    digits = {"question": "How many?", "choices": ["2", "3", "4", "5"]}
    path = write(tmp_path / "d.jsonl", lines([digits | {"answer": n} for n in (3, 5, 4, 2, 5, 3)]))
    assert "".join(p.answer for p in read_problems(path, "test").problems) == "BDCADB"
    # Nothing tells whether these are indices: in every row the text of an option fits as well.
    path = write(tmp_path / "c.jsonl", lines(MMLU[:2]))
    with pytest.raises(ValueError, match=doubtful):
        read_problems(path, "test")


def test_integers_that_count_the_options_from_one_are_refused(tmp_path):
    capital = {"question": "Capital?", "choices": ["Rome", "Oslo", "Bern"]}
    path = write(tmp_path / "a.jsonl", lines([capital | {"answer": n} for n in (1, 2, 3)]))
    with pytest.raises(ValueError, match="counts the options from 1"):
        read_problems(path, "test")
    # With a 0 they count from 0, and one number is too large.
    path = write(tmp_path / "b.jsonl", lines([capital | {"answer": n} for n in (0, 2, 3)]))
    assert [p.answer for p in read_problems(path, "test").problems] == ["A", "C"]


def test_digits_of_a_csv_file_are_indices_of_options_unless_one_is_the_text_of_an_option(tmp_path):
    def read(options: str, answers: str) -> str:
        rows = [f'"Which?","{options}",{answer}' for answer in answers]
        path = write(tmp_path / "a.csv", "\n".join(["question,choices,answer", *rows]))
        return "".join(p.answer for p in read_problems(path, "test").problems)

    assert read('[""Rome"", ""Oslo""]', "010") == "ABA"
    assert read('[""1"", ""2"", ""5""]', "210") == "BA"  # 0 is no text
    with pytest.raises(ValueError, match="counts the options from 1"):
        read('[""Rome"", ""Oslo""]', "12")


def test_options_with_their_own_letters_are_written_with_one_letter_each(tmp_path):
    capital = {"question": "Capital of Norway?", "choices": ["A) Rome", "B) Oslo"]}
    path = write(tmp_path / "a.jsonl", lines([capital | {"answer": a} for a in ("B", "B) Oslo")]))
    for problem in read_problems(path, "test").problems:
        assert problem.question == "Capital of Norway?\nA) Rome\nB) Oslo"
        assert problem.answer == "B"


def test_a_letter_that_is_also_the_text_of_another_option_is_dropped(tmp_path):
    blood = {"question": "Which type?", "choices": ["O", "A", "B", "AB"]}
    path = write(
        tmp_path / "a.jsonl", lines([blood | {"answer": a} for a in ("A", "O", "D", "AB")])
    )
    report = read_problems(path, "test")
    assert [p.answer for p in report.problems] == ["A", "D", "D"]
    assert report.dropped == {"answer is the text of one option and the letter of another": 1}


@pytest.mark.parametrize("bits", [16, 32])
def test_a_short_float_of_a_table_is_the_decimal_that_it_was_written_from(tmp_path, bits):
    kind = pyarrow.float16() if bits == 16 else pyarrow.float32()
    texts = pyarrow.array(["a?", "b?", "c?"])
    answers = pyarrow.array(np.array([0.1, 2.5, 3], dtype=f"float{bits}"), kind)
    scores = pyarrow.array([[0.1], None, []], pyarrow.list_(pyarrow.float32()))
    inside = pyarrow.StructArray.from_arrays([answers, scores], ["truth", "scores"])
    table = pyarrow.table({"question": texts, "answer": answers, "record": inside})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    Dataset(table).save_to_disk(tmp_path / "saved")
    for path, columns in (("a.parquet", None), ("a.parquet", "record.truth"), ("saved", None)):
        own = OwnDataConfig(columns=columns and f"question=question,answer={columns}")
        report = read_problems(str(tmp_path / path), "train", own=own)
        assert [p.answer for p in report.problems] == ["0.1", "2.5", "3"], path
    assert next(p.answer for p in stream_problems(str(tmp_path / "saved"), "train")) == "0.1"


def test_a_mixture_has_registered_names_and_own_files(kinds):
    data = DataConfig(dataset=f"nano=1,{kinds['jsonl']}=2", size=30, overlap="allow")
    sources = [problem.source for problem in training_problems(data, seed=0)]
    assert sources.count(kinds["jsonl"]) == 20 and len(sources) == 30


def test_a_path_may_contain_an_equals_sign():
    assert parse_mixture("a=b/c.csv=2,nano=1") == {"a=b/c.csv": 2.0, "nano": 1.0}


def test_rows_that_a_suite_has_are_dropped_from_own_data(tmp_path, capsys):
    held_out = read_problems("nano", "test").problems[0]
    rows = [*ROWS[:2], {"question": held_out.question, "thought": "", "answer": "1"}]
    path = write(tmp_path / "a.jsonl", lines(rows))
    found = training_problems(DataConfig(dataset=path, data_root=""), seed=0)
    assert texts(found) == [tuple(row.values()) for row in ROWS[:2]]
    assert "1 in nano/test also there and dropped" in capsys.readouterr().out


def test_a_hub_data_set_is_loaded_with_configuration_split_and_revision(monkeypatch):
    asked = []

    def load(*place, **options):
        asked.append((place, options))
        return Dataset.from_list(ROWS[:2])

    monkeypatch.setattr(hub_rows, "load_dataset", load)
    own = OwnDataConfig(dataset_config="main", dataset_split="train[:2]", dataset_revision="v1")
    assert len(read_problems("user/name", "train", own=own).problems) == 2
    assert len(read_problems("user/name", "test").problems) == 2
    assert asked == [
        (("user/name", "main"), {"split": "train[:2]", "revision": "v1"}),
        (("user/name", None), {"split": "test"}),
    ]


def test_cells_that_are_missing_empty_or_no_text_are_dropped_and_counted(tmp_path, capsys):
    rows = [
        {"question": "one?", "answer": 1},
        {"question": None, "answer": "2"},
        {"answer": "2"},
        {"question": "  ", "answer": "2"},
        {"question": "two?", "answer": ["2"]},
        {"question": "three?", "answer": {"x": 1}},
        {"question": "four?", "answer": ""},
    ]
    path = write(tmp_path / "a.jsonl", lines(rows))
    found = training_problems(DataConfig(dataset=path, overlap="allow"), seed=0)
    assert texts(found) == [("one?", "", "1")]
    printed = capsys.readouterr().out
    assert "columns guessed: question=question, answer=answer" in printed
    assert (
        f"{path}: 7 rows read, dropped: 2 missing field question, 1 empty question, "
        "2 field answer is not text, 1 empty answer" in printed
    )


BROKEN = {
    "ragged CSV": ("a.csv", "question,answer\n1+1?,2\n1,000?,3,4\n", "line 3: 4 cells"),
    "not gzip": ("a.jsonl.gz", lines(ROWS), "line 1: the file is not gzip"),
    "duplicate header": ("a.csv", "question,answer,answer\na,b,c\n", "line 1: .*'answer' more"),
    "wrong encoding": ("a.csv", "question,answer\ncafé?,2\n".encode("latin1"), "line 2: byte 4"),
    "UTF-16": ("a.csv", "question,answer\na,2\n".encode("utf-16"), "line 1: byte 1 is 0xff"),
    "empty": ("a.jsonl", "", "no rows"),
    "a header alone": ("a.csv", "question,answer\n", "no rows"),
    "no JSON": ("a.jsonl", lines(ROWS[:1]) + '{"question": \n', "line 2: not valid JSON"),
    "no JSON list": ("a.json", '[\n{"question": "1"},\n{"q"}]', "line 3: not valid JSON"),
    "a list as row": ("a.jsonl", '["1+1?", "2"]\n', "line 1: a row must be an object"),
    "long number": ("a.jsonl", '{"question":1,"answer":' + "9" * 5000 + "}", "line 1: .*digits"),
    "long number in a list": ("a.json", "[" + "9" * 5000 + "]", "line 1: .*digits"),
    "too deep": ("a.jsonl", '{"question":' + "[" * 99999 + "]" * 99999 + "}", "line 1: .*nested"),
    "an open quote": ("a.csv", 'question,answer\n"a,2\nb,3\n', "line 2: not valid CSV"),
    "no Parquet": ("a.parquet", "question", "row 1: not a Parquet file"),
    "wrong column": ("a.jsonl", lines([{"frage": "1?", "antwort": "2"}]), "frage, antwort; name"),
    "a list as answer": ("a.jsonl", lines([{"question": "1?", "answer": [2]}]), "row 1: field ans"),
    "null": ("a.jsonl", lines([{"question": "1?", "answer": None}]), "row 1: missing field answer"),
    "nested": ("a.jsonl", lines([{"question": {"text": "1?"}, "answer": "2"}]), "row 1: field que"),
    "unknown suffix": ("a/rows.xml", "1+1?", "must end in one of .jsonl"),
    "absent": ("b/a.jsonl", None, "does not exist"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_one_line_with_file_row_rule_and_remedy(fault, tmp_path):
    name, content, message = BROKEN[fault]
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message) as error:
        read_problems(str(path), "train")
    text = str(error.value)
    assert str(path) in text and "\n" not in text and ";" in text


def test_a_line_of_a_hundred_megabytes_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"question": "')
        for _ in range(100):
            file.write(b"a" * 2**20)
    with pytest.raises(ValueError, match="line 1: the line is longer than 16 MiB"):
        read_problems(str(path), "train")


def test_a_truncated_gzip_file_is_refused_with_its_row(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(ROWS).encode())[:-20])
    with pytest.raises(ValueError, match=r"line \d+: the gzip data is damaged"):
        read_problems(str(path), "train")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("question=frag,answer=antwort", "no column 'frag'; did you mean 'frage'"),
        ("frage=question", "'frage' is no role"),
        ("question", "gives question no column"),
        ("question=frage,question=antwort", "names a role twice"),
        ("{", "not valid JSON"),
    ],
)
def test_columns_that_cannot_be_are_refused(columns, message, tmp_path):
    path = write(tmp_path / "a.jsonl", lines([{"frage": "1+1?", "antwort": "2"}]))
    with pytest.raises(ValueError, match=message):
        read_problems(path, "train", own=OwnDataConfig(columns=columns))


def test_columns_may_be_a_mapping_as_in_yaml(tmp_path):
    path = write(tmp_path / "a.jsonl", lines([{"a,b=c": "1+1?", "antwort": "2"}]))
    data = DataConfig(dataset=path, columns={"question": "a,b=c", "answer": "antwort"})
    assert texts(read_problems(path, "train", own=data).problems) == [("1+1?", "", "2")]


def test_options_of_the_hub_are_refused_for_a_file_and_a_wrong_split_is_named(kinds):
    with pytest.raises(ValueError, match="is a file, which has no dataset_split"):
        read_problems(kinds["csv"], "train", own=OwnDataConfig(dataset_split="test"))
    with pytest.raises(ValueError, match="--dataset_split takes one of train, test"):
        read_problems(kinds["saved folder with splits"], "dev")
    own = OwnDataConfig(dataset_split="test")
    assert len(read_problems(kinds["saved folder with splits"], "train", own=own).problems) == 3
