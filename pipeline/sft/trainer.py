"""Stage 2: supervised fine-tuning with a loss of two parts, on TRL's SFTTrainer.

    loss = thought_weight * CE(thought) + answer_weight * CE(answer)

Each part is a mean over its own tokens, so that the short answer has as much weight as the long
thought. The prompt is not trained on. TRL batches, packs, saves and resumes. With a large
vocabulary logits are computed for the trained tokens only.

With `thought_mask_share` some tokens of the thought are hidden from the input, at random in each
step, and still have to be predicted. With `reasoning_layer` the thought is trained through the
reasoning head and the answer through the LM head (`pipeline.model.reasoning`).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg
from trl import SFTConfig, SFTTrainer

from pipeline.chat.tags import END_THINK, THINK
from pipeline.config import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    UnitInterval,
    check_types,
    require,
    require_defaults,
)
from pipeline.data.sft_examples import thought_and_answer_masks
from pipeline.model import (
    attach_reasoning_layer,
    has_reasoning_layer,
    has_value_head,
    new_reasoning_layer,
)
from pipeline.scoring import row_hidden_states, supports_packing
from pipeline.sft.length_buckets import BucketSampler
from pipeline.sft.tags import closing_probabilities
from pipeline.training.hardware import (
    PUSHING,
    SAVING,
    PrecisionOptions,
    check_training_arguments,
    configure_hardware,
)
from pipeline.training.optimizer import MuonOptions
from pipeline.training.token_budget import cut_by_tokens, into_parts, most_of_processes
from pipeline.training.trainer_shell import TrainerShell

# Logits of a micro-batch, 64 MiB in float32, above which those of the prompts are not computed.
MANY_LOGITS = 2**24


@dataclass
class ReasoningSFTConfig(MuonOptions, PrecisionOptions, SFTConfig):
    """SFTConfig with the weights of the two parts of the loss, and MuonOptions."""

    ONLY_WITH: ClassVar[dict[str, tuple[str, ...]]] = {
        **PUSHING,
        **SAVING,
        "reasoning_layer=true": ("reasoning_head",),
    }

    thought_weight: NonNegativeFloat = HfArg(
        default=1.0, help="weight of the thought's cross-entropy"
    )
    answer_weight: NonNegativeFloat = HfArg(
        default=1.0, help="weight of the answer's cross-entropy"
    )
    thought_mask_share: UnitInterval = HfArg(
        default=0.0, help="share of the thought's tokens that training hides from the model's input"
    )
    micro_batch_tokens: PositiveInt | None = HfArg(
        default=None,
        help="most tokens of a forward, per process, prompts and padding included: a batch is cut "
        "into parts; default: no limit",
    )
    reasoning_layer: bool = HfArg(
        default=False, help="give the model a decoder layer and a head of its own for the thought"
    )
    reasoning_head: Literal["own", "tied"] = HfArg(
        default="own", help="reasoning_layer: a new head for the thought, or the model's LM head"
    )
    learning_rate: PositiveFloat = HfArg(default=2e-5, help="peak learning rate")
    gradient_checkpointing: bool = HfArg(default=False, help="trade time for memory")
    # HfArgumentParser wants the None in front.
    report_to: None | str | list[str] = HfArg(default="none", help="tensorboard or trackio")  # noqa: RUF036

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.thought_weight + self.answer_weight > 0,
            "thought_weight=0 and answer_weight=0 leave nothing to train on; raise one of them",
        )
        require(
            self.micro_batch_tokens is None or not (self.packing or self.padding_free),
            f"micro_batch_tokens={self.micro_batch_tokens} cuts a batch between its rows, and with "
            "packing or padding_free it has one row; leave one of them out",
        )
        self.check_muon()
        require_defaults(
            self,
            ("loss_type", "label_smoothing_factor"),
            "does nothing here: the loss has the parts of thought_weight and answer_weight; leave "
            "it out",
        )
        require_defaults(
            self,
            ("completion_only_loss",),
            "would train on prompts, and the loss is that of thought and answer; leave it out",
            others=(True,),
        )
        check_training_arguments(self)
        # Without it TRL ignores the completion_mask of rows that are ids already, and trains on
        # prompts.
        self.completion_only_loss = True
        configure_hardware(self)
        super().__post_init__()


class ReasoningSFTTrainer(TrainerShell, SFTTrainer):
    """SFTTrainer on rows of `input_ids` and `completion_mask` (`pipeline.data.sft_dataset`)."""

    # The loss is divided by the tokens of the whole batch; Trainer must not divide it again, as it
    # does for models whose forward has no **kwargs.
    loss_is_scaled_for_ga = True

    tags = ("trl", "sft", "thinkhead")

    def __init__(self, model: PreTrainedModel, args: ReasoningSFTConfig, **kwargs: object):
        if has_value_head(model):
            model.value_head.requires_grad_(False)  # it has no part in this loss
        if args.reasoning_layer and not has_reasoning_layer(model):
            require(
                kwargs.get("peft_config") is None,
                "reasoning_layer=true trains a whole layer, and use_peft=true adapters only; leave "
                "one of them out",
            )
            _add_reasoning_layer(model, args, kwargs["processing_class"])
        super().__init__(model, args, **kwargs)
        self.end_think_id = self.processing_class.convert_tokens_to_ids(END_THINK)

    def train_sampler(self, dataset: Dataset | None = None) -> Sampler | None:
        """Return length buckets in random order for `group_by_length`: transformers' own order
        follows length, and so difficulty."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super().train_sampler(dataset)
        dataset = self.train_dataset if dataset is None else dataset
        return BucketSampler(
            [len(ids) for ids in dataset["input_ids"]],
            batch_size=self.args.per_device_train_batch_size * self.accelerator.num_processes,
            seed=self.args.seed,
        )

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run forward and backward of a batch, with `micro_batch_tokens` of its parts one after
        the other. Return their losses' sum, which is that of the batch."""
        if self.args.micro_batch_tokens is None:
            return super().training_step(model, inputs, num_items_in_batch)
        parts, losses = self.micro_batches(inputs), []
        is_last_batch = self.accelerator.sync_gradients  # of those that are accumulated
        with self.weights_cast_once():
            for part in parts:
                is_last = is_last_batch and part is parts[-1]
                with self.reduced_at_the_end(model, is_last=is_last):
                    losses.append(super().training_step(model, part, num_items_in_batch))
        self.accelerator.sync_gradients = is_last_batch
        return torch.stack(losses).sum()

    def micro_batches(self, inputs: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """Return the rows of a batch in parts of at most `micro_batch_tokens` tokens, the shortest
        first, each without the padding that all its rows have; as many parts on every process.
        """
        mask_BT = inputs["attention_mask"].bool()
        lengths_B = mask_BT.sum(dim=1).cpu()
        order_B = lengths_B.argsort()
        lengths = lengths_B[order_B].tolist()
        sizes = cut_by_tokens(lengths, self.args.micro_batch_tokens, padded=True)
        sizes = into_parts(sizes, most_of_processes(self.accelerator, [len(sizes)])[0])
        parts = []
        for rows in order_B.to(mask_BT.device).split(sizes):
            used_T = mask_BT[rows].any(dim=0)
            parts.append({name: x_BT[rows][:, used_T] for name, x_BT in inputs.items()})
        return parts

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss; `num_items_in_batch` is (thought tokens, answer tokens) of the whole
        batch, all micro-batches and processes."""
        labels_BT = inputs["labels"]
        parts = self._part_masks(inputs)
        if self.args.thought_mask_share and model.training:
            ids_BT = self._masked_thoughts(inputs["input_ids"], parts[0])
            inputs = {**inputs, "input_ids": ids_BT}
        outputs = None
        if not return_outputs and self._skips_prompts(model, inputs):
            mask_BT = labels_BT != -100
            mask_BT[:, 0] = False  # nothing predicts the first token
            with self.accelerator.autocast():
                hidden_MD = row_hidden_states(model, inputs["input_ids"], mask_BT)
                logits_MV = self.accelerator.unwrap_model(model).get_output_embeddings()(hidden_MD)
            ce_M = nn.functional.cross_entropy(
                logits_MV.float(), labels_BT[mask_BT], reduction="none"
            )
            sums = torch.stack([ce_M[part_BT[mask_BT]].sum() for part_BT in parts])
        else:
            plain = {name: value for name, value in inputs.items() if name != "labels"}
            outputs = model(**plain, use_cache=False)
            ce_BT = token_cross_entropy(outputs["logits"], labels_BT)
            sums = torch.stack([(ce_BT * part_BT).sum() for part_BT in parts])
            mask_BT = (labels_BT != -100)[:, 1:]
            logits_MV = outputs["logits"][:, :-1][mask_BT]
            mask_BT = nn.functional.pad(mask_BT, (1, 0))
        counts = torch.stack([part_BT.sum() for part_BT in parts])
        totals = counts if num_items_in_batch is None else num_items_in_batch
        # The processes' gradients are averaged afterwards, hence the factor.
        scale = 1 if num_items_in_batch is None else self.accelerator.num_processes
        weights = sums.new_tensor([self.args.thought_weight, self.args.answer_weight])
        self._log_parts(sums.detach(), counts, logits_MV.detach(), labels_BT[mask_BT])
        loss = (weights * sums / totals.clamp(min=1)).sum() * scale
        return (loss, outputs) if return_outputs else loss

    def _masked_thoughts(self, ids_BT: torch.Tensor, mask_thought_BT: torch.Tensor) -> torch.Tensor:
        """The ids with `thought_mask_share` of the thoughts' tokens replaced by the mask token, or
        by the padding token of a tokenizer without one. Tags stay: they choose the LM head."""
        token = self.processing_class.mask_token_id
        token = self.processing_class.pad_token_id if token is None else token
        # On the CPU, whose random state a checkpoint stores.
        drawn_BT = torch.rand(ids_BT.shape).to(ids_BT.device)
        hidden_BT = mask_thought_BT & (drawn_BT < self.args.thought_mask_share)
        return ids_BT.masked_fill(hidden_BT & (ids_BT != self.end_think_id), token)

    def _skips_prompts(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> bool:
        """Whether the LM head is called for the trained tokens only.

        Not for rows that TRL has packed already, and not where the weights of the LM head are
        sharded outside of the model's forward.
        """
        return (
            inputs["input_ids"].numel() * len(self.processing_class) > MANY_LOGITS
            and "position_ids" not in inputs
            and not self.is_deepspeed_enabled
            and not self.is_fsdp_enabled
            and supports_packing(model)
        )

    def count_items(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """Return the counts of thought and of answer tokens instead of that of all labels."""
        counts = [
            torch.stack([m.sum() for m in self._part_masks(batch)]) for batch in batch_samples
        ]
        if not counts:
            return None
        return self.accelerator.reduce(torch.stack(counts).sum(dim=0).to(device), reduction="sum")

    def _part_masks(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return thought_and_answer_masks(
            inputs["input_ids"], inputs["labels"] != -100, self.end_think_id
        )

    def _log_parts(
        self,
        sums: torch.Tensor,
        counts: torch.Tensor,
        logits_MV: torch.Tensor,
        labels_M: torch.Tensor,
    ) -> None:
        means = sums / counts.clamp(min=1)
        self.metrics["loss/thought"].append(means[0].item())
        self.metrics["loss/answer"].append(means[1].item())
        hits = (logits_MV.argmax(dim=-1) == labels_M).sum()
        self.metrics["token_accuracy"].append((hits / counts.sum().clamp(min=1)).item())
        for name, p in closing_probabilities(logits_MV, labels_M, self.end_think_id).items():
            self.metrics[name].append(p)


def _add_reasoning_layer(
    model: PreTrainedModel, args: ReasoningSFTConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    think_id, end_think_id = tokenizer.convert_tokens_to_ids([THINK, END_THINK])
    layer = new_reasoning_layer(
        model,
        think_id=think_id,
        end_think_id=end_think_id,
        tied=args.reasoning_head == "tied",
    )
    attach_reasoning_layer(model, layer)


def token_cross_entropy(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Return ce_BT in nats, the cross-entropy of token t given those before it.

    It is 0 where the label is -100 and at the first position.
    """
    ce = nn.functional.cross_entropy(
        logits_BTV[:, :-1].float().flatten(0, 1), labels_BT[:, 1:].flatten(), reduction="none"
    )
    return nn.functional.pad(ce.view(labels_BT[:, 1:].shape), (1, 0))
