"""Measurement inside the process of an implementation: time, peak memory, profile, JSON reports.

Only the standard library is imported at the top, so that TRL 1.12.0's environment can run it and
libraries that an implementation does not use do not count in its peak memory.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

STOP = "stop"
Task = dict[str, Any]


class Iterations:
    """`begin()` waits until the runner starts an iteration, `end(...)` reports it."""

    def __init__(self) -> None:
        # What libraries print must not mix with the reports.
        self.report = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.mode = ""
        self.seconds: dict[str, float] = {}
        self.at_stop: Callable[[], None] | None = None  # called when the runner ends the process

    def begin(self) -> None:
        """Wait for the next iteration; exit the process when there is none."""
        self._send({"waiting": True})
        self.mode = sys.stdin.readline().strip()
        if self.mode == STOP and self.at_stop is not None:
            self.at_stop()
        if self.mode in ("", STOP):
            raise SystemExit(0)
        _reset_peak_memory()
        _synchronize()
        self.seconds = {}
        self.started = (time.perf_counter(), time.process_time())

    def end(self, **figures: object) -> None:
        """Report `figures`, the seconds since `begin` and the peak memory."""
        _synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        self._send(
            {
                "mode": self.mode,
                "wall_s": wall - self.started[0],
                "cpu_s": cpu - self.started[1],
                "peak_mib": peak_memory(),
                **{f"{name}_s": seconds for name, seconds in self.seconds.items()},
                **figures,
            }
        )
        if (gpu := _gpu()) is not None:
            gpu.empty_cache()  # the implementations share the GPU

    def timed(self, owner: object, name: str, label: str) -> None:
        """Wrap `owner.name` so that its seconds are reported as `label`: processor time, or elapsed
        time on a GPU."""
        inner = getattr(owner, name)

        def outer(*args: object, **kwargs: object) -> object:
            start = _seconds()
            try:
                return inner(*args, **kwargs)
            finally:
                spent = _seconds() - start
                self.seconds[label] = self.seconds.get(label, 0.0) + spent

        setattr(owner, name, outer)

    def _send(self, content: Mapping[str, object]) -> None:
        self.report.write(json.dumps(content) + "\n")
        self.report.flush()


class ProfiledIterations(Iterations):
    """Iterations that also report torch's profile.

    The profiler's own summary is not timed; its overhead in every operation is.
    """

    def begin(self) -> None:
        """Begin an iteration and the profile."""
        super().begin()
        import torch

        self.profiler = torch.profiler.profile()
        self.profiler.start()

    def end(self, **figures: object) -> None:
        """Report the iteration, without the time that the profile's summary takes."""
        before = time.perf_counter(), time.process_time()
        self.profiler.stop()
        events = self.profiler.key_averages()
        total = sum(event.self_cpu_time_total for event in events)
        shares = {event.key: event.self_cpu_time_total / total for event in events}
        most = sorted(shares, key=shares.__getitem__, reverse=True)[:12]
        busy = sum(event.self_device_time_total for event in events) / 1e6
        after = time.perf_counter(), time.process_time()
        wall, cpu = (s + b - a for s, a, b in zip(self.started, before, after, strict=True))
        self.started = wall, cpu
        super().end(**figures, gpu_busy_s=busy, operations={key: shares[key] for key in most})


def run_workload(workloads: Mapping[str, Callable[[Iterations, Task], None]]) -> None:
    """Run the workload that the command line names, on the task in the JSON file it names."""
    _, name, path = sys.argv
    task = json.loads(Path(path).read_text())
    workloads[name](ProfiledIterations() if task.get("profile") else Iterations(), task)


def read_prompts(task: Task) -> dict[str, list]:
    """The questions, token ids and expected answers that `shapes.make_model` wrote."""
    return json.loads((Path(task["model"]) / "prompts.json").read_text())


def save_at_stop(iterations: Iterations, task: Task, save: Callable[[str], None]) -> None:
    """Call `save` with the folder `task["save_to"]`, if it is set, when the process is stopped."""
    if "save_to" in task:
        iterations.at_stop = lambda: save(task["save_to"])


def update_callback(
    iterations: Iterations, steps: int, figures: Callable[[], Mapping[str, float]]
) -> "TrainerCallback":
    """A TrainerCallback that makes `steps` trainer steps one iteration and reports `figures()`."""
    from transformers import TrainerCallback

    class UpdateCallback(TrainerCallback):
        def on_train_begin(self, *args: object, **kwargs: object) -> None:
            iterations.begin()

        def on_step_end(
            self,
            args: "TrainingArguments",
            state: "TrainerState",
            control: "TrainerControl",
            **kwargs: object,
        ) -> None:
            if state.global_step % steps == 0:
                iterations.end(**figures())
                iterations.begin()

    return UpdateCallback()


def _gpu() -> ModuleType | None:
    """torch.cuda where this process uses a GPU, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _synchronize() -> None:
    if (gpu := _gpu()) is not None:
        gpu.synchronize()


def _seconds() -> float:
    if _gpu() is None:
        return time.process_time()
    _synchronize()
    return time.perf_counter()


def peak_memory() -> float:
    """Peak memory in MiB since `begin`: of torch's allocator on a GPU, else the resident memory of
    this process (without /proc: since the process started)."""
    if (gpu := _gpu()) is not None:
        return gpu.max_memory_allocated() / (1 << 20)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _reset_peak_memory() -> None:
    if (gpu := _gpu()) is not None:
        gpu.reset_peak_memory_stats()
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def reward_of(task: Task) -> Callable[[str, str], float]:
    """The reward of every implementation: a function of a completion and the expected answer."""
    return right if task["reward"] == "right" else lambda text, answer: digits(text)


def right(text: str, answer: str) -> float:
    """1.0 if the text after the thought is the expected answer and nothing else.

    >>> right("1+1=2</think>2", "2"), right("2", "2"), right("1+1=2</think>2 or 3", "2")
    (1.0, 0.0, 0.0)
    """
    _, closed, visible = text.partition("</think>")
    return float(bool(closed) and visible.strip() == answer)


def digits(text: str) -> float:
    """The share of digits in a completion.

    >>> digits("a1b2")
    0.5
    """
    return sum(map(str.isdigit, text)) / max(1, len(text))
