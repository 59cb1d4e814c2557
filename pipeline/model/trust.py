"""Checks that make it safe to load a checkpoint from an untrusted source.

Weights must be safetensors, other files JSON or text. Nothing from the folder is executed:

    code of the repository (auto_map)      refused, or ignored if transformers has the model type
    an attention kernel from the Hub       refused: a kernel is code
    weights as a pickle                    refused
    a shard outside the folder             refused
    a chat template that does not end      rendered once in a separate process, refused
    megatron_config in an adapter config   refused: peft would import the module it names
"""

import fnmatch
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING

from pipeline.chat.template import built_in_templates

ADAPTER_CONFIG = "adapter_config.json"

# Names of all files that are uploaded to and downloaded from the Hub: safetensors and text.
CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "value_head.safetensors",
    "reasoning_layer.safetensors",
    "verifier.safetensors",
    ADAPTER_CONFIG,
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)

TEMPLATE_CHECK = Path(__file__).parents[1] / "chat" / "template_check.py"
TEMPLATE_SECONDS = 20
NO_TEMPLATE = 3  # exit code of TEMPLATE_CHECK for a text that is no Jinja template
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


def check_checkpoint(folder: Path, name: str = "") -> None:
    """Raise ValueError if a checkpoint folder has files that are unsafe or damaged.

    `name` is used in errors in place of the folder.
    """
    name = name or str(folder)
    for path in folder.iterdir():
        if is_checkpoint_file(path.name) and not path.is_file():
            raise ValueError(f"{name}: {path.name} is no regular file; fetch the checkpoint again")
    known = [path for path in sorted(folder.iterdir()) if is_checkpoint_file(path.name)]
    for path in known:
        if path.suffix == ".json":
            _check_json(path, name)
    weights = [path for path in known if path.suffix == ".safetensors"]
    for path in weights:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{name}: {path.name} is damaged ({reason}); fetch it again") from None
    pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in _PICKLES]
    if not any(path.name.startswith(("model", "adapter_model")) for path in weights):
        held = f" but {pickles[0]}, a pickle, which can run code" if pickles else ""
        raise ValueError(f"{name} holds no weights as safetensors{held}; save it as safetensors")
    check_templates(folder, name)


def is_checkpoint_file(name: str) -> bool:
    """Whether a file name matches CHECKPOINT_FILES.

    >>> is_checkpoint_file("model-00001-of-00002.safetensors"), is_checkpoint_file("optimizer.pt")
    (True, False)
    """
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in CHECKPOINT_FILES)


def check_templates(folder: Path, name: str) -> None:
    """Raise ValueError if a chat template is invalid, or exceeds its time or memory limit.

    Built-in templates are skipped. Takes about 0.2 s for each other template, once a process.
    """
    for template in sorted(set(_templates(folder, name)) - built_in_templates()):
        wrong = _template_fault(template)
        if wrong:
            raise ValueError(f"{name}: its chat template {wrong}")


@lru_cache(maxsize=64)
def _template_fault(template: str) -> str:
    """What is wrong with a template and the remedy; "" for a valid one."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(TEMPLATE_CHECK)],
            input=template.encode(),
            capture_output=True,
            timeout=TEMPLATE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"does not end in {TEMPLATE_SECONDS} s for one question; do not use this model"
    if done.returncode == NO_TEMPLATE:
        reason = " ".join(done.stdout.decode(errors="replace").split())
        return f"is no Jinja template ({reason}); correct or remove it"
    if done.returncode:
        return "takes more than 1 GB for one question, or crashes; do not use this model"
    return ""


def _check_json(path: Path, name: str) -> None:
    """Raise ValueError unless the file is a JSON object that makes no library run code."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name}: {path.name} is no JSON ({reason}); fetch it again") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{name}: {path.name} holds a {type(content).__name__} where a JSON object belongs; "
            "fetch it again"
        )
    for key, value in _entries(content):
        if "implementation" in key and isinstance(value, str) and "/" in value:
            raise ValueError(
                f"{name}: {path.name} has {key}={value}, which is code from the Hub; remove the "
                "entry from the file if you trust the model"
            )
    if path.name == "config.json" and "auto_map" in content:
        kind = content.get("model_type")
        if kind not in CONFIG_MAPPING:
            raise ValueError(
                f"{name}: its model_type {kind} needs code of the repository (auto_map), which "
                "is never run; take a model of a type that transformers has"
            )
    if path.name == ADAPTER_CONFIG and content.get("megatron_config") is not None:
        raise ValueError(
            f"{name}: {path.name} has a megatron_config, for which peft imports a module that the "
            "file names; remove the entry if you trust the adapter"
        )
    if path.name.endswith(".index.json"):
        _check_index(path, content.get("weight_map"), name)


def _check_index(path: Path, weight_map: object, name: str) -> None:
    """Raise ValueError unless every shard of the index is an existing file of the folder."""
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"{name}: {path.name} has weight_map={str(weight_map)[:40]}, and it must name the file "
            "of every weight; fetch it again"
        )
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(
                f"{name}: {path.name} names {shard!r}, outside of its folder; every shard must be "
                "a file in it"
            )
        if not (path.parent / shard).is_file():
            raise ValueError(f"{name}: {path.name} names {shard}, which is missing; fetch it again")


def _entries(content: object) -> Iterator[tuple[str, object]]:
    """(key, value) of every object in a JSON document, at any depth."""
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from value.items()
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _templates(folder: Path, name: str) -> list[str]:
    """Every chat template of a folder; ValueError if one is not a text."""
    files = [folder / "chat_template.jinja", *folder.glob("additional_chat_templates/*.jinja")]
    found: list[Any] = [
        path.read_text(encoding="utf-8", errors="replace") for path in files if path.is_file()
    ]
    for file in ("tokenizer_config.json", "chat_template.json"):
        if (folder / file).is_file():
            stored = json.loads((folder / file).read_text(encoding="utf-8")).get("chat_template")
            entries = stored if isinstance(stored, list) else [stored]
            found += [e.get("template") if isinstance(e, dict) else e for e in entries if e]
    odd = next((entry for entry in found if not isinstance(entry, str)), None)
    if odd is not None or None in found:
        raise ValueError(
            f"{name}: its chat template is {odd!r}, and it must be text; correct the file"
        )
    return found
