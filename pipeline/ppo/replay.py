"""Replay: groups of hard questions from earlier rollouts stand in for groups without variance.

Where all completions of a question are right, or all wrong, the group has no policy gradient. A
stored group has right and wrong completions, which cost no sampling. They are off-policy: their
log-probabilities are those of the policy that sampled them, so the clipped ratio of PPO bounds what
they change (replay of successes of hard questions: ARPO, arXiv:2505.16282; RePO, arXiv:2506.09340).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.ppo.groups import ScoredRollout, join_groups, take_group, zero_variance
from pipeline.records import Rollout

OUTCOMES = "outcomes_B"


@dataclass(frozen=True)
class StoredGroup:
    """The completions of one question, on the CPU, and what decides when it is used."""

    scored: ScoredRollout
    rollout: int  # number of the rollout that sampled it
    uses: int = 0


class ReplayBuffer:
    """Groups of this process from its last rollouts; the groups used least, then the newest, first.

    Args:
        group: completions of a question.
        size: most groups that are kept.
        age: rollouts after which a group is dropped.
        success: highest share of right completions of a group that is kept.
        right_outcome: least outcome of a right completion.
    """

    def __init__(self, *, group: int, size: int, age: int, success: float, right_outcome: float):
        self.group, self.size, self.age = group, size, age
        self.success, self.right_outcome = success, right_outcome
        self.groups: list[StoredGroup] = []
        self.rollouts = 0

    def take(self, count: int) -> ScoredRollout | None:
        """Return at most `count` stored groups side by side, and count their use; None without
        any."""
        order = sorted(
            range(len(self.groups)), key=lambda i: (self.groups[i].uses, -self.groups[i].rollout)
        )
        chosen = order[:count]
        for i in chosen:
            self.groups[i] = replace(self.groups[i], uses=self.groups[i].uses + 1)
        return join_groups([self.groups[i].scored for i in chosen]) if chosen else None

    def add(self, scored: ScoredRollout) -> None:
        """Count one rollout: keep its groups that have variance and whose success is low enough,
        and drop the groups that are too old, then the oldest of too many."""
        self.rollouts += 1
        right_Q = (scored.outcomes_B >= self.right_outcome).view(-1, self.group).float().mean(dim=1)
        wanted_Q = ~zero_variance(scored.totals(), self.group) & (right_Q > 0)
        wanted_Q &= right_Q <= self.success
        self.groups += [
            StoredGroup(take_group(scored, int(place), self.group), self.rollouts)
            for place in wanted_Q.nonzero().flatten()
        ]
        young = [one for one in self.groups if self.rollouts - one.rollout < self.age]
        self.groups = young[-self.size :]

    def save(self, path: Path) -> None:
        """Write the groups, with their ages and uses, to a safetensors file."""
        tensors, rows = {}, []
        for i, one in enumerate(self.groups):
            for field in fields(Rollout):
                tensors[f"{i}.{field.name}"] = getattr(one.scored.rollout, field.name).contiguous()
            tensors[f"{i}.{OUTCOMES}"] = one.scored.outcomes_B.contiguous()
            rows.append({"steps": one.scored.steps, "rollout": one.rollout, "uses": one.uses})
        state = json.dumps({"rollouts": self.rollouts, "groups": rows})
        save_file(tensors, path, metadata={"replay": state})

    def load(self, path: Path) -> None:
        """Go on with what `save` wrote."""
        with safe_open(path, "pt") as file:
            state = json.loads(file.metadata()["replay"])
            self.groups = [
                _stored({name: file.get_tensor(f"{i}.{name}") for name in (*_NAMES, OUTCOMES)}, row)
                for i, row in enumerate(state["groups"])
            ]
        self.rollouts = state["rollouts"]


_NAMES: Sequence[str] = [field.name for field in fields(Rollout)]


def _stored(tensors: Mapping[str, torch.Tensor], row: Mapping[str, object]) -> StoredGroup:
    """One group of a file; JSON has made lists of the pairs of steps."""
    steps = row["steps"]
    assert steps is None or isinstance(steps, list)
    if steps is not None:
        steps = [[(int(token), float(reward)) for token, reward in one] for one in steps]
    rollout, uses = row["rollout"], row["uses"]
    assert isinstance(rollout, int) and isinstance(uses, int)
    scored = ScoredRollout(
        Rollout(**{name: tensors[name] for name in _NAMES}), tensors[OUTCOMES], steps
    )
    return StoredGroup(scored, rollout, uses)
