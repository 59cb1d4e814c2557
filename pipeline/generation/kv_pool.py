"""Storage of keys and values by token, for sequences that share prefixes."""

import torch
from transformers import DynamicCache

from pipeline.generation.kv_cache import preallocated_cache


class KVPool:
    """Keys and values of single tokens, (slots, heads, head_dim) per layer; grows by doubling."""

    def __init__(self) -> None:
        self.used = 0
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def write(self, cache: DynamicCache, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Copy the tokens at (rows, columns) of the cache into new slots; return the slots."""
        slots = torch.arange(self.used, self.used + len(rows))
        self._grow(cache, self.used + len(rows))
        self.used += len(rows)
        for layer, (keys, values) in zip(cache.layers, self.layers, strict=True):
            where = slots.to(keys.device)
            keys[where] = layer.keys[rows, :, columns]
            values[where] = layer.values[rows, :, columns]
        return slots

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
