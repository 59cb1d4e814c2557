"""Stop the update of a rollout after the epoch in which the policy has moved far enough.

The rule is CleanRL's and Spinning Up's: after each epoch, `approx_kl` (k3) of its last minibatch is
compared with `target_kl`.
"""

from collections.abc import Mapping


class TargetKL:
    """Which optimizer steps of a rollout are left out.

    >>> rule = TargetKL(0.1, minibatches=1)
    >>> [rule.is_left_out(step, kl) for step, kl in enumerate([0.0, 0.2, 0.2, 0.0])]
    [False, False, True, True]
    >>> rule.is_left_out(0, 0.0)
    False
    """

    def __init__(self, target: float, *, minibatches: int):
        self.target = target
        self.minibatches = minibatches  # optimizer steps of an epoch
        self.stopped = False

    def is_left_out(self, step: int, kl: float) -> bool:
        """Return whether to leave out this step, counted from 0 in the rollout; `kl` is the
        approx_kl of its minibatch, before the step, of all processes."""
        if step == 0:
            self.stopped = False
        left_out = self.stopped
        if (step + 1) % self.minibatches == 0 and kl > self.target:
            self.stopped = True
        return left_out

    def state_dict(self) -> dict[str, bool]:
        """Whether the rest of the current rollout is left out."""
        return {"stopped": self.stopped}

    def load_state_dict(self, state: Mapping[str, bool]) -> None:
        """Go on with the state of `state_dict`."""
        self.stopped = state["stopped"]
