"""Sample every question many times and store the samples, for scaling, calibration and pass@k.

python -m eval.samples --checkpoint runs/nano/ppo --suite nano --n 64 --output_dir runs/nano/samples

records.jsonl has a row per problem with the answer, tokens and value of each sample; metrics.json
has avg@k, pass@k and majority@k for k = 1, 2, 4, ... and, as `value`, the calibration of the
verifier's score or, without a verifier, of the value head. The same command again continues an
interrupted run.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from eval.baseline import grade_whole_text
from eval.metrics.scores import avg_at_k, pass_at_k
from eval.row_types import SampleMetrics, SamplesRow
from eval.run import check_strategy, load_checkpoint, run_settings
from eval.suites import find_suite, fingerprint, read_suite, suite_label
from pipeline.answers.run_folder import RunFolder
from pipeline.answers.settings import too_long_problems
from pipeline.chat.plain import has_reasoning_tokens
from pipeline.cli import CommandParser
from pipeline.config import PositiveInt, Required, check_types
from pipeline.device import DeviceOptions, choose_device
from pipeline.folder_lock import lock_folder
from pipeline.grading import grade
from pipeline.hosts import require_one_process
from pipeline.model.inference import placement
from pipeline.records import Answer, Problem
from pipeline.runtime import one_line_errors, prepare_cpu, write_json, write_run_info
from pipeline.search import SearchOptions, clusters, sample_answers
from pipeline.stats.calibration import calibration
from pipeline.stats.intervals import bounded_mean
from pipeline.stats.ranking import within_question_auroc_pooled

NO_VOTE = -1
SHUFFLES = 16  # orders of the samples that majority@k is averaged over


@dataclass(kw_only=True)
class SamplesArguments(DeviceOptions):
    """The checkpoint, the suite and the options of sampling."""

    checkpoint: Required = HfArg(default="", help="checkpoint folder")
    suite: Required = HfArg(default="", help="name of a suite")
    n: int = HfArg(default=64, help="samples per question")
    limit: PositiveInt | None = HfArg(
        default=None, help="number of problems, evenly spread over the suite"
    )
    data_root: str | None = HfArg(
        default=None, help="folder of NAME/SPLIT.jsonl.gz; default: $THINKHEAD_DATA, else the Hub"
    )
    output_dir: Required = HfArg(default="", help="folder of metrics.json and records.jsonl")
    think: bool | None = HfArg(
        default=None,
        help="false: answer without a thought; default: as the model was trained",
    )
    temperature: float = HfArg(default=0.7, help="sampling temperature")
    max_sample_tokens: int = HfArg(
        default=256, help="maximum tokens of one sample, thought included"
    )
    batch_size: int = HfArg(default=256, help="sequences decoded in parallel")
    seed: int = HfArg(default=0, help="seed of the samples")

    def __post_init__(self) -> None:
        check_types(self)
        find_suite(self.suite)
        check_strategy("sample", replace(self.options, n=1))
        choose_device(self.device)

    @property
    def options(self) -> SearchOptions:
        """The options of sampling as those of a search."""
        names = ("n", "temperature", "max_sample_tokens", "batch_size", "seed", "think")
        return SearchOptions(**{name: getattr(self, name) for name in names})


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Sample the suite and print a line with avg@1, majority@k and pass@k."""
    (args,) = CommandParser(SamplesArguments).parse_args_and_config(argv)
    require_one_process("eval.samples")
    report = read_suite(args.suite, args.data_root, args.limit)
    prepare_cpu()
    model, tokenizer = load_checkpoint(args.checkpoint, args)
    metrics = sample_checkpoint(
        model,
        tokenizer,
        report.problems,
        args.options,
        args.output_dir,
        suite=suite_label(args.suite),
        checkpoint=args.checkpoint,
    )
    last = metrics["by_k"][-1]
    print(
        f"{args.suite}: avg@1 {metrics['by_k'][0]['avg']['mean']:.1%}, at k={last['k']} majority "
        f"{last['majority']['mean']:.1%} and pass {last['pass']['mean']:.1%}, "
        f"{metrics['tokens_a_sample']:.1f} tokens per sample -> {args.output_dir}/metrics.json"
    )


def sample_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    options: SearchOptions,
    output_dir: str | Path,
    *,
    suite: str = "",
    checkpoint: str = "",
) -> SampleMetrics:
    """Write records.jsonl chunk by chunk, then metrics.json, and return the content of the latter.

    Raises ValueError if the folder has samples with other settings, or a question leaves no room
    for its answer.
    """
    options = options.for_model(tokenizer)
    settings = run_settings(model, tokenizer, problems, "samples", options, suite)
    prepared = has_reasoning_tokens(tokenizer)
    asked = [p.prompt for p in problems]
    too_long_problems(model, tokenizer, problems, asked, options, "a suite without them")
    chunk = max(1, options.batch_size // options.n)

    def answer(part: Sequence[Problem], start: int) -> list[SamplesRow]:
        begin = time.perf_counter()
        seeded = replace(options, seed=options.seed + start)
        questions = [p.prompt for p in part]
        groups = sample_answers(
            model, tokenizer, questions, seeded, temperature=options.temperature
        )
        seconds = (time.perf_counter() - begin) / len(part)
        return [_row(p, group, seconds, prepared) for p, group in zip(part, groups, strict=True)]

    with lock_folder(output_dir):
        folder: RunFolder[SamplesRow] = RunFolder(
            output_dir, settings, chunk=chunk, total=len(problems)
        )
        folder.complete(problems, answer, f"{suite} samples")
        about: dict[str, object] = {"suite": suite, "strategy": "samples", "checkpoint": checkpoint}
        about |= {"fingerprint": fingerprint(problems), "options": asdict(options)}
        about.update(placement(model), reasoning_tokens=prepared)
        metrics = cast(SampleMetrics, about | sample_scores(folder.rows))
        write_run_info(folder.path, **settings)
        write_json(folder.path / "metrics.json", metrics)
    return metrics


def sample_scores(rows: Sequence[SamplesRow]) -> dict[str, object]:
    """The part of metrics.json that follows from the rows."""
    correct_QG = [[s["correct"] for s in row["samples"]] for row in rows]
    n = min(map(len, correct_QG))
    tokens = float(np.mean([s["tokens"] for row in rows for s in row["samples"]]))
    by_k = []
    ks = powers_of_two(n)
    for k, right_Q in zip(ks, majority_curve(rows, ks).T.tolist(), strict=True):
        majority = bounded_mean(right_Q)
        figures = {"avg": avg_at_k([row[:n] for row in correct_QG]), "majority": majority}
        figures["pass"] = pass_at_k(correct_QG, k)
        by_k.append({"k": k, "tokens": k * tokens} | {m: asdict(e) for m, e in figures.items()})
    return {
        "n": len(rows),
        "samples": n,
        "no_verdict": sum(s.get("no_verdict", False) for row in rows for s in row["samples"]),
        "tokens_a_sample": tokens,
        "seconds": sum(row["seconds"] for row in rows),
        "by_k": by_k,
        "value": _value_figures(rows),
    }


def majority_curve(rows: Sequence[SamplesRow], ks: Sequence[int], seed: int = 0) -> np.ndarray:
    """(Q, K) probabilities that a majority vote of k samples is correct, over random orders.

    Ties go to the answer seen first, as in the consensus strategy. All k share the same orders,
    which smooths the curve; at k = all samples the order only decides ties.
    """
    rng = np.random.default_rng(seed)
    curve = np.zeros((len(rows), len(ks)))
    for q, row in enumerate(rows):
        label = np.array([s["vote"] for s in row["samples"]])
        # Of samples with equal votes the first is returned, as in the consensus strategy.
        right = {s["vote"]: s["correct"] for s in reversed(row["samples"])}
        for _ in range(SHUFFLES):
            order = rng.permutation(label)
            for j, k in enumerate(ks):
                curve[q, j] += right[_winner(order[:k])] if (order[:k] != NO_VOTE).any() else 0
    return curve / SHUFFLES


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... up to n, and n itself.

    >>> powers_of_two(5), powers_of_two(8)
    ([1, 2, 4, 5], [1, 2, 4, 8])
    """
    powers = [2**i for i in range(n.bit_length()) if 2**i <= n]
    return powers if powers[-1] == n else [*powers, n]


def _winner(votes_k: np.ndarray) -> int:
    cast = votes_k[votes_k != NO_VOTE]
    labels, first, count = np.unique(cast, return_index=True, return_counts=True)
    return int(labels[np.lexsort((first, -count))[0]])


def _row(problem: Problem, group: Sequence[Answer], seconds: float, prepared: bool) -> SamplesRow:
    """The record of one problem.

    Samples with equivalent answers share the number `vote` and a verdict, unless the problem has a
    check of its own, which may grade equivalent answers differently.
    """
    grade_text = grade if prepared else grade_whole_text
    texts = [a.text if a.finish_reason == "stop" else "" for a in group]
    votes = [NO_VOTE] * len(group)
    verdicts: list[bool | None] = [False] * len(group)
    for number, members in enumerate(clusters(texts, question=problem.question)):
        for i in members:
            votes[i] = number
            verdicts[i] = grade_text(problem, texts[i if problem.check else members[0]]).right
    return {
        "id": problem.id,
        "level": problem.level,
        "question": problem.question,
        "expected": problem.answer,
        "samples": [
            {
                "answer": answer.text,
                "vote": vote,
                "correct": verdict is True,
                "no_verdict": verdict is None,
                "tokens": answer.usage.completion_tokens,
                "value": answer.value,
            }
            for answer, vote, verdict in zip(group, votes, verdicts, strict=True)
        ],
        "seconds": seconds,
    }


def _value_figures(rows: Sequence[SamplesRow]) -> dict[str, object] | None:
    """Calibration of the samples' values: the verifier's score, or without a verifier V before the
    last token. None without a value head, or if all are equal, as before training."""
    samples = [s for row in rows for s in row["samples"]]
    values = [value for s in samples if (value := s["value"]) is not None]
    if len(values) < len(samples) or len(set(values)) < 2:
        return None
    correct = [s["correct"] for s in samples]
    question = [q for q, row in enumerate(rows) for _ in row["samples"]]
    within = within_question_auroc_pooled(values, correct, question)
    # JSON has no NaN: null if no question has both right and wrong samples.
    pooled = None if math.isnan(within) else within
    return asdict(calibration(values, correct)) | {"within_question_auroc_pooled": pooled}


if __name__ == "__main__":
    main()
