"""The prefix engine against a second forward, the sampler, and other batch orders."""

from functools import partial

import pytest
import torch

from pipeline.chat.prompts import encode_prompts
from pipeline.chat.tags import END_THINK
from pipeline.generation import Sampler, cuda_graph, shared_prefix
from pipeline.generation.kv_cache import DecodeState, pad_left
from pipeline.generation.shared_prefix import DecodeRequest, PartialSequence, PrefixEngine
from pipeline.model import add_reasoning_tokens, attach_value_head
from pipeline.scoring import score_completions

QUESTIONS = ["What is 2 + 3?", "Tom has 3 apples and buys 4 more. How many?", "5"]
FAMILIES = ["gpt2", "llama", "qwen3"]


@pytest.fixture(scope="module")
def policies(make_model, make_tokenizer) -> dict:
    made = {}
    for family in FAMILIES:
        tokenizer = make_tokenizer()
        model = make_model(family, vocab_size=len(tokenizer))
        add_reasoning_tokens(model, tokenizer)
        attach_value_head(model)
        torch.nn.init.normal_(model.value_head.last.weight, std=0.5)
        made[family] = (model, tokenizer)
    return made


@pytest.fixture(params=[False, True], ids=["growing", "fixed"])
def buffers(request, monkeypatch) -> None:
    """Run with buffers that grow token by token, and with fixed-size ones as on a GPU."""
    if request.param:
        monkeypatch.setattr(cuda_graph, "MIN_WIDTH", 8)
        monkeypatch.setattr(cuda_graph, "can_capture", lambda model, cache: True)
        monkeypatch.setattr(
            cuda_graph, "CudaGraphDecoder", partial(cuda_graph.CudaGraphDecoder, capture=False)
        )


def request(
    sequence: PartialSequence, *stream: int, budget: int = 8, temperature: float = 1.0, **more
) -> DecodeRequest:
    return DecodeRequest(
        sequence=sequence, budget=budget, stream=stream, temperature=temperature, **more
    )


def scores_of(model, prompts: list[list[int]], sequences: list[PartialSequence]):
    prompt_ids, prompt_mask = pad_left(prompts, 0)
    reversed_ids, mask = pad_left([list(b.ids)[::-1] for b in sequences], 0)
    with torch.no_grad():
        return score_completions(model, prompt_ids, prompt_mask, reversed_ids.flip(1), mask.flip(1))


def grow(engine: PrefixEngine, roots: list[PartialSequence]) -> list[PartialSequence]:
    """Two steps of 3 tokens each, then continuations of sequences of different lengths."""
    once = engine.extend(
        [request(b, q, 0, budget=30, max_step_tokens=3) for q, b in enumerate(roots)]
    )
    twice = engine.extend(
        [request(b, q, 1, budget=30, max_step_tokens=3) for q, b in enumerate(once)]
    )
    mixed = [b for b in [*once, *twice, roots[0]] if not b.ended]
    return engine.extend([request(b, 2, i, budget=5) for i, b in enumerate(mixed)])


@pytest.mark.usefixtures("buffers")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("common", [0, 20])
def test_decoding_in_steps_equals_a_second_forward_over_the_whole_sequence(
    policies, family, common
):
    model, tokenizer = policies[family]
    prompts = [[*range(10, 10 + common), *ids] for ids in encode_prompts(tokenizer, QUESTIONS)]
    engine = PrefixEngine(model, tokenizer)
    roots = engine.start(prompts)
    sequences = grow(engine, roots)
    by_length = {root.prompt_tokens: p for root, p in zip(roots, prompts, strict=True)}
    own = [by_length[b.prompt_tokens] for b in sequences]
    scores = scores_of(model, own, sequences)
    for b, sequence in enumerate(sequences):
        n = len(sequence.ids)
        expected = scores.logprobs_BC[b, :n], scores.values_BC[b, :n]
        torch.testing.assert_close(torch.tensor(sequence.logprobs), expected[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.tensor(sequence.values), expected[1], atol=1e-5, rtol=0)
    assert len({len(b.ids) for b in sequences}) > 1


@pytest.mark.usefixtures("buffers")
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_in_steps_equals_the_sampler(policies, family):
    model, tokenizer = policies[family]
    prompts = encode_prompts(tokenizer, QUESTIONS)
    sampler = Sampler(model, tokenizer, temperature=0.0, max_new_tokens=12)
    rollout = sampler.sample(prompts)
    engine = PrefixEngine(model, tokenizer)
    sequences = engine.start(prompts)
    for _ in range(6):
        sequences = engine.extend(
            [request(b, budget=2, temperature=0.0, max_step_tokens=2) for b in sequences]
        )
    for b, sequence in enumerate(sequences):
        ids = rollout.completion_ids_BC[b][rollout.mask_completion_BC[b]].tolist()
        assert list(sequence.ids) == ids


def test_order_and_batch_size_do_not_change_the_tokens(tiny_policy, tokenizer):
    prompts = encode_prompts(tokenizer, QUESTIONS)
    written = []
    for batch_size, order in ((1, [0, 1, 2]), (2, [2, 0, 1]), (8, [1, 2, 0])):
        engine = PrefixEngine(tiny_policy, tokenizer, batch_size=batch_size)
        roots = engine.start([prompts[q] for q in order])
        requests = [
            request(b, q, g, budget=12) for q, b in zip(order, roots, strict=True) for g in (0, 1)
        ]
        sequences = engine.extend(requests)
        written.append({a.stream: b.ids for a, b in zip(requests, sequences, strict=True)})
    assert written[0] == written[1] == written[2]
    assert len(set(written[0].values())) == 6


def test_equal_streams_give_equal_tokens_and_others_differ(tiny_policy, tokenizer):
    engine = PrefixEngine(tiny_policy, tokenizer)
    (root,) = engine.start(encode_prompts(tokenizer, QUESTIONS[:1]))
    one, again, other = engine.extend([request(root, 7), request(root, 7), request(root, 8)])
    assert one.ids == again.ids != other.ids


def test_continuations_of_one_sequence_do_not_change_each_other(tiny_policy, tokenizer):
    engine = PrefixEngine(tiny_policy, tokenizer)
    (root,) = engine.start(encode_prompts(tokenizer, QUESTIONS[:1]))
    (stem,) = engine.extend([request(root, 3, budget=20, max_step_tokens=3)])
    assert not stem.ended
    ids, slots = stem.ids, stem.known_cached.all_slots()
    (one,) = engine.extend([request(stem, 2, budget=4)])
    engine.extend([request(stem, i, budget=6, max_step_tokens=2) for i in range(3, 9)])
    (again,) = engine.extend([request(stem, 2, budget=4)])
    assert (one.ids, one.values) == (again.ids, again.values)
    assert stem.ids == ids and torch.equal(stem.known_cached.all_slots(), slots)


def test_a_prefix_is_computed_once(planted, tokenizer):
    model = planted({"abcdef\ngh</think>1<eos>": 1.0}, value=lambda text: 0.0)
    engine = PrefixEngine(model, tokenizer)
    (root,) = engine.start([[5, *encode_prompts(tokenizer, ["q"])[0]]])
    (stem,) = engine.extend([request(root, budget=20, max_step_tokens=20)])
    assert tokenizer.decode(stem.ids) == "abcdef\n"
    model.fed = 0
    engine.extend([request(stem, i, budget=20) for i in range(4)])
    # Four times g, h, </think> and 1 are fed to the model; the end token is not, the prefix is not.
    assert model.fed == 4 * 4


def test_tokens_that_all_prompts_begin_with_are_computed_once(planted, tokenizer):
    model = planted({"1</think>1<eos>": 1.0}, value=lambda text: 0.0)
    prompts = [[*range(10, 40), *rest] for rest in ([5], [6, 7], [8, 9, 9])]
    model.fed = 0
    PrefixEngine(model, tokenizer).start(prompts)
    assert model.fed == 30 + 1 + 2 + 3


def test_a_model_with_a_sliding_window_computes_every_prompt_whole(planted, tokenizer):
    model = planted({"1</think>1<eos>": 1.0}, value=lambda text: 0.0)
    model.config.sliding_window = 8
    model.config.layer_types = ["sliding_attention"] * model.config.num_hidden_layers
    prompts = [[*range(10, 40), number] for number in (1, 2)]
    model.fed = 0
    PrefixEngine(model, tokenizer).start(prompts)
    assert model.fed == 2 * 31


def test_a_step_is_a_line_and_the_last_step_includes_the_answer(planted, tokenizer):
    text = "1+1=2\n2+2=4\n</think>4\nsure<eos>"
    model = planted({text: 1.0}, value=len)
    engine = PrefixEngine(model, tokenizer)
    (sequence,) = engine.start(encode_prompts(tokenizer, ["q"]))
    seen = []
    while not sequence.ended:
        (sequence,) = engine.extend([request(sequence, budget=40, max_step_tokens=40)])
        seen.append(tokenizer.decode(sequence.ids))
        assert sequence.value == len(seen[-1].removesuffix("<eos>"))  # V of the state it is in
    assert seen == ["1+1=2\n", "1+1=2\n2+2=4\n", text]


def test_a_long_line_is_cut_into_steps(planted, tokenizer):
    engine = PrefixEngine(planted({"abcdefg</think>1<eos>": 1.0}), tokenizer)
    (root,) = engine.start(encode_prompts(tokenizer, ["q"]))
    (sequence,) = engine.extend([request(root, budget=20, max_step_tokens=3)])
    assert tokenizer.decode(sequence.ids) == "abc" and not sequence.ended
    (sequence,) = engine.extend([request(sequence, budget=20, max_step_tokens=3)])
    assert tokenizer.decode(sequence.ids) == "abcdef"


def test_a_thought_is_closed_after_max_thought_tokens(planted, tokenizer):
    model = planted({"abcdefghij</think>1<eos>": 1.0, f"abc{END_THINK}7<eos>": 1e-9})
    engine = PrefixEngine(model, tokenizer)
    (root,) = engine.start(encode_prompts(tokenizer, ["q"]))
    (sequence,) = engine.extend([request(root, budget=6, max_thought_tokens=3)])
    assert tokenizer.decode(sequence.ids) == "abc</think>7<eos>"
    assert sequence.forced and sequence.ended
    # The log-probability is the policy's own of closing the thought at this place: 1e-9.
    assert sequence.logprobs[3] == pytest.approx(-20.7, abs=0.1)


def test_a_thought_that_closes_itself_is_not_forced(planted, tokenizer):
    engine = PrefixEngine(planted({"ab</think>1<eos>": 1.0}), tokenizer)
    (root,) = engine.start(encode_prompts(tokenizer, ["q"]))
    for max_thought_tokens in (2, 3):
        (sequence,) = engine.extend(
            [request(root, budget=8, max_thought_tokens=max_thought_tokens)]
        )
        assert tokenizer.decode(sequence.ids) == "ab</think>1<eos>"
        # At 2 the tag is forced where the policy would write it anyway; before 3 it has closed.
        assert sequence.forced == (max_thought_tokens == 2)


def test_every_token_is_counted(tiny_policy, tokenizer):
    engine = PrefixEngine(tiny_policy, tokenizer, batch_size=2)
    roots = engine.start(encode_prompts(tokenizer, QUESTIONS))
    once = engine.extend([request(b, q, budget=7, max_step_tokens=3) for q, b in enumerate(roots)])
    more = engine.extend([request(b, q, 1, budget=4) for q, b in enumerate(once) if not b.ended])
    spent = sum(len(b.ids) for b in once) + sum(len(b.ids) for b in more)
    assert engine.generated_tokens == spent - sum(len(b.ids) for b in once if not b.ended)


def test_token_frequencies_match_the_policy(planted, tokenizer):
    engine = PrefixEngine(planted({"a</think>1<eos>": 3.0, "b</think>2<eos>": 1.0}), tokenizer)
    (root,) = engine.start(encode_prompts(tokenizer, ["q"]))
    drawn = engine.extend([request(root, i, budget=6) for i in range(800)])
    share = sum(tokenizer.decode(b.ids).startswith("a") for b in drawn) / 800
    assert abs(share - 0.75) < 0.05  # three standard errors are 0.046
    hot = engine.extend([request(root, i, budget=6, temperature=2.0) for i in range(800)])
    share = sum(tokenizer.decode(b.ids).startswith("a") for b in hot) / 800
    assert abs(share - 3**0.5 / (3**0.5 + 1)) < 0.05  # 0.634
    assert hot[0].logprobs[0] == pytest.approx(-0.288, abs=1e-3) or "b" in tokenizer.decode(
        hot[0].ids
    )  # the policy's own, ln 0.75, whatever the temperature


def test_nothing_is_generated_after_an_end_token_or_without_a_budget(planted, tokenizer):
    engine = PrefixEngine(planted({"a</think>1<eos>": 1.0}), tokenizer)
    (root,) = engine.start(encode_prompts(tokenizer, ["q"]))
    (done,) = engine.extend([request(root, budget=9)])
    before = engine.generated_tokens
    assert engine.extend([request(done, budget=9), request(root, budget=0)]) == [done, root]
    assert engine.generated_tokens == before == 4


@pytest.mark.parametrize("in_common", [0, 20])
def test_prompts_of_different_lengths_are_prefilled_in_batches_with_little_padding(
    policies, monkeypatch, in_common
):
    model, tokenizer = policies["llama"]
    monkeypatch.setattr(shared_prefix, "LEAST_ROWS", 2)
    ids = torch.randint(5, 60, (5, 60), generator=torch.Generator().manual_seed(0)).tolist()
    prefix = ids[0][:in_common]
    prompts = [prefix + row[:length] for row, length in zip(ids, (30, 3, 31, 4, 29), strict=True)]
    shapes = []
    prefill = DecodeState.prefill

    def seen(model, cache, ids_QP, mask_QT):
        shapes.append(tuple(ids_QP.shape))
        return prefill(model, cache, ids_QP, mask_QT)

    monkeypatch.setattr(DecodeState, "prefill", seen)
    together = PrefixEngine(model, tokenizer).start(prompts)
    assert shapes == ([(1, in_common)] if in_common else []) + [(2, 4), (3, 31)]
    for prompt, sequence in zip(prompts, together, strict=True):
        (alone,) = PrefixEngine(model, tokenizer).start([prompt])
        torch.testing.assert_close(sequence.logits_V, alone.logits_V, atol=1e-5, rtol=1e-4)
        assert sequence.value == pytest.approx(alone.value, abs=1e-5)
        assert sequence.prompt_tokens == len(prompt)


def test_greedy_tokens_need_no_random_numbers_and_mix_with_sampled_ones():
    logits_nV = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    draws = torch.tensor([0.99, 0.99])
    greedy = shared_prefix.sample_or_argmax(logits_nV, torch.zeros(2), draws)
    mixed = shared_prefix.sample_or_argmax(logits_nV, torch.tensor([0.0, 1.0]), draws)
    assert greedy.tolist() == [1, 0]
    assert mixed.tolist() == [1, 2]
