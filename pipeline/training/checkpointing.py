"""Checkpoints: which one a run resumes from, which are deleted, and the error of a failed write."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from safetensors import SafetensorError

from pipeline.model.atomic import (
    DamagedCheckpointError,
    check_manifest,
    checkpoints,
    newest_intact,
    restore,
)
from pipeline.training.run_settings import differing, refusal

# Where these differ, sums are taken in another order, and rounded otherwise.
DECISIVE = ("processes", "threads", "torch")

Resume = tuple[str | None, str | None, list[str]]


class RunFacts(TypedDict):
    """What the manifest of a checkpoint says about the run that wrote it."""

    step: int
    processes: int
    threads: int
    torch: str
    save_only_model: bool
    settings: dict[str, object]  # those of `run_settings.deciding`


def find_resume_checkpoint(
    asked: str | bool, output_dir: Path, now: RunFacts, remedy: str = "start without it"
) -> Resume:
    """Return (folder or None, why there is none or None, lines to print).

    Args:
        asked: a folder, or "last" or True for the newest checkpoint-N that is intact.
        now: the facts of this run, as AtomicCheckpoints writes them into a manifest; a checkpoint
            of a run with other settings is refused.
        remedy: what to do where no checkpoint-N is intact.
    """
    remarks: list[str] = []
    folder: Path | None = None
    if asked is True or asked == "last":
        folder, complaints = newest_intact(output_dir)
        # What follows the semicolon is the remedy, which is applied here.
        remarks = [f"skipped: {complaint.partition(';')[0]}" for complaint in complaints]
        if folder is None:
            reasons = f" ({'; '.join(remarks)})" if remarks else ""
            none = f"{output_dir} holds no checkpoint-N that is whole"
            return None, f"{none}; {remedy}{reasons}", []
    try:
        folder = folder or Path(str(asked))
        facts = check_manifest(folder)
    except DamagedCheckpointError as error:
        return None, str(error), []
    if facts.get("save_only_model"):
        return None, f"{folder} was saved with save_only_model; start a new run from it", []
    then, wanted = facts.get("settings"), now["settings"]
    if then is None:
        remarks.append(f"{folder} names no settings, so they are not compared with this run's")
        then = {}
    names, said = differing(then, wanted)
    if names:
        return None, refusal(str(folder), then, wanted, names), []
    return str(folder), None, [*remarks, *said, *_differences(facts, now)]


@contextmanager
def one_line_write_errors(folder: Path) -> Iterator[None]:
    """Raise OSError, in one line with what is left and the remedy, where writing `folder` fails.

    A full disk is an OSError in Python, a RuntimeError in torch.save and a SafetensorError.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        older = [path for path in checkpoints(folder.parent) if path != folder]
        left = f"{older[0].name} is as it was" if older else "there is no older one"
        reason = " ".join(str(error).split())
        raise OSError(
            f"{folder} could not be saved: {reason} ({_free(folder)} bytes are free there); "
            f"{left}; free space, then run the same command again"
        ) from error


def clear_leftovers(output_dir: Path, saving: str) -> None:
    """Delete what a kill left of a checkpoint that was being written, into the folder `saving`, or
    replaced."""
    restore(output_dir)
    for path in [output_dir / saving, *output_dir.glob(".checkpoint-*.old")]:
        shutil.rmtree(path, ignore_errors=True)


def delete_checkpoints(newest: Path, best: Path, *, limit: int | None) -> None:
    """Delete the checkpoints beside `newest` beyond `limit`: never the newest nor the best, first
    those with a later step, from a run that was resumed before them."""
    kept = {newest, best}
    others = [path for path in checkpoints(newest.parent) if path not in kept]
    step = checkpoint_step(newest)
    others.sort(key=lambda path: (checkpoint_step(path) < step, checkpoint_step(path)))
    if limit and limit > 0:
        for path in others[: max(0, len(others) + len(kept) - max(limit, len(kept)))]:
            shutil.rmtree(path, ignore_errors=True)


def checkpoint_step(folder: Path) -> int:
    """Return N of checkpoint-N."""
    return int(folder.name.rpartition("-")[2])


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder.parent).free:,}"
    except OSError:
        return "unknown"


def _differences(then: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    return [
        f"saved with {name}={then[name]}, resumed with {name}={now[name]}: "
        "the run goes on, but does not end bit for bit as the unbroken one"
        for name in DECISIVE
        if name in then and then[name] != now[name]
    ]
