"""Log-probability, entropy and value of every sampled token, in one forward."""

from dataclasses import dataclass

import torch
from torch import nn


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
    """What the model thinks of completions; differentiable.

    Prompt and completion of a row stand side by side, padded on the right only: a causal model then
    needs no mask, and the batch is as wide as its longest row. Logits and values are computed from
    the first position that predicts a completion token, in any row, onwards.
    """
    ids_BT, prompts_B = _side_by_side(
        prompt_ids_BP, mask_prompt_BP, completion_ids_BC, mask_completion_BC
    )
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
    columns_C = torch.arange(completion_ids_BC.shape[1], device=ids_BT.device)
    where_BC = (prompts_B.unsqueeze(1) - 1 - first + columns_C).clamp_max(logprobs_BK.shape[1] - 1)

    def pick(x_BK: torch.Tensor) -> torch.Tensor:
        return x_BK.gather(1, where_BC) * mask_completion_BC

    return Scores(
        logprobs_BC=pick(logprobs_BK),
        entropy_BC=pick(entropy_BK),
        values_BC=pick(output["values"][:, :-1]) if "values" in output else None,
    )


def token_scores(
    logits_BCV: torch.Tensor, ids_BC: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logprobs_BC, entropy_BC) in nats, of the distribution that was sampled from.

    The entropy is a diagnostic and a bonus; both have gradients.
    """
    logprobs_BCV = torch.log_softmax(logits_BCV.float() / temperature, dim=-1)
    chosen_BC = logprobs_BCV.gather(-1, ids_BC.unsqueeze(-1)).squeeze(-1)
    entropy_BC = -(logprobs_BCV.exp() * logprobs_BCV).sum(dim=-1)
    return chosen_BC, entropy_BC


def _side_by_side(
    prompt_ids_BP: torch.Tensor,
    mask_prompt_BP: torch.Tensor,
    completion_ids_BC: torch.Tensor,
    mask_completion_BC: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids_BT, prompts_B): rows moved to the left edge, and the length of each prompt.

    What stands behind a row's last token is of no account: nothing before it sees it.
    """
    prompts_B, completions_B = mask_prompt_BP.sum(dim=1), mask_completion_BC.sum(dim=1)
    # One column at least, also where no completion has a token that counts.
    width = int((prompts_B + completions_B.clamp_min(1)).max())
    both_BT = torch.cat([prompt_ids_BP, completion_ids_BC], dim=1)
    starts_B = prompt_ids_BP.shape[1] - prompts_B
    where_BT = starts_B.unsqueeze(1) + torch.arange(width, device=both_BT.device)
    return both_BT.gather(1, where_BT.clamp_max(both_BT.shape[1] - 1)), prompts_B
