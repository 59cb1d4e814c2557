"""The process in which reasoning-gym scores answers; started by `pipeline.grading.puzzles`.

Scorers may compute for ever, and some evaluate what they are given, so each child that answers has
given up files and system calls first, has a time limit, and is replaced when it ends.

    in    ["check as JSON", "answer", seconds]            one line of JSON
    out   equal | different | failed, seconds it took     "ready" once at the start
          timeout | lost (killed from outside)

All seconds are processor time of the scorer alone: making the puzzle anew is on no clock.
"""

import ctypes
import importlib.util
import json
import os
import resource
import signal
import site
import sys
import time
from pathlib import Path

MEMORY_BYTES = 2 << 30
MAX_CACHED = 64
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


def main(replies: int, locked: bool) -> None:
    """Answer until the input ends: fork a child, replace it whenever it ends early."""
    _package()  # before the fork: the import takes seconds
    _say(replies, "ready")
    while True:
        child = os.fork()
        if child == 0:
            _answer_until_the_end(replies, locked)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return
        ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        _say(replies, {signal.SIGPROF: "timeout", signal.SIGKILL: "lost"}.get(ended_by, "failed"))


def _answer_until_the_end(replies: int, locked: bool) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    if locked:
        _give_up_files_and_calls()
    datasets: dict[str, object] = {}
    for line in iter(_read_line, b""):
        check, answer, seconds = json.loads(line)
        begin, broken = time.process_time(), "lost"  # a puzzle that cannot be made blames no answer
        try:
            dataset, entry = _puzzle(json.loads(check), datasets)
            begin, broken = time.process_time(), "failed"
            signal.setitimer(signal.ITIMER_PROF, seconds)
            right = dataset.score_answer(answer, entry) == 1.0
            verdict = "equal" if right else "different"
        except Exception:  # hostile input: whatever it breaks, it is no answer
            verdict = broken
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(replies, f"{verdict} {time.process_time() - begin:.4f}")
    os._exit(0)


def _puzzle(check: dict, datasets: dict) -> tuple:
    """(data set of the package, the entry that a check names)."""
    key = json.dumps([check["task"], check["settings"]])
    if key not in datasets:
        if len(datasets) >= MAX_CACHED:
            datasets.clear()
        datasets[key] = _package().create_dataset(check["task"], **check["settings"])
    dataset = datasets[key]
    return dataset, dataset[check["index"]]


def _package():
    import reasoning_gym

    return reasoning_gym


def _importable() -> list[str]:
    return [path for path in sys.path if os.path.isdir(path)]


def _give_up_files_and_calls() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    lock = {name: _sibling(name) for name in ("_privileges", "_landlock", "_seccomp")}
    packages = [*site.getsitepackages(), *map(os.path.dirname, _package().__path__)]
    readable = [*lock["_privileges"].library_folders(), *packages, *_importable()]
    failed = (
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        or libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        or lock["_landlock"].restrict(libc, readable)
        or lock["_seccomp"].confine(libc)
    )
    if failed:
        sys.stderr.write(f"puzzle worker: no isolation: {os.strerror(ctypes.get_errno())}\n")
        os._exit(97)


def _sibling(name: str):
    spec = importlib.util.spec_from_file_location(
        name, Path(__file__).parents[1] / "sandbox" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _read_line() -> bytes:
    # Unbuffered: a child that is killed must not take a part of the next question with it.
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 4096)
        if not piece:
            return b""
        line += piece
    return line


def _say(replies: int, word: str) -> None:
    os.write(replies, f"{word}\n".encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), locked=sys.argv[2] == "locked")
