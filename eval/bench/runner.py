"""Contenders, each a process of its own, take turns at the same work.

Turns alternate, so that a machine that slows down for a while slows all of them.
"""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.bench.iteration import STOP

ROOT = Path(__file__).parents[2]


@dataclass
class Implementation:
    """A script of this folder, the interpreter that runs it, and the modes it takes turns in."""

    name: str
    script: str
    task: dict[str, Any]
    python: str = sys.executable
    modes: dict[str, str] = field(default_factory=lambda: {"": "run"})  # suffix of the name -> mode

    def start(self, folder: Path, threads: int, device: str) -> None:
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(self.task))
        self.log = path.with_suffix(".log").open("w")
        self.process = subprocess.Popen(
            [self.python, str(Path(__file__).parent / self.script), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=ROOT,
            env=_environment(threads, device),
        )

    def turn(self, mode: str) -> dict[str, Any]:
        self._read()  # it is waiting
        self.process.stdin.write(mode + "\n")
        self.process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.communicate(STOP + "\n")
        self.log.close()

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            self.log.flush()
            end = Path(self.log.name).read_text().strip().splitlines()[-1:] or ["no message"]
            raise ValueError(f"{self.name} failed: {end[0]} (all of it in {self.log.name})")
        return json.loads(line)


def run_benchmark(
    contenders: list[Implementation],
    folder: Path,
    *,
    iterations: int,
    warmup: int = 1,
    threads: int = 1,
    device: str = "cpu",
) -> dict[str, list[dict[str, Any]]]:
    """The reports of every contender and mode, `laps` each after `warmup` that do not count."""
    reports: dict[str, list[dict[str, Any]]] = {}
    try:
        for contender in contenders:
            contender.start(folder, threads, device)
        for iteration in range(warmup + iterations):
            # Every other round goes backwards: nobody is always first.
            for contender in contenders if iteration % 2 == 0 else contenders[::-1]:
                for suffix, mode in contender.modes.items():
                    report = contender.turn(mode)
                    if iteration >= warmup:
                        reports.setdefault(contender.name + suffix, []).append(report)
    finally:
        for contender in contenders:
            if hasattr(contender, "process"):
                contender.stop()
    return reports


def summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of what was reported, and what follows from them."""
    keys = [key for key, value in reports[0].items() if isinstance(value, int | float)]
    figures = {key: statistics.median(report.get(key, 0.0) for report in reports) for key in keys}
    figures["peak_mib"] = max(report["peak_mib"] for report in reports)
    for clock in ("wall", "cpu"):
        rates = [report["samples"] / report[f"{clock}_s"] for report in reports]
        figures[f"samples_per_{clock}_s"] = statistics.median(rates)
        figures[f"samples_per_{clock}_s_range"] = [min(rates), max(rates)]
        figures[f"tokens_per_{clock}_s"] = statistics.median(
            report["tokens"] / report[f"{clock}_s"] for report in reports
        )
    return figures


def ratios(figures: dict[str, dict[str, Any]], ours: str = "ours") -> dict[str, dict[str, float]]:
    """How many times faster ours is, and how much of the other's memory it takes."""
    mine = figures[ours]
    return {
        name: {
            "samples_per_wall_s": mine["samples_per_wall_s"] / other["samples_per_wall_s"],
            "samples_per_cpu_s": mine["samples_per_cpu_s"] / other["samples_per_cpu_s"],
            "tokens_per_cpu_s": mine["tokens_per_cpu_s"] / other["tokens_per_cpu_s"],
            "tokens_per_wall_s": mine["tokens_per_wall_s"] / other["tokens_per_wall_s"],
            "peak_memory": mine["peak_mib"] / other["peak_mib"],
        }
        for name, other in figures.items()
        if name != ours
    }


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
