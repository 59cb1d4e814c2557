"""Run tasks in order, or as many at once as a machine has room for.

With `jobs` of 2 or more, a task starts once the tasks whose files it reads have finished. The first
job runs trainings before evaluations and writes to the terminal; each of the others writes to a log
file. A small model uses one core better than two, so that two tasks of one thread each end sooner
than one after the other.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.module_process import exit_code, sigterm_raises, start_module, stop
from pipeline.progress import format_duration
from stages.task_cache import Task, TaskCache

POLL_SECONDS = 0.1
LOG_LINES = 15  # of a failed task that wrote to a file


@dataclass
class _Running:
    """A task in a process."""

    task: Task
    number: int
    process: subprocess.Popen
    log: Path | None
    seconds_before: float  # of an interrupted run that it continues
    start: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds so far, with those before an interruption."""
        return self.seconds_before + time.perf_counter() - self.start


class TaskRunner:
    """Runs tasks, `jobs` at a time; finished ones are not run again.

    Args:
        tasks: in order; a task comes after those whose files it reads
        cache: record of what has finished
        jobs: tasks at a time. With more than one, those that run together share the cores as their
            threads, unless OMP_NUM_THREADS is set.
        logs: folder of the log files
    """

    def __init__(self, tasks: Sequence[Task], cache: TaskCache, *, jobs: int, logs: Path) -> None:
        self.tasks, self.cache, self.jobs, self.logs = tasks, cache, jobs, logs
        self._waiting = list(enumerate(tasks, start=1))
        self._running: dict[int, _Running] = {}  # job -> task
        self._finished: set[int] = set()  # numbers of tasks

    def run(self) -> None:
        """Run every task that has not finished; a failure ends the program with its exit code.

        Other running tasks are then stopped, as after Ctrl-C: they save and can continue.
        """
        with sigterm_raises():
            try:
                while self._waiting or self._running:
                    started = self._start()
                    if not self._collect() and not started:
                        time.sleep(POLL_SECONDS)
            finally:
                stop(running.process for running in self._running.values())
                for running in self._running.values():  # an interrupted task's time counts too
                    self.cache.update(running.task, seconds=running.seconds)

    def _start(self) -> bool:
        """Start tasks in the free jobs; returns whether one was started."""
        chosen: dict[int, tuple[int, Task]] = {}
        for job in range(self.jobs):
            found = None if job in self._running else self._next(job)
            while found and self.cache.finished(found[1]):
                self._announce(*found)
                duration = self._duration(found[1])
                print(f"{self._mark(found[0])} finished before, in {duration}", flush=True)
                self._waiting.remove(found)
                self._finished.add(found[0])
                found = self._next(job)
            if found:
                self._waiting.remove(found)
                chosen[job] = found
        if not chosen:
            return False
        environment = self._environment(together=len(self._running) + len(chosen))
        for job, (number, task) in chosen.items():
            self._begin(job, number, task, environment)
        return True

    def _next(self, job: int) -> tuple[int, Task] | None:
        """The task that a free job runs next: with one job the first, else trainings first in the
        first job and last in the others."""
        ready = [(number, task) for number, task in self._waiting if self._is_ready(number, task)]
        if self.jobs > 1:
            ready.sort(key=lambda item: (item[1].config is None) == (job == 0))
        return ready[0] if ready else None

    def _is_ready(self, number: int, task: Task) -> bool:
        """Whether no unfinished task before it writes what it reads.

        A task without outputs reads what all tasks before it have written.
        """
        before = [
            other
            for n, other in enumerate(self.tasks[: number - 1], start=1)
            if n not in self._finished
        ]
        if not task.outputs:
            return not before
        return not any(set(task.inputs) & set(other.outputs) for other in before)

    def _announce(self, number: int, task: Task) -> None:
        print(f"\n{self._mark(number)} {task.description}\n$ {task.command}", flush=True)

    def _begin(self, job: int, number: int, task: Task, environment: dict[str, str]) -> None:
        self._announce(number, task)
        log = self.logs / f"{number:02}.log" if job else None
        if log:
            log.unlink(missing_ok=True)
            print(f"{self._mark(number)} runs beside the others; its output: {log}", flush=True)
        before = self.cache.begin(task)
        process = start_module(task.arguments, environment=environment, log=log)
        self._running[job] = _Running(task, number, process, log, before)

    def _collect(self) -> bool:
        """Record the tasks that have ended; returns whether there was one."""
        ended = [job for job, r in self._running.items() if r.process.poll() is not None]
        failed = []
        for job in ended:
            running = self._running.pop(job)
            self.cache.update(running.task, seconds=running.seconds)
            if code := running.process.poll():
                failed.append((running, code))
                continue
            self.cache.update(running.task, ended=time.time())
            self._finished.add(running.number)
            about = f": {running.task.description}" if self.jobs > 1 else ""
            duration = self._duration(running.task)
            print(f"{self._mark(running.number)} done in {duration}{about}", flush=True)
        for running, code in failed:
            self._fail(running, code)
        return bool(ended)

    def _fail(self, running: _Running, code: int) -> None:
        """Say which task failed, and raise SystemExit with its exit code."""
        if running.log:
            lines = running.log.read_text(encoding="utf-8", errors="replace").splitlines()
            print("\n".join(["", *lines[-LOG_LINES:]]), file=sys.stderr)
        print(
            f"error: the command of {self._mark(running.number)} ended with exit code {code}; run "
            "the same call again to continue from here, finished tasks are kept",
            file=sys.stderr,
        )
        raise SystemExit(exit_code(code))

    def _environment(self, together: int) -> dict[str, str]:
        """Variables of a task's process: its share of the cores, where there are several jobs."""
        if self.jobs == 1 or "OMP_NUM_THREADS" in os.environ:
            return {}
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        return {"OMP_NUM_THREADS": str(max(1, cores // together))}

    def _mark(self, number: int) -> str:
        return f"[{number}/{len(self.tasks)}]"

    def _duration(self, task: Task) -> str:
        return format_duration(self.cache.entry(task)["seconds"])
