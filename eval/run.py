"""Measure a checkpoint on frozen suites: accuracy with its interval, and what it cost in tokens.

python -m eval.run --checkpoint runs/nano/ppo --suite nano --strategy consensus --n 64 \
    --output_dir runs/nano/eval/ppo

Writes metrics.json and records.jsonl; several suites go to a folder each, `--suite all` takes those
that the data root holds. The same command again continues an interrupted evaluation. No reward
takes part: an answer is judged by `pipeline.grading.grade.grade` alone. An answer without a verdict counts
as not right, and `no_verdict` says how many there were.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from eval.run_folder import RunFolder, scores, summary
from eval.suites import find_suite, fingerprint, held_suites, read_suite
from pipeline.chat.prompts import encode_prompts
from pipeline.cli import CommandParser
from pipeline.config import PositiveInt, Required
from pipeline.folder_lock import lock_folder
from pipeline.grading.grade import grade
from pipeline.model import has_value_head, load_policy
from pipeline.model.atomic import weights_fingerprint
from pipeline.records import Answer, Problem, Usage
from pipeline.runtime import one_line_errors, set_threads, write_json, write_run_info
from pipeline.search import STRATEGIES, SearchOptions, check_strategy
from pipeline.stats.intervals import accuracy


@dataclass(kw_only=True)
class EvalArguments(SearchOptions):
    """What is measured, on what, at which cost; checked before anything is loaded."""

    checkpoint: Required = HfArg(default="", help="checkpoint folder, or user/name[@revision]")
    suite: Required = HfArg(default="", help="names of suites, separated by commas, or all")
    strategy: str = HfArg(default="greedy", help="how an answer is found: " + ", ".join(STRATEGIES))
    limit: PositiveInt | None = HfArg(
        default=None, help="so many problems, evenly spread over the suite"
    )
    levels: str = HfArg(default="", help="only problems of these levels, separated by commas")
    data_root: str | None = HfArg(default=None, help="folder of NAME/SPLIT.jsonl.gz")
    output_dir: Required = HfArg(default="", help="folder of metrics.json and records.jsonl")
    too_long: Literal["refuse", "wrong"] = HfArg(
        default="refuse",
        help="a question that leaves no room for its answer: stop, or wrong",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.suites:
            find_suite(name)
        check_strategy(self.strategy, self.options)

    @property
    def suites(self) -> list[str]:
        if self.suite == "all":
            return held_suites(self.data_root)[0]
        return [name.strip() for name in self.suite.split(",")]


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate every suite of the command line; one line of result each."""
    (args,) = CommandParser(EvalArguments).parse_args_and_config(argv)
    suites = {
        name: read_suite(name, args.data_root, args.limit, args.levels) for name in args.suites
    }
    if args.suite == "all":
        for name, reason in held_suites(args.data_root)[1].items():
            print(f"left out {name}: {reason}")
    set_threads()
    model, tokenizer = load_checkpoint(args.checkpoint)

    for name, report in suites.items():
        folder = Path(args.output_dir) if len(suites) == 1 else Path(args.output_dir) / name
        metrics = evaluate_checkpoint(
            model,
            tokenizer,
            report.problems,
            args.strategy,
            args.options,
            folder,
            suite=name,
            checkpoint=args.checkpoint,
            rows_read=report.rows_read,
            too_long=args.too_long,
        )
        print(summary(metrics), "->", folder / "metrics.json")


def evaluate_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    strategy: str,
    options: SearchOptions,
    output_dir: str | Path,
    *,
    suite: str = "",
    checkpoint: str = "",
    rows_read: int | None = None,
    too_long: str = "refuse",
) -> dict[str, Any]:
    """The content of metrics.json; also writes it, and records.jsonl chunk by chunk.

    Problems already in the folder are not asked again. The seed of a chunk is the seed of the
    options plus the position of its first problem: a resumed evaluation samples what an unbroken
    one would have.
    """
    check_strategy(strategy, options)
    options = options.for_model(tokenizer)
    if not problems:
        raise ValueError(f"suite {suite!r} has no problems to ask")
    crowded: set[Problem] = set()
    if too_long == "refuse":
        _require_room(model, tokenizer, problems, options)
    else:
        crowded = {p for p in problems if not _fits(model, tokenizer, p, options)}
    chunk = max(1, options.batch_size // options.n)
    settings = run_settings(model, problems, strategy, options, suite)
    with lock_folder(output_dir):
        folder = RunFolder(output_dir, settings, chunk=chunk, total=len(problems))

        done = len(folder.rows)
        with tqdm(total=len(problems), initial=done, desc=f"{suite} {strategy}", unit="q") as bar:
            for start in range(done, len(problems), chunk):
                part = problems[start : start + chunk]
                seeded = replace(options, seed=options.seed + start)
                folder.append(_ask(model, tokenizer, part, strategy, seeded, crowded))
                bar.update(len(part))
                bar.set_postfix(
                    accuracy=f"{accuracy([r['correct'] for r in folder.rows]).mean:.3f}"
                )

        about = {"suite": suite, "strategy": strategy, "checkpoint": checkpoint}
        read = {
            "rows_read": len(problems) if rows_read is None else rows_read,
            "too_long": len(crowded),
            "fingerprint": fingerprint(problems),
        }
        metrics = about | scores(folder.rows) | read | {"options": asdict(options)}
        write_run_info(folder.path, **settings)
        write_json(folder.path / "metrics.json", metrics)
    if options.think and metrics["finished"] == 0:
        print(
            f"no answer to {suite} came to an end: allow more tokens (--max_completion_tokens), or "
            "give --think false if the model was trained to answer at once"
        )
    return metrics


def load_checkpoint(checkpoint: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        model, tokenizer = load_policy(checkpoint, value_head="optional")
    except FileNotFoundError:
        raise
    except OSError as error:
        # The Hub's own message fills a paragraph, and a mistyped path may look like a Hub name.
        raise ValueError(
            f"checkpoint {checkpoint} is no folder here, and the Hub gives no model of that name "
            f"({str(error).splitlines()[0]}): check the path"
        ) from error
    if not has_value_head(model):
        print(
            f"{checkpoint} has no value head: what asks one cannot be used (votes weighed by "
            "value, tree search, adaptive thinking); greedy, sample and consensus can"
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def _require_room(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    options: SearchOptions,
) -> None:
    """ValueError now, rather than after hours at the one question that is too long."""
    window = getattr(model.config, "max_position_embeddings", None)
    if window is None:
        return
    prompts = encode_prompts(tokenizer, [p.question for p in problems], think=options.think)
    room = window - max(map(len, prompts))
    if options.sample_tokens > room:
        name = "max_completion_tokens" if options.max_sample_tokens is None else "max_sample_tokens"
        raise ValueError(
            f"{name} lets an answer grow to {options.sample_tokens} tokens, but beside the longest "
            f"question the model's window of {window} tokens has room for {max(room, 0)}: "
            f"lower --{name} or take a model with a longer window"
        )


def _fits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problem: Problem,
    options: SearchOptions,
) -> bool:
    try:
        _require_room(model, tokenizer, [problem], options)
    except ValueError:
        return False
    return True


def _ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    strategy: str,
    options: SearchOptions,
    crowded: set[Problem],
) -> list[dict[str, Any]]:
    """Records of one chunk. The strategy is handed the questions, never the expected answers.

    A crowded question, which leaves no room for an answer, is not asked and has none.
    """
    begin = time.perf_counter()
    asked = [p for p in problems if p not in crowded]
    answers = STRATEGIES[strategy](model, tokenizer, [p.question for p in asked], options)
    seconds = (time.perf_counter() - begin) / len(problems)
    found = dict(zip(asked, answers, strict=True))
    unasked = Answer(text="", usage=Usage(), finish_reason="too_long")
    return [_row(problem, found.get(problem, unasked), seconds) for problem in problems]


def _row(problem: Problem, answer: Answer, seconds: float) -> dict[str, Any]:
    verdict = grade(problem, answer.text)
    return {
        "id": problem.id,
        "level": problem.level,
        "question": problem.question,
        "expected": problem.answer,
        "answer": answer.text,
        "correct": verdict.passed,
        "no_verdict": verdict.right is None,
        "check": problem.check,
        "finish_reason": answer.finish_reason,
        "forced": answer.forced,
        "notes": answer.notes,
        "usage": asdict(answer.usage),
        "value": answer.value,
        "reasoning": answer.thought,
        "seconds": seconds,
    }


def run_settings(
    model: PreTrainedModel,
    problems: Sequence[Problem],
    strategy: str,
    options: SearchOptions,
    suite: str,
) -> dict[str, Any]:
    """All that decides what a record says. Weights count by content: a path can be trained over."""
    asked = json.dumps([(p.id, p.question, p.answer) for p in problems])
    return {
        "suite": suite,
        "strategy": strategy,
        **asdict(options),
        "problems": f"{len(problems)} ({hashlib.sha256(asked.encode()).hexdigest()[:16]})",
        "weights": weights_fingerprint(model),
    }


if __name__ == "__main__":
    main()
