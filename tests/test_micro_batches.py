"""Micro-batches: their size in tokens, what an optimizer step reads back, casts of weights."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.generation.kv_memory import row_bytes, rows_that_fit
from pipeline.ppo.minibatches import cut_evenly, cut_to_budget
from pipeline.ppo.trl_trainer import ReasoningPPOTrainer
from pipeline.scoring import supports_packing
from pipeline.training.token_budget import cut_by_tokens, into_parts

READS = {
    *("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal"),
    *("aten::masked_select", "aten::unique_dim", "aten::_unique2", "aten::repeat_interleave"),
}
READING = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")


class Operations(TorchDispatchMode):
    """Counts operations, and those that would wait for a GPU, on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.casts: Counter[int] = Counter()  # to another dtype, by the address of what is cast

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func._schema.name
        by_mask = name.startswith(("aten::index", "aten::_index")) and any(
            x is not None and x.dtype == torch.bool
            for indices in args
            if isinstance(indices, (list, tuple))
            for x in indices
        )
        if name in READS or by_mask:
            self.reads[name] += 1
        if name == "aten::_to_copy" and (kwargs or {}).get("dtype") is not None:
            self.casts[args[0].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def operations() -> Iterator[Operations]:
    """Count operations, and calls of the methods of a tensor that return numbers."""
    counted = Operations()
    with pytest.MonkeyPatch.context() as patch, counted:
        for name in READING:
            original = getattr(torch.Tensor, name)

            def reading(x: torch.Tensor, *args: Any, of: Any = original, to: str = name) -> Any:
                counted.reads[to] += 1
                return of(x, *args)

            patch.setattr(torch.Tensor, name, reading)
        yield counted


def of_even_length(completions: list, **columns: Any) -> list[float]:
    return [float(len(message["content"]) % 2 == 0) for (message,) in completions]


def count_in_micro_batches(trainer: ReasoningPPOTrainer) -> list[Operations]:
    """Run the trainer; return the operations of forward and backward of every micro-batch."""
    found = []
    forward, backward = trainer.compute_loss, trainer.accelerator.backward

    def counted(function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            with operations() as seen:
                result = function(*args, **kwargs)
            found.append(seen)
            return result

        return call

    trainer.compute_loss, trainer.accelerator.backward = counted(forward), counted(backward)
    trainer.train()
    return found


# ---- tokens ----


@pytest.mark.parametrize(
    ("padded", "alone"),
    [(False, [[3, 1, 1], [2, 1, 1, 1]]), (True, [[2, 1, 1, 1], [2, 1, 1, 1]])],
)
def test_every_process_has_as_many_micro_batches_as_the_one_with_most(padded, alone):
    lengths = [[2, 3, 4, 7, 9], [4, 5, 6, 9, 9]]
    asked = []

    def most(counts: list[int]) -> list[int]:
        asked.append(counts)
        return [max(count, 5 - padded) for count in counts]

    found = cut_to_budget(10, None, padded, most)(lengths)
    assert asked == [[len(sizes) for sizes in alone]]
    assert [cut_by_tokens(row, 10, padded=padded) for row in lengths] == alone
    assert [(len(sizes), sum(sizes)) for sizes in found] == [(5 - padded, 5)] * 2


def test_a_micro_batch_is_bounded_by_sequences_as_well():
    assert cut_by_tokens([1] * 5, 100, max_rows=2) == [2, 2, 1]
    assert cut_to_budget(100, 2, False, lambda counts: counts)([[1] * 5]) == [[2, 2, 1]]
    assert cut_evenly(3)([[1] * 7]) == [[3, 3, 1]]


def test_no_more_parts_are_made_than_sequences():
    assert into_parts([2, 1], 7) == [1, 1, 1]


def test_no_micro_batch_has_more_tokens_than_allowed(make_ppo, tiny_policy):
    trainer = make_ppo(tiny_policy, of_even_length, micro_batch_tokens=60, num_minibatches=1)
    trainer.train()
    (minibatch,) = trainer.minibatches
    tokens = [int(b["prompt_mask"].sum() + b["completion_mask"].sum()) for b in minibatch]
    assert len(tokens) > 1 and max(tokens) <= 60
    assert sum(len(batch.rows) for batch in minibatch) == trainer.args.rollout_size


# ---- what is read from the device ----


def test_nothing_is_read_from_the_device_in_a_micro_batch(make_ppo, tiny_policy):
    assert supports_packing(tiny_policy)
    options = {"micro_batch_size": 2, "entropy_coef": 0.01, "positive_nll_coef": 0.1}
    found = count_in_micro_batches(make_ppo(tiny_policy, of_even_length, **options))
    assert len(found) >= 8  # forward and backward of four micro-batches or more
    assert [seen.reads for seen in found] == [Counter()] * len(found)


def test_reading_from_the_device_is_noticed():
    x = torch.tensor([0.0, 2.0])
    for read in (
        lambda: x.sum().item(),
        lambda: bool(x.any()),
        lambda: x.tolist(),
        lambda: x[x > 0],
        lambda: x.nonzero(),
        lambda: int(x.sum()),
    ):
        with operations() as seen:
            read()
        assert sum(seen.reads.values()) > 0


# ---- casts ----


def test_weights_are_cast_once_an_optimizer_step(make_ppo, tiny_policy):
    trainer = make_ppo(tiny_policy, of_even_length, micro_batch_size=2, bf16=True)
    layer = tiny_policy.model.layers[0]
    weights = [layer.mlp.up_proj.weight, layer.self_attn.q_proj.weight]
    found = count_in_micro_batches(trainer)
    steps = trainer.state.global_step
    assert len(found) >= 4 * steps
    for weight in weights:
        assert sum(seen.casts[weight.data_ptr()] for seen in found) == steps


# ---- sampling ----


def test_the_rows_sampled_together_halve_until_their_cache_fits(tiny_policy, monkeypatch):
    config, gpu = tiny_policy.config, torch.device("cuda")
    per_row = row_bytes(config, torch.float32, 1000)
    free = {"value": 40 * per_row}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free["value"], 0))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    assert rows_that_fit(config, torch.float32, gpu, 1000) == 32  # 0.8 of 40
    free["value"] = 0
    assert rows_that_fit(config, torch.float32, gpu, 1000) == 1
    assert rows_that_fit(config, torch.float32, torch.device("cpu"), 1000) == 256


def test_the_cache_of_a_row_has_keys_and_values_of_every_layer(tiny_policy):
    config = tiny_policy.config
    more = row_bytes(config, torch.float32, 11) - row_bytes(config, torch.float32, 10)
    cache = tiny_policy(torch.tensor([[5, 6]]), use_cache=True).past_key_values
    kept = sum(x.numel() * x.itemsize for layer in cache.layers for x in (layer.keys, layer.values))
    assert more == kept / 2
