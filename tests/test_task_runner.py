"""Tasks of a recipe, one at a time and several at once: order, threads, failures, signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import module_process
from pipeline.module_process import exit_code, run_module, start_module, stop
from stages import task_runner
from stages.task_cache import Task, TaskCache
from stages.task_runner import TaskRunner

ROOT = Path(__file__).parents[1]


class Process:
    """A process that ends when a test says so."""

    def __init__(self, task: str):
        self.task, self.stopped = task, False
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        if self.code is None:
            self.stopped = True
            self.code = 143

    def wait(self) -> int | None:
        return self.code

    def end(self, code: int = 0) -> None:
        self.code = code
        if code == 0:
            Path(self.task).touch()


class Machine:
    """Replaces start_module and the pause between two looks: the longest running process ends."""

    def __init__(self):
        self.running: list[Process] = []
        self.events: list[str] = []
        self.options: dict[str, dict] = {}
        self.codes: dict[str, int] = {}

    def start(self, arguments: tuple[str, ...], **options: object) -> Process:
        process = Process(arguments[0])
        self.running.append(process)
        self.events.append(f"+{process.task}")
        self.options[process.task] = options
        return process

    def pause(self, seconds: float) -> None:
        process = self.running.pop(0)
        self.events.append(f"-{process.task}")
        process.end(self.codes.get(process.task, 0))


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(task_runner.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(module_process, "GRACE_SECONDS", 0.0)
    Path("train.yaml").write_text("seed: 1\n")
    machine = Machine()
    monkeypatch.setattr(task_runner, "start_module", machine.start)
    monkeypatch.setattr(task_runner.time, "sleep", machine.pause)
    return machine


def _task(name: str, *inputs: str, trains: bool = False, outputs: bool = True) -> Task:
    return Task(
        description=f"about {name}",
        arguments=(name,),
        outputs=(Path(name),) if outputs else (),
        inputs=tuple(map(Path, inputs)),
        config=Path("train.yaml") if trains else None,
    )


def _tasks() -> list[Task]:
    return [
        _task("sft", trains=True),
        _task("eval_sft", "sft"),
        _task("ppo", "sft", trains=True),
        _task("eval_ppo", "ppo"),
        _task("eval_raw"),
        _task("report", outputs=False),
    ]


def _run(jobs: int) -> None:
    cache = TaskCache(Path("cache.json"))
    TaskRunner(_tasks(), cache, jobs=jobs, logs=Path("logs")).run()


def test_one_job_runs_the_tasks_in_their_order(machine):
    _run(jobs=1)
    names = [task.arguments[0] for task in _tasks()]
    assert machine.events == [sign + name for name in names for sign in "+-"]


def test_two_jobs_evaluate_beside_the_trainings(machine):
    _run(jobs=2)
    # What needs no training runs beside the first one; the report waits for all.
    assert machine.events == [
        *("+sft", "+eval_raw", "-sft", "+ppo", "-eval_raw", "+eval_sft", "-ppo", "+eval_ppo"),
        *("-eval_sft", "-eval_ppo", "+report", "-report"),
    ]


def test_the_first_job_writes_to_the_terminal_and_the_others_to_files(machine):
    _run(jobs=2)
    logs = {name: options["log"] for name, options in machine.options.items()}
    assert logs["sft"] is logs["ppo"] is logs["report"] is None
    assert (logs["eval_raw"], logs["eval_sft"]) == (Path("logs/05.log"), Path("logs/02.log"))


def test_tasks_that_run_together_share_the_cores(machine):
    _run(jobs=2)
    threads = {name: o["environment"]["OMP_NUM_THREADS"] for name, o in machine.options.items()}
    assert (threads["sft"], threads["eval_raw"], threads["report"]) == ("3", "3", "6")


@pytest.mark.parametrize(("jobs", "given"), [(1, None), (2, "4")])
def test_threads_are_left_alone_with_one_job_or_where_the_user_gave_them(
    machine, monkeypatch, jobs, given
):
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    _run(jobs=jobs)
    assert all(options["environment"] == {} for options in machine.options.values())


def test_a_second_call_with_other_jobs_runs_only_the_report(machine, capsys):
    _run(jobs=1)
    machine.events.clear()
    _run(jobs=2)
    assert machine.events == ["+report", "-report"]
    assert capsys.readouterr().out.count("finished before") == 5


def test_a_failure_beside_a_training_stops_it_and_shows_the_log(machine, capsys):
    machine.codes = {"eval_raw": 2}
    Path("logs").mkdir()
    started = machine.start

    def start(arguments: tuple[str, ...], **options: object) -> Process:
        process = started(arguments, **options)
        if options["log"]:
            options["log"].write_text("error: suites=nono is no suite\n")
            machine.running.insert(0, machine.running.pop())  # it ends first
        return process

    task_runner.start_module = start
    with pytest.raises(SystemExit) as failed:
        _run(jobs=2)
    assert failed.value.code == 2
    assert "error: suites=nono is no suite\n" in capsys.readouterr().err
    (training,) = machine.running
    assert training.task == "sft" and training.stopped
    task_runner.start_module = started
    machine.codes.clear()
    machine.running.clear()
    machine.events.clear()
    _run(jobs=2)
    assert machine.events[:2] == ["+sft", "+eval_raw"]


def test_the_time_of_an_interrupted_task_is_kept(machine, monkeypatch):
    def interrupt(seconds: float) -> None:
        # Not by a signal: in a background job of a shell, Python ignores SIGINT.
        raise KeyboardInterrupt

    monkeypatch.setattr(task_runner.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _run(jobs=2)
    assert all(process.stopped for process in machine.running)
    entries = TaskCache(Path("cache.json")).entries
    assert entries["sft"]["seconds"] > 0 and "ended" not in entries["sft"]


def test_sigterm_stops_the_tasks_and_ends_with_143(machine, monkeypatch):
    def terminate(seconds: float) -> None:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("SIGTERM was ignored")

    monkeypatch.setattr(task_runner.time, "sleep", terminate)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        _run(jobs=1)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert machine.running[0].stopped


SAVES = """
import pathlib, signal, sys, time
def save(signum, frame):
    time.sleep(0.3)
    pathlib.Path("saved").write_text(str(signum))
    sys.exit(128 + signum)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
time.sleep(60)
"""


@pytest.fixture
def saving_module(tmp_path, monkeypatch) -> Path:
    """The current folder, with a module `saves` that takes a while to end after SIGTERM."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saves.py").write_text(SAVES)
    return tmp_path


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.02)


def test_stopping_waits_until_the_command_has_saved(saving_module, monkeypatch):
    monkeypatch.setattr(module_process, "GRACE_SECONDS", 0.0)
    process = start_module(["saves"])
    _wait_for(Path("ready"))
    stop([process])
    assert process.returncode == 143
    assert Path("saved").read_text() == str(int(signal.SIGTERM))


def test_a_command_saves_before_the_caller_ends_after_sigterm(saving_module):
    caller = subprocess.Popen(
        [sys.executable, "-c", "from pipeline.module_process import run_module as r; r(['saves'])"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    _wait_for(Path("ready"))
    caller.terminate()
    assert caller.wait(30) == 143
    assert Path("saved").is_file()


def test_output_goes_to_the_log_and_exit_codes_are_those_of_a_shell(tmp_path):
    log = tmp_path / "logs" / "1.log"
    process = start_module(["platform", "terse"], environment={"PYTHONHASHSEED": "0"}, log=log)
    assert process.wait() == 0 and log.read_text().strip()
    assert run_module(["no_such_module"]) == exit_code(1) == 1
    assert exit_code(-signal.SIGKILL) == 137
