"""Compare the verdicts of eval.run and lm-evaluation-harness problem by problem.

python -m eval.harness.agreement --ours runs/nano/eval/gsm8k --theirs out/gsm8k --output agree.json
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from transformers.hf_argparser import HfArg

from eval.row_types import Record
from eval.run_folder import read_run
from pipeline.cli import CommandParser
from pipeline.config import Required, check_types
from pipeline.runtime import one_line_errors, write_json
from pipeline.stats.intervals import accuracy

# Reasons for different verdicts on a problem; the first one that applies counts.
REASONS = {
    "no answer of ours": "eval.run found no visible answer, the harness did",
    "no answer of theirs": "the harness found no visible answer, eval.run did",
    "other words": "greedy decoding differs: rounding depends on the batch",
    "other grader": "the same answer, graded differently",
}


class HarnessSample(TypedDict):
    """A row of the harness' samples file, as far as it is read here."""

    doc: Mapping[str, str]
    filtered_resps: list[str]
    same_answer: float
    exact_match: float


class Agreement(TypedDict):
    """Shares over the problems that both evaluations have, and the differing verdicts."""

    n: int
    only_ours: int
    agree: float
    ci95: list[float]
    agree_exact_match: float
    same_words: float
    ours: float
    theirs: float
    theirs_exact_match: float
    reasons: dict[str, int]
    differences: list[dict[str, str]]


@dataclass(kw_only=True)
class AgreeArguments:
    """Two evaluations of the same problems."""

    ours: Required = HfArg(default="", help="folder of eval.run")
    theirs: Required = HfArg(default="", help="folder of eval.harness, of one suite")
    output: str = HfArg(default="", help="JSON file to write as well")

    def __post_init__(self) -> None:
        check_types(self)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Print the agreement of two evaluations; with --output also write it."""
    (args,) = CommandParser(AgreeArguments).parse_args_and_config(argv)
    figures = agreement(read_run(Path(args.ours))[1], read_theirs(Path(args.theirs)))
    if args.output:
        write_json(Path(args.output), figures)
    print(describe_agreement(figures))


def read_theirs(folder: Path) -> list[HarnessSample]:
    """The samples of the harness' newest run in the folder; FileNotFoundError if there is none."""
    paths = sorted(folder.rglob("samples_*.jsonl"), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise FileNotFoundError(
            f"{folder} has no samples_*.jsonl: run python -m eval.harness first"
        )
    # Not splitlines: the harness writes U+2028 and other line ends of Unicode as they are.
    return [json.loads(line) for line in paths[-1].read_bytes().split(b"\n") if line]


def agreement(ours: Sequence[Record], theirs: Sequence[HarnessSample]) -> Agreement:
    """Share of shared problems with equal verdicts, and the reasons of the differences.

    Raises ValueError if the evaluations have no question in common.
    """
    # Of BBH and MBPP several problems have one question, with different answers.
    by_problem = {_key(row["doc"]): row for row in theirs}
    shared = [(row, by_problem[_key(row)]) for row in ours if _key(row) in by_problem]
    if not shared:
        raise ValueError("the two evaluations share no question: run both on the same suite")
    equal = [bool(row["correct"]) == bool(other["same_answer"]) for row, other in shared]
    strict = [bool(row["correct"]) == bool(other["exact_match"]) for row, other in shared]
    words = [row["answer"].strip() == _text(other) for row, other in shared]
    differences = [
        _difference(row, other)
        for (row, other), same in zip(shared, equal, strict=True)
        if not same
    ]
    share = accuracy(equal)
    return {
        "n": len(shared),
        "only_ours": len(ours) - len(shared),
        "agree": share.mean,
        "ci95": [share.low, share.high],
        "agree_exact_match": sum(strict) / len(strict),
        "same_words": sum(words) / len(words),
        "ours": sum(bool(row["correct"]) for row, _ in shared) / len(shared),
        "theirs": sum(other["same_answer"] for _, other in shared) / len(shared),
        "theirs_exact_match": sum(other["exact_match"] for _, other in shared) / len(shared),
        "reasons": dict(Counter(d["reason"] for d in differences)),
        "differences": differences,
    }


def describe_agreement(figures: Agreement) -> str:
    """The shares, then a line per reason with its count."""
    lines = [
        f"{figures['n']} problems: verdicts agree on {figures['agree']:.2%}, visible answers are "
        f"identical on {figures['same_words']:.2%}; accuracy ours {figures['ours']:.2%}, theirs "
        f"{figures['theirs']:.2%} by our grader and "
        f"{figures['theirs_exact_match']:.2%} by exact match"
    ]
    lines += [f"  {n} x {name}: {REASONS[name]}" for name, n in figures["reasons"].items()]
    return "\n".join(lines)


def _difference(ours: Record, theirs: HarnessSample) -> dict[str, str]:
    answer, other = ours["answer"].strip(), _text(theirs)
    if not answer or not other:
        reason = "no answer of theirs" if answer else "no answer of ours"
    else:
        reason = "other grader" if answer == other else "other words"
    return {
        "question": ours["question"],
        "expected": ours["expected"],
        "ours": answer,
        "theirs": other,
        "reason": reason,
    }


def _key(problem: Mapping[str, object]) -> tuple[str, str]:
    return str(problem.get("id", "")), str(problem["question"])


def _text(theirs: HarnessSample) -> str:
    return theirs["filtered_resps"][0].strip()


if __name__ == "__main__":
    main()
