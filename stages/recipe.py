"""Run a recipe, a folder of configurations: SFT, PPO, the same evaluation of each, a report.

    python -m stages.recipe                                nano, as `make nano` does
    python -m stages.recipe --config gsm8k/recipe.yaml     GSM8K
    python -m stages.recipe --config smol/recipe.yaml      a pretrained model, as `make smol` does

Every task is a command of its own, printed before it runs. Called again, the recipe skips finished
tasks and continues where it was interrupted.
"""

import os
import platform
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.cli import CommandParser
from pipeline.config_files import read_arguments
from pipeline.folder_lock import held_result, lock_folder, require_free
from pipeline.progress import format_duration
from pipeline.runtime import folder_name, one_line_errors
from stages.recipe_variants import RecipeConfig, Variant, variants_of
from stages.task_cache import Task, TaskCache
from stages.task_runner import TaskRunner

DATA_FIELDS = ("dataset", "few_shot", "chat_template")  # fields that may name files


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the tasks of the recipe that the command line names."""
    (recipe,) = CommandParser([RecipeConfig]).parse_args_and_config(argv)
    begin, tasks = time.perf_counter(), all_tasks(recipe)
    report = recipe.folder / "report.md"
    with lock_folder(recipe.folder):
        require_free(recipe.folder, "a recipe")
        cache = TaskCache(recipe.folder / "recipe.json")
        _require_own_trainings(tasks, cache)
        TaskRunner(tasks, cache, jobs=recipe.jobs, logs=recipe.folder / "logs").run()
        with report.open("a", encoding="utf-8") as file:
            file.write(commands_section(tasks, cache, recipe))
    took = format_duration(time.perf_counter() - begin)
    print(f"\nfinished in {took}; report: {report} and {report.with_suffix('.html')}")


def _require_own_trainings(tasks: Sequence[Task], cache: TaskCache) -> None:
    """Raise ValueError, before any task runs, for a training that another command has made."""
    for task in tasks:
        finished = task.resumes and held_result(task.resumes)
        if task.config and finished and not cache.entry(task):
            raise ValueError(
                f"{task.resumes} holds {finished} that this recipe did not make; give another "
                "--output_dir, or remove the folder"
            )


def all_tasks(recipe: RecipeConfig) -> list[Task]:
    """The tasks in order.

    A variant is evaluated right after its training, so that a mistyped suite or a missing data set
    is found with the first, untrained model. Nothing depends on the plain model: it comes last, and
    first in the report.
    """
    variants = variants_of(recipe)
    tasks = []
    for variant in variants:
        tasks += [training(recipe, variant), *evaluations(recipe, variant, recipe.suites)]
        if variant.votes and recipe.vote_suites:
            tasks += evaluations(recipe, variant, recipe.vote_suites, votes=recipe.votes)
    plain = plain_variants(recipe)
    for variant in plain:
        tasks += evaluations(recipe, variant, recipe.suites)
    tasks += [searching(recipe)] if recipe.question else []
    return [*tasks, reporting(recipe, [*plain, *variants]), page(recipe, [*plain, *variants])]


def plain_variants(recipe: RecipeConfig) -> list[Variant]:
    """The pretrained model without any training: asked plainly, and with examples."""
    asked = [Variant("raw", "the pretrained model as it is", "raw", "", "")] if recipe.plain else []
    count = recipe.plain_few_shot
    if count:
        about = f"the pretrained model, {count} solved examples before every question"
        asked.append(Variant("raw few-shot", about, "raw_few_shot", "", "", few_shot=count))
    return asked


def training(recipe: RecipeConfig, variant: Variant) -> Task:
    """The task that trains a variant."""
    folder, config = recipe.folder / variant.folder, recipe.configs / variant.config
    start = _run_info(recipe, variant.starts_from) if variant.starts_from else None
    return Task(
        description=f"{variant.name}: {variant.description}",
        arguments=(
            *(variant.module, "--config", str(config), "--output_dir", str(folder)),
            *("--seed", str(recipe.seed), *variant.training),
            *(("--model", str(start.parent)) if start else ()),
            *_data(recipe),
        ),
        outputs=(_run_info(recipe, variant.folder),),
        inputs=(
            *((start,) if start else ()),
            *files_in(map(read_arguments(config).get, DATA_FIELDS)),
        ),
        config=config,
        resumes=folder,
    )


def evaluations(recipe: RecipeConfig, variant: Variant, suites: str, votes: int = 1) -> list[Task]:
    """The tasks that evaluate a variant: one for all suites, or one each where they can run beside
    each other."""
    names = [name.strip() for name in suites.split(",")]
    folder = recipe.folder / "eval" / variant.folder / ("vote" if votes > 1 else "greedy")
    if recipe.jobs == 1 or len(names) == 1:
        return [evaluation(recipe, variant, names, folder, votes)]
    return [evaluation(recipe, variant, [n], folder / folder_name(n), votes) for n in names]


def evaluation(
    recipe: RecipeConfig, variant: Variant, names: Sequence[str], folder: Path, votes: int = 1
) -> Task:
    """The task that evaluates a variant: greedy answers, or the vote of several samples."""
    vote = ("--strategy", "consensus", "--n", str(votes)) if votes > 1 else ()
    trained = bool(variant.module)
    plain = recipe.limit, recipe.plain_max_completion_tokens
    count, tokens = recipe.limits(variant) if trained else plain
    limit = ("--limit", str(count)) if count is not None else ()
    strategy = f"vote of {votes}" if vote else "greedy"
    checkpoint = str(recipe.folder / variant.folder) if trained else recipe.pretrained
    return Task(
        description=f"{variant.name} on {', '.join(names)}, {strategy}",
        arguments=(
            *("eval.run", "--checkpoint", checkpoint, "--suite", ",".join(names)),
            *("--output_dir", str(folder), *vote, *limit),
            *("--max_sample_tokens", str(tokens)),
            *("--batch_size", str(recipe.batch_size)),
            *(("--dtype", recipe.dtype) if recipe.dtype != "auto" else ()),
            *(() if variant.thinks else ("--think", "false")),
            *(("--few_shot", str(variant.few_shot)) if variant.few_shot else ()),
            *_data(recipe),
        ),
        outputs=tuple(
            (folder / folder_name(n) if len(names) > 1 else folder) / "metrics.json" for n in names
        ),
        inputs=(*((_run_info(recipe, variant.folder),) if trained else ()), *files_in(names)),
        resumes=folder,
    )


def searching(recipe: RecipeConfig) -> Task:
    """The task that answers one question by tree search and saves the tree."""
    tree = recipe.folder / "trees" / "tree.json"
    return Task(
        description="one question answered by tree search",
        arguments=(
            *("stages.infer", "--checkpoint", str(recipe.folder / "ppo")),
            *("--question", recipe.question, "--strategy", "mcts", "--show_reasoning", "true"),
            *("--max_sample_tokens", str(recipe.max_completion_tokens), "--tree", str(tree)),
        ),
        outputs=(tree,),
        inputs=(_run_info(recipe, "ppo"),),
    )


def reporting(recipe: RecipeConfig, variants: Sequence[Variant]) -> Task:
    """The task that writes the report."""
    return Task(
        description="comparison of the variants",
        arguments=(
            *("eval.compare", "--runs", _evaluations(recipe, variants)),
            *("--output", str(recipe.folder / "report.md"), "--log_history", _log(recipe)),
        ),
    )


def page(recipe: RecipeConfig, variants: Sequence[Variant]) -> Task:
    """The task that writes the report as a page with plots and coloured thoughts."""
    trees = ("--trees", str(recipe.folder / "trees")) if recipe.question else ()
    return Task(
        description="report page",
        arguments=(
            *("eval.report_page.page", "--runs", _evaluations(recipe, variants)),
            *("--output", str(recipe.folder / "report.html"), "--log_history", _log(recipe)),
            *("--checkpoint", str(recipe.folder / "ppo"), *trees),
        ),
    )


def _evaluations(recipe: RecipeConfig, variants: Sequence[Variant]) -> str:
    """NAME=DIR of the evaluations of every variant."""
    # Without a vote in this call, the folder above may still hold the vote of an earlier one.
    which = "" if recipe.vote_suites else "greedy"
    return ",".join(f"{v.name}={recipe.folder / 'eval' / v.folder / which}" for v in variants)


def files_in(values: Iterable[object]) -> list[Path]:
    """The files that texts name, such as the user's own data: a path, or several as in a mixture,
    `rows.jsonl=1,gsm8k=2`."""
    parts = [part.strip() for text in values if isinstance(text, str) for part in text.split(",")]
    names = [name for part in parts for name in (part, part.rpartition("=")[0]) if name]
    return [Path(path) for name in names if os.path.isfile(path := os.path.expanduser(name))]


def _log(recipe: RecipeConfig) -> str:
    """The training log of PPO."""
    return str(recipe.folder / "ppo" / "trainer_state.json")


def commands_section(tasks: Sequence[Task], cache: TaskCache, recipe: RecipeConfig) -> str:
    """Last section of the report in Markdown: every command and its time."""
    rows = [(task, cache.entry(task)["seconds"]) for task in tasks]
    lines = [f"| {t.description} | `{t.command}` | {format_duration(s)} |" for t, s in rows]
    together = f", up to {recipe.jobs} tasks at a time" if recipe.jobs > 1 else ""
    return "\n".join(
        [
            "\n## How it was made\n",
            "| task | command | time |",
            "| :-- | :-- | --: |",
            *lines,
            f"\nSeed {recipe.seed}, {os.cpu_count()} cores ({platform.machine()}), "
            f"{format_duration(sum(seconds for _, seconds in rows))} in total{together}. Versions "
            "and settings: `run.json` in every folder.\n",
        ]
    )


def _run_info(recipe: RecipeConfig, folder: str) -> Path:
    """The file that a training writes at its end."""
    return recipe.folder / folder / "run.json"


def _data(recipe: RecipeConfig) -> tuple[str, ...]:
    return ("--data_root", recipe.data_root) if recipe.data_root is not None else ()


if __name__ == "__main__":
    main()
