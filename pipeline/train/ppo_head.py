"""A GRPOTrainer whose model has a value head: a learning rate and a file of its own for it."""

from typing import Any

import torch
from trl import GRPOTrainer

from pipeline.model import load_value_head, save_value_head, split_value_head
from pipeline.train.optimizer import give_own_rate, muon_adamw


class ValueHeadTrainer(GRPOTrainer):
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
        head = load_value_head(resume_from_checkpoint)
        if head is None:
            raise ValueError(
                f"{resume_from_checkpoint} has no value head, so PPO cannot resume from it; point "
                "at a checkpoint of a PPO run"
            )
        model = self.accelerator.unwrap_model(self.model)
        model.value_head.load_state_dict(head.state_dict())

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Nothing is missing: the value head has its own file, tied weights stand elsewhere."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        load_result.missing_keys[:] = [
            key
            for key in load_result.missing_keys
            if key not in tied and not key.startswith("value_head.")
        ]
        super()._issue_warnings_after_load(load_result)
