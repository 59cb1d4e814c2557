"""Compare variants trained with several seeds: means over seeds, paired over the same problems.

python -m eval.seeds --runs "SFT=a42+a43+a44,PPO=b42+b43+b44" --output seeds.md

A variant has one folder of eval.run (or a folder of several) per seed, joined by plus signs.
The outcomes of a problem are averaged over the seeds, and intervals are bootstrapped over problems.
Where all problems have the same mean, as where all are wrong, its interval is Wilson's: a bootstrap
would give no width. The result of each seed is shown beside them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from transformers.hf_argparser import HfArg

from eval.compare import COMPARE_BY, CompareBy, parse_folders, read_variant
from eval.row_types import Record
from eval.run_folder import problem_keys, trace_is_correct
from eval.tables import Table, format_percent, markdown_table, rich_table
from pipeline.cli import CommandParser
from pipeline.config import Required, check_types, require
from pipeline.runtime import one_line_errors, write_text
from pipeline.stats.intervals import Estimate, bootstrap_mean, bounded_mean
from pipeline.stats.paired import paired_bootstrap

Rows = list[Record]
Outcome = Callable[[Record], bool | None]  # of a record; None: not defined for it

OUTCOMES: dict[str, Outcome] = {
    "Accuracy": lambda row: row["correct"],
    "Share of traces with all equations correct": trace_is_correct,
}


@dataclass(kw_only=True)
class SeedArguments:
    """Trained variants to compare, the baseline, and the file of the tables."""

    runs: Required = HfArg(
        default="", help="NAME=DIR+DIR of every variant, one folder per seed, separated by commas"
    )
    output: Required = HfArg(default="", help="Markdown file to write")
    baseline: str = HfArg(default="", help="compare with this variant instead of the row above")
    compare_by: CompareBy = HfArg(default="run", help=COMPARE_BY)

    def __post_init__(self) -> None:
        check_types(self)
        seeds = {name: len(folders) for name, folders in self.folders.items()}
        require(
            len(set(seeds.values())) == 1,
            f"every variant needs the same seeds in the same order, and there are {seeds} folders",
        )
        require(
            self.baseline in ("", *seeds),
            f"baseline={self.baseline!r} is not one of {', '.join(seeds)}",
        )

    @property
    def folders(self) -> dict[str, list[Path]]:
        """The folders of every variant, one for each seed."""
        parsed = parse_folders("runs", self.runs)
        return {name: [Path(x) for x in str(path).split("+")] for name, path in parsed.items()}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Read every run, then write and print one table per suite and outcome."""
    (args,) = CommandParser(SeedArguments).parse_args_and_config(argv)
    variants = {
        name: [{c: run[1] for c, run in read_variant(f, args.compare_by).items()} for f in folders]
        for name, folders in args.folders.items()
    }
    columns = list(dict.fromkeys(c for seeds in variants.values() for runs in seeds for c in runs))
    parts = []
    for column in columns:
        rows_of = {
            name: [runs[column] for runs in seeds]
            for name, seeds in variants.items()
            if all(column in runs for runs in seeds)
        }
        if not rows_of:
            continue
        require_same_problems(column, rows_of)
        for title, outcome in OUTCOMES.items():
            table = seed_table(rows_of, outcome, args.baseline)
            if table is not None:
                title = f"{title} on {column}, in % [95% interval]"
                parts.append(f"## {title}\n\n{markdown_table(table)}")
                Console().print(rich_table(title, table))
    require(
        bool(parts),
        "no variant has one suite and strategy in all its folders, which hold "
        f"{', '.join(columns)}: give folders of the same evaluation",
    )
    output = Path(args.output)
    write_text(output, "\n\n".join(parts) + "\n")
    print("->", output)


def require_same_problems(column: str, rows_of: Mapping[str, Sequence[Rows]]) -> None:
    """Raise ValueError unless every run of a column answered the same problems."""
    runs = [
        (f"{name}, {i}.", rows)
        for name, seeds in rows_of.items()
        for i, rows in enumerate(seeds, 1)
    ]
    first, problems = runs[0][0], problem_keys(runs[0][1])
    for name, rows in runs:
        require(
            problem_keys(rows) == problems,
            f"the runs {first} and {name} of {column} answered different problems, so they cannot "
            "be paired: evaluate all with the same --limit and data",
        )


def seed_table(
    rows_of: Mapping[str, Sequence[Rows]], outcome: Outcome, baseline: str = ""
) -> Table | None:
    """One row per variant: mean over seeds, each seed, and the gain over the baseline or, for "",
    over the row above.

    Problems without an outcome are left out of their pair, and variants without any outcome are
    left out of the table. None if no variant has an outcome.
    """
    found = {name: outcome_matrix(seeds, outcome) for name, seeds in rows_of.items()}
    found = {name: own_QS for name, own_QS in found.items() if not np.isnan(own_QS).all()}
    if not found:
        return None
    table = [["variant", "mean", "by seed", f"gain over {baseline or 'the row above'}", "by seed"]]
    above = ""
    for name, own_QS in found.items():
        known_QS = own_QS[~np.isnan(own_QS).all(axis=1)]
        mean = _mean_over_problems(np.nanmean(known_QS, axis=1).tolist())
        cells = [name, format_percent(mean), _format_seeds(np.nanmean(known_QS, axis=0))]
        other = baseline or above
        gains = [] if name == other else _gains(found.get(other), own_QS)
        table.append([*cells, *(gains or ["", ""])])
        above = name
    return table


def _mean_over_problems(means_Q: list[float]) -> Estimate:
    """Mean with its bootstrap interval, or its Wilson interval where all problems are equal."""
    return bounded_mean(means_Q) if len(set(means_Q)) == 1 else bootstrap_mean(means_Q)


def _gains(before_QS: np.ndarray | None, own_QS: np.ndarray) -> list[str]:
    """The paired gain, and the gain of every seed; [] if no problem has both outcomes."""
    if before_QS is None:
        return []
    both_Q = ~(np.isnan(own_QS) | np.isnan(before_QS)).any(axis=1)
    before_QS, own_QS = before_QS[both_Q], own_QS[both_Q]
    if not both_Q.any():
        return []
    gain = paired_bootstrap(list(before_QS.mean(axis=1)), list(own_QS.mean(axis=1)))
    return [format_percent(gain, "+"), _format_seeds((own_QS - before_QS).mean(axis=0), "+")]


def outcome_matrix(seeds: Sequence[Rows], outcome: Outcome) -> np.ndarray:
    """Outcomes of Q problems and S seeds, (Q, S) of 0 and 1; NaN where a record has none."""
    found = [[outcome(row) for row in rows] for rows in seeds]
    return np.array([[np.nan if x is None else float(x) for x in rows] for rows in found]).T


def _format_seeds(shares: np.ndarray, sign: str = "") -> str:
    return ", ".join(f"{100 * share:{sign}.1f}" for share in shares)


if __name__ == "__main__":
    main()
