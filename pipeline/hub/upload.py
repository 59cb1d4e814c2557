"""Select the files of a checkpoint folder to upload, without paths of this machine and tokens.

Optimizer state, random states and training_args.bin are pickles, the last one with the token of the
Hub in clear text. Only names on a list (`pipeline.model.trust.CHECKPOINT_FILES`) are uploaded, and
none of these is on it.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from pipeline.model.trust import ADAPTER_CONFIG, is_checkpoint_file
from pipeline.runtime import redacted

# {path in the repository: a local file, or its content}
Upload = dict[str, Path | bytes]

# Fields with paths of the machine that wrote the file.
_PRIVATE_FIELDS = (
    "_name_or_path",
    "name_or_path",
    "is_local",
    "local_files_only",
    "tokenizer_file",
)
HEADER_BYTES = 100_000_000  # the largest header that safetensors accepts
GENERATE = Path(__file__).with_name("custom_generate") / "generate.py"


def plan_upload(folder: Path, *, base_model: str | None = None) -> Upload:
    """The files of a checkpoint to upload; ValueError if one must not be uploaded.

    `base_model` replaces a local folder as the base model in the configuration of adapters.
    """
    plan: Upload = {}
    for path in checkpoint_files(folder):
        name = path.relative_to(folder).as_posix()
        plan[name] = path
        if path.suffix == ".json" and name not in ("tokenizer.json", "vocab.json"):
            plan[name] = _without_private_fields(path, base_model)
        text = _header(path) if path.suffix == ".safetensors" else _text(plan[name])
        check_no_token(name, text)
    if not any(name.endswith(".safetensors") for name in plan):
        raise ValueError(
            f"{folder} has no weights (*.safetensors) to push; give a checkpoint folder, of "
            "sharded weights one that stages.merge has written"
        )
    if "config.json" in plan:
        # Not for adapters alone: transformers loads custom_generate with a model folder only.
        plan["custom_generate/generate.py"] = GENERATE
    return plan


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a folder that belong to a checkpoint; ValueError for a symbolic link."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give a checkpoint folder")
    found = sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")])
    ours = [path for path in found if is_checkpoint_file(path.relative_to(folder).as_posix())]
    for path in ours:
        if path.is_symlink() or path.parent.is_symlink():
            raise ValueError(
                f"{path} is a link, and its target may be private; replace it by a copy"
            )
    return ours


def link_files(folder: Path, aside: Path) -> None:
    """Hard-link the checkpoint files of a folder into `aside`, or copy them where links fail.

    The linked files stay if the folder is deleted or replaced.
    """
    for path in checkpoint_files(folder):
        target = aside / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copy2(path, target)


def check_no_token(name: str, text: str, token: str | None = None) -> None:
    """Raise ValueError if the text contains a token of the Hub, or `token`; never quote it."""
    if redacted(text) != text or (token and token in text):
        raise ValueError(
            f"{name} contains a token of the Hub and is not uploaded; remove the token"
        )


def _without_private_fields(path: Path, base_model: str | None) -> Path | bytes:
    """The JSON file as it is, or its content without fields that have paths of this machine."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    public = {key: value for key, value in content.items() if key not in _PRIVATE_FIELDS}
    if path.name == ADAPTER_CONFIG:
        base = base_model or str(content.get("base_model_name_or_path"))
        if Path(base).exists() or base.startswith((".", "/", "~")) or base.count("/") > 1:
            raise ValueError(
                f"the base model of the adapters, {base}, is a local folder; publish it "
                "first, then give --base_model user/name"
            )
        public["base_model_name_or_path"] = base
    if public == content:
        return path
    return (json.dumps(public, indent=2, ensure_ascii=False) + "\n").encode()


def _header(path: Path) -> str:
    """The header of a safetensors file: JSON with metadata and names of tensors."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return file.read(min(size, HEADER_BYTES)).decode(errors="ignore")


def _text(content: Path | bytes) -> str:
    data = content.read_bytes() if isinstance(content, Path) else content
    return data.decode(errors="ignore")
