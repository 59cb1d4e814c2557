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
class Part:
    """One command, and the files by which it is known.

    >>> Part(about="the base model", arguments=("stages.sft", "--output_dir", "runs/a b")).command
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


class Diary:
    """What ran when: {part: {recipe, began, seconds, ended}}; `ended` comes with success.

    `began` and `ended` are seconds of the epoch, like the time of a file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.pages: dict[str, dict] = json.loads(path.read_text()) if path.is_file() else {}

    def page(self, part: Part) -> dict:
        return self.pages.setdefault(self._name(part), {})

    def current(self, part: Part) -> bool:
        """Whether what the part began with still holds."""
        page = self.page(part)
        known = page.get("recipe") == part.recipe
        return known and all(_time(path) <= page["began"] for path in part.needs)

    def finished(self, part: Part) -> bool:
        """Whether it ended well and nobody has written its files since."""
        ended = self.page(part).get("ended")
        if ended is None or not part.makes:
            return False
        return self.current(part) and all(_time(path) <= ended for path in part.makes)

    def write(self, part: Part, **entries: Any) -> None:
        self.page(part).update(entries)
        write_json(self.path, self.pages)

    def tear_out(self, part: Part) -> None:
        self.pages[self._name(part)] = {}

    def _name(self, part: Part) -> str:
        """The folder or the first file of its own, or the module it runs."""
        own = [path for path in (part.resumes, *part.makes) if path]
        return own[0].as_posix() if own else part.arguments[0]


def run_parts(parts: Sequence[Part], diary: Diary) -> None:
    """Run every part that is not finished; a failure ends the program with the part's exit code."""
    for number, part in enumerate(parts, start=1):
        mark = f"[{number}/{len(parts)}]"
        print(f"\n{mark} {part.about}\n$ {part.command}", flush=True)
        if diary.finished(part):
            print(f"{mark} finished before, in {spoken(diary.page(part)['seconds'])}")
            continue
        code = _run(part, diary)
        if code:
            print(
                f"error: the command of {mark} ended with exit code {code}; "
                "the same call goes on from here, what was finished before is kept",
                file=sys.stderr,
            )
            raise SystemExit(code if code > 0 else 128 - code)
        print(f"{mark} done in {spoken(diary.page(part)['seconds'])}", flush=True)


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


def _run(part: Part, diary: Diary) -> int:
    _begin(part, diary)
    start, before = time.perf_counter(), diary.page(part)["seconds"]
    try:
        code = run_module(part.arguments)
    finally:  # an interrupted part has cost its time as well
        diary.write(part, seconds=before + time.perf_counter() - start)
    if code == 0:
        diary.write(part, ended=time.time())
    return code


def _begin(part: Part, diary: Diary) -> None:
    """A new page, unless an interrupted command goes on."""
    if part.resumes and diary.current(part) and "ended" not in diary.page(part):
        return
    if part.resumes and diary.page(part):
        # It would refuse to go on with what other settings made. Only what the diary knows goes.
        shutil.rmtree(part.resumes, ignore_errors=True)
    diary.tear_out(part)
    diary.write(part, recipe=part.recipe, began=time.time(), seconds=0.0)


def _time(path: Path) -> float:
    """When a file was written; later than everything where it is missing."""
    return path.stat().st_mtime if path.is_file() else float("inf")
