"""Which gradients the optimizer applies: fewer steps of the policy than of the value head.

Open-Reasoner-Zero trains its critic on twelve minibatches of a rollout and its policy once on all
of it. On one trunk this is done by delaying gradients: the value head steps with every minibatch,
the gradients of everything else are accumulated and applied together.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

COUNT = "count"  # in a state: the number of optimizer steps whose gradients are in the sums


class DelayedUpdate:
    """Accumulates gradients over `steps` optimizer steps and applies their mean with the last.

    Steps that are not usable, because a gradient is not finite, are left out of the mean.

    >>> w = nn.Parameter(torch.zeros(1)); delayed = DelayedUpdate([w], steps=2)
    >>> w.grad = torch.tensor([1.0]); delayed.step(0); w.grad is None
    True
    >>> w.grad = torch.tensor([3.0]); delayed.step(1); w.grad.item()
    2.0
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, steps: int):
        self.parameters = list(parameters)
        self.steps = steps
        self._sums: dict[nn.Parameter, torch.Tensor] = {}
        self._count = 0  # optimizer steps in the sums

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Accumulated gradients by the index of their parameter, of a sharded one the part of this
        process, and COUNT, the number of their steps; {} between two policy steps."""
        if not self._count:
            return {}
        indices = {parameter: str(index) for index, parameter in enumerate(self.parameters)}
        sums = {indices[parameter]: _part(total) for parameter, total in self._sums.items()}
        return {**sums, COUNT: torch.tensor(self._count)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor], index: int) -> None:
        """Go on at optimizer step `index` with the accumulated gradients of `state_dict`, on each
        parameter's device. A state without COUNT, of an earlier version, has every step before;
        sums of steps that have been applied are left out."""
        self._count = int(state.get(COUNT, index % self.steps))
        if not self._count:
            self._sums = {}
            return
        self._sums = {
            self.parameters[int(name)]: _as_parameter(total, self.parameters[int(name)])
            for name, total in state.items()
            if name != COUNT
        }

    def step(self, index: int, *, usable: bool = True) -> None:
        """Remove the gradients of optimizer step `index`, or set the mean of those of the last
        `steps` that are usable; none where no step is."""
        self._count += usable
        for parameter in self.parameters:
            if usable and parameter.grad is not None:
                total = self._sums.get(parameter)
                self._sums[parameter] = parameter.grad if total is None else total + parameter.grad
            parameter.grad = None
        if (index + 1) % self.steps == 0:
            for parameter, total in self._sums.items():
                parameter.grad = total / self._count
            self._sums, self._count = {}, 0


def _part(total: torch.Tensor) -> torch.Tensor:
    return total.to_local() if isinstance(total, DTensor) else total


def _as_parameter(part: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """Return the part of a process, divided and placed as its parameter is."""
    part = part.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return part
    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def policy_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return all parameters but those of the value head."""
    return [p for name, p in model.named_parameters() if "value_head." not in name]


def drop_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Set gradients to None, so that the optimizer leaves these weights and its averages as they
    are: with a gradient of 0 it would still apply weight decay and momentum."""
    for parameter in parameters:
        parameter.grad = None
