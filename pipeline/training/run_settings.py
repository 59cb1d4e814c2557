"""What decides how a training goes on, and how two runs differ in it.

A resumed run that has another seed, learning rate, batch or data is another run: it would end with
weights that no configuration describes. Every setting counts unless it stands in a list below.
"""

import hashlib
import json
from collections.abc import Mapping

import pyarrow as pa
from datasets import Dataset
from transformers import TrainingArguments

from pipeline.runtime import same_when_stored

DATA = "training data"  # name of the digest among the settings
BATCH = "sequences an optimizer step"

# Where things are written, what is said and kept, and how the machine feeds the data: any change is
# fine. The last of them follow from other fields of PPO, or from BATCH.
_FREE = """
    output_dir run_name project resume_from_checkpoint do_train do_eval do_predict debug
    restore_callback_states_from_checkpoint enable_jit_checkpoint model_init_kwargs report_to
    disable_tqdm log_level log_level_replica log_on_each_node logging_first_step
    logging_nan_inf_filter logging_steps logging_strategy log_completions
    log_completions_hub_repo log_multimodal log_samples log_unique_prompts
    num_completions_to_print trackio_bucket_id trackio_space_id trackio_static_space_id
    include_num_input_tokens_seen skip_memory_metrics alarms alarm_entropy alarm_kl alarm_length
    alarm_patience save_steps save_every save_strategy save_total_limit save_on_each_node
    save_only_model load_best_model_at_end metric_for_best_model greater_is_better push_to_hub
    hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token
    eval_accumulation_steps eval_delay eval_do_concat_batches eval_on_start eval_packing
    eval_steps eval_strategy eval_use_gather_object batch_eval_metrics bf16_full_eval
    fp16_full_eval include_for_metrics per_device_eval_batch_size prediction_loss_only
    num_generations_eval dataloader_in_order dataloader_multiprocessing_context
    dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory
    dataloader_prefetch_factor dataset_num_proc local_rank ddp_backend ddp_broadcast_buffers
    ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout
    torch_empty_cache_steps trust_remote_code data_root processes model model_revision
    per_device_train_batch_size gradient_accumulation_steps steps_per_generation
    generation_batch_size num_generations num_iterations epsilon epsilon_high beta
"""
FREE = frozenset(_FREE.split())
# The same sums in another order or precision: the run goes on, and this is said.
_ROUNDING = """
    activation_checkpointing activation_checkpointing_kwargs activation_offloading bf16 cpu_bf16
    fp16 tf32 cache_implementation cast_lm_head_to_fp32 deepspeed ds3_gather_for_generation fsdp
    fsdp_config full_determinism gradient_checkpointing gradient_checkpointing_kwargs
    liger_kernel_config compile_layers micro_batch_size micro_batch_tokens pad_to_multiple_of
    padding_free parallelism_config
    sampling_batch_size torch_compile torch_compile_backend torch_compile_mode
    transformers_continuous_batching_config use_cache use_cpu use_liger_kernel
    use_transformers_continuous_batching use_transformers_paged use_vllm
"""
ROUNDING = frozenset(_ROUNDING.split())
# A longer or shorter run: the learning rate follows the new length from here on, and this is said.
LENGTH = frozenset({"max_steps", "num_train_epochs", "num_rollouts", "ignore_data_skip"})


def deciding(
    args: TrainingArguments, world_size: int, dataset: object, more: Mapping[str, object]
) -> dict[str, object]:
    """{name: value} of all that decides how a run goes on, as plain JSON.

    `more` is what a stage knows beside them. Nothing of FREE is in it,
    so neither paths nor tokens.
    """
    settings = {**args.to_dict(), **more}
    settings = {k: v for k, v in settings.items() if k not in FREE and not k.startswith("vllm_")}
    settings[BATCH] = (
        args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size
    )
    digest = data_digest(dataset)
    if digest is not None:
        settings[DATA] = digest
    return json.loads(json.dumps(settings, default=str))


def differing(then: Mapping[str, object], now: Mapping[str, object]) -> tuple[list[str], list[str]]:
    """(names of settings that make another run of it, lines to print about the others).

    A setting that only one of the two has is another version's and does not count.
    """
    names = [n for n in now if n in then and not same_when_stored(then[n], now[n])]
    said = [
        f"saved with {name}={_short(then[name])}, resumed with {name}={_short(now[name])}: the run "
        + (
            "goes on, and its learning rate follows the new length"
            if name in LENGTH
            else "goes on, but does not end bit for bit as the unbroken one"
        )
        for name in names
        if name in LENGTH | ROUNDING
    ]
    return [name for name in names if name not in LENGTH | ROUNDING], said


def refusal(
    folder: str, then: Mapping[str, object], now: Mapping[str, object], names: list[str]
) -> str:
    """Why a run with these settings may not resume from a checkpoint, in one line."""
    return (
        f"{folder} was saved with {difference(then, now, names)}; resume with the settings it "
        f"was saved with, or start another run from its weights: --model {folder} and a new "
        "--output_dir"
    )


def difference(then: Mapping[str, object], now: Mapping[str, object], names: list[str]) -> str:
    """The values of these settings in two runs; of more than six, the first six.

    >>> difference({"seed": 1}, {"seed": 2}, ["seed"])
    'seed=1, and this run has seed=2'
    """
    shown = names[:6]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    was = ", ".join(f"{name}={_short(then[name])}" for name in shown)
    is_ = ", ".join(f"{name}={_short(now[name])}" for name in shown)
    return f"{was}{more}, and this run has {is_}"


def data_digest(dataset: object) -> str | None:
    """A hash of the content of all rows; None for a stream, which cannot be read beforehand.

    Takes 0.2 s for 20,000 rows of 200 tokens.
    """
    if not isinstance(dataset, Dataset):
        return None
    digest = hashlib.sha256()
    for table in dataset.with_format("arrow").iter(1000):
        # Taken row by row: the arrays of a slice, or in pieces, have other bytes for equal rows.
        rows = table.take(pa.array(range(table.num_rows)))
        plain = rows.combine_chunks().replace_schema_metadata(None)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, plain.schema) as stream:
            stream.write_table(plain)
        digest.update(sink.getvalue())
    return digest.hexdigest()[:16]


def _short(value: object) -> str:
    text = json.dumps(value) if isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
