"""Two hosts, simulated by two processes with LOCAL_RANK=0 and a host name of their own: with a
folder that both see, and with a folder of that name for each."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from transformers import TrainingArguments

from eval import run as eval_run
from eval.bench.kill_test import fingerprint
from pipeline import hosts
from pipeline.hosts import Place, once_a_host, this_place
from pipeline.model import save_policy
from pipeline.model.atomic import check_manifest, checkpoints
from pipeline.training.output_folder import check_hosts
from stages import ppo as ppo_stage
from stages import pretrain as pretrain_stage
from stages import sft as sft_stage
from tests import ranks
from tests.forked import run_ranks
from tests.test_launch import PPO

HOSTS = ("node1", "node2")


def of_two_hosts(rank: int) -> dict[str, str]:
    return {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "HOST_OF_TEST": HOSTS[rank]}


def on_two_hosts(function: Callable[[], object], **options: bool) -> list[CompletedProcess[str]]:
    """What the process of each host has said."""

    def call() -> None:
        socket.gethostname = lambda: os.environ["HOST_OF_TEST"]
        function()

    return run_ranks(call, variables=of_two_hosts, **options)


def succeed(function: Callable[[], object]) -> None:
    ended = on_two_hosts(function)
    assert [process.returncode for process in ended] == [0, 0], [x.stderr[-4000:] for x in ended]


def own_folder(folder: Path) -> Path:
    """The folder that a host has for itself, with the name of the other's."""
    own = folder / os.environ["HOST_OF_TEST"]
    own.mkdir(exist_ok=True)
    os.chdir(own)
    return own


@pytest.fixture
def folder(tmp_path, tiny_policy, tokenizer, monkeypatch) -> Path:
    save_policy(tiny_policy, tokenizer, tmp_path / "sft")
    monkeypatch.setattr(hosts, "SECONDS_TO_APPEAR", 0.5)
    return tmp_path


# ---- a folder that all hosts see ----


def train(folder: Path, out: str) -> None:
    """Two rollouts of four steps, saved in the middle of each and at the end."""
    options = {"num_rollouts": 2, "ppo_epochs": 2, "num_minibatches": 2, "save_every": 1}
    trainer = ranks.ppo(folder, out, log_samples=2, **options)
    trainer.args.save_steps = 3
    resumes = bool(checkpoints(folder / out))
    trainer.train(resume_from_checkpoint="last" if resumes else None)


def test_on_a_shared_folder_nothing_of_the_second_host_is_lost_and_the_run_resumes_exactly(folder):
    def begin_and_resume() -> None:
        train(folder, "whole")
        if os.environ["RANK"] == "0":
            kept = folder / "whole" / "checkpoint-3"
            shutil.copytree(kept, folder / "resumed" / "checkpoint-3")
        torch.distributed.barrier()
        train(folder, "resumed")

    succeed(begin_and_resume)
    saved = folder / "whole" / "checkpoint-3"
    assert check_manifest(saved)["processes"] == 2
    states = {"rng_state_{}.pth", "unlogged-{}.json", "rollout-{}.safetensors"}
    expected = {name.format(process) for name in states for process in (0, 1)}
    assert expected <= {path.name for path in saved.iterdir()}
    whole, resumed = (fingerprint(folder / name / "checkpoint-8") for name in ("whole", "resumed"))
    assert resumed == whole
    left = {path.name for path in (folder / "whole").iterdir()}
    assert left == {"checkpoint-3", "checkpoint-6", "checkpoint-8", "log.jsonl", "samples.jsonl"}
    samples = (folder / "whole" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["process"] for line in samples] == [0, 0, 1, 1] * 2


def test_the_data_are_read_once_on_each_host(tmp_path):
    def rows() -> list[str]:
        (tmp_path / f"read-by-{os.environ['RANK']}").touch()
        return ["2+3", "4+5"]

    def read() -> None:
        torch.distributed.init_process_group("gloo")
        assert once_a_host(rows) == ["2+3", "4+5"]

    def of_one_host(rank: int) -> dict[str, str]:
        return {"TMPDIR": str(tmp_path)}

    ended = run_ranks(read, variables=of_one_host)
    assert [process.returncode for process in ended] == [0, 0], [x.stderr for x in ended]
    assert [path.name for path in tmp_path.iterdir()] == ["read-by-0"]  # the rows are removed
    succeed(read)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["read-by-0", "read-by-1"]


def test_an_evaluation_is_shared_by_two_hosts(folder):
    (folder / "own.jsonl").write_text(
        "".join(json.dumps({"question": f"{n}+1?", "answer": str(n + 1)}) + "\n" for n in range(4))
    )
    succeed(lambda: evaluate(folder, folder / "eval"))
    records = (folder / "eval" / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in records] == ["1", "2", "3", "4"]
    assert not list((folder / "eval").glob("*.part.jsonl"))


def evaluate(folder: Path, out: Path) -> None:
    files = ["--checkpoint", str(folder / "sft"), "--suite", str(folder / "own.jsonl")]
    options = ["--max_completion_tokens", "4", "--batch_size", "1", "--device", "cpu"]
    eval_run.main([*files, *options, "--output_dir", str(out)])


# ---- a folder for each host ----


def refused(function: Callable[[], object]) -> None:
    """Both hosts say so in one line and end."""
    for process in on_two_hosts(function, killed=False):
        assert process.returncode == 2
        line = process.stderr.strip().splitlines()[-1]
        assert line.startswith("error: output_dir=out is not the same folder on all hosts: node2 ")
        assert "on node1; give an --output_dir that all hosts share" in line


def test_without_a_shared_folder_a_training_is_refused_before_data_are_read(folder, monkeypatch):
    (folder / "ppo.yaml").write_text(PPO)
    monkeypatch.setattr(ppo_stage, "training_problems", lambda *_: pytest.fail("data were read"))
    config = ["--config", str(folder / "ppo.yaml"), "--model", str(folder / "sft")]

    def launch() -> None:
        own_folder(folder)
        ppo_stage.main([*config, "--output_dir", "out"])

    refused(launch)
    assert not list(folder.glob("node*/*"))


def test_without_a_shared_folder_an_evaluation_is_refused_before_a_model_is_loaded(
    folder, monkeypatch
):
    (folder / "own.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "2"}))
    monkeypatch.setattr(eval_run, "load_checkpoint", lambda *_: pytest.fail("a model was loaded"))

    def launch() -> None:
        own_folder(folder)
        evaluate(folder, Path("out"))

    refused(launch)
    assert not list(folder.glob("node*/*"))


def test_a_trainer_without_a_stage_refuses_it_as_well(folder):
    def start() -> None:
        (own_folder(folder) / "sft").symlink_to(folder / "sft")
        trainer = ranks.ppo(Path(), "out", num_rollouts=1)
        with pytest.raises(ValueError, match="not the same folder on all hosts: node2"):
            trainer.train()
        trainer.args.save_on_each_node = True
        with pytest.raises(ValueError, match="save_on_each_node=true writes every file once"):
            trainer.train()

    succeed(start)


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    check_hosts(args)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched, and each would train alone"):
        check_hosts(args)


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("stages.verifier", "--checkpoint any"),
        ("stages.distill", "--teacher any"),
        ("stages.merge", "--adapter any"),
        ("eval.samples", "--checkpoint any --suite nano"),
        ("eval.verifier", "--checkpoint any"),
        ("eval.contest", "--checkpoint any --dataset codeforces"),
        ("eval.ablate", "--config configs/ablations/paper.yaml"),
    ],
)
def test_a_command_that_does_not_share_its_work_refuses_a_launch_of_several(
    tmp_path, monkeypatch, capsys, command, given
):
    """All processes would write the same files: only the first one holds the lock."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        import_module(command).main([*given.split(), "--output_dir", str(out)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"{command} runs in one process" in error
    assert not out.exists()


@pytest.mark.parametrize("stage", [sft_stage, pretrain_stage])
def test_the_second_process_does_not_repeat_what_the_first_prints_of_the_data(
    tmp_path, monkeypatch, capsys, stage
):
    second = Place(rank=1, world=2, local_rank=1, local_world=2, host="a")

    def prepare(*_: object) -> None:
        print("training on 3 rows")
        raise ValueError("enough")

    monkeypatch.setattr(stage, "check_start", lambda *_, **__: None)
    monkeypatch.setattr(stage, "_prepare", prepare)
    arguments = ["--model", "nano", "--output_dir", str(tmp_path)]
    for place, lines in ((this_place(), 1), (second, 0)):
        monkeypatch.setattr(hosts, "this_place", lambda place=place: place)
        with pytest.raises(SystemExit):
            stage.main(arguments)
        assert capsys.readouterr().out.count("training on 3 rows") == lines


def test_data_that_differ_or_are_missing_on_one_host_stop_all(tmp_path):
    def differ() -> None:
        torch.distributed.init_process_group("gloo")
        rank = int(os.environ["RANK"])
        with pytest.raises(
            ValueError, match="node1 has read 1 rows and node2 2 rows, which are no"
        ):
            once_a_host(lambda: ["2+3"] * (1 + rank))

        def missing() -> list[str]:
            if rank == 0:
                return ["2+3"]
            raise FileNotFoundError("own.jsonl does not exist; check the path")

        expected = FileNotFoundError if rank else ValueError
        with pytest.raises(expected, match=r"own\.jsonl does not exist") as found:
            once_a_host(missing)
        assert rank or "could not be read on node2" in str(found.value)

    succeed(differ)


def test_files_that_never_appear_on_the_first_host_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "SECONDS_TO_APPEAR", 0.2)

    def save() -> None:
        torch.distributed.init_process_group("gloo")
        folder = tmp_path / os.environ["HOST_OF_TEST"]
        folder.mkdir()
        (folder / "both").touch()
        hosts.wait_for_files(folder)
        if os.environ["RANK"] == "1":
            (folder / "rng_state_1.pth").touch()
            hosts.wait_for_files(folder)
            return
        with pytest.raises(OSError, match=r"rng_state_1\.pth of another host cannot be seen on no"):
            hosts.wait_for_files(folder)

    succeed(save)


def test_one_process_and_one_host_are_told_from_several(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not this_place().several_hosts and once_a_host(lambda: [1]) == [1]
    assert not Place(world=4, local_world=4).several_hosts
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert not this_place().several_hosts  # a launcher that does not say how many are on this host
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert this_place().several_hosts
