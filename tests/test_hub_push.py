"""Pushing while training: the Hub gets the saves, and whatever it does, the run is the same."""

import contextlib
import hashlib
import io
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from pipeline.hub import push as push_module
from pipeline.hub.push import HubPush, Target
from pipeline.model import load_policy, save_policy, values_of
from stages import ppo, publish, sft
from stages.publish import PublishConfig
from tests.hub import use_hub
from tests.hub_server import TOKEN, HubServer

PPO = """
shares: wording=1,story1=1
size: 8
num_rollouts: 2
questions_per_rollout: 2
completions_per_question: 2
num_minibatches: 2
ppo_epochs: 1
max_completion_length: 8
save_every: 1
overlap: allow
disable_tqdm: true
"""
SFT = """
model: nano
nano_hidden_size: 32
nano_layers: 1
nano_heads: 2
nano_intermediate_size: 64
nano_vocab_size: 300
shares: wording=1
size: 16
max_steps: 2
per_device_train_batch_size: 4
max_length: 256
save_steps: 1
overlap: allow
disable_tqdm: true
"""
FAULTS = [
    ("POST", 401),
    ("POST", 403),
    ("/commit/", 409),
    ("PUT /lfs", 413),
    ("preupload", 429),
    ("/commit/", 500),
    ("/commit/", "timeout"),
    ("PUT /lfs", "reset"),
]


@pytest.fixture(autouse=True)
def threads():
    """The commands set the number of threads; the tests behind this file keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def arguments(policy: torch.nn.Module, tokenizer: object, home: Path) -> list[str]:
    """Those of a tiny PPO run whose SFT checkpoint is made below `home`."""
    save_policy(policy, tokenizer, home / "sft")
    (home / "ppo.yaml").write_text(PPO)
    return ["--config", str(home / "ppo.yaml"), "--model", str(home / "sft")]


@pytest.fixture
def start(tiny_policy, tokenizer, tmp_path) -> list[str]:
    return arguments(tiny_policy, tokenizer, tmp_path)


def train(start: list[str], out: Path, *more: str) -> str:
    """The hash of all that a run has made of its weights and optimizer."""
    ppo.main([*start, "--output_dir", str(out), *more])
    made = hashlib.sha256()
    for path in sorted(out.rglob("*")):
        if path.name == "optimizer.pt":
            made.update(path.read_bytes())
        elif path.name in ("model.safetensors", "value_head.safetensors"):
            # The tensors: the head of the file has its entries in any order.
            for name, tensor in sorted(load_file(path).items()):
                made.update(name.encode() + tensor.numpy().tobytes())
    return made.hexdigest()


PUSH = ["--push_to_hub", "true", "--hub_model_id", "user/thinker"]


@pytest.fixture(scope="module")
def unbroken(_tiny_policy, tokenizer, tmp_path_factory) -> str:
    """The hash of a run that pushes nothing."""
    home = tmp_path_factory.mktemp("unbroken")
    return train(arguments(_tiny_policy, tokenizer, home), home / "ppo")


@pytest.fixture(scope="module")
def pushed(_tiny_policy, tokenizer, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A run whose every save is pushed: its folder `out`, its `repo` on the Hub, what it `said`."""
    home, said = tmp_path_factory.mktemp("pushed"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, HubServer() as server:
        use_hub(server, home / "hf", patch)
        start = arguments(_tiny_policy, tokenizer, home)
        with contextlib.redirect_stdout(said):
            train(start, home / "ppo", *PUSH, "--hub_always_push", "true")
        there = load_policy("user/thinker")[0]
        repo = server.repos["user/thinker"]
    yield SimpleNamespace(out=home / "ppo", repo=repo, there=there, said=said.getvalue())


def test_ppo_pushes_saves_and_the_end_and_the_hub_has_the_same_model(pushed):
    assert pushed.repo.log == [
        "initial commit",
        "Checkpoint after 2 of 4 steps",
        "Checkpoint after 4 of 4 steps",
        "Trained checkpoint and card",
    ]
    address = r"pushed: http://127.0.0.1:\d+/user/thinker/commit/[0-9a-f]{40}"
    assert re.search(address, pushed.said)
    ids_BT = torch.tensor([[5, 6, 7]])
    there, here = pushed.there(ids_BT), load_policy(pushed.out)[0](ids_BT)
    assert torch.equal(there.logits, here.logits)
    assert torch.equal(values_of(there), values_of(here))
    assert not list(pushed.out.parent.glob(".ppo.push-*"))  # nothing put aside is left


def test_the_card_of_a_save_says_that_the_training_goes_on(pushed):
    commits = list(pushed.repo.commits.values())
    first, last = commits[1]["README.md"].decode(), commits[-1]["README.md"].decode()
    assert "this is its state after 2 of 4 steps" in first
    assert "this is its state" not in last
    assert "| num_rollouts | `2` |" in first and "| num_rollouts | `2` |" in last


def test_only_files_of_a_checkpoint_are_ever_sent(pushed):
    sent = {name for files in pushed.repo.commits.values() for name in files}
    assert "value_head.safetensors" in sent
    assert not [name for name in sent if name.endswith((".bin", ".pt", ".pth"))]
    assert "trainer_state.json" not in sent and "run.json" not in sent


def test_sft_pushes_too(hub, tmp_path):
    (tmp_path / "sft.yaml").write_text(SFT)
    config = ["--config", str(tmp_path / "sft.yaml"), "--output_dir", str(tmp_path / "out")]
    sft.main([*config, "--push_to_hub", "true", "--hub_private_repo", "true"])
    assert hub.repos["user/out"].private  # named after the folder
    assert "value_head.safetensors" in hub.files("user/out")
    assert torch.equal(
        load_policy("user/out")[0].lm_head.weight,
        load_policy(tmp_path / "out")[0].lm_head.weight,
    )


@pytest.mark.parametrize(
    "faults", [FAULTS[:2], pytest.param(FAULTS, marks=pytest.mark.slow)], ids=["two", "all"]
)
def test_whatever_the_hub_answers_the_training_is_the_same(
    hub, start, unbroken, tmp_path, monkeypatch, capsys, faults
):
    monkeypatch.setattr(push_module, "UPLOAD_TIMEOUT", 0.5)
    same = 0
    for number, (request, how) in enumerate(faults):
        out = tmp_path / f"ppo-{number}"
        hub.heal()
        hub.repos.clear()
        hub.stored.clear()
        hub.fail(request, how)
        capsys.readouterr()
        same += train(start, out, *PUSH) == unbroken
        said = capsys.readouterr().out
        assert f"PPO checkpoint: {out}" in said
        later = f"push later: python -m stages.publish --checkpoint {out} --repo_id user/thinker"
        assert later in said, how
        assert TOKEN not in said
    assert same == len(faults)
    hub.heal()
    arguments = later.partition("stages.publish ")[2].split()
    publish.main(arguments)
    assert torch.equal(values(load_policy("user/thinker")[0]), values(load_policy(out)[0]))


def values(model: torch.nn.Module) -> torch.Tensor:
    return values_of(model(torch.tensor([[5, 6, 7]])))


def test_a_run_with_another_seed_has_another_hash(start, unbroken, tmp_path):
    assert train(start, tmp_path / "other", "--seed", "7") != unbroken


def test_a_busy_hub_gets_the_newest_save_only(tmp_path, monkeypatch):
    release, pushed = [], []

    def slow(self, aside: Path, state: str) -> str:
        while not release:
            time.sleep(0.01)
        pushed.append(state)
        return "address"

    monkeypatch.setattr(HubPush, "_push", slow)
    (tmp_path / "run").mkdir()
    push = HubPush(Target("user/name"), card=None)
    for step in (1, 2, 3):
        push.add(tmp_path / "run", f"after {step} of 3 steps")
        while step == 1 and push._waiting:
            time.sleep(0.01)  # the first one is under way
    release.append(True)
    assert push.finish(tmp_path / "run")
    assert pushed == ["after 1 of 3 steps", ""]


def test_a_folder_that_is_rotated_away_is_pushed_all_the_same(
    tmp_path, tiny_policy, tokenizer, hub
):
    folder = tmp_path / "run" / "checkpoint-1"
    save_policy(tiny_policy, tokenizer, folder)
    held = hub.released
    push = HubPush(Target("user/name"), card=lambda folder, repo, state: "---\nlicense: mit\n---\n")
    real = push._push

    def late(aside: Path, state: str) -> str:
        held.wait(5)
        return real(aside, state)

    push._push = late
    push.add(folder, "after 1 of 1 steps")
    for path in folder.iterdir():
        path.unlink()
    held.set()
    push._thread.join(20)
    assert "model.safetensors" in hub.files("user/name")
    assert push.failed == []


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_a_strategy_that_would_upload_pickles_is_refused(start, tmp_path, capsys, strategy):
    with pytest.raises(SystemExit):
        ppo.main([*start, "--output_dir", str(tmp_path / "o"), *PUSH, "--hub_strategy", strategy])
    assert f"hub_strategy={strategy} would upload the optimizer's state" in capsys.readouterr().err


def test_the_token_given_to_a_run_is_in_no_file_of_it(hub, start, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    out = tmp_path / "ppo"
    train(start, out, *PUSH, "--hub_token", TOKEN)
    assert "value_head.safetensors" in hub.files("user/thinker")  # it was used
    assert len([path for path in out.rglob("*") if path.is_file()]) > 10
    written = [path for path in out.rglob("*") if path.is_file()]
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err


def test_publish_later_knows_the_fields_of_the_printed_command():
    fields = set(PublishConfig.__dataclass_fields__)
    assert {"checkpoint", "repo_id", "private", "revision"} <= fields
