"""A contender: this project's sampler, which also keeps log-probabilities and values."""

import json
from pathlib import Path

import torch

from eval.bench.iteration import Iterations, read_task
from pipeline.generation import Sampler
from pipeline.model import load_policy
from pipeline.runtime import set_threads


def main() -> None:
    iterations, task = Iterations(), read_task()
    set_threads()
    model, tokenizer = load_policy(task["model"])
    model.to(task["device"], getattr(torch, task["dtype"]))
    model.value_head.float()  # it reads in float32 whatever the trunk's precision
    prompts = json.loads((Path(task["model"]) / "prompts.json").read_text())["ids"]
    torch.manual_seed(0)
    greedy = Sampler(model, tokenizer, temperature=0, max_new_tokens=32).sample(prompts[:8])
    sampler = Sampler(model, tokenizer, temperature=1.0, max_new_tokens=task["max_length"])
    while True:
        iterations.begin()
        rollout = sampler.sample(prompts, group=task["completions"])
        iterations.end(
            samples=len(rollout.completion_ids_BC),
            tokens=int(rollout.mask_completion_BC.sum()),
            greedy=str(
                [
                    ids[mask].tolist()
                    for ids, mask in zip(
                        greedy.completion_ids_BC, greedy.mask_completion_BC, strict=True
                    )
                ]
            ),
        )


if __name__ == "__main__":
    main()
