"""Share the chunks of many questions among the processes of `accelerate launch`.

Chunk i belongs to process i modulo their number. Each process appends its chunks to a file of its
own, `records-R.part.jsonl`, one line a chunk:

    {"start": index of the chunk's first problem, "rows": [its records]}

The first process waits for all chunks, writes records.jsonl in the order of the problems, and
removes the part files. No answer depends on the process that gives it, so the records are those of
one process. A killed command continues with any number of processes. Processes on several
hosts need a folder that all of them see.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from pipeline.answers.run_folder import RowT, RunFolder
from pipeline.hosts import Place, require_shared_folder, this_place
from pipeline.progress import Progress
from pipeline.records import Problem
from pipeline.runtime import naming_damage

SECONDS_BETWEEN_LOOKS = 0.2  # at the files of the other processes


def check_hosts(folder: str | Path) -> None:
    """Refuse an output folder that the hosts of a launch do not share; every process calls it.

    The processes of several hosts connect for it (gloo), and disconnect again.

    Raises:
        ValueError: a host does not see the folder of the first process.
        OSError, SystemExit: as `require_shared_folder`.
    """
    if not this_place().several_hosts:
        return
    torch.distributed.init_process_group("gloo")
    try:
        require_shared_folder(folder)
    finally:
        torch.distributed.destroy_process_group()


def answer_all(
    folder: RunFolder[RowT],
    problems: Sequence[Problem],
    answer: Callable[[Sequence[Problem], int], list[RowT]],
    label: str,
    place: Place,
) -> None:
    """Append the rows of all problems without one, in this process or in all of a launch.

    Args:
        answer: answer(chunk of problems, index of its first problem) returns their rows.
    """
    stopped = any(folder.path.glob("records-*.part.jsonl"))  # several processes, before their end
    if place.world > 1 or stopped:
        _complete_shared(folder, problems, answer, label, place)
    else:
        folder.complete(problems, answer, label)


def _complete_shared(
    folder: RunFolder[RowT],
    problems: Sequence[Problem],
    answer: Callable[[Sequence[Problem], int], list[RowT]],
    label: str,
    place: Place,
) -> None:
    """Answer this process's chunks; the first process then waits for the others and merges."""
    if place.is_main:
        folder.write_settings()
    else:
        folder.wait_for_settings(SECONDS_BETWEEN_LOOKS)
    parts = _Parts(folder.path)
    starts = range(0, len(problems), folder.chunk)
    stored = {start: folder.rows[start : start + folder.chunk] for start in starts}
    missing = {start for start, rows in stored.items() if not rows}
    own = starts[place.rank :: place.world]
    with Progress(len(problems), label, unit="q", lines=place.is_main) as progress:

        def look() -> None:
            stored.update(parts.read())
            missing.difference_update(parts.found)
            done = len(problems) - sum(len(problems[s : s + folder.chunk]) for s in missing)
            if place.is_main:
                progress.reach(done)

        look()
        for start in own:
            if start in missing:
                rows = answer(problems[start : start + folder.chunk], start)
                parts.append(place.rank, start, rows)
                look()
        if not place.is_main:
            return
        while missing:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            look()
    folder.replace([row for start in starts for row in stored[start]])
    parts.remove()


class _Parts:
    """The part files of a folder; `found` has the starts of the chunks that were read."""

    def __init__(self, path: Path):
        self.path = path
        self.found: set[int] = set()
        self._read: dict[Path, int] = {}  # bytes of each file that were read

    def read(self) -> dict[int, list]:
        """The chunks that were added since the last call, by start; none of removed files."""
        new: dict[int, list] = {}
        for file in sorted(self.path.glob("records-*.part.jsonl")):
            try:
                with open(file, "rb") as lines:
                    lines.seek(self._read.get(file, 0))
                    whole, newline, _ = lines.read().rpartition(b"\n")
            except FileNotFoundError:  # the first process has all chunks, and removed the file
                continue
            self._read[file] = self._read.get(file, 0) + len(whole) + len(newline)
            for line in whole.splitlines():
                with naming_damage(file, "delete it, and its part is answered again"):
                    chunk = json.loads(line)
                    new[chunk["start"]] = chunk["rows"]
        self.found |= new.keys()
        return new

    def append(self, rank: int, start: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Write one chunk to this process's file, after what was read of it, and flush it."""
        file = self.path / f"records-{rank}.part.jsonl"
        line = json.dumps({"start": start, "rows": rows}, ensure_ascii=False) + "\n"
        with open(file, "ab") as part:
            part.truncate(self._read.get(file, 0))  # removes an unfinished line
            part.write(line.encode())
            part.flush()
            os.fsync(part.fileno())

    def remove(self) -> None:
        """Delete the part files."""
        for file in self.path.glob("records-*.part.jsonl"):
            file.unlink()
