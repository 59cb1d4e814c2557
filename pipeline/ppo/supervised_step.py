"""Supervised steps between the rollouts of PPO.

The paper's training loop (4.5) takes a supervised step, then a PPO step, and so on. With
`supervised_mode: alternate` the optimizer takes `supervised_steps` steps on worked solutions after
the update of each rollout, and the next rollout is sampled by the policy that they leave.
"""

import torch
from accelerate import Accelerator
from torch import nn

from pipeline.ppo.delayed_update import drop_gradients
from pipeline.ppo.supervised import SupervisedPart
from pipeline.scoring import score_rows
from pipeline.training.nonfinite import NonfiniteCheck


def supervised_step(
    model: nn.Module,
    supervised: SupervisedPart,
    index: int,
    *,
    coef: float,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    max_grad_norm: float,
    nonfinite: NonfiniteCheck,
) -> float:
    """Take one optimizer step on a batch of worked solutions; return its SFT loss.

    The value head has no gradient and stays as it is. A step whose gradients are not finite changes
    no weight.

    Args:
        index: number of the batch, from 0.
        coef: weight of the loss.
        optimizer: that of PPO, at its current learning rate.
        max_grad_norm: bound of the gradient's norm; 0: none.
    """
    optimizer.zero_grad()
    rows = [x.to(accelerator.device) for x in supervised.batch(index)]
    with accelerator.autocast():
        logprobs_BT = score_rows(model, *rows)
    loss = supervised.loss(logprobs_BT, *rows)
    # `backward` divides by this number, and the batch here is whole.
    accelerator.backward(coef * loss * accelerator.gradient_accumulation_steps)
    parameters = list(model.parameters())
    if nonfinite.gradients_are_finite(parameters):
        if max_grad_norm > 0:
            accelerator.clip_grad_norm_(parameters, max_grad_norm)
        optimizer.step()
    drop_gradients(parameters)
    return loss.item()
