"""Log-probability, entropy and value of the tokens of given sequences, in one forward.

Axes beside those of `pipeline.records`: M tokens that are scored, N tokens of a packed row, R rows
with tokens to score.
"""

from dataclasses import dataclass

import torch
from torch import nn

from pipeline.scoring.chunked_lm_head import head_scores, token_scores
from pipeline.scoring.packed_trunk import packed_hidden_states, supports_packing, unwrap


@dataclass(frozen=True)
class Scores:
    """Scores of completion tokens, float32 (B, C), 0 on padding; entropy in nats."""

    logprobs_BC: torch.Tensor
    entropy_BC: torch.Tensor
    values_BC: torch.Tensor | None  # None without a value head


def score_completions(
    model: nn.Module,
    prompt_ids_BP: torch.Tensor,
    mask_prompt_BP: torch.Tensor,
    completion_ids_BC: torch.Tensor,
    mask_completion_BC: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> Scores:
    """Log-probability, entropy and value of every completion token; differentiable.

    The sequences are packed into one row if the model supports it, else padded on the right. Logits
    and values are computed only where completion tokens are predicted.

    Args:
        prompt_ids_BP: padded on the left.
        completion_ids_BC: padded on the right.
        temperature: divides the logits.
    """
    completions = _right_padded(
        prompt_ids_BP, mask_prompt_BP, completion_ids_BC, mask_completion_BC
    )
    if not supports_packing(model):
        return _score_padded(model, completions, temperature)
    hidden_MD = packed_hidden_states(model, completions.ids_BT, completions.mask_BT)
    return _completion_scores(model, completions, hidden_MD, temperature)


def score_rows(model: nn.Module, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """logprobs_BT of the tokens where the mask is True, 0 elsewhere; differentiable.

    Rows are padded on the right. The first token of a row has no prediction and scores 0.
    """
    mask_BT = _without_first_token(mask_BT)
    if supports_packing(model):
        return _row_logprobs(model, ids_BT, mask_BT, packed_hidden_states(model, ids_BT, mask_BT))
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
    return packed_hidden_states(model, ids_BT, mask_BT)


def score_completions_and_rows(
    model: nn.Module,
    prompt_ids_BP: torch.Tensor,
    mask_prompt_BP: torch.Tensor,
    completion_ids_BC: torch.Tensor,
    mask_completion_BC: torch.Tensor,
    row_ids_RT: torch.Tensor,
    mask_row_RT: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> tuple[Scores, torch.Tensor]:
    """(`score_completions`, `score_rows`), with one trunk pass if the model supports packing.

    The temperature applies to the completions only.
    """
    four = (prompt_ids_BP, mask_prompt_BP, completion_ids_BC, mask_completion_BC)
    if not supports_packing(model):
        scores = score_completions(model, *four, temperature=temperature)
        return scores, score_rows(model, row_ids_RT, mask_row_RT)
    completions, mask_row_RT = _right_padded(*four), _without_first_token(mask_row_RT)
    width = max(completions.ids_BT.shape[1], row_ids_RT.shape[1])
    ids_AT, mask_AT = (
        torch.cat([nn.functional.pad(x, (0, width - x.shape[1])) for x in both])
        for both in ((completions.ids_BT, row_ids_RT), (completions.mask_BT, mask_row_RT))
    )
    hidden_MD = packed_hidden_states(model, ids_AT, mask_AT)
    scored = int(completions.mask_BT.sum())
    return (
        _completion_scores(model, completions, hidden_MD[:scored], temperature),
        _row_logprobs(model, row_ids_RT, mask_row_RT, hidden_MD[scored:]),
    )


@dataclass(frozen=True)
class _RightPadded:
    """Prompts and completions joined and padded on the right."""

    ids_BT: torch.Tensor
    prompt_length_B: torch.Tensor
    mask_BT: torch.Tensor  # True on completion tokens that are scored
    ids_BC: torch.Tensor  # the completions alone
    mask_BC: torch.Tensor


def _right_padded(
    prompt_ids_BP: torch.Tensor,
    mask_prompt_BP: torch.Tensor,
    completion_ids_BC: torch.Tensor,
    mask_completion_BC: torch.Tensor,
) -> _RightPadded:
    """Join left-padded prompts and right-padded completions.

    Ids after the last token of a row are arbitrary: the causal mask hides them.
    """
    prompt_length_B, completion_length_B = mask_prompt_BP.sum(dim=1), mask_completion_BC.sum(dim=1)
    # At least one column, also if no completion token is scored.
    width = int((prompt_length_B + completion_length_B.clamp_min(1)).max())
    joined_BT = torch.cat([prompt_ids_BP, completion_ids_BC], dim=1)
    start_B = prompt_ids_BP.shape[1] - prompt_length_B
    index_BT = start_B.unsqueeze(1) + torch.arange(width, device=joined_BT.device)
    ids_BT = joined_BT.gather(1, index_BT.clamp_max(joined_BT.shape[1] - 1))
    columns_C = torch.arange(mask_completion_BC.shape[1], device=ids_BT.device)
    index_BC = (prompt_length_B.unsqueeze(1) + columns_C).clamp_max(width - 1)
    # Added as integers, since a padding column may be clamped onto a column that is scored.
    counts_BT = torch.zeros_like(ids_BT).scatter_add_(1, index_BC, mask_completion_BC.long())
    return _RightPadded(
        ids_BT=ids_BT,
        prompt_length_B=prompt_length_B,
        mask_BT=counts_BT > 0,
        ids_BC=completion_ids_BC,
        mask_BC=mask_completion_BC,
    )


def _without_first_token(mask_BT: torch.Tensor) -> torch.Tensor:
    """The mask without the first token of each row, which no position predicts."""
    mask_BT = mask_BT.clone()
    mask_BT[:, 0] = False
    return mask_BT


# ---- packed ----


def _completion_scores(
    model: nn.Module, completions: _RightPadded, hidden_MD: torch.Tensor, temperature: float
) -> Scores:
    """Scores from the hidden states that predict the M scored completion tokens."""
    plain, mask_BC = unwrap(model), completions.mask_BC
    value_head = getattr(plain, "value_head", None)
    logprobs_M, entropy_M = head_scores(
        plain.get_output_embeddings(), hidden_MD, completions.ids_BC[mask_BC], temperature
    )
    return Scores(
        logprobs_BC=_scatter(logprobs_M, mask_BC),
        entropy_BC=_scatter(entropy_M, mask_BC),
        values_BC=None if value_head is None else _scatter(value_head(hidden_MD), mask_BC),
    )


def _row_logprobs(
    model: nn.Module, ids_BT: torch.Tensor, mask_BT: torch.Tensor, hidden_MD: torch.Tensor
) -> torch.Tensor:
    lm_head = unwrap(model).get_output_embeddings()
    logprobs_M, _ = head_scores(lm_head, hidden_MD, ids_BT[mask_BT])
    return _scatter(logprobs_M, mask_BT)


def _scatter(x_M: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """x_M written in row-major order where the mask is True, 0 elsewhere."""
    return x_M.new_zeros(mask_BT.shape).masked_scatter(mask_BT, x_M)


# ---- padded ----


def _score_padded(model: nn.Module, completions: _RightPadded, temperature: float) -> Scores:
    """Scores from one padded batch; with padding on the right a causal model needs no mask.

    Logits and values are computed from the first position that predicts a completion token of any
    row (K positions).
    """
    ids_BT, mask_BC = completions.ids_BT, completions.mask_BC
    prompt_length_B = completions.prompt_length_B
    first = int(prompt_length_B.min()) - 1
    output = model(
        input_ids=ids_BT,
        position_ids=torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT),
        use_cache=False,
        logits_to_keep=ids_BT.shape[1] - first,
    )
    logprobs_BK, entropy_BK = token_scores(
        output["logits"][:, :-1], ids_BT[:, first + 1 :], temperature
    )
    # Token c of a completion is predicted at position prompt_length + c - 1.
    columns_C = torch.arange(mask_BC.shape[1], device=ids_BT.device)
    index_BC = (prompt_length_B.unsqueeze(1) - 1 - first + columns_C).clamp_max(
        logprobs_BK.shape[1] - 1
    )

    def pick(x_BK: torch.Tensor) -> torch.Tensor:
        return x_BK.gather(1, index_BC) * mask_BC

    return Scores(
        logprobs_BC=pick(logprobs_BK),
        entropy_BC=pick(entropy_BK),
        values_BC=pick(output["values"][:, :-1]) if "values" in output else None,
    )
