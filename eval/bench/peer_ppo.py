"""A contender: TRL 1.12.0's own PPOTrainer (trl.experimental.ppo), which later releases dropped.

Modes: "shipped" as it is; "nogc" without its two calls of gc.collect() an update. Runs in the
peer's environment (`make peer`), where this project is not installed.
"""

import gc
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from eval.bench.lap import Laps, digits, read_task


class RewardModel(torch.nn.Module):
    """A reward function dressed as the model PPOTrainer wants: ids pass the backbone unchanged, and
    the score of a sequence stands at every position."""

    base_model_prefix = "backbone"

    def __init__(self, tokenizer: Any):
        super().__init__()
        self.tokenizer = tokenizer
        self.backbone = _Echo()
        self.context_length = 0
        self.tokens = 0

    def score(self, ids_BT: torch.Tensor) -> torch.Tensor:
        texts = self.tokenizer.batch_decode(ids_BT[:, self.context_length :])
        scores_B = torch.tensor([digits(text) for text in texts], device=ids_BT.device)
        return scores_B[:, None, None].expand(*ids_BT.shape, 1)


class _Echo(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> SimpleNamespace:
        return SimpleNamespace(hidden_states=[input_ids])


class OneUpdateALap(TrainerCallback):
    def __init__(self, laps: Laps, samples: int, ppo_trainer: Any):
        self.laps, self.samples, self.tokens = laps, samples, 0
        self.ppo_trainer = ppo_trainer

    def begin(self) -> None:
        self.laps.begin()
        self.ppo_trainer.gc = gc if self.laps.mode == "shipped" else SimpleNamespace(collect=int)
        self.tokens = 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        # The second gc.collect() of an update comes after this, and so falls into the next lap.
        self.laps.end(samples=self.samples, tokens=self.tokens)
        self.begin()


def main() -> None:
    # The environment of this project, which also reads this file, has no such module.
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    laps, task = Laps(), read_task()
    folder = task["model"]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32") for _ in range(2)
    )
    value = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype="float32"
    )
    samples = task["questions"] * task["completions"]
    prompts = json.loads((Path(folder) / "prompts.json").read_text())["ids"]
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=task["output_dir"],
            total_episodes=samples * 1_000,
            per_device_train_batch_size=samples,
            gradient_accumulation_steps=1,
            num_mini_batches=task["minibatches"],
            num_ppo_epochs=task["epochs"],
            response_length=task["max_length"],
            temperature=1.0,
            stop_token="eos",
            learning_rate=task["learning_rate"],
            num_sample_generations=0,
            bf16=task["dtype"] == "bfloat16",
            use_cpu=task["device"] == "cpu",
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=RewardModel(tokenizer),
        value_model=value,
        train_dataset=Dataset.from_dict(
            {"input_ids": [ids for ids in prompts for _ in range(task["completions"])]}
        ),
    )
    callback = OneUpdateALap(laps, samples, ppo_trainer)
    truncate = ppo_trainer.truncate_response

    def counted(stop_id: int, pad_id: int, responses: torch.Tensor) -> torch.Tensor:
        kept = truncate(stop_id, pad_id, responses)
        callback.tokens += int((kept != pad_id).sum())
        return kept

    ppo_trainer.truncate_response = counted
    laps.timed(ppo_trainer, "batch_generation", "sample")
    trainer.add_callback(callback)
    trainer.train()


if __name__ == "__main__":
    main()
