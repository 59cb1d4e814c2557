"""Errors in one line, files that appear whole, and what a run tells of itself."""

import errno
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipeline.runtime import (
    _launcher_set_threads,
    error_message,
    one_line_errors,
    set_threads,
    write_json,
    write_run_info,
    write_text,
)


@one_line_errors
def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        ValueError("steps=0 must be at least 1"),
        FileNotFoundError("steps=0 must be at least 1"),
        OSError("steps=0\n  must be\n\nat least 1"),  # as the Hub words it, over several lines
    ],
)
def test_an_error_of_the_user_is_one_line_and_exit_code_two(capsys, error):
    with pytest.raises(SystemExit) as caught:
        fail(error)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.err == "error: steps=0 must be at least 1\n"
    assert output.out == ""


def test_an_internal_error_keeps_its_traceback():
    with pytest.raises(KeyError):
        fail(KeyError("question"))
    with pytest.raises(AssertionError):
        fail(AssertionError("never"))


def too_much(what: str) -> None:
    """Allocate more memory than there is, or raise as if."""
    if what == "of torch":
        torch.empty(1 << 50, dtype=torch.uint8)
    if what == "of Python":
        bytearray(1 << 50)
    if what == "of a GPU":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    if what == "in C++":
        raise RuntimeError("std::bad_alloc")


@pytest.mark.parametrize("what", ["of torch", "of Python", "of a GPU", "in C++"])
def test_out_of_memory_is_one_line_and_exit_code_two(capsys, what):
    with pytest.raises(SystemExit) as caught:
        one_line_errors(too_much)(what)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory") and "lower the batch size" in error
    assert error.count("\n") == 1


def test_another_error_of_torch_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        one_line_errors(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3))()


def test_an_interruption_exits_with_code_130(capsys):
    with pytest.raises(SystemExit) as caught:
        fail(KeyboardInterrupt())
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_environment_variable_keeps_the_traceback(monkeypatch):
    monkeypatch.setenv("THINKHEAD_TRACEBACK", "1")
    with pytest.raises(ValueError, match="steps"):
        fail(ValueError("steps"))


def test_the_decorator_keeps_return_value_and_name(capsys):
    @one_line_errors
    def answer(number: int, *, plus: int) -> int:
        """Adds."""
        return number + plus

    assert answer(40, plus=2) == 42
    assert (answer.__name__, answer.__doc__) == ("answer", "Adds.")


# ---- files ----


def test_write_json_creates_the_folder_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "runs" / "metrics.json"
    write_json(path, {"accuracy": 0.5, "folder": tmp_path})
    assert json.loads(path.read_text()) == {"accuracy": 0.5, "folder": str(tmp_path)}
    assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]


def test_an_undefined_figure_is_null_because_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"auroc": [float("nan"), 0.5], "n": {"share": float("nan")}})
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert found == {"auroc": [None, 0.5], "n": {"share": None}}


def test_a_file_that_cannot_be_written_is_named_and_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    write_text(path, "good")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder") as caught:
        write_text(tmp_path / "folder", "text")
    assert caught.value.filename == str(tmp_path / "folder")

    def full(self: Path, *args: object, **options: object) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_text(path, "new")
    assert path.read_bytes() == b"good"
    assert {p.name for p in tmp_path.iterdir()} == {"page.html", "folder"}
    assert error_message(caught.value) == (
        f"{path}: no space left on the disk; free space, then run the same command again"
    )


def test_write_json_replaces_the_file_atomically(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_json(path, {"n": 1})

    class Unwritable:
        def __str__(self) -> str:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"n": 2, "late": Unwritable()})
    assert json.loads(path.read_text()) == {"n": 1}

    def killed(self: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"n": 3})
    assert json.loads(path.read_text()) == {"n": 1}


@dataclass
class Config:
    steps: int = 3


class Masked:
    def to_dict(self) -> dict:
        return {"hub_token": "<HUB_TOKEN>"}


def test_run_info_has_versions_machine_and_configurations(tmp_path):
    write_run_info(tmp_path / "run", data=Config(), ppo=Masked(), seed=4)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert torch.__version__.startswith(info["versions"]["torch"])
    assert info["python"] == ".".join(map(str, sys.version_info[:3]))
    assert info["configs"] == {
        "data": {"steps": 3},
        "ppo": {"hub_token": "<HUB_TOKEN>"},
        "seed": 4,
    }


def test_threads_follow_the_argument_then_the_environment(monkeypatch):
    counts = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert set_threads(5) == 5
    assert set_threads() == 3
    assert counts == [5, 3]


@pytest.mark.parametrize(
    ("command", "environment", "by_launcher"),
    [
        ("accelerate\0launch\0stages/ppo.py", "HOME=/root", True),
        ("accelerate\0launch\0stages/ppo.py", "HOME=/root\0OMP_NUM_THREADS=1", False),
        ("accelerate\0launch\0--num_cpu_threads_per_process=1\0a.py", "HOME=/root", False),
        ("/bin/bash", "HOME=/root", False),
    ],
)
def test_the_thread_count_set_by_accelerate_is_not_taken_for_the_users(
    tmp_path, command, environment, by_launcher
):
    parent = tmp_path / str(os.getppid())
    parent.mkdir()
    (parent / "cmdline").write_text(command)
    (parent / "environ").write_text(environment)
    assert _launcher_set_threads(str(tmp_path)) is by_launcher
    assert _launcher_set_threads(str(tmp_path / "no proc here")) is False


def test_processes_share_the_cores_with_at_most_eight_threads_each(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(12)), raising=False)
    counts = []
    for processes in ("1", "2", "24"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        counts.append(set_threads())
    assert counts == [8, 6, 1]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_reused_unless_the_user_has_configured_malloc():
    code = """
import os, resource, torch
from pipeline.runtime import disable_malloc_trimming

def new_pages(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def print_new_pages():
    disable_malloc_trimming()
    print(new_pages(2**24), new_pages(2**24 - 2**14), flush=True)

if os.fork() == 0:
    os.environ["MALLOC_TRIM_THRESHOLD_"] = "131072"
    print_new_pages()
    os._exit(0)
os.wait()
print_new_pages()
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    environment |= {"THP_MEM_ALLOC_ENABLE": "0"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    configured, default = ([*map(int, line.split())] for line in found.stdout.splitlines())
    pages = 2**26 // resource.getpagesize()
    assert configured[0] > 0.9 * pages and default[0] > 0.9 * pages
    assert configured[1] > 0.1 * pages > default[1]
