"""Continuous batching: a sequence decodes the same whoever shares its batch, whenever it joins."""

import pytest
import torch

from pipeline.chat.prompts import encode_prompts
from pipeline.generation.continuous import ContinuousBatch
from pipeline.generation.decode_row import DecodeRow
from pipeline.generation.sampling import keep_nucleus
from pipeline.generation.shared_prefix import DecodeRequest, PrefixEngine
from pipeline.model import add_reasoning_tokens, attach_value_head

QUESTIONS = ["2 + 3?", "Tom has 3 apples and buys 4 more. How many apples does he have now?", "5"]


@pytest.fixture(scope="module", params=["gpt2", "mistral"])
def engine(request, make_model, make_tokenizer) -> PrefixEngine:
    tokenizer = make_tokenizer()
    model = make_model(request.param, vocab_size=len(tokenizer))
    add_reasoning_tokens(model, tokenizer)
    attach_value_head(model)
    torch.nn.init.normal_(model.value_head.last.weight, std=0.5)
    if request.param == "mistral":
        model.config.sliding_window = 6  # distances between columns matter
    return PrefixEngine(model, tokenizer)


def requests(engine: PrefixEngine, **more) -> list[DecodeRequest]:
    roots = engine.start(encode_prompts(engine.tokenizer, QUESTIONS))
    return [
        DecodeRequest(sequence=root, budget=7 + 3 * i, stream=(i,), temperature=t, **more)
        for i, (root, t) in enumerate(zip(roots, (0.0, 1.0, 1.0), strict=True))
    ]


@torch.no_grad()
def decode(engine: PrefixEngine, rows: list[DecodeRow], joins: list[int]) -> ContinuousBatch:
    """Decode the rows in one batch; row i joins before step joins[i]."""
    batch, step = ContinuousBatch(engine.model), 0
    while batch.rows or step <= max(joins):
        batch.add([(row, engine) for row, at in zip(rows, joins, strict=True) if at == step])
        if batch.rows:
            batch.step()
        step += 1
    return batch


@pytest.mark.parametrize("joins", [[0, 3, 5], [2, 22, 4]])
def test_a_row_that_joins_late_has_the_tokens_values_and_logprobs_of_a_row_alone(engine, joins):
    wanted = engine.extend(requests(engine))
    rows = [DecodeRow(request, engine) for request in requests(engine)]
    decode(engine, rows, joins)
    for row, alone in zip(rows, wanted, strict=True):
        found = row.sequence()
        assert found.ids == alone.ids
        assert found.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        assert found.values == pytest.approx(alone.values, abs=1e-4)
        assert found.ended == alone.ended


def test_steps_of_a_thought_can_be_continued_later(engine):
    wanted = engine.extend(requests(engine, max_step_tokens=4))
    rows = [DecodeRow(request, engine) for request in requests(engine, max_step_tokens=4)]
    decode(engine, rows, [0, 1, 2])
    for row, alone in zip(rows, wanted, strict=True):
        found = row.sequence()
        assert found.ids == alone.ids and found.ended == alone.ended
        again = [
            engine.extend([DecodeRequest(sequence=s, budget=6, stream=(9,), temperature=0.0)])
            for s in (found, alone)
        ]
        assert again[0][0].ids == again[1][0].ids


def test_a_row_that_is_removed_leaves_the_others_unchanged(engine):
    (wanted, _, _) = engine.extend(requests(engine))
    rows = [DecodeRow(request, engine) for request in requests(engine)]
    batch = ContinuousBatch(engine.model)
    with torch.no_grad():
        batch.add([(row, engine) for row in rows[::-1]])
        batch.step()
        batch.remove(rows[1:])
        while batch.rows:
            batch.step()
    assert rows[0].sequence().ids == wanted.ids
    assert len(rows[1].ids) == 1


def test_an_empty_batch_has_no_cache(engine):
    rows = [DecodeRow(request, engine) for request in requests(engine)]
    batch = decode(engine, rows, [0, 0, 0])
    assert batch.cache.layers == [] and batch.capacity == 0


def test_the_nucleus_is_the_smallest_set_with_that_probability():
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log().repeat(4, 1)
    kept = keep_nucleus(logits, torch.tensor([0.4, 0.5001, 0.81, 1.0])).isfinite()
    assert kept.tolist() == [
        [False, True, False],
        [False, True, True],
        [True, True, True],
        [True, True, True],
    ]


def test_top_p_near_0_samples_what_greedy_decoding_takes(engine):
    model, tokenizer = engine.model, engine.tokenizer
    narrow = PrefixEngine(model, tokenizer, top_p=1e-6)
    sampled = narrow.extend(requests(narrow))
    greedy = engine.extend(
        [DecodeRequest(**vars(r) | {"temperature": 0.0}) for r in requests(engine)]
    )
    assert [s.ids for s in sampled] == [s.ids for s in greedy]
