"""Decode with CUDA graphs: capture the forward of one token, replay it for every token.

For a small model, launching hundreds of kernels from Python takes about ten times as long as
running them. A CUDA graph launches all of them at once, but only with the shapes and addresses that
it was captured with. Keys and values are therefore kept in buffers of a fixed size, a mask hides
the columns not yet written, and the index of the next column is a tensor on the device.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from pipeline.generation.kv_cache import DecodeState, PreallocatedLayer, last_logits_and_values
from pipeline.scoring.packed_attention import has_full_causal_attention

MIN_WIDTH = 256  # columns of a buffer; it doubles when it is full
MIN_TOKENS_TO_CAPTURE = 8  # fewer decoding steps do not repay the time of a capture


class StaticLayer(DynamicLayer):
    """Keys and values in buffers of `width` columns; `update` returns all columns.

    Args:
        layer: the cache layer whose keys and values are taken over.
        column_1: index of the column that the next token is written to, on the device.
        width: number of columns.
    """

    def __init__(self, layer: PreallocatedLayer, column_1: torch.Tensor, width: int):
        super().__init__()
        self.dtype, self.device = layer.dtype, layer.device
        self.keys, self.values, self.column_1 = layer.keys, layer.values, column_1
        self.is_initialized = True
        self.grow(width)

    def grow(self, width: int) -> None:
        """Pad keys and values with zeros to `width` columns."""
        self.keys, self.values = (_zero_padded(x, width, 2) for x in (self.keys, self.values))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the next column; returns all columns of keys and values."""
        self.keys.index_copy_(2, self.column_1, key_states)
        self.values.index_copy_(2, self.column_1, value_states)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices`, as copies."""
        self.keys, self.values = self.keys[indices], self.values[indices]


class CudaGraphDecoder:
    """Replacement of a `DecodeState` for up to `steps` further tokens, with the same interface.

    With `capture=False` every step is an ordinary forward, on any device.
    """

    # A smaller batch needs a new capture, so rows are dropped once this share has finished.
    compact_share = 0.5

    def __init__(self, state: DecodeState, steps: int, capture: bool = True):
        mask_nT, cache = state.mask_nT, state.cache
        self.start = self.columns = mask_nT.shape[1]
        self.max_width = self.columns + steps
        self.column_1 = torch.tensor([self.columns], device=mask_nT.device)
        self.positions_n1 = mask_nT.sum(dim=1, keepdim=True)
        self.tokens_n1 = torch.zeros_like(self.positions_n1)
        self.mask_nT = _zero_padded(mask_nT, self._next_width(), 1)
        cache.layers = [StaticLayer(x, self.column_1, self._width) for x in cache.layers]
        self.cache = cache
        self.logits_nV, self.values_n = state.logits_nV, state.values_n
        self.capture = capture and steps >= MIN_TOKENS_TO_CAPTURE
        self.warmed_up = False  # the first step initializes CUDA libraries and is not captured
        self.graph: torch.cuda.CUDAGraph | None = None

    def step(self, model: nn.Module, tokens_n: torch.Tensor) -> None:
        """Feed one token per row; updates logits and values."""
        if self.columns == self._width:
            self._grow()
        self.tokens_n1.copy_(tokens_n.unsqueeze(1))
        if self.capture and self.warmed_up and self.graph is None:
            self._capture(model)
        if self.graph is None:
            self._forward(model)
        else:
            self.graph.replay()
        self.columns, self.warmed_up = self.columns + 1, True

    def keep(self, rows: torch.Tensor) -> None:
        """Keep the given rows of the batch, in their order."""
        self.graph = None
        self.cache.batch_select_indices(rows)
        self.mask_nT, self.tokens_n1 = self.mask_nT[rows], self.tokens_n1[rows]
        self.positions_n1, self.logits_nV = self.positions_n1[rows], self.logits_nV[rows]
        self.values_n = None if self.values_n is None else self.values_n[rows]

    def _forward(self, model: nn.Module) -> None:
        self.mask_nT.index_fill_(1, self.column_1, True)
        output = model(
            input_ids=self.tokens_n1,
            attention_mask=self.mask_nT[:, None, None],
            position_ids=self.positions_n1,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.column_1 += 1
        self.positions_n1 += 1
        self.logits_nV, self.values_n = last_logits_and_values(output)

    def _capture(self, model: nn.Module) -> None:
        """Capture the forward of one token; where that fails, steps stay ordinary forwards.

        `torch.cuda.graph` is not used because it empties the memory cache first.
        """
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        torch.cuda.synchronize()
        try:
            with torch.cuda.stream(stream):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._forward(model)
                finally:
                    graph.capture_end()
        except RuntimeError:  # the model synchronizes with the host
            torch.cuda.synchronize()
            self.capture = False
        else:
            self.graph = graph

    def _grow(self) -> None:
        self.graph = None
        width = self._next_width()
        self.mask_nT = _zero_padded(self.mask_nT, width, 1)
        for layer in self.cache.layers:
            layer.grow(width)

    def _next_width(self) -> int:
        # Attention kernels need mask widths that are multiples of eight.
        return -8 * (-min(self.max_width, max(MIN_WIDTH, 2 * self.columns)) // 8)

    @property
    def _width(self) -> int:
        return self.mask_nT.shape[1]


State = DecodeState | CudaGraphDecoder


def with_cuda_graph(state: DecodeState, model: PreTrainedModel, steps: int) -> State:
    """A `CudaGraphDecoder` in place of `state` where steps can be captured, else `state`."""
    return CudaGraphDecoder(state, steps) if can_capture(model, state.cache) else state


def can_capture(model: PreTrainedModel, cache: Cache) -> bool:
    """Whether the model is on a GPU and a mask alone determines what each token attends to."""
    return (
        model.device.type == "cuda"
        and has_full_causal_attention(model)
        and all(type(layer) is PreallocatedLayer for layer in cache.layers)
    )


def _zero_padded(x: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """x padded at the end of `dim` to `width` with zeros.

    Uninitialized memory could hold NaN, and masked columns take part in sums with weight 0.
    """
    shape = list(x.shape)
    shape[dim] = width
    wide = x.new_zeros(shape)
    wide.narrow(dim, 0, x.shape[dim]).copy_(x)
    return wide
