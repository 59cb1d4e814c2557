"""Problems from the tasks of the package reasoning-gym: logic puzzles, ciphers and others.

    load_problems("puzzle:caesar_cipher", "train", limit=1000)

They are generated when loaded, the same for the same name and split; the test split uses another
seed. Some tasks have worked thoughts (`reasoning_gym_thoughts`) for SFT; the others have a question
and an answer, for PPO and evaluation. Many puzzles have several correct answers, so the scorer of
the package grades them (`Problem.check`, `pipeline.grading.grade`); only its full score passes.

Requires `pip install 'thinkhead[puzzles]'`.
"""

import json
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from types import ModuleType

from pipeline.data.reasoning_gym_thoughts import THOUGHTS
from pipeline.records import Problem

PREFIX = "puzzle:"
SPLIT_SEEDS = {"train": 20_000_000, "test": 1}
DEFAULT_SIZE = {"train": 10_000, "test": 500}
# gsm_symbolic is built on templates of GSM8K's test questions; composite mixes other tasks.
REFUSED = {"gsm_symbolic": "is made of GSM8K test templates", "composite": "mixes other tasks"}


def puzzle_problems(
    task: str, split: str, limit: int | None = None, **settings: object
) -> list[Problem]:
    """The first `limit` puzzles of a task; `settings` are fields of the package's own config.

    The train split leaves out questions of the test split: a task with few puzzles repeats itself
    under any seed.

    Raises:
        ValueError: unknown task or split, or a task with too few puzzles for a train split.
    """
    names = _package().factory.DATASETS
    check_task(task, names)
    if split not in SPLIT_SEEDS:
        raise ValueError(f"split={split!r} of {PREFIX}{task} is not one of train, test")
    size = limit or DEFAULT_SIZE[split]
    made = _puzzles(task, split, size, settings)
    if split == "train":
        held_out = {p.question for p in _puzzles(task, "test", DEFAULT_SIZE["test"], settings)}
        made = [problem for problem in made if problem.question not in held_out]
    if not made:
        raise ValueError(
            f"{PREFIX}{task} has too few puzzles for a train split; use its test split"
        )
    return made


def check_task(task: str, names: Collection[str]) -> None:
    """Raise ValueError unless the package has the task and it is allowed."""
    if task in REFUSED:
        raise ValueError(f"{PREFIX}{task} {REFUSED[task]}; choose another task")
    if task not in names:
        close = get_close_matches(task, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(names))}"
        raise ValueError(f"reasoning-gym has no task {task!r}: {hint}")


def _puzzles(task: str, split: str, size: int, settings: dict[str, object]) -> list[Problem]:
    drawn: dict[str, object] = {"seed": SPLIT_SEEDS[split], "size": size} | settings
    dataset = _package().create_dataset(task, **drawn)
    return [_problem(task, split, i, dataset[i], drawn) for i in range(size)]


def _problem(task: str, split: str, i: int, entry: dict, drawn: Mapping[str, object]) -> Problem:
    thought = THOUGHTS.get(task)
    # The scorer generates the puzzle again from these.
    check = {"judge": "puzzle", "task": task, "index": i, "settings": drawn}
    return Problem(
        question=entry["question"].strip(),
        answer=str(entry["answer"]),
        thought=thought(entry["question"], entry["metadata"]) if thought else "",
        level=task,
        source=f"{PREFIX}{task}/{split}",
        id=str(i),
        check=json.dumps(check),
    )


def _package() -> ModuleType:
    try:
        import reasoning_gym
    except ImportError:
        raise ValueError(
            "puzzles need the package reasoning-gym; pip install 'thinkhead[puzzles]'"
        ) from None
    return reasoning_gym
