"""With the options of GRPO, the loss of PPO has the gradients of TRL's GRPOTrainer."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from pipeline.chat.prompts import user_message
from pipeline.model import save_policy
from pipeline.ppo.advantages import standardize_groups
from pipeline.ppo.metrics import MeanSums
from pipeline.ppo.options import PPOOptions
from pipeline.ppo.update import token_losses
from pipeline.scoring import score_completions

STEPS, EPOCHS, GROUP, QUESTIONS = 2, 2, 4, 4
OPTIONS = PPOOptions(value_coef=0.0, entropy_coef=0.0, clip=0.2)


class Recorder(GRPOTrainer):
    """Keeps what every call of `compute_loss` is given."""

    def compute_loss(self, model: Any, inputs: dict, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.__dict__.setdefault("seen", []).append(dict(inputs))
        return super().compute_loss(model, inputs, *args, **kwargs)


class Gradients(TrainerCallback):
    """Keeps the gradient of every optimizer step."""

    def __init__(self) -> None:
        self.of_steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs) -> None:
        named = model.named_parameters()
        self.of_steps.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def letters(completions: list, **columns: Any) -> list[float]:
    """A reward with variance in most groups."""
    return [float(len(text[0]["content"]) % 3) for text in completions]


@pytest.fixture
def grpo(tiny_policy, tokenizer, tmp_path):
    """(policy, trainer, gradients, rewards in the order of sampling) after one rollout of GRPO."""
    save_policy(tiny_policy, tokenizer, tmp_path / "model")
    gradients, rewards = Gradients(), []

    def reward(completions: list, **columns: Any) -> list[float]:
        rewards.extend(letters(completions))
        return letters(completions)

    data = Dataset.from_list([{"prompt": user_message(f"What is {i}?")} for i in range(QUESTIONS)])
    trainer = Recorder(
        AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="float32"),
        reward,
        GRPOConfig(
            output_dir=str(tmp_path / "grpo"),
            max_steps=STEPS * EPOCHS,
            per_device_train_batch_size=GROUP * QUESTIONS // STEPS,
            steps_per_generation=STEPS,
            num_iterations=EPOCHS,
            num_generations=GROUP,
            max_completion_length=10,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            max_grad_norm=1e6,
            beta=0.0,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        processing_class=tokenizer,
        train_dataset=data,
        callbacks=[gradients],
    )
    trainer.train()
    return tiny_policy, trainer, gradients.of_steps, rewards


def loss_of(model: Any, inputs: dict) -> torch.Tensor:
    """PPO's loss of a minibatch of GRPO, divided as with `token_mean: rollout`."""
    mask_BC = inputs["completion_mask"].bool()
    scores = score_completions(
        model, inputs["prompt_ids"], inputs["prompt_mask"].bool(), inputs["completion_ids"], mask_BC
    )
    batch = {
        "completion_mask": mask_BC,
        "old_logprobs": inputs["old_per_token_logps"],
        "old_values": torch.zeros_like(scores.logprobs_BC),
        "returns": torch.zeros_like(scores.logprobs_BC),
        "advantages": inputs["advantages"].unsqueeze(1) * mask_BC,
    }
    loss_BC = token_losses(scores, batch, OPTIONS, MeanSums())
    return (loss_BC * mask_BC).sum() / (inputs["num_items_in_batch"] / STEPS)


def test_every_optimizer_step_of_ppo_has_the_gradient_of_grpo(grpo):
    model, trainer, gradients, _ = grpo
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    assert len(trainer.seen) == len(gradients) == STEPS * EPOCHS
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients[0].values())
    for inputs, expected in zip(trainer.seen, gradients, strict=True):
        optimizer.zero_grad()
        loss_of(model, inputs).backward()
        named = dict(model.named_parameters())
        for name, gradient in expected.items():
            torch.testing.assert_close(named[name].grad, gradient, rtol=1e-3, atol=2e-5)
        optimizer.step()


def test_advantages_of_ppo_are_those_of_grpo_but_for_the_divisor_of_the_variance(grpo):
    _, trainer, _, rewards = grpo
    found = torch.cat([inputs["advantages"] for inputs in trainer.seen[:STEPS]])
    ones_B1 = torch.ones(len(rewards), 1, dtype=torch.bool)
    own_B = standardize_groups(torch.tensor(rewards).unsqueeze(1), ones_B1, GROUP).squeeze(1)
    scale = ((GROUP - 1) / GROUP) ** 0.5  # TRL divides the sum of squares by G - 1
    # TRL shuffles the rows of a rollout, and adds 1e-4 to a standard deviation.
    torch.testing.assert_close(
        found.sort().values, (own_B * scale).sort().values, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("shuffle", ["epoch", "rollout"])
def test_completions_are_dealt_into_minibatches_in_every_epoch_or_once(policy, make_ppo, shuffle):
    trainer = make_ppo(
        policy, letters, num_rollouts=2, ppo_epochs=3, num_minibatches=2, minibatch_shuffle=shuffle
    )
    of_steps, next_minibatch = [], trainer.next_minibatch

    def recorded(batch: list[dict]) -> list:
        micro_batches = next_minibatch(batch)
        of_steps.append([row for micro in micro_batches for row in micro.rows.tolist()])
        return micro_batches

    trainer.next_minibatch = recorded
    trainer.train()
    epochs = [tuple(map(tuple, of_steps[i : i + 2])) for i in range(0, 12, 2)]
    assert [sorted(sum(epoch, ())) for epoch in epochs] == [list(range(8))] * 6
    assert [len({*epochs[:3]}), len({*epochs[3:]})] == ([3, 3] if shuffle == "epoch" else [1, 1])
    assert epochs[0] != epochs[3]
