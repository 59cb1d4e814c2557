"""A key-value cache with preallocated columns, and the state of a batch that uses it.

A token is written in place. transformers' DynamicCache copies the whole cache for every token and
layer, and again whenever rows are dropped.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

EXTRA_COLUMNS = 64  # allocated beyond what is needed


class PreallocatedLayer(DynamicLayer):
    """Cache layer whose keys and values are views of larger buffers."""

    is_initialized: bool
    buffers: tuple[torch.Tensor, ...]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the columns of further tokens; returns all keys and values."""
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            self.buffers = (self.keys, self.values)
            self.is_initialized = True
        old_width, new_width = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if new_width > self.buffers[0].shape[2]:
            self._grow_buffers(new_width + EXTRA_COLUMNS)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, old_width:new_width] = states
        self._set_width(new_width)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times; copies are adjacent."""
        if self.is_initialized:
            self.gather_rows(torch.arange(len(self.keys)).repeat_interleave(repeats))

    def gather_rows(self, rows: torch.Tensor) -> None:
        """Row i becomes a copy of row rows[i]; the number of rows may grow."""
        columns = self.keys.shape[2]
        self._grow_buffers(columns + EXTRA_COLUMNS)
        rows = rows.to(self.device)
        self.buffers = tuple(buffer.index_select(0, rows) for buffer in self.buffers)
        self._set_width(columns)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices`; only rows whose index changes are copied."""
        if not self.is_initialized:
            return
        columns = self.keys.shape[2]
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(1)
        for buffer in self.buffers:
            buffer[moved, :, :columns] = buffer[indices[moved], :, :columns]
        self.buffers = tuple(buffer[: len(indices)] for buffer in self.buffers)
        self._set_width(columns)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep the rows `beam_idx`, as transformers calls it."""
        self.batch_select_indices(beam_idx)

    def _grow_buffers(self, columns: int) -> None:
        """Replace the buffers by ones of `columns` columns with the same content."""
        made = []
        for x in (self.keys, self.values):
            buffer = x.new_empty(*x.shape[:2], columns, x.shape[3])
            buffer[:, :, : x.shape[2]] = x
            made.append(buffer)
        self.buffers = tuple(made)

    def _set_width(self, columns: int) -> None:
        self.keys, self.values = (buffer[:, :, :columns] for buffer in self.buffers)


def preallocated_cache(config: PreTrainedConfig | None) -> DynamicCache:
    """A `DynamicCache` for a model of this configuration, with preallocated layers.

    Layers with sliding-window attention keep their own type. Without a configuration every layer
    is preallocated and keeps all tokens.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        PreallocatedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = PreallocatedLayer
    return cache


def compaction_indices(live_n: torch.Tensor) -> torch.Tensor:
    """keep_m: indices of the live rows, in an order that needs the fewest copies.

    Live rows at the end take the places of the dropped ones; all others keep theirs.

    >>> compaction_indices(torch.tensor([True, False, True, True])).tolist()
    [0, 3, 2]
    """
    count = int(live_n.sum())
    keep_m = torch.arange(count)
    keep_m[~live_n[:count]] = live_n[count:].nonzero().squeeze(1) + count
    return keep_m


# Dropping rows copies some of the others, so it waits until this share of the rows has finished.
COMPACT_SHARE = 0.05


def pad_left(prompts: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids_BP, mask_BP): prompts padded on the left; the mask is True on prompt tokens.

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


def position_ids(mask_BT: torch.Tensor) -> torch.Tensor:
    """Position of every token, counted from the first one that is not padding.

    >>> position_ids(torch.tensor([[False, True, True]])).tolist()
    [[0, 0, 1]]
    """
    return (mask_BT.long().cumsum(dim=1) - 1).clamp_min(0)


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a completion: the tokenizer's and those in the model's generation config.

    Raises:
        ValueError: the tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r} has no end-of-text token, so a completion could "
            "never end; set tokenizer.eos_token"
        )
    declared = model.generation_config.eos_token_id
    declared = [declared] if isinstance(declared, int) else list(declared or [])
    return sorted({tokenizer.eos_token_id, *declared})


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context in which dropout and cuDNN attention are off.

    cuDNN builds an execution plan for every new length, which is slow when decoding.
    """
    was_training, cudnn_sdp = model.training, torch.backends.cuda.cudnn_sdp_enabled()
    model.eval()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        model.train(was_training)
        torch.backends.cuda.enable_cudnn_sdp(cudnn_sdp)


class DecodeState:
    """A batch between two decoding steps: cache, mask, and logits and values of the last token.

    mask_nT is True on tokens, logits_nV and values_n are float32; values_n is None without a value
    head. `start` is the width of the prompts.
    """

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
        cls, model: nn.Module, cache: DynamicCache, ids_QP: torch.Tensor, mask_QT: torch.Tensor
    ) -> "DecodeState":
        """The state after a forward over left-padded prompts.

        mask_QT is of the tokens that the cache holds, if any, and then of ids_QP.
        """
        output = model(
            input_ids=ids_QP,
            attention_mask=mask_QT.long(),
            position_ids=position_ids(mask_QT)[:, -ids_QP.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cls(cache, mask_QT, *last_logits_and_values(output))

    def repeat(self, group: int) -> None:
        """Repeat each row `group` times; copies are adjacent."""
        self.cache.batch_repeat_interleave(group)
        self.mask_nT, self.logits_nV = (
            x.repeat_interleave(group, dim=0) for x in (self.mask_nT, self.logits_nV)
        )
        if self.values_n is not None:
            self.values_n = self.values_n.repeat_interleave(group, dim=0)

    def step(self, model: nn.Module, tokens_n: torch.Tensor) -> None:
        """Feed one token per row; updates logits and values."""
        self.mask_nT = torch.cat([self.mask_nT, self.mask_nT.new_ones(len(tokens_n), 1)], dim=1)
        output = model(
            input_ids=tokens_n.unsqueeze(1),
            # Without padding no mask is passed: attention is faster without one.
            attention_mask=self.mask_nT.long() if self.padded else None,
            position_ids=self.mask_nT.sum(dim=1, keepdim=True) - 1,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits_nV, self.values_n = last_logits_and_values(output)

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the given rows of the batch, in their order.

        Columns that are padding in all remaining rows stay: removing them would copy the cache.
        """
        self.cache.batch_select_indices(rows)
        self.mask_nT, self.logits_nV = self.mask_nT[rows], self.logits_nV[rows]
        self.values_n = None if self.values_n is None else self.values_n[rows]
        self.padded = self.padded and not bool(self.mask_nT.all())


def last_logits_and_values(output: dict) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(logits_nV, values_n) of the last position, float32; values None without a value head."""
    values_nT = output.get("state_values")
    return output["logits"][:, -1].float(), None if values_nT is None else values_nT[:, -1].float()
