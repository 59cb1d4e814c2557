"""A level of isolation is used only after a probe, and a later failure of it is no verdict."""

import functools
import importlib.util
import os
import re
import shutil
import sys

import pytest

from pipeline.grading.programs import grade_program
from pipeline.sandbox import SandboxError, launch, probe, require_level, run_program, working_levels
from tests.test_sandbox import GENEROUS, LEVELS

CALLS = {"kind": "calls", "function": "f", "inputs": [[1]], "outputs": [1]}


def test_without_isolation_nothing_is_run_and_the_remedy_is_named(monkeypatch):
    why = {"bubblewrap": "bwrap is not installed", "landlock": "Function not implemented"}
    monkeypatch.setattr(probe, "probed", lambda: why)
    with pytest.raises(SandboxError, match=r"bwrap is not installed.*are not run; use Linux"):
        run_program("print(1)")


def test_a_level_that_does_not_isolate_is_not_used(monkeypatch):
    # The same interpreter, not confined.
    text = probe.PROGRAM.format(canary="/etc/passwd", parent=1)
    monkeypatch.setattr(launch, "_interpreter", lambda *_: [sys.executable, "-I", "-c", text])
    assert probe.why_not("landlock") == "exit 0"  # it became /bin/true


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("right", "hole", "got"),
    [
        ("COMMANDS = (0,", "COMMANDS = (8, 0,", r"owner \d+ of a descriptor"),
        ("COMMANDS = (0,", "COMMANDS = (10, 0,", "a choice of signal"),
        ("COMMANDS = (0,", "COMMANDS = (4, 0,", "signals of a descriptor"),
        ('"exit": (60, 93)', '"socket": (41, 198), "exit": (60, 93)', "a socket"),
    ],
)
def test_the_probe_finds_a_hole_in_the_filter(
    right, hole, got, level, monkeypatch, tmp_path_factory
):
    _with_hole(monkeypatch, tmp_path_factory, {"_seccomp.py": (right, hole)})
    assert re.search(got, probe.why_not(level)), probe.why_not(level)


@pytest.mark.parametrize("level", LEVELS)
def test_the_probe_finds_that_files_can_be_opened(level, monkeypatch, tmp_path_factory):
    no_landlock = {"_landlock.py": ("    abi = version(libc)\n", "    return 0\n")}
    _with_hole(monkeypatch, tmp_path_factory, no_landlock)
    if level == "landlock":
        assert probe.why_not(level).startswith("allows reading a file, writing a file")
        return
    assert probe.why_not(level) == ""  # bubblewrap holds without Landlock
    plain = launch.bubblewrap()
    at = plain.index("--remount-ro")
    plain[at:at] = ["--proc", "/proc"]
    monkeypatch.setattr(launch, "bubblewrap", lambda: plain)
    assert "allows a list of processes" in probe.why_not(level)


def _with_hole(monkeypatch, tmp_path_factory, changes: dict[str, tuple[str, str]]) -> None:
    """Start confined processes and bubblewrap with the code and the filter of a changed copy."""
    copy = tmp_path_factory.mktemp("changed") / "sandbox"
    shutil.copytree(launch.FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (right, wrong) in changes.items():
        text = (copy / name).read_text()
        assert right in text
        (copy / name).write_text(text.replace(right, wrong))
    monkeypatch.setattr(launch, "FOLDER", str(copy))
    spec = importlib.util.spec_from_file_location("changed", copy / "_seccomp.py")
    changed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(changed)
    monkeypatch.setattr(launch._seccomp, "bounds", changed.bounds)


@pytest.fixture
def other_path(monkeypatch, tmp_path):
    """An empty folder as the whole PATH; earlier results of the probe are dropped."""
    monkeypatch.setenv("PATH", str(tmp_path))
    uncached = functools.cache(probe.probed.__wrapped__)
    monkeypatch.setattr(probe, "probed", uncached)
    launch.bubblewrap_path.cache_clear()
    yield tmp_path
    launch.bubblewrap_path.cache_clear()


@pytest.mark.skipif("bubblewrap" not in working_levels(), reason=probe.probed()["bubblewrap"])
def test_bwrap_is_started_from_where_it_was_found(request):
    installed = launch.bubblewrap_path()
    folder = request.getfixturevalue("other_path")
    (folder / "bwrap").symlink_to(installed)
    assert launch.bubblewrap_path() == str(folder / "bwrap")
    assert probe.why_not("bubblewrap") == ""
    assert run_program("import os\nos.abort()", level="bubblewrap").ended == "signal 6"


@pytest.mark.parametrize("text", ["not a program", "#!/nowhere/sh\n", "#!/bin/sh\nexit 3\n", None])
def test_without_a_bwrap_that_starts_the_other_level_is_used(text, other_path):
    if text is not None:
        (other_path / "bwrap").write_text(text)
        (other_path / "bwrap").chmod(0o755)
    assert probe.probed()["bubblewrap"] and "bubblewrap" not in working_levels()
    if "landlock" in working_levels():
        assert require_level() == "landlock" and run_program("print(1)").stdout == "1\n"


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_that_no_longer_starts_raises_and_gives_no_verdict(level, monkeypatch):
    descriptors = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(launch, "_python", lambda: "/nowhere/python")
    monkeypatch.setattr(launch, "bubblewrap_path", lambda: "/nowhere/bwrap")
    with pytest.raises(SandboxError, match="could not be started"):
        run_program("print(1)", level=level)
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("level", LEVELS)
def test_a_process_that_cannot_confine_itself_raises_and_gives_no_verdict(
    level, monkeypatch, tmp_path_factory
):
    broken = {"_landlock.py": ("    abi = version(libc)\n", "    return -1\n")}
    _with_hole(monkeypatch, tmp_path_factory, broken)
    with pytest.raises(SandboxError, match="ended with status 97 before the program began"):
        run_program("print(1)", limits=GENEROUS, level=level)
    with pytest.raises(SandboxError, match="before the program began"):
        grade_program("def f(x): return x", CALLS, GENEROUS, level)


def test_an_unknown_level_is_refused():
    with pytest.raises(SandboxError, match="level='docker' does not isolate here"):
        require_level("docker")
