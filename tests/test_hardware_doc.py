"""The memory table of docs/hardware.md, computed again from the bytes that the page states."""

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "hardware.md"
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


def test_the_memory_table_follows_from_the_bytes_of_the_page():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| parameters"))
    cells = [line.strip("| ").split(" | ") for line in lines[start + 2 : start + 2 + len(SHAPES)]]
    assert cells == [row(*shape) for shape in SHAPES]
