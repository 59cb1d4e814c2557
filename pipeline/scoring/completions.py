"""Completions made ready for scoring on the CPU: a forward then reads nothing from the device."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from pipeline.scoring.packed_trunk import PackedRow, pack_rows, supports_packing
from pipeline.scoring.packing import to_device
from pipeline.scoring.varlen_attention import uses_varlen


@dataclass(frozen=True)
class Completions:
    """Completions to score, made ready for a model: everything is known without reading a tensor of
    the device that the model is on.

    The tensors of the first group are on the CPU, those of the second on `device`; the second is
    None where the model does not support packing.
    """

    ids_BT: torch.Tensor  # prompts and completions joined and padded on the right, int64
    prompt_length_B: torch.Tensor
    mask_BT: torch.Tensor  # True on completion tokens that are scored
    ids_BC: torch.Tensor  # the completions alone
    mask_BC: torch.Tensor
    device: torch.device
    row: PackedRow | None = None
    ids_M: torch.Tensor | None = None  # the scored tokens
    place_M: torch.Tensor | None = None  # their places among the B * C tokens of the completions

    @property
    def tokens(self) -> int:
        """Tokens that the trunk computes."""
        return self.ids_BT.numel() if self.row is None else len(self.row.ids_N)


def prepare_completions(
    model: nn.Module,
    prompt_ids_BP: torch.Tensor,
    mask_prompt_BP: torch.Tensor,
    completion_ids_BC: torch.Tensor,
    mask_completion_BC: torch.Tensor,
    *,
    to: torch.device | None = None,
) -> Completions:
    """Return completions made ready for `score_prepared`.

    To be called under the autocast that the scoring is under, which decides the kind of attention.

    Args:
        prompt_ids_BP: int64, padded on the left; like the others best on the CPU, since a copy from
            a GPU waits for it.
        completion_ids_BC: int64, padded on the right.
        to: device of the model; default: that of the tensors.
    """
    device = to or prompt_ids_BP.device
    four = (prompt_ids_BP, mask_prompt_BP, completion_ids_BC, mask_completion_BC)
    joined = right_padded(*four, device=device)
    if not supports_packing(model):
        return joined
    return replace(
        joined,
        row=pack_rows(joined.ids_BT, joined.mask_BT, device, varlen=uses_varlen(model, device)),
        ids_M=to_device(joined.ids_BC[joined.mask_BC], device),
        place_M=to_device(places(joined.mask_BC), device),
    )


def right_padded(
    prompt_ids_BP: torch.Tensor,
    mask_prompt_BP: torch.Tensor,
    completion_ids_BC: torch.Tensor,
    mask_completion_BC: torch.Tensor,
    *,
    device: torch.device | None = None,
) -> Completions:
    """Join left-padded prompts and right-padded completions, on the CPU.

    Ids after the last token of a row are arbitrary: the causal mask hides them.
    """
    device = device or prompt_ids_BP.device
    prompt_ids_BP, mask_prompt_BP = prompt_ids_BP.cpu(), mask_prompt_BP.cpu()
    completion_ids_BC, mask_completion_BC = completion_ids_BC.cpu(), mask_completion_BC.cpu()
    prompt_length_B, completion_length_B = mask_prompt_BP.sum(dim=1), mask_completion_BC.sum(dim=1)
    # At least one column, also if no completion token is scored.
    width = int((prompt_length_B + completion_length_B.clamp_min(1)).max())
    joined_BT = torch.cat([prompt_ids_BP, completion_ids_BC], dim=1)
    start_B = prompt_ids_BP.shape[1] - prompt_length_B
    index_BT = start_B.unsqueeze(1) + torch.arange(width)
    ids_BT = joined_BT.gather(1, index_BT.clamp_max(joined_BT.shape[1] - 1))
    columns_C = torch.arange(mask_completion_BC.shape[1])
    index_BC = (prompt_length_B.unsqueeze(1) + columns_C).clamp_max(width - 1)
    # Added as integers, since a padding column may be clamped onto a column that is scored.
    counts_BT = torch.zeros_like(ids_BT).scatter_add_(1, index_BC, mask_completion_BC.long())
    return Completions(
        ids_BT=ids_BT,
        prompt_length_B=prompt_length_B,
        mask_BT=counts_BT > 0,
        ids_BC=completion_ids_BC,
        mask_BC=mask_completion_BC,
        device=device,
    )


def places(mask_BT: torch.Tensor) -> torch.Tensor:
    """Indices of the True entries in row-major order."""
    return mask_BT.flatten().nonzero().squeeze(1)
