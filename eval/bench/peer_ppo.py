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

from eval.bench.iteration import Iterations, read_task, reward_of


class RewardModel(torch.nn.Module):
    """A reward function dressed as the model PPOTrainer wants: ids pass the backbone unchanged, and
    the score of a sequence stands at every position."""

    base_model_prefix = "backbone"

    def __init__(self, tokenizer: Any, task: dict[str, Any], prompts: dict[str, list]):
        super().__init__()
        self.tokenizer, self.reward = tokenizer, reward_of(task)
        answers = zip(prompts["ids"], prompts["answers"], strict=True)
        self.answers = {tuple(ids): answer for ids, answer in answers}
        self.earned: list[float] = []
        self.backbone = _Echo()
        self.scores: list[float] = []

    def read(self, ids_BT: torch.Tensor, context_length: int) -> None:
        """Score the completions behind `context_length`; `score` then only hands that out."""
        pad = self.tokenizer.pad_token_id
        asked = [tuple(i for i in ids if i != pad) for ids in ids_BT[:, :context_length].tolist()]
        texts = self.tokenizer.batch_decode(ids_BT[:, context_length:], skip_special_tokens=True)
        self.scores = [
            self.reward(t, self.answers[ids]) for t, ids in zip(texts, asked, strict=True)
        ]
        self.earned += self.scores

    def score(self, ids_BT: torch.Tensor) -> torch.Tensor:
        scores_B = torch.tensor(self.scores, device=ids_BT.device)
        return scores_B[:, None, None].expand(*ids_BT.shape, 1)


class _Echo(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> SimpleNamespace:
        return SimpleNamespace(hidden_states=[input_ids])


class OneUpdatePerIteration(TrainerCallback):
    def __init__(self, iterations: Iterations, samples: int, earned: list[float], ppo_trainer: Any):
        self.iterations, self.samples, self.tokens = iterations, samples, 0
        self.ppo_trainer, self.earned = ppo_trainer, earned

    def begin(self) -> None:
        self.iterations.begin()
        self.ppo_trainer.gc = (
            gc if self.iterations.mode == "shipped" else SimpleNamespace(collect=int)
        )
        self.tokens = 0
        self.earned.clear()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.begin()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        # The second gc.collect() of an update comes after this, and so falls into the next lap.
        reward = sum(self.earned) / len(self.earned)
        self.iterations.end(samples=self.samples, tokens=self.tokens, reward=reward)
        self.begin()


def main() -> None:
    # The environment of this project, which also reads this file, has no such module.
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    iterations, task = Iterations(), read_task()
    folder = task["model"]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32") for _ in range(2)
    )
    value = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype="float32"
    )
    samples = task["questions"] * task["completions"]
    prompts = json.loads((Path(folder) / "prompts.json").read_text())
    judge = RewardModel(tokenizer, task, prompts)
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
            kl_coef=task["kl_coef"],
            num_sample_generations=0,
            seed=task["seed"],
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
        reward_model=judge,
        value_model=value,
        train_dataset=Dataset.from_dict(
            {"input_ids": [ids for ids in prompts["ids"] for _ in range(task["completions"])]}
        ),
    )
    callback = OneUpdatePerIteration(iterations, samples, judge.earned, ppo_trainer)
    truncate, get_reward = ppo_trainer.truncate_response, ppo_trainer.get_reward

    def counted(stop_id: int, pad_id: int, responses: torch.Tensor) -> torch.Tensor:
        kept = truncate(stop_id, pad_id, responses)
        callback.tokens += int((kept != pad_id).sum())
        return kept

    def read(model: Any, ids_BT: torch.Tensor, pad_id: int, context_length: int) -> Any:
        if model is judge:
            judge.read(ids_BT, context_length)
        return get_reward(model, ids_BT, pad_id, context_length)

    ppo_trainer.truncate_response = counted
    ppo_trainer.get_reward = read
    iterations.timed(ppo_trainer, "batch_generation", "sample")
    trainer.add_callback(callback)
    trainer.train()


if __name__ == "__main__":
    main()
