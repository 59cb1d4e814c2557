"""A token, wherever a user puts it, is found in no file, no card and no line of output."""

import subprocess
from pathlib import Path

import pytest
import torch

from pipeline.hub import PublishError, publish
from pipeline.model import save_policy
from pipeline.runtime import one_line_errors, redacted, run_info
from pipeline.train.sft import ReasoningSFTConfig
from stages import sft
from stages.pushing import callbacks_of, training_push
from tests.hub_server import TOKEN
from tests.test_hub_push import SFT

ODD = "canary-without-the-usual-beginning"  # a token need not look like one


def found_in(folder: Path, secret: str) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize("place", ["environment", "login file", "config", "flag"])
def test_a_token_leaves_no_trace(hub, tmp_path, monkeypatch, capsys, place):
    threads = torch.get_num_threads()
    out, config = tmp_path / "out", tmp_path / "config" / "sft.yaml"
    config.parent.mkdir()
    more = ["--push_to_hub", "true", "--hub_model_id", "user/name", "--save_steps", "1"]
    text = SFT.replace("save_steps: 1\n", "")
    if place != "environment":
        monkeypatch.delenv("HF_TOKEN")
    if place == "login file":
        from huggingface_hub import constants

        Path(constants.HF_TOKEN_PATH).write_text(TOKEN)
    if place == "config":
        text += f"hub_token: {TOKEN}\n"
    if place == "flag":
        more += ["--hub_token", TOKEN]
    config.write_text(text)
    sft.main(["--config", str(config), "--output_dir", str(out), *more])
    torch.set_num_threads(threads)
    said = capsys.readouterr()
    assert "model.safetensors" in hub.files("user/name"), said.out  # it has been used
    assert list(out.glob("checkpoint-*"))
    assert found_in(out, TOKEN) == []
    for files in hub.repos["user/name"].commits.values():
        assert [name for name, content in files.items() if TOKEN.encode() in content] == []
    assert TOKEN not in said.out + said.err


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


def test_a_card_with_a_token_is_not_published(hub):
    with pytest.raises(ValueError, match="the card holds a token of the Hub"):
        publish({}, lambda repo: f"---\nlicense: mit\n---\n{TOKEN}", "user/name")
    assert not any("/commit/" in request for request in hub.requests)


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
    with pytest.raises(ValueError, match=r"would have the Trainer upload training_args.bin"):
        callbacks_of(args, None)
    push = training_push(args, sft=args)
    assert callbacks_of(args, push) == [push]


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
