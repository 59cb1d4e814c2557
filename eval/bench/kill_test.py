"""Does a run that is killed again and again end as one that never was? To the last bit.

    python -m eval.bench.kill_test --stage ppo --kills 20 --output_dir runs/soak

trains a tiny model undisturbed. Then it starts the same command, kills it with SIGKILL, every other
time while a checkpoint is being written, otherwise at a random moment of the training, resumes it
with `--resume_from_checkpoint last` and, at the end, compares the SHA-256 of everything that the
two last checkpoints hold; until there were as many kills as asked for.
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
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

from pipeline.model.atomic import checkpoints, newest_intact
from pipeline.runtime import one_line_errors, write_json

SAVING = ".saving"  # beside the checkpoints while one is being written
# Clocks, and figures made from them.
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
    "rollout": ("rollout-*.safetensors",),
    "progress": ("trainer_state.json", "unlogged-*.json"),
}
TINY = {
    "sft": {
        "model": "nano",
        "nano_hidden_size": 32,
        "nano_layers": 2,
        "nano_heads": 2,
        "nano_intermediate_size": 64,
        "nano_vocab_size": 300,
        "shares": "wording=1,story1=1",
        "size": 64,
        "max_steps": 24,
        "per_device_train_batch_size": 4,
        "learning_rate": 4e-3,
        "muon": True,
        "save_strategy": "steps",
        "save_steps": 4,
        "logging_steps": 3,
    },
    "ppo": {
        "shares": "wording=1,story1=1",
        "size": 8,
        "rewards": "eval.bench.kill_test:even_length=1,steps=0.3",  # a right answer is out of reach
        "num_rollouts": 24,
        "questions_per_rollout": 4,
        "completions_per_question": 2,
        "num_minibatches": 2,
        "ppo_epochs": 2,
        "value_learning_rate": 1e-2,
        "learning_rate": 1e-3,
        "max_completion_length": 24,
        "save_every": 2,
    },
}


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 by part of the state of a run: what a checkpoint holds, not how it is written.

    Clocks are left out, and so is how long a checkpoint took to get there.
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
    """The parts in which two fingerprints differ."""
    return [part for part in one if one[part] != other[part]]


def even_length(problem: Any, completion: str) -> float:
    """A reward that a model without skill earns half of the time."""
    return float(len(completion) % 2 == 0)


def end_in_spite_of_kills(
    start: Callable[[bool], Any],
    output_dir: Path,
    rng: random.Random,
    *,
    kills: int,
    span: tuple[float, float],
) -> tuple[int, int]:
    """Start a run, kill and resume it up to `kills` times, and let it end.

    (kills, those that fell while a checkpoint was being written); fewer where the run was quicker.

    start(resume)  starts the run and returns what has poll(), kill() and wait(), as Popen has
    span           seconds after its start between which an undisturbed run trains
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


def _wait(process: Any, done: Callable[[], bool], seconds: float) -> None:
    """Until `done` comes true, the process has ended or the seconds are over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None and not done():
        time.sleep(0.002)


def _load(path: Path) -> Any:
    if path.suffix == ".json":
        return _without_clocks(json.loads(path.read_text()))
    if path.suffix == ".safetensors":
        return load_file(path)
    with safe_globals():
        return torch.load(path, map_location="cpu", weights_only=True)


def _without_clocks(content: Any) -> Any:
    if isinstance(content, dict):
        return {
            key: _without_clocks(value)
            for key, value in content.items()
            if not key.startswith(TIMINGS) and key != "best_model_checkpoint"
        }
    return [_without_clocks(item) for item in content] if isinstance(content, list) else content


def _pieces(content: Any) -> Iterator[bytes]:
    """The content as bytes that are equal where it is, whatever objects it is made of."""
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


# ---- the command ----


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=list(TINY), default="ppo")
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments to kill at")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/soak"))
    asked = parser.parse_args(argv)
    if asked.kills < 1:
        raise ValueError(f"kills={asked.kills} must be at least 1")
    return asked


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    asked = parse(argv)
    folder = asked.output_dir
    shutil.rmtree(folder, ignore_errors=True)
    options = dict(TINY[asked.stage])
    if asked.stage == "ppo":
        options["model"] = str(folder / "sft")
        _run_whole("sft", TINY["sft"], folder / "sft")
    span = _run_whole(asked.stage, options, folder / "unbroken")
    expected = fingerprint(newest_intact(folder / "unbroken")[0])
    rng = random.Random(asked.seed)
    trials = []
    while sum(trial["kills"] for trial in trials) < asked.kills:
        out = folder / f"killed-{len(trials)}"
        left = asked.kills - sum(trial["kills"] for trial in trials)
        kills, writing = end_in_spite_of_kills(
            _command(asked.stage, options, out), out, rng, kills=min(left, 3), span=span
        )
        parts = differing(expected, fingerprint(newest_intact(out)[0]))
        trials.append({"kills": kills, "while_saving": writing, "differing_parts": parts})
        print(f"trial {len(trials)}: {trials[-1]}", flush=True)
        shutil.rmtree(out)
    write_json(
        folder / "soak.json",
        {"stage": asked.stage, "seed": asked.seed, "fingerprint": expected, "trials": trials},
    )
    kills, writing = (sum(trial[name] for trial in trials) for name in ("kills", "while_saving"))
    equal = sum(not trial["differing_parts"] for trial in trials)
    print(f"{asked.stage}: {kills} kills, {writing} of them while a checkpoint was being written")
    print(f"{equal} of {len(trials)} runs ended as the unbroken one")
    raise SystemExit(equal != len(trials))


def _run_whole(stage: str, options: dict[str, Any], out: Path) -> tuple[float, float]:
    """Run a stage undisturbed; the seconds from its start to its first file, and to its end."""
    began = time.monotonic()
    process = _command(stage, options, out)(False)
    _wait(process, out.exists, 600)
    first = time.monotonic() - began
    if process.wait() != 0:
        raise RuntimeError(f"stages.{stage} failed by itself; its output is above")
    return first, time.monotonic() - began


def _command(stage: str, options: dict[str, Any], out: Path) -> Callable[[bool], subprocess.Popen]:
    arguments = [str(word) for pair in options.items() for word in (f"--{pair[0]}", pair[1])]
    command = [sys.executable, "-m", f"stages.{stage}", *arguments, "--disable_tqdm", "true"]
    command += ["--output_dir", str(out)]

    def start(resume: bool) -> subprocess.Popen:
        last = ["--resume_from_checkpoint", "last"] if resume else []
        return subprocess.Popen(
            [*command, *last], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
        )

    return start


if __name__ == "__main__":
    main()
