"""Evaluate a checkpoint on frozen suites: accuracy with confidence interval, and tokens used.

python -m eval.run --checkpoint runs/nano/ppo --suite nano --strategy consensus --n 64 \\
    --output_dir runs/nano/eval/ppo

accelerate launch --num_processes 8 -m eval.run ...     # shared among eight GPUs

Writes metrics.json and records.jsonl, for several suites in a folder each; `--suite all` evaluates
the suites found in the data root. The same command again continues an interrupted evaluation.
Answers are graded by `pipeline.grading.grade`, without the rewards of training. An answer without a
verdict counts as wrong, and `no_verdict` is the number of those.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from eval.answering import answer_chunk, questions_of
from eval.baseline import few_shot_turns
from eval.row_types import Metrics, Record
from eval.run_folder import scores, summary
from eval.suites import (
    find_available_suites,
    find_suite,
    fingerprint,
    read_suite,
    suite_label,
    training_rows,
)
from pipeline.answers.run_folder import RunFolder
from pipeline.answers.settings import answer_settings, too_long_problems
from pipeline.answers.shared_folder import answer_all, check_hosts
from pipeline.chat.plain import has_reasoning_tokens
from pipeline.chat.prompt_settings import stored_prompt
from pipeline.cli import CommandParser
from pipeline.config import OwnDataConfig, PositiveInt, PromptConfig, Required, require
from pipeline.data.few_shot import apply_prompt, few_shot_problems
from pipeline.device import DeviceOptions, choose_device
from pipeline.folder_lock import lock_folder
from pipeline.generation.vllm_engine import (
    VLLM_STRATEGIES,
    load_vllm,
    require_vllm,
    use_vllm,
)
from pipeline.hosts import only_main_prints, this_place
from pipeline.model import has_reasoning_layer, has_value_head, load_for_inference
from pipeline.model.inference import placement
from pipeline.model.resolve import resolve_checkpoint
from pipeline.records import Problem
from pipeline.runtime import (
    folder_name,
    one_line_errors,
    prepare_cpu,
    terminate_with_launcher,
    write_json,
    write_run_info,
)
from pipeline.search import NEED_VALUES, STRATEGIES, SearchOptions, check_strategy


@dataclass(kw_only=True)
class EvalArguments(DeviceOptions, SearchOptions, OwnDataConfig, PromptConfig):
    """The checkpoint, the suites, the strategy and its options."""

    checkpoint: Required = HfArg(default="", help="checkpoint folder, or user/name[@revision]")
    suite: Required = HfArg(
        default="", help="suites, files or Hub ids of your own, separated by commas; or all"
    )
    strategy: str = HfArg(default="greedy", help="search strategy: " + ", ".join(STRATEGIES))
    limit: PositiveInt | None = HfArg(
        default=None, help="number of problems, evenly spread over the suite"
    )
    levels: str = HfArg(default="", help="only problems of these levels, separated by commas")
    data_root: str | None = HfArg(
        default=None, help="folder of NAME/SPLIT.jsonl.gz; default: $THINKHEAD_DATA, else the Hub"
    )
    output_dir: Required = HfArg(default="", help="folder of metrics.json and records.jsonl")
    engine: Literal["own", "vllm"] = HfArg(
        default="own", help="what decodes: this project, or vLLM for " + ", ".join(VLLM_STRATEGIES)
    )
    too_long: Literal["refuse", "wrong"] = HfArg(
        default="refuse",
        help="questions that leave no room for an answer: stop with an error, or count as wrong",
    )

    def __post_init__(self) -> None:
        OwnDataConfig.__post_init__(self)
        PromptConfig.__post_init__(self)
        super().__post_init__()
        for name in self.suites:
            find_suite(name)
        check_strategy(self.strategy, self.options)
        choose_device(self.device)
        if self.engine == "vllm":
            self._check_vllm()

    def _check_vllm(self) -> None:
        require(
            self.strategy in VLLM_STRATEGIES,
            f"engine=vllm has no values and no steps, which strategy={self.strategy} needs: take "
            f"one of {', '.join(VLLM_STRATEGIES)}, or leave engine out",
        )
        require(
            this_place().world == 1,
            "engine=vllm runs in one process, which uses the GPU whole; start it without "
            "accelerate launch",
        )
        require_vllm()

    @property
    def suites(self) -> list[str]:
        """The names of the suites; those in the data root for "all"."""
        if self.suite == "all":
            return find_available_suites(self.data_root)[0]
        return [name.strip() for name in self.suite.split(",")]


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate the suites of the command line; print one line for each."""
    terminate_with_launcher()
    with only_main_prints():
        _evaluate(argv)


def _evaluate(argv: Sequence[str] | None) -> None:
    (args,) = CommandParser(EvalArguments).parse_args_and_config(argv)
    check_hosts(args.output_dir)
    suites = {
        name: read_suite(name, args.data_root, args.limit, args.levels, args)
        for name in args.suites
    }
    if args.suite == "all":
        for name, reason in find_available_suites(args.data_root)[1].items():
            print(f"left out {name}: {reason}")
    prepare_cpu()
    model, tokenizer, engine = load_with_engine(args)

    for name, report in suites.items():
        examples = few_shot_problems(args, training_rows(name, args.data_root))
        thinks = has_reasoning_tokens(tokenizer)
        apply_prompt(
            tokenizer,
            args,
            examples=examples if thinks else None,
            think=args.think is not False,
        )
        folder = (
            Path(args.output_dir) if len(suites) == 1 else Path(args.output_dir) / folder_name(name)
        )
        with engine():
            metrics = evaluate_checkpoint(
                model,
                tokenizer,
                report.problems,
                args.strategy,
                args.options,
                folder,
                suite=suite_label(name),
                checkpoint=args.checkpoint,
                rows_read=report.rows_read,
                too_long=args.too_long,
                examples=[] if thinks else few_shot_turns(examples or []),
                engine=args.engine,
            )
        if metrics is not None:
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
    examples: Sequence[dict[str, str]] = (),
    engine: str = "own",
) -> Metrics | None:
    """Evaluate on `problems`; write records.jsonl chunk by chunk, then metrics.json, and return it.

    Problems already in the folder are skipped. A chunk's seed is the seed of the options plus the
    index of its first problem, so that a resumed evaluation has the samples of an unbroken one.
    Under `accelerate launch` the processes share the chunks; None on all but the first.

    Args:
        rows_read: rows of the suite's data, of which `problems` are the usable ones
        too_long: "refuse" raises ValueError for a question that leaves no room for its answer,
            "wrong" counts it as wrong
        examples: messages before every question of a model without reasoning tokens
        engine: the name of what decodes, kept with the settings; see `use_engine`

    Raises:
        ValueError: no problems; invalid options; another evaluation is in the folder.
    """
    place = this_place()
    check_strategy(strategy, options)
    options = options.for_model(tokenizer)
    if examples and has_reasoning_tokens(tokenizer):
        raise ValueError(
            f"examples of {len(examples)} messages are for a model without reasoning tokens; store "
            "worked examples in this one's chat template with apply_prompt, as --few_shot does"
        )
    if not problems:
        raise ValueError(f"suite {suite!r} has no problems: check --limit and --levels")
    questions = questions_of(problems, examples)
    remedy = "--too_long wrong" if too_long == "refuse" else None
    skipped = too_long_problems(model, tokenizer, problems, questions, options, remedy)
    chunk = max(1, options.batch_size // options.n)
    settings = run_settings(model, tokenizer, problems, strategy, options, suite)
    settings |= stored_prompt(tokenizer).as_dict()
    if examples:
        settings["few_shot"] = list(examples)
    if engine != "own":
        settings["engine"] = engine

    def answer(part: Sequence[Problem], start: int) -> list[Record]:
        seeded = replace(options, seed=options.seed + start)
        return answer_chunk(model, tokenizer, part, strategy, seeded, skipped, examples)

    with lock_folder(output_dir):
        folder: RunFolder[Record] = RunFolder(
            output_dir, settings, chunk=chunk, total=len(problems)
        )
        answer_all(folder, problems, answer, f"{suite} {strategy}", place)
        if not place.is_main:
            return None
        about: dict[str, object] = {"suite": suite, "strategy": strategy, "checkpoint": checkpoint}
        read = {
            "rows_read": len(problems) if rows_read is None else rows_read,
            "too_long": len(skipped),
            "fingerprint": fingerprint(problems),
        }
        about.update(placement(model) if engine == "own" else {"engine": engine})
        about["reasoning_tokens"] = has_reasoning_tokens(tokenizer)
        found = about | scores(folder.rows) | read | {"options": asdict(options)}
        metrics = cast(Metrics, found)
        write_run_info(folder.path, **settings)
        write_json(folder.path / "metrics.json", metrics)
    if options.think and metrics["finished"] == 0:
        print(
            f"no completion of {suite} is finished: the model is untrained, or needs more "
            "--max_completion_tokens, or --think false if it was trained without thoughts"
        )
    return metrics


def load_checkpoint(
    checkpoint: str, options: DeviceOptions | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) as `load_for_inference` loads them; errors of load_policy.

    A value head is optional; its absence is printed.
    """
    model, tokenizer = load_for_inference(checkpoint, options)
    if not has_reasoning_tokens(tokenizer):
        print(f"{checkpoint} has no reasoning tokens: asked plainly, its whole text is graded")
    if not has_value_head(model):
        print(
            f"{checkpoint} has no value head: {', '.join(NEED_VALUES)} are unavailable; the other "
            "strategies work"
        )
    return model, tokenizer


def load_with_engine(
    args: EvalArguments,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Callable[[], AbstractContextManager[None]]]:
    """(model, tokenizer, makes the context in which the engine of the arguments decodes).

    With vLLM the model stays on the CPU: its window and the hash of its weights are read.
    """
    if args.engine == "own":
        return *load_checkpoint(args.checkpoint, args), nullcontext
    model, tokenizer = load_checkpoint(args.checkpoint, DeviceOptions(device="cpu"))
    require(
        not has_reasoning_layer(model),
        f"{args.checkpoint} has a reasoning layer, which vLLM does not load; leave engine out",
    )
    folder = resolve_checkpoint(args.checkpoint)
    require(
        not (folder / "adapter_config.json").exists(),
        f"{args.checkpoint} holds adapters; python -m stages.merge writes the plain folder that "
        "vLLM loads",
    )
    llm = load_vllm(folder, dtype=args.dtype, seed=args.seed)
    return model, tokenizer, partial(use_vllm, llm)


def run_settings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    strategy: str,
    options: SearchOptions,
    suite: str,
) -> dict[str, object]:
    """Everything that affects the records, to compare with settings.json in the folder."""
    return {"suite": suite} | answer_settings(model, tokenizer, problems, strategy, options)


if __name__ == "__main__":
    main()
