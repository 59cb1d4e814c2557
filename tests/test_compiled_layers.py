"""Compiled decoder layers: the same results, one compilation for all layers, not in sampling."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.generation.kv_cache import pad_left
from pipeline.ppo.config import PPOConfig
from pipeline.scoring import Scores, score_completions, supports_packing
from pipeline.scoring.compiled_layers import compile_decoder_layers, is_compiled

PROMPTS = [[100, 101, 102], [103], [104, 105, 106, 107, 108], [7, 8]]
COMPLETIONS = [[110, 111], [112, 113, 114, 115, 3, 4, 5, 6, 9], [116], [20, 21, 22]]


def score(model: nn.Module, rows: slice = slice(None)) -> Scores:
    reversed_BC, mask_BC = pad_left([row[::-1] for row in COMPLETIONS[rows]], 0)
    prompts = pad_left(PROMPTS[rows], 0)
    return score_completions(model, *prompts, reversed_BC.flip(1), mask_BC.flip(1))


def assert_same_scores_and_gradients(compiled: nn.Module, plain: nn.Module) -> None:
    for rows in (slice(None), slice(0, 2)):
        a, b = score(compiled, rows), score(plain, rows)
        torch.testing.assert_close(a.logprobs_BC, b.logprobs_BC, atol=1e-5, rtol=0)
        torch.testing.assert_close(a.values_BC, b.values_BC, atol=1e-5, rtol=0)
        for scores in (a, b):
            (scores.logprobs_BC.square().sum() + scores.values_BC.sum()).backward()
    for (name, x), y in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-4, msg=name)


def counting_backend() -> tuple[Any, list[int]]:
    """(a backend that runs what was traced as it is, number of nodes of each traced graph)."""
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    return backend, graphs


def test_traced_layers_have_the_scores_and_gradients_of_plain_ones(tiny_policy):
    assert supports_packing(tiny_policy)  # tried before anything is compiled
    plain = copy.deepcopy(tiny_policy)
    backend, graphs = counting_backend()
    assert compile_decoder_layers(tiny_policy, backend) == len(tiny_policy.model.layers) > 1
    assert_same_scores_and_gradients(tiny_policy, plain)
    # Those of one layer, before and after attention: other layers and lengths trace nothing new.
    assert 1 <= len(graphs) <= 6
    assert is_compiled(tiny_policy) and not is_compiled(plain)
    assert not is_compiled(copy.deepcopy(tiny_policy))


def test_sampling_and_plain_forwards_call_no_compiled_layer(tiny_policy):
    backend, graphs = counting_backend()
    compile_decoder_layers(tiny_policy, backend)
    tiny_policy(torch.tensor([[5, 6, 7]]))
    assert graphs == []
    assert all(layer._compiled_call_impl is None for layer in tiny_policy.model.layers)


@pytest.mark.slow
def test_the_compiler_for_cpus_has_the_same_results(tiny_policy):
    plain = copy.deepcopy(tiny_policy)
    compile_decoder_layers(tiny_policy)
    assert_same_scores_and_gradients(tiny_policy, plain)


def test_a_model_without_decoder_layers_is_refused():
    with pytest.raises(ValueError, match="compile_layers=true: Linear has no decoder layers"):
        compile_decoder_layers(nn.Linear(2, 2))


def test_compiled_layers_and_gradient_checkpointing_exclude_each_other():
    with pytest.raises(ValueError, match="compile_layers=true with gradient_checkpointing=true"):
        PPOConfig(compile_layers=True, gradient_checkpointing=True)


def test_a_policy_that_is_scored_in_padded_rows_is_refused(make_ppo, tiny_policy):
    tiny_policy.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="compile_layers=true compiles the layers of packed rows"):
        make_ppo(tiny_policy, lambda completions, **columns: [0.0], compile_layers=True)
