"""What a training does with its output folder: start a run, resume one, or refuse.

An unfinished run with equal settings is resumed, so that the same command continues after Ctrl-C.
Everything else that the folder holds is kept: the training is refused unless it may overwrite.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from pipeline.energy import ENERGY_FILE
from pipeline.folder_lock import held_result
from pipeline.hosts import require_shared_folder, this_place
from pipeline.model.atomic import MANIFEST, OWNED, checkpoints
from pipeline.training.run_settings import deciding, differing, refusal

REMEDY = "give another --output_dir, or --overwrite_output_dir true to replace it"
_MADE = (
    "log.jsonl",
    "samples.jsonl",
    "run.json",
    "trainer_state.json",
    "README.md",
    "ema",
    "value_model",
    "adapter",
    "completions",  # of TRL, with log_completions
    ENERGY_FILE,
)
# Settings that change after the check of the folder, by `rewards` or by a stream of data; the
# trainer compares them.
_SET_BY_TRAINER = ("reward_weights", "accelerator_config")


def plan_output(args: TrainingArguments, *, model: str, overwrite: bool) -> str | None:
    """What to resume from: a folder, "last" for the newest checkpoint-N, or None for a new run.

    Reads no data and writes nothing. The trainer checks the files of the checkpoint later, and the
    settings that are not among `args`.

    Args:
        args: output_dir and resume_from_checkpoint are read
        model: the model that the run starts from, which must not be overwritten
        overwrite: whether the run in the folder may be replaced

    Raises:
        ValueError: the folder holds another run, or one that cannot be resumed.
        FileNotFoundError: resume_from_checkpoint names no checkpoint.
    """
    folder, asked = Path(args.output_dir).absolute(), args.resume_from_checkpoint
    if asked is not None and asked != "last" and not Path(asked).is_dir():
        raise FileNotFoundError(
            f"resume_from_checkpoint={asked} is no folder; give a checkpoint-N, or last"
        )
    # A kill while the final policy replaced the folder may have left the checkpoints in .NAME.old.
    saved = checkpoints(folder) or checkpoints(folder.with_name(f".{folder.name}.old"))
    if asked == "last" and not saved:
        raise FileNotFoundError(
            f"resume_from_checkpoint=last, but {args.output_dir} holds no checkpoint-N; start "
            "without it"
        )
    if asked == "last" or (asked is not None and Path(asked).absolute().parent == folder):
        return asked
    held = held_result(folder)
    if held is None and not saved and (folder / "config.json").is_file():
        held = "a model"
    if overwrite and (held or saved):
        if Path(model).exists() and _is_replaced(Path(model).resolve(), folder.resolve()):
            raise ValueError(
                f"output_dir={args.output_dir} holds the model that this run starts from ({model}),"
                " and it would be overwritten; give another --output_dir"
            )
        return asked
    if held is not None:
        raise ValueError(f"{args.output_dir} holds {held}; {REMEDY}")
    if not saved:
        return asked
    if asked is not None:
        raise ValueError(f"{args.output_dir} holds an unfinished run; {REMEDY}")
    _require_resumable(saved, args)
    return "last"


def _is_replaced(model: Path, folder: Path) -> bool:
    """Whether a model is the one in an output folder, or a part that a new run there replaces."""
    if not model.is_relative_to(folder):
        return False
    parts = model.relative_to(folder).parts
    return not parts or parts[0] in _MADE or parts[0].startswith("checkpoint-")


def require_no_model(output_dir: str | Path) -> None:
    """Raise ValueError where a folder holds a result, a model or checkpoints of a training.

    For commands that write a model and cannot replace another one on request.
    """
    folder = Path(output_dir)
    held = held_result(folder)
    if held is None and (folder / "config.json").is_file():
        held = "a model"
    if held is None and checkpoints(folder):
        held = "an unfinished run"
    if held is not None:
        raise ValueError(
            f"{output_dir} holds {held}; give another --output_dir, or delete that folder"
        )


def check_hosts(args: TrainingArguments) -> None:
    """Refuse an output folder that the hosts of a launch do not share; every process calls it.

    Raises:
        ValueError: a host does not see the folder of the first process; the processes of the
            launch are not connected; save_on_each_node.
        OSError, SystemExit: as `require_shared_folder`.
    """
    if args.save_on_each_node:
        raise ValueError(
            "save_on_each_node=true writes every file once for each host into the folder that they "
            "share; leave it out"
        )
    launched = this_place().world
    if launched > 1 and args.world_size == 1:
        raise ValueError(
            f"{launched} processes were launched, and each would train alone: accelerate connects "
            "them under FSDP and DeepSpeed on GPUs only; use accelerate_config.yaml on a CPU"
        )
    require_shared_folder(args.output_dir)


def clear_output(output_dir: str | Path) -> None:
    """Delete the run that an output folder holds: its checkpoints, its model and its logs."""
    folder = Path(output_dir)
    for path in checkpoints(folder):
        shutil.rmtree(path)
    owned = [path for pattern in OWNED for path in folder.glob(pattern)]
    for path in {*owned, *(folder / name for name in _MADE)}:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _require_resumable(saved: list[Path], args: TrainingArguments) -> None:
    """Raise ValueError where the newest checkpoint is of a run with other settings than `args`."""
    facts = next((facts for path in saved if (facts := _facts(path)) is not None), None)
    if facts is None or facts.get("save_only_model"):
        why = "no state to resume from" if facts else "no manifest of a saved run"
        raise ValueError(f"{args.output_dir} holds {saved[0].name}, which has {why}; {REMEDY}")
    then = facts.get("settings") or {}
    now = deciding(args, args.world_size, None, {})
    names = [name for name in differing(then, now)[0] if name not in _SET_BY_TRAINER]
    if names:
        raise ValueError(
            refusal(f"{args.output_dir}/{saved[0].name}", then, now, names)
            + ", or --overwrite_output_dir true to replace it"
        )


def _facts(checkpoint: Path) -> Mapping[str, Any] | None:
    """The facts of a manifest; None where it is missing or damaged."""
    try:
        facts = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["facts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts if isinstance(facts, dict) else None
