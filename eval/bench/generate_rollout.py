"""A contender: transformers' generate, all completions in one batch as TRL's trainers call it."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.bench.iteration import Iterations, read_task
from pipeline.generation.kv_cache import pad_left
from pipeline.runtime import set_threads


def main() -> None:
    iterations, task = Iterations(), read_task()
    set_threads()
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=task["dtype"]).eval()
    model.to(task["device"])
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    prompts = json.loads((Path(task["model"]) / "prompts.json").read_text())["ids"]
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id

    def generate(prompts: list[list[int]], **options: object) -> list[list[int]]:
        ids_BP, mask_BP = (tensor.to(task["device"]) for tensor in pad_left(prompts, pad))
        sampled_BT = model.generate(
            input_ids=ids_BP, attention_mask=mask_BP.long(), eos_token_id=end, **options
        )
        rows = sampled_BT[:, ids_BP.shape[1] :].tolist()
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    torch.manual_seed(0)
    greedy = generate(prompts[:8], do_sample=False, max_new_tokens=32)
    while True:
        iterations.begin()
        rows = generate(
            [ids for ids in prompts for _ in range(task["completions"])],
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=task["max_length"],
        )
        iterations.end(samples=len(rows), tokens=sum(map(len, rows)), greedy=str(greedy))


if __name__ == "__main__":
    main()
