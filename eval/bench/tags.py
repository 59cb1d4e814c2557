"""How well `</think>` is learned by a short SFT, by the start of its row.

    python -m eval.bench.tags --model smol --steps 50
    python -m eval.bench.tags --model smol --untie true        or --use_peft true

    mean         mean row of the vocabulary plus noise
    structural   row of the end-of-text token plus noise (`add_reasoning_tokens`)
    fitted       that row, fitted to 64 examples before training (`fit_end_think`; stages.sft)

Measured on worked solutions that were not trained on: mean p(</think>) at the end of the thought
and elsewhere in it, and the share of greedy samples that close.
"""

import copy
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.hf_argparser import HfArg

from pipeline.chat.tags import END_THINK
from pipeline.cli import CommandParser
from pipeline.config import DataConfig, ModelConfig, PositiveFloat, PositiveInt, check_types
from pipeline.data import load_problems
from pipeline.data.equation_steps import with_single_operations
from pipeline.data.sft_examples import sft_dataset
from pipeline.model import add_reasoning_tokens, freeze_layers, load_policy, lora_config
from pipeline.runtime import one_line_errors, prepare_cpu
from pipeline.sft.tags import closed_share, closing_probabilities, fit_end_think

STARTS = ("mean", "structural", "fitted")


@dataclass(kw_only=True)
class TagsConfig:
    """What is compared, and how long is trained."""

    starts: str = HfArg(default=",".join(STARTS), help="starts of the row, with commas")
    untie: bool = HfArg(default=False, help="give the LM head weights of its own")
    steps: PositiveInt = HfArg(default=100, help="SFT steps")
    batch_size: PositiveInt = HfArg(default=8, help="examples of a step")
    learning_rate: PositiveFloat = HfArg(default=2e-4, help="peak rate of AdamW; cosine")
    max_length: PositiveInt = HfArg(default=128, help="tokens of an example at most")
    held_out: PositiveInt = HfArg(default=100, help="worked solutions to measure on")
    output: str = HfArg(default="", help="JSON file of the result")

    def __post_init__(self) -> None:
        check_types(self)
        for start in self.starts.split(","):
            if start not in STARTS:
                raise ValueError(f"starts={start} is not one of {', '.join(STARTS)}")


def measure(config: TagsConfig, model_config: ModelConfig, data: DataConfig, start: str) -> dict:
    """Train from one start and measure; the figures by name."""
    from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer

    set_seed(42)
    model, tokenizer = load_policy(
        model_config.model, value_head="optional", dtype=torch.float32, will_grow=True
    )
    if config.untie:
        untie(model)
    size = len(tokenizer)
    add_reasoning_tokens(model, tokenizer)
    if start == "mean":
        start_at_mean(model, size)
    problems = [p for p in load_problems(data.dataset, data.split, data.data_root) if p.thought]
    if data.single_operations:
        problems = [with_single_operations(problem) for problem in problems]
    rows, _ = sft_dataset(tokenizer, problems, max_length=config.max_length, progress=False)
    needed = max(64, config.steps * config.batch_size)
    rows = rows.shuffle(seed=0)
    trained = rows.select(range(min(needed, len(rows) - config.held_out)))
    held_out = list(rows.select(range(len(rows) - config.held_out, len(rows))))
    begin = time.process_time()
    if start == "fitted":
        fit_end_think(model, tokenizer, list(trained.select(range(64))))
    freeze_layers(model, model_config.frozen_layers)
    at_start = probabilities(model, tokenizer, held_out)
    with tempfile.TemporaryDirectory() as folder:
        args = ReasoningSFTConfig(
            output_dir=folder,
            max_steps=config.steps,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            train_sampling_strategy="group_by_length",
            logging_steps=10,
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = ReasoningSFTTrainer(
            model=model,
            args=args,
            train_dataset=trained,
            processing_class=tokenizer,
            peft_config=lora_config(model_config, model, tokenizer),
        )
        trainer.train()
    trained_model = trainer.accelerator.unwrap_model(trainer.model)
    prompts = [row["input_ids"][: row["completion_mask"].index(1)] for row in held_out]
    return {
        "start": start,
        "before": at_start,
        "after": probabilities(trained_model, tokenizer, held_out),
        "closed": closed_share(trained_model, tokenizer, prompts, max_new_tokens=96),
        "cpu_seconds": round(time.process_time() - begin),
    }


@torch.no_grad()
def probabilities(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict]
) -> dict[str, float]:
    """{tags/close, tags/close_elsewhere, loss}: means over the trained tokens of all rows."""
    model.eval()
    logits, labels = [], []
    for row in rows:
        ids_T = torch.tensor(row["input_ids"])
        at_M = torch.tensor(row["completion_mask"]).bool().nonzero().squeeze(1)
        output = model(input_ids=ids_T.unsqueeze(0), use_cache=False)
        logits.append(output["logits"][0, at_M - 1])
        labels.append(ids_T[at_M])
    end_id = tokenizer.convert_tokens_to_ids(END_THINK)
    logits_MV, labels_M = torch.cat(logits), torch.cat(labels)
    found = closing_probabilities(logits_MV, labels_M, end_id)
    found["loss"] = float(nn.functional.cross_entropy(logits_MV, labels_M))
    return {name: round(p, 4) for name, p in found.items()}


@torch.no_grad()
def start_at_mean(model: PreTrainedModel, size: int) -> None:
    """Set all rows from `size` on to the mean of those before, plus a tenth of their spread."""
    generator = torch.Generator().manual_seed(0)
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    for rows_VD in {id(module.weight): module.weight for module in modules}.values():
        old_VD = rows_VD[:size]
        noise_ND = torch.randn(rows_VD[size:].shape, generator=generator)
        rows_VD[size:] = old_VD.mean(dim=0) + 0.1 * old_VD.std(dim=0) * noise_ND


def untie(model: PreTrainedModel) -> None:
    """Give the LM head a copy of the embedding as weights of its own."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(copy.deepcopy(head.weight.detach()))
    model.config.tie_word_embeddings = False


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measure every start; print a line for each, write them as JSON."""
    prepare_cpu()
    parser = CommandParser([TagsConfig, ModelConfig, DataConfig])
    config, model_config, data = parser.parse_args_and_config(argv)
    results = []
    for start in config.starts.split(","):
        results.append(measure(config, model_config, data, start))
        print(json.dumps(results[-1]))
    if config.output:
        content = {"config": asdict(config), "model": model_config.model, "results": results}
        Path(config.output).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
