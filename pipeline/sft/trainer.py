"""Stage 2: supervised fine-tuning with a loss of two parts, on TRL's SFTTrainer.

    loss = thought_weight * CE(thought) + answer_weight * CE(answer)

Each part is a mean over its own tokens, so that a long thought does not drown a short answer. The
prompt is not trained on. TRL batches, packs, saves and resumes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers.hf_argparser import HfArg
from trl import SFTConfig, SFTTrainer

from pipeline.chat.tags import END_THINK
from pipeline.config import NonNegativeFloat, PositiveFloat, check_types, require
from pipeline.data.sft_examples import thought_and_answer_masks
from pipeline.model import has_value_head
from pipeline.sft.length_buckets import BucketSampler
from pipeline.training.hardware import configure_hardware
from pipeline.training.optimizer import MuonOptions, muon_adamw
from pipeline.training.trainer_shell import AtomicCheckpoints, ValueHeadFiles


@dataclass
class ReasoningSFTConfig(MuonOptions, SFTConfig):
    """SFTConfig, and what the two-part loss needs."""

    thought_weight: NonNegativeFloat = HfArg(
        default=1.0, help="weight of the thought's cross-entropy"
    )
    answer_weight: NonNegativeFloat = HfArg(
        default=1.0, help="weight of the answer's cross-entropy"
    )
    learning_rate: PositiveFloat = HfArg(default=2e-5, help="peak learning rate")
    bf16: bool | None = HfArg(default=None, help="bfloat16 autocast; default: on a GPU that has it")
    gradient_checkpointing: bool = HfArg(default=False, help="trade time for memory")
    # HfArgumentParser wants the None in front.
    report_to: None | str | list[str] = HfArg(default="none", help="tensorboard or trackio")  # noqa: RUF036

    def __post_init__(self):
        check_types(self)
        require(
            self.thought_weight + self.answer_weight > 0,
            "thought_weight=0 and answer_weight=0 leave nothing to train on; raise one of them",
        )
        self.check_muon()
        # Without it TRL ignores the completion_mask of rows that are ids already, and trains on
        # prompts.
        self.completion_only_loss = True
        configure_hardware(self)
        super().__post_init__()


class ReasoningSFTTrainer(AtomicCheckpoints, ValueHeadFiles, SFTTrainer):
    """SFTTrainer on rows of `input_ids` and `completion_mask` (`pipeline.data.sft_dataset`)."""

    # The loss is divided by the tokens of the whole batch; Trainer must not divide it once more, as
    # it does for models whose forward has no **kwargs.
    loss_is_scaled_for_ga = True

    _tag_names = ("trl", "sft", "thinkhead")

    def __init__(self, model: Any, args: ReasoningSFTConfig, **kwargs: Any):
        if has_value_head(model):
            model.value_head.requires_grad_(False)  # this loss does not reach it
        super().__init__(model, args, **kwargs)
        self._end_think_id = self.processing_class.convert_tokens_to_ids(END_THINK)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Muon where it is asked for, otherwise the optimizer that the arguments name."""
        if self.args.muon and self.optimizer is None:
            self.optimizer = muon_adamw(
                self.model,
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                **self.args.muon_options(),
            )
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        """Replaces `group_by_length`, whose order follows length and so difficulty."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        return BucketSampler(
            [len(ids) for ids in dataset["input_ids"]],
            batch_size=self.args.per_device_train_batch_size * self.accelerator.num_processes,
            seed=self.args.seed,
        )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The two-part loss; `num_items_in_batch` is (thought tokens, answer tokens) of the whole
        batch, all micro-batches and processes."""
        labels_BT = inputs["labels"]
        plain = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**plain, use_cache=False)
        logits_BTV = outputs["logits"]
        ce_BT = token_cross_entropy(logits_BTV, labels_BT)
        parts = self._parts(inputs)
        sums = torch.stack([(ce_BT * mask_BT).sum() for mask_BT in parts])
        counts = torch.stack([mask_BT.sum() for mask_BT in parts])
        totals = counts if num_items_in_batch is None else num_items_in_batch
        # The processes' gradients are averaged afterwards, hence the factor.
        scale = 1 if num_items_in_batch is None else self.accelerator.num_processes
        weights = sums.new_tensor([self.args.thought_weight, self.args.answer_weight])
        self._log_parts(sums.detach(), counts, logits_BTV, inputs)
        loss = (weights * sums / totals.clamp(min=1)).sum() * scale
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Replaces the count of all labels by the counts of thought and answer tokens."""
        counts = [torch.stack([m.sum() for m in self._parts(batch)]) for batch in batch_samples]
        if not counts:
            return None
        return self.accelerator.reduce(torch.stack(counts).sum(dim=0).to(device), reduction="sum")

    def _parts(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return thought_and_answer_masks(
            inputs["input_ids"], inputs["labels"] != -100, self._end_think_id
        )

    def _log_parts(self, sums: Any, counts: Any, logits_BTV: Any, inputs: dict) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        means = sums / counts.clamp(min=1)
        metrics["loss/thought"].append(means[0].item())
        metrics["loss/answer"].append(means[1].item())
        hits_BT = logits_BTV[:, :-1].argmax(dim=-1) == inputs["labels"][:, 1:]
        metrics["token_accuracy"].append((hits_BT.sum() / counts.sum().clamp(min=1)).item())


def token_cross_entropy(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """ce_BT in nats: what token t cost to predict from those before it; 0 where its label is -100
    and at the first position, which nothing predicts."""
    ce = nn.functional.cross_entropy(
        logits_BTV[:, :-1].float().flatten(0, 1), labels_BT[:, 1:].flatten(), reduction="none"
    )
    return nn.functional.pad(ce.view(labels_BT[:, 1:].shape), (1, 0))
