"""Several steps of the value head for one of the policy.

Open-Reasoner-Zero trains its critic on twelve minibatches of a rollout and its policy once on all
of it. On one trunk this is done by holding gradients back: the value head steps with every
minibatch, the gradients of everything else add up and are applied together.
"""

from collections.abc import Iterable

import torch
from torch import nn


class DelayedUpdate:
    """Gradients added up over `steps` optimizer steps and given back as their mean with the last.

    >>> w = nn.Parameter(torch.zeros(1)); held = DelayedUpdate([w], steps=2)
    >>> w.grad = torch.tensor([1.0]); held.step(0); w.grad is None
    True
    >>> w.grad = torch.tensor([3.0]); held.step(1); w.grad.item()
    2.0
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, steps: int):
        self.parameters = list(parameters)
        self.steps = steps
        self._sums: dict[nn.Parameter, torch.Tensor] = {}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What is held, by the place of its parameter in the list; {} between two rounds."""
        places = {parameter: str(place) for place, parameter in enumerate(self.parameters)}
        return {places[parameter]: held for parameter, held in self._sums.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self._sums = {
            self.parameters[int(place)]: held.to(self.parameters[int(place)].device)
            for place, held in state.items()
        }

    def step(self, index: int) -> None:
        """Take the gradients of optimizer step `index` away, or bring back those of the round."""
        for parameter in self.parameters:
            if parameter.grad is None:
                continue
            held = self._sums.get(parameter)
            self._sums[parameter] = parameter.grad if held is None else held + parameter.grad
            parameter.grad = None
        if (index + 1) % self.steps == 0:
            for parameter, held in self._sums.items():
                parameter.grad = held / self.steps
            self._sums = {}
