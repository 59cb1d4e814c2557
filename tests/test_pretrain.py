"""Pretraining: what is trained on, how it is packed, what is measured, and what follows."""

import copy
import json
import math
import random
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM

from pipeline.config import ModelConfig, StageConfig
from pipeline.data import read_problems
from pipeline.hub.facts import read_facts
from pipeline.model import load_policy
from pipeline.model.atomic import newest_intact, weights_fingerprint
from pipeline.pretrain.config import PretrainConfig, PretrainDataConfig
from pipeline.pretrain.dataset import packed_blocks, split_documents
from pipeline.pretrain.packing import BlockCollator
from pipeline.pretrain.perplexity import held_out_loss, perplexity
from pipeline.pretrain.trainer import PretrainTrainer
from stages import pretrain, sft
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
    # The mean of steps 4 to 8: each of the last three rows is that of two steps, step 3 among them.
    third = json.loads((tmp_path / "a" / "checkpoint-3" / "unlogged-0.json").read_text())["loss"]
    (mean,) = [row["train_loss"] for row in resumed.state.log_history if "train_loss" in row]
    assert mean == pytest.approx((2 * sum(losses[0][1:]) - third) / 5)


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


WSD = {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 2}


def test_a_decay_longer_than_the_steps_after_the_warm_up_is_refused_before_training(tmp_path):
    def decay(steps: int) -> dict:
        return {**WSD, "lr_scheduler_kwargs": {"num_decay_steps": steps}}

    out = tmp_path / "out"
    args_of(out, max_steps=10, **decay(8))
    with pytest.raises(ValueError, match="num_decay_steps=9 must be at most 8, the steps after"):
        args_of(out, max_steps=10, **decay(9))
    kwargs = {"num_decay_steps": 9, "num_stable_steps": 1}  # reaches the peak learning rate
    args_of(out, max_steps=10, **WSD, lr_scheduler_kwargs=kwargs)
    data = data_of(write_txt(tmp_path))
    args = args_of(out, **decay(1000))  # the number of steps is that of the blocks
    with pytest.raises(ValueError, match="num_decay_steps=1000 must be at most"):
        pretrain.run(TINY, data, args, StageConfig(dry_run=True))
    assert not out.exists()


@pytest.mark.parametrize("accumulated", [1, 3])
def test_the_steps_counted_before_a_training_are_those_that_it_takes(
    tiny_policy, tokenizer, tmp_path, accumulated
):
    blocks = Dataset.from_list([{"input_ids": list(range(9))} for _ in range(22)])
    args = args_of(
        tmp_path, num_train_epochs=1.5, gradient_accumulation_steps=accumulated, eval_strategy="no"
    )
    trainer = PretrainTrainer(tiny_policy, args, train_dataset=blocks, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.max_steps == trainer.state.global_step == args.steps_of(22)


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
