"""Kill-and-resume test: final checkpoints of killed runs must be bit-identical to an unbroken one.

    python -m eval.bench.kill_test --stage ppo --kills 20 --output_dir runs/kill_test

trains a tiny model without interruption. Then it starts the same command, kills it with SIGKILL
(half of the times while a checkpoint is being written, else at a random moment of training),
resumes it with `--resume_from_checkpoint last`, and compares the SHA-256 of the two final
checkpoints. This is repeated until `--kills` kills have been made.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

from pipeline.config import require
from pipeline.model.atomic import checkpoints, newest_intact
from pipeline.records import Problem
from pipeline.runtime import one_line_errors, write_json

SAVING = ".saving"  # exists while a checkpoint is being written
# Prefixes of logged times and of rates derived from them.
TIMINGS = (
    "time/",
    "train_",
    "step_time",
    "tokens_per_second",
    "eval_runtime",
    "eval_samples_per",
    "eval_steps_per",
)
PARTS = {
    "policy": ("model*.safetensors", "adapter_model.safetensors"),
    "value_head": ("value_head.safetensors",),
    "optimizer": ("optimizer.pt",),
    "scheduler": ("scheduler.pt",),
    "random": ("rng_state*.pth",),
    "controllers": ("controllers.json",),
    "rollout": ("rollout-*.safetensors", "replay-*.safetensors"),
    "progress": ("trainer_state.json", "unlogged-*.json"),
}
# Options of the stages. PPO's model never answers correctly, so it needs another reward than that.
TINY = {
    "sft": "--model nano --nano_hidden_size 32 --nano_layers 2 --nano_heads 2 "
    "--nano_intermediate_size 64 --nano_vocab_size 300 --shares wording=1,story1=1 --size 64 "
    "--max_steps 24 --per_device_train_batch_size 4 --learning_rate 4e-3 --muon true "
    "--save_strategy steps --save_steps 4 --logging_steps 3",
    "ppo": "--shares wording=1,story1=1 --size 8 --num_rollouts 24 --questions_per_rollout 4 "
    "--completions_per_question 2 --num_minibatches 2 --ppo_epochs 2 --learning_rate 1e-3 "
    "--value_learning_rate 1e-2 --max_completion_length 24 --save_every 2 "
    "--rewards eval.bench.kill_test:even_length=1,steps=0.3",
}


def fingerprint(folder: Path) -> dict[str, str]:
    """{part of the state: SHA-256 of its content} of a checkpoint, without logged times.

    The content is hashed, not the files: serialisation may differ between equal states.
    """
    digests = {}
    for part, patterns in PARTS.items():
        digest = hashlib.sha256()
        for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
            digest.update(path.name.encode())
            for piece in _pieces(_load(path)):
                digest.update(piece)
        digests[part] = digest.hexdigest()
    return digests


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """The parts of the state in which two fingerprints differ."""
    return [part for part in one if one[part] != other[part]]


def even_length(problem: Problem, completion: str) -> float:
    """1.0 for a completion of even length: an untrained model earns it half of the time."""
    return float(len(completion) % 2 == 0)


class Process(Protocol):
    """What is used of subprocess.Popen."""

    @property
    def returncode(self) -> int | None:
        """The exit code after the end."""
        ...

    def poll(self) -> int | None:
        """The exit code, None while the process runs."""
        ...

    def wait(self) -> int:
        """Wait for the end; the exit code."""
        ...

    def kill(self) -> None:
        """Send SIGKILL."""
        ...


def run_with_kills(
    start: Callable[[bool], Process],
    output_dir: Path,
    rng: random.Random,
    *,
    kills: int,
    span: tuple[float, float],
) -> tuple[int, int]:
    """Start a run, kill and resume it up to `kills` times, and let it finish.

    start  start(resume) starts the run and returns its process
    span   seconds after the start between which an unbroken run trains

    Returns (number of kills, how many of them during a save); there are fewer kills than `kills` if
    the run finishes earlier.
    """
    hits = writing = 0
    for _ in range(kills):
        process = start(bool(checkpoints(output_dir)))
        if rng.random() < 0.5:
            _wait(process, (output_dir / SAVING).exists, 600)
            time.sleep(rng.uniform(0, 0.02))
        else:
            _wait(process, lambda: False, rng.uniform(*span))
        caught = process.poll() is None
        process.kill()
        process.wait()
        if not caught:
            break
        hits += 1
        writing += (output_dir / SAVING).exists()
    process = start(bool(checkpoints(output_dir)))
    if process.wait() != 0:
        raise RuntimeError(f"the run in {output_dir} ended with exit code {process.returncode}")
    return hits, writing


def _wait(process: Process, done: Callable[[], bool], seconds: float) -> None:
    """Wait until `done()` is true, the process has ended or the seconds have passed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None and not done():
        time.sleep(0.002)


def _load(path: Path) -> object:
    if path.suffix == ".json":
        return _without_timings(json.loads(path.read_text()))
    if path.suffix == ".safetensors":
        return load_file(path)
    with safe_globals():
        return torch.load(path, map_location="cpu", weights_only=True)


def _without_timings(content: object) -> object:
    if isinstance(content, dict):
        return {
            key: _without_timings(value)
            for key, value in content.items()
            if not key.startswith(TIMINGS) and key != "best_model_checkpoint"
        }
    return [_without_timings(item) for item in content] if isinstance(content, list) else content


def _pieces(content: object) -> Iterator[bytes]:
    """The content as bytes that are equal for equal contents."""
    if isinstance(content, torch.Tensor):
        yield f"{content.dtype}{tuple(content.shape)}".encode()
        yield content.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(content, dict):
        for key in sorted(content, key=str):
            yield f"{key}:".encode()
            yield from _pieces(content[key])
    elif isinstance(content, (list, tuple)):
        yield f"[{len(content)}".encode()
        for item in content:
            yield from _pieces(item)
    elif hasattr(content, "tobytes"):  # numpy's random state
        yield content.tobytes()
    else:
        yield repr(content).encode()


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line; ValueError for a number of kills below 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=list(TINY), default="ppo")
    parser.add_argument("--kills", type=int, default=20, help="number of SIGKILLs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/kill_test"))
    args = parser.parse_args(argv)
    require(args.kills >= 1, f"kills={args.kills} must be at least 1")
    return args


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Run the test; exit code 1 if a killed run ends in another state."""
    args = parse_arguments(argv)
    folder = args.output_dir
    shutil.rmtree(folder, ignore_errors=True)
    options = TINY[args.stage].split()
    if args.stage == "ppo":
        options += ["--model", str(folder / "sft")]
        _run_whole("sft", TINY["sft"].split(), folder / "sft")
    span = _run_whole(args.stage, options, folder / "unbroken")
    expected = _end_state(folder / "unbroken")
    rng = random.Random(args.seed)
    trials: list[dict[str, Any]] = []
    while sum(trial["kills"] for trial in trials) < args.kills:
        out = folder / f"killed-{len(trials)}"
        left = args.kills - sum(trial["kills"] for trial in trials)
        kills, writing = run_with_kills(
            _command(args.stage, options, out), out, rng, kills=min(left, 3), span=span
        )
        parts = differing(expected, _end_state(out))
        trials.append({"kills": kills, "while_saving": writing, "differing_parts": parts})
        print(f"trial {len(trials)}: {trials[-1]}", flush=True)
        shutil.rmtree(out)
    write_json(
        folder / "kill_test.json",
        {"stage": args.stage, "seed": args.seed, "fingerprint": expected, "trials": trials},
    )
    kills, writing = (sum(trial[name] for trial in trials) for name in ("kills", "while_saving"))
    equal = sum(not trial["differing_parts"] for trial in trials)
    print(f"{args.stage}: {kills} kills, {writing} of them while a checkpoint was being written")
    print(f"{equal} of {len(trials)} runs ended in the state of the unbroken one")
    raise SystemExit(equal != len(trials))


def _end_state(output_dir: Path) -> dict[str, str]:
    """The fingerprint of a finished run's last checkpoint."""
    newest, complaints = newest_intact(output_dir)
    if newest is None:
        raise RuntimeError(f"{output_dir} has no intact checkpoint: {'; '.join(complaints)}")
    return fingerprint(newest)


def _run_whole(stage: str, options: Sequence[str], out: Path) -> tuple[float, float]:
    """Run a stage without kills; seconds from its start to its first file, and to its end."""
    began = time.monotonic()
    process = _command(stage, options, out)(False)
    _wait(process, out.exists, 600)
    first = time.monotonic() - began
    if process.wait() != 0:
        raise RuntimeError(f"stages.{stage} failed without a kill: see its output above")
    return first, time.monotonic() - began


def _command(stage: str, options: Sequence[str], out: Path) -> Callable[[bool], subprocess.Popen]:
    command = [sys.executable, "-m", f"stages.{stage}", *options, "--disable_tqdm", "true"]
    command += ["--output_dir", str(out)]

    def start(resume: bool) -> subprocess.Popen:
        last = ["--resume_from_checkpoint", "last"] if resume else []
        return subprocess.Popen(
            [*command, *last], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
        )

    return start


if __name__ == "__main__":
    main()
