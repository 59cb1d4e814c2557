"""Curriculum over levels of difficulty: sample levels by the variance of their success.

A question whose completions are all right, or all wrong, has no policy gradient. Levels are drawn
in proportion to p (1 - p), the variance of a reward of 0 or 1 with success rate p, plus a floor, so
that the rate of every level stays estimated.

Draws follow from seed and state alone, and the state is a few numbers: a resumed run draws the same
questions as an uninterrupted one.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch


class LevelCurriculum:
    """Draws indices of questions by level.

    Args:
        levels: the level of every question.
        decay: weight of a rollout's completions in the success rate, relative to the next one's.
        floor: added to every p (1 - p).
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
        self._order = lru_cache(maxsize=max(1, len(self.names)))(self._shuffled)  # of each level

    def success(self, level: str) -> float:
        """Return the level's success rate with add-one smoothing: one half at first."""
        return (self.right[level] + 1) / (self.seen[level] + 2)

    def shares(self) -> dict[str, float]:
        """Return the probability of each level in the next draw; they add up to 1."""
        rates = {level: self.success(level) for level in self.names}
        weights = {level: self.floor + rate * (1 - rate) for level, rate in rates.items()}
        total = sum(weights.values())
        return {level: weight / total for level, weight in weights.items()}

    def draw(self, count: int, generator: torch.Generator) -> list[int]:
        """Return `count` indices; inside a level no question comes twice before all came once."""
        weights = torch.tensor(list(self.shares().values()), dtype=torch.float64)
        drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
        return [self._next(self.names[int(index)]) for index in drawn]

    def update(self, indices: Sequence[int], rights: Sequence[bool]) -> None:
        """Count one rollout: for each completion its question and whether it was right."""
        for level in self.names:
            self.right[level] *= self.decay
            self.seen[level] *= self.decay
        for index, right in zip(indices, rights, strict=True):
            self.right[self.level_of[index]] += float(right)
            self.seen[self.level_of[index]] += 1.0

    def metrics(self) -> dict[str, float]:
        """Return the share and the success rate of every level, by name for the log."""
        shares = {f"curriculum/{level}/share": share for level, share in self.shares().items()}
        rates = {f"curriculum/{level}/success": self.success(level) for level in self.names}
        return shares | rates

    def state_dict(self) -> dict[str, Mapping[str, float]]:
        """Completions that were right and all completions, with decay, and questions drawn, by
        level."""
        return {"right": dict(self.right), "seen": dict(self.seen), "asked": dict(self.asked)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Go on with the counts of a checkpoint; ValueError where its levels are others."""
        if sorted(state["asked"]) != self.names:
            raise ValueError(
                f"the checkpoint's curriculum has the levels {', '.join(sorted(state['asked']))}, "
                f"the data {', '.join(self.names)}; resume with the data it was made with"
            )
        self.right, self.seen = dict(state["right"]), dict(state["seen"])
        self.asked = {level: int(count) for level, count in state["asked"].items()}

    def _next(self, level: str) -> int:
        shuffle, place = divmod(self.asked[level], len(self.questions[level]))
        self.asked[level] += 1
        return self._order(level, shuffle)[place]

    def _shuffled(self, level: str, shuffle: int) -> list[int]:
        questions = self.questions[level]
        return random.Random(f"{self.seed}/{level}/{shuffle}").sample(questions, len(questions))


def draw_questions(
    count: int,
    generator: torch.Generator,
    *,
    num_questions: int,
    curriculum: LevelCurriculum | None = None,
    process_index: int = 0,
    num_processes: int = 1,
) -> list[int]:
    """Return the indices of `count` questions for this process, by the curriculum if there is one.

    Every process draws for all of them with an equal generator and keeps its part, so that their
    curricula stay equal.
    """
    total = count * num_processes
    if curriculum is not None:
        drawn = curriculum.draw(total, generator)
    else:
        drawn = torch.randint(num_questions, (total,), generator=generator).tolist()
    return drawn[process_index * count : (process_index + 1) * count]


def count_outcomes(
    curriculum: LevelCurriculum,
    indices: Sequence[int],
    outcomes_B: torch.Tensor,
    *,
    right_outcome: float,
    gather: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Update the curriculum with one rollout of all processes.

    `indices` has the question of each completion. Completions with outcome NaN do not count.
    """
    columns = torch.stack([torch.tensor(indices).to(outcomes_B), outcomes_B], dim=1)
    rows = gather(columns.contiguous()).tolist()
    scored = [(int(index), outcome) for index, outcome in rows if outcome == outcome]
    rights = [outcome >= right_outcome for _, outcome in scored]
    curriculum.update([index for index, _ in scored], rights)
