"""Parts of the benchmark `gpu` that run inside the measured process."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from transformers import PreTrainedModel

from eval.bench.measure import Iterations, Task
from pipeline.model import load_policy
from pipeline.ppo.trl_trainer import ReasoningPPOTrainer
from pipeline.scoring import score_completions, varlen_attention

PROMPT = 16  # tokens
STEPS = 32  # lengths are multiples of the largest one by this number


def leave_out(names: Sequence[str]) -> None:
    """Switch off changes that are always on, for the rest of this process, to measure them.

    Raises:
        ValueError: a name is neither weights_cast_once nor varlen.
    """
    for name in names:
        if name == "weights_cast_once":
            setattr(ReasoningPPOTrainer, name, lambda trainer: nullcontext())
        elif name == "varlen":
            setattr(varlen_attention, "varlen_function", lambda: None)  # noqa: B010
        else:
            raise ValueError(f"without={name!r} is none of weights_cast_once, varlen")


def longest(iterations: Iterations, task: Task) -> None:
    """The most tokens of a completion of which an update fits in memory, beside weights, gradients
    and optimizer; with the mode "checkpointing", activations are computed again."""
    device, dtype = torch.device(task["device"]), getattr(torch, task["dtype"])
    model = load_policy(task["model"])[0].to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=task["learning_rate"])
    _update(model, 8, device, dtype)
    optimizer.step()  # the moments are there from now on
    window = model.config.max_position_embeddings - PROMPT
    most = min(task.get("longest") or window, window)
    while True:
        iterations.begin()
        if iterations.mode == "checkpointing":
            model.gradient_checkpointing_enable()
        else:
            model.gradient_checkpointing_disable()
        tokens = _most_that_fits(model, most, device, dtype)
        iterations.end(samples=1, tokens=tokens)


def _most_that_fits(
    model: PreTrainedModel, most: int, device: torch.device, dtype: torch.dtype
) -> int:
    """By bisection over multiples of a step; 0 if not even one step fits."""
    step = max(1, most // STEPS)
    fits, too_long = 0, most // step + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if _fits(model, middle * step, device, dtype):
            fits = middle
        else:
            too_long = middle
    return fits * step


def _fits(model: PreTrainedModel, tokens: int, device: torch.device, dtype: torch.dtype) -> bool:
    try:
        _update(model, tokens, device, dtype)
    except torch.OutOfMemoryError:
        return False
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _update(model: PreTrainedModel, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
    """Forward and backward of one completion of so many tokens; gradients are kept."""
    prompt_ids, ids = (torch.randint(10, 200, (1, n), device=device) for n in (PROMPT, tokens))
    masks = (torch.ones_like(x, dtype=torch.bool) for x in (prompt_ids, ids))
    mask_prompt, mask = masks
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        scores = score_completions(model, prompt_ids, mask_prompt, ids, mask)
    assert scores.values_BC is not None
    loss = scores.logprobs_BC.mean() + scores.entropy_BC.mean() + scores.values_BC.mean()
    loss.backward()
