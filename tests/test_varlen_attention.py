"""Attention of variable length: what torch's `varlen_attn` is given, against attention by block.

The function itself runs on GPUs alone. Here a computation with plain matrix products, under the
signature of the installed torch, takes its place.
"""

import copy
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.generation.kv_cache import pad_left
from pipeline.scoring import Scores, completions, prepare_completions, score_prepared
from pipeline.scoring import varlen_attention as varlen
from pipeline.scoring.packing import pack

PROMPTS = [[100, 101, 102], [103], [104, 105, 106, 107, 108], [7, 8], [100, 101, 102]]
COMPLETIONS = [[110, 111], [112, 113, 114, 115, 3, 4, 5, 6, 9], [116], [20, 21, 22], [9, 8, 7]]


def plain_varlen(
    query_SHE: torch.Tensor,
    key_SKE: torch.Tensor,
    value_SKE: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`varlen_attn` by matrix products, one sequence after the other."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert query_SHE.dtype == key_SKE.dtype == value_SKE.dtype
    bounds = cu_seq_q.tolist()
    assert bounds == cu_seq_k.tolist() and bounds[0] == 0 and bounds[-1] == len(query_SHE)
    assert max_q == max_k == max(b - a for a, b in itertools.pairwise(bounds))
    heads = query_SHE.shape[1] // key_SKE.shape[1]
    assert enable_gqa == (heads > 1)
    outputs = []
    for first, end in itertools.pairwise(bounds):
        query_HLE = query_SHE[first:end].transpose(0, 1)
        key_HLE, value_HLE = (
            x[first:end].repeat_interleave(heads, dim=1).transpose(0, 1)
            for x in (key_SKE, value_SKE)
        )
        factor = scale or query_HLE.shape[-1] ** -0.5
        logits_HLL = query_HLE @ key_HLE.transpose(1, 2) * factor
        if window_size == (-1, 0):
            later_LL = torch.ones(end - first, end - first, dtype=torch.bool).triu(1)
            logits_HLL = logits_HLL.masked_fill(later_LL, -torch.inf)
        outputs.append((logits_HLL.softmax(dim=-1) @ value_HLE).transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """The calls of `varlen_attn`, which runs on float32 and on a CPU here."""
    found: list[tuple] = []
    real = varlen.varlen_function()

    def called(*args: Any, **kwargs: Any) -> torch.Tensor:
        if real is not None:  # the arguments are those of the installed torch
            inspect.signature(real).bind(*args, **kwargs)
        found.append(args)
        return plain_varlen(*args, **kwargs)

    monkeypatch.setattr(varlen, "varlen_function", lambda: called)
    monkeypatch.setattr(varlen, "VARLEN_DTYPES", (torch.float32, torch.bfloat16))
    return found


def batch() -> tuple[torch.Tensor, ...]:
    reversed_BC, mask_BC = pad_left([row[::-1] for row in COMPLETIONS], 0)
    return *pad_left(PROMPTS, 0), reversed_BC.flip(1), mask_BC.flip(1)


@pytest.fixture
def score(monkeypatch) -> Callable[..., Scores]:
    def scored(model: nn.Module, used: bool, rows: slice = slice(None)) -> Scores:
        monkeypatch.setattr(completions, "uses_varlen", lambda model, device: used)
        return score_prepared(model, prepare_completions(model, *(x[rows] for x in batch())))

    return scored


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("rows", [slice(None), slice(0, 4)], ids=["shared prompt", "no sharing"])
def test_scores_and_gradients_equal_those_of_attention_by_block(
    make_model, family, rows, calls, score
):
    model = make_model(family, vocab_size=120)
    blocks = copy.deepcopy(model)
    mine, expected = score(model, True, rows), score(blocks, False, rows)
    assert len(calls) == model.config.num_hidden_layers
    torch.testing.assert_close(mine.logprobs_BC, expected.logprobs_BC, atol=1e-5, rtol=0)
    for scores in (mine, expected):
        (scores.logprobs_BC.square().mean() + scores.entropy_BC.mean()).backward()
    for (name, a), b in zip(model.named_parameters(), blocks.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_the_sequences_are_given_without_padding(tiny_policy, calls, score):
    score(tiny_policy, True)
    query, _, _, bounds, _, longest, _ = calls[0]
    # Nothing is computed after the last token of a sequence; a shared prompt is there twice.
    lengths = [len(p) + len(c) - 1 for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert bounds.diff().tolist() == lengths and len(query) == sum(lengths)
    assert longest == max(lengths)


def test_queries_are_cast_as_autocast_casts_matrix_products(tiny_policy, calls, score):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine = score(tiny_policy, True)
        assert {x.dtype for args in calls for x in args[:3]} == {torch.bfloat16}
        expected = score(tiny_policy, False)
    torch.testing.assert_close(mine.logprobs_BC, expected.logprobs_BC, atol=0.05, rtol=0)


def test_without_the_function_the_same_packing_is_computed_by_block(
    tiny_policy, score, monkeypatch
):
    expected = score(tiny_policy, False).logprobs_BC
    monkeypatch.setattr(varlen, "varlen_function", lambda: None)
    torch.testing.assert_close(score(tiny_policy, True).logprobs_BC, expected, atol=1e-5, rtol=0)


def test_it_is_used_on_a_gpu_with_numbers_of_16_bits(tiny_policy, monkeypatch, calls):
    monkeypatch.setattr(varlen, "VARLEN_DTYPES", (torch.bfloat16, torch.float16))
    gpu, capability = torch.device("cuda"), [(8, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    assert not varlen.uses_varlen(tiny_policy, gpu)  # float32
    tiny_policy.to(torch.bfloat16)
    assert varlen.uses_varlen(tiny_policy, gpu)
    assert not varlen.uses_varlen(tiny_policy, torch.device("cpu"))
    capability[0] = (7, 5)
    assert not varlen.uses_varlen(tiny_policy, gpu)


def test_a_sequence_is_a_block_in_the_given_order():
    packing = pack([2, 5, 3], varlen=True)
    assert packing.blocks == ((1, 2), (1, 5), (1, 3))
    assert packing.token_index_S.tolist() == list(range(10))
    assert packing.bounds_R1.tolist() == [0, 2, 7, 10] and not len(packing.unused_slot_Y)
