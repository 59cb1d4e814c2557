"""A process that judges hostile programs and tells what they did to it and to the machine.

    python judging.py      orders as JSON on stdin, what came of each program as JSON on stdout

Every process that a program leaves behind becomes a child of this one (PR_SET_CHILD_SUBREAPER), so
none can hide. `judged` starts one, as this user or as another.
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


def judged(programs: dict[str, str], level: str, user: int, seconds: float = 1) -> dict[str, dict]:
    """{name: {"stdout", "stderr", "ended", "changes"}} of programs judged by a process of `user`.

    Raises AssertionError where the judging process did not come to its end. Skips the test where
    the probe says, for that user, that the level does not hold on this machine.
    """
    orders = {"programs": programs, "level": level, "seconds": seconds}
    with _readable_by(user) as (python, folder):
        done = subprocess.run(
            [python, "-S", f"{folder}/tests/judging.py"],
            input=json.dumps(orders), capture_output=True, text=True, timeout=600, cwd="/",
            env={"PYTHONPATH": folder, "PATH": os.environ["PATH"], "SECRET_TOKEN": "s3cr3t"},
            start_new_session=True, **_as(user),
        )  # fmt: skip
    import pytest  # late: the copy of the interpreter for another user has none

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
    """(interpreter, folder of the project) that a user can read: copies, unless it is oneself."""
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

    orders = json.load(sys.stdin)
    try:
        require_level(orders["level"])
    except SandboxError as error:
        print(json.dumps(str(error)))
        return
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A slow start must not look like a program's own time; memory is not a matter of speed.
    limits = Limits(
        seconds=orders["seconds"], wall_seconds=30, memory_bytes=256 << 20, output_bytes=1 << 16
    )
    heard: list[int] = []
    for number in WATCHED:
        signal.signal(number, lambda number, frame: heard.append(number))
    found = {}
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        os.chmod(folder, 0o777)
        canary = Path(folder, "canary")
        canary.write_text("s3cr3t")
        canary.chmod(0o666)
        facts = {"canary": str(canary), "judge": os.getpid(), "port": server.getsockname()[1]}
        facts |= {"number": NUMBERS, "touched": f"{folder}/touched"}
        run_program("", limits=limits, level=orders["level"])  # what is opened once, is now
        for name, program in orders["programs"].items():
            before = _state(canary, server, heard)
            text = PRELUDE + program.format(**facts)
            outcome = run_program(text, limits=limits, level=orders["level"])
            after = _state(canary, server, heard)
            changes = [what for what, value in after.items() if value != before[what]]
            found[name] = vars(outcome) | {"changes": [f"{c}: {after[c]}" for c in changes]}
    print(json.dumps(found))


def _state(canary: Path, server: socket.socket, heard: list[int]) -> dict:
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
        "signals": list(heard),
        "connections": bool(select.select([server], [], [], 0)[0]),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "clock": round((time.time() - time.monotonic()) / 60),
        "left processes": _descendants(),
    }


def _descendants() -> list[str]:
    """Processes below this one, those that were left to it included; zombies are no more."""
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
