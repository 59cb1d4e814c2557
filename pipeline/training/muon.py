"""torch.optim.Muon, its orthogonalization batched and in a precision the machine is fast in.

torch computes it matrix by matrix in bfloat16. A processor without bfloat16 instructions is over
ten times slower at that than in float32: most of a small model's training step was spent here.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

Coefficients = tuple[float, float, float]


class Muon(torch.optim.Muon):
    """The same updates as torch.optim.Muon up to rounding, and the same state."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            alike = defaultdict(list)  # matrices of one shape, lying on their longer side
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[tuple(sorted(parameter.shape))].append(parameter)
            for parameters in alike.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        directions = [_lying(self._direction(p, group)) for p in parameters]
        updates = orthogonal(
            torch.stack(directions),
            coefficients=group["ns_coefficients"],
            steps=group["ns_steps"],
            eps=group["eps"],
        )
        rate, decay = group["lr"], group["weight_decay"]
        for parameter, update in zip(parameters, updates, strict=True):
            scale = _scale(parameter.shape, group["adjust_lr_fn"])
            lying = _lying(parameter)  # a view
            lying.mul_(1 - rate * decay).add_(update.to(lying.dtype), alpha=-rate * scale)

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient smoothed by momentum."""
        state, momentum = self.state[parameter], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum) if group["nesterov"] else buffer


def orthogonal(
    matrices_PMN: Tensor, *, coefficients: Coefficients, steps: int, eps: float
) -> Tensor:
    """Each matrix with its singular values near 1 (Newton-Schulz; Jordan et al. 2024). M <= N.

    An iteration is X <- (a + bG + cG^2) X with G = X X^T. Where N is at least 2M the polynomials
    are multiplied up on the small side instead, and meet X once.
    """
    a, b, c = coefficients
    X = matrices_PMN.to(_precision(matrices_PMN))
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    if X.shape[-1] < 2 * X.shape[-2]:
        for _ in range(steps):
            G = X @ X.mT
            X = torch.baddbmm(X, torch.baddbmm(G, G, G, beta=b, alpha=c), X, beta=a)
        return X
    G, product = X @ X.mT, None
    for _ in range(steps):
        factor = torch.baddbmm(G, G, G, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        G = factor @ G @ factor
    return X if product is None else product @ X


def _precision(tensor: Tensor) -> torch.dtype:
    """bfloat16 where it is fast, as torch.optim.Muon has it everywhere."""
    return torch.float32 if tensor.device.type == "cpu" else torch.bfloat16


def _lying(matrix: Tensor) -> Tensor:
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def _scale(shape: torch.Size, rule: str | None) -> float:
    """What torch.optim.Muon multiplies the learning rate by."""
    rows, columns = shape
    if rule == "match_rms_adamw":
        return 0.2 * max(rows, columns) ** 0.5
    return max(1.0, rows / columns) ** 0.5
