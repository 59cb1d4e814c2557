"""Checks that need no data: they come first, so that a mistake costs seconds and not a training."""

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from pipeline.chat.plain import has_reasoning_tokens
from pipeline.config import ModelConfig, StageConfig, require
from pipeline.energy import check_energy
from pipeline.model.resolve import resolve_checkpoint
from pipeline.model.trust import ADAPTER_CONFIG
from pipeline.model.weights import one_line_load_errors
from pipeline.training.output_folder import check_hosts, plan_output

# {field of the training arguments: the package that it needs}
PACKAGES = {
    "use_vllm": "vllm",
    "use_liger_kernel": "liger_kernel",
    "deepspeed": "deepspeed",
}
_NANO_BYTES = 64 << 20  # more than any nano needs


def check_start(
    model: ModelConfig,
    args: TrainingArguments,
    stage: StageConfig | None,
    *,
    model_follows: bool = False,
    training: str | None = None,
) -> str | None:
    """Check options, packages, output folder and model; return what to resume from.

    It is a folder, "last" or None, as `plan_output` describes. Nothing stays written, and no data
    is read. `model_follows` says that the model is made before it is needed; `training` names a
    training that starts from an SFT checkpoint. Raises ValueError or OSError with the first thing
    that would fail later.
    """
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_length"):
        value = getattr(args, name, None)
        require(value is None or value >= 1, f"{name}={value} must be at least 1")
    require(
        0 <= args.seed < 2**32, f"seed={args.seed} must lie between 0 and 2**32 - 1; give another"
    )
    check_packages(args)
    overwrite = stage is not None and stage.overwrite_output_dir
    if stage is not None:
        check_energy(stage.energy_country, stage.energy_intensity)
    if stage is None or not stage.dry_run:
        check_hosts(args)
    checkpoint = plan_output(args, model=model.model, overwrite=overwrite)
    needed = _NANO_BYTES if model_follows else check_model(model, training)
    check_writable(Path(args.output_dir), needed)
    if checkpoint == "last" and args.resume_from_checkpoint is None:
        print(
            f"{args.output_dir} holds an unfinished run, which is resumed; "
            "--overwrite_output_dir true starts again"
        )
    return checkpoint


def require_no_evaluation(args: TrainingArguments, command: str) -> None:
    """Raise ValueError for options that need an evaluation set, where the command has none."""
    asked = {
        "eval_strategy": IntervalStrategy(args.eval_strategy).value != "no",
        "eval_on_start": args.eval_on_start,
        "load_best_model_at_end": args.load_best_model_at_end,
        "save_strategy": SaveStrategy(args.save_strategy).value == "best",
    }
    for name, needs_evaluation in asked.items():
        value = getattr(args, name)
        require(
            not needs_evaluation,
            f"{name}={getattr(value, 'value', value)} needs an evaluation set, and {command} has "
            "none; leave it out, and evaluate with python -m eval.run",
        )


def check_packages(args: TrainingArguments) -> None:
    """Raise ValueError where an option needs a package that is not installed."""
    for name, package in PACKAGES.items():
        require(
            not getattr(args, name, None) or find_spec(package) is not None,
            f"{name}={getattr(args, name, None)} needs the package {package}, which is not "
            f"installed; run `pip install {package}`, or leave {name} out",
        )
    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    except (RuntimeError, ImportError, ValueError) as error:
        names = args.report_to if isinstance(args.report_to, str) else ",".join(args.report_to)
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"report_to={names} cannot be used: {reason}; or give --report_to none"
        ) from error


def check_model(config: ModelConfig, training: str | None = None) -> int:
    """Check that model and tokenizer are there; return the bytes of the weights in float32.

    Where `training` names a training that starts from an SFT checkpoint, the tokenizer must have
    the reasoning tokens. Adapters get them when they are loaded.
    """
    if config.model == "nano":
        return _NANO_BYTES
    folder = resolve_checkpoint(config.model, config.model_revision)
    with one_line_load_errors(folder, "the tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if training is not None and not (folder / ADAPTER_CONFIG).exists():
        require_reasoning_tokens(tokenizer, config.model, training, option="model")
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return stored * (2 if _has_16_bits(folder) else 1)


def require_reasoning_tokens(
    tokenizer: PreTrainedTokenizerBase, model: str, training: str, *, option: str
) -> None:
    """Raise ValueError where a model is no SFT checkpoint; `option` of the command names it."""
    require(
        has_reasoning_tokens(tokenizer),
        f"{model} has no reasoning tokens, and {training} starts from an SFT checkpoint: python -m "
        f"stages.sft --model {model} --dataset ... --output_dir DIR, then --{option} DIR",
    )


def check_writable(folder: Path, needed: int) -> None:
    """Raise OSError where `needed` bytes cannot be written into a folder, which may not exist."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"output_dir={folder}: {place} is a file; give another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(
            f"output_dir={folder}: {place} is not writable for this user; give another folder"
        )
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(
            f"output_dir={folder} has {free / 1e9:.2f} GB free, and the trained model needs "
            f"{needed / 1e9:.2f} GB; free space or give another folder"
        )


def _has_16_bits(folder: Path) -> bool:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return str(config.get("dtype") or config.get("torch_dtype")).endswith("16")
