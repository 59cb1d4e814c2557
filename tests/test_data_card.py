"""The data card: the account of what was read, as a table and as JSON."""

import gzip
import json

import pytest

from pipeline.data.card import data_card, lengths
from pipeline.data.problems import ReadReport
from pipeline.records import Problem
from stages.data import DataCardConfig, graded_golds, main


def report(*questions: str, dropped: dict[str, int] | None = None) -> ReadReport:
    problems = [Problem(question=question, answer="10") for question in questions]
    lost = dropped or {}
    return ReadReport(problems=problems, rows_read=len(problems) + sum(lost.values()), dropped=lost)


def write_gsm8k(root, split: str, *questions: str) -> None:
    path = root / "gsm8k" / f"{split}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"question": q, "answer": "1+1 = 2\n#### 2"}) for q in questions]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join([*rows, "not a row"]) + "\n")


def test_lengths_are_the_median_and_the_95th_percentile():
    texts = ["x" * n for n in range(101)]  # 0 to 100 characters
    assert lengths(texts) == {"median": 50, "p95": 95}
    assert lengths([]) == {"median": 0, "p95": 0}


def test_a_split_card_accounts_for_every_row():
    card = data_card({"a/train": report("one?", "one?", "three?", dropped={"no answer": 2})})
    split = card["splits"]["a/train"]
    assert split["rows_read"] == split["kept"] + sum(split["dropped"].values()) == 5
    assert split["characters"]["question"]["median"] == 4
    assert split["characters"]["answer"]["median"] == 2
    assert split["duplicates"]["exact"] == 1
    assert card["shared"] == []


def test_shared_questions_are_listed_for_every_pair_of_splits_that_has_some():
    reports = {"a/train": report("p?", "q?"), "a/test": report("Q ?"), "b/test": report("r?")}
    (row,) = data_card(reports)["shared"]
    assert row == {
        "in": "a/train",
        "also_in": "a/test",
        "exact": 0,
        "normalised": 1,
        "ngram": 0,
        "number_swapped": 0,
    }


def test_the_stage_writes_the_card_and_prints_the_table(tmp_path, capsys):
    write_gsm8k(tmp_path / "data", "train", "p?", "q?")
    write_gsm8k(tmp_path / "data", "test", "q?")
    out = tmp_path / "out"
    main(DataCardConfig(names="gsm8k", data_root=str(tmp_path / "data"), output_dir=str(out)))

    card = json.loads((out / "data_card.json").read_text(encoding="utf-8"))
    assert list(card["splits"]) == ["gsm8k/train", "gsm8k/test"]
    assert card["splits"]["gsm8k/train"]["dropped"] == {"not valid JSON": 1}
    assert card["splits"]["gsm8k/train"]["dropped_examples"][0]["line"] == 3
    assert card["shared"][0]["exact"] == 1
    printed = capsys.readouterr().out
    assert "gsm8k/train" in printed and "Shared questions" in printed


def test_lengths_in_tokens_are_counted_and_plotted(tmp_path, tokenizer):
    write_gsm8k(tmp_path / "data", "train", "p?", "q?")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    out = tmp_path / "out"
    config = DataCardConfig(
        names="all",
        data_root=str(tmp_path / "data"),
        output_dir=str(out),
        tokenizer=str(tmp_path / "tokenizer"),
    )
    main(config)
    tokens = json.loads((out / "data_card.json").read_text())["splits"]["gsm8k/train"]["tokens"]
    assert tokens["question"]["median"] == len(tokenizer.encode("p?", add_special_tokens=False))
    assert (out / "token_lengths.png").read_bytes().startswith(b"\x89PNG")


def test_expected_answers_are_graded_and_a_refused_one_is_named():
    good = Problem(question="?", thought=r"so \boxed{\frac12}", answer=r"\frac12", id="1")
    broken = Problem(question="?", thought="a</think>b", answer="2", id="2")
    found = graded_golds([good, broken])
    assert (found["graded"], found["accepted"], found["refused"]) == (2, 1, ["2: 2"])


def test_the_stage_refuses_a_data_set_without_files(tmp_path):
    with pytest.raises(ValueError, match="math has no split here; give a data_root"):
        main(DataCardConfig(names="math", data_root=str(tmp_path), output_dir=str(tmp_path)))


def test_brackets_of_names_and_answers_are_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"question": "Which?", "thought": "a</think>b", "answer": "[a, b] of [/x]"}
    (tmp_path / "c[d].jsonl").write_text(json.dumps(row) + "\n")
    main(DataCardConfig(names="c[d].jsonl", golds=True, output_dir="out[e]"))
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("c[d].jsonl", "[a, b] of [/x]", "wrote out[e]"))
