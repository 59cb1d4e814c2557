"""What PPO refuses, in words, before it would fail late or be ignored."""

from collections.abc import Sequence
from typing import Any

from pipeline.model import has_value_head
from pipeline.ppo.config import PPOConfig


def check_hooks(trainer: Any, hooks: Sequence[str]) -> None:
    """ImportError unless the installed trl's trainer has every hook that PPO replaces."""
    missing = [hook for hook in hooks if not hasattr(trainer, hook)]
    if missing:
        raise ImportError(
            f"this trl has no GRPOTrainer.{missing[0]}, which PPO replaces; install trl>=1.12,<1.17"
        )


def check_arguments(model: Any, args: PPOConfig, step_rewards: Any, others: dict) -> None:
    """ValueError for what would fail late, or be ignored."""
    if not has_value_head(model):
        raise ValueError("the model has no value head; call attach_value_head(model) first")
    ignored = [name for name in ("tools", "rollout_func", "environment_factory") if name in others]
    if ignored:
        raise ValueError(
            f"{ignored[0]} belongs to GRPOTrainer and does nothing in PPO; leave it out"
        )
    has_adapters = others.get("peft_config") is not None or hasattr(model, "peft_config")
    if args.kl_coef and not model.config._name_or_path and not has_adapters:
        raise ValueError(
            f"kl_coef={args.kl_coef} needs the reference model, and this model comes from no "
            "folder; load it with load_policy from one written by save_policy, or give kl_coef=0"
        )
    _check_data(others.get("train_dataset"), args, step_rewards)


def _check_data(dataset: Any, args: PPOConfig, step_rewards: Any) -> None:
    if hasattr(dataset, "__len__") and len(dataset) < args.questions_per_rollout:
        raise ValueError(
            f"questions_per_rollout={args.questions_per_rollout} is more than the "
            f"{len(dataset)} problems to train on; lower it or give more problems"
        )
    lacking = {"question", "answer"} - set(getattr(dataset, "column_names", None) or ())
    if step_rewards is not None and dataset is not None and lacking:
        raise ValueError(f"step_rewards needs the column {min(lacking)!r}; add it to the data")


def question_of(prompt: Any) -> str:
    """The question of a prompt: one user message, or plain text.

    >>> question_of("2+3?"), question_of([{"role": "user", "content": "2+3?"}])
    ('2+3?', '2+3?')
    """
    if isinstance(prompt, str):
        return prompt
    if len(prompt) != 1 or prompt[0]["role"] != "user":
        roles = ", ".join(message["role"] for message in prompt)
        raise ValueError(
            f"a prompt has the messages {roles or 'none'}; it must be one user message, as made by "
            "pipeline.chat.prompts.user_message"
        )
    return prompt[0]["content"]
