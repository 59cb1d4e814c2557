"""Decoding on a GPU as a recorded graph, replayed once a token.

A token of a small model keeps a GPU busy for a moment; launching its hundreds of kernels from
Python takes ten times as long. A CUDA graph launches them all at once, but only with the shapes and
addresses it was recorded with. So keys and values stand in buffers of a fixed size, a mask hides
the columns that are not written yet, and where the next token goes is known on the device.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from pipeline.generation.kv_cache import DecodeState, PreallocatedLayer, last_scores
from pipeline.scoring.packed_attention import sees_all_before

LEAST_COLUMNS = 256  # of a buffer; it grows by its own size
MIN_TOKENS_TO_CAPTURE = 8  # steps; a recording takes about as long as one that is run as it is


class StaticLayer(DynamicLayer):
    """Keys and values of `width` columns; a token is written into the column that the device knows
    of, and all columns are shown."""

    def __init__(self, layer: PreallocatedLayer, column_1: torch.Tensor, width: int):
        super().__init__()
        self.dtype, self.device = layer.dtype, layer.device
        self.keys, self.values, self.column_1 = layer.keys, layer.values, column_1
        self.is_initialized = True
        self.widen(width)

    def widen(self, width: int) -> None:
        self.keys, self.values = (_widened(x, width, 2) for x in (self.keys, self.values))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys.index_copy_(2, self.column_1, key_states)
        self.values.index_copy_(2, self.column_1, value_states)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.keys, self.values = self.keys[indices], self.values[indices]


class CudaGraphDecoder:
    """At most `steps` steps that go on from `state`, whose place it takes. Without `record` every
    one is run as it is, on any device."""

    # A batch that shrinks is recorded anew, so it waits until so many of its rows are finished.
    compact_share = 0.5

    def __init__(self, state: DecodeState, steps: int, record: bool = True):
        mask_nT, cache = state.mask_nT, state.cache
        self.start = self.columns = mask_nT.shape[1]
        self.most = self.columns + steps
        self.column_1 = torch.tensor([self.columns], device=mask_nT.device)
        self.positions_n1 = mask_nT.sum(dim=1, keepdim=True)
        self.tokens_n1 = torch.zeros_like(self.positions_n1)
        self.mask_nT = _widened(mask_nT, self._next_width(), 1)
        cache.layers = [StaticLayer(x, self.column_1, self._width) for x in cache.layers]
        self.cache = cache
        self.logits_nV, self.values_n = state.logits_nV, state.values_n
        self.record = record and steps >= MIN_TOKENS_TO_CAPTURE
        self.warm = False  # libraries set themselves up in the first step, which is not recorded
        self.graph: torch.cuda.CUDAGraph | None = None

    def step(self, model: nn.Module, tokens_n: torch.Tensor) -> None:
        if self.columns == self._width:
            self._grow()
        self.tokens_n1.copy_(tokens_n.unsqueeze(1))
        if self.record and self.warm and self.graph is None:
            self._capture(model)
        if self.graph is None:
            self._forward(model)
        else:
            self.graph.replay()
        self.columns, self.warm = self.columns + 1, True

    def keep(self, rows: torch.Tensor) -> None:
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
        self.logits_nV, self.values_n = last_scores(output)

    def _capture(self, model: nn.Module) -> None:
        """Not by `torch.cuda.graph`, which gives all spare memory back first."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        torch.cuda.synchronize()
        try:
            with torch.cuda.stream(stream):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._forward(model)
                finally:
                    graph.capture_end()
        except RuntimeError:  # the model asks the host for something
            torch.cuda.synchronize()
            self.record = False
        else:
            self.graph = graph

    def _grow(self) -> None:
        self.graph = None
        width = self._next_width()
        self.mask_nT = _widened(self.mask_nT, width, 1)
        for layer in self.cache.layers:
            layer.widen(width)

    def _next_width(self) -> int:
        # Attention wants its mask in multiples of eight columns.
        return -8 * (-min(self.most, max(LEAST_COLUMNS, 2 * self.columns)) // 8)

    @property
    def _width(self) -> int:
        return self.mask_nT.shape[1]


State = DecodeState | CudaGraphDecoder


def with_cuda_graph(state: DecodeState, model: PreTrainedModel, steps: int) -> State:
    """`state`, or what takes its place where steps can be recorded."""
    return CudaGraphDecoder(state, steps) if can_capture(model, state.cache) else state


def can_capture(model: PreTrainedModel, cache: Cache) -> bool:
    """Whether a mask alone says what a token sees, and a GPU is there to record for."""
    return (
        model.device.type == "cuda"
        and sees_all_before(model)
        and all(type(layer) is PreallocatedLayer for layer in cache.layers)
    )


def _widened(x: torch.Tensor, width: int, dim: int) -> torch.Tensor:
    """x with zeros behind it along `dim`. Not whatever lay in memory: a hidden column still takes
    part in sums, with weight 0."""
    shape = list(x.shape)
    shape[dim] = width
    wide = x.new_zeros(shape)
    wide.narrow(dim, 0, x.shape[dim]).copy_(x)
    return wide
