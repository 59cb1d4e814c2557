"""A contender: this project's PPO."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from pipeline.runtime import prepare_cpu

prepare_cpu()  # as the stage does, before anything takes memory

from eval.bench.iteration import Iterations, read_task, reward_of  # noqa: E402
from eval.bench.shapes import linear_flops  # noqa: E402
from eval.bench.trainers import OneUpdatePerIteration, asked  # noqa: E402
from pipeline.model import load_policy  # noqa: E402
from pipeline.ppo.config import PPOConfig  # noqa: E402
from pipeline.ppo.trl_trainer import ReasoningPPOTrainer  # noqa: E402


class ProfiledIterations(Iterations):
    """Iterations that tell what they spend their time on. Telling it is not counted, being watched is."""

    def begin(self) -> None:
        super().begin()
        self.profiler = torch.profiler.profile()
        self.profiler.start()

    def end(self, **figures: Any) -> None:
        before = time.perf_counter(), time.process_time()
        self.profiler.stop()
        events = self.profiler.key_averages()
        total = sum(event.self_cpu_time_total for event in events)
        shares = {event.key: event.self_cpu_time_total / total for event in events}
        most = sorted(shares, key=shares.__getitem__, reverse=True)[:12]
        busy = sum(event.self_device_time_total for event in events) / 1e6
        after = time.perf_counter(), time.process_time()
        self.started = tuple(s + b - a for s, a, b in zip(self.started, before, after, strict=True))
        super().end(**figures, gpu_busy_s=busy, operations={key: shares[key] for key in most})


def main() -> None:
    task = read_task()
    iterations = ProfiledIterations() if task["profile"] else Iterations()
    folder = Path(task["model"])
    prompts = json.loads((folder / "prompts.json").read_text())
    score, earned = reward_of(task), []

    def reward(completions: list, answer: list[str], **columns: Any) -> list[float]:
        earned[:] = [
            score(row[0]["content"], a) for row, a in zip(completions, answer, strict=True)
        ]
        return list(earned)

    model, tokenizer = load_policy(str(folder))
    args = PPOConfig(
        output_dir=task["output_dir"],
        num_rollouts=1_000,
        questions_per_rollout=task["questions"],
        completions_per_question=task["completions"],
        ppo_epochs=task["epochs"],
        num_minibatches=task["minibatches"],
        max_completion_length=task["max_length"],
        learning_rate=task["learning_rate"],
        kl_coef=task["kl_coef"],
        entropy_coef=0.0,
        value_coef=0.1,
        seed=task["seed"],
        bf16=task["dtype"] == "bfloat16",
        disable_tqdm=True,
    )
    trainer = ReasoningPPOTrainer(
        model,
        reward,
        args,
        processing_class=tokenizer,
        train_dataset=asked(prompts),
    )

    def figures() -> dict[str, float]:
        rollout = trainer.rollout_batch
        completion = int(rollout["completion_mask"].sum())
        prompt = int(rollout["prompt_mask"].sum())
        flops = linear_flops(trainer.model, prompt + completion, completion)
        return {
            "samples": len(rollout["advantages"]),
            "reward": sum(earned) / len(earned),
            "tokens": completion,
            "update_gflop": task["epochs"] * flops / 1e9,
        }

    iterations.timed(trainer.sampler, "sample", "sample")
    iterations.timed(trainer.collector, "reference", "reference")
    iterations.timed(trainer, "collect_rollout", "rollout")
    trainer.add_callback(OneUpdatePerIteration(iterations, args.steps_per_rollout, figures))
    trainer.train()


if __name__ == "__main__":
    main()
