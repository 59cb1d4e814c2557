"""Index maps between sequences, the row they are packed into, and the blocks of attention.

Axes beside those of `pipeline.records`: N tokens of the packed row, S slots of all blocks.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

# Length of the shortest sequence of a block, relative to the longest: a lower ratio gives fewer
# attention calls with more padding. On a GPU, launching the calls is what takes time.
MIN_LENGTH_RATIO, MIN_LENGTH_RATIO_GPU = 0.6, 0.25


@dataclass(frozen=True)
class Packing:
    """Index maps between sequences, the packed row and the padded blocks of attention.

    Sequences of 2, 3 and 1 tokens, in a block of 2 x 3 and one of 1 x 1 (S = 7 slots):

        row     [0 0 1 1 1 2]        position_ids_N  [0 1 0 1 2 0]
        slots   [1 1 1 0 0 . 2]      blocks       [(2, 3), (1, 1)]

    A token of a shared prefix has one slot for each sequence: the first is `slot_index_N`, the
    others are the duplicates.
    """

    position_ids_N: torch.Tensor
    token_index_BT: torch.Tensor  # index into the row of each sequence's tokens
    shared_B: torch.Tensor  # tokens of the sequence that an earlier one has in the row already
    token_index_S: torch.Tensor  # index into the row of each slot; padding repeats the last token
    slot_index_N: torch.Tensor  # first slot of each token
    duplicate_slot_X: torch.Tensor  # further slots of shared tokens
    duplicate_token_X: torch.Tensor  # the tokens in those slots
    unused_slot_Y: torch.Tensor  # duplicates and padding: attention's output there is dropped
    blocks: tuple[tuple[int, int], ...]  # (sequences, width) of each attention call
    bounds_R1: torch.Tensor | None = None  # int32, varlen: first slot of each sequence, and the end

    def to(self, device: torch.device) -> "Packing":
        """The same for attention on a device; what only packing itself reads stays on the CPU."""
        read_by_attention = (
            *("position_ids_N", "token_index_S", "slot_index_N", "duplicate_slot_X"),
            *("duplicate_token_X", "unused_slot_Y", "bounds_R1"),
        )
        named = {name: getattr(self, name) for name in read_by_attention}
        moved = {name: to_device(x, device) for name, x in named.items() if x is not None}
        return replace(self, **moved)


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on a device; to a GPU from pinned memory, so that nothing waits for the GPU."""
    if device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def pack(
    lengths: Sequence[int],
    prefixes: Sequence[tuple[int, ...]] | None = None,
    device: torch.device | None = None,
    *,
    varlen: bool = False,
) -> Packing:
    """The packing of sequences that are concatenated in the given order, on the CPU.

    Args:
        lengths: tokens of each sequence.
        prefixes: first tokens of each sequence; equal prefixes are in the row once.
        device: that it will be used on: a GPU has fewer blocks, with more padding.
        varlen: every sequence is a block, in the given order and without padding, for attention of
            variable length.

    >>> pack([2, 3, 1]).blocks
    ((2, 3), (1, 1))
    >>> pack([2, 3], prefixes=[(7,), (7,)]).token_index_BT.tolist()
    [[0, 1, 1], [0, 2, 3]]
    """
    token_index_BT, shared = _token_indices(lengths, prefixes or [()] * len(lengths))
    shared_B = torch.tensor(shared)
    positions = [torch.arange(start, length) for start, length in zip(shared, lengths, strict=True)]
    tokens, blocks, slots = [], [], []
    on_gpu = device is not None and device.type == "cuda"
    groups: Iterable[list[int]] = ([i] for i in range(len(lengths)))
    if not varlen:
        groups = _length_groups(lengths, MIN_LENGTH_RATIO_GPU if on_gpu else MIN_LENGTH_RATIO)
    for group in groups:
        width = lengths[group[0]]
        token_index_RL = token_index_BT[group, :width]
        columns_L = torch.arange(width)
        real_RL = columns_L < torch.tensor([lengths[i] for i in group]).unsqueeze(1)
        duplicate_RL = real_RL & (columns_L < shared_B[group].unsqueeze(1))
        tokens.append(token_index_RL.flatten())
        slots.append(torch.stack([real_RL & ~duplicate_RL, duplicate_RL]).flatten(1))
        blocks.append((len(group), width))
    token_index_S = torch.cat(tokens)
    first_S, duplicate_S = torch.cat(slots, dim=1)
    slot_index_N = torch.empty(sum(lengths) - sum(shared), dtype=torch.long)
    slot_index_N[token_index_S[first_S]] = first_S.nonzero().squeeze(1)
    bounds_R1 = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return Packing(
        position_ids_N=torch.cat(positions),
        token_index_BT=token_index_BT,
        shared_B=shared_B,
        token_index_S=token_index_S,
        slot_index_N=slot_index_N,
        duplicate_slot_X=duplicate_S.nonzero().squeeze(1),
        duplicate_token_X=token_index_S[duplicate_S],
        unused_slot_Y=(~first_S).nonzero().squeeze(1),
        blocks=tuple(blocks),
        bounds_R1=bounds_R1 if varlen else None,
    )


def _token_indices(
    lengths: Sequence[int], prefixes: Sequence[tuple[int, ...]]
) -> tuple[torch.Tensor, list[int]]:
    """(token_index_BT, shared): see `Packing`; beyond its end a sequence repeats its last token."""
    prefix_start: dict[tuple[int, ...], int] = {}
    starts, shared, packed_length = [], [], 0
    for length, prefix in zip(lengths, prefixes, strict=True):
        shared.append(len(prefix) if prefix in prefix_start else 0)
        starts.append((prefix_start.setdefault(prefix, packed_length), packed_length - shared[-1]))
        packed_length += length - shared[-1]
    prefix_offset_B, suffix_offset_B = torch.tensor(starts).unsqueeze(-1).unbind(1)
    column_BT = torch.minimum(torch.arange(max(lengths)), torch.tensor(lengths).unsqueeze(1) - 1)
    in_prefix_BT = column_BT < torch.tensor([len(prefix) for prefix in prefixes]).unsqueeze(1)
    return torch.where(in_prefix_BT, prefix_offset_B, suffix_offset_B) + column_BT, shared


def _length_groups(lengths: Sequence[int], min_ratio: float) -> Iterator[list[int]]:
    """Indices of sequences, longest first, in groups of lengths of at least min_ratio * longest."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    group: list[int] = []
    for i in order:
        if group and lengths[i] < min_ratio * lengths[group[0]]:
            yield group
            group = []
        group.append(i)
    yield group
