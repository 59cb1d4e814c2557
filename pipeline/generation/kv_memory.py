"""How many sequences can be sampled together in the memory of a GPU."""

import torch
from transformers import PreTrainedConfig

MOST_ROWS = 256  # sequences that are sampled together where memory does not limit them
USED_SHARE = 0.8  # of the free memory; the rest is for fragments and activations
# Bytes of a logit while a token is drawn: float32 logits, those divided by the temperature, their
# log-probabilities and cumulated probabilities.
LOGIT_BYTES = 16


def rows_that_fit(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    most: int = MOST_ROWS,
) -> int:
    """Return `most`, halved until keys and values of that many sequences fit in the free memory of
    a GPU; at least 1. On other devices `most`.

    Args:
        config: of the model.
        dtype: of its weights. Under autocast, keys have this dtype after rotary embedding.
        device: that samples.
        tokens: of the longest prompt and completion together.
    """
    if device.type != "cuda":
        return most
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return rows_in(USED_SHARE * free, row_bytes(config, dtype, tokens), most)


def row_bytes(config: PreTrainedConfig, dtype: torch.dtype, tokens: int) -> int:
    """Return the bytes that sampling one sequence of so many tokens takes."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    width = (getattr(config, "num_key_value_heads", None) or heads) * size
    cached = 2 * config.num_hidden_layers * width * dtype.itemsize
    return cached * tokens + LOGIT_BYTES * config.vocab_size


def rows_in(memory: float, per_row: int, most: int) -> int:
    """Return `most`, halved until so many rows fit in the memory, at least 1.

    >>> rows_in(100.0, 10, 256), rows_in(5.0, 10, 256)
    (8, 1)
    """
    rows = most
    while rows > 1 and rows * per_row > memory:
        rows //= 2
    return rows
