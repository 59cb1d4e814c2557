"""Functions that the stages share: configuration, training problems, models, final checkpoint."""

import random
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from accelerate import PartialState
from datasets import IterableDataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from pipeline.cli import CommandParser
from pipeline.config import DataConfig, ModelConfig, StageConfig, require
from pipeline.config_files import packaged_config
from pipeline.data import make_arithmetic_problems, read_problems
from pipeline.data.decontamination import decontaminate, held_out_index
from pipeline.data.equation_steps import single_operations
from pipeline.data.few_shot import few_shot_problems
from pipeline.data.leak_index import LeakFinder
from pipeline.data.mixture import mixed_stream, mixture, parse_mixture
from pipeline.data.problems import stream_problems
from pipeline.data.self_correction import with_self_correction, with_self_corrections
from pipeline.device import DTYPES
from pipeline.model import (
    add_reasoning_tokens,
    attach_value_head,
    attach_verifier,
    build_nano,
    export_policy,
    is_adapted,
    load_policy,
    save_policy,
    train_tokenizer,
)
from pipeline.model.loading import loading_options
from pipeline.model.unsharded import is_sharded
from pipeline.records import Problem
from pipeline.training.output_folder import clear_output
from pipeline.training.trainer_shell import TrainerShell


def parse(
    classes: Sequence[type],
    default_config: str,
    argv: Sequence[str] | None = None,
    *,
    presets: str | None = None,
    without_effect: Collection[str] = (),
) -> tuple:
    """The configurations from `--config FILE.yaml` and `--field value`, one for each class.

    Without arguments, or with --dry_run alone, they are those of `default_config`. It and the
    folder `presets`, for `--preset NAME`, are found in the package. `without_effect` are fields
    that the stage ignores.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if default_config and (not arguments or (arguments[0] == "--dry_run" and len(arguments) <= 2)):
        config = str(packaged_config(default_config))
        print(f"no arguments: using --config {config}")
        arguments += ["--config", config]
    folder = packaged_config(presets) if presets else None
    parser = CommandParser(list(classes), presets=folder, without_effect=without_effect)
    return parser.parse_args_and_config(arguments)


def prepare_output(trainer: Trainer, checkpoint: str | None, stage: StageConfig | None) -> None:
    """Delete the run that the output folder holds, where it is to be replaced; all processes call
    it before the training."""
    folder = Path(trainer.args.output_dir).absolute()
    resumes = checkpoint == "last" or (
        checkpoint is not None and Path(checkpoint).absolute().parent == folder
    )
    if stage is None or not stage.overwrite_output_dir or resumes:
        return
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        clear_output(folder)
    trainer.accelerator.wait_for_everyone()


def settings_to_compare(
    trainer: Trainer, model: ModelConfig, data: DataConfig, begun_with: str | None
) -> dict[str, object]:
    """Settings besides the training arguments that a resumed run must share (`also_decided_by`).

    `begun_with` is the fingerprint of the initial weights, if a resumed run still depends on them.
    Settings of the data are included for a stream, whose rows cannot be compared.
    """
    settings = {name: value for name, value in asdict(model).items() if _shapes(name, model)}
    if begun_with is not None:
        settings["starting weights"] = begun_with
    if isinstance(trainer.train_dataset, IterableDataset):
        settings |= asdict(data)
    return settings


def _shapes(name: str, model: ModelConfig) -> bool:
    """Whether a setting of the model has an effect on training."""
    if name.startswith("nano_"):
        return model.model == "nano"
    return name in ("use_peft", "frozen_layers") or model.use_peft


def training_problems(data: DataConfig, seed: int) -> list[Problem]:
    """The problems to train on; prints what was read and dropped."""
    weights = parse_mixture(data.dataset)
    problems = without_held_out(_read_mixture(data, weights, seed), list(weights), data)
    if data.single_operations:
        problems = [replace(p, thought=single_operations(p.thought)) for p in problems]
    if data.self_correction_share:
        problems = with_self_corrections(problems, share=data.self_correction_share, seed=seed)
        corrupted = sum(bool(problem.corrupted_steps) for problem in problems)
        print(f"{corrupted:,} of {len(problems):,} thoughts contain a self-correction")
    return problems


def problem_stream(data: DataConfig, seed: int) -> Callable[[], Iterator[Problem]]:
    """A function that starts a pass over the training problems as a stream.

    The stream is a mixture by weights, decontaminated row by row, with self-corrections.
    """
    weights = {name: w or 1.0 for name, w in parse_mixture(data.dataset).items()}
    require(data.shares is None, "streaming=true reads data sets; leave shares out")
    leaks = LeakFinder([])
    if data.overlap != "allow":
        leaks, _ = held_out_index(list(weights), data.data_root)

    def stream() -> Iterator[Problem]:
        streams = {n: stream_problems(n, data.split, data.data_root, data) for n in weights}
        problems = streams.popitem()[1] if len(streams) == 1 else None
        problems = problems or mixed_stream(streams, weights, seed=seed)
        rng = random.Random(seed)
        for problem in islice(problems, data.size):
            if leaks.holds(problem):
                require(
                    data.overlap != "refuse",
                    f"{problem.source}:{problem.id} is in an evaluation suite; remove it, "
                    "or choose overlap=drop",
                )
                continue
            if data.single_operations:
                problem = replace(problem, thought=single_operations(problem.thought))
            yield (
                with_self_correction(problem, rng)
                if rng.random() < data.self_correction_share
                else problem
            )

    return stream


def without_held_out(problems: list[Problem], names: list[str], data: DataConfig) -> list[Problem]:
    """The problems that are in no evaluation suite; prints the overlaps found."""
    if data.overlap == "allow":
        return problems
    found = decontaminate(problems, names, data.data_root)
    leaks = ", ".join(f"{n:,} in {suite}" for suite, n in found.removed.items())
    print(
        f"compared with {len(found.suites)} held-out splits: {leaks or 'no row'} also there"
        f"{' and dropped' if leaks and data.overlap == 'drop' else ''}; "
        f"{found.twins:,} differ from one in their numbers only"
    )
    if leaks and data.overlap == "refuse":
        raise ValueError(
            f"training rows are questions of evaluation suites ({leaks}); remove them, or choose "
            "overlap=drop"
        )
    if not found.kept:
        raise ValueError(
            f"all {len(problems):,} rows of dataset={data.dataset} are in evaluation suites "
            f"({leaks}); train on another split, or choose overlap=allow and do not report them"
        )
    return found.kept


def with_thoughts(problems: list[Problem], data: DataConfig) -> list[Problem]:
    """The problems that SFT can train on: with think=true those with a thought; prints the others.

    Raises:
        ValueError: no problem has a thought.
    """
    kept = [problem for problem in problems if problem.thought or not data.think]
    if not kept:
        raise ValueError(
            f"none of the {len(problems):,} rows of dataset={data.dataset} has a thought, and SFT "
            "trains worked solutions: give rows with a solution, or --think false to train the "
            "answers alone; PPO needs answers only"
        )
    if len(kept) < len(problems):
        print(f"{len(problems) - len(kept):,} of {len(problems):,} rows have no thought: left out")
    return kept


def _read_mixture(data: DataConfig, weights: dict[str, float | None], seed: int) -> list[Problem]:
    """All problems of the data sets, or a mixture if they have weights."""
    known = {name: weight for name, weight in weights.items() if weight is not None}
    weighted = len(known) == len(weights)
    shares = data.parsed_shares()
    parts = {}
    for name in weights:
        if name == "nano" and shares is not None:
            parts[name] = make_arithmetic_problems(
                shares,
                size=data.size or 20_000,
                seed=seed + data.data_seed_offset,
                decomposed_share=data.decomposed_share,
            )
            continue
        limit = None if weighted else data.size
        report = read_problems(name, data.split, data.data_root, limit, data.processes, data)
        dropped = ", ".join(f"{n} {reason}" for reason, n in report.dropped.items()) or "none"
        if report.note:
            print(report.note)
        origin = report.problems[0].source if report.problems else f"{name}/{data.split}"
        print(f"{origin}: {report.rows_read:,} rows read, dropped: {dropped}")
        parts[name] = report.problems
    if weighted:
        return mixture(parts, known, seed=seed, size=data.size)
    return [problem for part in parts.values() for problem in part]


def take_examples(
    data: DataConfig, problems: list[Problem]
) -> tuple[list[Problem] | None, list[Problem]]:
    """(worked examples of the prompt, problems to train on); a number takes the first rows.

    The examples are None where `few_shot` is not given, so that stored ones stay.
    """
    worked = [problem for problem in problems if problem.thought or not data.think]
    examples = few_shot_problems(data, lambda number: worked[:number])
    if not examples:
        return examples, problems
    taken = {problem.question for problem in examples}
    return examples, [problem for problem in problems if problem.question not in taken]


def load_model(
    config: ModelConfig,
    *,
    value_head: Literal["require", "optional", "new"],
    will_grow: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) as the configuration says; arguments and errors are those of load_policy.

    By default float32 whatever is stored: bfloat16 weights round small optimizer steps to nothing.
    Mixed precision (bf16 autocast) still computes in bfloat16.
    """
    return load_policy(
        config.model,
        value_head=value_head,
        dtype=DTYPES[config.dtype],
        revision=config.model_revision,
        will_grow=will_grow,
        loading=loading_options(config),
    )


def start_model(
    config: ModelConfig, problems: list[Problem], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) with reasoning tokens, to start training from.

    For model=nano the weights are new and the tokenizer is trained on the first 5,000 problems.
    """
    if config.model != "nano":
        model, tokenizer = load_model(config, value_head="optional", will_grow=True)
        attach_verifier(model, None)  # it was fitted to the policy before this training
        add_reasoning_tokens(model, tokenizer)
        return model, tokenizer
    texts = [text for p in problems[:5000] for text in (p.question, p.thought, p.answer)]
    tokenizer = train_tokenizer(texts, vocab_size=config.nano_vocab_size)
    model = build_nano(
        tokenizer,
        hidden_size=config.nano_hidden_size,
        num_hidden_layers=config.nano_layers,
        num_attention_heads=config.nano_heads,
        intermediate_size=config.nano_intermediate_size,
        rope_theta=config.nano_rope_theta,
        seed=seed,
    )
    if config.attn_implementation is not None:
        model.set_attn_implementation(config.attn_implementation)
    return model, tokenizer


def training_length(args: TrainingArguments) -> str:
    """The length of a training as its arguments give it: "300 steps" or "2 epochs"."""
    return (
        f"{args.max_steps:,} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    )


def describe(problems: list[Problem]) -> str:
    """One line: the number of problems, in all and by level."""
    levels = Counter(problem.level for problem in problems)
    some = ", ".join(f"{level or 'no level'} {n:,}" for level, n in sorted(levels.items())[:12])
    return f"{len(problems):,} problems ({some})"


def save_final_policy(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the trained policy, with a new value head if it has none; adapters are merged.

    All processes must call it, because the weights may be sharded over them (FSDP, DeepSpeed).
    """
    accelerator = trainer.accelerator
    policy = accelerator.unwrap_model(trainer.model)
    if is_adapted(policy):
        whole: AbstractContextManager[nn.Module] = nullcontext(policy)
        if is_sharded(policy):
            assert isinstance(trainer, TrainerShell)
            whole = trainer.gathered_model()
        with whole as model:
            if accelerator.is_main_process:
                export_policy(model, tokenizer, folder)
        return
    sharded = trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
    state_dict = accelerator.get_state_dict(sharded)
    if accelerator.is_main_process:
        model = attach_value_head(accelerator.unwrap_model(trainer.model))
        save_policy(model, tokenizer, folder, state_dict)


def end_processes() -> None:
    """Wait for all processes of a run and close their connections.

    Without it one may exit while another still communicates with it.
    """
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def print_summary(made: str, folder: Path, figures: Mapping[str, object], following: str) -> None:
    """Print what a stage has made, its folder, its figures, and the next command."""
    print(f"\n{made}: {folder}")
    for name, value in figures.items():
        print(f"  {name}: {value}")
    print(f"next: {following}")
