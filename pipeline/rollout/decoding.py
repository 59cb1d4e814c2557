"""What both ways of decoding need: the sampler's batches and the prefixes of a search."""

from contextlib import contextmanager

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

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


class Decoding:
    """A batch between two tokens: cache, mask, and the last logits and values, in float32."""

    compact_share = COMPACT_SHARE

    def __init__(
        self,
        cache: DynamicCache,
        mask_nT: torch.Tensor,
        logits_nV: torch.Tensor,
        values_n: torch.Tensor | None,
    ):
        self.cache, self.mask_nT, self.start = cache, mask_nT, mask_nT.shape[1]
        self.logits_nV, self.values_n = logits_nV, values_n
        self.padded = not bool(mask_nT.all())

    @classmethod
    def prefill(
        cls, model: nn.Module, cache: DynamicCache, ids_QP: torch.Tensor, mask_QP: torch.Tensor
    ) -> "Decoding":
        output = model(
            input_ids=ids_QP,
            attention_mask=mask_QP.long(),
            position_ids=positions(mask_QP),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cls(cache, mask_QP, *last_scores(output))

    def repeat(self, group: int) -> None:
        """Each row `group` times, side by side."""
        self.cache.batch_repeat_interleave(group)
        self.mask_nT, self.logits_nV = (
            x.repeat_interleave(group, dim=0) for x in (self.mask_nT, self.logits_nV)
        )
        if self.values_n is not None:
            self.values_n = self.values_n.repeat_interleave(group, dim=0)

    def step(self, model: nn.Module, tokens_n: torch.Tensor) -> None:
        self.mask_nT = torch.cat([self.mask_nT, self.mask_nT.new_ones(len(tokens_n), 1)], dim=1)
        output = model(
            input_ids=tokens_n.unsqueeze(1),
            # A mask that hides nothing is left out: attention is faster without one.
            attention_mask=self.mask_nT.long() if self.padded else None,
            position_ids=self.mask_nT.sum(dim=1, keepdim=True) - 1,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits_nV, self.values_n = last_scores(output)

    def keep(self, rows: torch.Tensor) -> None:
        """Columns that are padding in every row that is left are never looked at again, but stay:
        cutting them would copy the whole cache once more."""
        self.cache.batch_select_indices(rows)
        self.mask_nT, self.logits_nV = self.mask_nT[rows], self.logits_nV[rows]
        self.values_n = None if self.values_n is None else self.values_n[rows]
        self.padded = self.padded and not bool(self.mask_nT.all())


def last_scores(output: dict) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(logits_nV, values_n) of the last position; values where there is a value head."""
    values_nT = output.get("values")
    return output["logits"][:, -1].float(), None if values_nT is None else values_nT[:, -1].float()
