"""The sampler against `generate`, a second forward, and the expected token frequencies."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from pipeline.chat.prompts import encode_prompts
from pipeline.generation import Sampler, cuda_graph
from pipeline.generation.kv_cache import evaluation_mode, pad_left, preallocated_cache
from pipeline.generation.sampling import keep_nucleus
from pipeline.generation.sampling import sample_tokens as draw_tokens
from pipeline.generation.shared_prefix import sample_or_argmax
from pipeline.model import add_reasoning_tokens, attach_value_head
from pipeline.records import Rollout
from pipeline.scoring import score_completions

QUESTIONS = [
    "What is 2 + 3?",
    "Tom has 3 apples and buys 4 more. How many apples does he have?",
    "5",
]
REPLAY = cuda_graph.CudaGraphDecoder
FAMILIES = ["gpt2", "llama", "qwen3"]  # learned positions, rotary, rotary with normed keys


@pytest.fixture
def prompts(tokenizer) -> list[list[int]]:
    return encode_prompts(tokenizer, QUESTIONS)


@pytest.fixture(scope="module")
def policies(make_model, make_tokenizer) -> dict:
    """(model, tokenizer) of each family, with a value head that is not zero."""
    made = {}
    for family in FAMILIES:
        tokenizer = make_tokenizer()
        model = make_model(family, vocab_size=len(tokenizer))
        add_reasoning_tokens(model, tokenizer)
        attach_value_head(model)
        nn.init.normal_(model.value_head.last.weight, std=0.5)
        made[family] = (model, tokenizer)
    return made


def prompts_of(lengths: list[int]) -> list[list[int]]:
    return [[10 + (7 * row + i) % 90 for i in range(n)] for row, n in enumerate(lengths)]


def completions(rollout: Rollout) -> list[list[int]]:
    pairs = zip(rollout.completion_ids_BC, rollout.mask_completion_BC, strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]


def score(model: nn.Module, rollout: Rollout, temperature: float = 1.0):
    with torch.no_grad():
        return score_completions(
            model,
            rollout.prompt_ids_BP,
            rollout.mask_prompt_BP,
            rollout.completion_ids_BC,
            rollout.mask_completion_BC,
            temperature=temperature,
        )


def ends_often(model: nn.Module, eos_id: int, logit: float = 2.0) -> nn.Module:
    """The model with a raised bias of its end token, so that completions differ in length."""

    def lift(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        output[..., eos_id] += logit
        return output

    model.get_output_embeddings().register_forward_hook(lift)
    return model


# ---- what is recorded ----


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("group", [1, 3])
def test_recorded_logprobs_and_values_equal_those_of_a_second_forward(policies, family, group):
    model, tokenizer = copy.deepcopy(policies[family])
    ends_often(model, tokenizer.eos_token_id, 3.0)
    sampler = Sampler(model, tokenizer, temperature=0.8, max_new_tokens=20, seed=1)
    rollout = sampler.sample(prompts_of([3, 12, 1, 7]), group=group)
    lengths = rollout.mask_completion_BC.sum(dim=1)
    assert len(set(lengths.tolist())) > 2  # rows were dropped while decoding
    scores = score(model, rollout, temperature=0.8)
    torch.testing.assert_close(rollout.logprobs_BC, scores.logprobs_BC, atol=1e-5, rtol=0)
    torch.testing.assert_close(rollout.values_BC, scores.values_BC, atol=1e-5, rtol=0)
    assert rollout.values_BC.abs().sum() > 0


def test_padding_holds_zeros_and_pad_tokens(tiny_policy, tokenizer, prompts):
    ends_often(tiny_policy, tokenizer.eos_token_id, 4.0)
    sampler = Sampler(tiny_policy, tokenizer, temperature=1.0, max_new_tokens=24)
    rollout = sampler.sample(prompts, group=4)
    padding_BC = ~rollout.mask_completion_BC
    assert padding_BC.any()
    assert (rollout.completion_ids_BC[padding_BC] == tokenizer.pad_token_id).all()
    assert (rollout.logprobs_BC[padding_BC] == 0).all()
    assert (rollout.values_BC[padding_BC] == 0).all()
    assert (rollout.logprobs_BC[~padding_BC] < 0).all()


def test_without_a_value_head_the_values_are_zero(make_model, make_tokenizer):
    tokenizer = make_tokenizer()
    model = make_model("llama", vocab_size=len(tokenizer))
    sampler = Sampler(model, tokenizer, temperature=1.0, max_new_tokens=3)
    assert (sampler.sample([[5, 6]]).values_BC == 0).all()


def test_a_completion_without_an_end_token_is_truncated(tiny_policy, tokenizer, prompts):
    ends_often(tiny_policy, tokenizer.eos_token_id, 4.0)
    sampler = Sampler(tiny_policy, tokenizer, temperature=1.0, max_new_tokens=6, seed=2)
    rollout = sampler.sample(prompts, group=4)
    ended = [ids[-1] == tokenizer.eos_token_id for ids in completions(rollout)]
    assert rollout.truncated_B.tolist() == [not end for end in ended]
    assert 0 < sum(ended) < len(ended)
    assert all(len(ids) == 6 or end for ids, end in zip(completions(rollout), ended, strict=True))


def test_prompts_are_repeated_once_per_completion(tiny_policy, tokenizer, prompts):
    sampler = Sampler(tiny_policy, tokenizer, temperature=1.0, max_new_tokens=2)
    rollout = sampler.sample(prompts, group=2)
    rows = zip(rollout.prompt_ids_BP, rollout.mask_prompt_BP, strict=True)
    assert [ids[mask].tolist() for ids, mask in rows] == [p for p in prompts for _ in range(2)]


# ---- greedy ----


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate(policies, family):
    model, tokenizer = policies[family]
    prompts = prompts_of([3, 12, 1, 7])
    rollout = Sampler(model, tokenizer, temperature=0, max_new_tokens=15).sample(prompts)
    ids_QP, mask_QP = pad_left(prompts, tokenizer.pad_token_id)
    expected = model.generate(
        input_ids=ids_QP, attention_mask=mask_QP.long(), max_new_tokens=15, do_sample=False
    )[:, ids_QP.shape[1] :]
    assert torch.equal(rollout.completion_ids_BC, expected[:, : rollout.completion_ids_BC.shape[1]])


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_alone_equals_greedy_in_a_batch_of_eight(policies, family):
    model, tokenizer = copy.deepcopy(policies[family])
    ends_often(model, tokenizer.eos_token_id)
    prompts = prompts_of([3, 12, 1, 7, 5, 9, 2, 12])
    sampler = Sampler(model, tokenizer, temperature=0, max_new_tokens=15)
    together = completions(sampler.sample(prompts))
    assert together == [completions(sampler.sample([prompt]))[0] for prompt in prompts]


def test_greedy_logprobs_are_those_of_temperature_one(tiny_policy, tokenizer, prompts):
    rollout = Sampler(tiny_policy, tokenizer, temperature=0, max_new_tokens=5).sample(prompts)
    scores = score(tiny_policy, rollout)
    torch.testing.assert_close(rollout.logprobs_BC, scores.logprobs_BC, atol=1e-5, rtol=0)


# ---- the end of a row ----


def test_nothing_is_written_after_the_end_token(tiny_policy, tokenizer, prompts):
    ends_often(tiny_policy, tokenizer.eos_token_id, 4.0)
    sampler = Sampler(tiny_policy, tokenizer, temperature=1.0, max_new_tokens=30)
    rollout = sampler.sample(prompts, group=20)
    for ids in rollout.completion_ids_BC.tolist():
        if tokenizer.eos_token_id in ids:
            behind = ids[ids.index(tokenizer.eos_token_id) + 1 :]
            assert set(behind) <= {tokenizer.pad_token_id}


def test_every_end_token_of_the_generation_config_ends_a_completion(
    tiny_policy, tokenizer, prompts
):
    turn_end = tokenizer.convert_tokens_to_ids("<|user|>")
    tiny_policy.generation_config.eos_token_id = [tokenizer.eos_token_id, turn_end]
    ends_often(tiny_policy, turn_end, 30.0)
    sampler = Sampler(tiny_policy, tokenizer, temperature=1.0, max_new_tokens=9)
    rollout = sampler.sample(prompts)
    assert completions(rollout) == [[turn_end]] * 3
    assert not rollout.truncated_B.any()


def test_an_end_token_that_is_also_the_pad_token_stays_in_the_mask(make_model, make_tokenizer):
    tokenizer = make_tokenizer(pad="eos")
    model = ends_often(make_model("llama", vocab_size=len(tokenizer)), tokenizer.eos_token_id, 3.0)
    sampler = Sampler(model, tokenizer, temperature=1.0, max_new_tokens=20)
    rollout = sampler.sample(prompts_of([3, 9]), group=6)
    for ids, cut in zip(completions(rollout), rollout.truncated_B.tolist(), strict=True):
        assert ids.count(tokenizer.eos_token_id) == (0 if cut else 1)
        assert cut or ids[-1] == tokenizer.eos_token_id


def test_no_completion_is_longer_than_the_budget_and_the_width_is_that_of_the_longest(
    tiny_policy, tokenizer, prompts
):
    ends_often(tiny_policy, tokenizer.eos_token_id, 8.0)
    sampler = Sampler(tiny_policy, tokenizer, temperature=1.0, max_new_tokens=50)
    rollout = sampler.sample(prompts)
    longest = max(map(len, completions(rollout)))
    assert rollout.completion_ids_BC.shape[1] == longest < 50


# ---- independence ----


def test_the_same_seed_gives_the_same_samples_and_another_gives_others(
    tiny_policy, tokenizer, prompts
):
    def sample(seed: int) -> list[list[int]]:
        sampler = Sampler(tiny_policy, tokenizer, temperature=1.0, max_new_tokens=8, seed=seed)
        return completions(sampler.sample(prompts, group=2))

    assert sample(3) == sample(3)
    assert sample(3) != sample(4)


def test_a_second_call_gives_other_samples(tiny_policy, tokenizer, prompts):
    sampler = Sampler(tiny_policy, tokenizer, temperature=1.0, max_new_tokens=8)
    assert completions(sampler.sample(prompts)) != completions(sampler.sample(prompts))


def test_the_completions_of_a_question_differ_from_each_other(tiny_policy, tokenizer, prompts):
    sampler = Sampler(tiny_policy, tokenizer, temperature=1.0, max_new_tokens=8)
    assert len(set(map(tuple, completions(sampler.sample(prompts[:1], group=6))))) == 6


def test_samples_of_a_prompt_do_not_depend_on_later_prompts(tiny_policy, tokenizer, prompts):
    def sample(*questions: int, batch_size: int = 256) -> list[list[int]]:
        sampler = Sampler(
            tiny_policy, tokenizer, temperature=1.0, max_new_tokens=12, batch_size=batch_size
        )
        return completions(sampler.sample([prompts[q] for q in questions], group=2))

    ends_often(tiny_policy, tokenizer.eos_token_id, 3.0)
    together = sample(0, 1, 2)
    assert sample(0)[:2] == together[:2]
    assert sample(0, 2)[:2] == together[:2]
    # Nor on batch size: one prompt at a time, or half a group.
    assert sample(0, 1, 2, batch_size=2) == together
    assert sample(0, 1, 2, batch_size=1) == together


def test_completions_that_share_a_prefill_equal_completions_sampled_apart(
    tiny_policy, tokenizer, prompts
):
    def sample(asked: list[list[int]], group: int) -> Rollout:
        sampler = Sampler(tiny_policy, tokenizer, temperature=1.0, max_new_tokens=12, seed=5)
        return sampler.sample(asked, group=group)

    shared = sample(prompts, 3)
    apart = sample([prompt for prompt in prompts for _ in range(3)], 1)
    assert completions(shared) == completions(apart)
    torch.testing.assert_close(shared.logprobs_BC, apart.logprobs_BC, atol=1e-5, rtol=0)
    torch.testing.assert_close(shared.values_BC, apart.values_BC, atol=1e-5, rtol=0)


@pytest.mark.parametrize("group", [1, 2, 3, 7])
def test_no_more_rows_are_decoded_together_than_allowed(tiny_policy, tokenizer, prompts, group):
    rows = []
    tiny_policy.register_forward_hook(
        lambda model, args, output: rows.append(output["logits"].shape[0])
    )
    sampler = Sampler(tiny_policy, tokenizer, temperature=1.0, max_new_tokens=3, batch_size=3)
    rollout = sampler.sample(prompts, group=group)
    assert max(rows) <= 3
    assert len(rollout.logprobs_BC) == len(prompts) * group


def test_progress_counts_every_completion(tiny_policy, tokenizer, prompts):
    done = []
    sampler = Sampler(tiny_policy, tokenizer, temperature=1.0, max_new_tokens=2, batch_size=2)
    sampler.sample(prompts, group=3, progress=done.append)
    assert sum(done) == 9


def test_dropout_is_off_while_sampling_and_the_mode_is_restored(make_model, make_tokenizer):
    tokenizer = make_tokenizer()
    model = make_model("gpt2", vocab_size=len(tokenizer)).train()  # 10% dropout
    sampler = Sampler(model, tokenizer, temperature=0, max_new_tokens=10)
    assert torch.equal(sampler.sample([[5, 6]]).logprobs_BC, sampler.sample([[5, 6]]).logprobs_BC)
    assert model.training


# ---- chance ----


class Coin(nn.Module):
    """A model that predicts the same distribution at every position."""

    def __init__(self, probabilities: list[float]):
        super().__init__()
        self.logits = torch.tensor(probabilities).log()
        self.config = SimpleNamespace(max_position_embeddings=None)
        self.generation_config = SimpleNamespace(eos_token_id=None)
        self.device = torch.device("cpu")

    def forward(self, input_ids: torch.Tensor, **kwargs: object) -> dict[str, torch.Tensor]:
        return {"logits": self.logits.expand(*input_ids.shape, -1)}


def sample_tokens(probabilities: list[float], temperature: float, draws: int) -> torch.Tensor:
    """Number of times each token was sampled."""
    coin = Coin(probabilities)
    tokens = SimpleNamespace(pad_token_id=0, eos_token_id=99, name_or_path="coin")
    sampler = Sampler(coin, tokens, temperature=temperature, max_new_tokens=1, batch_size=draws)
    coin_cache = SimpleNamespace(batch_repeat_interleave=lambda group: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.generation.sampler.preallocated_cache", lambda config: coin_cache)
        ids_BC = sampler.sample([[1]], group=draws).completion_ids_BC
    return torch.bincount(ids_BC[:, 0], minlength=len(probabilities))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_token_frequencies_match_the_softmax(temperature):
    probabilities = [0.5, 0.2, 0.0, 0.15, 0.1, 0.05]
    counts = sample_tokens(probabilities, temperature, draws=20_000)
    expected = torch.softmax(torch.tensor(probabilities).log() / temperature, dim=0) * 20_000
    likely = expected > 0
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_square < 20.5  # 0.1% of fair draws are worse, with four degrees of freedom: 18.5
    assert (counts[~likely] == 0).all()


def test_a_token_of_probability_one_is_always_sampled():
    assert sample_tokens([0.0, 1.0, 0.0], 1.0, draws=1000).tolist() == [0, 1000, 0]


def test_tokens_of_probability_zero_are_never_sampled(tiny_policy, tokenizer):
    sampler = Sampler(tiny_policy, tokenizer, temperature=1.0, max_new_tokens=1)
    logprobs_nV = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).log().expand(4, -1)
    # The ends of the unit interval, and both sides of the border at a quarter.
    draws_n = torch.tensor([0.0, 0.2499, 0.25, 1 - 2**-24])
    assert sampler._sample(logprobs_nV, draws_n)[0].tolist() == [1, 1, 3, 3]


# ---- what is refused ----


def test_a_prompt_too_long_for_the_context_window_is_rejected(tiny_policy, tokenizer):
    sampler = Sampler(tiny_policy, tokenizer, temperature=1.0, max_new_tokens=250)
    with pytest.raises(
        ValueError, match=r"prompt of 7 tokens and max_new_tokens=250 do not fit .* of 256 tokens"
    ):
        sampler.sample([[5] * 7])
    assert sampler.sample([[5] * 6]).completion_ids_BC.shape[1] <= 250


@pytest.mark.parametrize("prompts", [[], [[]], [[5], []]])
def test_an_empty_prompt_is_rejected(tiny_policy, tokenizer, prompts):
    sampler = Sampler(tiny_policy, tokenizer, temperature=1.0, max_new_tokens=4)
    with pytest.raises(ValueError, match="every prompt needs at least one token"):
        sampler.sample(prompts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)
def test_options_out_of_range_are_rejected(tiny_policy, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(tiny_policy, tokenizer, **{"temperature": 1.0, "max_new_tokens": 4, **options})


def test_a_tokenizer_without_an_end_token_is_rejected(make_model, make_tokenizer):
    tokenizer = make_tokenizer(eos=None)
    with pytest.raises(ValueError, match="has no end-of-text token"):
        Sampler(
            make_model("llama", vocab_size=len(tokenizer)),
            tokenizer,
            temperature=1.0,
            max_new_tokens=4,
        )


def test_cudnn_attention_is_off_while_sampling():
    """cuDNN attention plans each new shape, which on a GPU took longer than the forward itself."""
    model, seen = torch.nn.Linear(1, 1), []
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with evaluation_mode(model):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
    assert seen == [False] and torch.backends.cuda.cudnn_sdp_enabled() == before


# ---- large vocabularies ----


@pytest.mark.parametrize("vocabulary", [1_025, 4_096, 50_257])
def test_sampling_by_blocks_equals_sampling_by_a_cumulative_sum(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    rows = min(400, 4_000_000 // vocabulary)
    weights_nV = torch.rand(rows, vocabulary, generator=generator, dtype=torch.double) ** 8
    weights_nV[:, ::3] = 0
    uniform_n = torch.rand(rows, generator=generator, dtype=torch.double)
    cumulative_nV = weights_nV.cumsum(dim=-1)
    target_n1 = (uniform_n * cumulative_nV[:, -1]).unsqueeze(1)
    expected_n = torch.searchsorted(cumulative_nV, target_n1, right=True).squeeze(1)
    tokens_n, logprobs_n = draw_tokens(weights_nV.log(), uniform_n)
    assert tokens_n.tolist() == expected_n.tolist()
    shares_n = weights_nV.gather(1, tokens_n.unsqueeze(1)).squeeze(1) / cumulative_nV[:, -1]
    assert torch.allclose(logprobs_n.exp(), shares_n)


@pytest.mark.parametrize(("top_p", "temperature"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.2)])
@pytest.mark.parametrize("vocabulary", [300, 2048])
def test_a_random_number_that_rounds_to_1_selects_a_token_that_can_occur(
    vocabulary, top_p, temperature
):
    logits_1V = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0))
    logits_1V[:, -100:] = -200.0  # probability 0 in float32, as rows without a token
    uniform_1, top_p_1 = torch.tensor([1 - 1e-9]), torch.tensor([top_p])
    (token,) = sample_or_argmax(logits_1V, torch.tensor([temperature]), uniform_1, top_p_1).tolist()
    assert uniform_1.item() == 1.0 and token < vocabulary - 100
    assert keep_nucleus(logits_1V / temperature, top_p_1)[0, token].isfinite()


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_a_token_of_weight_0_is_never_sampled_by_blocks(uniform):
    """Each row has one token of weight above 0, at every index of a block and of the last one."""
    vocabulary = 2_000
    weights_nV = torch.eye(vocabulary)
    tokens_n, logprobs_n = draw_tokens(weights_nV.log(), torch.full((vocabulary,), uniform))
    assert (logprobs_n == 0).all()
    assert tokens_n.tolist() == list(range(vocabulary))


# ---- recorded steps ----


def often_ending(model: nn.Module, tokenizer) -> Sampler:
    sampler = Sampler(model, tokenizer, temperature=1.0, max_new_tokens=40, seed=3)
    sampler.eos_ids = list(range(0, 200, 16))
    return sampler


def sampled_by_replay(monkeypatch, sampler: Sampler, prompts: list, **options: bool) -> Rollout:
    """Samples decoded with fixed-size buffers, which have to grow meanwhile."""
    monkeypatch.setattr(cuda_graph, "MIN_WIDTH", 8)
    monkeypatch.setattr(cuda_graph, "can_capture", lambda model, cache: True)
    monkeypatch.setattr(cuda_graph, "CudaGraphDecoder", partial(REPLAY, **options))
    return sampler.sample(prompts, group=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_fixed_size_buffers_give_the_same_samples(policies, family, monkeypatch):
    model, tokenizer = policies[family]
    prompts = prompts_of([3, 12, 1, 7])
    plain = often_ending(model, tokenizer).sample(prompts, group=4)
    sampler = often_ending(model, tokenizer)
    replayed = sampled_by_replay(monkeypatch, sampler, prompts, capture=False)
    lengths_B = plain.mask_completion_BC.sum(dim=1)
    assert lengths_B.median() + 8 < lengths_B.max()  # half finish long before the last
    assert completions(replayed) == completions(plain)
    assert torch.allclose(replayed.logprobs_BC, plain.logprobs_BC, atol=1e-5)
    assert torch.allclose(replayed.values_BC, plain.values_BC, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_captured_steps_give_the_same_samples(policies, family, monkeypatch):
    model, tokenizer = policies[family]
    model.cuda()
    try:
        prompts, sampler = prompts_of([3, 12, 1, 7]), often_ending(model, tokenizer)
        plain = sampled_by_replay(monkeypatch, sampler, prompts, capture=False)
        graphs: list = []
        begin = torch.cuda.CUDAGraph.replay
        monkeypatch.setattr(
            torch.cuda.CUDAGraph, "replay", lambda graph: (graphs.append(graph), begin(graph))
        )
        sampler = often_ending(model, tokenizer)
        replayed = sampled_by_replay(monkeypatch, sampler, prompts, record=True)
        assert len(graphs) > 10 and len(set(map(id, graphs))) > 1
        assert completions(replayed) == completions(plain)
        assert torch.allclose(replayed.logprobs_BC, plain.logprobs_BC, atol=1e-4)
    finally:
        model.cpu()


def test_steps_are_captured_only_on_a_gpu_with_full_attention(tiny_policy):
    cache = preallocated_cache(tiny_policy.config)
    assert not cuda_graph.can_capture(tiny_policy, cache)  # on the CPU
    on_gpu = SimpleNamespace(
        config=copy.copy(tiny_policy.config),
        device=torch.device("cuda"),
        parameters=tiny_policy.parameters,
    )
    assert cuda_graph.can_capture(on_gpu, cache)
    on_gpu.config._attn_implementation = "eager"
    assert not cuda_graph.can_capture(on_gpu, cache)
    on_gpu.config._attn_implementation = "sdpa"
    plain = DynamicCache(config=tiny_policy.config)
    assert not cuda_graph.can_capture(on_gpu, plain)
    assert cuda_graph.can_capture(on_gpu, cache)
