"""Find the levels of isolation that work on this machine, by running a hostile program in each."""

import functools
import os
import subprocess
import sys
import tempfile

from pipeline.sandbox._seccomp import MACHINES
from pipeline.sandbox.launch import LEVELS, Limits, SandboxError, bubblewrap_path, confined_process
from pipeline.sandbox.outcome import collect

# Prints "isolated" where no attempt succeeds and what a program needs works. Among the attempts:
# a sysctl that names a program for the machine's root to run, a descriptor whose owner is
# another process, which is then sent a signal, and the memory of bubblewrap's own process.
PROGRAM = """
import collections, ctypes, decimal, fcntl, heapq, json, os, socket
CANARY, PARENT, OWN = {canary!r}, {parent}, os.getpid()
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
attempts = {{
    "reading a file": lambda: open(CANARY).read(),
    "writing a file": lambda: open(CANARY, "w"),
    "the environment of the parent": lambda: open(f"/proc/{{PARENT}}/environ").read(),
    "a socket": socket.socket,
    "a process": os.fork,
    "another program": lambda: os.execv("/bin/true", ["true"]),
    "a signal": lambda: os.kill(PARENT, 0),
    "a setting of the kernel": lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY),
    "a list of processes": lambda: os.listdir("/proc"),
    "a choice of signal": lambda: fcntl.fcntl(pipe, 10, 23),
    "signals of a descriptor": lambda: fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_ASYNC),
}}
for pid in (1, PARENT, OWN):
    attempts |= {{
        f"owner {{pid}} of a descriptor": lambda pid=pid: fcntl.fcntl(pipe, fcntl.F_SETOWN, pid),
        f"registers of {{pid}}": lambda pid=pid: open(f"/proc/{{pid}}/syscall").read(),
        f"memory of {{pid}}": lambda pid=pid: os.open(f"/proc/{{pid}}/mem", os.O_RDWR),
        f"tracing {{pid}}": lambda pid=pid: call("ptrace", 16, pid, 0, 0),
        f"writing to {{pid}}": lambda pid=pid: call("process_vm_writev", pid, word, 0, word, 0, 0),
    }}
allowed = [name for name, act in attempts.items() if succeeds(act)]
print("allows " + ", ".join(allowed) if allowed else "isolated")
"""


def require_level(level: str | None = None) -> str:
    """The requested level, or the strongest that works here; raises SandboxError without one."""
    working = working_levels()
    if level is None and working:
        return working[0]
    if level in working:
        return level
    reasons = ", ".join(f"{name}: {why}" for name, why in probed().items() if why)
    problem = f"level={level!r} does not isolate" if level else "nothing isolates programs"
    raise SandboxError(
        f"{problem} here ({reasons or f'known are {LEVELS}'}), so model-written programs are not "
        "run; use Linux 5.13 or newer with Landlock, or install bubblewrap"
    )


def working_levels() -> tuple[str, ...]:
    """The levels that isolate a hostile program on this machine, the strongest first."""
    return tuple(level for level, why in probed().items() if not why)


@functools.cache
def probed() -> dict[str, str]:
    """{level: why it does not work here, "" where it does}."""
    return {level: why_not(level) for level in LEVELS}


def why_not(level: str) -> str:
    """What a hostile program achieved at this level, or what failed; "" where it is isolated."""
    if not sys.platform.startswith("linux"):
        return f"not on {sys.platform}"
    if os.uname().machine not in MACHINES:
        return f"not on {os.uname().machine}"
    if level == "bubblewrap" and not bubblewrap_path():
        return "bwrap is not installed"
    with tempfile.NamedTemporaryFile() as canary:
        os.chmod(canary.name, 0o666)
        program = PROGRAM.format(canary=canary.name, parent=os.getpid())
        spec, limits = {"mode": "program", "program": program}, Limits(wall_seconds=60.0)
        outcome = None
        try:
            with confined_process(
                spec, limits, level, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            ) as process:
                outcome = collect(process, b"", limits)
        except (OSError, SandboxError) as error:
            if outcome is None:
                return str(error)
    if outcome.stdout == "isolated\n":
        return ""
    return (outcome.stdout or outcome.stderr or outcome.ended).strip().splitlines()[-1]
