"""Ours against the peers, same work, one run.

python -m eval.bench ppo --shape nano --peer_python .venv-peer/bin/python

`ppo` times whole updates, `rollout` sampling, `search` a vote of 64, `sft` supervised steps,
`memory` the scoring of long completions under large vocabularies, `judge` verdicts on short
answers, `programs` those on HumanEval's and MBPP's own programs. `learn` is not about speed: it
draws the reward of each trainer against the samples it has seen. docs/benchmarks.md has figures and
how the peer is installed.
"""

import platform
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.hf_argparser import HfArg

from eval.bench import learning
from eval.bench.runner import Implementation, ratios, run_benchmark, summary
from eval.bench.shapes import SHAPES, Shape, make_model, matmul_peak
from pipeline.cli import CommandParser
from pipeline.config import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_types,
    require,
)
from pipeline.runtime import one_line_errors, set_threads, write_json
from pipeline.sandbox import require_level, working_levels

PPO, ROLLOUT, SEARCH, SFT, MEMORY, JUDGE, PROGRAMS, LEARN = COMMANDS = (
    "ppo",
    "rollout",
    "search",
    "sft",
    "memory",
    "judge",
    "programs",
    "learn",
)
POOL = 4_000  # questions that `learn` draws from
# A rate at which trained weights stay where they are: lengths remain those that all begin with. A
# peer's completions grow by half within four updates at 1e-6, and with them the work it is given.
STILL, LEARNS = 1e-12, 3e-4
REWARDS = {"right": "share of right answers", "digits": "share of digits"}


@dataclass(kw_only=True)
class BenchArguments:
    """What is timed; the same for every contender."""

    shape: str = HfArg(default="nano", help=f"one of {', '.join(SHAPES)}")
    checkpoint: str | None = HfArg(default=None, help="time this model instead of a random one")
    peer_python: str = HfArg(
        default=".venv-peer/bin/python", help="interpreter of the peer's environment (make peer)"
    )
    iterations: PositiveInt = HfArg(default=5, help="turns of each contender; the medians count")
    warmup: NonNegativeInt = HfArg(default=1, help="turns before them that do not count")
    threads: PositiveInt = HfArg(default=1, help="of each contender")
    device: Literal["cpu", "cuda"] = HfArg(
        default="cpu", help="cpu, or cuda for `ppo`, `rollout` and `learn`"
    )
    dtype: Literal["float32", "bfloat16"] = HfArg(
        default="float32", help="float32, or bfloat16: weights in `rollout`, autocast elsewhere"
    )
    completions: PositiveInt | None = HfArg(
        default=None, help="completions a question; default: the shape's"
    )
    learning_rate: PositiveFloat | None = HfArg(
        default=None, help=f"of every trainer; default: {STILL}, of `learn` {LEARNS}"
    )
    kl_coef: NonNegativeFloat = HfArg(
        default=0.05, help="of every trainer: price of a nat of drift"
    )
    seeds: str = HfArg(default="0,1,2", help="of `learn`: a race for each, and no warm-up")
    profile: bool = HfArg(
        default=False, help="of `ppo`: tell which operations our laps spend their time on"
    )
    data_root: str | None = HfArg(
        default=None, help="folder of NAME/SPLIT.jsonl.gz for `programs`; default: the Hub"
    )
    reward: Literal["right", "digits"] = HfArg(
        default="right", help="of `learn`: right, a right answer; digits, the share of digits"
    )
    only: str = HfArg(default="", help="names of contenders, separated by commas; default: all")
    output: str = HfArg(default="", help="JSON file; default: runs/bench/COMMAND-SHAPE.json")

    def __post_init__(self) -> None:
        check_types(self)
        require(self.shape in SHAPES, f"shape={self.shape!r} is none of {', '.join(SHAPES)}")
        numbers = all(seed.strip().isdigit() for seed in self.seeds.split(","))
        require(numbers, f"seeds={self.seeds!r} must be whole numbers, separated by commas")
        require(
            self.device == "cpu" or torch.cuda.is_available(),
            "device='cuda' needs a GPU that torch sees; there is none, leave out --device",
        )


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    command, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    require(command in COMMANDS, f"{command!r} is no benchmark; one of {', '.join(COMMANDS)}")
    (args,) = CommandParser(BenchArguments).parse_args_and_config(rest)
    on_gpu = (PPO, ROLLOUT, LEARN)
    require(
        args.device == "cpu" or command in on_gpu,
        f"device={args.device!r} is for {', '.join(on_gpu)}; leave it out for {command}",
    )
    require(
        command != LEARN or args.checkpoint is not None or args.reward != "right",
        f"`{LEARN}` needs a model that is right at times: give --checkpoint, such as "
        "runs/nano/sft, or --reward digits",
    )
    if args.learning_rate is None:
        args.learning_rate = LEARNS if command == LEARN else STILL
    set_threads(args.threads)
    said = f"python -m eval.bench {command} {' '.join(rest)}"
    with tempfile.TemporaryDirectory() as folder:
        shape = SHAPES[args.shape]
        task = _task(shape, args, Path(folder))
        if command == LEARN:
            make_model(shape, Path(task["model"]), args.checkpoint, POOL)
            _learn(task, args, Path(folder), said)
            return
        peak = matmul_peak(args.device, args.dtype)
        make_model(shape, Path(task["model"]), args.checkpoint)
        reports = _race(IMPLEMENTATIONS[command](task, args), args, Path(folder), args.warmup)
    figures = {name: summary(iterations) for name, iterations in reports.items()}
    result = {
        "command": said,
        "shape": asdict(shape),
        "arguments": asdict(args),
        "machine": {"processor": _processor(args.device)},
        "matmul_gflops": peak,
        "figures": figures,
        "ratios": ratios(figures) if "ours" in figures else {},
        "greedy_tokens_equal": _greedy_tokens_equal(reports),
        "iterations": reports,
    }
    _add_share_of_peak(result)
    path = Path(args.output or f"runs/bench/{command}-{args.shape}.json")
    write_json(path, result)
    print(table(result))
    for name, found in figures.items():
        if "agreed" in found:
            print(f"{name}: {found['agreed']:.1%} of the verdicts as they should be")
    for name, iterations in reports.items():
        for key, share in iterations[-1].get("operations", {}).items():
            print(f"{name}, last lap: {share:.1%} {key}")
    print(f"all figures: {path}")


def _race(
    contenders: list[Implementation], args: BenchArguments, folder: Path, warmup: int
) -> dict[str, list[dict[str, Any]]]:
    if args.only:
        contenders = _chosen(contenders, args.only.split(","))
    return run_benchmark(
        contenders,
        folder,
        iterations=args.iterations,
        warmup=warmup,
        threads=args.threads,
        device=args.device,
    )


def _learn(task: dict[str, Any], args: BenchArguments, folder: Path, command: str) -> None:
    """A race a seed, all laps count. What is there is written and drawn after every seed."""
    path = Path(args.output or f"runs/bench/{LEARN}-{args.shape}.json")
    runs = {}
    for seed in map(int, args.seeds.split(",")):
        contenders = IMPLEMENTATIONS[LEARN](task | {"seed": seed, "reward": args.reward}, args)
        reports = _race(contenders, args, folder, warmup=0)
        runs[seed] = {
            name: {
                key: [iteration[key] for iteration in iterations]
                for key in ("samples", "reward", "cpu_s")
            }
            for name, iterations in reports.items()
        }
        write_json(path, {"command": command, "arguments": asdict(args), "runs": runs})
        learning.draw(runs, path.with_suffix(".png"), REWARDS[args.reward])
        print(learning.table(runs), flush=True)
    print(f"all figures: {path}, the plot beside it")


def _processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    found = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", found.read_text()) if found.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _chosen(contenders: list[Implementation], names: list[str]) -> list[Implementation]:
    known = [c.name + suffix for c in contenders for suffix in c.modes]
    for name in names:
        require(name in known, f"only={name!r} is none of {', '.join(known)}")
    for contender in contenders:
        contender.modes = {s: m for s, m in contender.modes.items() if contender.name + s in names}
    return [contender for contender in contenders if contender.modes]


def _task(shape: Shape, args: BenchArguments, folder: Path) -> dict[str, Any]:
    return {
        **asdict(shape),
        "completions": args.completions or shape.completions,
        "data_root": args.data_root and str(Path(args.data_root).absolute()),
        "learning_rate": args.learning_rate,
        "kl_coef": args.kl_coef,
        "device": args.device,
        "dtype": args.dtype,
        "model": str(folder / "model"),
        "output_dir": str(folder / "runs"),
        "seed": 0,
        "reward": "digits",
    }


def _ppo(task: dict[str, Any], args: BenchArguments) -> list[Implementation]:
    contenders = [
        Implementation("ours", "ours_ppo.py", task | {"profile": args.profile}),
        Implementation("grpo", "grpo_ppo.py", task),
    ]
    peer = _peer(args)
    if peer is not None:
        modes = {"": "shipped", " without gc": "nogc"}
        contenders.insert(1, Implementation("trl-1.12 ppo", "peer_ppo.py", task, peer, modes))
    return contenders


def _trainers(task: dict[str, Any], args: BenchArguments) -> list[Implementation]:
    """The contenders of `ppo` as they are shipped: gc.collect() teaches nothing."""
    contenders = _ppo(task, args)
    for contender in contenders:
        contender.modes = {"": contender.modes[""]}
    return contenders


def _peer(args: BenchArguments) -> str | None:
    if Path(args.peer_python).exists():
        return str(Path(args.peer_python).absolute())
    print(
        f"the peer is left out: peer_python={args.peer_python} does not exist; `make peer` makes it"
    )
    return None


def _rollout(task: dict[str, Any], args: BenchArguments) -> list[Implementation]:
    task = task | {"completions": args.completions or 16}
    return [
        Implementation("ours", "ours_rollout.py", task),
        Implementation("generate", "generate_rollout.py", task),
    ]


def _search(task: dict[str, Any], args: BenchArguments) -> list[Implementation]:
    completions = args.completions or 64
    size = {"questions": 8, "completions": completions, "batch_size": 8 * completions}
    modes = {"": "together", " by question": "apart"}
    return [
        Implementation("ours", "ours_search.py", task | size),
        Implementation("generate", "generate_search.py", task | size, modes=modes),
    ]


def _sft(task: dict[str, Any], args: BenchArguments) -> list[Implementation]:
    return [
        Implementation("ours", "sft_steps.py", task | {"ours": True}),
        Implementation("trl sft", "sft_steps.py", task | {"ours": False}),
    ]


def _memory(task: dict[str, Any], args: BenchArguments) -> list[Implementation]:
    return [
        Implementation(
            f"{'plain' if plain else 'ours'} V={vocabulary} C={length}",
            "memory_scores.py",
            {"vocab_size": vocabulary, "length": length, "rows": 4, "plain": plain},
        )
        for vocabulary in (512, 150_016)
        for length in (64, 256)
        for plain in (False, True)
    ]


def _judge(task: dict[str, Any], args: BenchArguments) -> list[Implementation]:
    return [
        Implementation("ours", "verdicts.py", task | {"judged": "answers"}),
        Implementation("math-verify", "verdicts.py", task | {"judged": "answers by math-verify"}),
    ]


def _programs(task: dict[str, Any], args: BenchArguments) -> list[Implementation]:
    """The levels of isolation that work here."""
    require_level()
    modes = {f" at {level}": level for level in working_levels()}
    return [Implementation("programs", "verdicts.py", task | {"judged": "programs"}, modes=modes)]


IMPLEMENTATIONS: dict[str, Callable[[dict[str, Any], BenchArguments], list[Implementation]]] = {
    PPO: _ppo,
    ROLLOUT: _rollout,
    SEARCH: _search,
    SFT: _sft,
    MEMORY: _memory,
    JUDGE: _judge,
    PROGRAMS: _programs,
    LEARN: _trainers,
}


def _add_share_of_peak(result: dict[str, Any]) -> None:
    """How much of the machine's matrix products the update of ours makes use of."""
    ours = result["figures"].get("ours", {})
    if "update_gflop" in ours:
        on_gpu = result["arguments"]["device"] == "cuda"
        seconds = ours["wall_s" if on_gpu else "cpu_s"] - ours["rollout_s"]
        ours["update_gflops"] = ours["update_gflop"] / seconds
        ours["update_share_of_peak"] = ours["update_gflops"] / result["matmul_gflops"]


def _greedy_tokens_equal(reports: dict[str, list[dict[str, Any]]]) -> bool | None:
    """None where no greedy tokens were reported."""
    found = {
        iteration.pop("greedy")
        for iterations in reports.values()
        for iteration in iterations
        if "greedy" in iteration
    }
    return len(found) == 1 if found else None


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown, in processor time and on the clock; a GPU has the clock alone."""
    clocks = ("cpu", "wall") if result["arguments"]["device"] == "cpu" else ("wall",)
    columns = [f"samples_per_{clock}_s" for clock in clocks[::-1]]
    columns.append(f"tokens_per_{clocks[0]}_s")
    faster = [f"samples_per_{clocks[0]}_s", *(f"tokens_per_{clock}_s" for clock in clocks)]
    titles = [*columns, "peak_mib", *(f"ours is faster by {name}" for name in faster)]
    titles = [title.replace("_per_", "/s, ").removesuffix("_s") for title in titles]
    rows = [
        f"| | {' | '.join(titles)} |".replace("peak_mib", "peak MiB"),
        "| :-- |" + " --: |" * len(titles),
    ]
    for name, figures in result["figures"].items():
        ratios = result["ratios"].get(name, {})
        cells = [f"{figures[column]:.2f}" for column in columns]
        cells.append(f"{figures['peak_mib']:.0f}")
        cells += [f"{ratios[key]:.2f}x" if key in ratios else "" for key in faster]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
