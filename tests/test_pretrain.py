"""Pretraining: what is trained on, how it is packed, what is measured, and what follows."""

import copy
import json
import math
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM

from pipeline.config import ModelConfig, StageConfig
from pipeline.data import load_problems, read_problems
from pipeline.hub.facts import read_facts
from pipeline.model import load_policy
from pipeline.model.atomic import newest_intact, weights_fingerprint
from pipeline.pretrain.config import PretrainConfig, PretrainDataConfig
from pipeline.pretrain.dataset import packed_blocks, split_documents
from pipeline.pretrain.documents import document, is_held_out, without_repeats
from pipeline.pretrain.packing import BlockCollator, PackTexts
from pipeline.pretrain.perplexity import held_out_loss, perplexity
from pipeline.pretrain.trainer import PretrainTrainer
from pipeline.records import Problem
from stages import pretrain, sft
from stages.common import training_problems
from tests.test_stages import InterruptAt

ADVICE = "ann and bob ask how many red hens carl sells to nine men if two of them eat eggs"
TEXTS = [" ".join(random.Random(i).sample(ADVICE.split(), 14)) + f" {i}" for i in range(24)]


def write_txt(folder: Path, texts: list[str] = TEXTS) -> str:
    path = folder / "mine.txt"
    path.write_text("\n\n".join(texts) + "\n")
    return str(path)


def data_of(path: str, **options: object) -> PretrainDataConfig:
    return PretrainDataConfig(
        **{"dataset": path, "held_out_share": 0.2, "overlap": "allow", **options}
    )


def args_of(folder: Path, **options: object) -> PretrainConfig:
    defaults = {
        "max_length": 16,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 4,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "eval_steps": 4,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return PretrainConfig(output_dir=str(folder), **{**defaults, **options})


TINY = ModelConfig(
    nano_hidden_size=32,
    nano_layers=1,
    nano_heads=2,
    nano_intermediate_size=64,
    nano_vocab_size=300,
)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# ---- documents ----


def test_a_problem_is_its_question_thought_and_answer_as_plain_text():
    problem = Problem(question="2+3?", thought="2+3=5", answer="5", turns=(("user", "Hi"),))
    assert document(problem) == "Hi\n2+3?\n2+3=5\n5"
    assert document(problem, think=False) == "Hi\n2+3?\n5"
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


def test_a_control_token_written_in_a_document_is_text(tokenizer):
    (block,) = PackTexts(tokenizer, 99)({"text": ["a<eos>b<|user|>"]})["input_ids"]
    assert block.count(tokenizer.eos_token_id) == 1 and block[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(block[:-1]) == "a<eos>b<|user|>"


# ---- perplexity ----


class Uniform(nn.Module):
    def forward(self, input_ids: torch.Tensor, **_: object) -> dict[str, torch.Tensor]:
        return {"logits": torch.zeros(*input_ids.shape, 320)}


def test_the_perplexity_of_a_uniform_model_is_the_vocabulary_size():
    blocks = [{"input_ids": [1, 2, 3, 4]}, {"input_ids": [5, 6]}]
    loss = held_out_loss(Uniform(), [BlockCollator(0)(blocks)], Accelerator(cpu=True))
    assert perplexity(loss) == pytest.approx(320)


def test_every_token_weighs_the_same_however_the_blocks_are_batched(tiny_policy):
    blocks = [{"input_ids": ids} for ids in ([1, 2, 3, 4, 5, 6], [7, 8], [9, 10, 11])]
    collate, accelerator = BlockCollator(0), Accelerator(cpu=True)
    one = held_out_loss(tiny_policy, [collate(blocks)], accelerator)
    each = held_out_loss(tiny_policy, [collate([block]) for block in blocks], accelerator)
    assert one == pytest.approx(each, rel=1e-6)


# ---- training ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of the stage on a text file, with its log."""
    folder = tmp_path_factory.mktemp("pretrain")
    data = data_of(write_txt(folder), overlap="drop", data_root=str(folder))
    return pretrain.run(TINY, data, args_of(folder / "out", num_train_epochs=6))


def test_the_loss_and_the_held_out_perplexity_fall(trained):
    rows = log_of(trained)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    measured = [(row["step"], row["eval/perplexity"]) for row in rows if "eval/perplexity" in row]
    assert len(measured) > 2 and measured[-1][1] < 0.5 * measured[0][1]
    state = json.loads((trained / "trainer_state.json").read_text())
    assert measured[-1][0] == state["global_step"]


def test_the_logged_perplexity_is_that_of_the_saved_model(trained, tmp_path):
    model, tokenizer = load_policy(trained)
    data = data_of(write_txt(tmp_path))
    problems = read_problems(data.dataset, "train", own=data).problems
    _, held_out = packed_blocks(
        split_documents(lambda: problems, data), tokenizer, data, max_length=16, seed=0
    )
    loss = held_out_loss(model, [BlockCollator(0)(list(held_out))], Accelerator(cpu=True))
    logged = [row["eval/perplexity"] for row in log_of(trained) if "eval/perplexity" in row]
    assert logged[-1] == pytest.approx(math.exp(loss), rel=1e-5)


def test_sft_goes_on_from_a_pretrained_checkpoint(trained, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(trained)
    assert plain.num_parameters() < 50_000
    words = "--shares wording=1 --size 8 --max_steps 1 --save_strategy no --disable_tqdm true"
    threads = torch.get_num_threads()
    sft.main(["--model", str(trained), "--output_dir", str(tmp_path / "sft"), *words.split()])
    torch.set_num_threads(threads)
    assert (tmp_path / "sft" / "model.safetensors").is_file()


def test_a_stream_is_trained_on_for_more_than_one_pass(tmp_path):
    data = data_of(write_txt(tmp_path), streaming=True, shuffle_buffer=4)
    folder = pretrain.run(TINY, data, args_of(tmp_path / "out", max_steps=12, eval_strategy="no"))
    rows = log_of(folder)
    assert rows[-1]["step"] == 12 and rows[-1]["eval/perplexity"] > 1
    assert max(row["epoch"] for row in rows) > 1


@pytest.mark.parametrize("scheduler", ["cosine", "warmup_stable_decay"])
def test_a_resumed_run_ends_bit_for_bit_as_the_unbroken_one(
    tiny_policy, tokenizer, tmp_path, scheduler
):
    blocks = Dataset.from_list([{"input_ids": list(range(9 + i % 3))} for i in range(20)])
    kwargs = {"num_decay_steps": 4} if scheduler == "warmup_stable_decay" else None

    def make(folder: Path) -> PretrainTrainer:
        options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
        args = args_of(folder, lr_scheduler_type=scheduler, lr_scheduler_kwargs=kwargs, **options)
        model = copy.deepcopy(tiny_policy)
        return PretrainTrainer(
            model,
            args,
            train_dataset=blocks,
            eval_dataset=blocks.select(range(2)),
            processing_class=tokenizer,
        )

    unbroken = make(tmp_path / "a")
    unbroken.train()
    resumed = make(tmp_path / "b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert newest_intact(tmp_path / "b")[0].name == "checkpoint-8"
    for one, two in zip(unbroken.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)
    losses = [
        [row["loss"] for row in t.state.log_history if "loss" in row] for t in (unbroken, resumed)
    ]
    assert losses[0] == losses[1]


def test_the_same_command_continues_after_ctrl_c(tmp_path, monkeypatch, capsys):
    words = ["--dataset", write_txt(tmp_path), "--overlap", "allow", "--save_strategy", "steps"]
    words += [
        "--held_out_share",
        "0.2",
        "--max_steps",
        "4",
        "--save_steps",
        "9",
        "--max_length",
        "16",
    ]
    words += [
        "--nano_hidden_size",
        "16",
        "--nano_layers",
        "1",
        "--nano_heads",
        "2",
        "--nano_vocab_size",
        "300",
    ]
    threads = torch.get_num_threads()

    def start(name: str) -> Path:
        pretrain.main([*words, "--disable_tqdm", "true", "--output_dir", str(tmp_path / name)])
        return tmp_path / name

    unbroken = start("unbroken")
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "push_callbacks", lambda *_: [InterruptAt(1)])
        with pytest.raises(SystemExit) as stopped:
            start("broken")
    assert stopped.value.code == 130 and (tmp_path / "broken" / "checkpoint-2").is_dir()
    capsys.readouterr()
    broken = start("broken")
    assert "holds an unfinished run, which is resumed" in capsys.readouterr().out
    torch.set_num_threads(threads)
    assert weights_fingerprint(load_policy(broken)[0]) == weights_fingerprint(
        load_policy(unbroken)[0]
    )
    assert read_facts(broken, set()).steps[0].stage == "pretrain"


# ---- mistakes ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"streaming": True}, "streaming=true has no length; give max_steps"),
        ({"held_out_share": 1e-9}, "of 24 documents is none, so perplexity cannot be measured"),
        ({"held_out_share": 0.999999}, "leaves none to train on; lower it"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        pretrain.run(TINY, data_of(write_txt(tmp_path), **change), args_of(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_prompt_is_refused():
    with pytest.raises(ValueError, match="few_shot is part of a prompt"):
        PretrainDataConfig(few_shot="3")


def test_without_held_out_documents_nothing_is_measured_and_a_dry_run_writes_nothing(
    tmp_path, capsys
):
    data = data_of(write_txt(tmp_path), held_out_share=0)
    pretrain.run(TINY, data, args_of(tmp_path / "dry"), StageConfig(dry_run=True))
    assert "first block: " in capsys.readouterr().out and not (tmp_path / "dry").exists()
    folder = pretrain.run(TINY, data, args_of(tmp_path / "out", max_steps=1))
    assert not any("eval/perplexity" in row for row in log_of(folder))
