"""Samples of a teacher on disk: one line a question, written as soon as all its samples are there.

A killed run loses the questions in progress only; the next one asks for those that are left.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.distill.teacher import TeacherSample
from pipeline.folder_lock import differing_setting, require_free
from pipeline.runtime import naming_damage, read_object, write_json

SETTINGS, SAMPLES = "sampling.json", "samples.jsonl"
# Settings of the teacher, which is not loaded where no sample is missing, and settings that folders
# of earlier versions lack: compared only where both have them.
ADDED_SETTINGS = frozenset({"weights", "chat_template", "template"})


class SampleStore:
    """The finished questions of a folder: `samples` is {number of the question: its samples}.

    Nothing is written before the first `add`.

    Raises:
        ValueError: the folder holds samples with other settings, or another result, or a file is
            damaged.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, object]) -> None:
        self.folder, self._settings = Path(folder), dict(settings)
        self.samples: dict[int, list[TeacherSample]] = {}
        self._size = 0  # bytes of the whole lines
        self._check_settings()
        path = self.folder / SAMPLES
        lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
        for number, line in enumerate(lines, start=1):
            with naming_damage(path, f"delete its line {number}, and its question is asked again"):
                row = json.loads(line)
                self.samples[row["number"]] = [TeacherSample(**each) for each in row["samples"]]
            self._size += len(line) + 1

    def require_teacher(self, fingerprints: Mapping[str, object]) -> None:
        """Raise ValueError where the stored samples are of another teacher; store its fingerprints
        with the first sample."""
        self._settings |= fingerprints
        self._check_settings()

    def add(self, number: int, samples: Sequence[TeacherSample]) -> None:
        """Write the samples of one question and flush them to the disk."""
        path = self.folder / SAMPLES
        if not self.samples:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / SETTINGS, self._settings)
            path.touch()
        row = {"number": number, "samples": [asdict(each) for each in samples]}
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with path.open("r+b") as file:
            file.truncate(self._size)  # removes an unfinished line
            file.seek(self._size)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(line)
        self.samples[number] = list(samples)

    def _check_settings(self) -> None:
        stored = self.folder / SETTINGS
        if not stored.is_file():
            require_free(self.folder, "samples of a teacher")
            return
        before = read_object(stored, "choose another --output_dir or delete that folder")
        name = differing_setting(before, self._settings, added=ADDED_SETTINGS)
        if name is not None:
            raise ValueError(
                f"{self.folder} has samples with {name}={before.get(name)}, this run has "
                f"{name}={self._settings.get(name)}; choose another --output_dir or delete it"
            )
