"""LoRA: the reference is the base model, and save, load, merge keep the logits."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.chat.prompt_settings import WorkedExample, set_prompt
from pipeline.chat.prompts import user_message
from pipeline.chat.tags import END_THINK, THINK
from pipeline.chat.template import set_default_thinking
from pipeline.config import ModelConfig
from pipeline.data.sft_examples import sft_dataset
from pipeline.model import (
    add_reasoning_tokens,
    attach_value_head,
    load_adapters,
    load_policy,
    lora,
    lora_config,
    merge_adapters,
    save_adapters,
    save_policy,
)
from pipeline.model.verifier import verifier_of
from pipeline.ppo.rollout import score_rollout
from pipeline.records import Problem
from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer
from pipeline.verifier.online import attach_new_verifier
from stages import merge

PEFT = {"model": "somewhere", "use_peft": True, "lora_r": 2, "lora_alpha": 4}
EXAMPLES = [WorkedExample(question="1 + 1?", thought="1+1=2", answer="2")]
IDS = torch.tensor([[40, 41, 42, 43, 44, 45]])


def even_length(completions: list, **columns: Any) -> list[float]:
    return [float(len(message["content"]) % 2 == 0) for (message,) in completions]


def stir(model: torch.nn.Module) -> None:
    """As training would: adapters, token rows and value head all move."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or "value_head" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(
    params=[
        *((f, tie, "own") for f in ("llama", "qwen3", "gpt2", "opt") for tie in (False, True)),
        ("llama", False, "missing"),
        ("gpt2", True, "missing"),
    ],
    ids=lambda p: f"{p[0]}-{'tied' if p[1] else 'untied'}-pad {p[2]}",
)
def base(request, make_model, make_tokenizer, tmp_path) -> Path:
    """A base model as found on the Hub, saved before any token is added."""
    family, tie, pad = request.param
    tokenizer = make_tokenizer(pad=pad)
    model = make_model(family, vocab_size=len(tokenizer), tie=tie)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(base: Path) -> tuple[PeftModel, Any]:
    model, tokenizer = load_policy(base, value_head="new")
    add_reasoning_tokens(model, tokenizer)
    config = lora_config(ModelConfig(**PEFT), model, tokenizer)
    made = get_peft_model(model, config)
    attach_value_head(made.get_base_model())
    return made.eval(), tokenizer


def test_save_load_and_merge_keep_logits_and_values(base, tmp_path):
    model, tokenizer = adapted(base)
    tags = tokenizer.convert_tokens_to_ids([THINK, END_THINK])
    ids = torch.cat([IDS, torch.tensor([tags])], dim=1)
    untouched = model(ids)["logits"]
    stir(model)
    expected = model(ids)
    assert (expected["logits"] - untouched).abs().max() > 1e-2
    save_adapters(model, tmp_path / "adapter")
    loaded, _ = load_adapters(tmp_path / "adapter")
    for name in ("logits", "state_values"):
        torch.testing.assert_close(loaded(ids)[name], expected[name], atol=1e-5, rtol=1e-5)
    merged = merge_adapters(loaded)
    for name in ("logits", "state_values"):
        torch.testing.assert_close(merged(ids)[name], expected[name], atol=1e-5, rtol=1e-5)
    save_policy(merged, tokenizer, tmp_path / "merged")
    again, _ = load_policy(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for model in (again, plain):
        torch.testing.assert_close(model(ids)["logits"], expected["logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        again(ids)["state_values"], expected["state_values"], atol=1e-5, rtol=1e-5
    )


def prompt_of(tokenizer: Any) -> str:
    return tokenizer.apply_chat_template(
        user_message("2 + 3?"), add_generation_prompt=True, tokenize=False
    )


@pytest.mark.parametrize("tie", [False, True])
def test_adapters_are_prompted_as_they_were_trained_however_they_are_loaded(
    make_model, make_tokenizer, tmp_path, tie
):
    tokenizer = make_tokenizer(pad="missing")
    make_model("llama", vocab_size=len(tokenizer), tie=tie).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model, tokenizer = adapted(tmp_path / "base")
    set_prompt(tokenizer, system_prompt="Be brief.", examples=EXAMPLES)
    set_default_thinking(tokenizer, False)
    trained = prompt_of(tokenizer)
    assert "Be brief." in trained and "1 + 1?" in trained and trained.endswith(END_THINK)
    save_adapters(model, tmp_path / "checkpoint-1")
    tokenizer.save_pretrained(tmp_path / "checkpoint-1")  # as the Trainer does
    lora.export_policy(model, tokenizer, tmp_path / "final")
    merge.run(merge.MergeConfig(str(tmp_path / "checkpoint-1"), str(tmp_path / "merged")))
    assert prompt_of(load_adapters(tmp_path / "final" / "adapter")[1]) == trained
    for name in ("checkpoint-1", "final", "final/adapter", "merged"):
        loaded, own = load_policy(tmp_path / name)
        assert prompt_of(own) == trained and own.padding_side == "left", name
        assert loaded.config.eos_token_id == own.eos_token_id


def test_the_tokenizer_of_another_trainer_gets_the_reasoning_tokens(a_run, tmp_path):
    folder = shutil.copytree(a_run / "adapter", tmp_path / "adapter")
    _, expected = load_adapters(folder)
    AutoTokenizer.from_pretrained(a_run / "base").save_pretrained(folder)
    _, tokenizer = load_adapters(folder)
    assert prompt_of(tokenizer) == prompt_of(expected)
    assert tokenizer.get_vocab() == expected.get_vocab()


def test_adapters_with_another_vocabulary_than_their_base_are_refused(
    a_run, make_tokenizer, tmp_path
):
    folder = shutil.copytree(a_run / "adapter", tmp_path / "adapter")
    make_tokenizer(added=("<other>",)).save_pretrained(folder)
    with pytest.raises(ValueError, match="its tokenizer has another vocabulary than its base"):
        load_adapters(folder)


def test_without_its_adapters_the_model_is_its_base(base):
    plain, tokenizer = load_policy(base, value_head="new")
    add_reasoning_tokens(plain, tokenizer)
    model, _ = adapted(base)
    stir(model)
    with model.disable_adapter():
        torch.testing.assert_close(model(IDS)["logits"], plain.eval()(IDS)["logits"])


def test_what_is_trained_is_adapters_and_the_rows_of_the_tags(base):
    model, tokenizer = adapted(base)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    rows = {name for name in names if "trainable_tokens" in name}
    assert rows and all("lora_" in name for name in names - rows)
    assert not any("value_head" in name for name in names)
    tied = model.config.tie_word_embeddings
    assert len(rows) == (1 if tied else 2)
    before = model.get_input_embeddings().weight.detach().clone()
    stir(model)
    moved = (model.get_input_embeddings().weight != before).any(dim=1).nonzero().flatten().tolist()
    assert moved == sorted(tokenizer.convert_tokens_to_ids([THINK, END_THINK]))


# ---- in the trainers ----


@pytest.fixture
def checkpoint(policy, tokenizer, tmp_path) -> Path:
    save_policy(policy, tokenizer, tmp_path / "sft")
    return tmp_path / "sft"


@pytest.mark.parametrize("export", ["merged", "copied", "reloaded, as with weights of 4 bits"])
def test_an_exported_policy_keeps_its_verifier(checkpoint, tmp_path, monkeypatch, export):
    model, tokenizer = adapted(checkpoint)
    verifier = attach_new_verifier(model, seed=1)
    monkeypatch.setattr(lora, "is_quantized", lambda _model: "reloaded" in export)
    lora.export_policy(model, tokenizer, tmp_path / "out", keep=export == "copied")
    exported, _ = load_policy(tmp_path / "out")
    beside, _ = load_policy(tmp_path / "out" / "adapter")
    assert torch.equal(verifier_of(beside).last.weight, verifier.last.weight)
    # PPO from these adapters starts with new heads.
    assert verifier_of(load_policy(tmp_path / "out" / "adapter", value_head="new")[0]) is None
    assert {**verifier_of(exported).state_dict()}.keys() == verifier.state_dict().keys()
    for name, weight in verifier.state_dict().items():
        assert torch.equal(verifier_of(exported).state_dict()[name], weight)


def trainer_on(make_ppo, checkpoint: Path, **options: Any) -> Any:
    model, tokenizer = load_policy(checkpoint)
    config = lora_config(ModelConfig(**PEFT), model, tokenizer)
    options = {"kl_coef": 0.1, "learning_rate": 1e-2, "num_rollouts": 3, **options}
    return make_ppo(model, even_length, own={"peft_config": config}, **options)


def test_the_reference_of_ppo_is_the_base_model_and_there_is_no_second_one(make_ppo, checkpoint):
    trainer = trainer_on(make_ppo, checkpoint)
    trainer.train()
    assert trainer.ref_model is None
    base, _ = load_policy(checkpoint)
    rollout = trainer.policy_sampler.sample(
        [row["question"] for row in trainer.train_dataset], 1, torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        expected = score_rollout(trainer.scorer.by(base), rollout)
        mine = score_rollout(trainer.scorer.by(trainer.model), rollout)
    reference = trainer.scorer.reference(rollout)
    torch.testing.assert_close(reference.logprobs_BC, expected.logprobs_BC, atol=1e-6, rtol=0)
    assert (mine.logprobs_BC - expected.logprobs_BC).abs().max() > 1e-3


def test_ppo_trains_adapters_tags_and_value_head_and_nothing_else(make_ppo, checkpoint):
    trainer = trainer_on(make_ppo, checkpoint, kl_coef=0.0)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert any("value_head" in name for name in moved)
    assert any("lora_B" in name for name in moved)
    assert all("lora_" in n or "trainable_tokens" in n or "value_head" in n for n in moved)


def test_the_samples_of_an_adapted_policy_have_its_values(make_ppo, checkpoint):
    trainer = trainer_on(make_ppo, checkpoint)
    trainer.train()
    questions = [row["question"] for row in trainer.train_dataset]
    rollout = trainer.policy_sampler.sample(questions, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = score_rollout(trainer.scorer.by(trainer.model), rollout)
    assert rollout.values_BC.abs().sum() > 0
    torch.testing.assert_close(scores.values_BC, rollout.values_BC, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.logprobs_BC, rollout.logprobs_BC, atol=1e-5, rtol=0)


def test_an_adapted_run_resumes_exactly(make_ppo, checkpoint, tmp_path):
    ended = []
    for resume_from in (None, str(tmp_path / "ppo" / "checkpoint-2")):
        trainer = trainer_on(make_ppo, checkpoint, num_rollouts=4, save_every=1)
        trainer.train(resume_from_checkpoint=resume_from)
        ended.append({n: p.detach().clone() for n, p in trainer.model.named_parameters()})
    for name, parameter in ended[0].items():
        torch.testing.assert_close(ended[1][name], parameter, atol=1e-6, rtol=0)


def test_a_checkpoint_of_adapters_loads_with_its_value_head(make_ppo, checkpoint, tmp_path):
    trainer = trainer_on(make_ppo, checkpoint, save_every=3)
    trainer.train()
    loaded, _ = load_adapters(tmp_path / "ppo" / "checkpoint-3")
    expected = trainer.model.eval()(IDS)
    for name in ("logits", "state_values"):
        torch.testing.assert_close(loaded(IDS)[name], expected[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tie", [False, True])
def test_sft_trains_the_rows_of_the_tags_where_the_head_has_weights_of_its_own(
    make_model, make_tokenizer, tmp_path, tie
):
    tokenizer = make_tokenizer()
    model = make_model("llama", vocab_size=len(tokenizer), tie=tie)
    add_reasoning_tokens(model, tokenizer)
    config = lora_config(ModelConfig(**PEFT), model, tokenizer)
    rows, _ = sft_dataset(
        tokenizer, [Problem(question="2+3?", thought="2+3=5", answer="5")] * 4, progress=False
    )
    arguments = ReasoningSFTConfig(
        output_dir=str(tmp_path), max_steps=2, learning_rate=1e-2, disable_tqdm=True
    )
    before = model.get_output_embeddings().weight.detach().clone()
    trainer = ReasoningSFTTrainer(
        model, arguments, train_dataset=rows, processing_class=tokenizer, peft_config=config
    )
    trainer.train()
    merged = merge_adapters(trainer.model)
    moved = (merged.get_output_embeddings().weight != before).any(dim=1).nonzero().flatten()
    assert moved.tolist() == sorted(tokenizer.convert_tokens_to_ids([THINK, END_THINK]))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_r": 0}, "lora_r=0 must be at least 1"),
        ({"lora_dropout": 1.0}, r"lora_dropout=1.0 must lie in \[0, 1\)"),
        ({"model": "nano"}, "use_peft=true needs a trained model"),
    ],
)
def test_a_wrong_adapter_is_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{**PEFT, **options})


def test_a_folder_without_an_adapter_is_refused(checkpoint):
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config.json, so it holds no"):
        load_adapters(checkpoint)


def test_without_use_peft_there_are_no_adapters(tiny_policy, tokenizer):
    assert lora_config(ModelConfig(), tiny_policy, tokenizer) is None


# ---- adapters that are broken ----


@pytest.fixture(scope="module")
def a_run(make_model, make_tokenizer, tmp_path_factory) -> Path:
    """A folder with a base model and an adapter of it."""
    home = tmp_path_factory.mktemp("adapters")
    tokenizer = make_tokenizer()
    make_model("llama", vocab_size=len(tokenizer)).save_pretrained(home / "base")
    tokenizer.save_pretrained(home / "base")
    model, _ = adapted(home / "base")
    stir(model)
    save_adapters(model, home / "adapter")
    return home


def named(**changes: object) -> Callable[[Path], None]:
    """Change entries of the adapter's configuration."""

    def apply(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def changed(change: Callable[[dict], dict]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return apply


def last_set_to(value: float) -> Callable[[dict], dict]:
    def change(found: dict) -> dict:
        found[max(found)].view(-1)[-1] = value
        return found

    return change


BROKEN = {
    "foreign keys alone": (
        changed(lambda f: {"base_model.model.transformer.h.0.x": torch.zeros(2)}),
        "holds no LoRA weights",
    ),
    "LoRA of another model": (
        changed(lambda f: {k.replace(".layers.", ".blocks."): v for k, v in f.items()}),
        r"does not fit the model .*blocks\.0\..* has no place in it",
    ),
    "a key left over": (
        changed(lambda f: f | {"base_model.model.extra.lora_A.weight": torch.zeros(2, 32)}),
        r"extra\.lora_A\.weight has no place in it \(0 missing, 1 left over\)",
    ),
    "a layer missing": (
        changed(lambda f: {k: v for k, v in f.items() if "layers.1." not in k}),
        r"layers\.1\..* is missing \(14 missing, 0 left over\)",
    ),
    "a tensor of another shape": (
        changed(lambda f: {k: v[..., :5].clone() if "q_proj" in k else v for k, v in f.items()}),
        "the adapter cannot be loaded .*size mismatch",
    ),
    "NaN": (changed(last_set_to(math.nan)), "are NaN or infinite"),
    "int8": (
        changed(lambda f: {k: v.to(torch.int8) for k, v in f.items()}),
        "is stored as I8, and weights must be one of",
    ),
    "a rank of a billion": (named(r=10**9), "has the rank 1000000000, and the weights have 2"),
    "a rank of a billion for one layer": (
        named(rank_pattern={"q_proj": 10**9}),
        "has the rank 1000000000, and the weights have 2",
    ),
    "a rank in words": (named(r="two"), "has the rank 'two', and the weights have 2"),
    "a prompt of 128 GB": (
        named(peft_type="PROMPT_TUNING", num_virtual_tokens=10**9),
        "has peft_type=PROMPT_TUNING, and only LORA can be merged",
    ),
    "no kind": (named(peft_type=None), "has peft_type=None"),
    "no base": (
        named(base_model_name_or_path=None),
        "base_model_name_or_path=None; .*the folder or the name",
    ),
    "a row beyond the embedding": (
        named(trainable_token_indices={"embed_tokens": [5, 10**9]}),
        "the adapter cannot be loaded",
    ),
    "a module to import": (
        named(megatron_config={}, megatron_core="antigravity"),
        "has a megatron_config, for which peft imports a module",
    ),
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "holds no weights as safetensors",
    ),
    "a list": (
        lambda folder: (folder / "adapter_config.json").write_text("[]"),
        r"adapter_config\.json holds a list where a JSON object belongs",
    ),
}


# Both check the folder by the same function.
@pytest.mark.parametrize(
    ("kind", "load"),
    [*((kind, load_policy) for kind in BROKEN), *((k, load_adapters) for k in [*BROKEN][::8])],
)
def test_broken_adapters_are_refused_in_one_line(a_run, tmp_path, kind, load):
    folder = shutil.copytree(a_run / "adapter", tmp_path / "adapter")
    change, message = BROKEN[kind]
    change(folder)
    with pytest.raises(ValueError, match=message) as refused:
        load(folder)
    assert "\n" not in str(refused.value) and str(folder) in str(refused.value)
    assert ";" in str(refused.value)


def test_adapters_saved_with_the_whole_embedding_are_loaded(a_run, tmp_path):
    model, _ = adapted(a_run / "base")
    stir(model)
    expected = model(IDS)["logits"]
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    torch.testing.assert_close(load_adapters(tmp_path)[0](IDS)["logits"], expected)
