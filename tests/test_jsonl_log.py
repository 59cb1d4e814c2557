"""The log and the samples on disk: complete, and the same after a resume."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.model import load_policy, save_policy
from pipeline.ppo.groups import ScoredRollout
from pipeline.ppo.metrics import sample_rows
from pipeline.ppo.rollout import rollout_of_ids
from pipeline.training.jsonl_log import LOG_FILE, SAMPLES_FILE, append, keep_until, read

NAMES = {
    "approx_kl",
    "clipfrac",
    "completions/mean_length",
    "completions/repeated",
    "completions/truncated",
    "entropy",
    "explained_variance",
    "groups/zero_variance",
    "kl",
    "kl_coef",
    "loss/policy",
    "loss/value",
    "not_finite",
    "reward",
    "reward/even_length",
    "time/reward",
    "time/sample",
    "tokens_per_second",
    "value/auroc",
    "value/auroc_within",
    "value/calibration_error",
}


def even_length(completions: list, **columns: Any) -> list[float]:
    return [float(len(message["content"]) % 2 == 0) for (message,) in completions]


def run(make_ppo, tmp_path, **options):
    model, _ = load_policy(tmp_path / "sft")
    resume_from = options.pop("resume_from", None)
    trainer = make_ppo(model, even_length, kl_coef=0.1, save_every=1, **options)
    trainer.train(resume_from_checkpoint=resume_from)
    return trainer


def test_a_run_writes_its_log_and_samples_as_it_goes(make_ppo, policy, tokenizer, tmp_path):
    save_policy(policy, tokenizer, tmp_path / "sft")
    trainer = run(make_ppo, tmp_path, num_rollouts=3, log_samples=2)
    rows = read(tmp_path / "ppo" / LOG_FILE)
    by_step = [row for row in rows if "reward" in row]
    assert [row["step"] for row in by_step] == [1, 2, 3]
    assert set(by_step[0]) >= NAMES
    assert [row["reward"] for row in by_step] == [
        row["reward"] for row in trainer.state.log_history if "reward" in row
    ]
    samples = read(tmp_path / "ppo" / SAMPLES_FILE)
    assert [row["step"] for row in samples] == [1, 1, 2, 2, 3, 3]
    for row in samples:
        assert row["question"].startswith("What is ")
        assert row["outcome"] == even_length([[{"content": row["completion"]}]])[0]
        assert isinstance(row["value"], float)


def test_a_resumed_run_has_the_log_of_an_uninterrupted_one(make_ppo, policy, tokenizer, tmp_path):
    save_policy(policy, tokenizer, tmp_path / "sft")
    run(make_ppo, tmp_path, num_rollouts=4)
    files = [tmp_path / "ppo" / name for name in (LOG_FILE, SAMPLES_FILE)]
    unbroken = [without_times(read(path)) for path in files]
    run(make_ppo, tmp_path, num_rollouts=4, resume_from=str(tmp_path / "ppo" / "checkpoint-2"))
    assert [without_times(read(path)) for path in files] == unbroken
    run(make_ppo, tmp_path, num_rollouts=1)  # a new run begins a new log
    assert [row["step"] for row in read(files[0]) if "reward" in row] == [1]


def without_times(rows: list[dict]) -> list[dict]:
    timed = ("time", "second", "runtime")
    return [
        {k: v for k, v in row.items() if not any(word in k for word in timed)}
        for row in rows
        if "train_runtime" not in row
    ]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    append(path, [{"step": 1, "text": "a\u2028b"}, {"step": 2}])
    path.write_text(path.read_text() + '{"step": 3, "rew')
    assert read(path) == [{"step": 1, "text": "a\u2028b"}, {"step": 2}]
    keep_until(path, 1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "text": "a\u2028b"}
    ]


def test_a_full_disk_at_a_resume_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    append(path, [{"step": 1}, {"step": 2}])

    opened = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode != "r":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        keep_until(path, 1)
    monkeypatch.undo()
    assert read(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(("count", "taken"), [(4, [0, 1, 3, 4]), (2, [0, 3]), (9, range(6))])
def test_as_many_completions_are_logged_as_asked_for(count, taken):
    rollout = rollout_of_ids([[1]] * 6, [[2]] * 6, 0, [2])
    scored = ScoredRollout(rollout, torch.zeros(6), None)
    texts = [str(b) for b in range(6)]
    rows = sample_rows(count, texts, texts, scored)
    assert [row["completion"] for row in rows] == [str(b) for b in taken]


def test_samples_can_be_left_out(make_ppo, policy, tmp_path):
    make_ppo(policy, even_length, log_samples=0).train()
    assert not (tmp_path / "ppo" / SAMPLES_FILE).exists()


def test_tensorboard_has_the_numbers_and_the_samples(make_ppo, policy, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    make_ppo(policy, even_length, num_rollouts=2, report_to="tensorboard").train()
    (folder,) = {path.parent for path in (tmp_path / "ppo").rglob("events.out.tfevents.*")}
    found = events.EventAccumulator(str(folder)).Reload()
    written = {name.removeprefix("train/") for name in found.Tags()["scalars"]}
    assert written >= NAMES - {"kl", "kl_coef", "value/auroc_within"}
    assert "samples/text_summary" in found.Tags()["tensors"]
