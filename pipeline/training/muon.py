"""torch.optim.Muon with batched orthogonalization, in float32 on the CPU.

torch computes it matrix by matrix in bfloat16. On a processor without bfloat16 instructions that is
over ten times slower than float32, and most of a small model's training step.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Coefficients = tuple[float, float, float]


class Muon(torch.optim.Muon):
    """The same updates as torch.optim.Muon up to rounding, and the same state."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update the parameters; `closure` is not called."""
        for group in self.param_groups:
            by_shape = defaultdict(list)  # matrices of one shape, transposed to be wide
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[tuple(sorted(parameter.shape))].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        directions = [
            _wide(self._direction(p, group["momentum"], group["nesterov"])) for p in parameters
        ]
        updates = orthogonal(
            torch.stack(directions),
            coefficients=group["ns_coefficients"],
            steps=group["ns_steps"],
            eps=group["eps"],
        )
        rate, decay = group["lr"], group["weight_decay"]
        for parameter, update in zip(parameters, updates, strict=True):
            scale = _scale(parameter.shape, group["adjust_lr_fn"])
            wide = _wide(parameter)  # a view
            wide.mul_(1 - rate * decay).add_(update.to(wide.dtype), alpha=-rate * scale)

    def _direction(self, parameter: Tensor, momentum: float, nesterov: bool) -> Tensor:
        """Return the gradient smoothed by momentum."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum) if nesterov else buffer


def orthogonal(
    matrices_PMN: Tensor, *, coefficients: Coefficients, steps: int, eps: float
) -> Tensor:
    """Return the matrices with singular values near 1 (Newton-Schulz; Jordan et al. 2024). M <= N.

    An iteration is X <- (a + bG + cG^2) X with G = X X^T. Where N is at least 2M the M x M
    polynomials are multiplied with each other first, and once with X.
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
    """Return float32 on the CPU, otherwise bfloat16, which torch.optim.Muon uses everywhere."""
    return torch.float32 if tensor.device.type == "cpu" else torch.bfloat16


def _wide(matrix: Tensor) -> Tensor:
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def _scale(shape: torch.Size, rule: str | None) -> float:
    """Return the factor by which torch.optim.Muon multiplies the learning rate."""
    rows, columns = shape
    if rule == "match_rms_adamw":
        return 0.2 * max(rows, columns) ** 0.5
    return max(1.0, rows / columns) ** 0.5
