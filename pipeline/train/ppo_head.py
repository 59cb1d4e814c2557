"""A GRPOTrainer whose model has a value head: a learning rate and a file of its own for it, and
checkpoints from which a run goes on in the middle of a rollout."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from trl import GRPOTrainer

from pipeline.model import load_value_head, save_value_head, split_value_head
from pipeline.train.optimizer import give_own_rate, muon_adamw
from pipeline.train.saving import SafeSaves


class ValueHeadTrainer(SafeSaves, GRPOTrainer):
    """GRPOTrainer, with the value head trained, saved and resumed beside the model."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Muon where it is asked for, otherwise the optimizer that the arguments name."""
        is_new = self.optimizer is None
        if self.args.muon and is_new:
            self.optimizer = muon_adamw(
                self.model,
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                head_learning_rate=self.args.value_learning_rate,
            )
        optimizer = super().create_optimizer(model)
        if self.args.value_learning_rate and is_new and not self.args.muon:
            give_own_rate(optimizer, self.model.value_head, self.args.value_learning_rate)
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The folder stays a plain model folder; the value head goes beside it."""
        model = self.accelerator.unwrap_model(self.model)
        plain, head = split_value_head(state_dict or model.state_dict())
        super()._save(output_dir, plain)
        if self.args.should_save:
            # Under PEFT only the adapters are among the weights.
            head = head or model.value_head.state_dict()
            save_value_head(model.value_head, output_dir or self.args.output_dir, head)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.is_fsdp_enabled:
            return  # its own files hold the value head as well
        head = load_value_head(resume_from_checkpoint)
        if head is None:
            raise ValueError(
                f"{resume_from_checkpoint} has no value head, so PPO cannot resume from it; point "
                "at a checkpoint of a PPO run"
            )
        model = self.accelerator.unwrap_model(self.model)
        model.value_head.load_state_dict(head.state_dict())

    def _save_more(self, folder: Path) -> None:
        """The rollout as well, where optimizer steps on it are still to come."""
        super()._save_more(folder)
        if self.state.global_step % self.args.steps_per_rollout:
            rollout = {name: value.contiguous() for name, value in self._rollout.items()}
            save_file(rollout, folder / self._rollout_file())

    def _load_more(self, folder: Path) -> None:
        """Counts micro-batches from the beginning of the run, and takes up a rollout half used."""
        super()._load_more(folder)
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        if not self.state.global_step % self.args.steps_per_rollout:
            return
        path = folder / self._rollout_file()
        if not path.is_file():
            raise ValueError(
                f"{folder} was saved by other processes than these, in the middle of a rollout; "
                "resume with as many processes, or from a checkpoint between two rollouts"
            )
        rollout = load_file(path)
        self._rollout = {name: t.to(self.accelerator.device) for name, t in rollout.items()}

    def _rollout_file(self) -> str:
        return f"rollout-{self.args.process_index}.safetensors"

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Nothing is missing: the value head has its own file, tied weights stand elsewhere."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        load_result.missing_keys[:] = [
            key
            for key in load_result.missing_keys
            if key not in tied and not key.startswith("value_head.")
        ]
        super()._issue_warnings_after_load(load_result)
