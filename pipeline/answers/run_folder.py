"""A folder of answers: settings.json and records.jsonl.

records.jsonl grows by whole chunks of problems, so that a killed command can be resumed and ends
with the rows of an unbroken one. Evaluations add metrics.json and run.json.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipeline.folder_lock import differing_setting, require_free
from pipeline.progress import Progress, count_sequences
from pipeline.records import Problem
from pipeline.runtime import naming_damage, read_object, write_json
from pipeline.stats.intervals import accuracy

RowT = TypeVar("RowT", bound=Mapping[str, Any])
# Settings that folders of earlier versions lack: they are compared only where they are stored.
ADDED_SETTINGS = frozenset({"chat_template", "checks", "verifier"})


class RunFolder(Generic[RowT]):
    """The rows of one command on disk; `rows` has the finished ones, in the order of problems.

    Nothing is written before the first `append`. `holds` names the folder in messages. Raises
    ValueError if the folder has rows of other settings, or another result, or a file is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, object],
        *,
        chunk: int,
        total: int,
        holds: str = "an evaluation",
    ) -> None:
        self.path = Path(path)
        self.settings, self.chunk, self.holds = settings, chunk, holds
        self._require_same_settings()
        records = self.path / "records.jsonl"
        lines = _finished_lines(records, chunk=chunk, total=total)
        with naming_damage(records, "delete it, and everything is answered again"):
            self.rows: list[RowT] = [json.loads(line) for line in lines]
        self._finished_bytes = sum(len(line) + 1 for line in lines)

    def append(self, rows: Sequence[RowT]) -> None:
        """Write one more chunk of rows and flush it to disk."""
        records = self.path / "records.jsonl"
        if not self.rows:
            self.write_settings()
            records.touch()
        block = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        with open(records, "r+b") as file:
            file.truncate(self._finished_bytes)  # removes an unfinished chunk
            file.seek(self._finished_bytes)
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
        self._finished_bytes += len(block)
        self.rows += rows

    def write_settings(self) -> None:
        """Create the folder with settings.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / "settings.json", self.settings)

    def wait_for_settings(self, seconds: float) -> None:
        """Wait until another process has written settings.json, looking every so many seconds.

        Raises ValueError if its settings differ from these.
        """
        while not (self.path / "settings.json").is_file():
            time.sleep(seconds)
        self._require_same_settings()

    def replace(self, rows: Sequence[RowT]) -> None:
        """Write records.jsonl anew with all rows; it is complete or as before."""
        block = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        staged = self.path / "records.jsonl.tmp"
        with open(staged, "wb") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(self.path / "records.jsonl")
        self.rows, self._finished_bytes = list(rows), len(block)

    def complete(
        self,
        problems: Sequence[Problem],
        answer: Callable[[Sequence[Problem], int], list[RowT]],
        label: str,
    ) -> None:
        """Append the rows of all problems without one, with a progress bar.

        answer  answer(chunk of problems, index of its first problem) returns their rows
        """
        done, samples = len(self.rows), self.settings.get("n", 1)
        with Progress(len(problems), label, unit="q", initial=done) as progress:
            for start in range(done, len(problems), self.chunk):
                part = problems[start : start + self.chunk]
                count = _SequenceCount(progress, start, len(part), int(str(samples)))
                with count_sequences(count):
                    rows = answer(part, start)
                self.append(rows)
                graded = [bool(row["correct"]) for row in self.rows if "correct" in row]
                if graded:
                    progress.note(f"accuracy {accuracy(graded).mean:.3f}")
                progress.reach(start + len(part))

    def _require_same_settings(self) -> None:
        stored = self.path / "settings.json"
        if not stored.is_file():
            require_free(self.path, self.holds)
            return
        before = read_object(stored, "choose another --output_dir or delete that folder")
        held = "answers" if before.get("command") == "infer" else "an evaluation"
        if held != self.holds:
            raise ValueError(f"{self.path} holds {held}; give another --output_dir")
        # A changed system prompt changes the template too, and is the better reason: it is first.
        name = differing_setting(before, self.settings, added=ADDED_SETTINGS)
        if name is not None:
            raise ValueError(
                f"{self.path} has {self.holds} with {name}={before.get(name)}, this one has "
                f"{name}={self.settings.get(name)}: choose another --output_dir or delete that "
                "folder"
            )


class _SequenceCount:
    """Advances a bar by a question where all its samples are finished, up to the last but one."""

    def __init__(self, progress: Progress, start: int, questions: int, samples: int) -> None:
        self.progress, self.start = progress, start
        self.questions, self.samples = questions, samples
        self.finished = 0

    def __call__(self) -> None:
        self.finished += 1
        answered = min(self.finished // self.samples, self.questions - 1)
        self.progress.reach(self.start + answered)


def _finished_lines(path: Path, *, chunk: int, total: int) -> list[bytes]:
    """The lines of complete chunks.

    An incomplete chunk is answered again as a whole. Only the last chunk may be shorter.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # text after the last newline is unfinished
    return lines if len(lines) == total else lines[: len(lines) // chunk * chunk]
