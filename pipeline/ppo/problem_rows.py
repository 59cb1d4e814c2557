"""Problems as rows for TRL, and the reward function that it requires where there is none."""

from collections.abc import Sequence
from dataclasses import asdict

from datasets import Dataset

from pipeline.chat.prompts import as_messages
from pipeline.records import Problem


def problem_dataset(problems: Sequence[Problem], first: int = 0) -> Dataset:
    """Return rows of `prompt` (messages), `problem` (the index, from `first`) and the
    fields of the problem, which TRL's reward functions read."""
    return Dataset.from_list(
        [
            {"prompt": as_messages(problem.prompt), "problem": first + index, **asdict(problem)}
            for index, problem in enumerate(problems)
        ]
    )


def no_outcome(completions: list, **columns: object) -> list[float]:
    """Return 0.0 for every completion."""
    return [0.0] * len(completions)
