"""Sequences of mixed lengths through a model without a single padded token.

All tokens stand in one row, and every layer but attention takes each of them alone. Attention cuts
the row back into its sequences, those of like length side by side. What sequences begin with alike,
as completions do with their question, stands in the row once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "packed_sdpa"
# Sequences share a call of attention while the shortest has this share of the longest's tokens:
# fewer calls against less padding, which costs nothing outside attention. A GPU waits for calls.
LIKE_LENGTH, LIKE_LENGTH_GPU = 0.6, 0.25


@dataclass(frozen=True)
class Packing:
    """Where the tokens of the sequences stand in the row of N, and in the blocks of attention.

    Sequences of 2, 3 and 1 tokens, cut into a block of 2 x 3 and one of 1 x 1 (S = 7 slots):

        row     [0 0 1 1 1 2]        positions_N  [0 1 0 1 2 0]
        slots   [1 1 1 0 0 . 2]      blocks       [(2, 3), (1, 1)]

    A shared token has the slot in which its first sequence sees it, and further ones in the others.
    """

    positions_N: torch.Tensor
    token_BT: torch.Tensor  # the place in the row of each sequence's tokens
    skip_B: torch.Tensor  # how many of its first tokens stand in the row already
    token_of_S: torch.Tensor  # the token in each slot; padding repeats a sequence's last token
    slot_of_N: torch.Tensor
    again_slot_X: torch.Tensor  # further slots of shared tokens, and those tokens
    again_token_X: torch.Tensor
    idle_slot_Y: torch.Tensor  # further slots and padding: what attention gives there goes nowhere
    blocks: tuple[tuple[int, int], ...]  # (sequences, width) of each call of attention


def pack(
    lengths: Sequence[int],
    heads: Sequence[tuple[int, ...]] | None = None,
    device: torch.device | None = None,
) -> Packing:
    """The packing of sequences that stand one after the other in the row.

    `heads` are the first tokens of each that need not stand there twice.

    >>> pack([2, 3, 1]).blocks
    ((2, 3), (1, 1))
    >>> pack([2, 3], heads=[(7,), (7,)]).token_BT.tolist()
    [[0, 1, 1], [0, 2, 3]]
    """
    token_BT, skips = _places(lengths, heads or [()] * len(lengths))
    skip_B = torch.tensor(skips)
    positions = [torch.arange(skip, length) for skip, length in zip(skips, lengths, strict=True)]
    tokens, blocks, slots = [], [], []
    on_gpu = device is not None and device.type == "cuda"
    for group in _of_like_length(lengths, LIKE_LENGTH_GPU if on_gpu else LIKE_LENGTH):
        width = lengths[group[0]]
        token_RL = token_BT[group, :width]
        columns_L = torch.arange(width)
        real_RL = columns_L < torch.tensor([lengths[i] for i in group]).unsqueeze(1)
        again_RL = real_RL & (columns_L < skip_B[group].unsqueeze(1))
        tokens.append(token_RL.flatten())
        slots.append(torch.stack([real_RL & ~again_RL, again_RL]).flatten(1))
        blocks.append((len(group), width))
    token_of_S = torch.cat(tokens)
    first_S, again_S = torch.cat(slots, dim=1)
    slot_of_N = torch.empty(sum(lengths) - sum(skips), dtype=torch.long)
    slot_of_N[token_of_S[first_S]] = first_S.nonzero().squeeze(1)
    return Packing(
        positions_N=torch.cat(positions).to(device),
        token_BT=token_BT.to(device),
        skip_B=skip_B.to(device),
        token_of_S=token_of_S.to(device),
        slot_of_N=slot_of_N.to(device),
        again_slot_X=again_S.nonzero().squeeze(1).to(device),
        again_token_X=token_of_S[again_S].to(device),
        idle_slot_Y=(~first_S).nonzero().squeeze(1).to(device),
        blocks=tuple(blocks),
    )


def _places(
    lengths: Sequence[int], heads: Sequence[tuple[int, ...]]
) -> tuple[torch.Tensor, list[int]]:
    """(token_BT, skips): where each token stands, a row's last token repeated behind its end."""
    first_of: dict[tuple[int, ...], int] = {}
    starts, skips, done = [], [], 0
    for length, head in zip(lengths, heads, strict=True):
        skips.append(len(head) if head in first_of else 0)
        starts.append((first_of.setdefault(head, done), done - skips[-1]))
        done += length - skips[-1]
    head_B, tail_B = torch.tensor(starts).unsqueeze(-1).unbind(1)
    column_BT = torch.minimum(torch.arange(max(lengths)), torch.tensor(lengths).unsqueeze(1) - 1)
    in_head_BT = column_BT < torch.tensor([len(head) for head in heads]).unsqueeze(1)
    return torch.where(in_head_BT, head_B, tail_B) + column_BT, skips


def _of_like_length(lengths: Sequence[int], share: float) -> Iterator[list[int]]:
    """The indices of the sequences, longest first, cut where lengths fall too far."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    group: list[int] = []
    for i in order:
        if group and lengths[i] < share * lengths[group[0]]:
            yield group
            group = []
        group.append(i)
    yield group


_current: ContextVar[Packing | None] = ContextVar("packing", default=None)


@contextmanager
def packed_attention(model: nn.Module, packing: Packing) -> Iterator[None]:
    """Attention of `model` follows `packing`, and no attention mask is made."""
    config = model.config
    before, token = config._attn_implementation, _current.set(packing)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _current.reset(token)


def can_pack(model: nn.Module) -> bool:
    """False where a packed row could mean something else than its sequences: recomputed layers
    would run outside `packed_attention`."""
    return (
        sees_all_before(model)
        and getattr(model, "_supports_attention_backend", False)
        and not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    )


def sees_all_before(model: nn.Module) -> bool:
    """Whether every token of the model attends to all before it, by torch's own attention.

    A window is laid by the mask that transformers makes, and a sharded model is not to be called in
    parts.
    """
    config = model.config
    return (
        config._attn_implementation == "sdpa"
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and not (getattr(config, "sliding_window", None) and not hasattr(config, "layer_types"))
        and not any(_is_sharded(parameter) for parameter in model.parameters())
    )


def _is_sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "device_mesh")


class Take(torch.autograd.Function):
    """x_NE[where_K] for places that differ: the gradient is put back without being added up."""

    @staticmethod
    def forward(ctx: Any, x_NE: torch.Tensor, where_K: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(where_K)
        ctx.length = len(x_NE)
        return x_NE.index_select(0, where_K)

    @staticmethod
    def backward(ctx: Any, grad_KE: torch.Tensor) -> tuple[torch.Tensor, None]:
        (where_K,) = ctx.saved_tensors
        grad_NE = grad_KE.new_zeros(ctx.length, *grad_KE.shape[1:])
        return grad_NE.index_copy_(0, where_K, grad_KE), None


class _Spread(torch.autograd.Function):
    """x_NE in its slots. What stands on padding reaches no real token, so no gradient comes back
    from there."""

    @staticmethod
    def forward(ctx: Any, x_NE: torch.Tensor, packing: Packing) -> torch.Tensor:
        ctx.packing = packing
        return x_NE.index_select(0, packing.token_of_S)

    @staticmethod
    def backward(ctx: Any, grad_SE: torch.Tensor) -> tuple[torch.Tensor, None]:
        packing = ctx.packing
        grad_NE = grad_SE.index_select(0, packing.slot_of_N)
        if len(packing.again_slot_X):
            again_XE = grad_SE.index_select(0, packing.again_slot_X)
            grad_NE.index_add_(0, packing.again_token_X, again_XE)
        return grad_NE, None


class _Gather(torch.autograd.Function):
    """x_SE back in the row, each token from the slot of its first sequence. As `Take`, but the
    gradient is looked up, slot by slot, which is faster than writing it to scattered places."""

    @staticmethod
    def forward(ctx: Any, x_SE: torch.Tensor, packing: Packing) -> torch.Tensor:
        ctx.packing = packing
        return x_SE.index_select(0, packing.slot_of_N)

    @staticmethod
    def backward(ctx: Any, grad_NE: torch.Tensor) -> tuple[torch.Tensor, None]:
        packing = ctx.packing
        grad_SE = grad_NE.index_select(0, packing.token_of_S)
        return grad_SE.index_fill_(0, packing.idle_slot_Y, 0.0), None


def _packed_sdpa(
    module: nn.Module,
    query_1HNE: torch.Tensor,
    key_1HNE: torch.Tensor,
    value_1HNE: torch.Tensor,
    attention_mask: None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' "sdpa", one call a block of sequences."""
    packing, sdpa = _current.get(), ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spread(x_1HNE: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x_SHE = _Spread.apply(x_1HNE[0].transpose(0, 1), packing)
        return x_SHE.split([rows * width for rows, width in packing.blocks])

    outputs = []
    parts = zip(*map(spread, (query_1HNE, key_1HNE, value_1HNE)), packing.blocks, strict=True)
    for *three, (rows, width) in parts:
        three_RHLE = [x.view(rows, width, *x.shape[1:]).transpose(1, 2) for x in three]
        output_RLHE, _ = sdpa(module, *three_RHLE, None, **kwargs)
        outputs.append(output_RLHE.flatten(0, 1))
    return _Gather.apply(torch.cat(outputs), packing).unsqueeze(0), None


AttentionInterface.register(NAME, _packed_sdpa)
