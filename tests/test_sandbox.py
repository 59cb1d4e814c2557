"""Hostile programs at every level of isolation that works here: none has an effect outside."""

import os
import socket
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pipeline.sandbox import Limits, SandboxError, require_level, run_program, working_levels
from pipeline.sandbox import run as run_module

# A busy machine makes every start slow; the limits on memory and output do not depend on it.
PATIENT = Limits(seconds=2, wall_seconds=60, memory_bytes=256 << 20, output_bytes=1 << 16)

LEVELS = [
    pytest.param(
        level,
        marks=pytest.mark.skipif(
            level not in working_levels(), reason=f"{level} does not isolate on this machine"
        ),
    )
    for level in run_module.LEVELS
]

# {canary}: a file with a secret that anybody may read and write; {parent}: the process that
# watches; {port}: a listening socket of the parent. Each tries to print "done", or to outlive its
# limits.
HOSTILE = {
    "read a secret": "print(open({canary!r}).read())",
    "write outside": "open({canary!r}, 'w').write('done'); print('done')",
    "append outside": "open({canary!r}, 'a').write('done'); print('done')",
    "truncate outside": "import os; os.truncate({canary!r}, 0); print('done')",
    "delete outside": "import os; os.unlink({canary!r}); print('done')",
    "rename outside": "import os; os.rename({canary!r}, {canary!r} + '2'); print('done')",
    "change its rights": "import os; os.chmod({canary!r}, 0); print('done')",
    "plant a symlink": "import os; os.symlink('/', {canary!r} + '3'); print('done')",
    "make a folder": "import os; os.mkdir({canary!r} + '4'); print('done')",
    "200 MB file": "open('/tmp/big', 'wb').write(bytes(200 << 20)); print('done')",
    "a file in shared memory": "open('/dev/shm/x', 'w').write('x'); print('done')",
    "list a home": "import os; os.listdir('/root'); os.listdir('/home'); print('done')",
    "its environment": "import os; print(os.environ['SECRET_TOKEN'])",
    "the parent's environment": "print(open('/proc/{parent}/environ').read())",
    "the parent's memory": "open('/proc/{parent}/mem', 'rb').read(1); print('done')",
    "signal the parent": "import os; os.kill({parent}, 0); print('done')",
    "kill everything": "import os; os.kill(-1, 9); print('done')",
    "trace the parent": "import ctypes; r = ctypes.CDLL(None).ptrace(16, {parent}, 0, 0)\n"
    "print('done' if r == 0 else r)",
    "connect": "import socket; socket.create_connection(('127.0.0.1', {port})); print('done')",
    "UDP": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', {port})); print('done')",
    "a local socket": "import socket; socket.socket(1, 1); print('done')",
    "forks": "import os\nfor _ in range(200): os.fork()\nprint('done')",
    "a daemon": "import os\nif os.fork() == 0:\n    os.setsid()\n    import time; time.sleep(60)\n"
    "print('done')",
    "a shell": "import os; print('done' if os.system('true') == 0 else '')",
    "another program": "import os; os.execv('/bin/echo', ['echo', 'done'])",
    "a new namespace": "import ctypes; r = ctypes.CDLL(None).unshare(0x10000000)\n"
    "print('done' if r == 0 else r)",
    "bpf": "import ctypes; r = ctypes.CDLL(None).syscall(321, 0, 0, 0)\n"
    "import os; print('done' if r >= 0 else r)",
    "io_uring": "import ctypes; r = ctypes.CDLL(None).syscall(425, 1, bytes(120))\n"
    "print('done' if r >= 0 else r)",
    "lift the limits": "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (9, 9)); print('done')",
    "inherited files": "import os\nfor fd in range(3, 64):\n"
    "    try: os.fstat(fd); print('done')\n    except OSError: pass",
    "500 threads": "import threading, time\nfor _ in range(500):\n"
    "    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\nprint('done')",
    "3 GB": "x = bytearray(3 << 30); print('done')",
    "recursion": "def f(): f()\nimport sys; sys.setrecursionlimit(10**9); f(); print('done')",
    "a crash": "import ctypes; ctypes.string_at(0); print('done')",
    "spin": "while True: pass",
    "ignore signals": "import signal\nfor s in range(1, 30):\n"
    "    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass",
    "flood": "while True: print('x' * 1000)",
    "flood stderr": "import sys\nwhile True: sys.stderr.write('x' * 1000)",
}


def test_there_are_enough_hostile_programs():
    assert len(HOSTILE) >= 31


@pytest.fixture(scope="module")
def outside():
    """A canary file, a listening socket and a token in the environment, watched from here."""
    folder = Path(tempfile.mkdtemp(prefix="canary"))
    folder.chmod(0o777)
    canary = folder / "canary"
    canary.write_text("s3cr3t")
    canary.chmod(0o666)
    os.environ["SECRET_TOKEN"] = "s3cr3t"
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {"canary": str(canary), "parent": os.getpid(), "port": server.getsockname()[1]}
    del os.environ["SECRET_TOKEN"]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_has_no_effect_outside(name, level, outside):
    folder = Path(outside["canary"]).parent
    outcome = run_program(HOSTILE[name].format(**outside), limits=PATIENT, level=level)
    assert "done" not in outcome.stdout and "s3cr3t" not in outcome.stdout + outcome.stderr
    assert [(p.name, p.read_text(), p.stat().st_mode & 0o777) for p in folder.iterdir()] == [
        ("canary", "s3cr3t", 0o666)
    ]
    assert not _processes_like(outside["canary"])
    assert len(outcome.stdout) <= PATIENT.output_bytes + (1 << 16)


def _processes_like(word: str) -> list[str]:
    """Guards of this test that are still alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
            line = (path.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and "_guard.py" in line and fields[0] != "Z":
            found.append(line)
    return found


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("program", "stdin", "stdout"),
    [
        ("print(int(input()) + 1)", "41\n", "42\n"),
        ("import sys\nprint(len(sys.stdin.read()))", "x" * 300_000, "300000\n"),
        ("import math, heapq, collections, decimal, fractions, re, json\nprint(7)", "", "7\n"),
        ("import threading as t\na = t.Thread(target=print, args=(7,))\na.start()", "", "7\n"),
        ("f = lambda n: n and 1 + f(n - 1)\nprint(f(8000))", "", "8000\n"),
        ("print('\N{GREEK SMALL LETTER PI}')", "", "\N{GREEK SMALL LETTER PI}\n"),
    ],
)
def test_an_honest_program_has_what_it_needs(program, stdin, stdout, level):
    limits = Limits(seconds=10, wall_seconds=60)
    outcome = run_program(program, stdin, limits, level)
    assert (outcome.stdout, outcome.ended) == (stdout, "exit 0"), outcome.stderr


def test_a_program_that_only_waits_is_stopped_by_the_clock():
    begin = time.monotonic()
    outcome = run_program("import time\ntime.sleep(60)", limits=Limits(wall_seconds=0.5))
    assert outcome.ended == "time" and time.monotonic() - begin < 20


@pytest.mark.parametrize("level", LEVELS)
def test_a_program_that_spins_is_stopped_by_the_processor_time(level):
    outcome = run_program(
        "while True: pass", limits=Limits(seconds=1, wall_seconds=60), level=level
    )
    assert outcome.ended == "time"


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_program_ends_with_is_told(level):
    def outcome(program: str):
        return run_program(program, limits=Limits(wall_seconds=60), level=level)

    assert outcome("raise ValueError('why')").ended == "exit 1"
    assert "ValueError: why" in outcome("raise ValueError('why')").stderr
    assert outcome("import os\nos.abort()").ended == "signal 6"
    assert outcome("raise SystemExit(200)").ended == "exit 200"
    assert outcome("\ud800 = 1").ended == "exit 1"


def test_no_descriptor_is_left_open():
    limits = Limits(wall_seconds=60)
    run_program("print(1)", limits=limits)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run_program("print(1)", limits=limits)
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_isolation_nothing_is_run_and_the_remedy_is_named(monkeypatch):
    why = {"bubblewrap": "bwrap is not installed", "landlock": "Function not implemented"}
    monkeypatch.setattr(run_module, "_probed", lambda: why)
    with pytest.raises(SandboxError, match=r"bwrap is not installed.*are not run; use Linux"):
        run_program("print(1)")


def test_a_level_that_lets_something_through_is_not_believed(monkeypatch):
    # A wrapper that isolates nothing: the same interpreter, without the guard.
    plain = [sys.executable, "-I", "-c", run_module._PROBE.format(canary="/etc/passwd", parent=1)]
    monkeypatch.setitem(run_module._WRAP, "landlock", lambda: [*plain, "--"])
    assert run_module._why_not("landlock") == "exit 0"  # it became /bin/true


def test_an_unknown_level_is_refused():
    with pytest.raises(SandboxError, match="level='docker' does not isolate here"):
        require_level("docker")
