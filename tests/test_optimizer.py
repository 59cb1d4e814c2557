"""Muon for the matrices, AdamW for the rest, as one optimizer."""

import copy

import pytest
import torch
from torch import nn

from pipeline.model import attach_value_head
from pipeline.training.muon import Muon, orthogonal
from pipeline.training.optimizer import MuonAdamW, muon_adamw


def make(model: nn.Module, **options: float) -> MuonAdamW:
    return muon_adamw(model, **{"learning_rate": 1e-2, "weight_decay": 0.1, **options})


def train(model: nn.Module, optimizer: MuonAdamW, steps: int, scheduler: object = None) -> None:
    ids = torch.arange(24).view(2, 12) + 100
    for _ in range(steps):
        output = model(input_ids=ids, labels=ids)
        (output["loss"] + output["state_values"].square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()


def names_of(model: nn.Module, groups: list[dict]) -> list[str]:
    by_id = {id(p): name for name, p in model.named_parameters()}
    return [by_id[id(p)] for group in groups for p in group["params"]]


def assert_same_weights(left: nn.Module, right: nn.Module) -> None:
    for (name, a), b in zip(left.named_parameters(), right.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_every_trainable_parameter_is_in_exactly_one_group(tiny_policy):
    tiny_policy.model.layers[0].mlp.up_proj.requires_grad_(False)
    names = names_of(tiny_policy, make(tiny_policy).param_groups)
    assert sorted(names) == sorted(n for n, p in tiny_policy.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_muon_has_the_matrices_of_the_layers_and_adamw_the_rest(make_model, family):
    model = attach_value_head(make_model(family, vocab_size=50), hidden=8)
    optimizer = make(model)
    muon = names_of(model, optimizer.parts["muon"].param_groups)
    adamw = names_of(model, optimizer.parts["adamw"].param_groups)
    assert muon and all(("mlp" in n or "attn" in n) and n.endswith("weight") for n in muon)
    assert any("embed" in n or "wte" in n for n in adamw)
    assert any("lm_head" in n for n in adamw)
    assert {"value_head.inner.0.weight", "value_head.last.weight"} <= set(adamw)


def test_training_lowers_the_loss_and_moves_every_parameter(tiny_policy):
    before = copy.deepcopy(tiny_policy)
    train(tiny_policy, make(tiny_policy), 5)
    for (name, a), b in zip(tiny_policy.named_parameters(), before.parameters(), strict=True):
        assert not torch.equal(a, b), name
    ids = torch.arange(24).view(2, 12) + 100
    assert tiny_policy(ids, labels=ids).loss < 0.8 * before(ids, labels=ids).loss


def test_an_update_of_muon_is_as_large_as_one_of_adamw(tiny_policy):
    weight = tiny_policy.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    train(tiny_policy, make(tiny_policy, weight_decay=0.0), 1)
    # AdamW moves every entry by about lr at first; Muon is scaled to a root mean square of 0.2 lr.
    assert 0.1e-2 < (weight - before).square().mean().sqrt() < 0.3e-2


def test_saved_and_loaded_it_continues_identically(tiny_policy):
    optimizer = make(tiny_policy)
    train(tiny_policy, optimizer, 2)
    twin = copy.deepcopy(tiny_policy)
    state = copy.deepcopy(optimizer.state_dict())
    train(tiny_policy, optimizer, 2)
    restored = make(twin, learning_rate=9.0)  # a rate that the loaded state replaces
    restored.load_state_dict(state)
    train(twin, restored, 2)
    assert_same_weights(tiny_policy, twin)


def test_a_fresh_optimizer_would_not_continue_identically(tiny_policy):
    optimizer = make(tiny_policy)
    train(tiny_policy, optimizer, 2)
    twin = copy.deepcopy(tiny_policy)
    train(tiny_policy, optimizer, 2)
    train(twin, make(twin), 2)
    with pytest.raises(AssertionError):
        assert_same_weights(tiny_policy, twin)


@pytest.mark.parametrize("reload", [False, True], ids=["new", "after loading a state"])
def test_a_scheduler_moves_both_parts(tiny_policy, reload):
    optimizer = make(tiny_policy, head_learning_rate=4e-2)
    if reload:
        optimizer.load_state_dict(optimizer.state_dict())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(tiny_policy, optimizer, 1, scheduler)
    rates = {name: [g["lr"] for g in p.param_groups] for name, p in optimizer.parts.items()}
    assert rates == {"muon": [0.5e-2], "adamw": [0.5e-2, 2e-2]}


def test_the_value_head_has_its_own_learning_rate(tiny_policy):
    still = copy.deepcopy(tiny_policy)
    train(tiny_policy, make(tiny_policy, head_learning_rate=1e-1), 1)
    moved = (tiny_policy.value_head.last.weight - still.value_head.last.weight).abs()
    # The first step of AdamW is the rate itself, whatever the gradient.
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-1), rtol=1e-2, atol=0)


def test_momentum_is_muons_and_the_adamw_rate_is_of_the_rest(tiny_policy):
    optimizer = make(tiny_policy, momentum=0.8, adamw_learning_rate=3e-3)
    assert [g["momentum"] for g in optimizer.parts["muon"].param_groups] == [0.8]
    rates = {name: [g["lr"] for g in p.param_groups] for name, p in optimizer.parts.items()}
    assert rates == {"muon": [1e-2], "adamw": [3e-3, 1e-2]}


def test_weights_outside_the_matrices_do_not_decay(tiny_policy):
    optimizer = make(tiny_policy, weight_decay=0.5)
    norms = names_of(tiny_policy, optimizer.parts["adamw"].param_groups)
    assert any("norm" in name for name in norms)
    assert [g["weight_decay"] for g in optimizer.parts["adamw"].param_groups] == [0.0, 0.0]
    assert [g["weight_decay"] for g in optimizer.parts["muon"].param_groups] == [0.5]


def updated(kind: type, shapes: list[tuple[int, int]], **options: float) -> list[torch.Tensor]:
    """How three steps on random gradients moved matrices of these shapes."""
    random = torch.Generator().manual_seed(0)
    start = [torch.randn(*shape, generator=random) for shape in shapes]
    matrices = [nn.Parameter(matrix.clone()) for matrix in start]
    optimizer = kind(matrices, lr=0.1, weight_decay=0.1, **options)
    for _ in range(3):
        for matrix in matrices:
            matrix.grad = torch.randn(*matrix.shape, generator=random)
        optimizer.step()
    return [matrix.detach() - before for matrix, before in zip(matrices, start, strict=True)]


@pytest.mark.parametrize("rule", [None, "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_updates_are_those_of_torchs_muon_up_to_its_bfloat16(rule, nesterov):
    shapes = [(8, 8), (24, 8), (8, 24), (8, 10), (8, 8), (1, 5)]
    options = {"adjust_lr_fn": rule, "nesterov": nesterov}
    ours, theirs = (updated(kind, shapes, **options) for kind in (Muon, torch.optim.Muon))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()


@pytest.mark.parametrize("shape", [(6, 6), (6, 8), (6, 20)], ids=str)
def test_orthogonalization_leaves_the_singular_vectors_and_sets_the_values_near_one(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    got = orthogonal(matrices, coefficients=(3.4445, -4.775, 2.0315), steps=5, eps=1e-7)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ got @ right.mT
    torch.testing.assert_close(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)))
    assert inner.diagonal(dim1=1, dim2=2)[values > 0.2 * values.max()].min() > 0.6
    assert inner.diagonal(dim1=1, dim2=2).max() < 1.3
