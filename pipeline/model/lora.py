"""LoRA through peft: a few trained matrices beside a model that stays as it is.

With the adapters off, the policy is its own reference: no second model in memory. The rows of the
reasoning tokens are trained whole (`trainable_token_indices`), because a model that has never seen
them cannot learn them through its matrices alone. The value head is trained whole as well and lies
in a file of its own, beside adapters as beside a model.

    adapter_model.safetensors, adapter_config.json   what PeftModel.from_pretrained reads
    value_head.safetensors                           the value head
"""

from pathlib import Path

from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.tags import END_THINK, THINK
from pipeline.config import ModelConfig
from pipeline.model.adapter_files import merge_adapters
from pipeline.model.checkpoint import save_policy, save_value_head
from pipeline.model.policy import attach_value_head, has_value_head


def lora_config(
    config: ModelConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> LoraConfig | None:
    """What peft makes the adapters from; None where `use_peft` is false."""
    if not config.use_peft:
        return None
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
    return isinstance(model, PeftModel)


def save_adapters(model: PeftModel, folder: str | Path) -> None:
    """Write the adapters, and the value head beside them."""
    # The rows of the tags are among the adapters, other new ones are made again on loading.
    model.save_pretrained(folder, save_embedding_layers=False)
    if has_value_head(model):
        save_value_head(model.value_head, folder)


def export_policy(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write one plain checkpoint folder with a value head. Adapters are merged into its weights and
    kept in its folder `adapter`; the model that was given is then used up."""
    if is_adapted(model):
        save_adapters(model, Path(folder) / "adapter")
        model = merge_adapters(model)
    save_policy(attach_value_head(model), tokenizer, folder)


def _reasoning_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[int]]:
    """{module: rows of the reasoning tokens}: of the embedding, and of the LM head where it has
    weights of its own. Where they are tied peft trains one row for both."""
    ids = tokenizer.convert_tokens_to_ids([THINK, END_THINK])
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = embedding.weight is head.weight
    wanted = {id(embedding)} if tied else {id(embedding), id(head)}
    return {name.rpartition(".")[2]: ids for name, m in model.named_modules() if id(m) in wanted}
