"""A token, wherever a user puts it, is found in no file, no card and no line of output."""

import os
import re
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from pipeline.hub import PublishError, publish
from pipeline.model import save_policy
from pipeline.runtime import one_line_errors, redacted, run_info
from pipeline.sandbox import Limits, run_program, working_levels
from pipeline.sft.trainer import ReasoningSFTConfig
from stages import publish as publish_stage
from stages import sft
from stages.publish import push_callbacks, training_push
from tests.hub_server import TOKEN
from tests.test_hub_push import SFT

ODD = "canary-without-the-usual-beginning"  # a token need not look like one


def found_in(folder: Path, secret: str) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if secret.encode() in path.read_bytes()]


PLACES = pytest.mark.parametrize("place", ["environment", "login file", "config", "flag"])


@pytest.fixture
def put_token(monkeypatch) -> Callable[[str], tuple[str, list[str]]]:
    """`put_token(place)`: the token is there alone; (lines of the config, arguments) it takes."""

    def put(place: str) -> tuple[str, list[str]]:
        if place != "environment":
            monkeypatch.delenv("HF_TOKEN")
        if place == "login file":
            Path(constants.HF_TOKEN_PATH).write_text(TOKEN)
        line = f"hub_token: {TOKEN}\n" if place == "config" else ""
        return line, ["--hub_token", TOKEN] if place == "flag" else []

    return put


def train(out: Path, line: str, *arguments: str) -> None:
    """One SFT run of two steps, pushed after each; it writes for TensorBoard where that is here."""
    threads = torch.get_num_threads()
    config = out.parent / "config" / "sft.yaml"
    config.parent.mkdir(exist_ok=True)
    config.write_text(SFT + line)
    more = ["--push_to_hub", "true", "--hub_model_id", "user/name"]
    if find_spec("tensorboard"):
        more += ["--report_to", "tensorboard", "--logging_steps", "1"]
    sft.main(["--config", str(config), "--output_dir", str(out), *more, *arguments])
    torch.set_num_threads(threads)


@PLACES
def test_a_token_leaves_no_trace(hub, tmp_path, capsys, put_token, place):
    line, arguments = put_token(place)
    out = tmp_path / "out"
    train(out, line, *arguments)
    said = capsys.readouterr()
    assert "model.safetensors" in hub.files("user/name"), said.out  # it has been used
    assert list(out.glob("checkpoint-*"))
    assert bool(list(out.rglob("events.out.tfevents*"))) is bool(find_spec("tensorboard"))
    assert found_in(out, TOKEN) == []
    for files in hub.repos["user/name"].commits.values():
        assert [name for name, content in files.items() if TOKEN.encode() in content] == []
    assert TOKEN not in said.out + said.err


@pytest.mark.parametrize("place", ["environment", "flag"])
def test_a_hub_that_fails_brings_no_token_to_light(hub, tmp_path, capsys, put_token, place):
    line, arguments = put_token(place)
    hub.fail("/commit/", 403)
    train(tmp_path / "out", line, *arguments)
    said = capsys.readouterr()
    assert "training continues" in said.out and "push later: " in said.out
    assert TOKEN not in said.out + said.err
    assert found_in(tmp_path / "out", TOKEN) == []


@pytest.mark.skipif(not working_levels(), reason="this machine isolates no program")
def test_a_program_in_the_sandbox_finds_no_token(hub):
    Path(constants.HF_TOKEN_PATH).write_text(TOKEN)  # and HF_TOKEN is set
    look = f"""
import os
print(dict(os.environ))
for path in ("/proc/self/environ", "/proc/{os.getpid()}/environ", {constants.HF_TOKEN_PATH!r}):
    try:
        print(open(path).read())
    except OSError as error:
        print(type(error).__name__)
"""
    for level in working_levels():
        outcome = run_program(look, limits=Limits(seconds=10, wall_seconds=120), level=level)
        assert outcome.ended == "exit 0", outcome.stderr
        assert TOKEN not in outcome.stdout + outcome.stderr


@pytest.mark.parametrize("secret", [TOKEN, ODD])
def test_an_error_does_not_repeat_a_token(monkeypatch, capsys, secret):
    monkeypatch.setenv("HF_TOKEN", secret)

    @one_line_errors
    def main() -> None:
        raise ValueError(f"--hub_tokn {secret} is no argument")

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "error: --hub_tokn <HUB_TOKEN> is no argument\n"


def test_a_mistyped_flag_does_not_print_the_token_behind_it(tmp_path, capsys):
    with pytest.raises(SystemExit):
        sft.main(["--hub_tokn", TOKEN, "--output_dir", str(tmp_path)])
    error = capsys.readouterr().err
    assert "hub_tokn" in error and TOKEN not in error


def test_the_token_of_a_login_is_redacted_too(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert redacted(f"x {ODD}") == f"x {ODD}"
    (tmp_path / "token").write_text(ODD + "\n")
    assert redacted(f"x {ODD}") == "x <HUB_TOKEN>"


CARD = "---\nlicense: mit\n---\n"
LEAKS = {
    "the card": {"card": lambda repo: CARD + TOKEN},
    "the title of the commit (--message)": {"message": f"with {TOKEN}"},
    "the name of the branch (--revision)": {"revision": TOKEN},
    "the name of the repository": {"repo_id": f"user/{TOKEN}"},
    "the name of a file": {"plan": {f"{TOKEN}.jinja": b""}},
}


@pytest.mark.parametrize("secret", [TOKEN, ODD])
@pytest.mark.parametrize("place", LEAKS)
def test_what_holds_a_token_is_refused_before_a_repository_is_made(hub, place, secret):
    asked = {"plan": {}, "card": lambda repo: CARD, "repo_id": "user/name", **LEAKS[place]}
    if secret == ODD:  # known because it is the one that the push is made with
        asked = {
            name: value.replace(TOKEN, ODD) if isinstance(value, str) else value
            for name, value in asked.items()
        }
        asked["plan"] = {name.replace(TOKEN, ODD): data for name, data in asked["plan"].items()}
        if place == "the card":
            asked["card"] = lambda repo: CARD + ODD
    with pytest.raises(
        ValueError, match=re.escape(f"{place} contains a token of the Hub")
    ) as refused:
        publish(**asked, token=secret)
    assert secret not in str(refused.value)
    assert hub.requests == [] and hub.repos == {}


@pytest.mark.parametrize("where", ["metadata", "the name of a tensor"])
@pytest.mark.parametrize("file", ["model.safetensors", "value_head.safetensors"])
def test_a_token_in_the_header_of_weights_keeps_them_here(
    hub, tiny_policy, tokenizer, tmp_path, capsys, file, where
):
    save_policy(tiny_policy, tokenizer, tmp_path / "p")
    name, metadata = ("w", {"by": TOKEN}) if where == "metadata" else (TOKEN, {})
    save_file({name: torch.zeros(1)}, tmp_path / "p" / file, metadata=metadata)
    with pytest.raises(SystemExit):
        publish_stage.main(["--checkpoint", str(tmp_path / "p"), "--repo_id", "user/name"])
    error = capsys.readouterr().err
    assert f"error: {file} contains a token of the Hub" in error and TOKEN not in error
    assert hub.requests == [] and hub.repos == {}


def test_a_title_with_a_token_leaves_no_repository_behind(
    hub, tiny_policy, tokenizer, tmp_path, capsys
):
    save_policy(tiny_policy, tokenizer, tmp_path / "p")
    arguments = ["--checkpoint", str(tmp_path / "p"), "--repo_id", "user/name"]
    with pytest.raises(SystemExit) as left:
        publish_stage.main([*arguments, "--message", f"pushed with {TOKEN}"])
    assert left.value.code == 2
    assert TOKEN not in capsys.readouterr().err
    assert hub.requests == [] and hub.repos == {}


def test_an_error_of_the_hub_does_not_name_the_token(hub):
    hub.fail("/commit/", 500)
    with pytest.raises(PublishError) as caught:
        publish({}, lambda repo: "---\nlicense: mit\n---\n", "user/name", token=TOKEN)
    assert TOKEN not in str(caught.value)


def test_training_arguments_hold_no_token_once_the_push_is_set_up(tmp_path):
    args = ReasoningSFTConfig(output_dir=str(tmp_path), push_to_hub=True, hub_token=TOKEN)
    push = training_push(args, sft=args)
    torch.save(args, tmp_path / "training_args.bin")
    assert found_in(tmp_path, TOKEN) == []
    assert push.target.token == TOKEN
    assert TOKEN not in repr(push.target) + str(run_info(sft=args))


def test_the_trainers_own_push_is_refused(tmp_path):
    args = ReasoningSFTConfig(output_dir=str(tmp_path), push_to_hub=True)
    with pytest.raises(ValueError, match=r"makes the Trainer upload training_args.bin"):
        push_callbacks(args, None)
    push = training_push(args, sft=args)
    assert push_callbacks(args, push) == [push]


def test_the_search_above_can_find(tmp_path, tiny_policy, tokenizer):
    save_policy(tiny_policy, tokenizer, tmp_path / "p")
    (tmp_path / "p" / "x.bin").write_bytes(b"\0" + TOKEN.encode())
    assert found_in(tmp_path, TOKEN) == [tmp_path / "p" / "x.bin"]


def test_the_sources_hold_no_token():
    root = Path(__file__).parents[1]
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("no git checkout")
    texts = {name: (root / name).read_bytes().decode(errors="ignore") for name in tracked}
    assert [name for name, text in texts.items() if TOKEN in text] == []
