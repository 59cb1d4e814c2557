"""What the stages share: reading the command line, problems, the end of a run."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import TrlParser

from pipeline.config import DataConfig, ModelConfig
from pipeline.data import read_problems, sum_problems
from pipeline.model import add_reasoning_tokens, build_nano, load_policy, train_tokenizer
from pipeline.records import Problem


def parse(classes: Sequence[type], default_config: str) -> tuple:
    """The configurations from `--config FILE.yaml` and `--field value`; without arguments from
    `default_config`."""
    arguments = sys.argv[1:]
    if not arguments and Path(default_config).exists():
        print(f"no arguments: using --config {default_config}")
        arguments = ["--config", default_config]
    if "--config" in arguments:
        _check_config_file(arguments)
    return TrlParser(list(classes)).parse_args_and_config(arguments)


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


def start_model(
    config: ModelConfig, problems: list[Problem], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) with the reasoning tokens in place; nano is made from the problems."""
    if config.model != "nano":
        model, tokenizer = load_policy(
            config.model, value_head="optional", revision=config.model_revision
        )
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


def print_end(made: str, folder: Path, figures: dict[str, Any], following: str) -> None:
    """The last lines of a stage: what was made, where, how good, and what to do next."""
    print(f"\n{made}: {folder}")
    for name, value in figures.items():
        print(f"  {name}: {value}")
    print(f"next: {following}")


def _check_config_file(arguments: list[str]) -> None:
    path = Path(arguments[arguments.index("--config") + 1])
    if not path.is_file():
        raise FileNotFoundError(f"--config {path} does not exist; see the folder configs/")
