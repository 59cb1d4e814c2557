"""The device and the dtype that a model runs with outside training.

Training leaves both to accelerate and to mixed precision (`pipeline.training.hardware`).
"""

import os
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from transformers.hf_argparser import HfArg
from transformers.utils import is_torch_bf16_gpu_available

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
DtypeName = Literal["auto", "fastest", "float32", "bfloat16", "float16"]  # of `--dtype`
PROBE_SIZE = 256  # rows and columns of the matrices whose product is timed


@dataclass(kw_only=True)
class DeviceOptions:
    """Where a model runs, and with which dtype."""

    device: str = HfArg(
        default="auto", help="auto, cpu, or an accelerator: cuda, cuda:1, mps, xpu, npu"
    )
    dtype: DtypeName = HfArg(
        default="auto",
        help="dtype of the weights; auto: the stored one, on a CPU only where it is fast there; "
        "fastest: bfloat16 where the device computes faster with it, else float32",
    )


def accelerator_type() -> str | None:
    """cuda, mps, xpu, npu or another accelerator that torch has and finds here; else None."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else found.type


def available_devices() -> list[str]:
    """Names of the devices of this machine, the CPU last: ["cuda:0", "cuda:1", "cpu"]."""
    kind = accelerator_type()
    if kind is None:
        return ["cpu"]
    if kind == "mps":  # there is one, and it has no number
        return ["mps", "cpu"]
    return [*(f"{kind}:{i}" for i in range(torch.accelerator.device_count())), "cpu"]


def choose_device(name: str = "auto") -> str:
    """The device of that name; of `auto` the first accelerator, else the CPU.

    Each process of a launch takes an accelerator of its own for `auto`, by LOCAL_RANK.

    Raises ValueError for a device that is not there.
    """
    available = available_devices()
    if name == "auto":
        accelerators = [device for device in available if device != "cpu"] or available
        return accelerators[int(os.environ.get("LOCAL_RANK", "0")) % len(accelerators)]
    kind, _, index = name.partition(":")
    wanted = kind if kind in ("cpu", "mps") and index in ("", "0") else f"{kind}:{index or 0}"
    if wanted not in available:
        raise ValueError(
            f"device={name} is not on this machine, which has {', '.join(available)}; give one of "
            "them, or leave device out"
        )
    return wanted


def use_device(name: str = "auto") -> str:
    """`choose_device`, and make it the current one, on which CUDA graphs are captured."""
    device = choose_device(name)
    _, _, index = device.partition(":")
    if index:
        torch.accelerator.set_device_index(int(index))
    return device


def choose_dtype(name: str, stored: torch.dtype, device: str) -> torch.dtype:
    """The dtype of that name; of `auto` the stored one.

    On a CPU `auto` is float32 for weights stored in float16, and in bfloat16 where the CPU does not
    multiply bfloat16 faster: without AVX512-BF16 or AMX it is 10 to 60 times slower. `fastest` is
    bfloat16 on such a CPU and on an accelerator that has it, else float32.
    """
    if name == "fastest":
        return torch.bfloat16 if bfloat16_is_fast(device) else torch.float32
    if name != "auto":
        return DTYPES[name]
    if stored not in DTYPES.values():
        return torch.float32
    slow = device == "cpu" and (
        stored == torch.float16 or (stored == torch.bfloat16 and not cpu_bfloat16_is_fast())
    )
    return torch.float32 if slow else stored


def bfloat16_is_fast(device: str) -> bool:
    """Whether the device computes faster in bfloat16 than in float32.

    A CPU is measured. Metal emulates bfloat16 on older chips: there it is the user's choice.
    """
    if device == "cpu":
        return cpu_bfloat16_is_fast()
    return device != "mps" and bool(is_torch_bf16_gpu_available())


@lru_cache(maxsize=1)
def cpu_bfloat16_is_fast() -> bool:
    """Whether a product of two matrices takes less time in bfloat16 than in float32, measured once
    in a process (30 ms)."""
    seconds = {dtype: _seconds_of_product(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.bfloat16] < seconds[torch.float32]


def _seconds_of_product(dtype: torch.dtype) -> float:
    """The shorter time of two products, after one that is not timed."""
    matrix = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype)
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - begin)
    return min(times[1:])
