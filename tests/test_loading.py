"""How a model is loaded for training: dtype, attention, weights of 4 bits."""

import importlib.metadata

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.model import export_policy, load_policy, lora_config, save_policy
from pipeline.model import loading as loading_module
from pipeline.model.loading import check_loading, loading_options
from pipeline.scoring.packed_attention import can_pack
from stages.common import load_model


@pytest.fixture
def folder(tiny_policy, tokenizer, tmp_path):
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    return str(tmp_path / "policy")


@pytest.fixture
def machine(monkeypatch):
    """`machine("cuda", "bitsandbytes")`: an accelerator and packages of a stub."""

    def stub(kind: str | None, *packages: str) -> None:
        monkeypatch.setattr(loading_module, "accelerator_type", lambda: kind)
        monkeypatch.setattr(loading_module, "find_spec", lambda name: name in packages or None)
        monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)

    return stub


def test_half_precision_weights_need_adapters_or_float32_masters(monkeypatch):
    with pytest.raises(ValueError, match="rounds small optimizer steps to nothing"):
        ModelConfig(model="m", dtype="bfloat16")
    assert ModelConfig(model="m", dtype="bfloat16", use_peft=True).dtype == "bfloat16"
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "true")
            assert ModelConfig(model="m", dtype="bfloat16").dtype == "bfloat16"


def test_4_bits_imply_adapters():
    assert ModelConfig(model="m", load_in_4bit=True).use_peft
    with pytest.raises(ValueError, match="model=nano is built from scratch"):
        ModelConfig(load_in_4bit=True)


@pytest.mark.parametrize(
    ("kind", "packages", "options", "reason"),
    [
        (None, ("bitsandbytes",), {"load_in_4bit": True}, "needs a CUDA GPU"),
        ("mps", ("bitsandbytes",), {"load_in_4bit": True}, "needs a CUDA GPU"),
        ("cuda", (), {"load_in_4bit": True}, "needs the package bitsandbytes"),
        ("cuda", (), {"attn_implementation": "flash_attention_2"}, "the package flash_attn"),
        (None, ("flash_attn",), {"attn_implementation": "flash_attention_2"}, "needs CUDA"),
    ],
)
def test_what_this_machine_cannot_load_is_refused_with_the_reason(
    machine, kind, packages, options, reason
):
    machine(kind, *packages)
    with pytest.raises(ValueError, match=reason) as caught:
        check_loading(ModelConfig(model="m", **options))
    assert "\n" not in str(caught.value)


def test_the_options_of_4_bits_reach_from_pretrained(machine, monkeypatch):
    machine("cuda", "bitsandbytes")
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "0.50.0")
    config = ModelConfig(model="m", load_in_4bit=True, use_bnb_nested_quant=True)
    options = loading_options(config)
    bits = options["quantization_config"]
    assert (bits.load_in_4bit, bits.bnb_4bit_quant_type) == (True, "nf4")
    assert bits.bnb_4bit_use_double_quant and bits.bnb_4bit_compute_dtype == torch.bfloat16
    assert options["device_map"] == {"": 1}


def test_the_attention_reaches_from_pretrained_and_only_sdpa_packs(folder, capsys):
    configs = [ModelConfig(model=folder, attn_implementation=name) for name in (None, "eager")]
    (plain, _), (eager, _) = (load_model(config, value_head="optional") for config in configs)
    check_loading(configs[0])
    assert capsys.readouterr().out == ""
    check_loading(configs[1])
    assert "attn_implementation=eager pads sequences" in capsys.readouterr().out
    assert (plain.config._attn_implementation, can_pack(plain)) == ("sdpa", True)
    assert (eager.config._attn_implementation, can_pack(eager)) == ("eager", False)
    ids_BT = torch.arange(5, 11)[None]
    torch.testing.assert_close(eager(ids_BT).logits, plain(ids_BT).logits, atol=1e-5, rtol=1e-4)


def trained_and_exported(config, make_ppo, folder):
    """(a model after one PPO update, the checkpoint exported from it)."""
    model, tokenizer = load_model(config, value_head="new")
    trainer = make_ppo(
        model,
        lambda completions, **_: [float(len(m["content"]) % 2) for (m,) in completions],
        own={"peft_config": lora_config(config, model, tokenizer), "processing_class": tokenizer},
        learning_rate=1e-2,
    )
    parameters = dict(trainer.model.named_parameters())
    trained = {name: p.detach().clone() for name, p in parameters.items() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert any("value_head" in name for name in trained)
    trainer.train()
    assert any((parameters[name] != before).any() for name, before in trained.items())
    export_policy(trainer.model, tokenizer, folder)
    return trainer.model, load_policy(folder)[0]


def test_ppo_trains_float32_adapters_on_bfloat16_weights(folder, make_ppo, tmp_path):
    config = ModelConfig(model=folder, use_peft=True, dtype="bfloat16", lora_r=2)
    model, exported = trained_and_exported(config, make_ppo, tmp_path / "out")
    frozen = [p.dtype for p in model.parameters() if not p.requires_grad]
    assert set(frozen) == {torch.bfloat16}
    assert exported.dtype == torch.bfloat16
    assert exported.value_head.last.weight.dtype == torch.float32


def test_ppo_trains_adapters_on_4_bits_and_merges_them_into_the_stored_weights(
    folder, make_ppo, machine, monkeypatch, tiny_policy, tmp_path
):
    pytest.importorskip("bitsandbytes")  # it has a backend for CPUs too, which is used here
    machine("cuda", "bitsandbytes")
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: "cpu")
    config = ModelConfig(model=folder, load_in_4bit=True, lora_r=2)
    model, exported = trained_and_exported(config, make_ppo, tmp_path / "out")
    assert model.is_loaded_in_4bit and not getattr(exported, "is_loaded_in_4bit", False)
    projection = "model.layers.0.self_attn.q_proj.weight"
    change = exported.get_parameter(projection) - tiny_policy.get_parameter(projection)
    assert 0 < torch.linalg.matrix_rank(change.detach(), tol=1e-6) <= 2  # of the adapters alone
