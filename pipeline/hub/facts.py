"""Read the facts of a model card: training stages (run.json, energy.json) and evaluations
(metrics.json).

A run.json names the checkpoint that its stage started from, which has a run.json of its own: the
chain leads back to the base model. Only the last part of a path is listed, and only settings that
have an effect on the model.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from inspect import get_annotations
from pathlib import Path
from typing import Any

from pipeline.energy import ENERGY_FILE, Energy
from pipeline.hub.upload import checkpoint_files
from pipeline.model import smol
from pipeline.model.gguf import Source, cache_folder, file_sha256, source_of

# {name in run.json: name on the card}. RFT comes before SFT, whose settings it has as well.
STAGES = {
    "pretrain": "pretraining",
    "rft": "RFT (rejection sampling fine-tuning)",
    "sft": "SFT",
    "ppo": "PPO",
    "verifier": "training of a verifier",
}
# Arguments of transformers and TRL to list, in addition to those of this project's configurations.
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
_TEXTS = {"system_prompt"}  # a slash in them makes no path
Run = Mapping[str, Any]  # the content of run.json
Evaluation = Mapping[str, Any]  # the content of metrics.json
_LEFT_OUT = {
    "data_root",
    "disable_dropout",
    "gradient_checkpointing",
    "output_dir",
    "report_to",
    "rollouts",
    "save_every",
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One training stage: the model it started from, its data and its settings."""

    stage: str  # a key of STAGES
    model: str
    data: dict[str, object]
    settings: dict[str, object]
    energy: Energy | None = None  # content of energy.json, if it was measured


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that a model card states."""

    files: tuple[str, ...]
    steps: tuple[Step, ...] = ()  # earliest first
    base: str = ""  # base model on the Hub; "nano" for training from scratch, "" if unknown
    license: str = ""  # of the base model, if known
    evaluations: tuple[Evaluation, ...] = ()  # contents of metrics.json
    versions: Mapping[str, str | None] | None = None
    git: str | None = None
    state: str = ""  # "after 10 of 100 steps" while training, else ""

    @property
    def stage(self) -> str:
        """The last training stage, a key of STAGES; "" if unknown."""
        return self.steps[-1].stage if self.steps else ""

    @property
    def dataset(self) -> str:
        """The data set of the last training stage; "nano" if unknown."""
        return str(self.steps[-1].data.get("dataset", "nano")) if self.steps else "nano"


def read_facts(
    folder: Path,
    own_settings: Iterable[str] = (),
    *,
    run: Run | None = None,
    evaluations: Iterable[Evaluation] = (),
    state: str = "",
) -> Facts:
    """The facts of a checkpoint folder.

    Args:
        own_settings: names of settings to list in addition to COMMON_SETTINGS.
        run: content of run.json, if it is not written yet.
        evaluations: contents of metrics.json files of these weights.
        state: of a run that is not finished, such as "after 10 of 100 steps".
    """
    run = run or read_run(folder) or {}
    state = state or str(run.get("state", ""))
    steps, base, license = _training_steps(run, frozenset(own_settings))
    return Facts(
        files=tuple(path.relative_to(folder).as_posix() for path in checkpoint_files(folder)),
        steps=tuple(steps),
        base=base or _adapters_base(folder),
        license=license,
        evaluations=tuple(evaluations),
        versions=run.get("versions"),
        git=run.get("git"),
        state=state,
    )


def read_evaluations(
    folder: Path, fingerprint: Callable[[str], str]
) -> tuple[list[Evaluation], int]:
    """(contents of the metrics.json files of eval.run below a folder, number of files left out).

    Those of eval.samples, which have no accuracy, are passed over. Files of other weights are left
    out: those whose settings.json has another fingerprint, because they are of another checkpoint
    or of this one before further training.

    Args:
        fingerprint: of the weights in a dtype such as "bfloat16"; for "" of the stored ones.
    """
    kept: list[Evaluation] = []
    left_out = 0
    for path in sorted(folder.rglob("metrics.json")):
        settings, metrics = path.with_name("settings.json"), _json(path)
        if "accuracy" not in metrics:
            continue
        weights = _json(settings).get("weights") if settings.is_file() else None
        dtype = str(metrics.get("dtype", ""))
        if weights is not None and weights in (fingerprint(""), fingerprint(dtype)):
            kept.append(metrics)
        else:
            left_out += 1
    return kept, left_out


def default_evaluation_folder(checkpoint: Path) -> Path:
    """CHECKPOINT/eval if it exists, else eval/NAME beside the checkpoint, as recipes do."""
    inside = checkpoint / "eval"
    return inside if inside.is_dir() else checkpoint.parent / "eval" / checkpoint.name


def card_settings(*configs: type) -> set[str]:
    """Names of the configuration fields that classes of this project declare.

    Fields inherited from transformers and TRL are not among them.
    """
    return {
        name
        for config in configs
        for cls in config.__mro__
        if cls.__module__.startswith("pipeline.") and is_dataclass(cls)
        for name in get_annotations(cls)
    }


def _training_steps(run: Run, own: frozenset[str]) -> tuple[list[Step], str, str]:
    """(steps from the earliest to this one, the base model, its licence), "" if not known."""
    steps: list[Step] = []
    while run:
        configs = run.get("configs", {})
        stage = next((name for name in STAGES if name in configs), None)
        if stage is None:
            break
        start = configs.get("model") or configs.get("source", {})  # of a verifier the policy
        model = str(start.get("model") or start.get("checkpoint", ""))
        steps.insert(0, _step(stage, model, configs, own, run.get("energy")))
        before = Path(model).expanduser()
        if model == "nano" or len(steps) > 10:
            return steps, model, ""
        if model == smol.SMOL and not before.exists():
            return steps, smol.REPO, smol.LICENSE
        source = _stored_source(configs)
        if source is None and model.endswith(".gguf"):
            source = _gguf_source(before)
            if source is None:
                return steps, "", ""
        if source is not None:
            return steps, source.base_model, source.license
        if not before.is_dir():
            # A local path is meaningless on other machines.
            on_hub = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", model)
            base = model if on_hub and not before.parent.is_dir() else ""
            return steps, base, smol.LICENSE if base == smol.REPO else ""
        run = read_run(before) or {}
    return steps, "", ""


def _stored_source(configs: Mapping[str, Mapping]) -> Source | None:
    """The source in run.json of a stage that started from a GGUF file; None if it has none."""
    stored = configs.get("gguf")
    return None if stored is None else Source(**{k: str(v) for k, v in stored.items()})


def _gguf_source(file: Path) -> Source | None:
    """The source of a GGUF file named by a run.json that does not say which content it had.

    Found by its content where the file is still there, else by its name if only one converted file
    has it.
    """
    if file.is_file():
        sha256 = file_sha256(file)
        found = [source for source in _converted() if source.sha256 == sha256]
    else:
        found = [source for source in _converted() if source.file == file.name]
    return found[0] if len(found) == 1 else None


def _converted() -> list[Source]:
    """The sources of all GGUF files that were converted on this machine."""
    found = [source_of(folder) for folder in sorted(cache_folder().glob("gguf-*"))]
    return [source for source in found if source is not None]


def _step(
    stage: str,
    model: str,
    configs: Mapping[str, Mapping],
    own: frozenset[str],
    energy: Energy | None,
) -> Step:
    listed = COMMON_SETTINGS | own
    data = {k: v for k, v in configs.get("data", {}).items() if k not in _LEFT_OUT}
    given = configs[stage] if stage != "rft" else {**configs.get("sft", {}), **configs["rft"]}
    settings = {k: v for k, v in given.items() if k in listed and k not in _LEFT_OUT}
    settings |= configs.get("reward", {})
    if settings.get("max_steps", 0) > 0:
        settings.pop("num_train_epochs", None)  # max_steps overrides it
    model_config = configs.get("model", {})
    if model_config.get("use_peft"):
        settings |= {k: v for k, v in model_config.items() if "lora" in k or k == "use_peft"}
    return Step(
        stage=stage,
        model=str(_last_part(model)),
        data=_plain(data),
        settings=_plain(settings),
        energy=energy,
    )


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    """The values that are given; of every path its last part."""
    given = {k: v for k, v in values.items() if v is not None and v != ""}
    return {k: v if k in _TEXTS else _last_parts(v) for k, v in given.items()}


def _last_parts(value: object) -> object:
    """The last part of a path; of a list of names and weights the last part of every name.

    >>> _last_parts("gsm8k=2,/home/ann/runs/rows.jsonl=1"), _last_parts("/home/ann/runs/sft")
    ('gsm8k=2,rows.jsonl=1', 'sft')
    """
    if not isinstance(value, str) or "," not in value:
        return _last_part(value)
    parts = [re.fullmatch(r"(.*?)(=[^=/]*)?", part.strip(), re.DOTALL) for part in value.split(",")]
    return ",".join(f"{_last_part(part[1])}{part[2] or ''}" for part in parts if part)


def _last_part(value: object) -> object:
    """The last part of a path; any other value unchanged.

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


def read_run(folder: Path) -> Run | None:
    """The content of run.json and energy.json; None without run.json.

    Adapters, averaged weights and checkpoints lie in a folder of the run that has made them. Of a
    checkpoint "state" says after how many steps it was saved.
    """
    path, energy = folder / "run.json", folder / ENERGY_FILE
    if path.is_file():
        return _json(path) | ({"energy": _json(energy)} if energy.is_file() else {})
    in_between = folder.name.startswith("checkpoint-")
    if not in_between and folder.name not in ("adapter", "ema"):
        return None
    run = read_run(folder.absolute().parent)
    return run and {**run, **(_state(folder) if in_between else {})}


def _state(checkpoint: Path) -> dict[str, str]:
    """{"state": "after 10 of 100 steps"} of a checkpoint that is not the last one, else {}."""
    path = checkpoint / "trainer_state.json"
    trainer = _json(path) if path.is_file() else {}
    step, steps = trainer.get("global_step", 0), trainer.get("max_steps", 0)
    return {"state": f"after {step:,} of {steps:,} steps"} if step < steps else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); correct or remove it") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} holds a {type(content).__name__} where a JSON object belongs; correct or "
            "remove it"
        )
    return content
