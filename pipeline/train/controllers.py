"""The price of drift: what one nat of distance from the reference costs, fixed or adaptive.

A controller is saved with every checkpoint (`saving`): `state_dict()` gives plain numbers that JSON
keeps exactly, `load_state_dict(...)` takes them.
"""

from typing import Any


class FixedKL:
    """A price that stays what it is."""

    def __init__(self, coef: float):
        self.coef = coef
        self.charged = coef  # to the rollout that is being trained on

    def update(self, kl: float, sequences: int) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class AdaptiveKL(FixedKL):
    """A price that rises while the drift is above `target` nats a token, and falls below it.

        error = clip(KL / target - 1, -0.2, 0.2)
        coef  = coef * (1 + error * sequences / horizon)

    Ziegler et al. 2019 (arXiv:1909.08593, 2.2), whose gain of 0.1 a batch is sequences / horizon
    here: the pace then follows from the sequences seen, not from the size of a rollout.
    """

    def __init__(self, coef: float, *, target: float, horizon: int):
        super().__init__(coef)
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, sequences: int) -> None:
        self.charged = self.coef
        error = max(-0.2, min(0.2, kl / self.target - 1))
        self.coef *= 1 + error * sequences / self.horizon

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef, "charged": self.charged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state:
            raise ValueError(
                "the checkpoint was saved with kl_controller=fixed, and this run is adaptive; "
                "resume with the configuration it was saved with"
            )
        self.coef, self.charged = state["coef"], state["charged"]
