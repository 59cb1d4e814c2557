"""Log-probability, entropy and value of every sampled token, in one forward."""

from dataclasses import dataclass

import torch
from torch import nn

from pipeline.scoring.chunked_lm_head import head_scores, token_scores
from pipeline.scoring.packed_attention import Packing, Take, can_pack, pack, packed_attention


@dataclass(frozen=True)
class Scores:
    """One number a completion token, 0 on padding."""

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
    """What the model thinks of completions; differentiable, and the same whatever the padding.

    The sequences are packed into one row where the model allows it, and stand side by side, padded
    on the right, where not. Logits and values are computed where a completion token is predicted.
    """
    completions = _side_by_side(
        prompt_ids_BP, mask_prompt_BP, completion_ids_BC, mask_completion_BC
    )
    if not packs(model):
        return _score_padded(model, completions, temperature)
    hidden_MD = _packed_hidden(model, completions.ids_BT, completions.mask_BT)
    return _completion_scores(model, completions, hidden_MD, temperature)


def score_rows(model: nn.Module, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """logprobs_BT of the tokens where the mask is True, 0 elsewhere; rows are padded on the right.

    The first token of a row is predicted by nothing, and so is 0 too.
    """
    mask_BT = _predicted(mask_BT)
    if packs(model):
        return _row_logprobs(model, ids_BT, mask_BT, _packed_hidden(model, ids_BT, mask_BT))
    logits_BTV = model(input_ids=ids_BT, use_cache=False)["logits"]
    logprobs_BT, _ = token_scores(logits_BTV[:, :-1], ids_BT[:, 1:])
    return nn.functional.pad(logprobs_BT, (1, 0)) * mask_BT


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
    """(`score_completions`, `score_rows`) with one pass through the trunk where the model packs.

    The temperature is the completions' alone.
    """
    four = (prompt_ids_BP, mask_prompt_BP, completion_ids_BC, mask_completion_BC)
    if not packs(model):
        scores = score_completions(model, *four, temperature=temperature)
        return scores, score_rows(model, row_ids_RT, mask_row_RT)
    completions, mask_row_RT = _side_by_side(*four), _predicted(mask_row_RT)
    width = max(completions.ids_BT.shape[1], row_ids_RT.shape[1])
    ids_AT, mask_AT = (
        torch.cat([nn.functional.pad(x, (0, width - x.shape[1])) for x in both])
        for both in ((completions.ids_BT, row_ids_RT), (completions.mask_BT, mask_row_RT))
    )
    hidden_MD = _packed_hidden(model, ids_AT, mask_AT)
    own = int(completions.mask_BT.sum())
    return (
        _completion_scores(model, completions, hidden_MD[:own], temperature),
        _row_logprobs(model, row_ids_RT, mask_row_RT, hidden_MD[own:]),
    )


def packs(model: nn.Module) -> bool:
    """True where a packed row gives the hidden states, and the LM head alone the logits, that the
    model gives for its sequences one by one. Tried once a model on two short sequences."""
    plain = unwrap(model)
    if not can_pack(plain):
        return False
    if "_packs" not in plain.__dict__:
        plain.__dict__["_packs"] = _packing_changes_nothing(plain)
    return plain.__dict__["_packs"]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    while inside := getattr(model, "module", None) or getattr(model, "_orig_mod", None):
        model = inside
    return model


@dataclass(frozen=True)
class _SideBySide:
    """Questions and completions moved to the left edge, padded on the right."""

    ids_BT: torch.Tensor
    prompts_B: torch.Tensor  # tokens of each question
    mask_BT: torch.Tensor  # True on the tokens of completions that count
    ids_BC: torch.Tensor  # the completions by themselves
    mask_BC: torch.Tensor


def _side_by_side(
    prompt_ids_BP: torch.Tensor,
    mask_prompt_BP: torch.Tensor,
    completion_ids_BC: torch.Tensor,
    mask_completion_BC: torch.Tensor,
) -> _SideBySide:
    """What stands behind a row's last token is of no account: nothing before it sees it."""
    prompts_B, completions_B = mask_prompt_BP.sum(dim=1), mask_completion_BC.sum(dim=1)
    # One column at least, also where no completion has a token that counts.
    width = int((prompts_B + completions_B.clamp_min(1)).max())
    both_BT = torch.cat([prompt_ids_BP, completion_ids_BC], dim=1)
    starts_B = prompt_ids_BP.shape[1] - prompts_B
    where_BT = starts_B.unsqueeze(1) + torch.arange(width, device=both_BT.device)
    ids_BT = both_BT.gather(1, where_BT.clamp_max(both_BT.shape[1] - 1))
    columns_C = torch.arange(mask_completion_BC.shape[1], device=ids_BT.device)
    where_BC = (prompts_B.unsqueeze(1) + columns_C).clamp_max(width - 1)
    # As numbers, because a column of padding may be put on one that counts.
    counts_BT = torch.zeros_like(ids_BT).scatter_add_(1, where_BC, mask_completion_BC.long())
    return _SideBySide(
        ids_BT=ids_BT,
        prompts_B=prompts_B,
        mask_BT=counts_BT > 0,
        ids_BC=completion_ids_BC,
        mask_BC=mask_completion_BC,
    )


def _predicted(mask_BT: torch.Tensor) -> torch.Tensor:
    """Without the first token, which nothing predicts."""
    mask_BT = mask_BT.clone()
    mask_BT[:, 0] = False
    return mask_BT


# ---- packed ----


def _completion_scores(
    model: nn.Module, completions: _SideBySide, hidden_MD: torch.Tensor, temperature: float
) -> Scores:
    """From the hidden state that predicts each of the M tokens of the completions that count."""
    plain, mask_BC = unwrap(model), completions.mask_BC
    value_head = getattr(plain, "value_head", None)
    logprobs_M, entropy_M = head_scores(
        plain.get_output_embeddings(), hidden_MD, completions.ids_BC[mask_BC], temperature
    )
    return Scores(
        logprobs_BC=_put(logprobs_M, mask_BC),
        entropy_BC=_put(entropy_M, mask_BC),
        values_BC=None if value_head is None else _put(value_head(hidden_MD), mask_BC),
    )


def _row_logprobs(
    model: nn.Module, ids_BT: torch.Tensor, mask_BT: torch.Tensor, hidden_MD: torch.Tensor
) -> torch.Tensor:
    lm_head = unwrap(model).get_output_embeddings()
    logprobs_M, _ = head_scores(lm_head, hidden_MD, ids_BT[mask_BT])
    return _put(logprobs_M, mask_BT)


def _put(x_M: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """One number where the mask is True, row by row, and 0 elsewhere."""
    return x_M.new_zeros(mask_BT.shape).masked_scatter(mask_BT, x_M)


def _packed_hidden(model: nn.Module, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """hidden_MD that predict the M tokens where the mask is True, row by row.

    Only tokens that count, and those before them, pass the trunk, a question that rows share once.
    """
    columns_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    # Nothing is predicted behind a row's last token, nor in a row without a token that counts; one
    # token stays where nothing else would, for the gradient of 0 that every process has to have.
    lengths_B = (mask_BT * columns_T).amax(dim=1)
    lengths_B[0] = lengths_B[0].clamp_min(1)
    rows_R = lengths_B.nonzero().squeeze(1)
    lengths_R, mask_RT, ids_RT = lengths_B[rows_R], mask_BT[rows_R], ids_BT[rows_R]
    # The token before the first that counts is predicted from, once a row.
    heads_R = (mask_RT.long().argmax(dim=1) - 1).clamp_min(0)
    heads = [tuple(ids[:n]) for ids, n in zip(ids_RT.tolist(), heads_R.tolist(), strict=True)]
    packing = pack(lengths_R.tolist(), heads, ids_BT.device)
    once_RT = (columns_T >= packing.skip_B.unsqueeze(1)) & (columns_T < lengths_R.unsqueeze(1))
    hidden_ND = _trunk_states(model, ids_RT[once_RT], packing)
    width = packing.token_BT.shape[1]
    return Take.apply(hidden_ND, packing.token_BT[mask_RT[:, 1 : width + 1]])


def _trunk_states(model: nn.Module, ids_N: torch.Tensor, packing: Packing) -> torch.Tensor:
    """hidden_ND as they leave the trunk.

    The forward is that of the whole model, so that wrappers around it do their work, with no
    position for which it would make logits.
    """
    kept: list[torch.Tensor] = []
    plain = unwrap(model)
    hook = _trunk(plain).register_forward_hook(lambda module, args, output: kept.append(output[0]))
    try:
        with packed_attention(plain, packing):
            model(
                input_ids=ids_N.unsqueeze(0),
                position_ids=packing.positions_N.unsqueeze(0),
                use_cache=False,
                logits_to_keep=torch.empty(0, dtype=torch.long, device=ids_N.device),
            )
    finally:
        hook.remove()
    return kept[0][0]


def _trunk(plain: nn.Module) -> nn.Module:
    inside = plain.get_base_model() if hasattr(plain, "get_base_model") else plain  # out of PEFT
    return inside.base_model


@torch.no_grad()
def _packing_changes_nothing(plain: nn.Module) -> bool:
    device = next(plain.parameters()).device
    rows = [torch.tensor(ids, device=device) for ids in ([3, 1, 2], [1, 2])]
    training = plain.training
    plain.eval()
    try:
        apart = [plain(input_ids=row.unsqueeze(0), use_cache=False) for row in rows]
        hidden_ND = _trunk_states(plain, torch.cat(rows), pack([3, 2], device=device))
        logits_NV = plain.get_output_embeddings()(hidden_ND).float()
    except (TypeError, AttributeError, IndexError, RuntimeError):
        return False  # the model takes no packed row
    finally:
        plain.train(training)
    expected_NV = torch.cat([output["logits"][0] for output in apart]).float()
    # A misplaced token moves logits by their own size, bfloat16 by a hundredth of it.
    return bool((logits_NV - expected_NV).norm() <= 0.03 * expected_NV.norm())


# ---- padded ----


def _score_padded(model: nn.Module, completions: _SideBySide, temperature: float) -> Scores:
    """Padding stands on the right only: a causal model then needs no mask.

    Logits and values are computed from the first position that predicts a completion token, in any
    row, onwards.
    """
    ids_BT, prompts_B, mask_BC = completions.ids_BT, completions.prompts_B, completions.mask_BC
    first = int(prompts_B.min()) - 1
    output = model(
        input_ids=ids_BT,
        position_ids=torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT),
        use_cache=False,
        logits_to_keep=ids_BT.shape[1] - first,
    )
    logprobs_BK, entropy_BK = token_scores(
        output["logits"][:, :-1], ids_BT[:, first + 1 :], temperature
    )
    # Token c of a row's completion is predicted at its position prompts + c - 1.
    columns_C = torch.arange(mask_BC.shape[1], device=ids_BT.device)
    where_BC = (prompts_B.unsqueeze(1) - 1 - first + columns_C).clamp_max(logprobs_BK.shape[1] - 1)

    def pick(x_BK: torch.Tensor) -> torch.Tensor:
        return x_BK.gather(1, where_BC) * mask_BC

    return Scores(
        logprobs_BC=pick(logprobs_BK),
        entropy_BC=pick(entropy_BK),
        values_BC=pick(output["values"][:, :-1]) if "values" in output else None,
    )
