"""The stages as commands: the whole way on a tiny model, and every mistake in one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import TrainerCallback

from eval import run as eval_run
from pipeline import config_files
from pipeline.config import ModelConfig
from pipeline.model import load_policy
from stages import data, ppo, sft
from stages.common import start_model
from tests.forked import run_forked, run_module

ROOT = Path(__file__).parents[1]
SFT = """
model: nano
nano_hidden_size: 32
nano_layers: 1
nano_heads: 2
nano_intermediate_size: 64
nano_vocab_size: 300
shares: wording=1,story1=1
size: 64
max_steps: 2
per_device_train_batch_size: 4
muon: true
learning_rate: 4e-3
max_length: 256
save_strategy: steps
save_steps: 1
disable_tqdm: true
"""
PPO = """
shares: wording=1,story1=1
size: 8
rewards: correctness=1,well_formed=0.1,steps=0.3
num_rollouts: 2
questions_per_rollout: 4
completions_per_question: 2
num_minibatches: 2
ppo_epochs: 1
max_completion_length: 8
save_every: 1
disable_tqdm: true
"""


def python(*arguments: str) -> subprocess.CompletedProcess:
    """`python -m ...` of a user who has not switched off the bars of huggingface_hub."""

    def run() -> None:
        constants.HF_HUB_DISABLE_PROGRESS_BARS = None  # read at import
        run_module(*arguments)()

    kept = {k: v for k, v in os.environ.items() if not k.endswith("_PROGRESS_BARS")}
    return run_forked(
        run, folder=ROOT, variables=kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    (folder / "sft.yaml").write_text(SFT)
    (folder / "ppo.yaml").write_text(PPO)
    return folder


@pytest.fixture(scope="module")
def threads() -> Iterator[None]:
    """The commands set the number of threads; the tests behind this file keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    """The SFT checkpoint, made by the command as a user types it."""
    out = folder / "sft"
    done = python("stages.sft", "--config", str(folder / "sft.yaml"), "--output_dir", str(out))
    assert done.returncode == 0, done.stderr
    assert f"SFT checkpoint: {out}" in done.stdout
    assert "\r" not in done.stderr + done.stdout
    shares = "--shares wording=1,story1=1"
    assert f"-m stages.ppo --model {out} {shares} --output_dir {folder}/ppo" in done.stdout
    return out


@pytest.fixture(scope="module")
def reinforced(folder, trained, threads) -> Path:
    out = folder / "ppo"
    config = ["--config", str(folder / "ppo.yaml"), "--model", str(trained)]
    ppo.main([*config, "--model_revision", "main", "--output_dir", str(out)])
    return out


class InterruptAt(TrainerCallback):
    """Ctrl-C during a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGINT)


# ---- the whole way ----


def test_sft_makes_a_checkpoint_that_tells_how_it_was_made(trained):
    model, tokenizer = load_policy(trained)
    assert model.config.hidden_size == 32
    assert tokenizer.chat_template is not None
    run = json.loads((trained / "run.json").read_text())
    assert run["configs"]["data"]["size"] == 64
    assert run["configs"]["sft"]["learning_rate"] == 4e-3
    log = json.loads((trained / "trainer_state.json").read_text())["log_history"]
    assert log[-1]["step"] == 2


def test_ppo_goes_on_from_it_and_evaluation_measures_what_comes_out(reinforced, trained, tmp_path):
    before, after = load_policy(trained)[0], load_policy(reinforced)[0]
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)
    assert after.value_head.last.weight.abs().sum() > 0
    log = json.loads((reinforced / "trainer_state.json").read_text())["log_history"]
    names = {name for row in log for name in row}
    assert {"reward/correctness", "reward/well_formed", "reward/steps", "kl"} <= names
    assert {"loss/policy", "loss/value", "clipfrac", "approx_kl", "entropy"} <= names
    asked = ["--suite", "nano", "--limit", "2", "--max_completion_tokens", "4"]
    eval_run.main(["--checkpoint", str(reinforced), *asked, "--output_dir", str(tmp_path)])
    assert json.loads((tmp_path / "metrics.json").read_text())["n"] == 2


def test_ppo_can_be_stopped_and_resumed(reinforced, folder, trained, tmp_path):
    config = ["--config", str(folder / "ppo.yaml"), "--model", str(trained)]
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo" / "checkpoint-2").symlink_to(reinforced / "checkpoint-2")
    ppo.main([*config, "--output_dir", str(tmp_path / "ppo"), "--resume_from_checkpoint", "last"])
    resumed, unbroken = load_policy(tmp_path / "ppo")[0], load_policy(reinforced)[0]
    for a, b in zip(resumed.parameters(), unbroken.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [([], "--overwrite_output_dir true starts again"),
     (["--resume_from_checkpoint", "last"], "start without it")],
    ids=["by itself", "asked"],
)  # fmt: skip
def test_ppo_whose_checkpoints_are_all_damaged_says_how_to_start_again(
    reinforced, folder, trained, tmp_path, capsys, asked, remedy
):
    out = tmp_path / "ppo"
    shutil.copytree(reinforced / "checkpoint-2", out / "checkpoint-2")
    (out / "checkpoint-2" / "scheduler.pt").unlink()
    config = ["--config", str(folder / "ppo.yaml"), "--model", str(trained)]
    with pytest.raises(SystemExit):
        ppo.main([*config, "--output_dir", str(out), *asked])
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{out} holds no checkpoint-N that is whole; {remedy}" in error
    assert "scheduler.pt is missing" in error
    if not asked:
        ppo.main([*config, "--output_dir", str(out), "--overwrite_output_dir", "true"])
        load_policy(out)


def test_sft_can_be_resumed(trained, folder, threads, tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "checkpoint-1").symlink_to(trained / "checkpoint-1")
    config = ["--config", str(folder / "sft.yaml"), "--output_dir", str(tmp_path / "sft")]
    sft.main([*config, "--resume_from_checkpoint", "last"])
    resumed, unbroken = load_policy(tmp_path / "sft")[0], load_policy(trained)[0]
    for a, b in zip(resumed.parameters(), unbroken.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_sft_goes_on_from_a_checkpoint(trained):
    model, tokenizer = start_model(ModelConfig(model=str(trained)), problems=[], seed=0)
    assert torch.equal(model.lm_head.weight, load_policy(trained)[0].lm_head.weight)
    assert len(tokenizer) == 300


def test_a_missing_sft_checkpoint_of_nano_is_made_first_and_every_stage_continues_after_ctrl_c(
    threads, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config_files, "CONFIGS", tmp_path / "configs")
    Path("configs/nano").mkdir(parents=True)
    Path("configs/nano/sft.yaml").write_text(f"{SFT}output_dir: runs/nano/sft\n")
    Path("configs/nano/ppo.yaml").write_text(
        f"{PPO}model: runs/nano/sft\noutput_dir: runs/nano/ppo\nkl_coef: 0\n"
    )
    for stage, said in [(sft, "does not exist yet"), (ppo, "is unfinished")]:
        with monkeypatch.context() as patch:
            patch.setattr(stage, "push_callbacks", lambda *_: [InterruptAt(1)])
            with pytest.raises(SystemExit) as stopped:
                ppo.main([])
        assert stopped.value.code == 130
        output = capsys.readouterr().out
        assert "no arguments: using --config configs/nano/ppo.yaml" in output
        assert f"runs/nano/sft {said}: running the SFT stage" in output
    ppo.main([])
    output = capsys.readouterr().out
    assert "runs/nano/ppo holds an unfinished run, which is resumed" in output
    assert "running the SFT stage" not in output and not Path("runs/nano/ppo/README.md").exists()
    load_policy("runs/nano/sft")
    load_policy("runs/nano/ppo")


# ---- mistakes ----


@pytest.fixture
def refused(tmp_path, capsys, threads) -> Callable[..., str]:
    """The one line with which a command refuses; nothing may be made."""

    def run(main: Callable[[list[str]], None], *arguments: str, config: str | None = None) -> str:
        out = tmp_path / "out"
        if config is not None:
            (tmp_path / "config.yaml").write_text(config)
            arguments = ("--config", str(tmp_path / "config.yaml"), *arguments)
        with pytest.raises(SystemExit) as caught:
            main([*arguments, "--output_dir", str(out)])
        lines = capsys.readouterr().err.splitlines()
        assert caught.value.code == 2
        assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
        assert not out.exists()
        return lines[-1]

    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learnin_rate: 1e-3", "'learnin_rate' in the --config is no argument here; did you mean"),
        ("learning_rate: abc", "invalid float value: 'abc'"),
        ("size: 2.5", "size=2.5 must be a whole number or null"),
        ("nano_heads: 3", "nano_heads=3 must divide nano_hidden_size=32"),
        ("shares: wording=1,story9=1", "kind='story9' is not one of wording"),
        ("shares: null\ndataset: nosuch", "unknown data set 'nosuch'"),
        ("shares: null\ndataset: gsm8k\ndata_root: no/such", "data_root='no/such' is not a folder"),
        ("model: no/such/checkpoint", "no/such/checkpoint does not exist"),
        ("model: nosuchmodel", "nosuchmodel is no folder here, and the Hub"),
        ("max_length: 3", "max_length=3 leaves none of 64 examples"),
        ("resume_from_checkpoint: last", "holds no checkpoint-N; start without it"),
        ("resume_from_checkpoint: no/such", "resume_from_checkpoint=no/such is no folder"),
    ],
)
def test_sft_refuses_a_mistake_in_one_line(refused, change, message):
    keys = [line.split(":")[0] for line in change.splitlines()]
    kept = [line for line in SFT.splitlines() if line.split(":")[0] not in keys]
    assert message in refused(sft.main, config="\n".join([*kept, change]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model: no/such/checkpoint", "no/such/checkpoint does not exist"),
        ("model: nano", "model=nano is untrained"),
        ("num_minibatches: 3", "num_minibatches=3 x 1 processes must divide the rollout of 4 "),
        ("micro_batch_size: 3", "micro_batch_size=3 must divide the minibatch of 4 sequences"),
        ("completions_per_question: 1", "completions_per_question=1 must be at least 2"),
        ("gamma: 1.5", "gamma=1.5 must lie in [0, 1]"),
        ("learning_rate: abc", "invalid float value: 'abc'"),
        ("learnin_rate: 1", "'learnin_rate' in the --config is no argument here; did you mean"),
        ("max_steps: 5", "max_steps=5 follows from num_rollouts in PPO"),
        ("rewards: correctnes=1", "reward 'correctnes' is not one of"),
        ("rewards: correctness", "must look like 'correctness=1,steps=0.1'"),
    ],
)
def test_ppo_refuses_a_mistake_in_one_line(refused, folder, change, message):
    key = change.split(":")[0]
    kept = [line for line in PPO.splitlines() if line.split(":")[0] != key]
    model = [] if key == "model" else [f"model: {folder}/sft"]
    assert message in refused(ppo.main, config="\n".join([*kept, *model, change]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("size: 3", "questions_per_rollout=4 is more than the 3 problems to train on"),
        ("max_completion_length: 5000", "do not fit the model's window of 4096 tokens"),
    ],
)
def test_ppo_refuses_what_only_the_model_or_the_data_shows(refused, trained, change, message):
    key = change.split(":")[0]
    kept = [line for line in PPO.splitlines() if line.split(":")[0] != key]
    assert message in refused(ppo.main, config="\n".join([*kept, f"model: {trained}", change]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", "no/such.yaml"), "--config no/such.yaml does not exist"),
        (("--max_steps", "many"), "invalid int value: 'many': --help lists the arguments"),
        (("--no_such_flag", "1"), "no_such_flag"),
    ],
)
@pytest.mark.parametrize("main", [sft.main, ppo.main, data.command], ids=["sft", "ppo", "data"])
def test_every_stage_refuses_a_mistyped_flag_in_one_line(refused, main, arguments, message):
    if main is data.command and "--max_steps" in arguments:
        arguments = ("--limit", "many")
    assert message in refused(main, *arguments)


def test_the_command_itself_ends_in_one_line_and_exit_code_two(folder, tmp_path):
    (tmp_path / "ppo.yaml").write_text(f"{PPO}\nmodel: no/such/checkpoint\n")
    config = ["--config", str(tmp_path / "ppo.yaml"), "--output_dir", str(tmp_path / "out")]
    done = python("stages.ppo", *config)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: no/such/checkpoint does not exist")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


LIMITED = """
import resource, sys
from stages import ppo
size = [line for line in open("/proc/self/status") if line.startswith("VmSize")][0].split()[1]
limit = int(size) * 1024 + (120 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
ppo.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its size from /proc")
def test_ppo_that_runs_out_of_memory_ends_in_one_line_and_exit_code_two(folder, trained, tmp_path):
    arguments = ["--config", str(folder / "ppo.yaml"), "--model", str(trained)]
    arguments += ["--output_dir", str(tmp_path / "out"), "--completions_per_question", "256"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments, "--max_completion_length", "512"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith("error: out of memory")
    assert "Traceback" not in done.stderr
