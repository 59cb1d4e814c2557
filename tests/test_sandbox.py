"""Hostile programs at every level of isolation that works here have no effect outside."""

import os
import sys
import time
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from pipeline.sandbox import (
    Limits,
    _seccomp,
    launch,
    probe,
    run_program,
    working_levels,
)
from pipeline.sandbox.run import start_confined
from tests import hostile
from tests.hostile_run import OTHER_USER, ROOT, run_hostile

# Wall-clock time for the slow start on a busy machine; memory and output do not depend on it.
GENEROUS = Limits(seconds=2, wall_seconds=60, memory_bytes=256 << 20, output_bytes=1 << 16)

LEVEL_NAMES = launch.LEVELS
LEVELS = [
    pytest.param(
        level,
        marks=pytest.mark.skipif(
            level not in working_levels(), reason=f"{level}: {probe.probed()[level]}"
        ),
    )
    for level in launch.LEVELS
]

OWN = os.getuid()
USERS = [
    pytest.param(OWN, id="root" if OWN == 0 else "self"),
    pytest.param(
        OTHER_USER,
        id="other",
        marks=pytest.mark.skipif(OWN != 0, reason="only root can become another user"),
    ),
]


def faults(found: dict[str, dict]) -> dict[str, dict]:
    """The programs that had an effect, got a secret, or failed for a reason of their own."""
    own = ("NameError", "SyntaxError", "TypeError", "AttributeError", "KeyError")
    return {
        name: outcome
        for name, outcome in found.items()
        if outcome["changes"]
        or "done" in outcome["stdout"]
        or "s3cr3t" in outcome["stdout"] + outcome["stderr"]
        or len(outcome["stdout"]) > GENEROUS.output_bytes + (1 << 16)
        or any(f"\n{error}: " in outcome["stderr"] for error in own)
    }


@pytest.mark.parametrize("level", LEVELS)
def test_no_hostile_program_of_a_sample_has_an_effect_outside(level):
    # Every fifth program of each group; the slow tests run all of them.
    sample = {
        name: text
        for group in hostile.GROUPS.values()
        for name, text in list(group.items())[LEVEL_NAMES.index(level) :: 5]
    }
    found = run_hostile(sample, level, OWN)
    assert len(found) == len(sample) >= 18 and faults(found) == {}


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("group", hostile.GROUPS)
def test_no_hostile_program_has_an_effect_outside(group, user, level):
    found = run_hostile(hostile.GROUPS[group], level, user)
    assert len(found) == len(hostile.GROUPS[group]) and faults(found) == {}


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("user", USERS)
def test_programs_that_take_all_their_time_are_ended(user, level):
    found = run_hostile(hostile.SLOW, level, user)
    assert faults(found) == {}
    assert {found[name]["ended"] for name in hostile.ENDLESS} == {"time"}
    assert found["a stop of itself"]["ended"] == "asleep"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("user", USERS)
def test_none_of_three_known_escapes_works(user, level):
    settings = [Path("/proc/sys/kernel", name) for name in ("core_pattern", "modprobe")]
    before = [path.read_text() for path in settings if path.exists()]
    try:
        assert faults(run_hostile(hostile.ESCAPES, level, user)) == {}
        assert [path.read_text() for path in settings if path.exists()] == before
    finally:
        for path, text in zip(settings, before, strict=False):
            if path.exists() and path.read_text() != text:
                path.write_text(text)


@pytest.mark.parametrize("level", LEVELS)
def test_every_system_call_that_is_not_listed_is_refused(level):
    column = _seccomp.MACHINES[os.uname().machine][0]
    some = (_seccomp.FCNTL, _seccomp.IOCTL, _seccomp.CLONE, _seccomp.TGKILL, _seccomp.PRLIMIT)
    listed = {numbers[column] for numbers in (*_seccomp.ALLOWED.values(), *some)}
    if column == 0:  # uretprobe, uprobe: no filter sees them, and the kernel ends who calls them
        listed |= {335, 336}
    program = hostile.PRELUDE + (
        f"for number in sorted(set(range(480)) - {listed}):\n    call(number, 0, 0, 0, 0, 0, 0)\n"
        "print('all')"
    )
    assert run_program(program, limits=GENEROUS, level=level).stdout == "all\n"


@pytest.mark.parametrize("level", LEVELS)
def test_every_process_of_a_program_is_confined_and_none_is_of_root(level):
    spec = {"mode": "program", "program": "print(1, flush=True); input()"}
    with start_confined(spec, GENEROUS, level, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout.readline() == b"1\n"
        family = _family(process.pid)
        confined = family if level == "landlock" else family[1:]  # bwrap itself waits outside
        assert len(family) == {"landlock": 1, "bubblewrap": 3}[level]
        for status in confined:
            assert status["Seccomp"] == "2" and status["NoNewPrivs"] == "1"
        program = family[-1]
        assert OWN != 0 or program["Uid"].split() == ["65534"] * 4
        assert int(program["CapPrm"], 16) & ~(1 << 2) == 0  # reading what Landlock leaves, at most
        assert program["CapPrm"] == "0" * 16 or level == "landlock"
    assert not any(_runs(status["Pid"]) for status in family)


def _family(pid: int) -> list[dict[str, str]]:
    """/proc/PID/status of a process, its child, and so on."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    statuses = [dict(line.split(":\t", 1) for line in lines if ":\t" in line)]
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == pid:
            statuses += _family(int(path.parent.name))
    return statuses


@pytest.mark.parametrize("level", LEVELS)
def test_no_program_outlives_the_process_that_started_it(level):
    code = (
        "import sys\nfrom subprocess import PIPE\nfrom pipeline.sandbox import Limits\n"
        "from pipeline.sandbox.run import start_confined\n"
        "spec = {'mode': 'program', 'program': 'print(1, flush=True)\\nwhile True: pass'}\n"
        f"with start_confined(spec, Limits(seconds=60), {level!r}, stdin=PIPE, stdout=PIPE) as p:\n"
        "    p.stdout.readline()\n    print(p.pid, flush=True)\n    input()\n"
    )
    parent = Popen([sys.executable, "-c", code], cwd=ROOT, stdin=PIPE, stdout=PIPE)
    with parent:
        family = _family(int(parent.stdout.readline()))
        parent.kill()
    end = time.monotonic() + 20
    while (left := [s["Pid"] for s in family if _runs(s["Pid"])]) and time.monotonic() < end:
        time.sleep(0.02)
    assert left == []


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("level", LEVELS)
def test_numpy_can_be_imported_and_no_other_installed_package(level):
    program = (
        "import numpy\nprint(numpy.arange(4.0).reshape(2, 2) @ numpy.ones(2))\n"
        "try: import packaging\nexcept ModuleNotFoundError: print('no')\n"
    )
    limits = Limits(seconds=20, wall_seconds=60)
    outcome = run_program(program, limits=limits, level=level)
    assert outcome.stdout == "[1. 5.]\nno\n", outcome.stderr


@pytest.mark.parametrize("level", LEVELS)
def test_a_program_that_does_not_use_numpy_does_not_load_it(level):
    program = "import sys\nprint({'numpy', 'importlib.util', 'json', 're'} & {*sys.modules})"
    assert run_program(program, limits=GENEROUS, level=level).stdout == "set()\n"


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
def test_an_ordinary_program_runs_unchanged(program, stdin, stdout, level):
    limits = Limits(seconds=10, wall_seconds=60)
    outcome = run_program(program, stdin, limits, level)
    assert (outcome.stdout, outcome.ended) == (stdout, "exit 0"), outcome.stderr


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "program",
    [
        "import time\ntime.sleep(600)",
        "import time\nwhile True: time.sleep(0.001)",
        "import threading as t\nt.Thread(target=t.Event().wait).start()",
        "import signal\nsignal.raise_signal(signal.SIGSTOP)",
        "import os, time\nos.close(1); os.close(2)\ntime.sleep(600)",
    ],
    ids=["sleep", "short sleeps", "a thread", "stopped", "output closed"],
)
def test_a_program_that_only_waits_is_stopped(program, level):
    begin = time.monotonic()
    outcome = run_program(program, limits=Limits(asleep_seconds=0.5), level=level)
    assert outcome.ended == "asleep" and time.monotonic() - begin < 60


@pytest.mark.parametrize("level", LEVELS)
def test_a_program_that_gets_no_processor_has_no_verdict_rather_than_a_failure(level):
    outcome = run_program(
        "import time\ntime.sleep(600)", limits=Limits(asleep_seconds=600, wall_seconds=0.5)
    )
    assert outcome.ended == "no verdict"


@pytest.mark.parametrize("level", LEVELS)
def test_a_program_may_sleep_less_than_its_limit(level):
    program = "import time\ntime.sleep(0.7)\nprint(7)"
    assert run_program(program, limits=Limits(asleep_seconds=5), level=level).stdout == "7\n"


@pytest.mark.parametrize("level", LEVELS)
def test_a_program_that_spins_is_stopped_by_the_processor_time(level):
    outcome = run_program(
        "while True: pass", limits=Limits(seconds=1, wall_seconds=60), level=level
    )
    assert outcome.ended == "time"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("call", "code"), [("exit()", 0), ("quit()", 0), ("exit(3)", 3), ("quit('why')", 1)]
)
def test_exit_and_quit_end_a_program_with_their_code(call, code, level):
    program = f"print(7)\n{call}\nprint(8)"
    outcome = run_program(program, limits=Limits(wall_seconds=60), level=level)
    assert (outcome.stdout, outcome.ended) == ("7\n", f"exit {code}"), outcome.stderr


@pytest.mark.parametrize("level", LEVELS)
def test_the_outcome_has_the_exit_code_or_the_signal(level):
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
