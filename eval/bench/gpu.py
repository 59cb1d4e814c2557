"""What one GPU does with this project, in one command of a few minutes.

    python -m eval.bench gpu

Measures the peak of bfloat16 matrix products; the share of it that a PPO update reaches as it was
before each of four changes and with each of them; sampled tokens a second; the longest thought that
fits, with and without gradient checkpointing; and TRL's trainers on a smaller shape. The model has
the sizes of Qwen2.5-0.5B and random weights, so nothing is downloaded. Every measurement runs in a
process of its own, one after the other; what would begin after `--seconds` is left out and said.
`--device cpu --shape nano --dtype float32` runs all of it without a GPU, to try the command.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.hf_argparser import HfArg

from eval.bench.implementations import NO_LEARNING
from eval.bench.measure import Task
from eval.bench.runner import Implementation, Report, run_benchmark, summary
from eval.bench.shapes import SHAPES, make_model, matmul_peak
from eval.tables import markdown_table
from pipeline.cli import CommandParser
from pipeline.config import PositiveFloat, PositiveInt, check_types, require
from pipeline.runtime import write_json

# What ours.py can leave out, and options of PPO that are off by default. Each row of the table has
# one change of the first row.
BEFORE: dict[str, Any] = {
    "options": {"micro_batch_size": 16},
    "without": ["weights_cast_once", "varlen"],
}


@dataclass(kw_only=True)
class GpuArguments:
    """What is measured, and for how long."""

    shape: str = HfArg(default="qwen0.5b-busy", help=f"one of {', '.join(SHAPES)}")
    peer_shape: str = HfArg(default="qwen0.5b-short", help="of the comparison with TRL's trainers")
    device: Literal["cpu", "cuda"] = HfArg(default="cuda", help="cuda, or cpu to try the command")
    dtype: Literal["float32", "bfloat16"] = HfArg(default="bfloat16", help="autocast of all parts")
    micro_batch_tokens: PositiveInt = HfArg(
        default=32_768, help="tokens of a forward where micro-batches are cut by tokens"
    )
    seconds: PositiveFloat = HfArg(default=480.0, help="nothing begins after so many seconds")
    iterations: PositiveInt = HfArg(default=1, help="measured updates, after one that is not")
    threads: PositiveInt = HfArg(default=8, help="CPU threads of a process")
    longest: PositiveInt = HfArg(
        default=32_768, help="most tokens tried where the longest thought is searched"
    )
    peer_python: str = HfArg(
        default=".venv-peer/bin/python", help="interpreter with TRL 1.12.0 (make peer)"
    )
    only: str = HfArg(default="", help="comma-separated names of measurements; default: all")
    output: str = HfArg(default="runs/bench/gpu.json", help="JSON file with all figures")

    def __post_init__(self) -> None:
        check_types(self)
        for name in (self.shape, self.peer_shape):
            require(name in SHAPES, f"shape={name!r} is none of {', '.join(SHAPES)}")
        require(
            self.device == "cpu" or torch.cuda.is_available(),
            "device='cuda' needs a GPU that torch sees; give --device cpu --shape nano --dtype "
            "float32 to try the command without one",
        )


def variants(args: GpuArguments) -> dict[str, dict[str, Any]]:
    """{name: what its task has} of the updates that are measured."""
    tokens = {"micro_batch_tokens": args.micro_batch_tokens}
    return {
        "before": BEFORE,
        "1 micro_batch_tokens": {**BEFORE, "options": tokens},
        "2 weights cast once": {**BEFORE, "without": ["varlen"]},
        "3 compile_layers": {**BEFORE, "options": {**BEFORE["options"], "compile_layers": True}},
        "4 variable-length attention": {**BEFORE, "without": ["weights_cast_once"]},
        "defaults with micro_batch_tokens": {"options": tokens},
        "all": {"options": {**tokens, "compile_layers": True}},
    }


def measurements(args: GpuArguments, folder: Path) -> list[tuple[str, Implementation]]:
    """(part of the report, what runs) the most important first."""
    task, peer_task = (_task(args, name, folder) for name in (args.shape, args.peer_shape))
    updates = variants(args)
    found = [
        ("update", Implementation(name, "ours.py", "ppo", task | updates[name]))
        for name in ("before", "all")
    ]
    found.append(("longest", Implementation("longest thought", "ours.py", "longest", task, modes={
        "": "plain", ", checkpointing": "checkpointing"
    })))  # fmt: skip
    found += [
        ("update", Implementation(name, "ours.py", "ppo", task | more))
        for name, more in updates.items()
        if name not in ("before", "all")
    ]
    found.append(("peer", Implementation("ours", "ours.py", "ppo", peer_task | updates["all"])))
    found.append(("peer", Implementation("grpo", "reference.py", "grpo", peer_task)))
    if Path(args.peer_python).exists():
        python = str(Path(args.peer_python).absolute())
        peer = Implementation("trl-1.12 ppo", "reference.py", "trl_ppo", peer_task, python)
        found.append(("peer", peer))
    if not args.only:
        return found
    names = args.only.split(",")
    known = [implementation.name for _, implementation in found]
    for name in names:
        require(name in known, f"only={name!r} is none of {', '.join(known)}")
    return [(part, found) for part, found in found if found.name in names]


def run(
    args: GpuArguments,
    folder: Path,
    start: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Report:
    """Run the measurements; a part that fails is reported by its error, and the others go on.

    Args:
        start: when the command began, by `clock`, in seconds.
    """
    report: Report = {
        "arguments": asdict(args),
        "matmul_gflops": matmul_peak(args.device, args.dtype),
        "update": {},
        "peer": {},
        "longest": {},
        "left_out": {},
    }
    for part, implementation in measurements(args, folder):
        if clock() - start > args.seconds:
            report["left_out"][implementation.name] = f"after {args.seconds:g} s"
            continue
        options = {"iterations": args.iterations, "warmup": 1}
        if part == "longest":
            options = {"iterations": 1, "warmup": 0}
        try:
            found = run_benchmark(
                [implementation], folder, **options, threads=args.threads, device=args.device
            )
        except ValueError as error:
            report["left_out"][implementation.name] = str(error)
            continue
        for name, iterations in found.items():
            report[part][name] = summary(iterations)
            iterations.clear()
    for figures in report["update"].values():
        seconds = figures["wall_s"] - figures["rollout_s"]
        figures["update_s"] = seconds
        figures["update_share_of_peak"] = (
            figures["update_gflop"] / seconds / report["matmul_gflops"]
        )
    report["seconds"] = clock() - start
    return report


def lines_of(report: Report) -> list[str]:
    """The report as Markdown."""
    update = [["update", "share of peak", "update s", "sampled tokens/s", "samples/s", "peak MiB"]]
    for name, figures in report["update"].items():
        update.append(
            [
                name,
                f"{figures['update_share_of_peak']:.1%}",
                f"{figures['update_s']:.2f}",
                f"{figures['tokens'] / figures['sample_s']:,.0f}",
                f"{figures['samples_per_wall_s']:.2f}",
                f"{figures['peak_mib']:,.0f}",
            ]
        )
    peer = [["with TRL's trainers", "samples/s", "tokens/s", "peak MiB"]]
    for name, figures in report["peer"].items():
        rates = (figures["samples_per_wall_s"], figures["tokens_per_wall_s"])
        cells = [*(f"{rate:.2f}" for rate in rates), f"{figures['peak_mib']:,.0f}"]
        peer.append([name, *cells])
    lines = [f"peak of matrix products: {report['matmul_gflops'] / 1000:.1f} TFLOP/s"]
    for name, figures in report["longest"].items():
        lines.append(f"{name}: {figures['tokens']:,.0f} tokens")
    for table in (update, peer):
        lines += ["", markdown_table(table)] if len(table) > 1 else []
    lines += [f"left out: {name}: {why}" for name, why in report["left_out"].items()]
    return [*lines, f"{report['seconds']:.0f} s"]


def main(argv: Sequence[str]) -> None:
    """Measure, print the tables and write the JSON file."""
    start = time.perf_counter()
    (args,) = CommandParser(GpuArguments).parse_args_and_config(list(argv))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shape in dict.fromkeys((args.shape, args.peer_shape)):
            make_model(SHAPES[shape], Path(_task(args, shape, folder)["model"]))
        report = run(args, folder, start)
    write_json(Path(args.output), report)
    print("\n".join(lines_of(report)))
    print(f"all figures: {args.output}")


def _task(args: GpuArguments, shape: str, folder: Path) -> Task:
    return {
        **asdict(SHAPES[shape]),
        "learning_rate": NO_LEARNING,
        "kl_coef": 0.05,
        "device": args.device,
        "dtype": args.dtype,
        "model": str(folder / shape),
        "output_dir": str(folder / "runs"),
        "seed": 0,
        "reward": "digits",
        "longest": args.longest,
    }
