"""An exponential moving average of the trained weights (Polyak averaging).

    ema = decay * ema + (1 - decay) * weights        after every optimizer step

The average has less of the noise of single steps than the last weights. It is saved beside them.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


class WeightsEMA:
    """The average of the parameters that are trained, in float32.

    Args:
        named: (name, parameter); those without gradients are left out.
        decay: weight of the average so far, in (0, 1). It averages over about 1 / (1 - decay)
            optimizer steps.

    >>> w = nn.Parameter(torch.tensor([0.0])); ema = WeightsEMA([("w", w)], decay=0.75)
    >>> _ = w.data.fill_(4.0); ema.update(); ema.state_dict()["w"]
    tensor([1.])
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], *, decay: float):
        self.parameters = {name: p for name, p in named if p.requires_grad}
        self.decay = decay
        self._average = {name: p.detach().clone().float() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the average."""
        for name, average in self._average.items():
            average.lerp_(self.parameters[name].detach().float(), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the parameters the average inside the context, and their own weights after it."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            self._assign(self._average)
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The average by the names of the parameters, for a safetensors file."""
        return {name: average.contiguous() for name, average in self._average.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on with the average of `state_dict`.

        Raises:
            ValueError: the names are not those of the parameters.
        """
        if state.keys() != self._average.keys():
            raise ValueError(
                f"the stored average has {len(state)} weights and this model trains "
                f"{len(self._average)} of other names; resume with the model it was saved with"
            )
        for name, average in self._average.items():
            average.copy_(state[name])
