"""The benchmark of one GPU: what is measured, in which order and until when; figures by hand."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.bench import gpu, gpu_parts
from eval.bench.__main__ import main
from eval.bench.gpu import GpuArguments, lines_of, measurements, run, variants
from eval.bench.runner import Implementation
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.trl_trainer import ReasoningPPOTrainer
from pipeline.scoring import varlen_attention

TINY = {"device": "cpu", "shape": "nano", "peer_shape": "nano", "dtype": "float32"}
# An update of 6 s, of which the rollout takes 2; 80 GFLOP at a peak of 100 GFLOP/s.
ITERATION = {
    "samples": 12,
    "tokens": 300,
    "wall_s": 6.0,
    "cpu_s": 6.0,
    "peak_mib": 2000.0,
    "rollout_s": 2.0,
    "sample_s": 1.5,
    "update_gflop": 80.0,
}


@pytest.fixture
def fake(monkeypatch, tmp_path) -> Callable[..., dict]:
    """`fake(fails="grpo", each=10.0)`: the report where every measurement takes so many seconds."""
    now = {"s": 0.0}

    def reported(fails: str = "", each: float = 1.0, **options: Any) -> dict:
        def benchmark(implementations: list[Implementation], *args: Any, **kwargs: Any) -> dict:
            (implementation,) = implementations
            now["s"] += each
            if implementation.name == fails:
                raise ValueError(f"{fails} failed: OutOfMemoryError; its log: LOG")
            return {implementation.name + suffix: [ITERATION] for suffix in implementation.modes}

        monkeypatch.setattr(gpu, "run_benchmark", benchmark)
        monkeypatch.setattr(gpu, "matmul_peak", lambda device, dtype: 100.0)
        args = GpuArguments(**{**TINY, "peer_python": str(tmp_path / "none"), **options})
        return run(args, tmp_path, 0.0, lambda: now["s"])

    return reported


def test_each_change_is_measured_alone_and_all_together(tmp_path):
    found = variants(GpuArguments(**TINY, micro_batch_tokens=99))
    fields = {field.name for field in dataclasses.fields(PPOConfig)}
    before = found.pop("before")
    assert before["without"] == ["weights_cast_once", "varlen"]
    assert found["all"] == {"options": {"micro_batch_tokens": 99, "compile_layers": True}}
    for name, variant in found.items():
        assert set(variant["options"]) <= fields, name
        assert variant != before
    names = [i.name for _, i in measurements(GpuArguments(**TINY), tmp_path)]
    assert names[:3] == ["before", "all", "longest thought"] and "grpo" in names


def test_the_share_of_the_peak_is_that_of_the_update_without_the_rollout(fake):
    report = fake()
    assert report["update"]["before"]["update_share_of_peak"] == 80 / 4 / 100
    text = "\n".join(lines_of(report))
    assert "peak of matrix products: 0.1 TFLOP/s" in text
    assert "| before | 20.0% | 4.00 | 200 | 2.00 | 2,000 |" in text
    assert "| grpo | 2.00 | 50.00 | 2,000 |" in text
    assert "longest thought: 300 tokens" in text and ", checkpointing: 300 tokens" in text


def test_nothing_begins_after_the_time_and_what_is_left_out_is_said(fake):
    report = fake(each=100.0, seconds=250.0)
    assert [*report["update"], *report["longest"]] == [
        *("before", "all"),
        *("longest thought", "longest thought, checkpointing"),
    ]
    assert report["peer"] == {} and "grpo" in report["left_out"]
    assert "left out: grpo: after 250 s" in lines_of(report)


def test_a_measurement_that_fails_leaves_the_others(fake):
    report = fake(fails="grpo")
    assert "grpo failed: OutOfMemoryError" in report["left_out"]["grpo"]
    assert "all" in report["update"] and "ours" in report["peer"]


def test_names_select_measurements(fake):
    assert [*fake(only="all")["update"]] == ["all"]
    with pytest.raises(ValueError, match="only='none' is none of before, all, longest thought"):
        fake(only="none")


def test_the_changes_can_be_left_out(monkeypatch):
    for owner, name in (
        (ReasoningPPOTrainer, "weights_cast_once"),
        (varlen_attention, "varlen_function"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    gpu_parts.leave_out(["weights_cast_once", "varlen"])
    assert varlen_attention.varlen_function() is None
    with ReasoningPPOTrainer.weights_cast_once(None) as nothing:
        assert nothing is None
    with pytest.raises(ValueError, match="without='luck' is none of weights_cast_once, varlen"):
        gpu_parts.leave_out(["luck"])


@pytest.mark.parametrize(("limit", "expected"), [(777, 768), (31, 0), (5000, 1024)])
def test_the_longest_completion_is_found_by_bisection(monkeypatch, limit, expected):
    def update(model: Any, tokens: int, *rest: Any) -> None:
        if tokens > limit:
            raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(gpu_parts, "_update", update)
    found = gpu_parts._most_that_fits(None, 1024, torch.device("cpu"), torch.float32)
    assert found == expected  # in steps of 1024 / 32


def test_an_update_of_one_completion_has_gradients_of_every_weight(tiny_policy):
    gpu_parts._update(tiny_policy, 12, torch.device("cpu"), torch.float32)
    assert all(p.grad is not None and p.grad.any() for p in tiny_policy.parameters())


def test_without_a_gpu_the_error_says_how_to_try_the_command(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["gpu"])
    assert "give --device cpu --shape nano --dtype float32" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_runs_on_a_cpu(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    words = [word for name, value in TINY.items() for word in (f"--{name}", value)]
    main(["gpu", *words, "--longest", "64", "--threads", "1", "--output", str(path)])
    report = json.loads(Path(path).read_text())
    assert report["left_out"] == {} and len(report["update"]) == 7
    assert report["longest"]["longest thought"]["tokens"] == 64
    assert "| all |" in capsys.readouterr().out
