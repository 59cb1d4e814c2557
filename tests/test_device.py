"""The device and dtype of commands that run a model; accelerators are stubs of torch's API."""

from types import SimpleNamespace

import pytest
import torch

from pipeline import device
from pipeline.device import available_devices, choose_device, choose_dtype, use_device
from pipeline.training.hardware import configure_hardware


@pytest.fixture
def machine(monkeypatch):
    """`machine("xpu", 2)`: torch finds two of that accelerator."""

    def stub(kind: str | None, count: int = 1) -> None:
        found = None if kind is None else SimpleNamespace(type=kind)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)

    return stub


@pytest.mark.parametrize(
    ("kind", "count", "names"),
    [
        (None, 0, ["cpu"]),
        ("cuda", 2, ["cuda:0", "cuda:1", "cpu"]),
        ("xpu", 1, ["xpu:0", "cpu"]),
        ("npu", 2, ["npu:0", "npu:1", "cpu"]),
        ("mps", 1, ["mps", "cpu"]),
    ],
)
def test_the_first_accelerator_is_chosen_and_every_device_can_be_named(machine, kind, count, names):
    machine(kind, count)
    assert available_devices() == names
    assert choose_device() == names[0]
    assert [choose_device(name) for name in names] == names
    if kind:
        assert choose_device(kind) == names[0]


def test_the_chosen_accelerator_becomes_the_current_one(machine, monkeypatch):
    machine("cuda", 2)
    current = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", current.append)
    assert [use_device(name) for name in ("cuda:1", "cpu", "cuda")] == ["cuda:1", "cpu", "cuda:0"]
    assert current == [1, 0]


@pytest.mark.parametrize("name", ["cuda:2", "xpu", "mps:1", "cuda:x", "gpu", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(machine, name):
    machine("cuda", 2)
    with pytest.raises(ValueError, match=r"cuda:0, cuda:1, cpu"):
        choose_device(name)


@pytest.mark.parametrize(
    ("name", "stored", "where", "fast", "expected"),
    [
        ("auto", "float32", "cpu", True, "float32"),
        ("auto", "bfloat16", "cpu", True, "bfloat16"),
        ("auto", "bfloat16", "cpu", False, "float32"),
        ("auto", "float16", "cpu", True, "float32"),
        ("auto", "bfloat16", "cuda:0", False, "bfloat16"),
        ("auto", "float16", "mps", False, "float16"),
        ("auto", "float64", "mps", False, "float32"),
        ("bfloat16", "float32", "cpu", False, "bfloat16"),
        ("float32", "bfloat16", "cuda:0", True, "float32"),
        ("fastest", "float32", "cpu", True, "bfloat16"),
        ("fastest", "bfloat16", "cpu", False, "float32"),
        ("fastest", "float32", "cuda:0", False, "bfloat16"),
        ("fastest", "float16", "mps", True, "float32"),
    ],
)
def test_auto_keeps_the_stored_dtype_except_where_a_cpu_is_slow_with_it(
    monkeypatch, name, stored, where, fast, expected
):
    monkeypatch.setattr(device, "cpu_bfloat16_is_fast", lambda: fast)
    monkeypatch.setattr(device, "is_torch_bf16_gpu_available", lambda: True)
    assert choose_dtype(name, getattr(torch, stored), where) == getattr(torch, expected)


def test_the_probe_compares_the_times_of_two_products(monkeypatch):
    times = {torch.float32: 1.0, torch.bfloat16: 2.0}
    monkeypatch.setattr(device, "_seconds_of_product", times.get)
    assert not device.cpu_bfloat16_is_fast.__wrapped__()
    times[torch.bfloat16] = 0.5
    assert device.cpu_bfloat16_is_fast.__wrapped__()


def arguments(**given: object) -> SimpleNamespace:
    plain = {"ddp_find_unused_parameters": None, "use_cpu": False, "bf16": None, "cpu_bf16": False}
    return SimpleNamespace(**plain | given)


@pytest.mark.parametrize(
    ("kind", "has_bf16", "use_cpu", "bf16"),
    [
        (None, False, True, False),
        ("cuda", True, False, True),
        ("cuda", False, False, False),
        ("xpu", True, False, True),
        ("npu", True, False, True),
        ("mps", True, False, False),
    ],
)
def test_training_uses_the_accelerator_and_bfloat16_where_it_has_that(
    machine, monkeypatch, kind, has_bf16, use_cpu, bf16
):
    machine(kind)
    monkeypatch.setattr(device, "is_torch_bf16_gpu_available", lambda: has_bf16)
    args = arguments()
    configure_hardware(args)
    assert (args.use_cpu, args.bf16) == (use_cpu, bf16)


def test_training_on_the_cpu_beside_an_accelerator_has_no_bfloat16(machine, monkeypatch):
    machine("cuda")
    monkeypatch.setattr(device, "is_torch_bf16_gpu_available", lambda: True)
    args = arguments(use_cpu=True)
    configure_hardware(args)
    assert args.bf16 is False


@pytest.mark.parametrize("fast", [True, False])
def test_training_on_a_cpu_has_bfloat16_where_it_is_asked_for_and_fast(machine, monkeypatch, fast):
    machine(None)
    monkeypatch.setattr(device, "cpu_bfloat16_is_fast", lambda: fast)
    for asked, given, expected in [(True, None, fast), (False, None, False), (True, False, False)]:
        args = arguments(cpu_bf16=asked, bf16=given)
        configure_hardware(args)
        assert args.bf16 is expected
