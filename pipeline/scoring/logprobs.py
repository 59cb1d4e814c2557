"""Log-probability, entropy and value of the tokens of given sequences, in one forward.

Axes beside those of `pipeline.records`: M tokens that are scored, N tokens of a packed row, R rows
with tokens to score.
"""

from dataclasses import dataclass

import torch
from torch import nn

from pipeline.scoring.chunked_lm_head import head_scores, token_scores
from pipeline.scoring.completions import Completions, places, prepare_completions
from pipeline.scoring.packed_trunk import (
    pack_rows,
    packed_hidden_states,
    supports_packing,
    unwrap,
)
from pipeline.scoring.packing import to_device
from pipeline.scoring.varlen_attention import uses_varlen


@dataclass(frozen=True)
class Scores:
    """Scores of completion tokens, float32 (B, C), 0 on padding; entropy in nats."""

    logprobs_BC: torch.Tensor
    entropy_BC: torch.Tensor
    values_BC: torch.Tensor | None  # None without a value head


def score_prepared(
    model: nn.Module, completions: Completions, *, temperature: float = 1.0
) -> Scores:
    """Log-probability, entropy and value of every completion token; differentiable.

    Nothing is read back from the device. The sequences are packed into one row if the model
    supports it, else padded on the right. Logits and values are computed only where completion
    tokens are predicted.

    Args:
        completions: of `prepare_completions` for this model.
        temperature: divides the logits.
    """
    if completions.row is None:
        return _score_padded(model, completions, temperature)
    hidden_MD = packed_hidden_states(model, completions.row)
    return _completion_scores(model, completions, hidden_MD, temperature)


def score_completions(
    model: nn.Module,
    prompt_ids_BP: torch.Tensor,
    mask_prompt_BP: torch.Tensor,
    completion_ids_BC: torch.Tensor,
    mask_completion_BC: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> Scores:
    """`score_prepared` of `prepare_completions`.

    Args:
        prompt_ids_BP: padded on the left.
        completion_ids_BC: padded on the right.
        temperature: divides the logits.
    """
    four = (prompt_ids_BP, mask_prompt_BP, completion_ids_BC, mask_completion_BC)
    return score_prepared(model, prepare_completions(model, *four), temperature=temperature)


def score_rows(model: nn.Module, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """logprobs_BT of the tokens where the mask is True, 0 elsewhere; differentiable.

    Rows are padded on the right. The first token of a row has no prediction and scores 0.
    """
    mask_BT = _without_first_token(mask_BT)
    if supports_packing(model):
        hidden_MD = row_hidden_states(model, ids_BT, mask_BT)
        return _row_logprobs(model, ids_BT, mask_BT, hidden_MD, ids_BT.device)
    logits_BTV = model(input_ids=ids_BT, use_cache=False)["logits"]
    logprobs_BT, _ = token_scores(logits_BTV[:, :-1], ids_BT[:, 1:])
    return nn.functional.pad(logprobs_BT, (1, 0)) * mask_BT


def row_hidden_states(
    model: nn.Module, ids_BT: torch.Tensor, mask_BT: torch.Tensor
) -> torch.Tensor:
    """hidden_MD: the states that predict the M tokens where the mask is True, in row-major order.

    Rows are padded on the right, the mask is False on their first token, and the model must support
    packing. The LM head is not called; differentiable.
    """
    device = ids_BT.device
    row = pack_rows(ids_BT, mask_BT, device, varlen=uses_varlen(model, device))
    return packed_hidden_states(model, row)


def score_completions_and_rows(
    model: nn.Module,
    completions: Completions,
    row_ids_RT: torch.Tensor,
    mask_row_RT: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> tuple[Scores, torch.Tensor]:
    """(`score_prepared`, `score_rows`), with one trunk pass if the model supports packing.

    The temperature applies to the completions only. The rows are best on the CPU, since a copy from
    a GPU waits for it; their log-probabilities are on the device of the completions.
    """
    device = completions.device
    if completions.row is None:
        scores = score_prepared(model, completions, temperature=temperature)
        rows = to_device(row_ids_RT.cpu(), device), to_device(mask_row_RT.cpu(), device)
        return scores, score_rows(model, *rows)
    row_ids_RT, mask_row_RT = row_ids_RT.cpu(), _without_first_token(mask_row_RT.cpu())
    width = max(completions.ids_BT.shape[1], row_ids_RT.shape[1])
    ids_AT, mask_AT = (
        torch.cat([nn.functional.pad(x, (0, width - x.shape[1])) for x in both])
        for both in ((completions.ids_BT, row_ids_RT), (completions.mask_BT, mask_row_RT))
    )
    row = pack_rows(ids_AT, mask_AT, device, varlen=uses_varlen(model, device))
    hidden_MD = packed_hidden_states(model, row)
    scored = int(completions.mask_BT.sum())
    return (
        _completion_scores(model, completions, hidden_MD[:scored], temperature),
        _row_logprobs(model, row_ids_RT, mask_row_RT, hidden_MD[scored:], device),
    )


def _without_first_token(mask_BT: torch.Tensor) -> torch.Tensor:
    """The mask without the first token of each row, which no position predicts."""
    mask_BT = mask_BT.clone()
    mask_BT[:, 0] = False
    return mask_BT


# ---- packed ----


def _completion_scores(
    model: nn.Module, completions: Completions, hidden_MD: torch.Tensor, temperature: float
) -> Scores:
    """Scores from the hidden states that predict the M scored completion tokens."""
    plain, shape, places_M = unwrap(model), completions.mask_BC.shape, completions.place_M
    assert completions.ids_M is not None and places_M is not None
    value_head = getattr(plain, "value_head", None)
    logprobs_M, entropy_M = head_scores(
        plain.get_output_embeddings(), hidden_MD, completions.ids_M, temperature
    )
    return Scores(
        logprobs_BC=_put(logprobs_M, places_M, shape),
        entropy_BC=_put(entropy_M, places_M, shape),
        values_BC=None if value_head is None else _put(value_head(hidden_MD), places_M, shape),
    )


def _row_logprobs(
    model: nn.Module,
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    hidden_MD: torch.Tensor,
    device: torch.device,
) -> torch.Tensor:
    ids_BT, mask_BT = ids_BT.cpu(), mask_BT.cpu()
    ids_M, places_M = to_device(ids_BT[mask_BT], device), to_device(places(mask_BT), device)
    logprobs_M, _ = head_scores(unwrap(model).get_output_embeddings(), hidden_MD, ids_M)
    return _put(logprobs_M, places_M, mask_BT.shape)


def _put(x_M: torch.Tensor, places_M: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """x_M written to places in row-major order of a tensor of that shape, 0 elsewhere."""
    return x_M.new_zeros(shape.numel()).index_copy(0, places_M, x_M).view(shape)


# ---- padded ----


def _score_padded(model: nn.Module, completions: Completions, temperature: float) -> Scores:
    """Scores from one padded batch; with padding on the right a causal model needs no mask.

    Logits and values are computed from the first position that predicts a completion token of any
    row (K positions).
    """
    device = completions.device
    ids_BT, mask_BC = (to_device(x, device) for x in (completions.ids_BT, completions.mask_BC))
    prompt_length_B = completions.prompt_length_B
    first = int(prompt_length_B.min()) - 1
    output = model(
        input_ids=ids_BT,
        position_ids=torch.arange(ids_BT.shape[1], device=device).expand_as(ids_BT),
        use_cache=False,
        logits_to_keep=ids_BT.shape[1] - first,
    )
    logprobs_BK, entropy_BK = token_scores(
        output["logits"][:, :-1], ids_BT[:, first + 1 :], temperature
    )
    # Token c of a completion is predicted at position prompt_length + c - 1.
    columns_C = torch.arange(mask_BC.shape[1])
    index_BC = (prompt_length_B.unsqueeze(1) - 1 - first + columns_C).clamp_max(
        logprobs_BK.shape[1] - 1
    )
    index_BC = to_device(index_BC, device)

    def pick(x_BK: torch.Tensor) -> torch.Tensor:
        return x_BK.gather(1, index_BC) * mask_BC

    return Scores(
        logprobs_BC=pick(logprobs_BK),
        entropy_BC=pick(entropy_BK),
        values_BC=pick(output["state_values"][:, :-1]) if "state_values" in output else None,
    )
