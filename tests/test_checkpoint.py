"""What is saved comes back to the bit, and is a plain Hugging Face checkpoint to everybody else."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.chat.prompts import encode_prompt
from pipeline.model import (
    VALUE_HEAD_FILE,
    ValueHead,
    add_reasoning_tokens,
    attach_value_head,
    has_value_head,
    load_policy,
    save_policy,
    split_value_head,
    values_of,
)
from pipeline.model.atomic import replace_folder, restore, staged

FAMILIES = ("llama", "qwen3", "mistral", "gemma", "gpt2", "gpt_neox", "opt")
IDS = torch.tensor([[5, 9, 40, 77, 3, 120]])


@torch.no_grad()
def see(model):
    output = model(IDS)
    return output.logits, values_of(output)


def assert_same(model, other):
    for mine, its in zip(see(model), see(other), strict=True):
        assert torch.equal(mine, its)


def test_a_saved_policy_comes_back_to_the_bit(tiny_policy, tokenizer, tmp_path):
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    model, loaded_tokenizer = load_policy(tmp_path / "policy")
    assert_same(model, tiny_policy)
    assert not model.training
    assert encode_prompt(loaded_tokenizer, "</think>2") == encode_prompt(tokenizer, "</think>2")
    assert loaded_tokenizer.padding_side == "left"
    assert loaded_tokenizer.response_template == tokenizer.response_template


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pad", ["missing", "eos"])
def test_adding_tokens_and_saving_keep_every_shape(
    family, tie, pad, make_model, make_tokenizer, tmp_path
):
    vocab_size = {"missing": 258, "eos": 300}[pad]  # exactly full, and padded
    model, tokenizer = make_model(family, vocab_size=vocab_size, tie=tie), make_tokenizer(pad=pad)
    add_reasoning_tokens(model, tokenizer)
    attach_value_head(model, hidden=4)
    torch.nn.init.normal_(model.value_head.last.weight)
    save_policy(model, tokenizer, tmp_path / "policy")
    loaded, loaded_tokenizer = load_policy(tmp_path / "policy")
    assert_same(loaded, model)
    same_weight = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert same_weight == tie
    for token in ("<think>", "</think>", tokenizer.pad_token, tokenizer.eos_token):
        ids = loaded_tokenizer(token, add_special_tokens=False).input_ids
        assert ids == [tokenizer.convert_tokens_to_ids(token)]


def test_transformers_loads_the_folder_without_a_word_about_the_value_head(
    tiny_policy, tokenizer, tmp_path, caplog, capfd
):
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    logging.getLogger("transformers").propagate = True
    capfd.readouterr()
    with caplog.at_level(logging.INFO):
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    said = caplog.text + "".join(capfd.readouterr())
    assert not any(word in said for word in ("value_head", "UNEXPECTED", "MISSING", "not used"))
    prompt = torch.tensor([encode_prompt(tokenizer, "What is 2 + 3?")])
    texts = [
        model.generate(prompt, max_new_tokens=8, do_sample=False) for model in (plain, tiny_policy)
    ]
    assert torch.equal(*texts)
    plain_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert plain_tokenizer.decode(texts[0][0]) == tokenizer.decode(texts[1][0])
    assert plain_tokenizer.padding_side == "left"


def test_the_check_above_can_fail(tiny_policy, tmp_path, caplog):
    tiny_policy.save_pretrained(tmp_path)  # as transformers would do it, head and all
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.INFO):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "value_head" in caplog.text


def test_model_weights_and_value_head_lie_in_two_files(tiny_policy, tokenizer, tmp_path):
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    weights = load_file(tmp_path / "policy" / "model.safetensors")
    head = load_file(tmp_path / "policy" / VALUE_HEAD_FILE)
    assert not any("value_head" in name for name in weights)
    assert "lm_head.weight" not in weights  # tied: stored once
    assert head.keys() == {"last.weight", "last.bias"}


def test_split_loses_nothing(tiny_policy):
    state = tiny_policy.state_dict()
    plain, head = split_value_head(state)
    assert plain.keys() | {f"value_head.{name}" for name in head} == state.keys()
    ValueHead(32).load_state_dict(head)
    assert split_value_head(plain) == (plain, {})


def test_a_policy_without_value_head_saves_and_loads_on_request(make_model, tokenizer, tmp_path):
    save_policy(make_model("llama", vocab_size=320), tokenizer, tmp_path / "sft")
    with pytest.raises(ValueError, match=r"sft has no value_head.safetensors.*value_head='new'"):
        load_policy(tmp_path / "sft")
    assert not has_value_head(load_policy(tmp_path / "sft", value_head="optional")[0])
    model, _ = load_policy(tmp_path / "sft", value_head="new")
    assert (see(model)[1] == 0).all()


def test_optional_loads_the_head_and_new_ignores_it(tiny_policy, tokenizer, tmp_path):
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    assert_same(load_policy(tmp_path / "policy", value_head="optional")[0], tiny_policy)
    assert (see(load_policy(tmp_path / "policy", value_head="new")[0])[1] == 0).all()


def test_a_value_head_of_another_shape_is_no_value_head(tiny_policy, tokenizer, tmp_path):
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    path = tmp_path / "policy" / VALUE_HEAD_FILE
    save_file(
        {"last.weight": torch.zeros(1, 32)},
        path,
        metadata={"value_head": json.dumps({"hidden_size": 32, "hidden": None})},
    )
    with pytest.raises(ValueError, match=r"last\.bias has the shape None, and a value head of"):
        load_policy(tmp_path / "policy")


@pytest.mark.parametrize(
    ("options", "do_sample", "temperature"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, True, 0.9),
        ({"length_penalty": 2.0}, False, None),
    ],
    ids=["sampling options without do_sample", "a beam option without beams"],
)
def test_a_model_with_an_invalid_generation_config_can_be_saved_and_loaded(
    make_model, make_tokenizer, tmp_path, options, do_sample, temperature
):
    model, tokenizer = make_model("llama", vocab_size=300), make_tokenizer()
    save_policy(model, tokenizer, tmp_path / "base")
    path = tmp_path / "base" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options | {"eos_token_id": [257, 7]}))
    model, tokenizer = load_policy(tmp_path / "base", value_head="new", will_grow=True)
    model.generation_config.max_length = 64  # a changed configuration is validated when saved
    save_policy(model, tokenizer, tmp_path / "policy")
    loaded, _ = load_policy(tmp_path / "policy")
    assert_same(loaded, model)
    assert bool(loaded.generation_config.do_sample) == do_sample
    assert loaded.generation_config.temperature == temperature
    assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert 7 in loaded.generation_config.eos_token_id


def test_the_model_may_be_loaded_in_another_precision(tiny_policy, tokenizer, tmp_path):
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    model, _ = load_policy(tmp_path / "policy", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.value_head.last.weight.dtype == torch.float32
    torch.testing.assert_close(see(model)[1], see(tiny_policy)[1], rtol=0.1, atol=0.05)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    for missing in (tmp_path / "missing", "./missing", "a/b/missing", "tests/missing"):
        with pytest.raises(
            FileNotFoundError, match=r"missing does not exist; give a checkpoint folder"
        ):
            load_policy(missing)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config.json.*output folder of a training"):
        load_policy(tmp_path)


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="value_head='maybe' is not one of"):
        load_policy(tmp_path, value_head="maybe")


def test_a_wrapped_model_is_refused(tiny_policy, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"got a Sequential.*unwrap it first"):
        save_policy(torch.nn.Sequential(tiny_policy), tokenizer, tmp_path / "policy")
    assert not list(tmp_path.iterdir())


# Replacing a folder.


def test_saving_again_replaces_the_checkpoint_and_keeps_what_is_not_part_of_one(
    tiny_policy, make_model, tokenizer, tmp_path
):
    folder = tmp_path / "policy"
    save_policy(tiny_policy, tokenizer, folder)
    (folder / "checkpoint-8").mkdir()
    (folder / "checkpoint-8" / "state.json").write_text("{}")
    (folder / "log.jsonl").write_text("1")
    save_policy(make_model("llama", vocab_size=320), tokenizer, folder)
    assert not (folder / VALUE_HEAD_FILE).exists()  # the new policy has none
    assert (folder / "checkpoint-8" / "state.json").read_text() == "{}"
    assert (folder / "log.jsonl").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_link_to_a_folder_stays_a_link(tiny_policy, tokenizer, tmp_path):
    disk = tmp_path / "disk" / "policy"
    disk.mkdir(parents=True)
    (disk / "notes.txt").write_text("mine")
    (tmp_path / "policy").symlink_to(disk)
    for _ in range(2):
        save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    assert (tmp_path / "policy").is_symlink()
    assert (disk / "model.safetensors").is_file() and (disk / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "policy"]
    load_policy(tmp_path / "policy")


def test_a_link_where_a_checkpoint_is_put_goes_and_what_it_names_stays(tmp_path):
    made, outside = tmp_path / "made", tmp_path / "outside"
    for folder in (made, outside):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    (tmp_path / "checkpoint-2").symlink_to(outside)
    replace_folder(made, tmp_path / "checkpoint-2")
    assert not (tmp_path / "checkpoint-2").is_symlink()
    assert (tmp_path / "checkpoint-2" / "name").read_text() == "made"
    assert (outside / "name").read_text() == "outside"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "outside"]


def test_a_save_that_fails_leaves_the_old_checkpoint(tiny_policy, tokenizer, tmp_path, monkeypatch):
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    monkeypatch.setattr(tokenizer, "save_pretrained", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert_same(load_policy(tmp_path / "policy")[0], tiny_policy)


def test_a_full_disk_is_told_in_one_line(tiny_policy, tokenizer, tmp_path, monkeypatch):
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")

    def full(*_args, **_kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(tiny_policy, "save_pretrained", full)
    with pytest.raises(OSError, match=r"policy could not be saved: .*No space left.*unchanged"):
        save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    assert_same(load_policy(tmp_path / "policy")[0], tiny_policy)


def write(folder, text):
    with staged(folder) as staging:
        (staging / "config.json").write_text(text)


def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_while_writing(folder, text, when, monkeypatch):
    """Write in a child that kills itself just before one step of the swap."""
    rename = Path.rename

    def watched(path, target):
        if (when, path) in (("old", folder), ("new", folder.with_name(".policy.staging"))):
            die()
        return rename(path, target)

    if (child := os.fork()) == 0:
        monkeypatch.setattr(Path, "rename", watched)
        if when == "rmtree":
            monkeypatch.setattr(
                shutil, "rmtree", lambda path, **_: path.name.endswith("old") and die()
            )
        write(folder, text)
        die()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("when", ["old", "new", "rmtree"])
@pytest.mark.parametrize("next_is", ["load", "save"])
def test_a_kill_between_the_last_steps_loses_nothing(when, next_is, tmp_path, monkeypatch):
    folder = tmp_path / "policy"
    write(folder, "first")
    (folder / "log.jsonl").write_text("1")
    killed_while_writing(folder, "second", when, monkeypatch)
    assert (tmp_path / ".policy.old").exists() == (when != "old")
    if next_is == "load":
        restore(folder)
        expected = "second" if when == "rmtree" else "first"
    else:
        write(folder, "third")
        expected = "third"
        assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert (folder / "config.json").read_text() == expected
    assert (folder / "log.jsonl").read_text() == "1"


def test_loading_finishes_a_swap_that_was_interrupted(tiny_policy, tokenizer, tmp_path):
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    (tmp_path / "policy").rename(tmp_path / ".policy.old")
    assert_same(load_policy(tmp_path / "policy")[0], tiny_policy)
