"""Pages in a browser: QtWebEngine from the package PyQt6-WebEngine; no display is needed.

PAGE_BROWSER is the path of a Python that has the package, if this one does not.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = os.environ.get("PAGE_BROWSER", sys.executable)
NEEDS_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.executable == PYTHON and importlib.util.find_spec("PyQt6") is None,
        reason="needs PyQt6-WebEngine: install it, or set PAGE_BROWSER to a Python that has it",
    ),
]


def seen_by(script: Path, *arguments: object, timeout: float = 240) -> dict:
    """What a script that opens a page with `Browser` prints of it."""
    command = [PYTHON, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr
    return json.loads(lines[-1])
