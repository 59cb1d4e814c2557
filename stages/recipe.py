"""The whole story of a folder of configurations: SFT, PPO, one evaluation for all, a report.

    python -m stages.recipe                                      nano, as `make nano` does
    python -m stages.recipe --config configs/gsm8k/recipe.yaml    GSM8K

Every part is a command as one would type it, printed before it runs. Called again, the story skips
what is finished and goes on where it was interrupted.
"""

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers.hf_argparser import HfArg

from pipeline.cli import CommandParser
from pipeline.config import check_types, require
from pipeline.folder_lock import lock_folder
from pipeline.runtime import one_line_errors
from stages.task_cache import Task, TaskCache, run_tasks, spoken


@dataclass(kw_only=True)
class RecipeConfig:
    """Which configurations are run and what is measured; the defaults are nano's."""

    config_dir: str = HfArg(
        default="configs/nano", help="folder with sft.yaml, ppo.yaml and perhaps sft_direct.yaml"
    )
    output_dir: str = HfArg(default="", help="where all goes; default: runs/ and the folder's name")
    untrained: bool = HfArg(default=True, help="measure the model before any training as well")
    suites: str = HfArg(default="nano,nano_hard,o1nano", help="suites answered greedily")
    vote_suites: str = HfArg(default="nano", help="suites answered by vote as well; '' for none")
    votes: int = HfArg(default=8, help="samples of a vote")
    max_completion_tokens: int = HfArg(default=256, help="bound of one sample in evaluation")
    batch_size: int = HfArg(default=256, help="answers written side by side; bounds memory")
    limit: int | None = HfArg(default=None, help="problems of each suite; default: all")
    data_root: str | None = HfArg(
        default=None, help="folder with NAME/SPLIT.jsonl.gz; default: $THINKHEAD_DATA, else the Hub"
    )
    seed: int = HfArg(default=42, help="seed of every training")

    def __post_init__(self):
        check_types(self)
        require(bool(self.suites), "suites='' leaves nothing to measure; name one, such as nano")
        require(self.batch_size >= 1, f"batch_size={self.batch_size} must be at least 1")
        require(self.votes >= 2, f"votes={self.votes} must be at least 2: one sample is no vote")
        for name in ("sft.yaml", "ppo.yaml"):
            if not (self.configs / name).is_file():
                raise FileNotFoundError(
                    f"config_dir={self.config_dir} holds no {name}; see the folder configs/"
                )

    @property
    def configs(self) -> Path:
        return Path(self.config_dir)

    @property
    def folder(self) -> Path:
        return Path(self.output_dir or f"runs/{self.configs.resolve().name}")


@dataclass(frozen=True)
class Variant:
    """One model of the comparison: how it comes about and how it is asked."""

    name: str
    about: str
    folder: str
    module: str
    config: str
    training: tuple[str, ...] = ()  # arguments of this training alone
    starts_from: str = ""  # folder of another variant
    thinks: bool = True
    votes: bool = False


UNTRAINED = "base"
VARIANTS = (
    Variant(
        name="base",
        about="the model before any training",
        folder=UNTRAINED,
        module="stages.sft",
        config="sft.yaml",
        training=("--num_train_epochs", "0"),
    ),
    Variant(
        name="no-CoT SFT",
        about="trained to answer at once",
        folder="sft_direct",
        module="stages.sft",
        config="sft_direct.yaml",
        thinks=False,
    ),
    Variant(
        name="SFT",
        about="trained on worked solutions to think first",
        folder="sft",
        module="stages.sft",
        config="sft.yaml",
        votes=True,
    ),
    Variant(
        name="SFT + PPO",
        about="trained further on its own thoughts, paid by programs",
        folder="ppo",
        module="stages.ppo",
        config="ppo.yaml",
        starts_from="sft",
        votes=True,
    ),
)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    (recipe,) = CommandParser([RecipeConfig]).parse_args_and_config(argv)
    begin, tasks = time.perf_counter(), all_tasks(recipe)
    report = recipe.folder / "report.md"
    with lock_folder(recipe.folder):
        task_cache = TaskCache(recipe.folder / "story.json")
        run_tasks(tasks, task_cache)
        with report.open("a", encoding="utf-8") as file:
            file.write(account(tasks, task_cache, seed=recipe.seed))
    print(f"\nthe story took {spoken(time.perf_counter() - begin)}; all of it: {report}")


def all_tasks(recipe: RecipeConfig) -> list[Task]:
    """Every command in order. A variant is measured as soon as it is made: a mistyped suite or a
    missing data set shows on the first of them, the base model unless it is left out."""
    variants = [
        variant
        for variant in VARIANTS
        if (recipe.configs / variant.config).is_file()
        and (recipe.untrained or variant.folder != UNTRAINED)
    ]
    tasks = []
    for variant in variants:
        tasks += [training(recipe, variant), evaluation(recipe, variant, recipe.suites)]
        if variant.votes and recipe.vote_suites:
            tasks.append(evaluation(recipe, variant, recipe.vote_suites, votes=recipe.votes))
    return [*tasks, reporting(recipe, variants)]


def training(recipe: RecipeConfig, variant: Variant) -> Task:
    folder, config = recipe.folder / variant.folder, recipe.configs / variant.config
    start = _made(recipe, variant.starts_from) if variant.starts_from else None
    return Task(
        about=f"{variant.name}: {variant.about}",
        arguments=(
            *(variant.module, "--config", str(config), "--output_dir", str(folder)),
            *("--seed", str(recipe.seed), *variant.training),
            *(("--model", str(start.parent)) if start else ()),
            *_data(recipe),
        ),
        makes=(_made(recipe, variant.folder),),
        needs=(start,) if start else (),
        config=config,
    )


def evaluation(recipe: RecipeConfig, variant: Variant, suites: str, votes: int = 1) -> Task:
    """Greedy answers, or the vote of several samples."""
    names = [name.strip() for name in suites.split(",")]
    folder = recipe.folder / "eval" / variant.folder / ("vote" if votes > 1 else "greedy")
    vote = ("--strategy", "consensus", "--n", str(votes)) if votes > 1 else ()
    limit = ("--limit", str(recipe.limit)) if recipe.limit is not None else ()
    return Task(
        about=f"{variant.name} on {', '.join(names)}, {f'vote of {votes}' if vote else 'greedy'}",
        arguments=(
            *("eval.run", "--checkpoint", str(recipe.folder / variant.folder), "--suite", suites),
            *("--output_dir", str(folder), *vote, *limit),
            *("--max_sample_tokens", str(recipe.max_completion_tokens)),
            *("--batch_size", str(recipe.batch_size)),
            *(() if variant.thinks else ("--think", "false")),
            *_data(recipe),
        ),
        makes=tuple((folder / n if len(names) > 1 else folder) / "metrics.json" for n in names),
        needs=(_made(recipe, variant.folder),),
        resumes=folder,
    )


def reporting(recipe: RecipeConfig, variants: Sequence[Variant]) -> Task:
    # Without a vote in this story, none of an earlier one may get into its table.
    which = "" if recipe.vote_suites else "greedy"
    runs = ",".join(f"{v.name}={recipe.folder / 'eval' / v.folder / which}" for v in variants)
    return Task(
        about="the variants side by side",
        arguments=(
            *("eval.compare", "--runs", runs, "--output", str(recipe.folder / "report.md")),
            *("--log_history", str(recipe.folder / "ppo" / "trainer_state.json")),
        ),
    )


def account(tasks: Sequence[Task], task_cache: TaskCache, *, seed: int) -> str:
    """The last section of the report in Markdown: every command and its time."""
    rows = [(task, task_cache.page(task)["seconds"]) for task in tasks]
    lines = [f"| {p.about} | `{p.command}` | {spoken(seconds)} |" for p, seconds in rows]
    return "\n".join(
        [
            "\n## How it was made\n",
            "| part | command | time |",
            "| :-- | :-- | --: |",
            *lines,
            f"\nSeed {seed}, {os.cpu_count()} cores ({platform.machine()}), "
            f"{spoken(sum(seconds for _, seconds in rows))} in all. Versions and settings: "
            "`run.json` in every folder.\n",
        ]
    )


def _made(recipe: RecipeConfig, folder: str) -> Path:
    """The file by which a finished training is known."""
    return recipe.folder / folder / "run.json"


def _data(recipe: RecipeConfig) -> tuple[str, ...]:
    return ("--data_root", recipe.data_root) if recipe.data_root is not None else ()


if __name__ == "__main__":
    main()
