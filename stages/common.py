"""What the stages share: reading the command line, problems, the end of a run."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from pipeline.config import CommandParser, DataConfig, ModelConfig
from pipeline.data import read_problems, sum_problems
from pipeline.model import (
    add_reasoning_tokens,
    attach_value_head,
    build_nano,
    export_policy,
    is_adapted,
    load_policy,
    save_policy,
    train_tokenizer,
)
from pipeline.model.manifest import checkpoints
from pipeline.records import Problem


def parse(
    classes: Sequence[type],
    default_config: str,
    argv: Sequence[str] | None = None,
    *,
    presets: str | None = None,
) -> tuple:
    """The configurations from `--config FILE.yaml` and `--field value`; without arguments from
    `default_config`. `presets` is the folder that `--preset NAME` looks in."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments and Path(default_config).is_file():
        print(f"no arguments: using --config {default_config}")
        arguments = ["--config", default_config]
    return CommandParser(list(classes), presets=presets).parse_args_and_config(arguments)


def checkpoint_to_resume(asked: str | None, output_dir: str) -> str | None:
    """What the trainer is to resume from, refused before anything is made where it cannot be there.

    The trainer reads it whole before it takes it; "last" is the newest one that is whole.
    """
    if asked is None:
        return None
    if asked != "last":
        if not Path(asked).is_dir():
            raise FileNotFoundError(
                f"resume_from_checkpoint={asked} is no folder; give a checkpoint-N, or last"
            )
        return asked
    folder = Path(output_dir).absolute()
    # A kill while the finished policy took its place may have left them one folder aside.
    if not checkpoints(folder) and not checkpoints(folder.with_name(f".{folder.name}.old")):
        raise FileNotFoundError(
            f"resume_from_checkpoint=last, but {output_dir} holds no checkpoint-N; start without it"
        )
    return asked


def training_problems(data: DataConfig, seed: int) -> list[Problem]:
    """The problems to train on, with what was read and dropped printed."""
    shares = data.parsed_shares()
    if shares is not None:
        size = data.size or 20_000
        return sum_problems(
            shares,
            size=size,
            seed=seed + data.data_seed_offset,
            careful_share=data.careful_share,
        )
    problems = []
    for name in data.dataset.split(","):
        report = read_problems(name, data.split, data.data_root, data.size)
        dropped = ", ".join(f"{n} {reason}" for reason, n in report.dropped.items()) or "none"
        print(f"{name}/{data.split}: {report.rows_read:,} rows read, dropped: {dropped}")
        problems += report.problems
    return problems


def load_model(
    config: ModelConfig, *, value_head: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) of a checkpoint folder or of a model on the Hub."""
    try:
        # In float32, whatever is stored: a small step is lost on weights in bfloat16. bf16 autocast
        # gives the speed.
        return load_policy(
            config.model,
            value_head=value_head,
            dtype=torch.float32,
            revision=config.model_revision,
        )
    except FileNotFoundError:
        raise
    except OSError as error:
        # The Hub's own message fills a paragraph, and a mistyped path may look like a Hub name.
        raise ValueError(
            f"model={config.model} is no folder here, and the Hub gives no model of that name "
            f"({str(error).splitlines()[0]}); check the path"
        ) from error


def start_model(
    config: ModelConfig, problems: list[Problem], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) with the reasoning tokens in place; nano is made from the problems."""
    if config.model != "nano":
        model, tokenizer = load_model(config, value_head="optional")
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
        seed=seed,
    )
    return model, tokenizer


def describe(problems: list[Problem]) -> str:
    """One line: how many, from where, of which levels."""
    levels = Counter(problem.level for problem in problems)
    some = ", ".join(f"{level or 'no level'} {n:,}" for level, n in sorted(levels.items())[:12])
    return f"{len(problems):,} problems ({some})"


def save_end(trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the policy that a run ends with, with a value head where it has none yet.

    Every process calls it: the weights may be spread over them (FSDP, DeepSpeed). Adapters are
    merged.
    """
    accelerator = trainer.accelerator
    policy = accelerator.unwrap_model(trainer.model)
    if is_adapted(policy):
        if accelerator.is_main_process:
            export_policy(policy, tokenizer, folder)
        return
    spread = trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
    state_dict = accelerator.get_state_dict(spread)
    if accelerator.is_main_process:
        model = attach_value_head(accelerator.unwrap_model(trainer.model))
        save_policy(model, tokenizer, folder, state_dict)


def leave_together() -> None:
    """The end of a run of several processes: none is gone while another still talks to it, and none
    reaches the end of the interpreter with its connections open."""
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def print_end(made: str, folder: Path, figures: dict[str, Any], following: str) -> None:
    """The last lines of a stage: what was made, where, how good, and what to do next."""
    print(f"\n{made}: {folder}")
    for name, value in figures.items():
        print(f"  {name}: {value}")
    print(f"next: {following}")
