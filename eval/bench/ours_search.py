"""A contender: a vote of this project's search, answers and votes included."""

import json
from itertools import count
from pathlib import Path

from eval.bench.iteration import Iterations, read_task
from pipeline.generation.shared_prefix import DecodeRequest, PrefixEngine
from pipeline.model import load_policy
from pipeline.runtime import set_threads
from pipeline.search import STRATEGIES, SearchOptions


def main() -> None:
    iterations, task = Iterations(), read_task()
    set_threads()
    model, tokenizer = load_policy(task["model"])
    prompts = json.loads((Path(task["model"]) / "prompts.json").read_text())
    questions = prompts["questions"][: task["questions"]]
    engine = PrefixEngine(model, tokenizer)
    greedy = engine.extend(
        [
            DecodeRequest(sequence=root, budget=32, stream=(0,), temperature=0.0)
            for root in engine.start(prompts["ids"][: task["questions"]])
        ]
    )
    for seed in count():
        options = SearchOptions(
            n=task["completions"],
            temperature=1.0,
            max_sample_tokens=task["max_length"],
            answer_tokens=0,  # generate closes no thought either
            batch_size=task["batch_size"],
            seed=seed,
        )
        iterations.begin()
        answers = STRATEGIES["consensus"](model, tokenizer, questions, options)
        iterations.end(
            samples=len(answers) * task["completions"],
            tokens=sum(answer.usage.completion_tokens for answer in answers),
            greedy=str([list(branch.ids) for branch in greedy]),
        )


if __name__ == "__main__":
    main()
