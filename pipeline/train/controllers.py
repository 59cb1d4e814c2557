"""What a PPO run learns beside its weights, and keeps with every checkpoint.

A controller has `state_dict()`, plain numbers that JSON keeps exactly, and `load_state_dict(...)`.
CONTROLLERS_FILE in a checkpoint holds those of a run by name, so that a resumed run goes on with
the very same coefficient, success rates and counts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.runtime import write_json

CONTROLLERS_FILE = "controllers.json"


class Controller(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class FixedKL:
    """A price of drift that stays what it is."""

    def __init__(self, coef: float):
        self.coef = coef

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
        error = max(-0.2, min(0.2, kl / self.target - 1))
        self.coef *= 1 + error * sequences / self.horizon

    def state_dict(self) -> dict[str, Any]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coef = state["coef"]


def save_controllers(folder: str | Path, controllers: Mapping[str, Controller]) -> None:
    states = {name: controller.state_dict() for name, controller in controllers.items()}
    write_json(Path(folder) / CONTROLLERS_FILE, states)


def load_controllers(folder: str | Path, controllers: Mapping[str, Controller]) -> None:
    """Give every controller the state it had when `folder` was saved.

    Raises ValueError where the checkpoint knows nothing of a controller that has a state: the run
    would silently begin it anew.
    """
    path = Path(folder) / CONTROLLERS_FILE
    states = json.loads(path.read_text()) if path.is_file() else {}
    for name, controller in controllers.items():
        if name not in states and controller.state_dict():
            raise ValueError(
                f"{folder} has no state of {name} in {CONTROLLERS_FILE}; resume with the settings "
                "that the checkpoint was made with"
            )
        controller.load_state_dict(states.get(name, {}))
