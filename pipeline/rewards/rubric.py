"""A rubric: the weighted sum of rewards, also as the reward functions that TRL calls."""

import difflib
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pipeline.chat.tags import END_THINK
from pipeline.records import Problem
from pipeline.rewards.functions import RewardFn, brevity, correctness, well_formed
from pipeline.rewards.steps import coherence, correct_steps, self_correction, step_rewards

REWARDS: dict[str, RewardFn] = {
    fn.__name__: fn
    for fn in (correctness, well_formed, brevity, coherence, correct_steps, self_correction)
}
STEPS = "steps"  # the one reward with positions inside the completion
GRADED = frozenset((correctness, brevity, coherence))  # None without a verdict, as steps are

Message = Mapping[str, Any]
Completion = str | Sequence[Message]
TRLReward = Callable[..., list[float | None]]
StepFn = Callable[[Problem, str], list[tuple[int, float]] | None]


@dataclass(frozen=True)
class Rubric:
    """Weighted rewards, by name.

    A name is one of REWARDS, "steps", one of `extra`, or "package.module:function" for a function
    `(problem, completion) -> float` of the user. A reward of weight 0 is only logged.

    >>> rubric = Rubric({"correctness": 1.0, "well_formed": 0.2})
    >>> rubric.score(Problem(question="What is 2+3?", answer="5"), "2+3=6</think>6")
    {'correctness': 0.0, 'well_formed': 1.0}
    >>> rubric.total(Problem(question="What is 2+3?", answer="5"), "2+3=6</think>6")
    0.2
    """

    weights: Mapping[str, float]
    extra: Mapping[str, RewardFn] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError(f"weights={self.weights} is empty; name a reward, such as correctness")
        for name, weight in self.weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float):
                raise ValueError(f"weight of {name}={weight!r} must be a number, such as 1.0")
            if not math.isfinite(weight):
                raise ValueError(f"weight of {name}={weight} must be finite, such as 1.0")
            if name != STEPS:
                self._function(name)

    def score(self, problem: Problem, completion: str) -> dict[str, float | None]:
        """Every reward, unweighted, for the log; None where there is no verdict."""
        parts = {name: fn(problem, completion) for name, fn in self._functions().items()}
        if STEPS in self.weights:
            marks = step_rewards(problem, completion)
            parts[STEPS] = None if marks is None else sum(reward for _, reward in marks)
        return {name: parts[name] for name in self.weights}

    def total(self, problem: Problem, completion: str) -> float | None:
        """The weighted sum of the rewards; None where one of them is missing."""
        parts = self.score(problem, completion)
        if None in parts.values():
            return None
        return sum(weight * parts[name] for name, weight in self.weights.items())

    def trl_functions(self) -> list[TRLReward]:
        """A function `(prompts, completions, **columns) -> list[float | None]` for every reward but
        the steps; the columns `question` and `answer` come from the data set.

        TRL sums the rewards that are not None. So that a completion without a verdict does not
        count as a wrong one, all functions return None for it where one of them needs the verdict.
        """
        functions = self._functions()
        graded = STEPS in self.weights or not GRADED.isdisjoint(functions.values())
        return [_for_trl(name, fn, graded=graded) for name, fn in functions.items()]

    def weights_list(self) -> list[float]:
        """The weights in the order of `trl_functions`."""
        return [float(self.weights[name]) for name in self._functions()]

    def step_function(self) -> StepFn | None:
        """(problem, completion) -> (character offset, weighted reward) of every step, None without
        a verdict; None instead of a function where steps have no weight."""
        weight = float(self.weights.get(STEPS, 0.0))
        if not weight:
            return None

        def steps(problem: Problem, completion: str) -> list[tuple[int, float]] | None:
            marks = step_rewards(problem, completion)
            return None if marks is None else [(at, weight * reward) for at, reward in marks]

        return steps

    def _functions(self) -> dict[str, RewardFn]:
        return {name: self._function(name) for name in self.weights if name != STEPS}

    def _function(self, name: str) -> RewardFn:
        known = {**REWARDS, **self.extra}
        if name in known:
            return known[name]
        if ":" in name:
            return _imported(name)
        names = sorted((*known, STEPS))
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"reward {name!r} is not one of {', '.join(names)}; {hint}"
            "a function of your own is named package.module:function"
        )


def completion_text(completion: Completion) -> str:
    """A completion as the policy wrote it: thought, END_THINK, answer.

    A chat message without content has a thought that was not closed.

    >>> completion_text([{"role": "assistant", "reasoning_content": "2+3=5", "content": "5"}])
    '2+3=5</think>5'
    >>> completion_text([{"role": "assistant", "reasoning_content": "2+3="}])
    '2+3='
    """
    if isinstance(completion, str):
        return completion
    message = completion[-1] if completion else {}
    thought, content = message.get("reasoning_content"), message.get("content")
    if thought is None:
        return content or ""
    return thought if content is None else f"{thought}{END_THINK}{content}"


def _for_trl(name: str, fn: RewardFn, *, graded: bool) -> TRLReward:
    def one(problem: Problem, text: str) -> float | None:
        missing = graded and correctness(problem, text) is None
        return None if missing else fn(problem, text)

    def reward(
        prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        texts = [completion_text(completion) for completion in completions]
        return [one(p, text) for p, text in zip(_problems(name, columns), texts, strict=True)]

    reward.__name__ = reward.__qualname__ = name.rpartition(":")[2]
    return reward


def _problems(name: str, columns: Mapping[str, Any]) -> list[Problem]:
    """The problems of a batch, from every column that is a field of Problem."""
    if not {"question", "answer"} <= columns.keys():
        raise ValueError(
            f"reward {name} needs the columns question and answer; the data set has "
            f"{', '.join(sorted(columns)) or 'none'}; add them, as pipeline.data does"
        )
    names = [f.name for f in fields(Problem) if f.name in columns]
    rows = zip(*(columns[n] for n in names), strict=True)
    return [Problem.from_columns(dict(zip(names, row, strict=True))) for row in rows]


def _imported(name: str) -> RewardFn:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"reward {name!r} is {type(found).__name__}, it must be a function")
    return found
