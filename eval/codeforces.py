"""Codeforces rating from the verdicts of submitted programs.

python -m eval.codeforces --verdicts verdicts.jsonl [--contestants ratings.txt] [--output elo.json]

A line of verdicts.jsonl is a problem, {"rating": 1200, "verdicts": [false, true]}: one verdict per
submission, in order. A problem is solved if one of its first `submissions` is right. The rating is
the maximum-likelihood estimate (pipeline.stats.elo); the percentile is among the ratings in
`contestants`, one per line, and is left out without them. A rating or bound that is infinite, as
where no problem or every one was solved, is null in the file.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from transformers.hf_argparser import HfArg

from pipeline.cli import CommandParser
from pipeline.config import PositiveInt, Required, check_types, require
from pipeline.runtime import one_line_errors, write_json
from pipeline.stats.elo import elo, percentile


@dataclass(kw_only=True)
class CodeforcesArguments:
    """Verdicts to rate, and the contestants to compare with."""

    verdicts: Required = HfArg(default="", help="JSONL file: rating and verdicts of every problem")
    submissions: PositiveInt = HfArg(default=10, help="submissions per problem that count")
    contestants: str = HfArg(default="", help="file of ratings for the percentile, one per line")
    output: str = HfArg(default="", help="JSON file of the results")

    def __post_init__(self) -> None:
        check_types(self)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Print the rating with its interval; with --output also write it."""
    (args,) = CommandParser(CodeforcesArguments).parse_args_and_config(argv)
    lines = Path(args.verdicts).read_text(encoding="utf-8").splitlines()
    others = read_ratings(args.contestants) if args.contestants else []
    result = rate(read_verdicts(lines), args.submissions, others)
    if args.output:
        write_json(Path(args.output), result)
    print(describe_rating(result))


class RatedProblem(TypedDict):
    """A problem's rating, and the verdicts on its submissions in order."""

    rating: float
    verdicts: list[bool]


def read_verdicts(lines: Sequence[str]) -> list[RatedProblem]:
    """The problems, one per line.

    Raises:
        ValueError: names the first line without a rating and a list of verdicts.
    """
    rows: list[RatedProblem] = []
    for number, line in enumerate(lines, start=1):
        try:
            row: Any = json.loads(line) if line.startswith("{") else {}
        except json.JSONDecodeError:
            row = {}
        verdicts = row.get("verdicts")
        valid = isinstance(verdicts, list) and all(isinstance(v, bool) for v in verdicts)
        rating = row.get("rating")
        if not valid or not isinstance(rating, int | float) or not abs(rating) < 1e9:
            raise ValueError(
                f"line {number} is no problem with verdicts and a rating below 1e9, but "
                f"{line.strip()[:60]!r}; write "
                '{"rating": 1200, "verdicts": [false, true]}'
            )
        rows.append(row)
    return rows


def read_ratings(path: str) -> list[float]:
    """The ratings of a file, one per line.

    Raises:
        ValueError: there is none, or one is no finite number.
    """
    ratings = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split(), start=1):
        try:
            rating = float(line)
        except ValueError:
            rating = math.nan
        if not math.isfinite(rating):
            raise ValueError(
                f"contestants={path}: rating {number} is {line!r}; write one number a line"
            )
        ratings.append(rating)
    require(bool(ratings), f"contestants={path} is empty; write one number a line, or leave it out")
    return ratings


def rate(
    rows: Sequence[RatedProblem], submissions: int = 10, contestants: Sequence[float] = ()
) -> dict[str, float]:
    """Rating, interval and, given contestants, percentile.

    >>> rows = [{"rating": 1000, "verdicts": [False, True]}, {"rating": 2000, "verdicts": [False]}]
    >>> result = rate(rows, contestants=[800, 1200, 1600, 2000])
    >>> round(result["rating"]), result["solved"], result["percentile"]
    (1500, 1, 50.0)
    """
    solved = [any(row["verdicts"][:submissions]) for row in rows]
    found = elo([row["rating"] for row in rows], solved)
    result = asdict(found) | {"solved": sum(solved), "submissions": submissions}
    if contestants:
        result["percentile"] = percentile(found.rating, contestants)
    return result


def describe_rating(result: Mapping[str, float]) -> str:
    """One line: rating with interval, percentile, problems solved."""
    among = f", above {result['percentile']:.1f}%" if "percentile" in result else ""
    return (
        f"rating {result['rating']:.0f} [{result['low']:.0f}, {result['high']:.0f}]{among}; "
        f"{result['solved']} of {result['n']} problems in {result['submissions']} submissions"
    )


if __name__ == "__main__":
    main()
