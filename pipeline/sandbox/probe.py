"""Which levels of isolation hold on this machine: each is believed only after a hostile program has
been tried in it here."""

import functools
import os
import subprocess
import sys
import tempfile

from pipeline.sandbox._seccomp import MACHINES
from pipeline.sandbox.launch import LEVELS, Limits, SandboxError, bubblewrap_path, guarded
from pipeline.sandbox.outcome import collect

# Prints "held" where nothing of what it tries succeeds, and what a program needs does. Among the
# tries: a sysctl that names a program for the machine's root to run, a descriptor whose owner is
# another process, which is then sent a signal, and the memory of bubblewrap's own process.
PROGRAM = """
import collections, ctypes, decimal, fcntl, heapq, json, os, socket
CANARY, JUDGE, OWN = {canary!r}, {judge}, os.getpid()
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    if getattr(libc, name)(*args) == -1:
        raise OSError(ctypes.get_errno(), name)
def succeeds(act):
    try:
        act()
        return True
    except OSError:
        return False
pipe, _ = os.pipe()
word = ctypes.create_string_buffer(16)
tries = {{
    "reading a file": lambda: open(CANARY).read(),
    "writing a file": lambda: open(CANARY, "w"),
    "the environment of the judge": lambda: open(f"/proc/{{JUDGE}}/environ").read(),
    "a socket": socket.socket,
    "a process": os.fork,
    "another program": lambda: os.execv("/bin/true", ["true"]),
    "a signal": lambda: os.kill(JUDGE, 0),
    "a setting of the kernel": lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY),
    "a list of processes": lambda: os.listdir("/proc"),
    "a choice of signal": lambda: fcntl.fcntl(pipe, 10, 23),
    "signals of a descriptor": lambda: fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_ASYNC),
}}
for pid in (1, JUDGE, OWN):
    tries |= {{
        f"owner {{pid}} of a descriptor": lambda pid=pid: fcntl.fcntl(pipe, fcntl.F_SETOWN, pid),
        f"registers of {{pid}}": lambda pid=pid: open(f"/proc/{{pid}}/syscall").read(),
        f"memory of {{pid}}": lambda pid=pid: os.open(f"/proc/{{pid}}/mem", os.O_RDWR),
        f"tracing {{pid}}": lambda pid=pid: call("ptrace", 16, pid, 0, 0),
        f"writing to {{pid}}": lambda pid=pid: call("process_vm_writev", pid, word, 0, word, 0, 0),
    }}
got = [name for name, act in tries.items() if succeeds(act)]
print("allows " + ", ".join(got) if got else "held")
"""


def require_level(level: str | None = None) -> str:
    """The level asked for, or the strongest that works here; SandboxError without one."""
    working = working_levels()
    if level is None and working:
        return working[0]
    if level in working:
        return level
    tried = ", ".join(f"{name}: {why}" for name, why in probed().items() if why)
    asked = f"level={level!r} does not isolate here" if level else "nothing isolates programs here"
    raise SandboxError(
        f"{asked} ({tried or f'known are {LEVELS}'}), so model-written programs are not run; use "
        "Linux 5.13 or newer with Landlock, or install bubblewrap"
    )


def working_levels() -> tuple[str, ...]:
    """The levels that held a hostile program back on this machine, the strongest first."""
    return tuple(level for level, why in probed().items() if not why)


@functools.cache
def probed() -> dict[str, str]:
    """{level: why it does not hold here, "" where it does}."""
    return {level: why_not(level) for level in LEVELS}


def why_not(level: str) -> str:
    """What a hostile program got at this level, or what failed; "" where the level holds."""
    if not sys.platform.startswith("linux"):
        return f"not on {sys.platform}"
    if os.uname().machine not in MACHINES:
        return f"not on {os.uname().machine}"
    if level == "bubblewrap" and not bubblewrap_path():
        return "bwrap is not installed"
    with tempfile.NamedTemporaryFile() as canary:
        os.chmod(canary.name, 0o666)
        program = PROGRAM.format(canary=canary.name, judge=os.getpid())
        orders, limits = {"mode": "program", "program": program}, Limits(wall_seconds=60.0)
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        outcome = None
        try:
            with guarded(orders, limits, level, **pipes) as process:
                outcome = collect(process, b"", limits)
        except (OSError, SandboxError) as error:
            if outcome is None:
                return str(error)
    if outcome.stdout == "held\n":
        return ""
    return (outcome.stdout or outcome.stderr or outcome.ended).strip().splitlines()[-1]
