"""A Codeforces rating from the verdicts of submitted programs.

python -m eval.codeforces --verdicts verdicts.jsonl [--contestants ratings.txt] [--output elo.json]

A line of verdicts.jsonl is a problem, {"rating": 1200, "verdicts": [false, true]}: one verdict a
submission, in the order they were made. A problem is solved when one of its first `submissions` is
right. The rating is that of maximum likelihood (pipeline.stats.elo); the percentile stands among the
ratings of `contestants`, one a line, and is left out without them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArg

from pipeline.cli import CommandParser
from pipeline.config import check_types, require
from pipeline.runtime import one_line_errors, write_json
from pipeline.stats.elo import elo, percentile


@dataclass(kw_only=True)
class CodeforcesArguments:
    """Which verdicts are rated, and among whom."""

    verdicts: str = HfArg(default="", help="JSONL file: rating and verdicts of every problem")
    submissions: int = HfArg(default=10, help="submissions a problem that count")
    contestants: str = HfArg(default="", help="ratings to stand among, one a line")
    output: str = HfArg(default="", help="JSON file to write as well")

    def __post_init__(self) -> None:
        check_types(self)
        require(bool(self.verdicts), "--verdicts is missing: name the JSONL file")
        require(self.submissions >= 1, f"submissions={self.submissions} must be at least 1")


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    (args,) = CommandParser(CodeforcesArguments).parse_args_and_config(argv)
    lines = Path(args.verdicts).read_text(encoding="utf-8").splitlines()
    others = []
    if args.contestants:
        others = [float(line) for line in Path(args.contestants).read_text().split()]
    figures = rate(read_verdicts(lines), args.submissions, others)
    if args.output:
        write_json(Path(args.output), figures)
    print(summary(figures))


def read_verdicts(lines: Sequence[str]) -> list[dict[str, Any]]:
    """One problem a line; ValueError with the number of the first line that is none."""
    rows = []
    for number, line in enumerate(lines, start=1):
        row = json.loads(line) if line.startswith("{") else {}
        verdicts = row.get("verdicts")
        good = isinstance(row.get("rating"), int | float) and isinstance(verdicts, list)
        if not good or not all(isinstance(v, bool) for v in verdicts):
            raise ValueError(
                f"line {number} is no problem with verdicts; write "
                '{"rating": 1200, "verdicts": [false, true]}'
            )
        rows.append(row)
    return rows


def rate(
    rows: Sequence[dict[str, Any]], submissions: int = 10, contestants: Sequence[float] = ()
) -> dict[str, Any]:
    """The figures of one contestant.

    >>> rows = [{"rating": 1000, "verdicts": [False, True]}, {"rating": 2000, "verdicts": [False]}]
    >>> figures = rate(rows, contestants=[800, 1200, 1600, 2000])
    >>> round(figures["rating"]), figures["solved"], figures["percentile"]
    (1500, 1, 50.0)
    """
    solved = [any(row["verdicts"][:submissions]) for row in rows]
    found = elo([row["rating"] for row in rows], solved)
    figures = asdict(found) | {"solved": sum(solved), "submissions": submissions}
    if contestants:
        figures["percentile"] = percentile(found.rating, contestants)
    return figures


def summary(figures: dict[str, Any]) -> str:
    """One line for a person."""
    among = f", above {figures['percentile']:.1f}%" if "percentile" in figures else ""
    return (
        f"rating {figures['rating']:.0f} [{figures['low']:.0f}, {figures['high']:.0f}]{among}; "
        f"{figures['solved']} of {figures['n']} problems in {figures['submissions']} submissions"
    )


if __name__ == "__main__":
    main()
