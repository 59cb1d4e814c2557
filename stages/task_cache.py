"""Commands that depend on each other, each run once: a finished one is not run again.

As in make, a task is up to date while its command, its configuration and the files it reads are
those it started with. The record of it is one JSON file in the folder of the run.
"""

import json
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.runtime import write_json


@dataclass(frozen=True)
class Task:
    """One command, the files it reads and the files it writes.

    >>> arguments = ("stages.sft", "--output_dir", "runs/a b")
    >>> Task(description="the base model", arguments=arguments).command
    "python -m stages.sft --output_dir 'runs/a b'"
    """

    description: str
    arguments: tuple[str, ...]  # after `python -m`
    outputs: tuple[Path, ...] = ()  # files that exist once it has finished; none: always runs
    inputs: tuple[Path, ...] = ()  # files it reads: those of other tasks, and the user's own
    config: Path | None = None  # a YAML file; comments in it do not count
    resumes: Path | None = None  # output folder of a command that can resume after an interruption

    @property
    def command(self) -> str:
        """The command as typed in a shell."""
        return f"python -m {shlex.join(self.arguments)}"

    @property
    def settings(self) -> dict[str, object]:
        """What decides the result, beside the input files."""
        config = yaml.safe_load(self.config.read_text()) if self.config else None
        return {"arguments": list(self.arguments), "config": config}


class TaskCache:
    """Record of tasks in a JSON file: {task: {settings, began, seconds, ended}}.

    `began` and `ended` are seconds since the epoch, like the modification time of a file; `ended`
    is there only after success.
    """

    def __init__(self, path: Path):
        self.path = path
        self.entries: dict[str, dict] = _read_entries(path)

    def entry(self, task: Task) -> dict:
        """The entry of a task; an empty one is added where it has none."""
        return self.entries.setdefault(self._name(task), {})

    def current(self, task: Task) -> bool:
        """Whether the settings and input files are those that the task started with."""
        entry = self.entry(task)
        same = entry.get("settings") == task.settings
        return same and all(_modified(path) <= entry["began"] for path in task.inputs)

    def finished(self, task: Task) -> bool:
        """Whether the task succeeded and its outputs have not been written since.

        A training that was stopped after its last step has written its result before it exited.
        """
        entry = self.entry(task)
        if task.config is not None and "began" in entry and "ended" not in entry:
            written = [_modified(path) for path in task.outputs]
            if written and all(entry["began"] <= at < float("inf") for at in written):
                self.update(task, ended=max(written))
        ended = entry.get("ended")
        if ended is None or not task.outputs:
            return False
        return self.current(task) and all(_modified(path) <= ended for path in task.outputs)

    def update(self, task: Task, **values: object) -> None:
        """Change the entry of a task and write the file."""
        self.entry(task).update(values)
        write_json(self.path, self.entries)

    def begin(self, task: Task) -> float:
        """Note that a task starts; returns the seconds that an interrupted run of it has taken.

        The entry starts anew, and the folder is emptied, unless the command can resume.
        """
        entry = self.entry(task)
        if task.resumes and self.current(task) and "ended" not in entry:
            return entry["seconds"]
        if task.resumes and entry:
            # The command refuses to resume under other settings. A folder without an entry is the
            # user's own and stays.
            shutil.rmtree(task.resumes, ignore_errors=True)
        self.entries[self._name(task)] = {}
        self.update(task, settings=task.settings, began=time.time(), seconds=0.0)
        return 0.0

    def _name(self, task: Task) -> str:
        """A file of a training, the folder of an evaluation, otherwise the module."""
        own = task.outputs if task.config or not task.resumes else (task.resumes,)
        return own[0].as_posix() if own else task.arguments[0]


def _read_entries(path: Path) -> dict[str, dict]:
    """Entries of the file, or of story.json, its old name, for one release."""
    if path.is_file():
        return json.loads(path.read_text())
    old = path.with_name("story.json")
    entries = json.loads(old.read_text()) if old.is_file() else {}
    return {
        name: {"settings" if key == "recipe" else key: value for key, value in entry.items()}
        for name, entry in entries.items()
    }


def _modified(path: Path) -> float:
    """Modification time of a file; infinity where it is missing."""
    return path.stat().st_mtime if path.is_file() else float("inf")
