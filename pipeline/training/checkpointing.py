"""Which checkpoint a run resumes from, and the error where one cannot be written."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypedDict

from safetensors import SafetensorError

from pipeline.model.atomic import (
    DamagedCheckpointError,
    check_manifest,
    checkpoints,
    newest_intact,
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


class Controller(Protocol):
    """An object whose state is saved with every checkpoint, as plain JSON."""

    def state_dict(self) -> Mapping[str, object]:
        """The state as plain JSON."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Go on with the state of `state_dict`."""
        ...


def find_resume_checkpoint(asked: str | bool, output_dir: Path, now: RunFacts) -> Resume:
    """Return (folder or None, why there is none or None, lines to print).

    Args:
        asked: a folder, or "last" or True for the newest checkpoint-N that is intact.
        now: the facts of this run, as AtomicCheckpoints writes them into a manifest; a checkpoint
            of a run with other settings is refused.
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
            return None, f"{none}; start without it{reasons}", []
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
