"""A GRPOTrainer whose model has a value head with a learning rate of its own, and whose checkpoints
let a run go on in the middle of a rollout."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from trl import GRPOTrainer

from pipeline.training.optimizer import give_own_rate, muon_adamw
from pipeline.training.trainer_shell import AtomicCheckpoints, ValueHeadFiles


class ValueHeadTrainer(AtomicCheckpoints, ValueHeadFiles, GRPOTrainer):
    """GRPOTrainer, with the value head trained, saved and resumed beside the model."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Muon where it is asked for, otherwise the optimizer that the arguments name."""
        is_new = self.optimizer is None
        if self.args.muon and is_new:
            self.optimizer = muon_adamw(
                self.model,
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                **self.args.muon_options(),
                head_learning_rate=self.args.value_learning_rate,
            )
        optimizer = super().create_optimizer(model)
        if self.args.value_learning_rate and is_new and not self.args.muon:
            give_own_rate(optimizer, self.model.value_head, self.args.value_learning_rate)
        return optimizer

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
