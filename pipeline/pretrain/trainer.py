"""Stage 1: language modelling with the mean cross-entropy of all tokens, on transformers' Trainer.

Checkpoints, resume, signals and Muon are those of SFT and PPO (`pipeline.training.trainer_shell`).
"""

from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl

from pipeline.model import has_value_head
from pipeline.pretrain.config import PretrainConfig
from pipeline.pretrain.packing import BlockCollator
from pipeline.pretrain.perplexity import held_out_loss, perplexity
from pipeline.training.jsonl_log import JsonlLogCallback
from pipeline.training.progress import TrainingProgress
from pipeline.training.trainer_shell import PlainTrainer, TrainerShell

PERPLEXITY = "eval/perplexity"


class PretrainTrainer(TrainerShell, PlainTrainer):
    """Trainer on blocks of `input_ids` (`pipeline.pretrain.dataset.packed_blocks`).

    Perplexity of `eval_dataset` is logged as `eval/perplexity`.
    """

    tags = ("thinkhead", "pretrain")
    control: TrainerControl

    def __init__(
        self,
        model: PreTrainedModel,
        args: PretrainConfig,
        *,
        processing_class: PreTrainedTokenizerBase,
        **options: object,
    ) -> None:
        if has_value_head(model):
            model.value_head.requires_grad_(False)  # it has no part in this loss
        if isinstance(options.get("train_dataset"), IterableDataset):
            # Otherwise accelerate joins batches of several processes, whose lengths may differ.
            args.accelerator_config.dispatch_batches = False
        pad_id = processing_class.pad_token_id
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            data_collator=BlockCollator(
                processing_class.eos_token_id if pad_id is None else pad_id
            ),
            **options,
        )
        self.add_callback(JsonlLogCallback())

    def make_progress(self) -> TrainingProgress:
        """Return the callback that shows the progress of the training."""
        return TrainingProgress("pretraining")

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Log and return {eval_loss, eval/perplexity} of the held-out blocks."""
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        model = self.model_wrapped if sharded else self.model
        loss = held_out_loss(model, self.get_eval_dataloader(eval_dataset), self.accelerator)
        metrics = {"eval_loss": loss, PERPLEXITY: perplexity(loss)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def last_perplexity(self) -> float | None:
        """Return the perplexity at the end of the training, measured unless it was; None without
        held-out blocks."""
        if self.eval_dataset is None:
            return None
        for row in reversed(self.state.log_history):
            if PERPLEXITY in row and row["step"] == self.state.global_step:
                return row[PERPLEXITY]
        return self.evaluate()[PERPLEXITY]
