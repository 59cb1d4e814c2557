"""Load a causal LM and check that its weights are complete, expected and finite.

`from_pretrained` initialises missing weights at random and only warns. Here that is an error, and
so is a configuration of a model much larger than its files.
"""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pipeline.runtime import out_of_memory

INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")  # as a safetensors header names them
# Value heads that TRL or a plain save_pretrained have stored among the weights.
HEAD_PREFIXES = ("value_head.", "v_head.")
# Buffers that earlier versions of transformers stored and newer ones compute.
COMPUTED_SUFFIXES = (".masked_bias", ".inv_freq", ".position_ids")
SPARE_NUMBERS = 1 << 26  # for buffers that are computed rather than stored, such as masks


@dataclass(frozen=True)
class Stored:
    """Type and shape of one tensor, from the header of a safetensors file."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """({name: dtype and shape} of every tensor, metadata), without reading tensors.

    safetensors checks that the shapes add up to the size of the file, so no tensor of these shapes
    needs more memory than the file has bytes.
    """
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        stored = {n: Stored(s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
        return stored, dict(file.metadata() or {})


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """{name: tensor} of a safetensors file, on the CPU; ValueError unless all are finite floats."""
    stored, _ = read_header(path)
    odd = next((name for name, t in stored.items() if t.dtype not in FLOATS), None)
    if odd is not None:
        raise ValueError(
            f"{path}: {odd} is stored as {stored[odd].dtype}, and weights must be one of "
            f"{', '.join(FLOATS)}; save it again in float32"
        )
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in stored}
    check_finite(tensors.items(), str(path))
    return tensors


def split_by_prefix(
    state_dict: Mapping[str, torch.Tensor], prefix: str
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(weights without the prefix, weights with it), the latter under the rest of their names.

    >>> split_by_prefix({"lm_head.weight": 1, "value_head.last.bias": 2}, "value_head.")
    ({'lm_head.weight': 1}, {'last.bias': 2})
    """
    others = {k: v for k, v in state_dict.items() if not k.startswith(prefix)}
    own = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    return others, own


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], where: str) -> None:
    """Raise ValueError for the first tensor with a value that is NaN or infinite.

    One pass over the memory and no copy: minimum or maximum of a tensor are then not finite either.
    """
    for name, tensor in tensors:
        if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
            continue
        if not all(bound.isfinite() for bound in tensor.detach().aminmax()):
            bad = int((~tensor.detach().isfinite()).sum())
            raise ValueError(
                f"{where}: {bad:,} of the {tensor.numel():,} numbers of {name} are NaN or "
                "infinite, and weights must be finite; take an earlier checkpoint, or fetch it "
                "again"
            )


def disable_zero3_init() -> None:
    """Have transformers create whole models under DeepSpeed ZeRO-3, until the next trainer is made.

    With zero.Init every process would have a part of each weight, and nothing could be checked or
    added (tokens, value head). DeepSpeed divides the weights when the trainer prepares the model.
    """
    unset_hf_deepspeed_config()


def load_causal_lm(
    folder: Path, dtype: torch.dtype | None = None, loading: Mapping[str, object] | None = None
) -> PreTrainedModel:
    """The causal LM of a checkpoint folder, on the CPU in eval mode; dtype None is the stored one.

    `loading` has further arguments of from_pretrained.

    Raises ValueError if weights are missing, unexpected, of another shape or type than config.json
    says, NaN or infinite, and for layers that keep a state besides keys and values.
    """
    disable_zero3_init()
    with one_line_load_errors(folder, "config.json"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    stored = _stored_weights(folder)
    options = dict(loading or {})
    stored_quantized = getattr(config, "quantization_config", None) is not None
    quantized = stored_quantized or "quantization_config" in options
    if not stored_quantized:
        _check_size(folder, config, stored)
    # transformers would also print a table of missing and unexpected keys.
    with one_line_load_errors(folder, "the model"), _errors_only("transformers.modeling_utils"):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # raises below, with the shapes
            output_loading_info=True,
            **options,
        )
    _check_class(folder, config, model)
    _check_cache(folder, model)
    _check_keys(folder, config, info)
    if not quantized:
        _check_types(folder, model, stored)
    check_finite(_parameters_and_buffers(model), str(folder))
    make_generation_config_valid(model)
    return model


def make_generation_config_valid(model: PreTrainedModel) -> None:
    """Change the generation configuration in place where save_pretrained would refuse it.

    Many published ones have sampling options without do_sample: sampling is then switched on. If
    that is not enough, the end tokens are kept and the rest is that of config.json.
    """
    given = model.generation_config
    if given is None or _can_be_saved(given):
        return
    given.do_sample = True
    if not _can_be_saved(given):
        model.generation_config = GenerationConfig.from_model_config(model.config)
        model.generation_config.eos_token_id = given.eos_token_id


def _can_be_saved(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True


@contextmanager
def one_line_load_errors(folder: Path, what: str) -> Iterator[None]:
    """Turn any exception of a library that reads files of a folder into a one-line ValueError.

    The configuration is untrusted input: 0 heads or an unknown activation make a library divide by
    zero or miss a key, so the type of the exception says nothing. Out-of-memory errors are not
    changed.
    """
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300] or "no reason given"
        remedy = "install it, or take a checkpoint that does not need it"
        if not isinstance(error, ImportError):
            remedy = "save or fetch the checkpoint again"
        raise ValueError(
            f"{folder}: {what} cannot be loaded ({type(error).__name__}: {reason}); {remedy}"
        ) from error


def _stored_weights(folder: Path) -> dict[str, Stored]:
    """The tensors in the headers of the model's files; a single file precedes shards, as in
    transformers."""
    single = folder / "model.safetensors"
    if single.is_file() or not (folder / INDEX).is_file():
        return read_header(single)[0] if single.is_file() else {}
    shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
    stored: dict[str, Stored] = {}
    for shard in sorted(set(shards)):
        stored |= read_header(folder / shard)[0]
    return stored


def _check_size(folder: Path, config: PreTrainedConfig, stored: Mapping[str, Stored]) -> None:
    """Raise ValueError if config.json describes a model much larger than its files.

    Runs before memory is allocated: missing weights would be allocated and initialised at random.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > max(1, len(stored)):
        raise ValueError(
            f"{folder}: config.json has num_hidden_layers={layers:,}, and the weights are "
            f"{len(stored):,} tensors, fewer than one a layer; take the config.json that was saved "
            "with these weights"
        )
    with (
        one_line_load_errors(folder, "config.json"),
        _errors_only("transformers"),
        torch.device("meta"),
    ):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    needed = sum(tensor.numel() for _, tensor in _parameters_and_buffers(model))
    held = sum(math.prod(tensor.shape) for tensor in stored.values())
    if needed > 2 * held + SPARE_NUMBERS:
        raise ValueError(
            f"{folder}: config.json describes a model of {needed:,} numbers, and the weights hold "
            f"{held:,}; take the config.json that was saved with these weights"
        )


def _check_class(folder: Path, config: PreTrainedConfig, model: PreTrainedModel) -> None:
    """Raise ValueError if the loaded class is not the saved one.

    Many architectures have the same names of weights and compute something else with them.
    """
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    saved = [name for name in config.architectures or () if name in known]
    made = type(model).__name__
    if saved and made not in saved:
        raise ValueError(
            f"{folder}: config.json has architectures={saved[0]}, and its model_type="
            f"{config.model_type} makes a {made}; take the config.json that was saved with these "
            "weights"
        )


def _check_cache(folder: Path, model: PreTrainedModel) -> None:
    """Raise ValueError for a model that a sequence cannot be continued with from keys and values
    alone, as sampling and search do."""
    parameters = signature(model.forward).parameters
    try:
        layers = DynamicCache(config=model.config).layers
    except (AttributeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{folder}: transformers makes no cache of keys and values for model_type="
            f"{model.config.model_type} ({error}), and sampling and search need one; take another "
            "model"
        ) from error
    if "cache_params" in parameters or any(hasattr(layer, "conv_states") for layer in layers):
        raise ValueError(
            f"{folder}: layers of model_type={model.config.model_type} keep a state besides keys "
            "and values (Mamba, linear attention, convolution), which sampling and search cannot "
            "continue from; take a model whose layers are all attention"
        )
    if "past_key_values" not in parameters:
        raise ValueError(
            f"{folder}: a model of model_type={model.config.model_type} takes no past_key_values, "
            "which sampling and search continue from; take another model"
        )


def _check_keys(folder: Path, config: PreTrainedConfig, info: Mapping[str, Iterable]) -> None:
    """Raise ValueError for weights that are missing, unexpected or of another shape.

    transformers has already removed tied weights, and keys that an architecture ignores.
    """
    missing = sorted(info["missing_keys"])
    extra = sorted(
        key
        for key in info["unexpected_keys"]
        if not key.startswith(HEAD_PREFIXES) and not key.endswith(COMPUTED_SUFFIXES)
    )
    mismatched = sorted(info["mismatched_keys"])
    faults = []
    if missing:
        faults.append(f"{missing[0]} is missing{and_more(missing)}")
    if extra:
        faults.append(f"{extra[0]} has no place in the model{and_more(extra)}")
    if mismatched:
        name, found, wanted = mismatched[0]
        faults.append(f"{name} is {list(found)} instead of {list(wanted)}{and_more(mismatched)}")
    if info.get("error_msgs"):
        faults.append(" ".join(str(info["error_msgs"]).split())[:200])
    if faults:
        layers = getattr(config.get_text_config(), "num_hidden_layers", "?")
        raise ValueError(
            f"{folder}: its weights do not fit its config.json (model_type={config.model_type}, "
            f"num_hidden_layers={layers}): {', '.join(faults)}; every weight must be stored, so "
            "save or fetch the checkpoint again"
        )


def _check_types(folder: Path, model: PreTrainedModel, stored: Mapping[str, Stored]) -> None:
    """Raise ValueError for a parameter not stored as floating point; buffers may have any type."""
    prefix = f"{model.base_model_prefix}."
    names = {name.removeprefix(prefix) for name, _ in model.named_parameters()}
    for name, tensor in stored.items():
        if name.removeprefix(prefix) in names and tensor.dtype not in FLOATS:
            raise ValueError(
                f"{folder}: {name} is stored as {tensor.dtype} without a quantization_config, so "
                f"its scale is unknown; weights must be one of {', '.join(FLOATS)}"
            )


def _parameters_and_buffers(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def and_more(found: Sized) -> str:
    """The words " and N more" for an error that names the first of several things, else ""."""
    return f" and {len(found) - 1:,} more" if len(found) > 1 else ""


@contextmanager
def _errors_only(name: str) -> Iterator[None]:
    """Drop messages below ERROR of one logger.

    A filter, not a level: with a level of WARNING or above, transformers checks the tensor-parallel
    plan on every load and warns of layers that are not sharded.
    """

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger = logging.getLogger(name)
    logger.addFilter(is_error)
    try:
        yield
    finally:
        logger.removeFilter(is_error)
