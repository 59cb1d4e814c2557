"""A rubric: which rewards count, and with which weights."""

import difflib
import functools
import importlib
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.chat.tags import END_THINK
from pipeline.config import reward_log_names
from pipeline.records import Problem
from pipeline.rewards.annotated import annotated_thought
from pipeline.rewards.functions import RewardFn, brevity, correctness, well_formed
from pipeline.rewards.steps import coherence, correct_steps, self_correction, step_rewards

REWARDS: dict[str, RewardFn] = {
    fn.__name__: fn
    for fn in (
        correctness,
        well_formed,
        brevity,
        coherence,
        correct_steps,
        self_correction,
        annotated_thought,
    )
}
STEPS = "steps"  # the one reward with positions inside the completion
GRADED = frozenset((correctness, brevity, coherence))  # None without a verdict, as steps are

Message = Mapping[str, str | None]
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
        """Every part, unweighted, for the log; None where a part has no verdict."""
        parts = {name: fn(problem, completion) for name, fn in self._rewards().items()}
        if STEPS in self.weights:
            found = step_rewards(problem, completion)
            parts[STEPS] = None if found is None else sum(reward for _, reward in found)
        return {name: parts[name] for name in self.weights}

    def total(self, problem: Problem, completion: str) -> float | None:
        """The weighted sum of the rewards; None where one of them is missing."""
        parts = self.score(problem, completion)
        known = {name: part for name, part in parts.items() if part is not None}
        if len(known) < len(parts):
            return None
        return sum(self.weights[name] * part for name, part in known.items())

    def functions(self) -> dict[str, RewardFn]:
        """The function `(problem, completion) -> float | None` of every reward but the steps, by
        name.

        A trainer adds up what is not None, so a completion without a verdict would be rewarded as a
        wrong one by the rest of the rubric. Where the rubric needs a verdict, all its functions
        return None for such a completion.
        """
        functions = self._rewards()
        graded = STEPS in self.weights or not GRADED.isdisjoint(functions.values())
        return {name: _with_verdict(fn) if graded else fn for name, fn in functions.items()}

    def trl_functions(self, problems: Sequence[Problem]) -> list[TRLReward]:
        """The same as functions `(completions, problem, **columns) -> list[float | None]` for a
        trainer of TRL; the column `problem` of its data set has indices into `problems`."""
        functions = self.functions()
        names = reward_log_names(list(functions))
        return [
            _for_trl(name, fn, problems) for name, fn in zip(names, functions.values(), strict=True)
        ]

    def _rewards(self) -> dict[str, RewardFn]:
        return {name: self._function(name) for name in self.weights if name != STEPS}

    def weights_list(self) -> list[float]:
        """The weights in the order of `functions`."""
        return [float(self.weights[name]) for name in self.functions()]

    def step_function(self) -> StepFn | None:
        """(problem, completion) -> (character offset, weighted reward) of every step, None without
        a verdict; no function where steps have no weight."""
        weight = float(self.weights.get(STEPS, 0.0))
        if not weight:
            return None

        def steps(problem: Problem, completion: str) -> list[tuple[int, float]] | None:
            found = step_rewards(problem, completion)
            return None if found is None else [(at, weight * reward) for at, reward in found]

        return steps

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


def _with_verdict(fn: RewardFn) -> RewardFn:
    """The reward, or None where the completion has no verdict."""

    @functools.wraps(fn)  # an error message names the file of `fn`
    def reward(problem: Problem, text: str) -> float | None:
        return None if correctness(problem, text) is None else fn(problem, text)

    return reward


def _for_trl(name: str, fn: RewardFn, problems: Sequence[Problem]) -> TRLReward:
    def reward(
        completions: Sequence[Completion], problem: Sequence[int] | None = None, **columns: object
    ) -> list[float | None]:
        if problem is None:
            raise ValueError(
                f"reward {name} needs the column problem; the data set has "
                f"{', '.join(sorted(columns)) or 'none'}; add the index of each row's problem"
            )
        texts = [completion_text(completion) for completion in completions]
        return [fn(problems[i], text) for i, text in zip(problem, texts, strict=True)]

    reward.__name__ = reward.__qualname__ = name
    return reward


def _imported(name: str) -> RewardFn:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"reward {name!r} cannot be imported: {error}; give MODULE:FUNCTION of a module in the "
            "current folder or on PYTHONPATH, and correct what it imports"
        ) from error
    except Exception as error:  # its code runs when it is imported
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if not isinstance(error, SyntaxError):  # which says its file and line
            place = traceback.extract_tb(error.__traceback__)[-1]
            said += f" ({place.filename}:{place.lineno})"
        raise ValueError(
            f"reward {name!r} cannot be imported: {said}; correct the module, then run the same "
            "command again"
        ) from error
    if not callable(found):
        raise ValueError(
            f"reward {name!r} is {type(found).__name__}, it must be a function; correct its name"
        )
    return found
