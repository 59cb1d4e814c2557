"""What is known of a checkpoint: how it came about (run.json) and what it can do (metrics.json).

A run.json names the checkpoint its stage began with, whose run.json names the one before: the chain
from the base model to here. Of a path only its last part is listed, of settings those that shape the
model.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from inspect import get_annotations
from pathlib import Path
from typing import Any

from pipeline.hub.upload import checkpoint_files

STAGES = {"pretrain": "pretraining", "sft": "SFT", "ppo": "PPO"}
# Of the many arguments of transformers and TRL; those of our own configurations are listed beside.
COMMON_SETTINGS = {
    "bf16",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_length",
    "max_steps",
    "num_train_epochs",
    "optim",
    "per_device_train_batch_size",
    "seed",
    "warmup_steps",
    "weight_decay",
}
_LEFT_OUT = {"data_root", "disable_dropout", "gradient_checkpointing", "report_to", "save_every"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage on the way: what it began with, what it read, with which settings."""

    stage: str  # a key of STAGES
    model: str
    data: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that a card tells."""

    files: tuple[str, ...]
    steps: tuple[Step, ...] = ()  # earliest first
    base: str = ""  # model on the Hub it began with; "nano" made from scratch, "" unknown
    evaluations: tuple[dict[str, Any], ...] = ()  # contents of metrics.json
    versions: Mapping[str, str | None] | None = None
    git: str | None = None
    state: str = ""  # of a run that is still going on

    @property
    def stage(self) -> str:
        return self.steps[-1].stage if self.steps else ""


def read_facts(
    folder: Path,
    own_settings: Iterable[str] = (),
    *,
    run: dict[str, Any] | None = None,
    evaluations: Iterable[dict[str, Any]] = (),
    state: str = "",
) -> Facts:
    """The facts of a checkpoint folder; `run` where its run.json is not written yet."""
    run = run or _read_run(folder) or {}
    steps, base = _training_steps(run, frozenset(own_settings))
    return Facts(
        files=tuple(path.relative_to(folder).as_posix() for path in checkpoint_files(folder)),
        steps=tuple(steps),
        base=base or _adapters_base(folder),
        evaluations=tuple(evaluations),
        versions=run.get("versions"),
        git=run.get("git"),
        state=state,
    )


def read_evaluations(folder: Path, digest: str) -> tuple[list[dict[str, Any]], int]:
    """(contents of the metrics.json below a folder, how many were left out).

    An evaluation counts where its settings.json has the digest of these very weights: figures of
    another checkpoint, or of this one before it was trained further, are left out.
    """
    kept, left_out = [], 0
    for path in sorted(folder.rglob("metrics.json")):
        settings = path.with_name("settings.json")
        if settings.is_file() and _json(settings).get("weights") == digest:
            kept.append(_json(path))
        else:
            left_out += 1
    return kept, left_out


def default_evaluation_folder(checkpoint: Path) -> Path:
    """Where the evaluations of a checkpoint lie if nobody says: CHECKPOINT/eval, or as the story
    puts them, eval/NAME beside it."""
    inside = checkpoint / "eval"
    return inside if inside.is_dir() else checkpoint.parent / "eval" / checkpoint.name


def card_settings(*configs: type) -> set[str]:
    """Names of the fields that our own classes declare among what they inherit."""
    return {
        name
        for config in configs
        for cls in config.__mro__
        if cls.__module__.startswith("pipeline.") and is_dataclass(cls)
        for name in get_annotations(cls)
    }


def _training_steps(run: dict[str, Any], own: frozenset[str]) -> tuple[list[Step], str]:
    """(steps from the earliest to this one, the base model)."""
    steps: list[Step] = []
    while run:
        configs = run.get("configs", {})
        stage = next((name for name in STAGES if name in configs), None)
        if stage is None:
            break
        model = str(configs.get("model", {}).get("model", ""))
        steps.insert(0, _step(stage, model, configs, own))
        before = Path(model).expanduser()
        if model == "nano" or len(steps) > 10:
            return steps, model
        if not before.is_dir():
            # A path that is gone tells nothing to anybody else.
            on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", model)
            return steps, model if on_hub and not before.parent.is_dir() else ""
        run = _read_run(before) or {}
    return steps, ""


def _step(stage: str, model: str, configs: dict[str, Any], own: frozenset[str]) -> Step:
    listed = COMMON_SETTINGS | own
    data = {k: v for k, v in configs.get("data", {}).items() if k not in _LEFT_OUT}
    settings = {k: v for k, v in configs[stage].items() if k in listed and k not in _LEFT_OUT}
    settings |= configs.get("reward", {})
    if settings.get("max_steps", 0) > 0:
        settings.pop("num_train_epochs", None)  # the steps go before
    model_config = configs.get("model", {})
    if model_config.get("use_peft"):
        settings |= {k: v for k, v in model_config.items() if "lora" in k or k == "use_peft"}
    return Step(stage=stage, model=_last_part(model), data=_plain(data), settings=_plain(settings))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: _last_part(v) for k, v in values.items() if v is not None and v != ""}


def _last_part(value: Any) -> Any:
    """A path without the folders above it; everything else unchanged.

    >>> _last_part("/home/ann/runs/sft"), _last_part("user/name"), _last_part(3)
    ('sft', 'user/name', 3)
    """
    if not isinstance(value, str) or "/" not in value:
        return value
    if value.startswith(("/", ".", "~")) or value.count("/") > 1 or os.path.exists(value):
        return Path(value).name
    return value


def _adapters_base(folder: Path) -> str:
    path = folder / "adapter_config.json"
    if not path.is_file():
        return ""
    base = str(_json(path).get("base_model_name_or_path", ""))
    return "" if Path(base).exists() else base


def _read_run(folder: Path) -> dict[str, Any] | None:
    path = folder / "run.json"
    return _json(path) if path.is_file() else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); mend it or take it away") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__} where a JSON object belongs; mend it or take "
            "it away"
        )
    return content
