"""What of a checkpoint folder goes to the Hub: files by name, without what is private to a machine.

An optimizer's state, random numbers and training_args.bin are pickles, the last one with the Hub's
token in clear text. None of them is on the list (`pipeline.model.trust.CHECKPOINT_FILES`), so none
goes up, whatever lies in the folder.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from pipeline.model.trust import ADAPTER_CONFIG, is_checkpoint_file
from pipeline.runtime import redacted

# {path in the repository: a file here, or its content}
Upload = dict[str, Path | bytes]

# Where a model lay on the machine that wrote the file.
_PRIVATE_FIELDS = (
    "_name_or_path",
    "name_or_path",
    "is_local",
    "local_files_only",
    "tokenizer_file",
)
HEADER_BYTES = 100_000_000  # the largest header that safetensors reads
GENERATE = Path(__file__).with_name("custom_generate") / "generate.py"


def plan_upload(folder: Path, *, base_model: str | None = None) -> Upload:
    """The files of a checkpoint to upload. ValueError where one must not go up.

    `base_model` replaces the folder that adapters name as the model beneath them.
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
        raise ValueError(f"{folder} holds no weights (*.safetensors), so there is nothing to push")
    if "config.json" in plan:
        # Of adapters alone, transformers would have to know the folder as a model.
        plan["custom_generate/generate.py"] = GENERATE
    return plan


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a checkpoint among all that lies in a folder; a link among them is refused."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; point at a checkpoint")
    found = sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*")])
    ours = [path for path in found if is_checkpoint_file(path.relative_to(folder).as_posix())]
    for path in ours:
        if path.is_symlink() or path.parent.is_symlink():
            raise ValueError(
                f"{path} is a link, and what it points to may not be meant for the Hub; copy it"
            )
    return ours


def link_files(folder: Path, aside: Path) -> None:
    """The checkpoint files of a folder once more in `aside`, as links without a copy of the data
    where the disk allows it: what happens to the folder afterwards does not reach them."""
    for path in checkpoint_files(folder):
        target = aside / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copy2(path, target)


def check_no_token(name: str, text: str, token: str | None = None) -> None:
    """ValueError naming what holds a token of the Hub, or this one, without the token."""
    if redacted(text) != text or (token and token in text):
        raise ValueError(f"{name} holds a token of the Hub and stays here; take the token out")


def _without_private_fields(path: Path, base_model: str | None) -> Path | bytes:
    """The file, or its content without what only means something on this machine."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    public = {key: value for key, value in content.items() if key not in _PRIVATE_FIELDS}
    if path.name == ADAPTER_CONFIG:
        base = base_model or str(content.get("base_model_name_or_path"))
        if Path(base).exists() or base.startswith((".", "/", "~")) or base.count("/") > 1:
            raise ValueError(
                f"the adapter stands on the model {base}, a folder here; publish that one first, "
                "then give --base_model user/name"
            )
        public["base_model_name_or_path"] = base
    if public == content:
        return path
    return (json.dumps(public, indent=2, ensure_ascii=False) + "\n").encode()


def _header(path: Path) -> str:
    """The JSON at the head of a safetensors file: metadata, and the names of its tensors."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return file.read(min(size, HEADER_BYTES)).decode(errors="ignore")


def _text(content: Path | bytes) -> str:
    data = content.read_bytes() if isinstance(content, Path) else content
    return data.decode(errors="ignore")
