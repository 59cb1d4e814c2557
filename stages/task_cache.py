"""Commands that build on each other, run once each: what is finished is not run again.

A part is current while its command, its configuration and the files that it builds on are those it
began with, much as make decides. The diary of it is one JSON file in the folder of the run.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.runtime import write_json


@dataclass(frozen=True)
class Task:
    """One command, and the files by which it is known.

    >>> Task(about="the base model", arguments=("stages.sft", "--output_dir", "runs/a b")).command
    "python -m stages.sft --output_dir 'runs/a b'"
    """

    about: str
    arguments: tuple[str, ...]  # after `python -m`
    makes: tuple[Path, ...] = ()  # files that are there once it is finished; none: always runs
    needs: tuple[Path, ...] = ()  # files made by other parts
    config: Path | None = None  # a YAML file whose content counts
    resumes: Path | None = None  # folder of a command that goes on where it was interrupted

    @property
    def command(self) -> str:
        return f"python -m {shlex.join(self.arguments)}"

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the result, beside the files that are needed."""
        config = yaml.safe_load(self.config.read_text()) if self.config else None
        return {"arguments": list(self.arguments), "config": config}


class TaskCache:
    """What ran when: {part: {recipe, began, seconds, ended}}; `ended` comes with success.

    `began` and `ended` are seconds of the epoch, like the time of a file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.pages: dict[str, dict] = json.loads(path.read_text()) if path.is_file() else {}

    def page(self, task: Task) -> dict:
        return self.pages.setdefault(self._name(task), {})

    def current(self, task: Task) -> bool:
        """Whether what the part began with still holds."""
        page = self.page(task)
        known = page.get("recipe") == task.recipe
        return known and all(_time(path) <= page["began"] for path in task.needs)

    def finished(self, task: Task) -> bool:
        """Whether it ended well and nobody has written its files since."""
        ended = self.page(task).get("ended")
        if ended is None or not task.makes:
            return False
        return self.current(task) and all(_time(path) <= ended for path in task.makes)

    def write(self, task: Task, **entries: Any) -> None:
        self.page(task).update(entries)
        write_json(self.path, self.pages)

    def tear_out(self, task: Task) -> None:
        self.pages[self._name(task)] = {}

    def _name(self, task: Task) -> str:
        """The folder or the first file of its own, or the module it runs."""
        own = [path for path in (task.resumes, *task.makes) if path]
        return own[0].as_posix() if own else task.arguments[0]


def run_tasks(tasks: Sequence[Task], task_cache: TaskCache) -> None:
    """Run every part that is not finished; a failure ends the program with the part's exit code."""
    for number, task in enumerate(tasks, start=1):
        mark = f"[{number}/{len(tasks)}]"
        print(f"\n{mark} {task.about}\n$ {task.command}", flush=True)
        if task_cache.finished(task):
            print(f"{mark} finished before, in {spoken(task_cache.page(task)['seconds'])}")
            continue
        code = _run(task, task_cache)
        if code:
            print(
                f"error: the command of {mark} ended with exit code {code}; "
                "the same call goes on from here, what was finished before is kept",
                file=sys.stderr,
            )
            raise SystemExit(code if code > 0 else 128 - code)
        print(f"{mark} done in {spoken(task_cache.page(task)['seconds'])}", flush=True)


def run_module(arguments: Sequence[str]) -> int:
    """The exit code of `python -m` with these arguments, in a process of its own."""
    return subprocess.run([sys.executable, "-m", *arguments], check=False).returncode


def spoken(seconds: float) -> str:
    """
    >>> spoken(7.4), spoken(200.2)
    ('7 s', '3 min 20 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _run(task: Task, task_cache: TaskCache) -> int:
    _begin(task, task_cache)
    start, before = time.perf_counter(), task_cache.page(task)["seconds"]
    try:
        code = run_module(task.arguments)
    finally:  # an interrupted part has cost its time as well
        task_cache.write(task, seconds=before + time.perf_counter() - start)
    if code == 0:
        task_cache.write(task, ended=time.time())
    return code


def _begin(task: Task, task_cache: TaskCache) -> None:
    """A new page, unless an interrupted command goes on."""
    if task.resumes and task_cache.current(task) and "ended" not in task_cache.page(task):
        return
    if task.resumes and task_cache.page(task):
        # It would refuse to go on with what other settings made. Only what the diary knows goes.
        shutil.rmtree(task.resumes, ignore_errors=True)
    task_cache.tear_out(task)
    task_cache.write(task, recipe=task.recipe, began=time.time(), seconds=0.0)


def _time(path: Path) -> float:
    """When a file was written; later than everything where it is missing."""
    return path.stat().st_mtime if path.is_file() else float("inf")
