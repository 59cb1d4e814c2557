"""The preallocated cache against transformers' DynamicCache."""

import pytest
import torch
from transformers import DynamicCache

from pipeline.generation.kv_cache import PreallocatedLayer, compaction_indices, preallocated_cache


@pytest.fixture
def caches(make_model) -> tuple[DynamicCache, DynamicCache]:
    config = make_model("llama", vocab_size=120).config
    return preallocated_cache(config), DynamicCache(config=config)


def add(cache: DynamicCache, rows: int, columns: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, 2, columns, 8, generator=generator)
    return cache.update(keys, values, 0)


def test_it_equals_a_dynamic_cache_after_growing_repeating_and_dropping_rows(caches):
    for step, (rows, columns) in enumerate([(3, 5), *[(6, 1)] * 70, *[(4, 1)] * 3]):
        if step == 1:
            for cache in caches:
                cache.batch_repeat_interleave(2)
        if step == 70:
            for cache in caches:
                cache.reorder_cache(torch.tensor([1, 1, 4, 0, 5, 2]))
        if step == 71:
            for cache in caches:
                cache.batch_select_indices(torch.tensor([0, 5, 2, 4]))
        roomy, plain = (add(cache, rows, columns, step) for cache in caches)
        assert torch.equal(roomy[0], plain[0]) and torch.equal(roomy[1], plain[1])
        assert caches[0].get_seq_length() == caches[1].get_seq_length()


def test_adding_a_token_copies_no_earlier_tokens(caches):
    first, _ = add(caches[0], 3, 5, 0)
    second, _ = add(caches[0], 3, 1, 1)
    assert first.data_ptr() == second.data_ptr()


def test_rows_that_keep_their_index_are_not_copied(caches):
    before, _ = add(caches[0], 4, 5, 0)
    before = before.clone()
    layer = caches[0].layers[0]
    pointer = layer.keys.data_ptr()
    layer.batch_select_indices(torch.tensor([0, 3, 2]))
    assert layer.keys.data_ptr() == pointer
    assert torch.equal(layer.keys, before[[0, 3, 2]])


def test_rows_are_gathered_in_any_order_and_number(caches):
    roomy = caches[0]
    before = add(roomy, 3, 5, 0)[0].clone()
    roomy.layers[0].gather_rows(torch.tensor([2, 0, 0, 1]))
    assert torch.equal(roomy.layers[0].keys, before[[2, 0, 0, 1]])
    after, _ = add(roomy, 4, 1, 1)
    assert torch.equal(after[:, :, :5], before[[2, 0, 0, 1]])


def test_without_a_configuration_every_layer_is_preallocated():
    cache = preallocated_cache(None)
    add(cache, 3, 5, 0)
    assert isinstance(cache.layers[0], PreallocatedLayer)


def test_sliding_window_layers_keep_their_type(make_model):
    config = make_model("qwen3", vocab_size=120).config
    config.layer_types, config.sliding_window = ["full_attention", "sliding_attention"], 4
    roomy, window = preallocated_cache(config).layers
    assert isinstance(roomy, PreallocatedLayer) and not isinstance(window, PreallocatedLayer)


@pytest.mark.parametrize(
    ("live", "kept"),
    [("TTT", [0, 1, 2]), ("FTT", [2, 1]), ("TFFTF", [0, 3]), ("FFFT", [3]), ("TTF", [0, 1])],
)
def test_compaction_moves_the_last_rows_to_the_dropped_indices(live, kept):
    assert compaction_indices(torch.tensor([x == "T" for x in live])).tolist() == kept
