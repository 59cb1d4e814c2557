"""The value head in the checkpoints of a Trainer: in its own file, so that the folder stays a plain
model folder."""

from typing import Any

from pipeline.model import (
    critic_of,
    has_value_head,
    load_value_head,
    save_critic,
    save_value_head,
    split_value_head,
)


class HeadFiles:
    """To be inherited from before a Trainer, whose model may have a value head."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The folder stays a plain model folder; the value head goes beside it."""
        model = self.accelerator.unwrap_model(self.model)
        plain, head = split_value_head(state_dict or model.state_dict())
        super()._save(output_dir, plain)
        if self.args.should_save and has_value_head(model):
            # Under PEFT only the adapters are among the weights.
            head = head or model.value_head.state_dict()
            save_value_head(model.value_head, output_dir or self.args.output_dir, head)
            if critic_of(model) is not None:
                save_critic(critic_of(model), output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.is_fsdp_enabled:
            return  # its own files hold the value head as well
        policy = self.accelerator.unwrap_model(self.model)
        if not has_value_head(policy):
            return
        head = load_value_head(resume_from_checkpoint)
        if head is None:
            raise ValueError(
                f"{resume_from_checkpoint} has no value head, and the model of this run has one; "
                "resume from a checkpoint of the same run"
            )
        policy.value_head.load_state_dict(head.state_dict())

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Nothing is missing: the value head has its own file, tied weights stand elsewhere."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        load_result.missing_keys[:] = [
            key
            for key in load_result.missing_keys
            if key not in tied and not key.startswith("value_head.")
        ]
        super()._issue_warnings_after_load(load_result)
