"""Measure this project and reference implementations on the same work.

python -m eval.bench ppo --shape nano --peer_python .venv-peer/bin/python

`ppo` measures PPO updates, `rollout` sampling, `search` a vote of 64, `sft` supervised steps,
`pretrain` language modelling on packed blocks against padded documents, `memory` the scoring of
long completions with large vocabularies, `grader` the grading of short answers, `programs` that of
HumanEval's and MBPP's reference programs. `learn` plots each trainer's reward against the samples
it has seen; `stability` grades the same answers on an idle and on a busy
machine; `signal` measures the noise of a checkpoint's policy gradients; `serve` measures the server
with many clients against one; `shared_eval` measures an evaluation on several processes against
one, `gpu` what a GPU reaches, in one command of a few minutes. `python -m eval.bench ppo --help`
lists the options. docs/benchmarks.md has figures and explains how to install the reference
implementation.
"""

import platform
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from eval.bench import gpu, gradient_signal, serving, shared_eval, verdict_stability
from eval.bench.implementations import (
    BENCHMARKS,
    LEARNING,
    NO_LEARNING,
    REWARDS,
    BenchArguments,
    implementations,
    saved_model,
    task_of,
)
from eval.bench.measure import Task
from eval.bench.runner import Report, Reports, ratios, run_benchmark, summary, table
from eval.bench.shapes import SHAPES, make_model, matmul_peak
from eval.report_page.curves import COLOURS, add_legend, new_plot, running_mean
from eval.tables import markdown_table
from pipeline.cli import CommandParser
from pipeline.config import require
from pipeline.runtime import one_line_errors, set_threads, write_json

COMMANDS = (*BENCHMARKS, "stability", "signal", "serve", "shared_eval", "gpu")
OLD_NAMES = {"judge": "grader", "verdict_stability": "stability"}
ON_GPU = ("ppo", "rollout", "learn")
LEARN_QUESTIONS = 4_000
# seed -> implementation -> samples, reward and cpu_s of every update
LearningRuns = dict[int, dict[str, dict[str, list[float]]]]


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark that the command line names; print its table and write its JSON."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if command in ("-h", "--help"):
        print(__doc__)
        return
    command = OLD_NAMES.get(command, command)
    require(command in COMMANDS, f"{command!r} is no benchmark; one of {', '.join(COMMANDS)}")
    if command == "stability":
        raise SystemExit(verdict_stability.main(rest))
    if command == "signal":
        return gradient_signal.main(rest)
    if command == "serve":
        return serving.main(rest)
    if command == "shared_eval":
        return shared_eval.main(rest)
    if command == "gpu":
        return gpu.main(rest)
    (args,) = CommandParser(BenchArguments).parse_args_and_config(rest)
    require(
        args.device == "cpu" or command in ON_GPU,
        f"device={args.device!r} is for {', '.join(ON_GPU)}; leave it out for {command}",
    )
    require(
        command != "learn" or args.checkpoint is not None or args.reward != "right",
        "`learn` needs a model that earns rewards: give --checkpoint, such as runs/nano/sft, or "
        "--reward digits",
    )
    if args.learning_rate is None:
        args.learning_rate = LEARNING if command == "learn" else NO_LEARNING
    set_threads(args.threads)
    call = f"python -m eval.bench {command} {' '.join(rest)}"
    path = Path(args.output or f"runs/bench/{command}-{args.shape}.json")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = task_of(args, folder)
        measure = _learn if command == "learn" else _compare
        measure(command, task, args, folder, call, path)


def _run(command: str, task: Task, args: BenchArguments, folder: Path, *, warmup: int) -> Reports:
    return run_benchmark(
        implementations(command, task, args),
        folder,
        iterations=args.iterations,
        warmup=warmup,
        threads=args.threads,
        device=args.device,
    )


def _compare(
    command: str, task: Task, args: BenchArguments, folder: Path, call: str, path: Path
) -> None:
    """Measure speed and memory, write the JSON file and print the table."""
    peak = matmul_peak(args.device, args.dtype)
    make_model(SHAPES[args.shape], Path(task["model"]), args.checkpoint)
    reports = _run(command, task, args, folder, warmup=args.warmup)
    figures = {name: summary(iterations) for name, iterations in reports.items()}
    result = {
        "command": call,
        "shape": asdict(SHAPES[args.shape]),
        "arguments": asdict(args),
        "machine": {"processor": _processor(args.device)},
        "matmul_gflops": peak,
        "figures": figures,
        "ratios": ratios(figures) if "ours" in figures else {},
        "greedy_tokens_equal": _greedy_tokens_equal(reports),
        "iterations": reports,
    }
    _add_share_of_peak(result)
    write_json(path, result)
    print(table(result))
    for name, found in figures.items():
        if "agreed" in found:
            print(f"{name}: {found['agreed']:.1%} of the verdicts are correct")
    for name, iterations in reports.items():
        for key, share in iterations[-1].get("operations", {}).items():
            print(f"{name}, last iteration: {share:.1%} {key}")
    print(f"all figures: {path}")


def _add_share_of_peak(result: Report) -> None:
    """Add the share of the measured matrix-product peak that our update reaches."""
    ours = result["figures"].get("ours", {})
    if "update_gflop" in ours:
        on_gpu = result["arguments"]["device"] == "cuda"
        seconds = ours["wall_s" if on_gpu else "cpu_s"] - ours["rollout_s"]
        ours["update_gflops"] = ours["update_gflop"] / seconds
        ours["update_share_of_peak"] = ours["update_gflops"] / result["matmul_gflops"]


def _greedy_tokens_equal(reports: Reports) -> bool | None:
    """Whether all reported greedy tokens are equal, None without any; removes them from reports."""
    found = {
        iteration.pop("greedy")
        for iterations in reports.values()
        for iteration in iterations
        if "greedy" in iteration
    }
    return len(found) == 1 if found else None


def _processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    found = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", found.read_text()) if found.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _learn(
    command: str, task: Task, args: BenchArguments, folder: Path, call: str, path: Path
) -> None:
    """Train with every seed; results are written, plotted and printed after each of them."""
    make_model(SHAPES[args.shape], Path(task["model"]), args.checkpoint, LEARN_QUESTIONS)
    runs: LearningRuns = {}
    seeds = list(map(int, args.seeds.split(",")))
    for implementation in implementations(command, task, args) if args.save_dir else ():
        for seed in seeds:
            saved = saved_model(args.save_dir, implementation.name, seed)
            require(
                not saved.exists(),
                f"save_dir={args.save_dir} already has {saved.name}; give another folder or delete "
                "that one",
            )
    for seed in seeds:
        seeded = task | {"seed": seed, "reward": args.reward}
        reports = _run(command, seeded, args, folder, warmup=0)
        runs[seed] = {
            name: {
                key: [iteration[key] for iteration in iterations]
                for key in ("samples", "reward", "cpu_s")
            }
            for name, iterations in reports.items()
        }
        write_json(path, {"command": call, "arguments": asdict(args), "runs": runs})
        plot_learning(runs, path.with_suffix(".png"), REWARDS[args.reward])
        print(learning_table(runs), flush=True)
        for name in reports if args.save_dir else ():
            saved = saved_model(args.save_dir, name, seed)
            require((saved / "config.json").exists(), f"{name} did not save its model to {saved}")
    print(f"all figures: {path}, plot: {path.with_suffix('.png')}")
    if args.save_dir:
        print(f"trained models: {args.save_dir}")


def learning_table(runs: LearningRuns) -> str:
    """Markdown with a row per implementation: mean reward over the first fifth, the last fifth and
    all of its updates and all seeds; difference of ours over all updates, by seed."""
    titles = ("first fifth", "last fifth", "all updates", "ours minus it, by seed", "processor s")
    rows = [["", *titles]]
    for name in next(iter(runs.values())):
        curves = [run[name]["reward"] for run in runs.values()]
        parts = ([c[: _fifth(c)] for c in curves], [c[-_fifth(c) :] for c in curves], curves)
        cells = [f"{mean(map(mean, part)):.3f}" for part in parts]
        differences = [
            f"{mean(run['ours']['reward']) - mean(run[name]['reward']):+.3f}"
            for run in runs.values()
            if "ours" in run and name != "ours"
        ]
        seconds = mean(sum(run[name]["cpu_s"]) for run in runs.values())
        rows.append([name, *cells, ", ".join(differences), f"{seconds:.0f}"])
    return markdown_table(rows)


def _fifth(curve: Sequence[float]) -> int:
    return max(1, len(curve) // 5)


def plot_learning(runs: LearningRuns, path: Path, reward: str) -> None:
    """Plot reward against samples: a thin line per seed, a thick one for their mean."""
    figure, axes = new_plot((8, 4), xlabel="samples seen", ylabel=reward)
    for colour, name in zip(cycle(COLOURS), next(iter(runs.values())), strict=False):
        samples = np.cumsum(next(iter(runs.values()))[name]["samples"])
        curves = [running_mean(run[name]["reward"]) for run in runs.values()]
        for curve in curves:
            axes.plot(samples, curve, color=colour, alpha=0.3, linewidth=0.8)
        axes.plot(samples, np.mean(curves, axis=0), color=colour, label=name, linewidth=2)
    add_legend(figure)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
