"""A trainer that watches over its run: gradients, alarms, a journal, what it keeps beside weights.

The parts are in `guard`, `held`, `alarms`, `journal` and `controllers`; here is where TRL's trainer
meets them.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from pipeline.chat.tags import END_THINK
from pipeline.chat.token_offsets import step_end_ids
from pipeline.model import Verifier, attach_verifier, is_adapted
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.delayed_update import DelayedUpdate
from pipeline.ppo.groups import ScoredRollout
from pipeline.ppo.kl import AdaptiveKL, FixedKL
from pipeline.ppo.ppo_head import ValueHeadTrainer
from pipeline.ppo.questions import QuestionSource
from pipeline.training.alarms import AlarmCallback, Thresholds
from pipeline.training.jsonl_log import SAMPLES_FILE, JsonlLogCallback, append, show
from pipeline.training.nonfinite import NonfiniteCheck
from pipeline.verifier.online import OnlineVerifier, verifier_states

TOKENS = "sampled_tokens"  # among the metrics, from which it is taken before they are logged


class WatchedTrainer(ValueHeadTrainer):
    """ValueHeadTrainer, with a guard between gradients and optimizer, and a record of the run."""

    def __init__(self, model: Any, reward_funcs: Any, args: PPOConfig, **kwargs: Any):
        super().__init__(model, reward_funcs, args, **kwargs)
        self._kl = kl_controller(args)
        self._nonfinite = NonfiniteCheck(self.accelerator)
        self._questions = QuestionSource(self)
        self._paths = self._verifier()
        self.reward_funcs = watched(self.reward_funcs, self.reward_func_names, self._nonfinite)
        for callback in callbacks(args):
            self.add_callback(callback)

    @property
    def controllers(self) -> dict[str, Any]:
        """What the run learns beside its weights, by the name it is saved under."""
        parts = {
            "kl": self._kl,
            "guard": self._nonfinite,
            "curriculum": self._questions.curriculum,
            "critic": self._paths,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """A step whose gradients are looked at before the optimizer sees them.

        A gradient that is taken away leaves its weights alone altogether: with one of 0 the
        optimizer would still decay them and age its averages.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._release_gradients()
        return loss

    def _release_gradients(self) -> None:
        parameters = list(self.model.parameters())
        if self._nonfinite.left_out or not self._nonfinite.gradients_are_finite(parameters):
            _take_away(parameters)
            return
        self._nonfinite.step_was_taken()
        if self._warming_up():
            _take_away(all_but_the_head(self.model))
        elif self._delayed_update is not None:
            self._delayed_update.step(self.state.global_step)

    def _warming_up(self) -> bool:
        return self.state.global_step < self.args.value_warmup * self.args.steps_per_rollout

    @cached_property
    def _delayed_update(self) -> DelayedUpdate | None:
        """Where the policy takes fewer steps than the value head."""
        args = self.args
        if args.policy_steps_per_rollout in (None, args.steps_per_rollout):
            return None
        steps = args.steps_per_rollout // args.policy_steps_per_rollout
        return DelayedUpdate(all_but_the_head(self.model), steps=steps)

    def _without_infinities(
        self, batch: dict[str, torch.Tensor], rewards_BC: torch.Tensor, judged_B: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The batch, or one in which nothing counts where some number is not finite, or where no
        completion could be judged."""
        named = {
            "a log-probability": batch["old_logprobs"],
            "a value": batch["old_values"],
            "a reward": rewards_BC,
            "an advantage": batch["advantages"],
        }
        if self._nonfinite.rollout_is_usable(named, batch["completion_mask"], judged_B):
            return batch
        return {
            name: torch.zeros_like(x) if x.is_floating_point() or name == "completion_mask" else x
            for name, x in batch.items()
        }

    def _verifier(self) -> OnlineVerifier | None:
        """A verifier, which goes into every checkpoint beside the value head."""
        if not self.args.verifier:
            return None
        # Made aside: a run with it samples what a run without it would.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.args.seed)
            verifier = Verifier()
        policy = self.accelerator.unwrap_model(self.model)
        for model in (policy, policy.get_base_model()) if is_adapted(policy) else (policy,):
            attach_verifier(model, verifier)
        accelerator = self.accelerator

        def average(x: torch.Tensor) -> torch.Tensor:
            return accelerator.reduce(x.to(accelerator.device), reduction="mean").cpu()

        return OnlineVerifier(
            verifier,
            learning_rate=self.args.verifier_learning_rate,
            steps=self.args.verifier_steps,
            average=average,
        )

    def _update_verifier(self, scored: ScoredRollout) -> dict[str, float]:
        """What the verifier makes of a rollout, from before it learned from it."""
        if self._paths is None:
            return {}
        tokenizer, group = self._tokenizer, self.args.completions_per_question
        states = verifier_states(
            scored.rollout,
            scored.outcomes_B >= self.args.right_outcome,
            ~scored.outcomes_B.isnan(),
            group,
            step_ends=step_end_ids(tokenizer),
            end_think_id=tokenizer.convert_tokens_to_ids(END_THINK),
        )
        return self._paths.learn(states, group)

    def _write_samples(self, inputs: Any, texts: list[str], scored: ScoredRollout) -> None:
        if self.args.log_samples and self.accelerator.is_main_process:
            rows = samples(self.args.log_samples, inputs, texts, scored)
            # That of the line of the log that tells of this rollout.
            step = self.state.global_step + self.args.steps_per_rollout
            append(Path(self.args.output_dir) / SAMPLES_FILE, [{"step": step} | r for r in rows])
            show(self.callback_handler.callbacks, step, rows)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics["train"]
        # Of everything since the last line: sampling, rewards and updates.
        seconds = sum(metrics.get("step_time", ()))
        if self.model.training and seconds:
            metrics["tokens_per_second"].append(sum(metrics.pop(TOKENS, ())) / seconds)
            metrics["not_finite"].append(self._nonfinite.total)
        super().log(logs, start_time)

    def _save_more(self, folder: Path) -> None:
        """The gradients that are held back as well, in the middle of a rollout."""
        super()._save_more(folder)
        held = self._delayed_update.state_dict() if self._delayed_update is not None else {}
        if held:
            save_file(held, folder / self._delayed_update_file())

    def _load_more(self, folder: Path) -> None:
        super()._load_more(folder)
        path = folder / self._delayed_update_file()
        if self._delayed_update is not None and path.is_file():
            self._delayed_update.load_state_dict(load_file(path))

    def _delayed_update_file(self) -> str:
        return f"delayed-{self.args.process_index}.safetensors"


def kl_controller(args: PPOConfig) -> FixedKL:
    if args.kl_controller == "fixed":
        return FixedKL(args.kl_coef)
    return AdaptiveKL(args.kl_coef, target=args.kl_target, horizon=args.kl_horizon)


def all_but_the_head(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if "value_head." not in name]


def callbacks(args: PPOConfig) -> list[TrainerCallback]:
    """The journal, and the alarms unless they are off."""
    journal = JsonlLogCallback()
    if args.alarms == "off":
        return [journal]
    thresholds = Thresholds(
        patience=args.alarm_patience,
        kl=args.alarm_kl,
        entropy=args.alarm_entropy,
        length=args.alarm_length,
    )
    return [journal, AlarmCallback(thresholds, stop=args.alarms == "stop")]


def watched(functions: Sequence[Any], names: Sequence[str], guard: NonfiniteCheck) -> list[Any]:
    """The reward functions, those that are no module under the guard's eyes."""
    return [
        function if isinstance(function, nn.Module) else guard.watch(function, name)
        for function, name in zip(functions, names, strict=True)
    ]


def samples(
    count: int, inputs: Any, texts: list[str], scored: ScoredRollout
) -> list[dict[str, Any]]:
    """`count` completions from all over the rollout, as rows of the journal."""
    rollout = scored.rollout
    last_B = rollout.mask_completion_BC.sum(dim=1) - 1
    rows = []
    for b in range(0, len(texts), -(-len(texts) // count)):
        prompt = inputs[b]["prompt"]
        outcome = scored.outcomes_B[b].item()
        rows.append(
            {
                "question": prompt if isinstance(prompt, str) else prompt[-1]["content"],
                "completion": texts[b],
                "outcome": outcome if outcome == outcome else None,
                "value": rollout.values_BC[b, last_B[b]].item(),
            }
        )
    return rows


def _take_away(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
