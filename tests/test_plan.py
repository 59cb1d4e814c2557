"""The plan of a run: counts, sums by hand, and what autograd really keeps."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from eval import plan as command
from pipeline.config import ModelConfig
from pipeline.generation.kv_memory import MOST_ROWS
from pipeline.model import attach_value_head, lora_config
from pipeline.planning.from_config import (
    MODEL_DEFAULTS,
    PPO_DEFAULTS,
    PRETRAIN_DEFAULTS,
    SFT_DEFAULTS,
    run_plan,
)
from pipeline.planning.memory import (
    LM_HEAD_CHUNK,
    RUNTIME,
    Plan,
    activation_bytes,
    longest_sequence,
    model_state,
    sampled_together,
)
from pipeline.planning.shapes import ModelShape, find_shape, shape_of
from pipeline.planning.speed import Hardware, Rollout, rollout_seconds, training_operations
from pipeline.ppo.config import PPOConfig
from pipeline.pretrain.config import PretrainConfig
from pipeline.scoring.logprobs import row_hidden_states, supports_packing
from pipeline.sft.trainer import ReasoningSFTConfig

# A model of sums on paper: 1,000 parameters, of which 200 are the tied embedding.
PAPER = ModelShape(
    name="paper",
    parameters=1000,
    embedding=200,
    layers=2,
    hidden=10,
    kv_width=5,
    intermediate=30,
    vocab=20,
    window=100,
    linear_in_and_out=50,
    tied=True,
    qk_norm=False,
)


# ---- parameters ----


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # of the published checkpoints, and the value head's hidden + 1
        ("Qwen/Qwen2.5-0.5B", 494_032_768 + 897),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304 + 1537),
        ("Qwen/Qwen2.5-7B", 7_615_616_512 + 3585),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 134_515_008 + 577),
    ],
)
def test_parameters_of_published_models_are_counted_without_their_weights(name, parameters):
    assert find_shape(name).parameters == parameters


def test_the_counts_of_a_built_model_and_its_adapters_are_those_of_the_plan(tiny_policy, tokenizer):
    from peft import get_peft_model

    shape = shape_of("tiny", tiny_policy.config)
    assert shape.parameters == sum(p.numel() for p in tiny_policy.parameters())
    config = ModelConfig(model="sft", use_peft=True, lora_r=4)
    adapted = get_peft_model(tiny_policy, lora_config(config, tiny_policy, tokenizer))
    adapted.value_head.requires_grad_(True)
    attach_value_head(adapted.get_base_model())
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert shape.adapter_parameters(4) == trained


@pytest.mark.parametrize(
    ("family", "sizes", "kv_width", "intermediate", "window"),
    [
        ("gpt2", {"n_positions": 128}, 32, 128, 128),
        ("gpt2", {"n_positions": 128, "n_inner": 48}, 32, 48, 128),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 16}, 32, 64, 2048),
        ("bloom", {}, 32, 128, None),
        ("falcon", {}, 8, 128, 2048),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, 16, 128, 2048),
        ("gpt_neo", {"attention_types": [[["global"], 2]]}, 32, 128, 2048),
    ],
)
def test_a_model_with_other_names_of_its_sizes_has_a_plan(
    family, sizes, kv_width, intermediate, window
):
    small = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(family, **small, **sizes)
    shape = shape_of(family, config)
    assert (shape.kv_width, shape.intermediate, shape.window) == (kv_width, intermediate, window)
    model = AutoModelForCausalLM.from_config(config)
    attach_value_head(model)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    blocks = [p for name, p in model.named_parameters() if re.search(r"(layers|h)\.\d", name)]
    matrices = sum(sum(p.shape) for p in blocks if p.dim() == 2)
    assert shape.linear_in_and_out - matrices == (2 * (16 + 32) if family == "opt" else 0)
    assert longest_sequence(Plan(shape), "DDP", 1, 24 * 2**30, 8) > 0


def test_a_model_without_known_sizes_is_refused_in_one_line(tmp_path, capsys):
    AutoConfig.for_model("mpt", d_model=32, n_heads=4, n_layers=2).save_pretrained(tmp_path)
    arguments = ["--config", "configs/nano/sft.yaml", "--model", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and printed.startswith("error: ") and printed.count("\n") == 1
    assert "that the plan does not know, mpt" in printed


# ---- memory ----


@pytest.mark.parametrize(
    ("strategy", "gpus", "parts"),
    [  # weights, gradients, optimizer, reference, copies; 1,000 matrix parameters (200 of the head)
        ("one GPU", 1, (4000, 4000, 8000, 4000, 2000)),
        ("DDP", 4, (4000, 8000, 8000, 4000, 2000)),
        ("ZeRO-2", 4, (2000, 500, 3000, 2000, 0)),
        ("ZeRO-3", 4, (500, 500, 3000, 500, 2000)),
        ("FSDP2", 4, (1000, 1000, 2000, 500, 2000)),
    ],
)
def test_the_state_of_a_full_run_by_hand(strategy, gpus, parts):
    state = model_state(Plan(PAPER, has_reference=True), strategy, gpus)
    found = (state.weights, state.gradients, state.optimizer, state.reference, state.copies)
    assert found == parts
    assert state.total == sum(parts) + RUNTIME + LM_HEAD_CHUNK


def test_adapters_have_no_second_model_and_4_bits_leave_the_embedding():
    # Rank 4: 4 * 50 in matrices, two rows of 10, a value head of 11: 231 trained.
    lora = model_state(Plan(PAPER, "LoRA", 4, has_reference=True), "one GPU", 1)
    assert (lora.weights, lora.optimizer, lora.reference) == (4 * 231 + 4000, 8 * 231, 0)
    # Autocast keeps copies of matrices in float32 alone.
    assert lora.copies == 2 * 1000
    half = model_state(Plan(PAPER, "LoRA", 4, frozen_bytes=2.0), "one GPU", 1)
    assert (half.weights, half.copies) == (4 * 231 + 2000, 0)
    qlora = model_state(Plan(PAPER, "QLoRA", 4, frozen_bytes=2.0), "one GPU", 1)
    assert qlora.weights == 4 * 231 + 0.5625 * 800 + 2 * 200
    with pytest.raises(ValueError, match="4 bits are not divided by FSDP2"):
        model_state(Plan(PAPER, "QLoRA"), "FSDP2", 2)


def test_the_longest_sequence_is_bounded_by_activations_cache_and_window():
    plan = Plan(PAPER, samples=False)
    state = model_state(plan, "one GPU", 1).total
    layer = 32 * 10 + 4 * 5 + 8 * 30
    assert activation_bytes(plan) == 2 * layer + 80
    free = 50 * (2 * layer + 80)
    assert longest_sequence(plan, "one GPU", 1, state + free, rows=8) == 50
    assert longest_sequence(plan, "one GPU", 1, state + 1e9, rows=8) == 100  # the window
    assert longest_sequence(plan, "one GPU", 1, state - 1, rows=8) == 0
    sampling = dataclasses.replace(plan, samples=True)
    # 2 * 2 layers * 5 * 2 bytes a token and row: 40 * 100 rows.
    assert longest_sequence(sampling, "one GPU", 1, state + 20 * 4000, rows=100) == 20


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_activations_are_within_15_percent_of_what_autograd_keeps(family, checkpointing, autocast):
    from transformers import AutoModelForCausalLM

    config = AutoConfig.for_model(
        family,
        vocab_size=256,
        hidden_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=512,
        num_hidden_layers=3,
    )
    model = AutoModelForCausalLM.from_config(config).train()
    assert supports_packing(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
    kept: dict[int, torch.Tensor] = {}  # held, so that no address is used twice

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    rows, length = 4, 257
    ids = torch.randint(5, 200, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        row_hidden_states(model, ids, mask)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    # Under autocast, copies of the matrices are kept too; the plan counts them as copies.
    matrices = {tuple(p.shape)[::step] for p in model.parameters() for step in (1, -1)}
    measured = sum(
        x.untyped_storage().nbytes()
        for address, x in kept.items()
        if address not in weights and tuple(x.shape) not in matrices
    ) / (rows * (length - 1))
    plan = Plan(shape_of(family, config), mixed_precision=autocast, checkpointing=checkpointing)
    expected = activation_bytes(plan)
    if checkpointing:  # less the layer that is computed again, in the backward pass
        whole = activation_bytes(dataclasses.replace(plan, checkpointing=False))
        expected -= (whole - 8 * 128) / 3
    assert expected == pytest.approx(measured, rel=0.15)


# ---- time ----


def test_operations_and_seconds_by_hand():
    plan = Plan(PAPER, has_reference=True)
    assert training_operations(plan, 50) == 6 * 1000 + 6 * 2 * 10 * 50
    checkpointed = dataclasses.replace(plan, method="LoRA", checkpointing=True)
    assert training_operations(checkpointed, 50) == 6 * 1000 + 6 * 2 * 10 * 50
    gpu = Hardware(flops=1e6, bandwidth=1e6, used_flops=0.5, used_bandwidth=0.5)
    rollout = Rollout(sequences=16, tokens=20, epochs=2, sampled_together=4, prompt_tokens=30)
    parts = rollout_seconds(plan, rollout, 2, gpu)
    # 8 sequences a GPU in 2 batches of 4, 20 steps each; a step reads 2,000 bytes of weights and
    # 40 bytes of each of 4 * 40 cached tokens, or computes 2,000 * 4 operations.
    assert parts["sampling"] == pytest.approx(2 * 20 * max(2000 + 6400, 8000) / 5e5)
    assert parts["reference"] == pytest.approx(16 * 50 * 2000 / 1e6)
    assert parts["updates"] == pytest.approx(2 * 16 * 50 * 12_000 / 1e6)


# ---- the longest thought of docs/scale.md ----

THOUGHTS = (
    *(("full", "one GPU", 1), ("LoRA", "one GPU", 1)),
    *(("full", "DDP", 8), ("full", "FSDP2", 8), ("LoRA", "DDP", 8)),
)


def thought_rows() -> list[str]:
    """The rows of the table: small/ppo.yaml on 80 GiB, micro-batches of one sequence."""
    rows = []
    for size in ("0.5b", "1.5b", "7b"):
        run = run_plan("small/ppo.yaml", 1, model=f"qwen2.5-{size}")
        for method, strategy, gpus in THOUGHTS:
            cells = []
            for checkpointing in (False, True):
                plan = dataclasses.replace(run.plan, checkpointing=checkpointing)
                mine = dataclasses.replace(run, plan=plan)
                rows_by_name = {row[0]: row for row in command.memory_table(mine, gpus, 80 * 2**30)}
                longest, together = rows_by_name[f"{method}, {strategy}"][-2:]
                cells.append(f"{longest} ({together})" if together else longest)
            name = size.upper()
            rows.append(f"| {name} | {method}, {strategy} x {gpus} | {cells[0]} | {cells[1]} |")
    return [row.replace("one GPU x 1", "one GPU") for row in rows]


def test_the_table_of_the_longest_thoughts_is_what_the_plan_computes():
    text = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
    missing = [row for row in thought_rows() if row not in text]
    assert missing == []


def test_as_many_sequences_are_sampled_together_as_have_room_for_their_cache():
    plan = Plan(PAPER, has_reference=True)
    free = 1e6 * PAPER.kv_bytes()
    room = model_state(plan, "one GPU", 1).total + free
    assert sampled_together(plan, "one GPU", 1, room, 10_000, 256) == 100
    assert sampled_together(plan, "one GPU", 1, room, 1_000, 256) == 256
    assert sampled_together(plan, "one GPU", 1, room, 2_000_000, 256) == 1


# ---- the command ----


def test_the_defaults_are_those_of_the_stages():
    defaults = {field.name: field.default for field in dataclasses.fields(PPOConfig)}
    defaults |= {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    defaults["sampling_batch_size"] = defaults["sampling_batch_size"] or MOST_ROWS
    for name, value in (PPO_DEFAULTS | MODEL_DEFAULTS).items():
        assert defaults[name] == value, name
    for stage, planned in ((ReasoningSFTConfig, SFT_DEFAULTS), (PretrainConfig, PRETRAIN_DEFAULTS)):
        defaults = {field.name: field.default for field in dataclasses.fields(stage)}
        assert {name: defaults[name] for name in planned} == planned


@pytest.mark.parametrize(
    ("name", "text", "stage", "tokens"),
    [
        ("mine.yaml", "max_length: 100", "SFT", 3 * 1000 * 100),
        ("mine.yaml", "", "SFT", 3 * 1000 * 1024),
        ("mine.yaml", "held_out_share: 0.1", "pretraining", 1000 * 512),
        ("pretrain.yaml", "max_length: 100", "pretraining", 1000 * 100),
        ("mine.yaml", "num_train_epochs: 2\nmax_length: 10", "SFT", 2 * 1000 * 10),
        ("mine.yaml", "size: 70", "SFT", 3 * 1000 * 1024),
    ],
)
def test_epochs_and_length_are_those_of_the_stage_where_the_configuration_has_none(
    tmp_path, name, text, stage, tokens
):
    (tmp_path / name).write_text(f"model: nano\n{text}\n")
    run = run_plan(tmp_path / name, 1, rows=1000)
    assert (run.stage, run.tokens) == (stage, tokens)


def test_the_examples_of_an_sft_are_its_size_where_rows_is_not_given(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: nano\nsize: 70\nmax_length: 10\n")
    assert run_plan(tmp_path / "mine.yaml", 1).tokens == 3 * 70 * 10
    (tmp_path / "pretrain.yaml").write_text("model: nano\nsize: 70\n")
    assert run_plan(tmp_path / "pretrain.yaml", 1).tokens is None  # documents, which are packed


@pytest.mark.parametrize("option", ["kl_coef: 0.1", "ppo_epochs: 2", "completions_per_question: 4"])
def test_any_option_of_ppo_marks_its_configuration(tmp_path, option):
    (tmp_path / "mine.yaml").write_text(f"model: nano\n{option}\n")
    assert run_plan(tmp_path / "mine.yaml", 1).stage == "PPO"


def test_a_preset_of_the_configuration_is_planned(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: nano\npreset: orz\nquestions_per_rollout: 12\n")
    run = run_plan(tmp_path / "mine.yaml", 1)
    assert (run.rollout.sequences, run.rollout.epochs) == (12 * 8, 1)
    assert not run.plan.has_reference  # kl_coef 0
    (tmp_path / "mine.yaml").write_text("model: nano\npreset: nope\n")
    with pytest.raises(ValueError, match="preset 'nope' is not one of"):
        run_plan(tmp_path / "mine.yaml", 1)


def test_the_model_of_a_run_that_does_not_exist_is_found_in_the_configurations():
    run = run_plan("mini/ppo.yaml", 8)
    assert (run.plan.shape.layers, run.plan.shape.hidden) == (28, 4096)  # of mini/pretrain.yaml
    assert run.stage == "PPO" and run.plan.checkpointing and run.plan.has_reference
    assert run.rollout.sequences == 1024


def test_the_command_prints_memory_longest_sequence_and_hours(capsys):
    command.main(["--config", "small/ppo.yaml", "--gpus", "8", "--gpu_memory", "80"])
    said = capsys.readouterr().out
    assert "494,033,665 parameters" in said and "| full, FSDP2 |" in said
    assert "100 rollouts: " in said and said.count("| full, ") == 4
    command.main(["--config=small/sft.yaml", "--rows", "7473"])
    said = capsys.readouterr().out
    assert f"{2 * 7473 * 1024:,} tokens" in said and "hours" in said


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "no configuration"),
        (["--config", "nope.yaml"], "nope.yaml does not exist"),
        (["--config", "nano/eval.yaml"], "checkpoint"),
        (["--config", "nano/verifier.yaml"], "checkpoint"),
        (["--config", "nano/rft.yaml"], "rounds"),
        (["--config", "nano/search.yaml"], "step_tokens"),
        (["--config", "smol/recipe.yaml"], "config_dir"),
        (["--config", "small/ppo.yaml", "--model", "runs/no/such"], "such does not exist; give"),
        (["--config", "small/ppo.yaml", "--gpus", "0"], "gpus"),
        (["--config", "small/ppo.yaml", "--used_flops", "2"], "at most 1"),
    ],
)
def test_a_mistake_is_one_line(words, named, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(words)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and named in said and len(said.strip().splitlines()) == 1
