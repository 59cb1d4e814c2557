"""Several trainings of each variant: means over seeds, paired over the same problems.

python -m eval.seeds --runs "SFT=a42+a43+a44,PPO=b42+b43+b44" --output seeds.md

A variant is a folder of eval.run (or one that holds several) for every seed, joined by plus signs.
A problem counts once: its outcomes are averaged over the seeds, and intervals are those of drawing
other problems. How far seeds differ is shown beside them, one number a seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers.hf_argparser import HfArg

from eval.compare import Grid, markdown, parse_folders, read_variant, rich_table
from eval.run_folder import asked, trace_is_correct
from pipeline.cli import CommandParser
from pipeline.config import check_types, require
from pipeline.runtime import one_line_errors
from pipeline.stats.intervals import bootstrap_mean
from pipeline.stats.paired import paired_bootstrap

Rows = list[dict[str, Any]]
Outcome = Callable[[dict[str, Any]], bool | None]  # of a record; None: it has none

OUTCOMES: dict[str, Outcome] = {
    "Accuracy": lambda row: row["correct"],
    "Thoughts whose every sum holds": trace_is_correct,
}


@dataclass(kw_only=True)
class SeedArguments:
    """Which trainings are compared, and where the tables go."""

    runs: str = HfArg(
        default="", help="NAME=DIR+DIR of every variant, a folder a seed, separated by commas"
    )
    output: str = HfArg(default="", help="Markdown file to write")
    baseline: str = HfArg(default="", help="compare with this variant instead of the row above")

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("runs", "output"):
            given = getattr(self, name)
            require(bool(given), f"--{name} is missing: pass --{name} or set it in the --config")
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
        parsed = parse_folders("runs", self.runs)
        return {name: [Path(x) for x in str(path).split("+")] for name, path in parsed.items()}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    (args,) = CommandParser(SeedArguments).parse_args_and_config(argv)
    variants = {
        name: [{column: run[1] for column, run in read_variant(f).items()} for f in folders]
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
        require_same_problems(column, rows_of)
        for title, outcome in OUTCOMES.items():
            grid = seed_grid(rows_of, outcome, args.baseline)
            if grid is not None:
                title = f"{title} on {column}, in % [95% interval]"
                parts.append(f"## {title}\n\n{markdown(grid)}")
                Console().print(rich_table(title, grid))
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print("->", output)


def require_same_problems(column: str, rows_of: Mapping[str, Sequence[Rows]]) -> None:
    runs = [
        (f"{name}, {i}.", rows)
        for name, seeds in rows_of.items()
        for i, rows in enumerate(seeds, 1)
    ]
    first, problems = runs[0][0], asked(runs[0][1])
    for name, rows in runs:
        require(
            asked(rows) == problems,
            f"the runs {first} and {name} of {column} answered different problems, so they cannot "
            "be paired: evaluate all with the same --limit and data",
        )


def seed_grid(
    rows_of: Mapping[str, Sequence[Rows]], outcome: Outcome, baseline: str = ""
) -> Grid | None:
    """A row a variant: mean over seeds, the seeds themselves, and what it gains over the baseline,
    or over the row above for "". Problems without an outcome are left out of their pair, and
    variants without any left out; None where none is left."""
    found = {name: outcomes(seeds, outcome) for name, seeds in rows_of.items()}
    found = {name: own_QS for name, own_QS in found.items() if not np.isnan(own_QS).all()}
    if not found:
        return None
    grid = [["variant", "mean", "by seed", f"gain over {baseline or 'the row above'}", "by seed"]]
    above = ""
    for name, own_QS in found.items():
        known_QS = own_QS[~np.isnan(own_QS).all(axis=1)]
        mean = bootstrap_mean(list(np.nanmean(known_QS, axis=1)))
        cells = [name, _interval(mean), _list(np.nanmean(known_QS, axis=0))]
        other = baseline or above
        gains = [] if name == other else _gains(found.get(other), own_QS)
        grid.append([*cells, *(gains or ["", ""])])
        above = name
    return grid


def _gains(before_QS: np.ndarray | None, own_QS: np.ndarray) -> list[str]:
    """The paired gain and that of every seed; [] where no problem has both outcomes."""
    if before_QS is None:
        return []
    both_Q = ~(np.isnan(own_QS) | np.isnan(before_QS)).any(axis=1)
    before_QS, own_QS = before_QS[both_Q], own_QS[both_Q]
    if not both_Q.any():
        return []
    gain = paired_bootstrap(list(before_QS.mean(axis=1)), list(own_QS.mean(axis=1)))
    return [_interval(gain, sign="+"), _list((own_QS - before_QS).mean(axis=0), sign="+")]


def outcomes(seeds: Sequence[Rows], outcome: Outcome) -> np.ndarray:
    """(Q, S) of 0 and 1, nan where a record has none."""
    found = [[outcome(row) for row in rows] for rows in seeds]
    return np.array([[np.nan if x is None else float(x) for x in rows] for rows in found]).T


def _interval(estimate: Any, sign: str = "") -> str:
    mean, low, high = (f"{100 * x:{sign}.1f}" for x in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


def _list(shares: np.ndarray, sign: str = "") -> str:
    return ", ".join(f"{100 * share:{sign}.1f}" for share in shares)


if __name__ == "__main__":
    main()
