"""The tables of memory and time in docs/hardware.md and README, computed again from their rules."""

from pathlib import Path
from typing import Any

import yaml

from pipeline.planning.memory import Plan, activation_bytes
from pipeline.planning.shapes import find_shape

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "hardware.md"
# Qwen2.5: layers, hidden, heads, key-value heads, head size, MLP, vocabulary, tied embedding.
SHAPES = (
    (24, 896, 14, 2, 64, 4864, 151_936, True),
    (28, 1536, 12, 2, 128, 8960, 151_936, True),
    (36, 2048, 16, 2, 128, 11_008, 151_936, True),
    (28, 3584, 28, 4, 128, 18_944, 152_064, False),
)
RANK = 16  # lora_r by default, on all linear layers but the LM head


def row(
    layers: int, hidden: int, heads: int, kv: int, size: int, mlp: int, vocab: int, tied: bool
) -> list[str]:
    """The cells of the table: parameters in billions, then GiB."""
    shapes = [(hidden, heads * size)] * 2 + [(hidden, kv * size)] * 2 + [(hidden, mlp)] * 3
    linear = layers * sum(a * b for a, b in shapes)
    adapters = 16 * layers * RANK * sum(a + b for a, b in shapes)
    embedding = vocab * hidden * (1 if tied else 2)
    total = linear + embedding
    sizes = [
        16 * total,
        20 * total,
        4 * total + adapters,
        2 * total + adapters,
        0.5625 * linear + 2 * embedding + adapters,
        2 * total,
    ]
    return [f"{total / 1e9:.2f}B", *(f"{bytes_ / 2**30:.1f}" for bytes_ in sizes)]


def minutes(
    layers: int, hidden: int, heads: int, kv: int, size: int, mlp: int, vocab: int, tied: bool
) -> list[str]:
    """The cells of the table of times, by the operations and bytes that the page states."""
    shapes = [(hidden, heads * size)] * 2 + [(hidden, kv * size)] * 2 + [(hidden, mlp)] * 3
    linear = layers * sum(a * b for a, b in shapes)
    stored, multiplied = linear + vocab * hidden * (1 if tied else 2), linear + vocab * hidden
    sft, ppo = (_small(name) for name in ("sft", "ppo"))
    completions = ppo["questions_per_rollout"] * ppo["completions_per_question"]
    sft_tokens = sft["num_train_epochs"] * 7473 * 200
    ppo_tokens = ppo["num_rollouts"] * completions * 300
    steps = ppo["num_rollouts"] * (completions // 256) * ppo["max_completion_length"]
    speed, reading = 0.3 * 728e12, steps * 4 * stored / (0.5 * 4.8e12)
    epochs = ppo["ppo_epochs"]
    found = [multiplied * training * sft_tokens / speed for training in (6, 4)]
    found += [
        multiplied * (2 + 2 + training * epochs) * ppo_tokens / speed + reading
        for training in (6, 4)
    ]
    return [f"{seconds / 60:.{1 if i < 2 else 0}f}" for i, seconds in enumerate(found)]


def _small(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "configs" / "small" / f"{name}.yaml").read_text())


def cells_of(path: Path, head: str) -> list[list[str]]:
    """The first rows of the table whose head begins so, one for each of SHAPES."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    return [line.strip("| ").split(" | ") for line in lines[start + 2 : start + 2 + len(SHAPES)]]


def test_the_memory_table_follows_from_the_bytes_of_the_page():
    assert cells_of(PAGE, "| parameters") == [row(*shape) for shape in SHAPES]


def test_the_table_of_times_follows_from_the_operations_of_the_page():
    expected = [[row(*shape)[0], *minutes(*shape)] for shape in SHAPES]
    assert cells_of(PAGE, "| model | SFT, full") == expected


def test_the_activations_of_the_page_are_those_of_the_plan():
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    found = [
        1000 * activation_bytes(Plan(find_shape(f"qwen2.5-{name}"))) / 2**30
        for name in ("0.5b", "7b")
    ]
    assert "(per 1,000 tokens 0.5B: {:.1f} GiB, 7B: {:.1f} GiB;".format(*found) in text
    assert f"6,144 tokens of 0.5B take about {6.144 * found[0]:.1f} GiB" in text


def test_the_readme_s_table_has_the_figures_of_the_page():
    memory, times = cells_of(PAGE, "| parameters"), cells_of(PAGE, "| model | SFT, full")
    for cells, of_memory, of_times in zip(
        cells_of(ROOT / "README.md", "| parameters"), memory, times, strict=True
    ):
        assert cells[1:6] == of_memory[1:6]
        assert cells[6:] == [" / ".join(of_times[1:3]), " / ".join(of_times[3:5])]
