"""Log-probability, entropy and value of every sampled token, in one forward."""

from dataclasses import dataclass

import torch
from torch import nn

from pipeline.rollout.sampler import positions


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

    Columns that hold only padding are cut before the forward, logits and values are computed where a
    completion token is predicted and nowhere else.
    """
    width_C = completion_ids_BC.shape[1]
    prompts = slice(prompt_ids_BP.shape[1] - int(mask_prompt_BP.sum(dim=1).max()), None)
    completions = slice(0, int(mask_completion_BC.sum(dim=1).max()))
    ids_BC = completion_ids_BC[:, completions]
    mask_BC = mask_completion_BC[:, completions]
    mask_BT = torch.cat([mask_prompt_BP[:, prompts], mask_BC], dim=1)
    output = model(
        input_ids=torch.cat([prompt_ids_BP[:, prompts], ids_BC], dim=1),
        attention_mask=None if mask_BT.all() else mask_BT.long(),
        position_ids=positions(mask_BT),
        use_cache=False,
        logits_to_keep=ids_BC.shape[1] + 1,
    )
    predict = slice(-ids_BC.shape[1] - 1, -1)  # the positions that predict the completion
    logprobs_BC, entropy_BC = token_scores(output["logits"][:, predict], ids_BC, temperature)
    values_BC = output["values"][:, predict] if "values" in output else None

    def widen(x_BC: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x_BC * mask_BC, (0, width_C - x_BC.shape[1]))

    return Scores(
        logprobs_BC=widen(logprobs_BC),
        entropy_BC=widen(entropy_BC),
        values_BC=None if values_BC is None else widen(values_BC),
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
