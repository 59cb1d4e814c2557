"""Ablation: the paper's Table C1 on your own model, from one command.

python -m eval.ablate --config configs/ablations/paper.yaml

Trains the models that are missing, evaluates every row on the same questions, and writes
ablation.json and ablation.md with intervals of the paired differences to the first row, and
scaling.json. After an interruption, the same command continues from the finished parts.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from transformers.hf_argparser import HfArg

from eval.ablation_table import (
    COLUMNS,
    Cell,
    Row,
    ablation_report,
    ablation_results,
    cell_from_records,
    cell_from_samples,
)
from eval.row_types import SamplesRow
from eval.run import check_strategy, evaluate_checkpoint, load_checkpoint
from eval.run_folder import read_run
from eval.samples import sample_checkpoint
from eval.scaling import plot_scaling, scaling_result
from eval.suites import find_suite, read_suite, suite_label
from pipeline.cli import CommandParser
from pipeline.config import Bounds, PositiveInt, check_types, require
from pipeline.config_files import find_config
from pipeline.device import DeviceOptions, choose_device
from pipeline.folder_lock import lock_folder
from pipeline.hosts import require_one_process
from pipeline.module_process import exit_code, run_module
from pipeline.records import Problem
from pipeline.runtime import one_line_errors, set_threads, write_json, write_text
from pipeline.search import STRATEGIES, VOTES, SearchOptions

# The stage that trains each model; its configuration has the name of the model.
STAGES = {"sft": "stages.sft", "sft_direct": "stages.sft", "ppo": "stages.ppo"}
DIRECT = "sft_direct"  # answers without a thought


@dataclass(kw_only=True)
class AblationArguments(DeviceOptions):
    """Rows to compare, the suite, and the sampling options."""

    config_dir: str = HfArg(default="configs/nano", help="folder of the training configurations")
    models_dir: str = HfArg(default="runs/nano", help="folder of the models: sft, sft_direct, ppo")
    output_dir: str = HfArg(default="runs/nano/ablation", help="folder of all results")
    rows: str = HfArg(
        default="full = ppo sample consensus; without RL = sft sample consensus",
        help="NAME = MODEL SINGLE VOTE of every row, separated by semicolons; the first is full",
    )
    suite: str = HfArg(default="nano", help="name of a suite")
    limit: PositiveInt | None = HfArg(
        default=None, help="number of problems, evenly spread over the suite"
    )
    data_root: str | None = HfArg(
        default=None, help="folder of NAME/SPLIT.jsonl.gz; default: $THINKHEAD_DATA, else the Hub"
    )
    votes: Annotated[int, Bounds(ge=4, why="a scaling law needs votes of 1, 2 and 4")] = HfArg(
        default=64, help="maximum samples of a vote"
    )
    temperature: float = HfArg(default=0.7, help="sampling temperature")
    max_sample_tokens: int = HfArg(
        default=256, help="maximum tokens of one sample, thought included"
    )
    search: str = HfArg(default="", help="further search options, as in simulations=16,width=4")
    batch_size: int = HfArg(default=256, help="sequences decoded in parallel")
    seed: int = HfArg(default=42, help="seed of training and sampling")

    def __post_init__(self) -> None:
        check_types(self)
        find_suite(self.suite)
        self.parsed_rows()
        self.options("single", "ppo")
        choose_device(self.device)

    def parsed_rows(self) -> list[Row]:
        """The rows in order.

        >>> AblationArguments(rows="full = ppo mcts consensus").parsed_rows()[0].single
        'mcts'
        """
        found = []
        for part in filter(str.strip, self.rows.split(";")):
            name, _, rest = part.partition("=")
            words = rest.split()
            if len(words) != 3 or words[0] not in STAGES:
                raise ValueError(
                    f"rows: {part.strip()!r} must read NAME = MODEL SINGLE VOTE, MODEL one of "
                    f"{', '.join(STAGES)}"
                )
            found.append(Row(name.strip(), *words))
        require(bool(found), "rows='' is empty; give at least one row")
        require(len({r.name for r in found}) == len(found), "rows: two rows have the same name")
        return found

    def options(self, column: str, model: str) -> SearchOptions:
        """Search options of a column for a model."""
        numbers: dict[str, Any] = {}
        own: dict[str, Any] = {
            "max_sample_tokens": self.max_sample_tokens,
            "n": self.votes if column == "vote" else 1,
            "temperature": self.temperature,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "think": model != DIRECT,
        }
        for part in filter(str.strip, self.search.split(",")):
            name, _, value = (word.strip() for word in part.partition("="))
            known = name in {f.name for f in fields(SearchOptions)}
            require(known, f"search={self.search!r}: the strategies have no option {name!r}")
            require(
                name not in own,
                f"search={self.search!r}: {name} is set by eval.ablate itself; leave it out, or "
                "change votes, temperature, max_sample_tokens, batch_size or seed",
            )
            numbers[name] = _number_or_text(value)
        return SearchOptions(**own, **numbers)


def _number_or_text(value: str) -> float | str:
    """The number that a text is, or the text: `SearchOptions` checks which an option takes."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(value)
    return value


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, evaluate every cell, write the results."""
    (args,) = CommandParser(AblationArguments).parse_args_and_config(argv)
    require_one_process("eval.ablate")
    problems = read_suite(args.suite, args.data_root, args.limit).problems
    rows = [row for row in args.parsed_rows() if _is_available(row, args)]
    require(
        bool(rows),
        f"config_dir={args.config_dir} has no configuration for any row: name another folder",
    )
    with lock_folder(args.output_dir):
        for model in STAGES:
            if model in {row.model for row in rows}:
                train_if_missing(model, args)
        set_threads()
        output = Path(args.output_dir)
        samples, cells = evaluate_rows(rows, problems, args)

        results = ablation_results(rows, cells, samples)
        scaling = {model: scaling_result(found) for model, found in samples.items()}
        write_json(output / "ablation.json", {"arguments": asdict(args), "rows": results})
        write_json(output / "scaling.json", scaling)
        plot_scaling(scaling).savefig(output / "scaling.png", dpi=150)
        title = f"{suite_label(args.suite)}, {len(problems)} problems, seed {args.seed}"
        text = ablation_report(title, results, scaling)
        write_text(output / "ablation.md", text)
        print(f"\n{text}\n-> {output / 'ablation.md'}")


def train_if_missing(model: str, args: AblationArguments) -> None:
    """Run the stage that trains a model, unless its folder has a run.json."""
    folder = Path(args.models_dir) / model
    if (folder / "run.json").is_file():
        print(f"{model}: {folder} exists")
        return
    if model == "ppo":
        train_if_missing("sft", args)
    command = [STAGES[model], "--config", str(find_config(args.config_dir) / f"{model}.yaml")]
    command += ["--output_dir", str(folder), "--seed", str(args.seed)]
    command += ["--model", str(Path(args.models_dir) / "sft")] if model == "ppo" else []
    command += ["--data_root", args.data_root] if args.data_root is not None else []
    if any(folder.glob("checkpoint-*")):
        command += ["--resume_from_checkpoint", "last"]
    print(f"{model} is missing\n$ python -m {' '.join(command)}", flush=True)
    if code := run_module(command):
        print(f"error: the training of {model} ended with exit code {code}", file=sys.stderr)
        raise SystemExit(exit_code(code))


def evaluate_rows(
    rows: Sequence[Row], problems: Sequence[Problem], args: AblationArguments
) -> tuple[dict[str, list[SamplesRow]], dict[tuple[str, str], Cell]]:
    """(samples of every model, cell of every row and column whose strategy exists).

    Cells of the strategies sample and consensus are computed from the stored samples. An evaluation
    shared by two rows runs once.
    """
    samples: dict[str, list[SamplesRow]] = {}
    cells: dict[tuple[str, str], Cell] = {}
    for model in dict.fromkeys(row.model for row in rows):
        checkpoint = str(Path(args.models_dir) / model)
        loaded = load_checkpoint(checkpoint, args)
        folder = Path(args.output_dir) / model
        about: dict[str, Any] = {"suite": suite_label(args.suite), "checkpoint": checkpoint}
        options = args.options("vote", model)
        sample_checkpoint(*loaded, problems, options, folder / "samples", **about)
        samples[model] = read_run(folder / "samples", "samples")[1]
        for row in (row for row in rows if row.model == model):
            for column in COLUMNS:
                strategy = getattr(row, column)
                if strategy in ("sample", "consensus"):
                    cells[row.name, column] = cell_from_samples(samples[model], strategy)
                elif _strategy_exists(row, column, strategy):
                    options = args.options(column, model)
                    if strategy not in VOTES:
                        options = replace(options, n=1)
                    where = folder / f"{strategy}_{column}"
                    check_strategy(strategy, options)
                    evaluate_checkpoint(*loaded, problems, strategy, options, where, **about)
                    cells[row.name, column] = cell_from_records(read_run(where)[1], strategy)
    return samples, cells


def _is_available(row: Row, args: AblationArguments) -> bool:
    trained = (Path(args.models_dir) / row.model / "run.json").is_file()
    config = find_config(args.config_dir) / f"{row.model}.yaml"
    if not trained and not config.is_file():
        print(f"skipped {row.name!r}: neither {args.models_dir}/{row.model} nor {config} exists")
        return False
    return True


def _strategy_exists(row: Row, column: str, strategy: str) -> bool:
    if strategy not in STRATEGIES:
        print(
            f"skipped {row.name!r}, {column}: no strategy is called {strategy!r}; choose one "
            f"of {', '.join(STRATEGIES)}"
        )
    return strategy in STRATEGIES


if __name__ == "__main__":
    main()
