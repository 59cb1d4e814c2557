"""Weights and optimizer of a sharded checkpoint: what a process saves, and what a run loads.

    sharded_model/       weights by their name: of all parameters, or of adapters and value head
    sharded_optimizer/   state of the optimizer as NAME.STATE
    optimizer.json       parameter groups by names, and state that is no tensor

FSDP2 saves them. Every trainer loads them: with FSDP2 on any number of processes, and without it.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from accelerate.optimizer import AcceleratedOptimizer
from peft import PeftModel, get_peft_model_state_dict
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.model.shards import (
    MODEL_SHARDS,
    own_shards,
    read_shards,
    stored_shapes,
    write_shards,
)
from pipeline.model.unsharded import WRAPPERS
from pipeline.training.optimizer import MuonAdamW

OPTIMIZER_SHARDS = "sharded_optimizer"
OPTIMIZER_FILE = "optimizer.json"
_HEAD = "value_head."
Packed = dict[str, object]  # what Optimizer.state_dict returns
Group = dict[str, object]  # a parameter group: options, and the names of its parameters


def save_weights(model: nn.Module, folder: Path, processes: int) -> None:
    """Write the weights that this process holds; all `processes` must call it together."""
    write_shards(saved_weights(model), folder / MODEL_SHARDS, processes)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Read what `save_weights` wrote, in place; processes with a sharded model call it together.

    Raises:
        ValueError: the weights are those of another model.
    """
    weights, shards = saved_weights(model), folder / MODEL_SHARDS
    left_over = sorted(stored_shapes(shards).keys() - weights.keys())
    if left_over:
        raise ValueError(
            f"{left_over[0]} is in {shards}, and not in the model of this run; resume with the "
            "model it was saved with"
        )
    read_shards(weights, shards)


def saved_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint by name, sharing memory with the model.

    Of a model with adapters these are the adapters, with peft's names, and the value head; of any
    other all parameters and saved buffers. Tied weights have the first of their names.

    Raises:
        ValueError: a trained weight is neither of an adapter nor of the value head.
    """
    saved = model.state_dict(keep_vars=True)
    distinct = {id(tensor): (name, tensor) for name, tensor in reversed(saved.items())}
    weights = {_plain(name): x.detach() for name, x in reversed(distinct.values())}
    if not isinstance(model, PeftModel):
        return weights
    adapters = get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False)
    head = {_HEAD + name.partition(_HEAD)[2]: x for name, x in weights.items() if _HEAD in name}
    found = {id(x) for x in [*adapters.values(), *head.values()]}
    lost = [n for n, p in model.named_parameters() if p.requires_grad]
    lost = [name for name in lost if id(weights.get(_plain(name))) not in found]
    if lost:
        raise ValueError(
            f"{lost[0]} is trained, and neither an adapter nor the value head, so peft does not "
            "save it; train adapters alone, or without use_peft"
        )
    return adapters | head


def save_description(
    model: nn.Module, skeleton: nn.Module, tokenizer: object, folder: Path
) -> None:
    """Write what a plain checkpoint has beside its weights: configurations and the tokenizer.

    Args:
        model: sharded.
        skeleton: a `meta_copy` of it: sharding changes the name of its class.
        tokenizer: of the run, or None.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer.save_pretrained(folder)
    if isinstance(model, PeftModel):
        adapters = copy.deepcopy(model.peft_config[model.active_adapter])
        adapters.inference_mode = True
        adapters.save_pretrained(folder)
        return
    assert isinstance(skeleton, PreTrainedModel)
    config = copy.deepcopy(skeleton.config)
    config.architectures = [type(skeleton).__name__]
    config.dtype = skeleton.dtype
    config.save_pretrained(folder)
    if skeleton.can_generate() and skeleton.generation_config is not None:
        skeleton.generation_config.save_pretrained(folder)


def save_optimizer(
    model: nn.Module, optimizer: Optimizer, folder: Path, *, process: int, processes: int
) -> None:
    """Write the state that this process holds, and process 0 the parameter groups; all `processes`
    must call it together."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, object] = {}
    groups: dict[str, list[Group]] = {}
    for part, each in _parts(optimizer).items():
        names, packed = _names(model, each), each.state_dict()
        for index, state in packed["state"].items():
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{names[index]}.{key}"] = value
                else:
                    values[f"{names[index]}.{key}"] = value
        groups[part] = [
            group | {"params": [names[index] for index in group["params"]]}
            for group in packed["param_groups"]
        ]
    if tensors:
        write_shards(tensors, folder / OPTIMIZER_SHARDS, processes)
    if process == 0:
        content = {"groups": groups, "values": values, "tensors": bool(tensors)}
        text = json.dumps(content, indent=1, default=float)  # a rate may be a tensor
        (folder / OPTIMIZER_FILE).write_text(text + "\n", encoding="utf-8")


def load_optimizer(model: nn.Module, optimizer: Optimizer, folder: Path) -> None:
    """Read what `save_optimizer` wrote; processes with a sharded model call it together.

    Raises:
        ValueError: the state is that of another optimizer or of other parameters.
    """
    content = json.loads((folder / OPTIMIZER_FILE).read_text(encoding="utf-8"))
    parts = _parts(optimizer)
    if content["groups"].keys() != parts.keys():
        raise ValueError(f"{OPTIMIZER_FILE} has the parts {sorted(content['groups'])}")
    parameters = {_plain(name): p for name, p in model.named_parameters()}
    state: dict[str, dict[str, object]] = {}
    for path, value in content["values"].items():
        name, _, key = path.rpartition(".")
        state.setdefault(name, {})[key] = value
    if content["tensors"]:
        tensors = _allocated(folder / OPTIMIZER_SHARDS, parameters)
        read_shards(tensors, folder / OPTIMIZER_SHARDS)
        for path, tensor in tensors.items():
            name, _, key = path.rpartition(".")
            state.setdefault(name, {})[key] = tensor
    packed = {
        part: _packed(model, each, content["groups"][part], state) for part, each in parts.items()
    }
    optimizer.load_state_dict(packed if len(packed) > 1 else packed[""])


def own_files(folder: Path, process: int) -> Iterator[Path]:
    """Yield the files of a checkpoint that `process` alone has written, and hashes."""
    for name in (MODEL_SHARDS, OPTIMIZER_SHARDS):
        yield from own_shards(folder / name, process)


def _parts(optimizer: Optimizer) -> dict[str, Optimizer]:
    """Return the optimizers of torch that an optimizer consists of, by name."""
    plain = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    return dict(plain.parts) if isinstance(plain, MuonAdamW) else {"": plain}


def _names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Return the name of every parameter, in the order in which `state_dict` counts them."""
    names = {id(p): _plain(name) for name, p in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _allocated(folder: Path, parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Return tensors for the stored state: divided as its parameter where the shapes are equal."""
    tensors = {}
    for path, (shape, dtype) in stored_shapes(folder).items():
        parameter = parameters.get(path.rpartition(".")[0])
        if parameter is None:
            raise ValueError(f"{path} is the state of a parameter that this run does not have")
        if shape == parameter.shape:
            tensors[path] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        elif isinstance(parameter, DTensor) and len(shape):
            raise ValueError(f"{path} has the shape {tuple(shape)}, which is not its parameter's")
        else:
            tensors[path] = torch.zeros(shape, dtype=dtype)
    return tensors


def _packed(
    model: nn.Module, optimizer: Optimizer, stored: list[Group], state: Mapping[str, object]
) -> Packed:
    """Return the stored state as `load_state_dict` takes it, for the groups of this optimizer."""
    now, names = optimizer.state_dict(), _names(model, optimizer)
    groups = []
    if len(stored) != len(now["param_groups"]):
        raise ValueError(f"{len(stored)} parameter groups instead of {len(now['param_groups'])}")
    for then, own in zip(stored, now["param_groups"], strict=True):
        wanted = [names[index] for index in own["params"]]
        if then["params"] != wanted:
            raise ValueError("its groups have other parameters")
        options = {k: _as(own.get(k), v) for k, v in then.items()}
        groups.append(own | options | {"params": own["params"]})
    return {
        "state": {index: state[name] for index, name in enumerate(names) if name in state},
        "param_groups": groups,
    }


def _as(own: object, stored: object) -> object:
    """Return a value of JSON as a tuple where this run has one."""
    return tuple(stored) if isinstance(own, tuple) and isinstance(stored, list) else stored


def _plain(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
