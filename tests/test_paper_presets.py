"""The configurations of the paper's sizes: Table A1, section 6.1, a step of a scaled-down twin."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from eval import run
from pipeline.config import ModelConfig
from pipeline.model.nano import meta_model, nano_config
from pipeline.search import SearchOptions
from stages import infer, ppo, pretrain, sft

ROOT = Path(__file__).parents[1]
SIZES = {  # layers, hidden size, heads, parameters, training tokens, output limit
    "mini": (28, 4096, 32, 6e9, 200e9, 65_536),
    "preview": (96, 12288, 96, 175e9, 500e9, 32_768),
}
WINDOW = 131_072
PAPERS = sorted(SIZES)
FOLDERS = ["small", *PAPERS]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def read(folder: str, stage: str) -> dict:
    return yaml.safe_load((ROOT / "configs" / folder / f"{stage}.yaml").read_text())


def gpus(folder: str, stage: str) -> int:
    """The number of GPUs that the head of a file states."""
    text = (ROOT / "configs" / folder / f"{stage}.yaml").read_text()
    return int(re.search(r"# Hardware: (\d+) GPUs", text)[1])


@pytest.mark.parametrize("folder", PAPERS)
def test_the_architecture_is_that_of_section_6_1(folder):
    layers, hidden, heads, parameters, _, _ = SIZES[folder]
    values = read(folder, "pretrain")
    assert (values["nano_layers"], values["nano_hidden_size"], values["nano_heads"]) == (
        *(layers, hidden, heads),
    )
    config = ModelConfig(**{k: v for k, v in values.items() if k.startswith(("nano_", "model"))})
    model = meta_model(
        nano_config(
            vocab_size=config.nano_vocab_size,
            hidden_size=config.nano_hidden_size,
            num_hidden_layers=config.nano_layers,
            num_attention_heads=config.nano_heads,
            intermediate_size=config.nano_intermediate_size,
            max_position_embeddings=config.nano_window,
        )
    )
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == pytest.approx(parameters, rel=0.025)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.config.max_position_embeddings == WINDOW
    head = (ROOT / "configs" / folder / "pretrain.yaml").read_text()
    stated = float(re.search(r"([\d.]+)B parameters", head.replace("\n# ", " "))[1])
    assert counted / 1e9 == pytest.approx(stated, rel=1e-2)


@pytest.mark.parametrize("folder", PAPERS)
def test_pretraining_reads_the_tokens_of_section_6_1_in_the_batches_of_table_a1(folder):
    values = read(folder, "pretrain")
    accumulation = values["gradient_accumulation_steps"]
    batch = values["per_device_train_batch_size"] * accumulation * gpus(folder, "pretrain")
    assert (batch, accumulation, values["warmup_steps"]) == (512, 8, 2000)
    assert (values["max_length"], values["weight_decay"]) == (2048, 0.1)
    tokens = batch * values["max_length"]
    assert 0 <= values["max_steps"] * tokens - SIZES[folder][4] < tokens


@pytest.mark.parametrize("folder", PAPERS)
def test_fine_tuning_has_the_other_column_of_table_a1(folder):
    values, rl = read(folder, "sft"), read(folder, "ppo")
    accumulation = values["gradient_accumulation_steps"]
    batch = values["per_device_train_batch_size"] * accumulation * gpus(folder, "sft")
    assert (batch, accumulation, values["max_length"]) == (256, 4, 1024)
    batch = rl["questions_per_rollout"] * rl["completions_per_question"] // rl["num_minibatches"]
    assert (batch, batch // rl["micro_batch_size"] // gpus(folder, "ppo")) == (256, 4)
    assert (rl["clip"], rl["ppo_epochs"], rl["value_coef"], rl["entropy_coef"]) == (
        *(0.2, 4, 0.5, 0.01),
    )
    assert rl["max_completion_length"] == 1024
    assert [v["warmup_steps"] for v in (values, rl)] == [1000, 1000]
    assert [v["weight_decay"] for v in (values, rl)] == [0.1, 0.1]


def test_the_two_sizes_differ_in_numbers_only():
    for stage in ("pretrain", "sft", "ppo", "eval", "search"):
        one, other = (read(folder, stage) for folder in PAPERS)
        assert one.keys() == other.keys(), stage


@pytest.mark.parametrize("folder", PAPERS)
def test_every_effort_and_the_reserve_fit_the_window_beside_the_question(folder):
    options = SearchOptions(**read(folder, "search"))
    highest = max(options.effort_tokens().values())
    assert highest == SIZES[folder][5] == options.sample_tokens
    assert highest + 25_000 < WINDOW  # the reserve of 5.2, and still room for a question


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_opens_with_its_purpose_and_its_hardware(folder):
    for stage in ("pretrain", "sft", "ppo", "eval", "search"):
        head = (ROOT / "configs" / folder / f"{stage}.yaml").read_text()
        assert re.match(
            r"# (?:Continued p|P)retraining |# SFT |# PPO |# Evaluation |# Search ", head
        ), stage
        assert "\n# Hardware: " in head, stage


WORDS = "ann bob red hen egg nine carl sells"
SMALL = "--nano_hidden_size 32 --nano_layers 1 --nano_heads 2 --nano_intermediate_size 64"


@pytest.mark.parametrize(
    "folder", [pytest.param(f, marks=[] if f == "mini" else pytest.mark.slow) for f in FOLDERS]
)
def test_a_scaled_down_twin_goes_one_step_through_every_stage(folder, tmp_path, capsys):
    """Every value of the files that is no size, path or length is used as it is."""
    text, sums = tmp_path / "text.jsonl", tmp_path / "sums.jsonl"
    text.write_text("".join(json.dumps({"text": f"{WORDS} {i} " * 4}) + "\n" for i in range(200)))
    rows = [
        {"question": f"What is {i} + 1?", "answer": str(i + 1), "thought": f"{i}+1={i + 1}"}
        for i in range(140)
    ]
    sums.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def arguments(stage: str, given: str) -> list[str]:
        config = ROOT / "configs" / folder / f"{stage}.yaml"
        shared = "--overlap allow --disable_tqdm true --gradient_checkpointing false"
        folders = ["--config", str(config), "--output_dir", str(tmp_path / stage)]
        return [*folders, *shared.split(), *given.split()]

    window = f"--nano_window {WINDOW // 256}"
    one = "--max_steps 1 --per_device_train_batch_size 1"
    pretrain.main(
        arguments(
            "pretrain",
            f"--model nano {SMALL} {window} --nano_vocab_size 300 --dataset {text} --max_length 8 "
            f"--dataset_config null {one}",
        )
    )
    sft.main(
        arguments("sft", f"--model {tmp_path}/pretrain --dataset {sums} {one} --max_length 64")
    )
    ppo.main(
        arguments(
            "ppo",
            f"--model {tmp_path}/sft --dataset {sums} --num_rollouts 1 --questions_per_rollout 4 "
            "--completions_per_question 2 --micro_batch_size 1 --max_completion_length 4 "
            "--ppo_epochs 1",
        )
    )
    search = read(folder, "search")
    scale = 1024 if folder in PAPERS else 32
    efforts = {k: v // scale for k, v in SearchOptions(**search).effort_tokens().items()}
    budget = ",".join(f"{name}={tokens}" for name, tokens in efforts.items())
    capsys.readouterr()
    infer.main(
        [
            *("--config", str(ROOT / "configs" / folder / "search.yaml")),
            *("--checkpoint", str(tmp_path / "ppo"), "--question", "What is 2 + 1?"),
            *("--efforts", budget, "--reasoning_effort", "high", "--answer_tokens", "2"),
            *("--max_sample_tokens", str(search["max_sample_tokens"] // scale)),
        ]
    )
    evaluation = read(folder, "eval")
    run.main(
        [
            *("--config", str(ROOT / "configs" / folder / "eval.yaml"), "--limit", "2"),
            *("--checkpoint", str(tmp_path / "ppo"), "--suite", str(sums), "--answer_tokens", "2"),
            *("--output_dir", str(tmp_path / "eval"), "--device", "cpu"),
            *("--max_sample_tokens", str(evaluation["max_sample_tokens"] // scale)),
        ]
    )
    assert json.loads((tmp_path / "eval/metrics.json").read_text())["n"] == 2
    used = re.search(r"(\d+) reasoning \+ (\d+) visible", capsys.readouterr().out)
    assert 0 < int(used[1]) + int(used[2]) <= efforts["high"]
