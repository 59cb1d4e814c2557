"""Scoring of an answer to a puzzle by reasoning-gym; loaded by `worker_process.py`.

Scorers may compute for ever, and some evaluate what they are given, so the process gives up files
and system calls before it scores. Generating the puzzle again is not counted as processor time.
"""

import ctypes
import importlib.util
import json
import os
import signal
import site
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

MAX_CACHED = 64
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SANDBOX = Path(__file__).parents[1] / "sandbox"


def comparison(check: str, answer: str) -> Callable[[], bool]:
    """The call that says whether the scorer gives an answer the full score.

    `check` is the JSON of `Problem.check`: the task, its settings and the index of the puzzle.
    """
    puzzle = json.loads(check)
    dataset = _dataset(puzzle["task"], json.dumps(puzzle["settings"]))
    entry = dataset[puzzle["index"]]
    return lambda: dataset.score_answer(answer, entry) == 1.0


@cache
def prepare() -> ModuleType:
    """Import the package, which takes seconds, before the fork."""
    import reasoning_gym

    return reasoning_gym


@lru_cache(MAX_CACHED)
def _dataset(task: str, settings: str) -> Any:  # reasoning-gym has no types
    return prepare().create_dataset(task, **json.loads(settings))


def confine() -> None:
    """Give up writing, files outside the libraries, and most system calls, for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    privileges, landlock, seccomp = map(_sandbox_module, ("_privileges", "_landlock", "_seccomp"))
    packages = [*site.getsitepackages(), *map(os.path.dirname, prepare().__path__)]
    importable = [path for path in sys.path if os.path.isdir(path)]
    failed = (
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        or libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        or landlock.restrict(libc, [*privileges.library_folders(), *packages, *importable])
        or seccomp.confine(libc)
    )
    if failed:
        sys.stderr.write(f"puzzle worker: no isolation: {os.strerror(ctypes.get_errno())}\n")
        os._exit(97)


def _sandbox_module(name: str) -> ModuleType:
    # By its file: the package would import more than the process needs, and is not on its path.
    spec = importlib.util.spec_from_file_location(name, SANDBOX / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
