"""Time of an evaluation on one process and on several, and whether the records are the same.

python -m eval.bench shared_eval --processes 2

Both groups of processes load the model before anything is measured. An iteration lasts from the
start of the first chunk to the end of the last process, when records.jsonl and metrics.json are
written. The groups take turns.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import Popen, TimeoutExpired

from transformers.hf_argparser import HfArg

from eval.bench.evaluating import SECONDS_BETWEEN_LOOKS
from eval.bench.shapes import SHAPES, make_model
from eval.tables import markdown_table
from pipeline.cli import CommandParser
from pipeline.config import NonNegativeInt, PositiveInt, check_types, require
from pipeline.runtime import write_json
from pipeline.search import STRATEGIES

ROOT = Path(__file__).parents[2]
START_SECONDS = 600
Iterations = dict[int, list[dict[str, float]]]  # by processes


@dataclass(kw_only=True)
class SharedEvalArguments:
    """The model, the evaluation and the processes."""

    shape: str = HfArg(default="nano", help=f"one of {', '.join(SHAPES)}")
    checkpoint: str | None = HfArg(default=None, help="measure this model, not a random one")
    processes: PositiveInt = HfArg(default=2, help="processes that are compared with one")
    problems: PositiveInt = HfArg(default=128, help="problems of the evaluation")
    strategy: str = HfArg(default="consensus", help="one of " + ", ".join(STRATEGIES))
    n: PositiveInt = HfArg(default=8, help="samples of a problem")
    batch_size: PositiveInt = HfArg(default=64, help="sequences of a chunk")
    tokens: PositiveInt = HfArg(default=160, help="most tokens of a sample")
    iterations: PositiveInt = HfArg(default=3, help="measured iterations of each")
    warmup: NonNegativeInt = HfArg(default=1, help="iterations before them")
    threads: PositiveInt = HfArg(default=1, help="threads of each process")
    output: str = HfArg(default="", help="JSON file; default: runs/bench/shared_eval-SHAPE.json")

    def __post_init__(self) -> None:
        check_types(self)
        require(self.shape in SHAPES, f"shape={self.shape!r} is none of {', '.join(SHAPES)}")
        require(self.processes > 1, "processes=1 is compared with itself; give at least 2")
        chunks = -(-self.problems // max(1, self.batch_size // self.n))
        require(
            chunks >= self.processes,
            f"{chunks} chunks of batch_size / n problems leave some of {self.processes} processes "
            "without work; raise problems or lower batch_size",
        )


def main(argv: Sequence[str]) -> None:
    """Run the benchmark; print a table and write the JSON file."""
    (args,) = CommandParser(SharedEvalArguments).parse_args_and_config(argv)
    call = f"python -m eval.bench shared_eval {' '.join(argv)}"
    path = Path(args.output or f"runs/bench/shared_eval-{args.shape}.json")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(SHAPES[args.shape], folder / "model", args.checkpoint, args.problems)
        measured, same = _measure(args, folder)
    medians = {
        processes: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for processes, rows in measured.items()
    }
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    result = {
        "command": call,
        "arguments": asdict(args),
        "machine": machine,
        "ratio": medians[1]["wall_s"] / medians[args.processes]["wall_s"],
        "same_records": same,
        "figures": medians,
        "iterations": measured,
    }
    write_json(path, result)
    print(table(medians))
    print(f"{args.processes} processes are {result['ratio']:.2f} times as fast as one")
    print(f"all figures: {path}")
    require(
        same, f"the records of {args.processes} processes differ from those of one; report this"
    )


def table(medians: dict[int, dict[str, float]]) -> str:
    """Markdown with a row for each number of processes: elapsed and processor seconds."""
    rows = [["processes", "seconds", "processor seconds of all"]]
    rows += [[str(n), f"{x['wall_s']:.2f}", f"{x['cpu_s']:.2f}"] for n, x in medians.items()]
    return markdown_table(rows)


def _measure(args: SharedEvalArguments, folder: Path) -> tuple[Iterations, bool]:
    """The figures of both groups, and whether all their records are equal."""
    groups = [_Group(processes, args, folder) for processes in (1, args.processes)]
    found: Iterations = {group.processes: [] for group in groups}
    records = []
    try:
        for group in groups:
            group.wait_for([f"ready-{rank}" for rank in range(group.processes)])
        for iteration in range(args.warmup + args.iterations):
            for group in groups if iteration % 2 else reversed(groups):
                figures = group.evaluate(iteration)
                if iteration >= args.warmup:
                    found[group.processes].append(figures)
                records.append(read_records(group.folder / str(iteration)))
    finally:
        for group in groups:
            group.stop()
    return found, all(rows == records[0] for rows in records)


def read_records(folder: Path) -> list[dict[str, object]]:
    """The records of an evaluation without their times."""
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


class _Group:
    """Processes that share an evaluation."""

    def __init__(self, processes: int, args: SharedEvalArguments, parent: Path):
        self.processes, self.folder = processes, parent / f"of-{processes}"
        self.folder.mkdir()
        options = {
            "n": args.n,
            "batch_size": args.batch_size,
            "max_sample_tokens": args.tokens,
            "temperature": 1.0,
        }
        task = {
            "model": str(parent / "model"),
            "threads": args.threads,
            "strategy": args.strategy,
            "options": options,
        }
        write_json(self.folder / "task.json", task)
        self.started = [self._start(rank, args.threads) for rank in range(processes)]

    def _start(self, rank: int, threads: int) -> Popen:
        numbers = {"RANK": rank, "LOCAL_RANK": rank}
        numbers |= {"WORLD_SIZE": self.processes, "LOCAL_WORLD_SIZE": self.processes}
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        variables |= {name: str(number) for name, number in numbers.items()}
        with (self.folder / f"log-{rank}").open("w") as log:
            command = [sys.executable, "-m", "eval.bench.evaluating", str(self.folder)]
            return Popen(command, cwd=ROOT, stdout=log, stderr=log, env=variables)

    def evaluate(self, iteration: int) -> dict[str, float]:
        """Elapsed and processor seconds of one evaluation."""
        begin = time.perf_counter()
        (self.folder / f"begin-{iteration}").touch()
        ended = [f"ended-{iteration}-{rank}.json" for rank in range(self.processes)]
        self.wait_for(ended)
        seconds = time.perf_counter() - begin
        cpu = sum(json.loads((self.folder / name).read_text())["cpu_s"] for name in ended)
        return {"wall_s": seconds, "cpu_s": cpu}

    def wait_for(self, names: Sequence[str]) -> None:
        """Wait until all these files exist.

        Raises:
            ValueError: a process has ended, or START_SECONDS are over.
        """
        end = time.monotonic() + START_SECONDS
        while not all((self.folder / name).exists() for name in names):
            for rank, process in enumerate(self.started):
                code = process.poll()
                if code is not None or time.monotonic() > end:
                    said = (self.folder / f"log-{rank}").read_text().strip().splitlines()
                    did = (
                        f"did nothing for {START_SECONDS} s" if code is None else f"ended ({code})"
                    )
                    raise ValueError(
                        f"process {rank} of {self.processes} {did}: "
                        f"{(said or ['no message'])[-1]}; repeat it with fewer problems"
                    )
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def stop(self) -> None:
        """End the processes."""
        (self.folder / "end").touch()
        for process in self.started:
            try:
                process.wait(10)
            except TimeoutExpired:
                process.kill()
                process.wait()
