"""V of the advantages from samples and from the verifier, and which tokens have a policy loss."""

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pipeline.chat.prompts import encode_prompts
from pipeline.chat.tags import END_THINK
from pipeline.generation import Sampler
from pipeline.generation.shared_prefix import PrefixEngine
from pipeline.model import Verifier, load_policy, save_policy, verifier_features
from pipeline.ppo.advantages import estimate_advantages, leave_one_out, place_rewards
from pipeline.ppo.groups import ScoredRollout
from pipeline.ppo.metrics import PPOLog
from pipeline.ppo.monte_carlo import MonteCarloValues, continuations
from pipeline.ppo.options import PPOOptions
from pipeline.ppo.rollout import rollout_of_ids, unpad
from pipeline.ppo.token_weights import gather_any_length, high_entropy_mask
from pipeline.ppo.update import token_losses
from pipeline.ppo.values import token_features, verifier_values
from pipeline.records import Problem
from pipeline.scoring import Scores
from pipeline.training.reward_errors import RewardError

ONE_PROCESS = SimpleNamespace(
    process_index=0,
    num_processes=1,
    device=torch.device("cpu"),
    reduce=lambda x, reduction: x,
    gather=lambda x: x,
)
PROBLEM = Problem(question="What is 3 + 4, times 2?", answer="14")
TEXTS = [f"3+4=7\n7*2=14{END_THINK}14", f"3+4=7\n7*2=15{END_THINK}15"]


def log_of() -> PPOLog:
    return PPOLog(defaultdict(list), ONE_PROCESS)


def scored_of(texts, tokenizer, outcomes, steps=None) -> ScoredRollout:
    """Completions of one question with an end token, and their rewards."""
    prompts = encode_prompts(tokenizer, [PROBLEM.prompt] * len(texts))
    ids = [
        [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        for text in texts
    ]
    rollout = rollout_of_ids(prompts, ids, tokenizer.pad_token_id, [tokenizer.eos_token_id])
    return ScoredRollout(rollout, torch.tensor(outcomes), steps, [{"problem": 0}] * len(texts))


class Continuations:
    """Goes on with "7*2=14</think>14" in every second sample, and with nothing in the others."""

    def __init__(self, tokenizer):
        self.right = tokenizer(TEXTS[0].partition("\n")[2], add_special_tokens=False).input_ids
        self.end = tokenizer.eos_token_id
        self.asked: list[tuple[list[int], int]] = []

    def __call__(self, prompts, budgets, samples, seed):
        self.asked += list(zip(prompts, budgets, strict=True))
        return [[*self.right, self.end] if k % 2 else [self.end]
                for _ in prompts for k in range(samples)]  # fmt: skip


def source(tokenizer, go_on, **options) -> MonteCarloValues:
    def score(rows, texts, ids):
        return torch.tensor([float(text.endswith("14")) for text in texts]), None

    given = {"samples": 2, "group": 2, "budget": 64, "seed": 0, **options}
    return MonteCarloValues(
        go_on=go_on,
        score=score,
        tokenizer=tokenizer,
        end_ids=[tokenizer.eos_token_id],
        accelerator=ONE_PROCESS,
        problems=[PROBLEM],
        **given,
    )


# ---- Monte Carlo ----


def test_equal_states_of_a_question_are_sampled_once_within_the_budget(tokenizer):
    scored, go_on = scored_of(TEXTS, tokenizer, [1.0, 0.0]), Continuations(tokenizer)
    log = log_of()
    source(tokenizer, go_on)(scored, torch.ones(2, dtype=torch.bool), 0, log)
    first_line = tokenizer("3+4=7\n", add_special_tokens=False).input_ids
    prompt = encode_prompts(tokenizer, [PROBLEM.prompt])[0]
    asked = [(ids[len(prompt) :], budget) for ids, budget in go_on.asked]
    assert all(ids[: len(prompt)] == prompt for ids, _ in go_on.asked)
    assert len(asked) == 3  # the first line that both share, and each after its </think>
    assert asked[0] == (first_line, 64 - len(first_line))
    assert log.metrics["monte_carlo/states"] == [3.0]


def test_the_log_counts_the_states_and_tokens_of_all_processes(tokenizer):
    scored, log = scored_of(TEXTS, tokenizer, [1.0, 0.0]), log_of()
    values = source(tokenizer, Continuations(tokenizer))
    two = SimpleNamespace(**{**vars(ONE_PROCESS), "reduce": lambda x, reduction: 2 * x})
    for accelerator in (ONE_PROCESS, two):
        replace(values, accelerator=accelerator)(scored, torch.ones(2, dtype=torch.bool), 0, log)
    assert log.metrics["monte_carlo/states"] == [3.0, 6.0]
    one, both = log.metrics["monte_carlo/tokens"]
    assert both == 2 * one


def test_v_is_the_mean_return_of_the_samples_and_constant_within_a_step(tokenizer):
    scored = scored_of(TEXTS, tokenizer, [1.0, 0.0])
    found = source(tokenizer, Continuations(tokenizer))(
        scored, torch.ones(2, dtype=torch.bool), 0, log_of()
    )
    ids = unpad(scored.rollout.completion_ids_BC, scored.rollout.mask_completion_BC)
    line = len(tokenizer("3+4=7\n", add_special_tokens=False).input_ids)
    closed = ids[0].index(tokenizer.convert_tokens_to_ids(END_THINK)) + 1
    assert found.step_ends[0] == [line - 1, closed - 1]
    # The question: the other completion's outcome. After line 1: one of two samples is right.
    # After </think>: the text of both samples ends in 14 for one of the two.
    expected = [0.0] * line + [0.5] * (closed - line) + [0.5] * (len(ids[0]) - closed)
    assert found.values_BC[0, : len(ids[0])].tolist() == expected
    assert found.values_BC[1, :line].tolist() == [1.0] * line
    assert not found.values_BC[~scored.rollout.mask_completion_BC].any()


def test_the_advantage_of_a_step_is_the_change_of_v_and_its_rewards(tokenizer):
    """VinePPO: every token of a step has the same advantage, and they add up along the steps."""
    mask_BC = torch.ones(1, 5, dtype=torch.bool)
    values_BC = torch.tensor([[0.25, 0.25, 0.75, 0.75, 0.5]])
    advantages_BC, returns_BC = estimate_advantages(
        place_rewards(torch.tensor([1.0]), mask_BC),
        torch.zeros(1, 5),
        mask_BC,
        gamma=1.0,
        lam=1.0,
        step_lam=0.0,
        step_ends=[[1, 3]],
        policy_values_BC=values_BC,
    )
    assert advantages_BC[0].tolist() == [0.5, 0.5, -0.25, -0.25, 0.5]
    assert returns_BC[0].tolist() == [1.0] * 5  # the value head's targets are its own


def test_step_rewards_before_a_state_are_no_part_of_its_value(tokenizer):
    def step_rewards(problem, text):
        return [(text.index("7"), 0.5)] + ([(text.index("14"), 0.25)] if "14" in text else [])

    scored = scored_of(TEXTS[:1] * 2, tokenizer, [0.0, 0.0])
    made = source(tokenizer, Continuations(tokenizer), step_rewards=step_rewards)
    found = made(scored, torch.ones(2, dtype=torch.bool), 0, log_of())
    line = found.step_ends[0][0] + 1
    # One of the two samples has "14": outcome 1 and a later step of 0.25; the 0.5 lies behind.
    assert found.values_BC[0, line] == pytest.approx((1.25 + 0.0) / 2)


def test_a_process_without_states_takes_part_in_the_sampling_of_the_others(tokenizer):
    """Where the weights are divided among processes, all of them gather them together."""
    scored, asked = scored_of(TEXTS, tokenizer, [1.0, 0.0]), []

    def go_on(prompts, budgets, samples, seed):
        return asked.append(len(prompts)) or []

    made = source(tokenizer, go_on)
    found = made(scored, torch.zeros(2, dtype=torch.bool), 0, log_of())
    assert asked == [0] and not found.values_BC.any()


def test_continuations_of_no_prompts_are_none(tiny_policy, tokenizer):
    assert continuations(PrefixEngine(tiny_policy, tokenizer), [], [], 2, 0, temperature=1.0) == []


def test_completions_that_do_not_count_are_not_sampled_from(tokenizer):
    go_on = Continuations(tokenizer)
    scored = scored_of(TEXTS, tokenizer, [1.0, 0.0])
    found = source(tokenizer, go_on)(scored, torch.tensor([False, True]), 0, log_of())
    assert len(go_on.asked) == 2 and not found.values_BC[0].any()


def test_step_rewards_that_fail_on_another_process_end_this_one_too(tokenizer):
    scored = scored_of(TEXTS, tokenizer, [1.0, 0.0])
    made = source(tokenizer, Continuations(tokenizer), step_rewards=lambda problem, text: [])

    def reduce(x, reduction):
        return x + 1 if x.ndim == 0 else x  # of the process that failed

    two = SimpleNamespace(**{**vars(ONE_PROCESS), "num_processes": 2, "reduce": reduce})
    with pytest.raises(RewardError, match="on another process"):
        replace(made, accelerator=two)(scored, torch.ones(2, dtype=torch.bool), 0, log_of())


def test_the_value_of_a_question_leaves_out_the_own_return_and_missing_ones():
    totals_B = torch.tensor([1.0, torch.nan, 0.0, 1.0, torch.nan, torch.nan])
    assert leave_one_out(totals_B, 3).tolist() == [0.0, 0.5, 1.0, 0.0, 1.0, 1.0]


def test_a_greedy_continuation_is_the_rest_of_the_greedy_completion(tiny_policy, tokenizer):
    prompts = encode_prompts(tokenizer, ["What is 2 + 3?", "Tom has 3 apples."])
    sampler = Sampler(tiny_policy, tokenizer, temperature=0.0, max_new_tokens=12)
    rollout = sampler.sample(prompts)
    whole = unpad(rollout.completion_ids_BC, rollout.mask_completion_BC)
    engine = PrefixEngine(tiny_policy, tokenizer)
    begun = [prompt + ids[:4] for prompt, ids in zip(prompts, whole, strict=True)]
    found = continuations(engine, begun, [8, 8], 2, 0, temperature=0.0)
    assert found == [ids[4:12] for ids in whole for _ in range(2)]
    first, second = continuations(engine, begun[:1], [8], 2, 0, temperature=1.0)
    assert first != second  # each sample has random numbers of its own


# ---- verifier ----


def test_the_features_of_every_token_are_those_that_the_verifier_is_trained_on(tokenizer):
    scored = scored_of(TEXTS, tokenizer, [1.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    shape = scored.rollout.values_BC.shape
    rollout = replace(
        scored.rollout,
        logprobs_BC=-torch.rand(shape, generator=generator),
        values_BC=torch.rand(shape, generator=generator),
    )
    found_BCF = token_features(rollout)
    for b, ids in enumerate(unpad(rollout.completion_ids_BC, rollout.mask_completion_BC)):
        logprobs, values = rollout.logprobs_BC[b].tolist(), rollout.values_BC[b].tolist()
        for t in range(len(ids)):
            expected = verifier_features(logprobs[:t], values[0], values[t], ended=False)
            assert found_BCF[b, t].tolist() == pytest.approx(expected, abs=1e-5)


def test_v_of_the_verifier_is_the_expected_return_that_is_still_to_come(tokenizer):
    steps = [[(2, 0.5)], [(2, -1.0)]]
    scored = scored_of(TEXTS, tokenizer, [1.0, 0.0], steps)
    verifier = Verifier()
    with torch.no_grad():
        for parameter in verifier.parameters():
            parameter.zero_()  # p = 0.5 everywhere
    values_BC = verifier_values(verifier, scored, right_outcome=1.0, log=log_of())
    # Returns: 1.5 of the right one, -1 of the wrong one; their mean is 0.25.
    assert values_BC[0, :3].tolist() == [0.25] * 3
    assert values_BC[0, 3:5].tolist() == [-0.25] * 2 and values_BC[1, 3].item() == 1.25


# ---- tokens with a policy loss ----


def test_the_tokens_of_highest_entropy_are_those_of_all_processes():
    mask_BC = torch.tensor([[True, True, True, False]])
    entropy_BC = torch.tensor([[0.3, 0.1, 0.2, 9.0]])
    other_N = torch.tensor([0.4, 0.5, 0.6])
    here = high_entropy_mask(entropy_BC, mask_BC, 0.5)
    assert here.tolist() == [[True, False, True, False]]
    everywhere = high_entropy_mask(entropy_BC, mask_BC, 0.5, lambda x: torch.cat([x, other_N]))
    assert not everywhere.any()


def test_tensors_of_different_lengths_are_gathered_without_padding():
    other = torch.tensor([5.0])

    def gather(x):  # another process with a tensor of one number
        mine = x.new_tensor([1]) if x.dtype == torch.long else x.new_full(x.shape, torch.nan)
        if x.dtype != torch.long:
            mine[:1] = other
        return torch.cat([x, mine])

    assert gather_any_length(gather, torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0, 5.0]


def test_tokens_outside_of_the_policy_mask_have_no_policy_gradient():
    mask_BC = torch.ones(1, 3, dtype=torch.bool)
    logprobs_BC = torch.zeros(1, 3, requires_grad=True)
    scores = Scores(logprobs_BC, torch.zeros(1, 3), torch.zeros(1, 3))
    blank_BC = torch.zeros(1, 3)
    inputs = {
        "completion_mask": mask_BC,
        "old_logprobs": blank_BC,
        "old_values": blank_BC,
        "returns": blank_BC,
        "advantages": torch.tensor([[1.0, 2.0, 3.0]]),
        "policy_mask": torch.tensor([[True, False, True]]),
    }
    log = log_of()
    token_losses(scores, inputs, PPOOptions(entropy_coef=0.0), log).sum().backward()
    assert logprobs_BC.grad.tolist() == [[-1.0, 0.0, -3.0]]
    assert log.metrics["loss/policy"] == [pytest.approx(-4 / 3)]  # over all three tokens


# ---- in the trainer ----

OPTIONS = {
    "monte_carlo": {"value_source": "monte_carlo", "monte_carlo_samples": 2, "lam": 1.0,
                    "step_lam": 0.0},
    "verifier": {"value_source": "verifier", "verifier": True, "lam": 0.8},
    "entropy": {"policy_token_share": 0.2},
    "ema": {"ema_decay": 0.9},
}  # fmt: skip


def even_length(completions: list, **columns: object) -> list[float]:
    return [float(len(message["content"]) % 2 == 0) for (message,) in completions]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_resumed_run_ends_as_the_unbroken_one(
    make_ppo, tiny_policy, tokenizer, tmp_path, options
):
    save_policy(tiny_policy, tokenizer, tmp_path / "start")
    ended = []
    for resume_from in (None, str(tmp_path / "ppo" / "checkpoint-3")):
        model, _ = load_policy(tmp_path / "start")
        trainer = make_ppo(
            model, even_length, num_rollouts=2, num_minibatches=2, save_every=1,
            learning_rate=1e-2, **options,
        )  # fmt: skip
        trainer.args.save_steps = trainer.state.save_steps = 1  # also in the middle of a rollout
        trainer.train(resume_from_checkpoint=resume_from)
        average = {} if trainer.ema is None else trainer.ema.state_dict()
        ended.append([p.detach().clone() for p in model.parameters()] + [*average.values()])
    assert all(torch.equal(*pair) for pair in zip(*ended, strict=True))


def test_the_source_of_v_changes_the_policy_and_not_the_targets_of_the_value_head(
    make_ppo, tiny_policy, tokenizer, tmp_path
):
    save_policy(tiny_policy, tokenizer, tmp_path / "start")
    batches = {}
    for name in ("head", "monte_carlo"):
        model, _ = load_policy(tmp_path / "start")
        trainer = make_ppo(model, even_length, value_source=name, normalize_advantages="none")
        trainer.train()
        batches[name] = trainer.rollout_batch
    assert torch.equal(batches["head"]["returns"], batches["monte_carlo"]["returns"])
    assert not torch.equal(batches["head"]["advantages"], batches["monte_carlo"]["advantages"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_source": "verifier"}, "value_source=verifier needs a verifier"),
        ({"value_source": "monte_carlo", "gamma": 0.9}, "without discount, and gamma=0.9"),
        ({"policy_token_share": 0.0}, r"policy_token_share=0.0 must lie in \(0, 1\]"),
        ({"ema_decay": 1.0}, r"ema_decay=1.0 must lie in \(0, 1\)"),
        ({"supervised_mode": "alternate"}, "give supervised_coef=1"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(make_ppo, tiny_policy, options, message):
    with pytest.raises(ValueError, match=message):
        make_ppo(tiny_policy, even_length, **options)
