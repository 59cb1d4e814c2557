"""The states of controllers, such as an adaptive coefficient, in the file of a checkpoint."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

CONTROLLERS = "controllers.json"
# Names of controllers in checkpoints of earlier versions.
FORMER_CONTROLLERS = {"guard": "nonfinite", "critic": "verifier"}


class Controller(Protocol):
    """An object whose state is saved with every checkpoint, as plain JSON."""

    def state_dict(self) -> Mapping[str, object]:
        """The state as plain JSON."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Go on with the state of `state_dict`."""
        ...


def save_controllers(folder: Path, controllers: Mapping[str, Controller]) -> None:
    """Write the states of all controllers into the folder of a checkpoint."""
    states = {name: part.state_dict() for name, part in controllers.items()}
    write_line(folder / CONTROLLERS, states)


def load_controllers(folder: Path, controllers: Mapping[str, Controller]) -> None:
    """Give every controller the state that a checkpoint has of it.

    Raises:
        ValueError: the checkpoint has the states of other controllers.
    """
    saved = json.loads((folder / CONTROLLERS).read_text(encoding="utf-8"))
    states = {FORMER_CONTROLLERS.get(name, name): state for name, state in saved.items()}
    if states.keys() != controllers.keys():
        raise ValueError(
            f"{folder} was saved with the controllers {sorted(states)}, and this run "
            f"has {sorted(controllers)}; resume with the configuration it was saved with"
        )
    for name, part in controllers.items():
        part.load_state_dict(states[name])


def write_line(path: Path, content: object) -> None:
    """Write JSON in one line."""
    path.write_text(json.dumps(content) + os.linesep, encoding="utf-8")
