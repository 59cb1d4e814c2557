"""Documents of pretraining: what is read, dropped and held out, and how the rest is packed."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest

from pipeline.config import DataConfig
from pipeline.data import load_problems, read_problems
from pipeline.pretrain.dataset import packed_blocks, split_documents
from pipeline.pretrain.documents import document, is_held_out, without_repeats
from pipeline.pretrain.packing import BlockCollator, PackTexts
from pipeline.records import Problem
from stages.training_problems import training_problems
from tests.test_pretrain import TEXTS, data_of, write_txt

# ---- documents ----


def test_a_problem_is_its_question_thought_and_answer_as_plain_text():
    problem = Problem(question="2+3?", thought="2+3=5", answer="5", turns=(("user", "Hi"),))
    assert document(problem) == "Hi\n2+3?\n2+3=5\n5"
    assert document(problem, think=False) == "Hi\n2+3?\n5"
    assert document(replace(problem, direct=True)) == "Hi\n2+3?\n5"
    assert document(Problem(question="A text.", answer="")) == "A text."


def test_repeated_and_nearly_repeated_documents_are_dropped_and_counted():
    long = " ".join(f"word{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10]}" for i in range(100))
    changed = long + " and another end"  # 93 of 96 8-grams
    other = " ".join(reversed(long.split()))
    texts = [long, TEXTS[0], long, TEXTS[0].upper(), changed, other, "2+3=5", "2+4=6"]
    dropped: Counter[str] = Counter()
    assert list(without_repeats(texts, dropped)) == [long, TEXTS[0], other, "2+3=5", "2+4=6"]
    assert dropped == {"exact": 1, "normalised": 1, "near": 1}
    assert changed in list(without_repeats(texts, Counter(), near=False))


def test_a_document_and_its_variants_are_on_the_same_side_whatever_the_others_are():
    sides = [is_held_out(f"text {i}", 0.25) for i in range(2000)]
    assert sides == [is_held_out(f"  TEXT   {i}", 0.25) for i in range(2000)]
    assert 0.2 < sum(sides) / 2000 < 0.3
    larger = [is_held_out(f"text {i}", 0.5) for i in range(2000)]
    assert all(b for a, b in zip(sides, larger, strict=True) if a)


@pytest.mark.parametrize("streaming", [False, True])
def test_held_out_documents_are_not_trained_on(tokenizer, streaming, tmp_path):
    data = data_of(write_txt(tmp_path), streaming=streaming)
    problems = read_problems(data.dataset, "train", own=data).problems
    documents = split_documents(lambda: problems, data)
    assert 0 < len(documents.held_out) < len(TEXTS)
    train, held_out = packed_blocks(documents, tokenizer, data, max_length=4096, seed=0)

    def read(blocks: Iterable[dict]) -> list[str]:
        ids = [token_id for block in blocks for token_id in block["input_ids"]]
        return sorted(tokenizer.decode(ids).split("<eos>")[:-1])

    assert read(held_out) == sorted(documents.held_out)
    assert read(train) == sorted(set(TEXTS) - set(documents.held_out))


def test_a_question_of_an_evaluation_suite_inside_a_text_is_dropped(tmp_path, capsys):
    asked = max((p.question for p in load_problems("nano", "test")), key=len)
    path = write_txt(tmp_path, [*TEXTS, f"It is asked: {asked} Who knows?"])
    problems = training_problems(data_of(path, overlap="drop", data_root=str(tmp_path)), seed=0)
    assert [p.question for p in problems] == TEXTS


# ---- own text ----


def test_a_paragraph_of_a_text_file_is_a_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\nOne\nline.\n \n\nTwo.", encoding="utf-8")
    found = read_problems(str(path), "train", own=data_of(str(path))).problems
    assert [(p.question, p.answer, p.id) for p in found] == [
        ("One\nline.", "", "3"),
        ("Two.", "", "7"),
    ]


@pytest.mark.parametrize(
    ("row", "columns", "text"),
    [
        ({"content": "A text.", "url": "u"}, None, "A text."),
        ({"title": "T", "body": "B"}, "text=title+body", "T\n\nB"),
        ({"question": "2+3?", "answer": "5", "text": "A text."}, None, "2+3?\n5"),
        ({"question": "2+3?", "answer": "5", "text": "A text."}, "text=text", "A text."),
    ],
)
def test_a_text_column_is_used_where_it_is_named_or_nothing_else_is_there(
    tmp_path, row, columns, text
):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    (found,) = read_problems(str(path), "train", own=data_of(str(path), columns=columns)).problems
    assert document(found) == text


def test_a_text_column_is_refused_for_other_stages(tmp_path):
    data = DataConfig(dataset=write_txt(tmp_path), columns="text=text", overlap="allow")
    with pytest.raises(ValueError, match=r"is for stages\.pretrain; this command needs"):
        training_problems(data, seed=0)


# ---- blocks ----


def test_documents_are_packed_with_end_tokens_and_labels_by_hand(tokenizer):
    ids = tokenizer.encode("1+1", add_special_tokens=False)
    assert len(ids) == 3
    end = tokenizer.eos_token_id
    blocks = PackTexts(tokenizer, 5)({"text": ["1+1", "1+1"]})["input_ids"]
    assert blocks == [[*ids, end, ids[0]], [*ids[1:], end]]
    batch = BlockCollator(pad_id=end)([{"input_ids": block} for block in blocks])
    assert batch["input_ids"].tolist() == [[*ids, end, ids[0]], [*ids[1:], end, end, end]]
    assert batch["labels"].tolist() == [
        [-100, *ids[1:], end, ids[0]],
        [-100, ids[2], end, -100, -100],
    ]
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 3]


@pytest.mark.parametrize("bos", [True, False])
def test_documents_begin_with_bos_where_the_tokenizer_begins_every_text_with_it(
    make_tokenizer, tmp_path, bos
):
    tokenizer = make_tokenizer(bos=bos)
    start = [tokenizer.bos_token_id] if bos else []
    first, second = (tokenizer(t, add_special_tokens=False).input_ids for t in ("ab", "cd"))
    assert tokenizer("ab").input_ids == [*start, *first]
    end = tokenizer.eos_token_id
    (block,) = PackTexts(tokenizer, 64)({"text": ["ab", "cd"]})["input_ids"]
    assert block == [*start, *first, end, *start, *second, end]
    data = data_of(write_txt(tmp_path), held_out_share=0.5)
    problems = training_problems(data, seed=0)
    documents = split_documents(lambda: problems, data)
    for blocks in packed_blocks(documents, tokenizer, data, max_length=4096, seed=0):
        ids = blocks[0]["input_ids"]
        assert ids.count(end) > 0 and ids.count(tokenizer.convert_tokens_to_ids("<s>")) == (
            ids.count(end) if bos else 0
        )


def test_a_control_token_written_in_a_document_is_text(tokenizer):
    (block,) = PackTexts(tokenizer, 99)({"text": ["a<eos>b<|user|>"]})["input_ids"]
    assert block.count(tokenizer.eos_token_id) == 1 and block[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(block[:-1]) == "a<eos>b<|user|>"
