"""Which checkpoint a run resumes from, and what is said aloud about it."""

from pathlib import Path
from typing import Any

from pipeline.model.atomic import DamagedCheckpointError, check_manifest, newest_intact
from pipeline.training.run_settings import differing, refusal

# Where these differ, sums are taken in another order, and rounded otherwise.
DECISIVE = ("processes", "threads", "torch")


def find_resume_checkpoint(asked: str | bool, output_dir: Path, now: dict[str, Any]) -> list[Any]:
    """[folder or None, why there is none, what to say aloud], all strings.

    asked  a folder, or "last" or True for the newest checkpoint-N that is whole
    now    the facts of this run, as AtomicCheckpoints puts them into a manifest; a checkpoint of a run
           with other settings is refused
    """
    remarks: list[str] = []
    folder: Path | None = None
    if asked is True or asked == "last":
        folder, complaints = newest_intact(output_dir)
        # The remedy that comes after the semicolon is what is being done.
        remarks = [f"skipped: {complaint.partition(';')[0]}" for complaint in complaints]
        if folder is None:
            reasons = f" ({'; '.join(remarks)})" if remarks else ""
            none = f"{output_dir} holds no checkpoint-N that is whole"
            return [None, f"{none}; start without it{reasons}", []]
    try:
        folder = folder or Path(asked)
        facts = check_manifest(folder)
    except DamagedCheckpointError as error:
        return [None, str(error), []]
    if facts.get("save_only_model"):
        return [None, f"{folder} was saved with save_only_model; start a new run from it", []]
    then, wanted = facts.get("settings"), now.get("settings", {})
    if then is None:
        remarks.append(f"{folder} names no settings, so they are not compared with this run's")
        then = {}
    names, said = differing(then, wanted)
    if names:
        return [None, refusal(str(folder), then, wanted, names), []]
    return [str(folder), None, [*remarks, *said, *_differences(facts, now)]]


def _differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"saved with {name}={then[name]}, resumed with {name}={now[name]}: "
        "the run goes on, but does not end bit for bit as the unbroken one"
        for name in DECISIVE
        if name in then and then[name] != now[name]
    ]
