"""Storage of keys and values by token, for sequences that share prefixes."""

import torch
from transformers import DynamicCache

from pipeline.generation.kv_cache import preallocated_cache
from pipeline.generation.sequence import CachedPath


class KVPool:
    """Keys and values of single tokens, (slots, heads, head_dim) per layer; grows by doubling.

    Slots that were freed are used again. `used` is the number of slots in use.
    """

    def __init__(self) -> None:
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._end = 0  # slots from here on were never used
        self._freed: list[torch.Tensor] = []

    @property
    def used(self) -> int:
        """Slots that hold tokens of sequences which can be continued."""
        return self._end - sum(map(len, self._freed))

    def path(self, parent: CachedPath | None, slots: torch.Tensor) -> CachedPath:
        """The path to these slots, which are freed when nothing refers to it."""
        return CachedPath(parent, slots.clone(), self.free)

    def free(self, slots: torch.Tensor) -> None:
        """Let later tokens be written to these slots; safe from any thread."""
        self._freed.append(slots)

    def write(self, cache: DynamicCache, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Copy the tokens at (rows, columns) of the cache into free slots; return the slots."""
        slots = self._take(len(rows))
        self._grow(cache, self._end)
        for layer, (keys, values) in zip(cache.layers, self.layers, strict=True):
            where = slots.to(keys.device)
            keys[where] = layer.keys[rows, :, columns]
            values[where] = layer.values[rows, :, columns]
        return slots

    def _take(self, count: int) -> torch.Tensor:
        """`count` slots: freed ones first, then new ones."""
        taken, missing = [], count
        while missing and self._freed:
            slots = self._freed.pop()
            taken.append(slots[:missing])
            if len(slots) > missing:
                self._freed.append(slots[missing:])
            missing -= len(taken[-1])
        taken.append(torch.arange(self._end, self._end + missing))
        self._end += missing
        return torch.cat(taken)

    def read(self, slots_MT: torch.Tensor, rows_n: torch.Tensor) -> DynamicCache:
        """A cache whose row i holds the tokens in slots_MT[rows_n[i]].

        Keys and values are (n, heads, T, head_dim) per layer.
        """
        cache = preallocated_cache(None)
        for i, (keys, values) in enumerate(self.layers):
            where = slots_MT.to(keys.device)
            cache.update(keys[where].transpose(1, 2), values[where].transpose(1, 2), i)
            cache.layers[i].gather_rows(rows_n)
        return cache

    def _grow(self, cache: DynamicCache, size: int) -> None:
        if not self.layers:
            self.layers = [
                (_empty_pool(layer.keys), _empty_pool(layer.values)) for layer in cache.layers
            ]
        have = len(self.layers[0][0])
        if size > have:
            more = max(size, 2 * have) - have
            self.layers = [(_extended(k, more), _extended(v, more)) for k, v in self.layers]


def _empty_pool(states: torch.Tensor) -> torch.Tensor:
    return states.new_empty(0, states.shape[1], states.shape[3])


def _extended(states: torch.Tensor, more: int) -> torch.Tensor:
    return torch.cat([states, states.new_zeros(more, *states.shape[1:])])
