"""Gradients of the policy loss and of the SFT loss, as rows of a matrix.

Axes beside those of `pipeline.records`: N independent batches of equal size, K components of a
gradient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import pad

from pipeline.ppo.delayed_update import policy_parameters
from pipeline.ppo.losses import policy_loss
from pipeline.ppo.minibatches import Batch
from pipeline.ppo.supervised import SupervisedPart
from pipeline.records import Rollout
from pipeline.scoring import score_completions
from pipeline.scoring.logprobs import score_rows

MAX_COMPONENTS = 2**20  # K of a row: 4 MiB in float32


@dataclass(frozen=True)
class Sketch:
    """A random projection of gradients to K components that keeps inner products in the mean: each
    parameter is added to one component with a random sign (count sketch, Charikar et al. 2002).

    The standard deviation of a cosine is about 1 / sqrt(K), or 0.001. Gradients that have no more
    than K parameters are kept as they are.
    """

    signs_D: torch.Tensor | None
    components: int

    def __call__(self, gradient_D: torch.Tensor) -> torch.Tensor:
        """Return row_K of a gradient, float32."""
        if self.signs_D is None:
            return gradient_D
        signed_D = pad(gradient_D * self.signs_D, (0, -len(gradient_D) % self.components))
        return signed_D.view(-1, self.components).sum(dim=0)


def make_sketch(parameters: Sequence[nn.Parameter], components: int = MAX_COMPONENTS) -> Sketch:
    """Return the sketch of gradients of these parameters, always the same for the same sizes."""
    size, device = sum(p.numel() for p in parameters), parameters[0].device
    if size <= components:
        return Sketch(None, components)
    generator = torch.Generator().manual_seed(0)
    bits_D = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8)
    return Sketch((2 * bits_D - 1).to(device), components)


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a policy loss has gradients for: all but the value head's."""
    return [p for p in policy_parameters(model) if p.requires_grad]


def policy_gradients(
    model: nn.Module,
    rollout: Rollout,
    batches: Mapping[str, Batch],
    *,
    count: int,
    micro_batch_size: int,
    temperature: float,
    components: int = MAX_COMPONENTS,
) -> tuple[dict[str, torch.Tensor], float]:
    """Return ({name: gradients_NK}, mean entropy in nats per token).

    The rollout is cut into `count` parts of neighbouring sequences. The mean of the rows of
    gradients_NK is the gradient of PPO's policy loss over the whole rollout at the policy that
    sampled it, with the advantages of batches[name]. A micro-batch has one forward pass for all
    names, and one backward pass for each.

    Args:
        count: N; it divides the number of sequences.
        micro_batch_size: sequences of a forward pass.
    """
    parameters = trained_parameters(model)
    sketch = make_sketch(parameters, components)
    rows_by_name: dict[str, list[torch.Tensor]] = {name: [] for name in batches}
    tokens = {name: int(b["completion_mask"].sum().clamp_min(1)) for name, b in batches.items()}
    entropy = 0.0
    for part in torch.arange(len(rollout.truncated_B)).chunk(count):
        sums = {name: torch.zeros(()) for name in batches}
        for rows in part.split(micro_batch_size):
            scores = score_completions(
                model,
                rollout.prompt_ids_BP[rows],
                rollout.mask_prompt_BP[rows],
                rollout.completion_ids_BC[rows],
                rollout.mask_completion_BC[rows],
                temperature=temperature,
            )
            entropy += float(scores.entropy_BC.detach().sum())
            for index, (name, batch) in enumerate(batches.items()):
                old_BC = scores.logprobs_BC.detach()
                loss_BC, _ = policy_loss(
                    scores.logprobs_BC, old_BC, batch["advantages"][rows].to(old_BC), clip=0.2
                )
                mask_BC = batch["completion_mask"][rows].to(old_BC.device)
                if "policy_mask" in batch:
                    mask_BC = mask_BC & batch["policy_mask"][rows].to(old_BC.device)
                loss = (loss_BC * mask_BC).sum() * count / tokens[name]
                sums[name] = sums[name].to(loss) + flat_gradient(
                    loss, parameters, keep=index + 1 < len(batches)
                )
        for name, gradient_D in sums.items():
            rows_by_name[name].append(sketch(gradient_D).cpu())
    sampled = int(rollout.mask_completion_BC.sum())
    return {name: torch.stack(rows) for name, rows in rows_by_name.items()}, entropy / sampled


def supervised_gradients(
    model: nn.Module, supervised: SupervisedPart, count: int, components: int = MAX_COMPONENTS
) -> torch.Tensor:
    """Return gradients_NK of the SFT loss on the first `count` batches of worked solutions."""
    parameters = trained_parameters(model)
    sketch = make_sketch(parameters, components)
    found = []
    for index in range(count):
        ids_BT, mask_BT = (x.to(parameters[0].device) for x in supervised.batch(index))
        loss = supervised.loss(score_rows(model, ids_BT, mask_BT), ids_BT, mask_BT)
        found.append(sketch(flat_gradient(loss, parameters)).cpu())
    return torch.stack(found)


def flat_gradient(
    loss: torch.Tensor, parameters: Sequence[nn.Parameter], *, keep: bool = False
) -> torch.Tensor:
    """Return gradient_D of a loss, float32; `keep` keeps the graph for another backward pass."""
    found = torch.autograd.grad(
        loss, parameters, retain_graph=keep, allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.flatten().float() for gradient in found])
