"""Functions that the stages share: configuration, output folder, models, final checkpoint."""

import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import IterableDataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from pipeline.cli import CommandParser
from pipeline.config import DataConfig, ModelConfig, StageConfig
from pipeline.config_files import packaged_config
from pipeline.device import DTYPES
from pipeline.energy import measured_energy
from pipeline.hub import HubPush
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
from pipeline.model.gguf import Source, source_of
from pipeline.model.loading import loading_options
from pipeline.model.unsharded import is_sharded
from pipeline.records import Problem
from pipeline.runtime import write_run_info
from pipeline.training.output_folder import clear_output
from pipeline.training.signals import SignalExit, SignalHandler
from pipeline.training.trainer_shell import TrainerShell


def parse(
    classes: Sequence[type],
    default_config: str,
    argv: Sequence[str] | None = None,
    *,
    presets: str | None = None,
    without_effect: Collection[str] = (),
    refused: Collection[str] = (),
) -> tuple:
    """The configurations from `--config FILE.yaml` and `--field value`, one for each class.

    Without arguments, or with --dry_run alone, they are those of `default_config`. It and the
    folder `presets`, for `--preset NAME`, are found in the package. `without_effect` are fields
    that the stage ignores, `refused` those that it refuses itself.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if default_config and (not arguments or (arguments[0] == "--dry_run" and len(arguments) <= 2)):
        config = str(packaged_config(default_config))
        print(f"no arguments: using --config {config}")
        arguments += ["--config", config]
    folder = packaged_config(presets) if presets else None
    parser = CommandParser(
        list(classes), presets=folder, without_effect=without_effect, refused=refused
    )
    return parser.parse_args_and_config(arguments)


def prepare_output(
    trainer: TrainerShell, checkpoint: str | None, stage: StageConfig | None
) -> None:
    """Delete the run that the output folder holds, where it is to be replaced, and set the remedy
    where a run that is resumed by itself has no intact checkpoint; all processes call it before the
    training. A dry run deletes nothing, and checks the checkpoint that would be resumed."""
    if checkpoint == "last" and trainer.args.resume_from_checkpoint is None:
        trainer.without_checkpoint = (
            "--overwrite_output_dir true starts again, as does deleting that folder"
        )
    folder = Path(trainer.args.output_dir).absolute()
    resumes = checkpoint == "last" or (
        checkpoint is not None and Path(checkpoint).absolute().parent == folder
    )
    if stage is not None and stage.dry_run:
        trainer.checked_checkpoint(checkpoint)
    if stage is None or stage.dry_run or not stage.overwrite_output_dir or resumes:
        return
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        clear_output(folder)
    trainer.accelerator.wait_for_everyone()


def energy_of(
    trainer: Trainer, stage: StageConfig | None, checkpoint: str | None
) -> AbstractContextManager[None]:
    """Context that measures the energy of the training where `energy_country` asks for it; the
    first process of a machine measures all of it, and the file is that of the first machine."""
    if stage is None or not trainer.accelerator.is_main_process:
        return nullcontext()
    return measured_energy(
        Path(trainer.args.output_dir),
        stage.energy_country,
        stage.energy_intensity,
        resumed=checkpoint is not None,
    )


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
        max_position_embeddings=config.nano_window,
        rope_theta=config.nano_rope_theta,
        seed=seed,
    )
    if config.attn_implementation is not None:
        model.set_attn_implementation(config.attn_implementation)
    return model, tokenizer


def fitting_length(model: PreTrainedModel, max_length: int | None = None) -> int | None:
    """Most tokens of an example: `max_length` or the model's context window, whichever is less."""
    window = getattr(model.config, "max_position_embeddings", None)
    return min((length for length in (window, max_length) if length is not None), default=None)


def training_length(args: TrainingArguments) -> str:
    """The length of a training as its arguments give it: "300 steps" or "2 epochs"."""
    return (
        f"{args.max_steps:,} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    )


def save_final_policy(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path, *, keep: bool = False
) -> None:
    """Write the trained policy, with a new value head if it has none; adapters are merged.

    All processes must call it, because the weights may be sharded over them (FSDP, DeepSpeed).

    Args:
        keep: merge adapters into a copy, so that the policy can be used afterwards.
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
                export_policy(model, tokenizer, folder, keep=keep)
        return
    sharded = trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model
    state_dict = accelerator.get_state_dict(sharded)
    if accelerator.is_main_process:
        model = attach_value_head(accelerator.unwrap_model(trainer.model))
        save_policy(model, tokenizer, folder, state_dict)


def finish_training(
    trainer: Trainer,
    made: str,
    figures: Mapping[str, object],
    following: str,
    *,
    start: float,
    **configs: object,
) -> None:
    """Write run.json and trainer_state.json beside the final policy and print the summary.

    All processes must call it; the main process writes and prints.

    Args:
        made: what the folder holds, such as "SFT checkpoint"
        figures: results to print; the minutes since `start` are added
        following: the next command; "": none is printed
        start: time.perf_counter() when the stage began
        configs: the configurations for run.json, by name
    """
    folder = Path(trainer.args.output_dir)
    if trainer.accelerator.is_main_process:
        begun_with = gguf_source(trainer.accelerator.unwrap_model(trainer.model))
        write_run_info(folder, **configs, **begun_with)
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        minutes = round((time.perf_counter() - start) / 60, 1)
        print_summary(made, folder, {**figures, "minutes": minutes}, following)
    trainer.accelerator.wait_for_everyone()


def gguf_source(model: nn.Module) -> dict[str, Source]:
    """{"gguf": where the weights come from} for run.json if the model was loaded from a GGUF file,
    else {}."""
    name = getattr(model, "name_or_path", "")
    source = source_of(Path(name)) if name else None
    return {} if source is None else {"gguf": source}


@contextmanager
def writing_result(folder: Path, push: HubPush | None) -> Iterator[None]:
    """Context in which the result of a training is written: SIGTERM and Ctrl-C raise SignalExit at
    its end, on all processes, so that a run without checkpoints is not lost after its last step.

    The result is not pushed then; the command that does so is printed.
    """
    with SignalHandler("exiting once the result is written") as handler:
        yield
    if signum := max(gather_object([handler.signum])):
        end_processes()
        if push is not None and push.is_main:
            print(f"push later: {push.publish_command(folder)}", flush=True)
        raise SignalExit(signum)


def end_processes() -> None:
    """Wait for all processes of a run and close their connections.

    Without it one may exit while another still communicates with it.
    """
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def print_summary(made: str, folder: Path, figures: Mapping[str, object], following: str) -> None:
    """Print what a stage has made, its folder, its figures, and the next command if any."""
    print(f"\n{made}: {folder}")
    for name, value in figures.items():
        print(f"  {name}: {value}")
    if following:
        print(f"next: {following}")
