"""A contender: one forward and backward over sampled completions, in packed or in padded form.

The trunk is small, so that what grows is what the vocabulary and the length make grow.
"""

import torch

import pipeline.scoring.logprobs as logprobs
from eval.bench.iteration import Iterations, read_task
from eval.bench.shapes import Shape, random_model
from pipeline.data import load_problems
from pipeline.model import train_tokenizer
from pipeline.runtime import set_threads


def main() -> None:
    iterations, task = Iterations(), read_task()
    set_threads()
    tokenizer = train_tokenizer(p.question for p in load_problems("nano", "train")[:100])
    shape = Shape(hidden_size=64, num_hidden_layers=2, vocab_size=task["vocab_size"])
    model = random_model(shape, tokenizer).train()
    if task["plain"]:
        logprobs.supports_packing = lambda model: False
    rows, length = task["rows"], task["length"]
    prompt_BP = torch.randint(10, 256, (rows, 16))
    completion_BC = torch.randint(10, 256, (rows, length))
    full = torch.ones(rows, 16, dtype=torch.bool), torch.ones(rows, length, dtype=torch.bool)
    while True:
        iterations.begin()
        model.zero_grad()
        scores = logprobs.score_completions(model, prompt_BP, full[0], completion_BC, full[1])
        (scores.logprobs_BC.sum() + scores.entropy_BC.sum() + scores.values_BC.sum()).backward()
        iterations.end(samples=rows, tokens=rows * length)


if __name__ == "__main__":
    main()
