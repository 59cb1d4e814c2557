"""The options of the benchmarks, and the implementations that each of them compares."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers.hf_argparser import HfArg

from eval.bench.measure import Task
from eval.bench.runner import Implementation
from eval.bench.shapes import SHAPES
from pipeline.config import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_types,
    require,
)
from pipeline.runtime import folder_name
from pipeline.sandbox import require_level, working_levels

# AdamW at this rate leaves the weights unchanged, so that completions keep their length. At 1e-6
# TRL's grow by half within four updates, and with them the work per sample.
NO_LEARNING, LEARNING = 1e-12, 3e-4
# With these and no value loss PPO has the gradients of GRPOTrainer (tests/test_grpo_parity.py).
AS_GRPO = {
    "normalize_advantages": "group",
    "zero_variance_groups": "keep",
    "token_mean": "rollout",
    "minibatch_shuffle": "rollout",
}
REWARDS = {"right": "share of right answers", "digits": "share of digits"}


@dataclass(kw_only=True)
class BenchArguments:
    """What is measured; the same for every implementation."""

    shape: str = HfArg(default="nano", help=f"one of {', '.join(SHAPES)}")
    checkpoint: str | None = HfArg(default=None, help="measure this model, not a random one")
    peer_python: str = HfArg(
        default=".venv-peer/bin/python", help="interpreter with TRL 1.12.0 (make peer)"
    )
    iterations: PositiveInt = HfArg(default=5, help="measured iterations of each implementation")
    warmup: NonNegativeInt = HfArg(default=1, help="iterations before them, not measured")
    threads: PositiveInt = HfArg(default=1, help="threads of each implementation")
    device: Literal["cpu", "cuda"] = HfArg(
        default="cpu", help="cpu, or cuda for `ppo`, `rollout` and `learn`"
    )
    dtype: Literal["float32", "bfloat16"] = HfArg(
        default="float32", help="float32, or bfloat16: weights in `rollout`, autocast elsewhere"
    )
    completions: PositiveInt | None = HfArg(
        default=None, help="completions per question; default: the shape's"
    )
    learning_rate: PositiveFloat | None = HfArg(
        default=None, help=f"of every trainer; default: {NO_LEARNING}, of `learn` {LEARNING}"
    )
    kl_coef: NonNegativeFloat = HfArg(
        default=0.05, help="weight of the KL penalty of every trainer"
    )
    seeds: str = HfArg(default="0,1,2", help="of `learn`: one run for each, without warm-up")
    profile: bool = HfArg(
        default=False, help="of `ppo`: report the operations that take most time in ours"
    )
    data_root: str | None = HfArg(
        default=None,
        help="folder of NAME/SPLIT.jsonl.gz for `programs`; default: $THINKHEAD_DATA, else the Hub",
    )
    reward: Literal["right", "digits"] = HfArg(
        default="right", help="of `learn`: right, a right answer; digits, the share of digits"
    )
    save_dir: str = HfArg(
        default="", help="of `learn`: save the trained models here, as NAME-SEED; default: not"
    )
    only: str = HfArg(default="", help="comma-separated names of implementations; default: all")
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


def task_of(args: BenchArguments, folder: Path) -> Task:
    """What every implementation is given: the sizes of the work and the folder of the model."""
    shape = SHAPES[args.shape]
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


def implementations(command: str, task: Task, args: BenchArguments) -> list[Implementation]:
    """The implementations that a benchmark compares, or those of them that `--only` names."""
    found = BENCHMARKS[command](task, args)
    for implementation in found:
        if "output_dir" in implementation.task:  # a folder is locked by the run that writes to it
            output = Path(implementation.task["output_dir"]) / implementation.name
            implementation.task = implementation.task | {"output_dir": str(output)}
            if args.save_dir and command == "learn":
                saved = saved_model(args.save_dir, implementation.name, task["seed"])
                implementation.task["save_to"] = str(saved)
    if not args.only:
        return found
    names = args.only.split(",")
    known = [i.name + suffix for i in found for suffix in i.modes]
    for name in names:
        require(name in known, f"only={name!r} is none of {', '.join(known)}")
    for implementation in found:
        modes = implementation.modes.items()
        implementation.modes = {s: m for s, m in modes if implementation.name + s in names}
    return [implementation for implementation in found if implementation.modes]


def saved_model(save_dir: str, name: str, seed: int) -> Path:
    """The folder for the model that an implementation trained with a seed."""
    return Path(save_dir).absolute() / folder_name(f"{name}-{seed}")


def _ours(workload: str, task: Task, name: str = "ours") -> Implementation:
    return Implementation(name, "ours.py", workload, task)


def _reference(
    name: str,
    workload: str,
    task: Task,
    python: str = sys.executable,
    modes: dict[str, str] | None = None,
) -> Implementation:
    return Implementation(name, "reference.py", workload, task, python, modes or {"": "run"})


def _ppo(task: Task, args: BenchArguments) -> list[Implementation]:
    found = [_ours("ppo", task | {"profile": args.profile}), _reference("grpo", "grpo", task)]
    if not Path(args.peer_python).exists():
        print(
            f"PPOTrainer is left out: peer_python={args.peer_python} does not exist; "
            "`make peer` makes it"
        )
        return found
    python = str(Path(args.peer_python).absolute())
    modes = {"": "shipped", " without gc": "nogc"}
    peer = _reference("trl-1.12 ppo", "trl_ppo", task, python=python, modes=modes)
    return [found[0], peer, found[1]]


def _learn(task: Task, args: BenchArguments) -> list[Implementation]:
    """The implementations of `ppo` in their first mode: gc.collect() does not affect learning.

    Ours also without the value head, with the leave-one-out baseline instead, as
    configs/nano/ppo_alone.yaml has it: GRPOTrainer has no value function either. And with
    the options of GRPOTrainer.
    """
    found = _ppo(task, args)
    without = task | {"value_head": False}
    found[1:1] = [
        _ours("ppo", without, name="ours without V"),
        _ours("ppo", without | {"options": AS_GRPO}, name="ours as grpo"),
    ]
    for implementation in found:
        implementation.modes = {"": implementation.modes[""]}
    return found


def _rollout(task: Task, args: BenchArguments) -> list[Implementation]:
    task = task | {"completions": args.completions or 16}
    return [_ours("rollout", task), _reference("generate", "generate", task)]


def _search(task: Task, args: BenchArguments) -> list[Implementation]:
    completions = args.completions or 64
    task = task | {
        "questions": 8,
        "completions": completions,
        "batch_size": 8 * completions,
        "device": "cpu",
        "dtype": "float32",
    }
    modes = {"": "together", " by question": "apart"}
    return [_ours("search", task), _reference("generate", "generate", task, modes=modes)]


def _sft(task: Task, args: BenchArguments) -> list[Implementation]:
    return [
        _ours("sft", task | {"trl": False}),
        _ours("sft", task | {"trl": True}, name="trl sft"),
    ]


def _pretrain(task: Task, args: BenchArguments) -> list[Implementation]:
    return [
        _ours("pretrain", task | {"padded": False}),
        _ours("pretrain", task | {"padded": True}, name="transformers padded"),
    ]


def _memory(task: Task, args: BenchArguments) -> list[Implementation]:
    return [
        _ours(
            "memory",
            {
                "vocab_size": vocabulary,
                "length": length,
                "rows": 4,
                "padded": name == "plain",
                "checkpointing": name == "ours checkpointing",
            },
            name=f"{name} V={vocabulary} C={length}",
        )
        for vocabulary in (512, 150_016)
        for length in (64, 256)
        for name in ("ours", "ours checkpointing", "plain")
    ]


def _grader(task: Task, args: BenchArguments) -> list[Implementation]:
    return [_ours("grader", task), _reference("math-verify", "math_verify", task)]


def _programs(task: Task, args: BenchArguments) -> list[Implementation]:
    """One mode for each level of isolation that works on this machine."""
    require_level()
    modes = {f" at {level}": level for level in working_levels()}
    return [Implementation("programs", "ours.py", "programs", task, modes=modes)]


BENCHMARKS: dict[str, Callable[[Task, BenchArguments], list[Implementation]]] = {
    "ppo": _ppo,
    "rollout": _rollout,
    "search": _search,
    "sft": _sft,
    "pretrain": _pretrain,
    "memory": _memory,
    "grader": _grader,
    "programs": _programs,
    "learn": _learn,
}
