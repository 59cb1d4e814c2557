"""Batches of like length in random order."""

import random
from itertools import pairwise

from pipeline.sft.length_buckets import POOL, BucketSampler, bucketed

LENGTHS = [random.Random(i).randint(1, 300) for i in range(1003)]


def batches(order: list[int], size: int) -> list[list[int]]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def test_every_example_comes_once():
    assert sorted(bucketed(LENGTHS, 8, random.Random(0))) == list(range(len(LENGTHS)))


def test_the_examples_of_a_batch_are_neighbours_in_length():
    pool = 8 * POOL  # sorted together
    order = bucketed(LENGTHS, 8, random.Random(0))
    for start in range(0, len(LENGTHS) - pool, pool):
        spans = sorted(
            sorted(LENGTHS[index] for index in batch)
            for batch in batches(order[start : start + pool], 8)
        )
        for shorter, longer in pairwise(spans):
            assert shorter[-1] <= longer[0]


def test_padding_shrinks():
    def padding(order: list[int]) -> int:
        return sum(
            max(LENGTHS[i] for i in batch) * len(batch) - sum(LENGTHS[i] for i in batch)
            for batch in batches(order, 8)
        )

    assert padding(bucketed(LENGTHS, 8, random.Random(0))) < 0.25 * padding(
        random.Random(0).sample(range(len(LENGTHS)), len(LENGTHS))
    )


def test_long_and_short_batches_come_in_random_order():
    order = bucketed(LENGTHS[: 8 * POOL], 8, random.Random(0))
    means = [sum(LENGTHS[i] for i in batch) for batch in batches(order, 8)]
    rises = sum(a < b for a, b in pairwise(means))
    assert 4 <= rises <= POOL - 5  # neither ascending nor descending


def test_only_the_last_batch_is_short():
    order = bucketed([1, 9, 2, 8, 5], 2, random.Random(0))
    assert {frozenset(batch) for batch in batches(order, 2)} == {
        frozenset({0, 2}),  # lengths 1 and 2
        frozenset({4, 3}),  # lengths 5 and 8
        frozenset({1}),  # length 9
    }
    assert order[-1] == 1


def test_the_order_is_a_function_of_seed_and_epoch():
    first, second = (BucketSampler(LENGTHS, batch_size=8, seed=3) for _ in range(2))
    assert list(first) == list(first) == list(second)
    second.set_epoch(1)
    assert list(second) != list(first)
    first.set_epoch(1)
    assert list(second) == list(first)
    assert list(BucketSampler(LENGTHS, batch_size=8, seed=4)) != list(
        BucketSampler(LENGTHS, batch_size=8, seed=3)
    )


def test_no_examples_have_no_order():
    assert bucketed([], 8, random.Random(0)) == []
