"""LoRA with peft: low-rank adapters are trained, the base model is frozen.

With the adapters disabled the policy is its own reference model, so PPO needs no second model in
memory. The embedding rows of the reasoning tokens are trained in full (`trainable_token_indices`):
new tokens cannot be learned through low-rank matrices of other layers. The value head is trained in
full too, and is stored in its own file.

    adapter_model.safetensors, adapter_config.json   read by PeftModel.from_pretrained
    value_head.safetensors, verifier.safetensors     the value head, and the verifier if any
    tokenizer files                                  with the chat template of the training
"""

import copy
from pathlib import Path

from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.tags import END_THINK, THINK
from pipeline.config import ModelConfig
from pipeline.model.adapter_files import merge_adapters
from pipeline.model.checkpoint import load_adapters, save_policy
from pipeline.model.loading import is_quantized
from pipeline.model.policy import attach_value_head, has_value_head
from pipeline.model.reasoning import reject_reasoning_layer
from pipeline.model.value_head_file import save_value_head
from pipeline.model.verifier import attach_verifier, save_verifier, verifier_of


def lora_config(
    config: ModelConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> LoraConfig | None:
    """The LoraConfig of the run, or None if `use_peft` is false."""
    if not config.use_peft:
        return None
    reject_reasoning_layer(model, "use_peft=true")
    targets = config.lora_target_modules
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets if targets == "all-linear" else targets.split(","),
        exclude_modules=r".*\bvalue_head\b.*",
        trainable_token_indices=_reasoning_rows(model, tokenizer),
        task_type="CAUSAL_LM",
    )


def is_adapted(model: nn.Module) -> bool:
    """Whether the model has peft adapters that are not merged."""
    return isinstance(model, PeftModel)


def save_adapters(model: PeftModel, folder: str | Path) -> None:
    """Write the adapters, and value head and verifier if there are any."""
    # The adapters include the rows of the tags; other new rows are initialised again on loading.
    model.save_pretrained(folder, save_embedding_layers=False)
    if has_value_head(model):
        save_value_head(model.value_head, folder)
        if (verifier := verifier_of(model)) is not None:
            save_verifier(verifier, folder)


def export_policy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    keep: bool = False,
) -> None:
    """Write a plain checkpoint folder with a value head.

    Adapters are saved with the tokenizer in its folder `adapter` and merged into the weights, those
    of 4 bits into the stored ones of the base model.

    Args:
        keep: merge adapters into a copy on the CPU; without it `model` is changed in place and must
            not be used afterwards.
    """
    if is_adapted(model):
        adapter, verifier = Path(folder) / "adapter", verifier_of(model)
        save_adapters(model, adapter)
        tokenizer.save_pretrained(adapter)
        if is_quantized(model):  # merging into 4 bits would round the adapters away
            model, _ = load_adapters(adapter)
        elif keep:
            model = _copy_on_cpu(model)
        model = merge_adapters(model)
        attach_verifier(model, verifier)
    save_policy(attach_value_head(model), tokenizer, folder)


def _copy_on_cpu(model: PeftModel) -> PeftModel:
    """Return a copy with its parameters on the CPU; the GPU may have no room for a second model."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(p.detach().to("cpu", copy=True), requires_grad=False)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def _reasoning_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[int]]:
    """{name of the module: ids of the reasoning tokens}, for embedding and LM head.

    If their weights are tied, the embedding alone: peft then trains one row for both.
    """
    ids = tokenizer.convert_tokens_to_ids([THINK, END_THINK])
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = embedding.weight is head.weight
    wanted = {id(embedding)} if tied else {id(embedding), id(head)}
    return {name.rpartition(".")[2]: ids for name, m in model.named_modules() if id(m) in wanted}
