"""Log-probability, entropy and value of the tokens of given sequences, in one forward.

Axes beside those of `pipeline.records`: M tokens that are scored, N tokens of a packed row, R rows
with tokens to score.
"""

from dataclasses import dataclass

import torch
from torch import nn

from pipeline.scoring.chunked_lm_head import head_scores, token_scores
from pipeline.scoring.packed_attention import GatherRows, Packing, can_pack, pack, packed_attention


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
    hidden_MD = _packed_hidden_states(model, completions.ids_BT, completions.mask_BT)
    return _completion_scores(model, completions, hidden_MD, temperature)


def score_rows(model: nn.Module, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """logprobs_BT of the tokens where the mask is True, 0 elsewhere; differentiable.

    Rows are padded on the right. The first token of a row has no prediction and scores 0.
    """
    mask_BT = _without_first_token(mask_BT)
    if supports_packing(model):
        return _row_logprobs(model, ids_BT, mask_BT, _packed_hidden_states(model, ids_BT, mask_BT))
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
    return _packed_hidden_states(model, ids_BT, mask_BT)


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
    hidden_MD = _packed_hidden_states(model, ids_AT, mask_AT)
    scored = int(completions.mask_BT.sum())
    return (
        _completion_scores(model, completions, hidden_MD[:scored], temperature),
        _row_logprobs(model, row_ids_RT, mask_row_RT, hidden_MD[scored:]),
    )


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


def _packed_hidden_states(
    model: nn.Module, ids_BT: torch.Tensor, mask_BT: torch.Tensor
) -> torch.Tensor:
    """hidden_MD: the states that predict the M tokens where the mask is True, row by row.

    Only scored tokens and those before them are computed, a prompt that rows share only once.
    """
    columns_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
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
    packing = pack(length_R.tolist(), prefixes, ids_BT.device)
    packed_RT = (columns_T >= packing.shared_B.unsqueeze(1)) & (columns_T < length_R.unsqueeze(1))
    hidden_ND = _trunk_states(model, ids_RT[packed_RT], packing)
    width = packing.token_index_BT.shape[1]
    return GatherRows.apply(hidden_ND, packing.token_index_BT[mask_RT[:, 1 : width + 1]])


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
    """Compare the logits of two sequences, packed and one by one."""
    device = next(plain.parameters()).device
    rows = [torch.tensor(ids, device=device) for ids in ([3, 1, 2], [1, 2])]
    training = plain.training
    plain.eval()
    try:
        separate = [plain(input_ids=row.unsqueeze(0), use_cache=False) for row in rows]
        hidden_ND = _trunk_states(plain, torch.cat(rows), pack([3, 2], device=device))
        logits_NV = plain.get_output_embeddings()(hidden_ND).float()
    except (TypeError, AttributeError, IndexError, RuntimeError):
        return False  # the model does not accept a packed row
    finally:
        plain.train(training)
    expected_NV = torch.cat([output["logits"][0] for output in separate]).float()
    # A wrong position changes logits by about their norm, bfloat16 rounding by 1% of it.
    return bool((logits_NV - expected_NV).norm() <= 0.03 * expected_NV.norm())


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
