"""The trunk of a model on one packed row of sequences, and whether a model supports that.

Axes beside those of `pipeline.records`: M tokens that are scored, N tokens of a packed row, R rows
with tokens to score.
"""

from dataclasses import dataclass

import torch
from torch import nn

from pipeline.scoring.packed_attention import GatherRows, can_pack, packed_attention
from pipeline.scoring.packing import Packing, pack, to_device


def supports_packing(model: nn.Module) -> bool:
    """Whether a packed row and the LM head reproduce the logits of single sequences.

    Checked once per model, on two short sequences.
    """
    plain = unwrap(model)
    if not can_pack(plain):
        return False
    if "_supports_packing" not in plain.__dict__:
        plain.__dict__["_supports_packing"] = _packing_preserves_logits(plain)
    return plain.__dict__["_supports_packing"]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    while inside := getattr(model, "module", None) or getattr(model, "_orig_mod", None):
        model = inside
    return model


@dataclass(frozen=True)
class PackedRow:
    """Sequences packed into one row, on the device of the model, made without reading from it."""

    ids_N: torch.Tensor
    packing: Packing
    predicting_M: torch.Tensor  # index into the row of the token that predicts each scored one


def pack_rows(
    ids_BT: torch.Tensor, mask_BT: torch.Tensor, device: torch.device, *, varlen: bool = False
) -> PackedRow:
    """Return rows packed for the tokens where the mask is True.

    Only scored tokens and those before them are packed, a prompt that rows share only once.

    Args:
        ids_BT: padded on the right, int64. All is computed on the CPU; tensors of another device
            are copied to it, which waits for that device.
        mask_BT: bool, False on the first token of a row.
        device: of the result.
        varlen: lay out the row for attention of variable length (`pack`).
    """
    ids_BT, mask_BT = ids_BT.cpu(), mask_BT.cpu()
    columns_T = torch.arange(ids_BT.shape[1])
    # Last tokens and rows without scored tokens are left out. At least one token is kept, since in
    # distributed training every process needs a gradient, if only of 0.
    length_B = (mask_BT * columns_T).amax(dim=1)
    length_B[0] = length_B[0].clamp_min(1)
    rows_R = length_B.nonzero().squeeze(1)
    length_R, mask_RT, ids_RT = length_B[rows_R], mask_BT[rows_R], ids_BT[rows_R]
    # The token before the first scored one predicts a different token in every row: not shared.
    prefix_length_R = (mask_RT.long().argmax(dim=1) - 1).clamp_min(0)
    prefixes = [
        tuple(ids[:n]) for ids, n in zip(ids_RT.tolist(), prefix_length_R.tolist(), strict=True)
    ]
    packing = pack(length_R.tolist(), prefixes, device, varlen=varlen)
    packed_RT = (columns_T >= packing.shared_B.unsqueeze(1)) & (columns_T < length_R.unsqueeze(1))
    width = packing.token_index_BT.shape[1]
    return PackedRow(
        ids_N=to_device(ids_RT[packed_RT], device),
        packing=packing.to(device),
        predicting_M=to_device(packing.token_index_BT[mask_RT[:, 1 : width + 1]], device),
    )


def packed_hidden_states(model: nn.Module, row: PackedRow) -> torch.Tensor:
    """hidden_MD: the states that predict the M scored tokens, row by row; differentiable."""
    hidden_ND = _trunk_states(model, row.ids_N, row.packing)
    return GatherRows.apply(hidden_ND, row.predicting_M)


def _trunk_states(model: nn.Module, ids_N: torch.Tensor, packing: Packing) -> torch.Tensor:
    """hidden_ND: output of the trunk for a packed row.

    The whole model is called, so that wrappers such as DistributedDataParallel stay in effect, with
    `logits_to_keep` empty, so that no logits are computed.
    """
    outputs: list[torch.Tensor] = []
    plain = unwrap(model)
    hook = _trunk(plain).register_forward_hook(
        lambda module, args, output: outputs.append(output[0])
    )
    try:
        with packed_attention(plain, packing):
            model(
                input_ids=ids_N.unsqueeze(0),
                position_ids=packing.position_ids_N.unsqueeze(0),
                use_cache=False,
                logits_to_keep=torch.empty(0, dtype=torch.long, device=ids_N.device),
            )
    finally:
        hook.remove()
    return outputs[0][0]


def _trunk(plain: nn.Module) -> nn.Module:
    """The model without its LM head, also inside a PEFT model."""
    inside = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
    return inside.base_model


@torch.no_grad()
def _packing_preserves_logits(plain: nn.Module) -> bool:
    """Compare the logits of two sequences, packed and one by one.

    They must also be what the LM head returns: a soft cap, which changes small logits by less than
    the tolerance, changes large ones by much more.
    """
    device = next(plain.parameters()).device
    rows = [torch.tensor(ids, device=device) for ids in ([3, 1, 2], [1, 2])]
    training, head, from_head = plain.training, plain.get_output_embeddings(), []
    plain.eval()
    hook = head.register_forward_hook(
        lambda module, args, output: from_head.append(output[0].clone())
    )
    try:
        separate = [plain(input_ids=row.unsqueeze(0), use_cache=False) for row in rows]
        head_NV = torch.cat(from_head).float()
        hidden_ND = _trunk_states(plain, torch.cat(rows), pack([3, 2], device=device).to(device))
        logits_NV = head(hidden_ND).float()
    except (TypeError, AttributeError, IndexError, RuntimeError):
        return False  # the model does not accept a packed row
    finally:
        hook.remove()
        plain.train(training)
    expected_NV = torch.cat([output["logits"][0] for output in separate]).float()
    if not torch.equal(head_NV, expected_NV):
        return False
    # A wrong position changes logits by about their norm, bfloat16 rounding by 1% of it.
    return bool((logits_NV - expected_NV).norm() <= 0.03 * expected_NV.norm())
