"""Which questions to ask next: those of levels that the policy sometimes gets right.

A question that is always right, or never, pays all its completions alike and teaches little. The
variance p (1 - p) of a reward of 0 or 1 says how much there is to learn at a level with success
rate p; levels are asked in proportion to it, and each at least a little, so that its rate stays
known.

What is asked follows from the seed and the state alone, and the state is a few numbers: a resumed
run asks what the unbroken one would have asked.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch


class LevelCurriculum:
    """Draws indices of questions by level; `levels` has the level of every question.

    A success rate is counted over the completions of a level, each rollout weighing `decay` of the
    one after it. Before any was seen it is one half. `floor` is added to every p (1 - p).
    """

    def __init__(self, levels: Sequence[str], *, seed: int, decay: float, floor: float):
        self.questions: dict[str, list[int]] = {}
        for index, level in enumerate(levels):
            self.questions.setdefault(level or "no level", []).append(index)
        self.names = sorted(self.questions)
        self.level_of = [level or "no level" for level in levels]
        self.seed, self.decay, self.floor = seed, decay, floor
        self.right = dict.fromkeys(self.names, 0.0)
        self.seen = dict.fromkeys(self.names, 0.0)
        self.asked = dict.fromkeys(self.names, 0)

    def success(self, level: str) -> float:
        """Share of right completions, with one right and one wrong added to what was seen."""
        return (self.right[level] + 1) / (self.seen[level] + 2)

    def shares(self) -> dict[str, float]:
        """The share of the next questions that each level gets; they add up to 1."""
        rates = {level: self.success(level) for level in self.names}
        weights = {level: self.floor + rate * (1 - rate) for level, rate in rates.items()}
        total = sum(weights.values())
        return {level: weight / total for level, weight in weights.items()}

    def draw(self, count: int, generator: torch.Generator) -> list[int]:
        """`count` indices; inside a level every question once before any comes twice."""
        weights = torch.tensor(list(self.shares().values()), dtype=torch.float64)
        drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
        return [self._next(self.names[int(index)]) for index in drawn]

    def update(self, indices: Sequence[int], rights: Sequence[bool]) -> None:
        """Take in whether the completions of these questions were right."""
        for level in self.names:
            self.right[level] *= self.decay
            self.seen[level] *= self.decay
        for index, right in zip(indices, rights, strict=True):
            self.right[self.level_of[index]] += float(right)
            self.seen[self.level_of[index]] += 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"right": dict(self.right), "seen": dict(self.seen), "asked": dict(self.asked)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if sorted(state["asked"]) != self.names:
            raise ValueError(
                f"the checkpoint's curriculum has the levels {', '.join(sorted(state['asked']))}, "
                f"the data {', '.join(self.names)}; resume with the data it was made with"
            )
        self.right, self.seen = dict(state["right"]), dict(state["seen"])
        self.asked = dict(state["asked"])

    def _next(self, level: str) -> int:
        questions = self.questions[level]
        shuffle, place = divmod(self.asked[level], len(questions))
        self.asked[level] += 1
        order = random.Random(f"{self.seed}/{level}/{shuffle}").sample(questions, len(questions))
        return order[place]
