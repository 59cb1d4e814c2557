"""Decode one batch that sequences join and leave between two tokens (continuous batching).

The method is iteration-level scheduling (Orca, OSDI 2022). All rows end at the same column of the
cache and begin at different ones, so attention with a window sees the true distances:

    row 0   . . . a b c d          a joining row is copied to the left of the common last column,
    row 1   . a b c d e f          a row that has finished makes place for the last row
            first         end
"""

from collections.abc import Iterable, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from pipeline.generation.decode_row import DecodeRow
from pipeline.generation.kv_cache import (
    EXTRA_COLUMNS,
    compaction_indices,
    last_logits_and_values,
    preallocated_cache,
)
from pipeline.generation.kv_pool import KVPool
from pipeline.generation.sampling import logprobs_of
from pipeline.generation.shared_prefix import PrefixEngine, sample_or_argmax


class BatchLayer(DynamicLayer):
    """Keys and values of one layer in buffers (rows, heads, columns, head_dim), zero where unused.

    `keys` and `values` are views of the rows and columns in use.
    """

    buffers: tuple[torch.Tensor, ...]

    def __init__(self, pool_layer: tuple[torch.Tensor, torch.Tensor]):
        super().__init__()
        self.dtype, self.device = pool_layer[0].dtype, pool_layer[0].device
        self.is_initialized = True
        self.buffers = tuple(x.new_zeros(0, x.shape[1], 0, x.shape[2]) for x in pool_layer)

    def resize(self, rows: int, columns: int, kept: tuple[int, int], end: int) -> None:
        """New buffers; the last kept[1] columns before the old end of kept[0] rows end at `end`."""
        moved = []
        for buffer, view in zip(self.buffers, (self.keys, self.values), strict=True):
            heads, width = buffer.shape[1], buffer.shape[3]
            new = buffer.new_zeros(rows, heads, columns, width)
            if kept[0]:
                new[: kept[0], :, end - kept[1] : end] = view[: kept[0], :, -kept[1] :]
            moved.append(new)
        self.buffers = tuple(moved)

    def write(self, row: int, end: int, pool: KVPool, index: int, slots: torch.Tensor) -> None:
        """Copy the tokens in the pool's slots to the columns before `end` of one row."""
        for buffer, states in zip(self.buffers, pool.layers[index], strict=True):
            where = slots.to(states.device)
            buffer[row, :, end - len(slots) : end] = states[where].transpose(0, 1)

    def show(self, rows: int, first: int, end: int) -> None:
        """Use the first `rows` rows and the columns from `first` to before `end`."""
        self.first, self.end = first, end
        self.keys, self.values = (buffer[:rows, :, first:end] for buffer in self.buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the next column; returns all keys and values in use."""
        rows = len(key_states)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, self.end : self.end + 1] = states
        self.show(rows, self.first, self.end + 1)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Row i becomes row indices[i]; only rows whose index changes are copied."""
        moved = (indices != torch.arange(len(indices))).nonzero().squeeze(1).to(self.device)
        sources = indices.to(self.device)[moved]
        for buffer in self.buffers:
            buffer[moved, :, self.first : self.end] = buffer[sources, :, self.first : self.end]
        self.show(len(indices), self.first, self.end)


class ContinuousBatch:
    """The rows that are decoded together.

    Attributes:
        rows: what is decoded, one entry per row of the batch.
        logits_nV, values_n: of the last token of every row, float32; values_n is None without a
            value head.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.cache: DynamicCache = preallocated_cache(None)
        self.clear()

    def clear(self) -> None:
        """Remove all rows and free the cache."""
        self.rows: list[DecodeRow] = []
        self.engines: list[PrefixEngine] = []
        self.lengths_n = torch.zeros(0, dtype=torch.long)  # tokens of each row in the cache
        self.end = self.capacity = 0  # columns in use end here; columns allocated
        self.logits_nV = torch.zeros(0)
        self.values_n: torch.Tensor | None = None
        self.cache.layers = []

    def add(self, rows: Sequence[tuple[DecodeRow, PrefixEngine]]) -> None:
        """Let rows join; each engine's pool has the keys and values of its row's sequence."""
        if not rows:
            return
        sequences = [row.request.sequence for row, _ in rows]
        lengths = torch.tensor([sequence.known_cached.length for sequence in sequences])
        if not self.cache.layers:
            self.cache.layers = [BatchLayer(layer) for layer in rows[0][1].pool.layers]
            for layer in self.cache.layers:
                layer.show(0, 0, 0)
        before = len(self.rows)
        self._reserve(before + len(rows), int(lengths.max()))
        for i, (sequence, (_, engine)) in enumerate(zip(sequences, rows, strict=True)):
            slots = sequence.known_cached.all_slots()
            for index, layer in enumerate(self.cache.layers):
                layer.write(before + i, self.end, engine.pool, index, slots)
        self.rows += [row for row, _ in rows]
        self.engines += [engine for _, engine in rows]
        self.lengths_n = torch.cat([self.lengths_n, lengths])
        logits_mV = torch.stack([s.logits_V for s in sequences if s.logits_V is not None])
        self.logits_nV = torch.cat([self.logits_nV, logits_mV]) if before else logits_mV
        values = [sequence.value for sequence in sequences]
        values_m = None if values[0] is None else logits_mV.new_tensor(values)
        if before and self.values_n is not None and values_m is not None:
            values_m = torch.cat([self.values_n, values_m])
        self.values_n = values_m
        self._show()

    def step(self) -> list[DecodeRow]:
        """Append a token to every row; returns the rows that have finished, which leave."""
        self._sample()
        finished = self.remove(row for row in self.rows if not row.needs_forward)
        if not self.rows:
            return finished
        self._reserve(len(self.rows), int(self.lengths_n.max()))
        self._show()
        self._forward()
        for index, row in enumerate(self.rows):
            row.after_forward(self, index)
        self._store()
        return finished + self.remove(row for row in self.rows if not row.active)

    def remove(self, rows: Iterable[DecodeRow]) -> list[DecodeRow]:
        """Let rows leave, finished or not; returns them."""
        leaving = list(rows)
        if not leaving:
            return leaving
        gone = {id(row) for row in leaving}
        live_n = torch.tensor([id(row) not in gone for row in self.rows])
        if not live_n.any():
            self.clear()
            return leaving
        keep_n = compaction_indices(live_n)
        self.cache.batch_select_indices(keep_n)
        self.rows = [self.rows[i] for i in keep_n.tolist()]
        self.engines = [self.engines[i] for i in keep_n.tolist()]
        self.lengths_n = self.lengths_n[keep_n]
        on_device = keep_n.to(self.logits_nV.device)
        self.logits_nV = self.logits_nV[on_device]
        self.values_n = None if self.values_n is None else self.values_n[on_device]
        return leaving

    def _sample(self) -> None:
        """Sample the next token of every row and write it down."""
        rows = self.rows
        temperature_n = torch.tensor([row.request.temperature for row in rows])
        top_p_n = torch.tensor([engine.top_p for engine in self.engines])
        steps = [len(row.ids) for row in rows]
        uniform_n = torch.tensor([row.uniform(step) for row, step in zip(rows, steps, strict=True)])
        tokens_n = sample_or_argmax(self.logits_nV, temperature_n, uniform_n, top_p_n)
        forced = [row.closes_thought(step) for row, step in zip(rows, steps, strict=True)]
        if any(forced):
            ids_n = tokens_n.new_tensor([engine.end_think_id for engine in self.engines])
            tokens_n = torch.where(torch.tensor(forced, device=tokens_n.device), ids_n, tokens_n)
        logprobs = logprobs_of(tokens_n, self.logits_nV).tolist()
        values = [None] * len(rows) if self.values_n is None else self.values_n.tolist()
        for i, token in enumerate(tokens_n.tolist()):
            rows[i].write(token, logprobs[i], values[i], forced[i])
            self.engines[i].generated_tokens += 1

    def _forward(self) -> None:
        """Feed the last token of every row; updates logits and values."""
        device = self.model.device
        self.lengths_n = self.lengths_n + 1
        width = int(self.lengths_n.max())
        mask_nT = torch.arange(width) >= width - self.lengths_n.unsqueeze(1)
        self.end += 1
        output = self.model(
            input_ids=torch.tensor([[row.ids[-1]] for row in self.rows], device=device),
            # Without padding no mask is passed: attention is faster without one.
            attention_mask=None if mask_nT.all() else mask_nT.long().to(device),
            position_ids=(self.lengths_n - 1).unsqueeze(1).to(device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits_nV, self.values_n = last_logits_and_values(output)

    def _store(self) -> None:
        """Copy keys and values of rows that can be continued later to their engine's pool."""
        for index, (row, engine) in enumerate(zip(self.rows, self.engines, strict=True)):
            if row.to_store:
                width, new = int(self.lengths_n.max()), len(row.ids)
                columns = torch.arange(width - new, width)
                slots = engine.pool.write(self.cache, torch.full((new,), index), columns)
                row.cached = engine.pool.path(row.request.sequence.known_cached, slots)
                row.to_store = False

    def _reserve(self, rows: int, longest: int) -> None:
        """Make room for that many rows of that many tokens, and for one more token."""
        live = int(self.lengths_n.max()) if self.rows else 0
        needed = max(live, longest)
        if not self.rows and needed < self.capacity:
            self.end = needed
        room = len(self.cache.layers[0].buffers[0]) if self.cache.layers else 0
        if rows <= room and needed <= self.end < self.capacity:
            return
        # At least half of the columns are free after a move, so that it pays for itself.
        self.capacity = max(self.capacity, 2 * (needed + EXTRA_COLUMNS))
        room = room if rows <= room else max(rows, 2 * room)
        for layer in self.cache.layers:
            layer.resize(room, self.capacity, (len(self.rows), live), needed)
            layer.show(len(self.rows), needed - live, needed)
        self.end = needed

    def _show(self) -> None:
        first = self.end - int(self.lengths_n.max())
        for layer in self.cache.layers:
            layer.show(len(self.rows), first, self.end)
