"""Run implementations in processes of their own, in turns, and summarise their reports.

Iterations alternate, so that changes of the machine's speed affect all implementations.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.bench.measure import STOP, Task
from eval.tables import markdown_table

ROOT = Path(__file__).parents[2]
Report = dict[str, Any]  # of an iteration, or figures of several, by name
Reports = dict[str, list[Report]]  # implementation -> what it reported of each iteration
RATES = ("samples_per_wall_s", "samples_per_cpu_s", "tokens_per_cpu_s", "tokens_per_wall_s")


@dataclass
class Implementation:
    """A workload of a script in this folder, its interpreter, and the modes it alternates between.

    name  its name in tables and of `--only`
    """

    name: str
    script: str
    workload: str
    task: Task
    python: str = sys.executable
    modes: dict[str, str] = field(default_factory=lambda: {"": "run"})  # suffix of the name -> mode

    def start(self, folder: Path, threads: int, device: str) -> None:
        """Start the process; the task and the log of stderr are written to `folder`."""
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(self.task))
        self.log = path.with_suffix(".log").open("w")
        self.process = subprocess.Popen(
            [self.python, str(Path(__file__).parent / self.script), self.workload, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=ROOT,
            env=_environment(threads, device),
        )

    def iterate(self, mode: str) -> Report:
        """The report of one iteration."""
        self._read()  # the message that it is waiting
        assert self.process.stdin is not None
        self.process.stdin.write(mode + "\n")
        self.process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        """End the process, if it runs, and close the log."""
        if self.process.poll() is None:
            self.process.communicate(STOP + "\n")
        self.log.close()

    def _read(self) -> Report:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.flush()
            end = Path(self.log.name).read_text().strip().splitlines()[-1:] or ["no message"]
            kept = Path(tempfile.mkdtemp(prefix="bench-")) / Path(self.log.name).name
            shutil.copy(self.log.name, kept)  # the folder of the log is deleted with the model
            if self.process.wait() == -signal.SIGKILL:
                raise ValueError(
                    f"{self.name} was killed, as where the machine runs out of memory; measure "
                    f"fewer implementations at once with --only; its log: {kept}"
                )
            raise ValueError(f"{self.name} failed: {end[0]}; its log: {kept}")
        return json.loads(line)


def run_benchmark(
    implementations: list[Implementation],
    folder: Path,
    *,
    iterations: int,
    warmup: int = 1,
    threads: int = 1,
    device: str = "cpu",
) -> Reports:
    """The reports of `iterations` iterations of every implementation and mode, after `warmup`
    iterations that are not reported."""
    reports: Reports = {}
    try:
        for implementation in implementations:
            implementation.start(folder, threads, device)
        for i in range(warmup + iterations):
            # The order is reversed every time, so that none is always first.
            for implementation in implementations if i % 2 == 0 else implementations[::-1]:
                for suffix, mode in implementation.modes.items():
                    report = implementation.iterate(mode)
                    if i >= warmup:
                        reports.setdefault(implementation.name + suffix, []).append(report)
    finally:
        for implementation in implementations:
            if hasattr(implementation, "process"):
                implementation.stop()
    return reports


def summary(reports: list[Report]) -> Report:
    """Medians over the iterations of one implementation, rates per second, and peak memory."""
    keys = [key for key, value in reports[0].items() if isinstance(value, int | float)]
    figures = {key: statistics.median(report.get(key, 0.0) for report in reports) for key in keys}
    figures["peak_mib"] = max(report["peak_mib"] for report in reports)
    for name in RATES:
        counted, _, clock = name.partition("_per_")
        rates = [report[counted] / report[clock] for report in reports]
        figures[name] = statistics.median(rates)
        if counted == "samples":
            figures[f"{name}_range"] = [min(rates), max(rates)]
    return figures


def ratios(figures: dict[str, Report], ours: str = "ours") -> dict[str, dict[str, float]]:
    """Speedup of ours over every other implementation, and ours' share of its peak memory."""
    mine = figures[ours]
    return {
        name: {rate: mine[rate] / other[rate] for rate in RATES}
        | {"peak_memory": mine["peak_mib"] / other["peak_mib"]}
        for name, other in figures.items()
        if name != ours
    }


def table(result: Report) -> str:
    """The figures as Markdown, per second of processor time and elapsed time; on a GPU only the
    latter."""
    clocks = ("cpu", "wall") if result["arguments"]["device"] == "cpu" else ("wall",)
    columns = [f"samples_per_{clock}_s" for clock in clocks[::-1]]
    columns.append(f"tokens_per_{clocks[0]}_s")
    speedups = [f"samples_per_{clocks[0]}_s", *(f"tokens_per_{clock}_s" for clock in clocks)]
    titles = [*columns, "peak MiB", *(f"speedup of ours, {name}" for name in speedups)]
    titles = [title.replace("_per_", "/s, ").removesuffix("_s") for title in titles]
    rows = [["", *titles]]
    for name, figures in result["figures"].items():
        found = result["ratios"].get(name, {})
        cells = [f"{figures[column]:.2f}" for column in columns]
        cells.append(f"{figures['peak_mib']:.0f}")
        cells += [f"{found[key]:.2f}x" if key in found else "" for key in speedups]
        rows.append([name, *cells])
    return markdown_table(rows)


def _environment(threads: int, device: str) -> dict[str, str]:
    return {
        **os.environ,
        **({"ACCELERATE_USE_CPU": "true"} if device == "cpu" else {}),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
