"""Packed rows and the chunked LM head against a padded batch with all logits."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import pipeline.scoring.chunked_lm_head as head
from pipeline.generation.kv_cache import pad_left
from pipeline.scoring import Scores, score_completions, token_scores
from pipeline.scoring.chunked_lm_head import head_scores, linear_scores
from pipeline.scoring.completions import right_padded
from pipeline.scoring.logprobs import _score_padded, supports_packing
from pipeline.scoring.packed_attention import GatherRows, _PaddedToPacked, packed_attention
from pipeline.scoring.packing import pack

PROMPTS = [[100, 101, 102], [103], [104, 105, 106, 107, 108], [7, 8]]
COMPLETIONS = [[110, 111], [112, 113, 114, 115, 3, 4, 5, 6, 9], [116], [20, 21, 22]]


def batch() -> tuple[torch.Tensor, ...]:
    reversed_BC, mask_BC = pad_left([row[::-1] for row in COMPLETIONS], 0)
    return *pad_left(PROMPTS, 0), reversed_BC.flip(1), mask_BC.flip(1)


def packed_scores(model: nn.Module, *tensors: torch.Tensor) -> Scores:
    assert supports_packing(model)
    return score_completions(model, *tensors, temperature=0.7)


def padded_scores(model: nn.Module, *tensors: torch.Tensor) -> Scores:
    return _score_padded(model, right_padded(*tensors), 0.7)


def loss_of(scores: Scores) -> torch.Tensor:
    """A weighted sum of all scores with distinct weights, so that swapped gradients are found."""
    weights = torch.linspace(-1, 1, scores.logprobs_BC.numel()).view_as(scores.logprobs_BC)
    loss = (weights * scores.logprobs_BC).sum() + 0.3 * (weights.flip(1) * scores.entropy_BC).sum()
    return loss if scores.values_BC is None else loss + (weights * scores.values_BC.square()).sum()


def assert_same_gradients(left: nn.Module, right: nn.Module, atol: float = 1e-5) -> None:
    for (name, a), (_, b) in zip(left.named_parameters(), right.named_parameters(), strict=True):
        assert b.grad.abs().sum() > 0, name
        torch.testing.assert_close(a.grad, b.grad, atol=atol, rtol=1e-4, msg=name)


# ---- packing ----


def test_every_token_has_one_slot_and_its_own_position():
    lengths = [2, 9, 1, 8, 3]
    packing = pack(lengths)
    assert packing.position_ids_N.tolist() == [i for n in lengths for i in range(n)]
    tokens = torch.arange(sum(lengths))
    assert torch.equal(packing.token_index_S[packing.slot_index_N], tokens)
    assert sum(rows * width for rows, width in packing.blocks) == len(packing.token_index_S)


def test_only_sequences_of_similar_length_share_a_block():
    # 0.6 of 10 is 6: 10 and 6 are together, 5 begins a block, 3 is its last (0.6 of 5).
    assert pack([3, 10, 5, 6]).blocks == ((2, 10), (2, 5))


def test_a_shared_prefix_is_in_the_row_once():
    packing = pack([4, 3, 4], prefixes=[(7, 8), (9,), (7, 8)])
    # 7 8 a b | 9 c d | e f, where e f follow the shared prefix 7 8.
    assert packing.token_index_BT.tolist() == [[0, 1, 2, 3], [4, 5, 6, 6], [0, 1, 7, 8]]
    assert packing.position_ids_N.tolist() == [0, 1, 2, 3, 0, 1, 2, 2, 3]
    assert packing.shared_B.tolist() == [0, 0, 2]
    assert sorted(packing.duplicate_token_X.tolist()) == [0, 1]
    assert torch.equal(packing.token_index_S[packing.slot_index_N], torch.arange(9))
    assert torch.equal(packing.token_index_S[packing.duplicate_slot_X], packing.duplicate_token_X)


def test_completions_of_one_prompt_share_only_its_tokens(tiny_policy):
    padded = copy.deepcopy(tiny_policy)
    assert supports_packing(tiny_policy)
    tokens = []
    tiny_policy.model.layers[0].register_forward_hook(
        lambda layer, args, output: tokens.append(args[0].shape[1])
    )
    prompts, mask_prompts, completions, mask_completions = batch()
    same = torch.tensor([2, 2, 2, 0])  # three completions of the longest question
    tensors = prompts[same], mask_prompts[same], completions, mask_completions
    a, b = packed_scores(tiny_policy, *tensors), padded_scores(padded, *tensors)
    # Four tokens once; then each row's last prompt token and all but the last of its completion.
    assert tokens == [4 + 2 + 9 + 1 + (2 + 3)]
    for name in ("logprobs_BC", "entropy_BC", "values_BC"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-5, rtol=0)
    loss_of(a).backward()
    loss_of(b).backward()
    assert_same_gradients(tiny_policy, padded)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_packed_scores_and_gradients_equal_padded_ones(make_model, family):
    packed = make_model(family, vocab_size=120)
    padded = copy.deepcopy(packed)
    assert supports_packing(packed)
    a, b = packed_scores(packed, *batch()), padded_scores(padded, *batch())
    torch.testing.assert_close(a.logprobs_BC, b.logprobs_BC, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.entropy_BC, b.entropy_BC, atol=1e-5, rtol=0)
    loss_of(a).backward()
    loss_of(b).backward()
    assert_same_gradients(packed, padded)


def test_packed_values_equal_padded_ones(tiny_policy):
    padded = copy.deepcopy(tiny_policy)
    a, b = packed_scores(tiny_policy, *batch()), padded_scores(padded, *batch())
    torch.testing.assert_close(a.values_BC, b.values_BC, atol=1e-5, rtol=0)
    loss_of(a).backward()
    loss_of(b).backward()
    assert_same_gradients(tiny_policy, padded)


def test_the_order_of_the_rows_changes_nothing(tiny_policy):
    order = torch.tensor([2, 0, 3, 1])
    straight = score_completions(tiny_policy, *batch()).logprobs_BC
    mixed = score_completions(tiny_policy, *(x[order] for x in batch())).logprobs_BC
    torch.testing.assert_close(straight[order], mixed, atol=1e-5, rtol=0)


def test_rows_without_scored_tokens_are_not_computed(tiny_policy):
    assert supports_packing(tiny_policy)
    tokens = []
    tiny_policy.model.layers[0].register_forward_hook(
        lambda layer, args, output: tokens.append(args[0].shape[1])
    )
    *three, mask_BC = batch()
    mask_BC[1] = False
    score_completions(tiny_policy, *three, mask_BC)
    # 3 + 2, 5 + 1 and 2 + 3 tokens, without the last of each.
    assert tokens == [4 + 5 + 4]


@pytest.mark.parametrize("micro", [1, 2, 8])
def test_the_gradient_of_a_minibatch_is_the_same_whatever_the_micro_batch(tiny_policy, micro):
    whole, cut = tiny_policy, copy.deepcopy(tiny_policy)
    tensors = [torch.cat([x, x.flip(0)]) for x in batch()]
    for model, size in ((whole, 8), (cut, micro)):
        for rows in torch.arange(8).split(size):
            scores = score_completions(model, *(x[rows] for x in tensors))
            total = scores.logprobs_BC.sum() + scores.entropy_BC.sum()
            ((total + scores.values_BC.square().sum()) / tensors[3].sum()).backward()
    for (name, a), (_, b) in zip(whole.named_parameters(), cut.named_parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() < 1e-6, name


def test_models_without_packing_support_are_scored_padded(make_model):
    windowed = make_model("qwen3", vocab_size=120)
    windowed.config.layer_types = ["full_attention", "sliding_attention"]
    eager = make_model("llama", vocab_size=120)
    eager.set_attn_implementation("eager")
    capped = make_model("nanochat", vocab_size=120)  # logits are not what its LM head returns
    for model in (windowed, eager, capped):
        assert not supports_packing(model)


def saved_bytes(model, tensors) -> tuple[int, list[torch.Tensor]]:
    """(bytes that the forward keeps for the backward pass, gradients of all parameters)."""
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        scores = packed_scores(model, *tensors)
        loss = scores.logprobs_BC.sum() + scores.entropy_BC.sum()
        before = sum(kept.values())
        loss.backward()
    return before, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_gradient_checkpointing_keeps_packing_and_the_gradients(make_model):
    whole = make_model("llama", vocab_size=120).train()
    recomputed = copy.deepcopy(whole)
    recomputed.gradient_checkpointing_enable()
    assert supports_packing(recomputed)
    (bytes_whole, expected), (bytes_recomputed, found) = (
        saved_bytes(model, batch()) for model in (whole, recomputed)
    )
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert bytes_recomputed < 0.75 * bytes_whole  # weights are among both
    assert recomputed.config._attn_implementation == "sdpa"


def test_a_model_that_changes_its_logits_after_the_head_is_scored_padded(make_model):
    model = make_model("llama", vocab_size=120)
    model.register_forward_hook(
        lambda module, args, output: output.__setitem__("logits", output["logits"].tanh())
    )
    assert not supports_packing(model)


def test_a_model_that_mixes_neighbouring_tokens_is_scored_padded(make_model):
    model = make_model("llama", vocab_size=120)
    # Every token reads the one before it in the row, also across sequences.
    model.model.layers[0].register_forward_hook(
        lambda layer, args, output: output + output.roll(1, dims=1)
    )
    assert not supports_packing(model)


def test_a_model_with_adapters_is_packed_too(make_model):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    packed = get_peft_model(make_model("llama", vocab_size=120), config)
    padded = copy.deepcopy(packed)
    assert supports_packing(packed)
    a, b = packed_scores(packed, *batch()), padded_scores(padded, *batch())
    torch.testing.assert_close(a.logprobs_BC, b.logprobs_BC, atol=1e-5, rtol=0)
    loss_of(a).backward()
    loss_of(b).backward()
    trained = [(x, y) for x, y in zip(packed.parameters(), padded.parameters(), strict=True)]
    trained = [(x.grad, y.grad) for x, y in trained if x.requires_grad]
    assert len(trained) == 8  # two matrices of two projections of two layers
    for x, y in trained:
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


def test_the_attention_implementation_is_restored_after_a_packed_forward(tiny_policy):
    before = tiny_policy.config._attn_implementation
    with pytest.raises(RuntimeError), packed_attention(tiny_policy, pack([1])):
        assert tiny_policy.config._attn_implementation != before
        raise RuntimeError
    assert tiny_policy.config._attn_implementation == before


def test_padded_to_packed_has_the_gradient_of_indexing():
    # Three sequences, the first two of which share two tokens, in blocks with padding.
    packing = pack([4, 3, 1], prefixes=[(7, 8), (7, 8), ()])
    slots, tokens = len(packing.token_index_S), len(packing.position_ids_N)
    assert slots == 9 and tokens == 6
    x = torch.randn(slots, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: _PaddedToPacked.apply(y, packing), (x,))
    grads = [
        torch.autograd.grad((y * y.detach().cos()).sum(), x)[0]
        for y in (_PaddedToPacked.apply(x, packing), GatherRows.apply(x, packing.slot_index_N))
    ]
    assert torch.equal(*grads)


def test_gather_rows_has_the_gradient_of_indexing():
    x = torch.randn(5, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(GatherRows.apply, (x, torch.tensor([4, 0, 2])))


# ---- the head in chunks ----


@pytest.fixture(params=[1, 3, 1000])
def chunk(request, monkeypatch) -> int:
    """Chunks of one, some and all tokens, cache blocks of two; the vocabulary has 11 tokens."""
    monkeypatch.setattr(head, "KEPT_LOGITS_PER_WEIGHT", 0)
    monkeypatch.setattr(head, "CHUNK_LOGITS", 11 * request.param)
    monkeypatch.setattr(head, "CACHED_LOGITS", 11 * 2)
    return request.param


def inputs(bias: bool) -> list[torch.Tensor | None]:
    torch.manual_seed(0)
    hidden_ND = torch.randn(7, 4, dtype=torch.double, requires_grad=True)
    weight_VD = torch.randn(11, 4, dtype=torch.double, requires_grad=True)
    bias_V = torch.randn(11, dtype=torch.double, requires_grad=True) if bias else None
    return [hidden_ND, weight_VD, bias_V]


IDS_N = torch.tensor([0, 10, 3, 3, 5, 1, 9])


@pytest.mark.parametrize("bias", [False, True])
def test_chunked_scores_have_the_numerical_gradient(chunk, bias):
    def scores(*tensors: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return linear_scores(*tensors, IDS_N, 0.7)

    assert torch.autograd.gradcheck(scores, inputs(bias))


@pytest.mark.parametrize("entropy_weight", [0.0, 0.3])
def test_chunked_scores_equal_those_of_all_logits(chunk, entropy_weight):
    found = []
    for chunked in (True, False):
        hidden_ND, weight_VD, bias_V = (x.detach().requires_grad_() for x in inputs(True))
        if chunked:
            logprobs_N, entropy_N = linear_scores(hidden_ND, weight_VD, bias_V, IDS_N, 0.7)
        else:
            logits_NV = nn.functional.linear(hidden_ND, weight_VD, bias_V)
            logprobs_N = (logits_NV / 0.7).log_softmax(1).gather(1, IDS_N.unsqueeze(1)).squeeze(1)
            p_NV = (logits_NV / 0.7).softmax(1)
            entropy_N = -(p_NV * p_NV.log()).sum(dim=1)
        (logprobs_N * torch.arange(7) + entropy_weight * entropy_N).sum().backward()
        found.append([logprobs_N, entropy_N, hidden_ND.grad, weight_VD.grad, bias_V.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_an_lm_head_with_hooks_or_adapters_is_called_itself(chunk):
    lm_head = nn.Linear(4, 11)
    lm_head.register_forward_hook(lambda module, args, logits: logits * 2)
    hidden_ND = torch.randn(7, 4, requires_grad=True)
    found = head_scores(lm_head, hidden_ND, IDS_N)
    expected = token_scores(lm_head(hidden_ND), IDS_N)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(x[0].sum(), lm_head.weight)[0] for x in (found, expected)]
    torch.testing.assert_close(*grads)


def made_logits(monkeypatch) -> list[tuple[int, int]]:
    """(rows, rows of the buffer) of every computation of logits."""
    seen, made = [], head._Logits.__call__

    def watched(logits_of: head._Logits, chunk: slice) -> torch.Tensor:
        x_nV = made(logits_of, chunk)
        seen.append((len(x_nV), x_nV.untyped_storage().nbytes() // (11 * x_nV.itemsize)))
        return x_nV

    monkeypatch.setattr(head._Logits, "__call__", watched)
    return seen


def test_logits_in_memory_are_at_most_a_chunk(monkeypatch):
    monkeypatch.setattr(head, "KEPT_LOGITS_PER_WEIGHT", 1)
    monkeypatch.setattr(head, "CHUNK_LOGITS", 2 * 11)
    seen = made_logits(monkeypatch)
    hidden_ND, weight_VD, _ = inputs(False)  # 7 tokens, of which 4 may be kept
    linear_scores(hidden_ND, weight_VD, None, IDS_N)[0].sum().backward()
    # Forward, and once more for the backward.
    assert seen == [(2, 2), (2, 2), (2, 2), (1, 2)] * 2


def test_logits_of_few_tokens_are_kept_for_the_backward_pass(monkeypatch):
    monkeypatch.setattr(head, "CHUNK_LOGITS", 2 * 11)
    seen = made_logits(monkeypatch)
    hidden_ND, weight_VD, _ = inputs(False)  # 7 tokens, and up to 8 may be kept
    loss = linear_scores(hidden_ND, weight_VD, None, IDS_N)[0].sum()
    kept = torch.autograd.grad(loss, (hidden_ND, weight_VD), retain_graph=True)
    assert seen == [(7, 7)]
    made_anew = torch.autograd.grad(loss, (hidden_ND, weight_VD))  # the first overwrote the logits
    assert seen == [(7, 7)] * 2
    assert all(torch.equal(a, b) for a, b in zip(kept, made_anew, strict=True))


def test_logits_of_a_frozen_head_are_not_kept_beyond_a_chunk(monkeypatch):
    monkeypatch.setattr(head, "CHUNK_LOGITS", 2 * 11)
    seen = made_logits(monkeypatch)
    hidden_ND, weight_VD, _ = inputs(False)
    linear_scores(hidden_ND, weight_VD.detach(), None, IDS_N)[0].sum().backward()
    assert max(rows for rows, _ in seen) == 2


@pytest.mark.parametrize("bias", [False, True])
def test_bfloat16_products_are_accumulated_in_float32(bias):
    """As on a GPU under autocast: equal scores up to bfloat16 rounding."""
    hidden_ND, weight_VD, bias_V = (
        None if x is None else x.detach().float().requires_grad_() for x in inputs(bias)
    )
    expected = linear_scores(hidden_ND, weight_VD, bias_V, IDS_N)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_scores(hidden_ND, weight_VD, bias_V, IDS_N)
    found[0].sum().backward()
    assert found[0].dtype == weight_VD.grad.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_without_tokens_there_are_no_scores_and_the_gradient_is_zero():
    hidden_ND, weight_VD, _ = inputs(False)
    logprobs_N, _ = linear_scores(hidden_ND[:0], weight_VD, None, IDS_N[:0])
    logprobs_N.sum().backward()
    assert (weight_VD.grad == 0).all() and (hidden_ND.grad == 0).all()


def test_under_autocast_products_are_bfloat16_and_scores_float32():
    hidden_ND, weight_VD = torch.randn(7, 4), torch.randn(11, 4, requires_grad=True)
    exact, _ = linear_scores(hidden_ND, weight_VD, None, IDS_N)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = linear_scores(hidden_ND, weight_VD, None, IDS_N)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.1
    rough.sum().backward()
    assert weight_VD.grad.dtype == torch.float32
