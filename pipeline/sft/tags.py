"""Make `</think>` learnable in a short SFT, and measure whether it is learned.

A new row of a vocabulary of 49,000 tokens moves little in some hundred steps, and a thought that
never closes has no answer. `fit_end_think` therefore fits that row before training: with the trunk
frozen the loss of the row is that of a logistic regression on the trunk's hidden states,

    p(</think>) = sigmoid(f(h @ w + b) - logsumexp(logits of all other tokens))

which needs one forward pass over some examples. f is what the model does to the outputs of its LM
head: a factor (Granite, Cohere), a soft cap (Gemma 2), or nothing. No other weight changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.tags import END_THINK
from pipeline.generation import Sampler
from pipeline.generation.kv_cache import evaluation_mode

Rows = Sequence[Mapping[str, list[int]]]  # rows of `sft_dataset`: input_ids, completion_mask
EXAMPLES = 64  # that the row is fitted to
LEARNED = 0.5  # mean p(</think>) where it stands, from which the row is left as it is
# Weight of the squared change of the row, relative to its squared norm. Cross-entropy on 64 further
# examples of smol: 0.114 with 1e-3, 0.084 with 1e-2, 0.075 with 0.03, 0.070 with 0.1, 0.078 with 1.
RIDGE = 0.03
SAMPLES = 24  # thoughts that are sampled to see whether they close
CLOSED_ENOUGH = 0.8  # share of closed thoughts below which SFT and PPO warn


@dataclass(frozen=True)
class TagFit:
    """Mean p(</think>) where it stands in the examples, before and after the fit."""

    before: float
    after: float


def fit_end_think(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows
) -> TagFit | None:
    """Fit the output row of `</think>` in place; None if no row has a trained `</think>`.

    A row that gives LEARNED already is not changed: the model knows the tag. With tied embeddings
    it is the input row too, which only tokens after `</think>` read.
    """
    end_id = tokenizer.convert_tokens_to_ids(END_THINK)
    with evaluation_mode(model):
        states = [_states(model, row, end_id) for row in rows]
    *parts, factors = zip(*states, strict=True)
    hidden_MD, others_M, closes_M = (torch.cat(part) for part in parts)
    if not closes_M.any():
        return None
    head, factor, cap = model.get_output_embeddings(), factors[0], _soft_cap(model)
    start_D = head.weight[end_id].detach().float().clone()  # the row itself is written below
    bias = 0.0 if head.bias is None else float(head.bias[end_id].detach())
    change_D = torch.zeros_like(start_D, requires_grad=True)

    def logits() -> torch.Tensor:
        from_head_M = hidden_MD @ (start_D + change_D) + bias
        capped_M = factor * from_head_M if cap is None else cap * torch.tanh(from_head_M / cap)
        return capped_M - others_M

    def loss() -> torch.Tensor:
        cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits(), closes_M)
        return cross_entropy + RIDGE * change_D.square().sum() / start_D.square().sum()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    def closing() -> float:
        with torch.no_grad():
            return float(logits().sigmoid()[closes_M.bool()].mean())

    before = closing()
    if before >= LEARNED:
        return TagFit(before=before, after=before)
    optimizer = torch.optim.LBFGS([change_D], max_iter=100, line_search_fn="strong_wolfe")
    optimizer.step(closure)
    with torch.no_grad():
        head.weight[end_id] = (start_D + change_D).to(head.weight.dtype)
    return TagFit(before=before, after=closing())


@torch.no_grad()
def _states(
    model: PreTrainedModel, row: Mapping[str, list[int]], end_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """(hidden_MD, others_M, closes_M, factor) of the M trained tokens of a row, float32.

    `others_M` is the logsumexp of the logits of all tokens but `</think>`, and `factor` the ratio
    of the logits to the outputs of the LM head.
    """
    head, kept = model.get_output_embeddings(), []
    ids_T = torch.tensor(row["input_ids"], device=head.weight.device)
    trained_T = torch.tensor(row["completion_mask"], device=ids_T.device).bool()
    # The model may change the output of the head in place.
    hook = head.register_forward_hook(
        lambda module, args, output: kept.append((args[0], output.float().norm()))
    )
    try:
        logits_TV = model(input_ids=ids_T.unsqueeze(0), use_cache=False).logits[0].float()
    finally:
        hook.remove()
    ((hidden_1TD, norm),) = kept
    factor = float(logits_TV.norm() / norm)
    before_M = trained_T.nonzero().squeeze(1) - 1  # the positions that predict the tokens
    logits_MV = logits_TV[before_M]
    logits_MV[:, end_id] = -torch.inf
    closes_M = (ids_T[before_M + 1] == end_id).float()
    return hidden_1TD[0, before_M].float(), logits_MV.logsumexp(dim=-1), closes_M, factor


def _soft_cap(model: PreTrainedModel) -> float | None:
    """c of logits = c * tanh(outputs of the LM head / c), or None."""
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


@torch.no_grad()
def closing_probabilities(
    logits_MV: torch.Tensor, labels_M: torch.Tensor, end_id: int
) -> dict[str, float]:
    """{tags/close, tags/close_elsewhere}: mean p(</think>) where it is the label, and where not.

    A key is missing if there is no such token.
    """
    p_M = (logits_MV[:, end_id].float() - logits_MV.float().logsumexp(dim=-1)).exp()
    due_M = labels_M == end_id
    parts = {"tags/close": p_M[due_M], "tags/close_elsewhere": p_M[~due_M]}
    return {name: float(part.mean()) for name, part in parts.items() if len(part)}


def closed_share(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
) -> float:
    """Share of greedy completions with a `</think>` within `max_new_tokens` tokens.

    Fewer tokens are sampled where the context window of the model has no room for so many.
    """
    end_id = tokenizer.convert_tokens_to_ids(END_THINK)
    window = getattr(model.config, "max_position_embeddings", None)
    if window is not None:
        max_new_tokens = max(1, min(max_new_tokens, window - max(map(len, prompts))))
    sampler = Sampler(model, tokenizer, temperature=0.0, max_new_tokens=max_new_tokens)
    rollout = sampler.sample(prompts)
    has_B = ((rollout.completion_ids_BC == end_id) & rollout.mask_completion_BC).any(dim=1)
    return float(has_B.float().mean())


def warn_of_open_thoughts(share: float, remedy: str) -> None:
    """Print one line if the share of closed thoughts is below CLOSED_ENOUGH."""
    if share < CLOSED_ENOUGH:
        print(
            f"warning: {share:.0%} of {SAMPLES} sampled thoughts close with {END_THINK}, and one "
            f"that does not has no answer and earns no reward; {remedy}"
        )
