"""A run that is killed, signalled or resumed ends as an uninterrupted one, to the last bit.

And the comparison can fail: a resume that forgets any part of the state is detected.
"""

import copy
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from eval.bench.kill_test import PARTS, differing, fingerprint, run_with_kills
from pipeline.chat.prompts import user_message
from pipeline.data.sft_examples import sft_dataset
from pipeline.model import load_policy, save_policy
from pipeline.model.atomic import check_manifest, checkpoints, newest_intact
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.trl_trainer import ReasoningPPOTrainer
from pipeline.records import Problem
from pipeline.sft.trainer import ReasoningSFTConfig, ReasoningSFTTrainer
from pipeline.training.signals import SignalExit
from pipeline.training.trainer_shell import AtomicCheckpoints

SUMS = [(2, 3), (4, 5), (7, 1), (3, 3), (8, 2), (6, 9)]
ROWS = Dataset.from_list(
    [
        {"prompt": user_message(f"What is {a} + {b}?"), "question": "", "answer": str(a + b)}
        for a, b in SUMS
    ]
)
PROBLEMS = [
    Problem(question=f"What is {a} + {b}?", answer=str(a + b), thought=f"{a}+{b}={a + b}")
    for a, b in SUMS
]


class Bonus:
    """A controller as adaptive KL is one: a number that follows what it has seen."""

    def __init__(self) -> None:
        self.value = 1.0

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state["value"]

    def reward(self, completions: list, **columns: Any) -> list[float]:
        """Depends on the controller and on every random state there is."""
        rewards = [
            self.value * (len(message["content"]) % 2) + random.random() + np.random.rand()
            for (message,) in completions
        ]
        self.value += 0.1 * sum(rewards) / len(rewards)
        return rewards


class WithBonus(ReasoningPPOTrainer):
    bonus: Bonus

    @property
    def controllers(self) -> dict[str, Any]:
        return {**super().controllers, "bonus": self.bonus}


@pytest.fixture(scope="module")
def start(tmp_path_factory, _tiny_policy, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("start") / "sft"
    save_policy(_tiny_policy, tokenizer, folder)
    return folder


def with_dropout(model: torch.nn.Module) -> torch.nn.Module:
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    return model


@pytest.fixture(scope="module")
def ppo(start, tokenizer) -> Callable[..., ReasoningPPOTrainer]:
    def make(folder: Path, **options: Any) -> ReasoningPPOTrainer:
        bonus = Bonus()
        defaults = {
            "num_rollouts": 3,
            "questions_per_rollout": 2,
            "completions_per_question": 2,
            "ppo_epochs": 2,
            "num_minibatches": 2,
            "max_completion_length": 8,
            "kl_coef": 0.1,
            "learning_rate": 1e-2,
            "value_learning_rate": 3e-2,
            "disable_dropout": False,
            "save_every": 1,
            "disable_tqdm": True,
        }
        args = PPOConfig(output_dir=str(folder), **{**defaults, **options})
        trainer = WithBonus(
            with_dropout(load_policy(start)[0]),
            [bonus.reward],
            args,
            train_dataset=ROWS,
            processing_class=tokenizer,
        )
        trainer.bonus = bonus
        return trainer

    return make


@pytest.fixture(scope="module")
def sft(start, tokenizer) -> Callable[..., ReasoningSFTTrainer]:
    rows = sft_dataset(tokenizer, PROBLEMS, progress=False)[0]

    def make(folder: Path, **options: Any) -> ReasoningSFTTrainer:
        defaults = {
            "per_device_train_batch_size": 2,
            "num_train_epochs": 4,
            "learning_rate": 1e-2,
            "max_length": 128,
            "save_strategy": "steps",
            "save_steps": 2,
            "logging_steps": 5,
            "disable_tqdm": True,
        }
        args = ReasoningSFTConfig(output_dir=str(folder), **{**defaults, **options})
        model = with_dropout(load_policy(start)[0])
        return ReasoningSFTTrainer(
            model=model, args=args, train_dataset=rows, processing_class=tokenizer
        )

    return make


@pytest.fixture(scope="module", params=["ppo", "sft"])
def make(request) -> Callable[..., AtomicCheckpoints]:
    return request.getfixturevalue(request.param)


def end_of(folder: Path) -> dict[str, str]:
    return fingerprint(newest_intact(folder)[0])


@pytest.fixture(scope="module")
def unbroken(make, tmp_path_factory) -> Path:
    """The folder of a run that nothing disturbed, with all of its checkpoints."""
    folder = tmp_path_factory.mktemp("unbroken")
    make(folder).train()
    return folder


class Send(TrainerCallback):
    """A signal to this very process, in the middle of a step."""

    def __init__(self, step: int, signum: int):
        self.step = step
        self.signum = signum

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.signum)


# ---- resumed ----


def test_the_same_run_twice_has_the_same_fingerprint(make, unbroken, tmp_path):
    make(tmp_path).train()
    assert differing(end_of(tmp_path), end_of(unbroken)) == []


@pytest.mark.parametrize("place", [1, -1])
def test_a_resumed_run_ends_as_the_unbroken_one(make, unbroken, tmp_path, place):
    make(tmp_path).train(resume_from_checkpoint=str(checkpoints(unbroken)[place]))
    assert differing(end_of(tmp_path), end_of(unbroken)) == []


def test_a_run_at_its_end_is_not_trained_on(make, unbroken, tmp_path):
    resumed = make(tmp_path)
    resumed.train(resume_from_checkpoint=str(checkpoints(unbroken)[0]))
    assert checkpoints(tmp_path) == []
    assert resumed.state.global_step == resumed.state.max_steps
    ended = load_policy(checkpoints(unbroken)[0])[0].state_dict()
    assert all(torch.equal(p, ended[name]) for name, p in resumed.model.state_dict().items())


def test_a_fingerprint_tells_of_every_part(ppo, tmp_path):
    trainer = ppo(tmp_path)
    trainer.add_callback(Send(1, signal.SIGTERM))
    with pytest.raises(SignalExit):
        trainer.train()
    empty = fingerprint(tmp_path / "no such folder")
    assert differing(end_of(tmp_path), empty) == list(PARTS)


# What a resume may forget, and the parts in which it shows. Each is dropped in the loading.
NOTHING = lambda *args, **kwargs: None  # noqa: E731
SABOTAGES = {
    "the policy": lambda trainer: forget_weights(trainer, head=False),
    "the value head": lambda trainer: forget_weights(trainer, head=True),
    "the optimizer": lambda trainer: forget_optimizer(trainer),
    "the scheduler": lambda trainer: forget_scheduler(trainer),
    "random numbers": lambda trainer: setattr(trainer, "_load_rng_state", NOTHING),
    "the controllers": lambda trainer: setattr(trainer.bonus, "load_state_dict", NOTHING),
    "the place in the data": lambda trainer: setattr(trainer.args, "ignore_data_skip", True),
}


def forget_weights(trainer: Any, *, head: bool) -> None:
    load = trainer._load_from_checkpoint

    def forgetting(*args: Any, **kwargs: Any) -> None:
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        load(*args, **kwargs)
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if name.startswith("value_head.") == head:
                    parameter.copy_(before[name])

    trainer._load_from_checkpoint = forgetting


def forget_optimizer(trainer: Any) -> None:
    create = trainer.create_optimizer

    def forgetting(*args: Any) -> Any:
        optimizer = create(*args)
        optimizer.load_state_dict = NOTHING
        return optimizer

    trainer.create_optimizer = forgetting


def forget_scheduler(trainer: Any) -> None:
    load = trainer._load_optimizer_and_scheduler

    def forgetting(checkpoint: str | None) -> None:
        before = copy.deepcopy(trainer.lr_scheduler.state_dict())
        load(checkpoint)
        trainer.lr_scheduler.load_state_dict(before)

    trainer._load_optimizer_and_scheduler = forgetting


def forget_rollout(trainer: Any) -> None:
    load = trainer.load_extra_state

    def forgetting(folder: Path) -> None:
        load(folder)
        trainer.rollout_batch = {}

    trainer.load_extra_state = forgetting


@pytest.mark.parametrize("forgotten", SABOTAGES)
@pytest.mark.parametrize("make", ["ppo"], indirect=True)
def test_a_ppo_run_that_forgets_something_is_found_out(make, unbroken, tmp_path, forgotten):
    resumed = make(tmp_path / "resumed")
    SABOTAGES[forgotten](resumed)
    resumed.train(resume_from_checkpoint=str(unbroken / "checkpoint-8"))
    assert differing(end_of(tmp_path / "resumed"), end_of(unbroken)) != []


@pytest.mark.parametrize("make", ["ppo"], indirect=True)
@pytest.mark.parametrize("forget", [False, True])
def test_a_ppo_run_that_forgets_a_rollout_half_used_is_found_out(make, unbroken, tmp_path, forget):
    broken = make(tmp_path)
    broken.add_callback(Send(4, signal.SIGTERM))
    with pytest.raises(SignalExit):
        broken.train()
    resumed = make(tmp_path)
    if forget:
        forget_rollout(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert bool(differing(end_of(tmp_path), end_of(unbroken))) == forget


def test_a_run_resumes_inside_a_rollout_whose_minibatches_are_dealt_once(ppo, tmp_path):
    ppo(tmp_path / "whole", minibatch_shuffle="rollout").train()
    broken = ppo(tmp_path / "broken", minibatch_shuffle="rollout")
    broken.add_callback(Send(4, signal.SIGTERM))
    with pytest.raises(SignalExit):
        broken.train()
    resumed = ppo(tmp_path / "broken", minibatch_shuffle="rollout")
    resumed.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-5"))
    assert differing(end_of(tmp_path / "broken"), end_of(tmp_path / "whole")) == []


@pytest.mark.parametrize("make", ["sft"], indirect=True)
@pytest.mark.parametrize("forgotten", ["the place in the data", "what was not logged yet"])
def test_an_sft_run_that_forgets_something_is_found_out(make, unbroken, tmp_path, forgotten):
    resumed = make(tmp_path)
    if forgotten == "the place in the data":
        resumed.args.ignore_data_skip = True
    else:
        resumed.load_extra_state = NOTHING
    resumed.train(resume_from_checkpoint=str(unbroken / "checkpoint-4"))
    assert differing(end_of(tmp_path), end_of(unbroken)) != []


# ---- signals ----


@pytest.mark.parametrize(
    ("signum", "step"), [(signal.SIGTERM, 2), (signal.SIGINT, 3), (signal.SIGTERM, 4)]
)
def test_a_signal_saves_and_exits_and_the_run_resumes_from_there(
    make, unbroken, tmp_path, capfd, signum, step
):
    trainer = make(tmp_path / "left")
    trainer.add_callback(Send(step, signum))
    with pytest.raises(SignalExit) as left:
        trainer.train()
    assert left.value.code == 128 + signum
    saved = tmp_path / "left" / f"checkpoint-{step + 1}"
    assert newest_intact(tmp_path / "left") == (saved, [])
    said = capfd.readouterr()
    assert f"{signum.name}: saving after this step, then exiting" in said.err
    assert f"saved {saved}; the same command continues from it" in said.out
    make(tmp_path / "left").train(resume_from_checkpoint="last")
    assert differing(end_of(tmp_path / "left"), end_of(unbroken)) == []


def test_a_run_without_checkpoints_saves_one_at_a_signal(ppo, tmp_path):
    trainer = ppo(tmp_path, save_every=0)
    trainer.add_callback(Send(2, signal.SIGTERM))
    with pytest.raises(SignalExit):
        trainer.train()
    assert newest_intact(tmp_path)[0] == tmp_path / "checkpoint-3"


def test_after_the_training_signals_do_what_they_did_before(ppo, tmp_path):
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    ppo(tmp_path, num_rollouts=1).train()
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before


# ---- killed ----


class Child:
    """A training in a forked process: no import of torch, so that it lasts about a second."""

    def __init__(self, train: Callable[[], Any]):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                for stream in (1, 2):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
                train()
                code = 0
            except SystemExit as left:
                code = left.code
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        self._wait(os.WNOHANG)
        return self.returncode

    def wait(self) -> int:
        self._wait(0)
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def _wait(self, options: int) -> None:
        if self.returncode is None and (found := os.waitpid(self.pid, options))[0]:
            self.returncode = os.waitstatus_to_exitcode(found[1])


def killed_trials(make: Any, tmp_path: Path, *, kills: int, seed: int) -> Iterator[SimpleNamespace]:
    """Runs, each killed up to three times and resumed, until there were `kills` kills."""
    rng = random.Random(seed)
    began = time.monotonic()
    assert Child(lambda: make(tmp_path / "unbroken").train()).wait() == 0
    span = (0.05, time.monotonic() - began)
    so_far = 0
    while so_far < kills:
        folder = tmp_path / f"killed {so_far}"

        def start(resume: bool, folder: Path = folder) -> Child:
            return Child(lambda: make(folder).train(resume_from_checkpoint=resume and "last"))

        hits, writing = run_with_kills(start, folder, rng, kills=min(3, kills - so_far), span=span)
        so_far += hits
        yield SimpleNamespace(folder=folder, hits=hits, writing=writing)


def assert_kills_change_nothing(make: Any, tmp_path: Path, *, kills: int) -> None:
    total = writing = 0
    for trial in killed_trials(make, tmp_path, kills=kills, seed=0):
        assert differing(end_of(trial.folder), end_of(tmp_path / "unbroken")) == []
        assert {path.name for path in trial.folder.glob(".*")} == set()
        total += trial.hits
        writing += trial.writing
    assert total >= kills
    print(f"T1 {total}/{kills} kills, {writing} while a checkpoint was being written")


def test_runs_killed_at_random_moments_end_as_the_unbroken_one(make, tmp_path):
    assert_kills_change_nothing(make, tmp_path, kills=2)


@pytest.mark.slow
def test_twenty_kills_change_nothing(make, tmp_path):
    assert_kills_change_nothing(make, tmp_path, kills=20)


class Mark(TrainerCallback):
    """A file that says that training has begun."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        (Path(args.output_dir) / "begun").touch()


def test_sigterm_at_a_random_moment_ends_in_a_checkpoint_and_exit_code_143(ppo, tmp_path):
    rng, seconds = random.Random(0), []

    def train(folder: Path) -> None:
        trainer = ppo(folder, num_rollouts=1000, save_every=0)
        trainer.add_callback(Mark())
        trainer.train()

    for trial in range(3):
        folder = tmp_path / str(trial)
        child = Child(lambda folder=folder: train(folder))
        while not (folder / "begun").exists():
            assert child.poll() is None
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        began = time.monotonic()
        os.kill(child.pid, signal.SIGTERM)
        assert child.wait() == 143
        seconds.append(time.monotonic() - began)
        check_manifest(newest_intact(folder)[0])
    assert max(seconds) < 10
    print(f"T22 3/3, at most {max(seconds):.2f} s")


def test_a_second_ctrl_c_leaves_at_once(ppo, tmp_path):
    class Slow(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # what a launcher hands on is no second one
            time.sleep(1.1)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

    def train() -> None:
        trainer = ppo(tmp_path / "out")
        trainer.add_callback(Slow())
        trainer.train()

    began = time.monotonic()
    assert Child(train).wait() == 130
    assert time.monotonic() - began < 30
    assert checkpoints(tmp_path / "out") == []
