"""stages.serve: mistakes of the command line, and a server from its start to its stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from pipeline.model import save_policy
from stages import serve
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--checkpoint is missing"),
        (["--checkpoint", "c", "--host", "0.0.0.0"], "set THINKHEAD_API_KEY"),
        (["--checkpoint", "c", "--port", "99999"], "port=99999 must lie in [0, 65535]"),
        (["--checkpoint", "c", "--strategy", "mtcs"], "did you mean 'mcts'?"),
        (["--checkpoint", "c", "--max_running", "0"], "max_running=0 must be at least 1"),
        (["--checkpoint", "c", "--api_key_file", "no/such"], "no/such: no such file"),
        (["--checkpoint", "no/such", "--port", "0"], "no/such is no folder here"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, capsys, monkeypatch):
    monkeypatch.delenv("THINKHEAD_API_KEY", raising=False)
    with pytest.raises(SystemExit) as stop:
        serve.main(arguments)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and said in error and "\n" not in error


def test_the_default_address_is_not_reached_by_other_machines():
    assert serve.ServeArguments(checkpoint="runs/any").host == "127.0.0.1"


def test_a_short_key_is_refused_and_a_good_one_is_read_from_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("THINKHEAD_API_KEY", "short")
    with pytest.raises(ValueError, match="5 characters, fewer than 16"):
        serve.ServeArguments(checkpoint="c").api_key()
    path = tmp_path / "key"
    path.write_text("0123456789abcdef\n")
    args = serve.ServeArguments(checkpoint="c", host="0.0.0.0", api_key_file=str(path))
    assert args.api_key() == "0123456789abcdef"


def test_a_port_in_use_is_refused_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit):
            serve.main(["--checkpoint", "no/such", "--port", str(port)])
    assert f"port={port} cannot be used" in capsys.readouterr().err


def test_without_the_extra_its_name_is_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit):
        serve.main(["--checkpoint", "c"])
    assert "pip install 'thinkhead[serve]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_starts_answers_and_stops_with_0(tmp_path, tiny_policy, tokenizer, number):
    save_policy(tiny_policy, tokenizer, tmp_path / "policy")
    command = [sys.executable, "-m", "stages.serve", "--checkpoint", str(tmp_path / "policy")]
    process = subprocess.Popen(
        [*command, "--port", "0"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[2].rstrip(",")
        body = {"messages": [{"role": "user", "content": "1+1?"}], "max_completion_tokens": 5}
        request = urllib.request.Request(
            f"{url}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["object"] == "chat.completion"
        process.send_signal(number)
        _, log = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert "status 200" in log and "Traceback" not in log
