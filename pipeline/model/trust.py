"""What a checkpoint written by somebody else may not ask of this machine.

Weights are safetensors, everything else is JSON or text, and nothing in either is run:

    code of the repository (auto_map)     refused, or ignored where transformers can do without
    an attention kernel named by a Hub    refused: a kernel is code
    weights as a pickle                   refused
    a shard outside the folder            refused
    a chat template that does not end     tried once in a process of its own, refused
"""

import fnmatch
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING

ADAPTER_CONFIG = "adapter_config.json"

# All that goes to the Hub and comes from it, by name: weights without pickles, and text.
CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "value_head.safetensors",
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

TRIAL = Path(__file__).parents[1] / "chat" / "template_trial.py"
TRIAL_SECONDS = 20
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


def check_checkpoint(folder: Path, name: str = "") -> None:
    """ValueError in one line where a checkpoint folder holds what we do not load."""
    name = name or str(folder)
    ours = [path for path in sorted(folder.iterdir()) if is_checkpoint_file(path.name)]
    for path in ours:
        if path.suffix == ".json":
            _check_json(path, name)
    weights = [path for path in ours if path.suffix == ".safetensors"]
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


def is_checkpoint_file(name: str) -> bool:
    """
    >>> is_checkpoint_file("model-00001-of-00002.safetensors"), is_checkpoint_file("optimizer.pt")
    (True, False)
    """
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in CHECKPOINT_FILES)


def try_templates(folder: Path, name: str) -> None:
    """ValueError where a chat template takes for ever or more memory than is reasonable."""
    for template in _templates(folder):
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(TRIAL)],
                input=template.encode(),
                capture_output=True,
                timeout=TRIAL_SECONDS,
                check=False,
            )
            failed = done.returncode != 0
        except subprocess.TimeoutExpired:
            failed = True
        if failed:
            raise ValueError(
                f"{name}: its chat template does not end in {TRIAL_SECONDS} s or takes more than "
                "1 GB for one question; do not use this model"
            )


def _check_json(path: Path, name: str) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name}: {path.name} is no JSON ({reason}); fetch it again") from None
    for key, value in _entries(content):
        if "implementation" in key and isinstance(value, str) and "/" in value:
            raise ValueError(
                f"{name}: {path.name} wants {key}={value} from the Hub, which is code; take the "
                "entry out of the file if you trust the model"
            )
    if path.name == "config.json" and "auto_map" in content:
        kind = content.get("model_type")
        if kind not in CONFIG_MAPPING:
            raise ValueError(
                f"{name}: its model_type {kind} comes with code of its own (auto_map), and none is "
                "run here; take a model that transformers knows"
            )
    if path.name.endswith(".index.json"):
        for shard in set(content.get("weight_map", {}).values()):
            if Path(str(shard)).name != shard:
                raise ValueError(f"{name}: {path.name} names {shard!r}, outside of its own folder")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of every mapping inside a JSON document."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _templates(folder: Path) -> list[str]:
    files = [folder / "chat_template.jinja", *folder.glob("additional_chat_templates/*.jinja")]
    found = [path.read_text(encoding="utf-8") for path in files if path.is_file()]
    for name in ("tokenizer_config.json", "chat_template.json"):
        if (folder / name).is_file():
            stored = json.loads((folder / name).read_text(encoding="utf-8")).get("chat_template")
            entries = stored if isinstance(stored, list) else [stored]
            found += [e["template"] if isinstance(e, dict) else e for e in entries if e]
    return found
