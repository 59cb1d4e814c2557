"""A key-value cache with room to grow: a token is written in place, not joined to a copy of all.

transformers' DynamicCache copies the whole cache once a token and layer, and once more whenever
rows are dropped.
"""

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 64  # columns made at a time


class RoomyLayer(DynamicLayer):
    """Keys and values are views of buffers that have room for further columns."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            self.buffers = (self.keys, self.values)
            self.is_initialized = True
        before, after = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if after > self.buffers[0].shape[2]:
            self._make_room(after + ROOM)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, before:after] = states
        self._show(after)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self.spread(torch.arange(len(self.keys)).repeat_interleave(repeats))

    def spread(self, rows: torch.Tensor) -> None:
        """Row i becomes a copy of row rows[i]; there may be more of them than before."""
        columns = self.keys.shape[2]
        self._make_room(columns + ROOM)
        rows = rows.to(self.device)
        self.buffers = tuple(buffer.index_select(0, rows) for buffer in self.buffers)
        self._show(columns)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only rows that change places are copied."""
        if not self.is_initialized:
            return
        columns = self.keys.shape[2]
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(1)
        for buffer in self.buffers:
            buffer[moved, :, :columns] = buffer[indices[moved], :, :columns]
        self.buffers = tuple(buffer[: len(indices)] for buffer in self.buffers)
        self._show(columns)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def _make_room(self, columns: int) -> None:
        """Buffers of `columns`, filled with what there is."""
        made = []
        for x in (self.keys, self.values):
            buffer = x.new_empty(*x.shape[:2], columns, x.shape[3])
            buffer[:, :, : x.shape[2]] = x
            made.append(buffer)
        self.buffers = tuple(made)

    def _show(self, columns: int) -> None:
        self.keys, self.values = (buffer[:, :, :columns] for buffer in self.buffers)


def roomy_cache(config: PreTrainedConfig | None) -> DynamicCache:
    """The cache that a model of this configuration needs; layers with a window stay as they are.
    Without a configuration every layer keeps all its tokens."""
    cache = DynamicCache(config=config)
    cache.layers = [
        RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = RoomyLayer
    return cache


def closing_up(live_n: torch.Tensor) -> torch.Tensor:
    """keep_m: the live rows, those at the end moved into the places of the dropped, so that as few
    as possible have to be copied.

    >>> closing_up(torch.tensor([True, False, True, True])).tolist()
    [0, 3, 2]
    """
    count = int(live_n.sum())
    keep_m = torch.arange(count)
    keep_m[~live_n[:count]] = live_n[count:].nonzero().squeeze(1) + count
    return keep_m
