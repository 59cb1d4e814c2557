"""What both ways of decoding need: the sampler's batches and the prefixes of a search."""

from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Shrinking the batch takes a few copies, so it waits until this share of the rows is finished.
COMPACT_SHARE = 0.05


def pad_left(prompts: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids_BP, mask_BP), each prompt at the right edge.

    >>> pad_left([[5], [6, 7]], pad_id=0)[0].tolist()
    [[0, 5], [6, 7]]
    """
    width = max(map(len, prompts))
    ids_BP = torch.full((len(prompts), width), pad_id)
    mask_BP = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids_BP[row, width - len(prompt) :] = torch.tensor(prompt)
        mask_BP[row, width - len(prompt) :] = True
    return ids_BP, mask_BP


def positions(mask_BT: torch.Tensor) -> torch.Tensor:
    """Position of every token, 0 at the first real one whatever stands to its left.

    >>> positions(torch.tensor([[False, True, True]])).tolist()
    [[0, 0, 1]]
    """
    return (mask_BT.long().cumsum(dim=1) - 1).clamp_min(0)


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a completion: the tokenizer's and those the model declares."""
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r} has no end-of-text token, so a completion could "
            "never end; set tokenizer.eos_token"
        )
    declared = model.generation_config.eos_token_id
    declared = [declared] if isinstance(declared, int) else list(declared or [])
    return sorted({tokenizer.eos_token_id, *declared})


@contextmanager
def evaluating(model: nn.Module):
    """Dropout off while sampling, and no attention that is planned anew for every length."""
    was_training, planned = model.training, torch.backends.cuda.cudnn_sdp_enabled()
    model.eval()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        model.train(was_training)
        torch.backends.cuda.enable_cudnn_sdp(planned)
