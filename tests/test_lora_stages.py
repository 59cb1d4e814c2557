"""SFT and PPO with --use_peft true, and stages.merge: what comes out is one plain folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.model import load_adapters, load_policy, save_policy
from stages import merge, ppo, sft
from stages.publish import collect_facts
from tests.following import next_command

SFT = """
shares: wording=1,story1=1
size: 64
max_steps: 2
per_device_train_batch_size: 4
learning_rate: 4e-3
max_length: 256
save_strategy: steps
save_steps: 1
disable_tqdm: true
"""
NANO = """
model: nano
nano_hidden_size: 32
nano_layers: 1
nano_heads: 2
nano_intermediate_size: 64
nano_vocab_size: 300
"""
PPO = """
shares: wording=1,story1=1
size: 8
rewards: well_formed=1,correctness=1,steps=0.1
num_rollouts: 2
questions_per_rollout: 4
completions_per_question: 2
num_minibatches: 2
ppo_epochs: 1
max_completion_length: 8
learning_rate: 1e-3
save_every: 1
ema_decay: 0.5
disable_tqdm: true
"""
LORA = ["--use_peft", "true", "--lora_r", "2", "--lora_alpha", "4"]
IDS = torch.tensor([[40, 41, 42, 43]])


@pytest.fixture(scope="module")
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, threads) -> Path:
    """Nano's SFT without adapters, then SFT and PPO with them."""
    folder = tmp_path_factory.mktemp("lora")
    for name, text in (("nano", NANO + SFT), ("sft", SFT), ("ppo", PPO)):
        (folder / f"{name}.yaml").write_text(text)

    def arguments(name: str, base: str | None = None) -> list[str]:
        out = ["--config", str(folder / f"{name}.yaml"), "--output_dir", str(folder / name)]
        return out if base is None else [*out, "--model", str(folder / base), *LORA]

    sft.main(arguments("nano"))
    sft.main(arguments("sft", base="nano"))
    ppo.main(arguments("ppo", base="sft"))
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS)["logits"]


@pytest.mark.parametrize(("stage", "base"), [("sft", "nano"), ("ppo", "sft")])
def test_a_stage_leaves_a_plain_folder_with_its_adapters_beside(folder, stage, base):
    merged, _ = load_policy(folder / stage)
    adapted, _ = load_adapters(folder / stage / "adapter")
    before, _ = load_policy(folder / base)
    torch.testing.assert_close(logits(merged), logits(adapted), atol=1e-5, rtol=1e-5)
    assert (logits(merged) - logits(before)).abs().max() > 1e-5
    assert not list((folder / stage).glob("adapter_*"))


def test_the_value_head_lies_beside_the_adapters_and_in_the_plain_folder(folder):
    heads = [folder / "ppo" / part / "value_head.safetensors" for part in ("", "adapter")]
    plain, beside = (load_file(path) for path in heads)
    assert plain["last.weight"].abs().sum() > 0
    assert all(torch.equal(plain[name], beside[name]) for name in plain)


def test_the_average_of_adapters_is_merged_into_the_base_model(folder):
    """It is saved in ema/, apart from the policy: base + averaged adapters."""
    ema, final = (load_file(folder / "ppo" / part / "model.safetensors") for part in ("ema", ""))
    assert any(not torch.equal(ema[name], final[name]) for name in final)
    stored = load_file(folder / "ppo" / "checkpoint-4" / "ema.safetensors")
    adapters = load_file(folder / "ppo" / "ema" / "adapter" / "adapter_model.safetensors")
    assert sum("lora_" in name for name in adapters) == sum("lora_" in name for name in stored) > 0
    for name, x in stored.items():
        if "lora_" in name:
            assert torch.equal(adapters[name.replace(".default", "")], x)
    base = load_file(folder / "sft" / "model.safetensors")
    ranks = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.default.weight"
    a, b = (stored[ranks.format(part)] for part in "AB")
    name = "model.layers.0.self_attn.q_proj.weight"  # scaled by lora_alpha / lora_r = 2
    torch.testing.assert_close(ema[name], base[name] + 2 * b @ a, atol=1e-6, rtol=1e-6)
    merged, adapted = load_policy(folder / "ppo/ema"), load_adapters(folder / "ppo/ema/adapter")
    torch.testing.assert_close(logits(merged[0]), logits(adapted[0]), atol=1e-5, rtol=1e-5)


def test_a_checkpoint_in_between_holds_adapters_and_can_be_merged(folder, tmp_path, capsys):
    saved = folder / "ppo" / "checkpoint-4"
    assert (saved / "adapter_model.safetensors").exists()
    merge.main(["--adapter", str(saved), "--output_dir", str(tmp_path / "merged")])
    said = capsys.readouterr().out
    assert f"merged checkpoint: {tmp_path / 'merged'}" in said
    assert next_command(said).checkpoint == str(tmp_path / "merged")
    merged, last = load_policy(tmp_path / "merged")[0], load_policy(folder / "ppo")[0]
    torch.testing.assert_close(logits(merged), logits(last), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged.value_head.last.weight, last.value_head.last.weight)


def test_the_card_of_a_merged_checkpoint_describes_its_training(folder, tmp_path):
    for step, state in ((2, "after 2 of 4 steps"), (4, "")):
        merged = tmp_path / f"merged-{step}"
        saved = folder / "ppo" / f"checkpoint-{step}"
        merge.main(["--adapter", str(saved), "--output_dir", str(merged)])
        facts = collect_facts(merged)
        assert [each.stage for each in facts.steps] == ["sft", "sft", "ppo"]
        assert facts.steps == collect_facts(folder / "ppo").steps
        assert facts.state == collect_facts(saved).state == state


def test_the_base_may_have_moved(folder, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(folder / "sft")
    out = ["--output_dir", str(tmp_path / "merged"), "--base", str(moved)]
    merge.main(["--adapter", str(folder / "ppo" / "adapter"), *out])
    torch.testing.assert_close(
        logits(load_policy(tmp_path / "merged")[0]), logits(load_policy(folder / "ppo")[0])
    )


def test_adapters_on_a_model_of_16_bits_are_merged_as_at_the_end_of_the_training(folder, tmp_path):
    model, tokenizer = load_policy(folder / "sft")
    save_policy(model.to(torch.bfloat16), tokenizer, tmp_path / "half")  # as on the Hub
    exact, _ = load_policy(tmp_path / "half", dtype=torch.float32)
    adapters = folder / "ppo" / "adapter"  # lora_alpha / lora_r = 2
    arguments = ["--adapter", str(adapters), "--base", str(tmp_path / "half")]
    merge.main([*arguments, "--output_dir", str(tmp_path / "merged")])
    merged = load_policy(tmp_path / "merged")[0].state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    stored = load_file(adapters / "adapter_model.safetensors")
    a, b = (
        stored[f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight"]
        for part in "AB"
    )
    torch.testing.assert_close(
        merged[name], exact.state_dict()[name] + 2 * b @ a, atol=1e-7, rtol=1e-7
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "{folder}/sft"], "has no adapter_config.json, so it holds no adapter"),
        (["--adapter", "no/such"], "no/such is no folder here"),
        ([], "--adapter is missing"),
        (["--adapter", "{out}"], "is the folder of the adapters; give another"),
    ],
)
def test_merge_refuses_a_mistake_in_one_line(folder, tmp_path, capsys, arguments, message):
    given = [a.format(folder=folder, out=tmp_path) for a in arguments]
    with pytest.raises(SystemExit, match="2"):
        merge.main([*given, "--output_dir", str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_a_folder_of_adapters_loads_as_the_merged_model(folder):
    adapted, last = load_policy(folder / "ppo" / "adapter")[0], load_policy(folder / "ppo")[0]
    torch.testing.assert_close(logits(adapted), logits(last), atol=1e-5, rtol=1e-5)


def test_a_run_with_adapters_resumes(folder, tmp_path):
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo" / "checkpoint-2").symlink_to(folder / "ppo" / "checkpoint-2")
    config = ["--config", str(folder / "ppo.yaml"), "--model", str(folder / "sft"), *LORA]
    ppo.main([*config, "--output_dir", str(tmp_path / "ppo"), "--resume_from_checkpoint", "last"])
    resumed, unbroken = load_policy(tmp_path / "ppo")[0], load_policy(folder / "ppo")[0]
    torch.testing.assert_close(logits(resumed), logits(unbroken), atol=1e-6, rtol=0)
