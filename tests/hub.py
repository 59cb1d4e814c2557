"""Fixtures around the Hub on this machine (hub_server): the real client, another address."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from tests.hub_server import TOKEN, HubServer


@pytest.fixture
def hub(tmp_path_factory, monkeypatch) -> Iterator[HubServer]:
    """A running Hub that this process takes for the real one, with an empty cache."""
    home = tmp_path_factory.mktemp("hf")
    with HubServer() as server:
        use_hub(server, home, monkeypatch)
        yield server
    _http.close_session()


def use_hub(server: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What huggingface_hub reads from the environment at import."""
    for name, value in {
        "ENDPOINT": server.url,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HOME", str(home))
    # The client waits 1, 2, 4, 8 and 8 s before it gives up on a Hub that has a fault.
    real = _http.time
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda s: None, time=real.time))
    _http.close_session()


def hub_environment(server: HubServer, home: Path) -> dict[str, str]:
    """For a process of its own."""
    return {
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
    }
