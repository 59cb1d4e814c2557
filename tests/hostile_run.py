"""Run hostile programs in the sandbox and record what they changed in this process and machine.

    python hostile_run.py      settings as JSON on stdin, outcomes and changes as JSON on stdout

Every process that a program leaves behind becomes a child of this one (PR_SET_CHILD_SUBREAPER) and
is found. `run_hostile` starts such a process, as this user or as another.
"""

import ctypes
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
PR_SET_CHILD_SUBREAPER = 36
IPC_KEY = str(0xD0E)
PLACES = (
    "/dev/shm/done",
    "/dev/mqueue/done",
    "/sys/fs/cgroup/done",
    "/tmp/l",
    "/tmp/x",
    "/tmp/big",
)
SETTINGS = ("kernel/core_pattern", "kernel/hostname", "kernel/domainname", "vm/overcommit_memory")
WATCHED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGTERM,
    signal.SIGIO, signal.SIGURG, signal.SIGCONT,
)  # fmt: skip
OTHER_USER = 65533


def run_hostile(
    programs: dict[str, str], level: str, user: int, seconds: float = 1
) -> dict[str, dict]:
    """{name: {"stdout", "stderr", "ended", "changes"}} of programs run by a process of `user`.

    Raises AssertionError where that process did not come to its end. Skips the test where the probe
    finds, for that user, that the level does not isolate on this machine.
    """
    settings = {"programs": programs, "level": level, "seconds": seconds}
    with _readable_by(user) as (python, folder):
        done = subprocess.run(
            [python, "-S", f"{folder}/tests/hostile_run.py"],
            input=json.dumps(settings), capture_output=True, text=True, timeout=600, cwd="/",
            env={"PYTHONPATH": folder, "PATH": os.environ["PATH"], "SECRET_TOKEN": "s3cr3t"},
            start_new_session=True, **_as(user),
        )  # fmt: skip
    import pytest  # here, since the copy of the interpreter for another user has no pytest

    assert done.returncode == 0, (done.returncode, done.stderr)
    found = json.loads(done.stdout)
    if isinstance(found, str):
        pytest.skip(found)
    return found


def _as(user: int) -> dict:
    if user == os.getuid():
        return {}
    return {"user": user, "group": user, "extra_groups": []}


@contextmanager
def _readable_by(user: int) -> Iterator[tuple[str, str]]:
    """(interpreter, folder of the project) that a user can read: copies for another user."""
    python = Path(sys.executable).resolve()
    if user == os.getuid():
        yield str(python), str(ROOT)
        return
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        for part in ("pipeline", "tests"):
            shutil.copytree(ROOT / part, f"{name}/{part}", ignore=_left_out)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        library = Path(os.__file__).parent
        shutil.copytree(library, f"{name}/python/lib/{version}", ignore=_left_out, symlinks=True)
        for shared in Path(sys.base_prefix, "lib").glob("libpython*"):
            shutil.copy(shared, f"{name}/python/lib")
        os.makedirs(f"{name}/python/bin")
        copy = shutil.copy(python, f"{name}/python/bin/{version}")
        subprocess.run(["chmod", "-R", "a+rX", name], check=True)
        yield copy, name


def _left_out(folder: str, names: list[str]) -> list[str]:
    big = ("site-packages", "dist-packages", "test", "idlelib", "ensurepip", "lib2to3", "tkinter")
    return [name for name in names if name in (*big, "fixtures") or name.startswith("config-")]


def main() -> None:
    from pipeline.sandbox import Limits, SandboxError, require_level, run_program
    from tests.hostile import NUMBERS, PRELUDE

    settings = json.load(sys.stdin)
    try:
        require_level(settings["level"])
    except SandboxError as error:
        print(json.dumps(str(error)))
        return
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Wall-clock time for a slow start; the processor time and memory are those of the program.
    limits = Limits(
        seconds=settings["seconds"], wall_seconds=30, memory_bytes=256 << 20, output_bytes=1 << 16
    )
    received: list[int] = []
    for number in WATCHED:
        signal.signal(number, lambda number, frame: received.append(number))
    found = {}
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        os.chmod(folder, 0o777)
        canary = Path(folder, "canary")
        canary.write_text("s3cr3t")
        canary.chmod(0o666)
        facts = {"canary": str(canary), "parent": os.getpid(), "port": server.getsockname()[1]}
        facts |= {"number": NUMBERS, "touched": f"{folder}/touched"}
        run_program("", limits=limits, level=settings["level"])  # opens what is opened only once
        for name, program in settings["programs"].items():
            before = _state(canary, server, received)
            text = PRELUDE + program.format(**facts)
            outcome = run_program(text, limits=limits, level=settings["level"])
            after = _state(canary, server, received)
            changes = [what for what, value in after.items() if value != before[what]]
            found[name] = vars(outcome) | {"changes": [f"{c}: {after[c]}" for c in changes]}
    print(json.dumps(found))


def _state(canary: Path, server: socket.socket, received: list[int]) -> dict:
    """What a program could have changed: all of it must be the same before and after."""
    pid = os.getpid()
    return {
        "files": [
            (
                p.name,
                p.read_bytes().hex(),
                p.lstat().st_mode,
                p.lstat().st_mtime_ns,
                p.lstat().st_uid,
            )
            for p in sorted(canary.parent.iterdir())
        ],
        "places": [place for place in PLACES if os.path.lexists(place)],
        "settings": [_read(f"/proc/sys/{name}") for name in SETTINGS],
        "mounts": _read("/proc/self/mountinfo"),
        "shared memory": [
            line
            for kind in ("shm", "sem", "msg")
            for line in _read(f"/proc/sysvipc/{kind}").splitlines()
            if line.split()[0] == IPC_KEY
        ],
        "keys": "done-key" in _read("/proc/keys"),
        "limits": [resource.getrlimit(what) for what in range(16)],
        "priority": os.getpriority(os.PRIO_PROCESS, pid),
        "processors": sorted(os.sched_getaffinity(pid)),
        "OOM score": _read("/proc/self/oom_score_adj"),
        "signals": list(received),
        "connections": bool(select.select([server], [], [], 0)[0]),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "clock": round((time.time() - time.monotonic()) / 60),
        "left processes": _descendants(),
    }


def _descendants() -> list[str]:
    """Command lines of the processes below this one, orphans included, zombies not."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
    below = {os.getpid()}
    for _ in range(4):
        below |= {pid for pid, parent in parents.items() if parent in below}
    return [_read(f"/proc/{pid}/cmdline") for pid in sorted(below - {os.getpid()})]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError as error:
        return type(error).__name__


if __name__ == "__main__":
    main()
