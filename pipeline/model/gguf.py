"""Convert a GGUF file to a plain Hugging Face folder, once.

    ~/.cache/thinkhead/gguf-HASH/    or $THINKHEAD_CACHE; HASH is that of the file's content

transformers reads and dequantizes the file, so training starts from float32 weights. A folder is
renamed to its name when it is complete: an interrupted conversion leaves none.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.folder_lock import one_at_a_time
from pipeline.model.atomic import staged
from pipeline.model.weights import make_generation_config_valid, one_line_load_errors

SOURCE_FILE = "gguf_source.json"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where converted weights come from, as far as it is known."""

    file: str
    sha256: str
    base_model: str = ""  # name on the Hub
    license: str = ""  # as the Hub writes it, such as apache-2.0


def cache_folder() -> Path:
    """The folder of converted models: $THINKHEAD_CACHE, else ~/.cache/thinkhead."""
    named = os.environ.get("THINKHEAD_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "thinkhead"


def gguf_file(path: Path) -> Path | None:
    """The GGUF file of a path: itself, or the only one of a folder without config.json.

    Raises ValueError for such a folder with several.
    """
    if path.suffix == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{path} has {len(found)} GGUF files ({names}); name one of them")
    return found[0] if found else None


def converted(file: Path, base_model: str = "") -> Path:
    """The folder with the model and the tokenizer of a GGUF file, converted if it is not yet.

    Processes that convert at the same time do so one after the other.

    Raises:
        ValueError: the package gguf is missing, or transformers cannot read the file.
    """
    sha256 = file_sha256(file)
    folder = cache_folder() / f"gguf-{sha256[:16]}"
    if (folder / SOURCE_FILE).is_file():
        return folder
    if find_spec("gguf") is None:
        raise ValueError(
            f"{file} is a GGUF file, and the package that reads it is missing; "
            "pip install 'thinkhead[gguf]'"
        )
    with one_at_a_time(folder.with_name(f".{folder.name}.lock")):
        if not (folder / SOURCE_FILE).is_file():
            _convert(file, folder, sha256, base_model)
    return folder


def file_sha256(file: Path) -> str:
    """The SHA-256 of a file, as hex digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _convert(file: Path, folder: Path, sha256: str, base_model: str) -> None:
    """Write the model and the tokenizer of a GGUF file to a folder."""
    size = file.stat().st_size
    print(f"converting {file.name} ({size / 1e6:,.0f} MB), once, to {folder}")
    with one_line_load_errors(file, "the GGUF file"):
        source = _read_source(file, sha256, base_model)
        where = {"gguf_file": file.name, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
    # The weights are plain now; with these two save_pretrained would refuse to store them.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    make_generation_config_valid(model)
    with staged(folder) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        text = json.dumps(asdict(source), indent=1)
        (staging / SOURCE_FILE).write_text(text + "\n", encoding="utf-8")


def source_of(folder: Path) -> Source | None:
    """The source of a converted folder; None for any other."""
    path = folder / SOURCE_FILE
    return Source(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _read_source(file: Path, sha256: str, base_model: str) -> Source:
    from gguf import GGUFReader

    fields = GGUFReader(file).fields

    def text(key: str) -> str:
        return str(fields[key].contents()) if key in fields else ""

    named = text("general.base_model.0.repo_url").removeprefix("https://huggingface.co/")
    return Source(
        file=file.name,
        sha256=sha256,
        base_model=base_model or named,
        license=text("general.license"),
    )
