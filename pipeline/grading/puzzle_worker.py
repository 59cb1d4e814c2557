"""The process in which reasoning-gym scores answers; started by `pipeline.grading.puzzles`.

Scorers may compute for ever, and some evaluate what they are given, so each child that answers has
given up files and system calls first, has a time limit, and is replaced when it ends.

    in    ["check as JSON", "answer", seconds]     one line of JSON
    out   equal | different | timeout | failed     one word a line; "ready" once at the start
"""

import ctypes
import importlib.util
import json
import os
import resource
import signal
import site
import sys
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
        timed_out = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
        _say(replies, "timeout" if timed_out else "failed")


def _answer_until_the_end(replies: int, locked: bool) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if locked:
        _give_up_files_and_calls()
    datasets: dict[str, object] = {}
    for line in iter(_read_line, b""):
        check, answer, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            verdict = "equal" if _is_right(json.loads(check), answer, datasets) else "different"
        except Exception:  # hostile input: whatever it breaks, it is no answer
            verdict = "failed"
        signal.setitimer(signal.ITIMER_REAL, 0)
        _say(replies, verdict)
    os._exit(0)


def _is_right(check: dict, answer: str, datasets: dict) -> bool:
    key = json.dumps([check["task"], check["settings"]])
    if key not in datasets:
        if len(datasets) >= MAX_CACHED:
            datasets.clear()
        datasets[key] = _package().create_dataset(check["task"], **check["settings"])
    dataset = datasets[key]
    return dataset.score_answer(answer, dataset[check["index"]]) == 1.0


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
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
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
