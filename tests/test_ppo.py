"""PPO on trl's trainer: what the first step must be, what batching must not change, resuming."""

import copy
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pandas
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl.rewards import think_format_reward

from pipeline.chat.prompts import user_message
from pipeline.chat.tags import END_THINK
from pipeline.model import (
    add_reasoning_tokens,
    attach_value_head,
    load_policy,
    load_value_head,
    load_verifier,
    save_policy,
)
from pipeline.model.atomic import write_manifest
from pipeline.ppo import advantages, update
from pipeline.ppo import batch as ppo_batch
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.metrics import mean_advantages
from pipeline.ppo.problem_rows import problem_dataset
from pipeline.ppo.trl_trainer import ReasoningPPOTrainer
from pipeline.records import Problem, Rollout

ROWS = [
    {"question": f"What is {a} + {b}?", "answer": str(a + b), "source": f"row {a}"}
    for a, b in [(2, 3), (4, 5), (7, 1), (3, 3), (8, 2), (6, 9)]
]
PROBLEMS = [Problem(**row) for row in ROWS]
DATA = Dataset.from_list([{"prompt": user_message(row["question"]), **row} for row in ROWS])
OF_PROBLEMS = {"problems": PROBLEMS, "train_dataset": None}


def even_length(completions: list, **columns: Any) -> list[float]:
    """A reward of the kind a user writes: 1.0 for a text of even length."""
    return [float(len(message["content"]) % 2 == 0) for (message,) in completions]


def always(reward: float | None) -> Callable[..., list[float | None]]:
    def constant(completions: list, **columns: Any) -> list[float | None]:
        return [reward] * len(completions)

    return constant


def arguments(folder: Path, **options: Any) -> PPOConfig:
    """Two questions, four completions each, one optimizer step."""
    defaults = {
        "output_dir": str(folder / "ppo"),
        "num_rollouts": 1,
        "questions_per_rollout": 2,
        "completions_per_question": 4,
        "ppo_epochs": 1,
        "num_minibatches": 1,
        "max_completion_length": 12,
        "kl_coef": 0.0,
        "learning_rate": 1e-3,
        "disable_tqdm": True,
    }
    return PPOConfig(**{**defaults, **options})


@pytest.fixture
def make_trainer(tokenizer, tmp_path) -> Callable[..., ReasoningPPOTrainer]:
    """`make_trainer(model, reward, lam=1.0, own={...})`: arguments, and what the trainer takes."""

    def make(
        model: PreTrainedModel, *rewards: Any, own: dict | None = None, **options: Any
    ) -> ReasoningPPOTrainer:
        given = {"train_dataset": DATA, "processing_class": tokenizer, **(own or {})}
        by_name = rewards and isinstance(rewards[0], dict)
        functions = rewards[0] if by_name else list(rewards)
        return ReasoningPPOTrainer(model, functions, arguments(tmp_path, **options), **given)

    return make


@pytest.fixture
def policy(tiny_policy, tokenizer) -> PreTrainedModel:
    """The tiny policy with a higher logit of its end token: completions differ in length."""
    return with_logits(tiny_policy, {tokenizer.eos_token_id: 4.0})


@pytest.fixture
def checkpoint(tiny_policy, tokenizer, tmp_path) -> Path:
    save_policy(tiny_policy, tokenizer, tmp_path / "sft")
    return tmp_path / "sft"


# The module that calls a function.
MODULES = {
    "gae": advantages,
    "kl_penalty": ppo_batch,
    "place_rewards": ppo_batch,
    "policy_loss": update,
}


@pytest.fixture
def spy(monkeypatch) -> Callable[[str], list]:
    """`calls = spy("gae")`: the positional arguments of every call."""

    def watch(name: str) -> list[tuple]:
        module = MODULES[name]
        original, calls = getattr(module, name), []

        def watched(*args: Any, **options: Any) -> Any:
            calls.append(args)
            return original(*args, **options)

        monkeypatch.setattr(module, name, watched)
        return calls

    return watch


def with_logits(model: PreTrainedModel, logits: dict[int, float]) -> PreTrainedModel:
    """The model, with these logits added to those of its own."""
    taste = torch.zeros(model.config.vocab_size)
    taste[list(logits)] = torch.tensor(list(logits.values()))
    model.lm_head.register_forward_hook(lambda module, args, output: output + taste)
    return model


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def logged(trainer: ReasoningPPOTrainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def ratios(calls: list) -> list[torch.Tensor]:
    """The ratios of every micro-batch, from the calls of the policy loss."""
    return [(new_BC - old_BC).detach().exp() for new_BC, old_BC, _ in calls]


# ---- the first step ----


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_in_the_first_minibatch_every_ratio_is_one(make_trainer, policy, spy, temperature):
    calls = spy("policy_loss")
    make_trainer(policy, even_length, temperature=temperature, ppo_epochs=2).train()
    first, second = ratios(calls)
    torch.testing.assert_close(first, torch.ones_like(first), atol=1e-5, rtol=0)
    assert (second - 1).abs().max() > 1e-4


def test_the_first_step_is_not_clipped_and_has_no_kl(make_trainer, policy):
    trainer = make_trainer(policy, even_length)
    trainer.train()
    assert logged(trainer, "clipfrac") == [0.0]
    assert logged(trainer, "approx_kl")[0] < 1e-10


@pytest.mark.parametrize("family", ["gpt2", "opt"])  # by modules, by a function; 10% by default
def test_dropout_is_off_in_the_update_as_in_the_sampling(
    family, make_model, make_tokenizer, tmp_path, spy
):
    tokenizer = make_tokenizer()
    model = make_model(family, vocab_size=len(tokenizer))
    add_reasoning_tokens(model, tokenizer)
    calls = spy("policy_loss")
    ReasoningPPOTrainer(
        attach_value_head(model),
        [even_length],
        arguments(tmp_path),
        train_dataset=DATA,
        processing_class=tokenizer,
    ).train()
    torch.testing.assert_close(ratios(calls)[0], torch.ones(8, 12), atol=1e-5, rtol=0)


def test_the_kl_from_the_reference_starts_at_zero(make_trainer, checkpoint):
    trainer = make_trainer(
        load_policy(checkpoint)[0],
        even_length,
        kl_coef=0.1,
        num_rollouts=2,
        learning_rate=1e-2,
        ppo_epochs=2,
    )
    trainer.train()
    first, second = logged(trainer, "kl")
    assert abs(first) < 1e-6
    assert abs(second) > 1e-4


def test_only_a_kl_penalty_needs_a_reference(make_trainer, checkpoint):
    assert make_trainer(load_policy(checkpoint)[0], even_length, kl_coef=0.0).ref_model is None
    policy, _ = load_policy(checkpoint)
    reference = make_trainer(policy, even_length, kl_coef=0.1).ref_model
    mine = dict(policy.named_parameters())
    for name, parameter in reference.named_parameters():
        assert parameter is not mine[name]
        assert torch.equal(parameter, mine[name])


def test_a_model_that_comes_from_no_folder_has_no_reference(make_trainer, tiny_policy):
    with pytest.raises(ValueError, match=r"kl_coef=0.1 needs the reference.*or give kl_coef=0"):
        make_trainer(tiny_policy, even_length, kl_coef=0.1)


# ---- batching changes nothing ----


def test_gradient_accumulation_changes_nothing(make_trainer, checkpoint):
    start, trained = weights(load_policy(checkpoint)[0]), []
    for micro in ({}, {"micro_batch_size": 1}, {"micro_batch_tokens": 40}):
        policy, _ = load_policy(checkpoint)
        make_trainer(
            policy,
            even_length,
            **micro,
            num_minibatches=2,
            ppo_epochs=2,
            kl_coef=0.1,
            optim="sgd",
            learning_rate=0.5,
        ).train()
        trained.append(weights(policy))
    assert (trained[0] - start).abs().max() > 1e-3
    torch.testing.assert_close(trained[1], trained[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(trained[2], trained[0], atol=1e-6, rtol=0)


def test_completions_of_mixed_length_accumulate_as_well(make_trainer, policy):
    trained, parts = [], []
    for micro in ({}, {"micro_batch_size": 1}, {"micro_batch_tokens": 50}):
        model = copy.deepcopy(policy)
        trainer = make_trainer(model, even_length, optim="sgd", learning_rate=0.5, **micro)
        trainer.train()
        parts.append([len(batch["returns"]) for batch in trainer.minibatches[0]])
        assert len(set(trainer.rollout_batch["completion_mask"].sum(dim=1).tolist())) > 2
        trained.append(weights(model))
    assert parts[:2] == [[8], [1] * 8] and 1 < len(parts[2]) < 8
    torch.testing.assert_close(trained[1], trained[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(trained[2], trained[0], atol=1e-6, rtol=0)


def test_every_epoch_has_all_sequences_once_in_a_new_order(make_trainer, policy):
    trainer = make_trainer(policy, even_length, num_minibatches=2, micro_batch_size=2, ppo_epochs=2)
    make_minibatches, deals = trainer.cut_rollout, []

    def watched(rollout: dict) -> list[list[dict]]:
        minibatches = make_minibatches(rollout)
        deals.append([micro for part in minibatches for micro in part])
        return minibatches

    trainer.cut_rollout = watched
    trainer.train()
    first, second = (torch.cat([b["old_logprobs"] for b in batches]) for batches in deals)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(dim=0).values, second.sort(dim=0).values)
    for batches in deals:
        assert [len(batch["returns"]) for batch in batches] == [2, 2, 2, 2]


def test_each_micro_batch_has_the_token_count_of_its_minibatch(make_trainer, policy):
    trainer = make_trainer(policy, even_length, num_minibatches=2, micro_batch_size=2)
    trainer.train()
    batches = [micro for part in trainer.minibatches for micro in part]
    tokens = [batch["completion_mask"].sum().item() for batch in batches]
    assert [batch["minibatch_tokens"].item() for batch in batches] == [
        *[tokens[0] + tokens[1]] * 2,
        *[tokens[2] + tokens[3]] * 2,
    ]
    assert tokens[0] <= tokens[1]  # rows of like length share a micro-batch


# ---- rewards ----


def test_the_reward_lands_on_the_real_last_token(make_trainer, policy, spy):
    calls = spy("gae")
    trainer = make_trainer(policy, always(7.0))
    trainer.train()
    lengths_B = trainer.rollout_batch["completion_mask"].sum(dim=1)
    assert len(set(lengths_B.tolist())) > 2
    expected_BC = torch.zeros(trainer.rollout_batch["completion_mask"].shape)
    expected_BC[torch.arange(8), lengths_B - 1] = 7.0
    assert torch.equal(calls[0][0], expected_BC)


def test_the_kl_penalty_is_subtracted_from_the_reward_of_every_token(make_trainer, checkpoint, spy):
    penalties, calls = spy("kl_penalty"), spy("gae")
    trainer = make_trainer(
        load_policy(checkpoint)[0], always(1.0), kl_coef=0.5, num_rollouts=2, learning_rate=1e-2
    )
    trainer.train()
    logprobs_BC, ref_logprobs_BC, mask_BC = penalties[1]
    rest_BC = calls[1][0] + 0.5 * (logprobs_BC - ref_logprobs_BC) * mask_BC
    torch.testing.assert_close(rest_BC.sum(dim=1), torch.ones(8))


def test_the_advantages_of_a_rollout_are_standardized(make_trainer, policy):
    trainer = make_trainer(policy, even_length)
    trainer.train()
    advantages = trainer.rollout_batch["advantages"][trainer.rollout_batch["completion_mask"]]
    assert abs(advantages.mean()) < 1e-5
    assert abs(advantages.var(correction=0) - 1) < 1e-3


def test_the_rloo_baseline_changes_the_advantages_and_not_the_returns(
    make_trainer, tiny_policy, spy
):
    returns, rewards = [], []
    for rloo_baseline in (False, True):
        calls = spy("gae")
        trainer = make_trainer(copy.deepcopy(tiny_policy), even_length, rloo_baseline=rloo_baseline)
        trainer.train()
        returns.append(trainer.rollout_batch["returns"])
        rewards.append([rewards_BC.sum(dim=1) for rewards_BC, *_ in calls])
    assert torch.equal(*returns)
    outcomes_B, centred_B = rewards[1]
    # Against its three siblings: 4/3 of the distance from the mean of its group, V cancels out.
    group_Q1 = outcomes_B.view(2, 4).mean(dim=1, keepdim=True)
    values_B = trainer.rollout_batch["old_values"][:, 0]
    expected_B = (4 / 3 * (outcomes_B.view(2, 4) - group_Q1)).flatten() + values_B
    torch.testing.assert_close(centred_B, expected_B)


def test_completions_without_a_reward_have_no_part_in_the_rloo_baseline(make_trainer, policy):
    scored = [1.0, None, 0.0, None, None, None, None, None]
    trainer = make_trainer(
        policy, lambda completions, **columns: scored, rloo_baseline=True, ppo_epochs=2
    )
    trainer.train()
    assert weights(policy).isfinite().all()
    assert trainer.rollout_batch["advantages"][[1, 3, 4, 5, 6, 7]].abs().sum() == 0


def test_the_value_head_learns_a_constant_reward(make_trainer, policy):
    trainer = make_trainer(
        policy, always(1.0), num_rollouts=15, value_clip=None, value_learning_rate=3e-2
    )
    trainer.train()
    losses, values = logged(trainer, "loss/value"), logged(trainer, "value")
    assert losses[-1] < 0.1 * losses[0]
    assert abs(values[-1] - 1.0) < 0.2


def test_a_value_head_that_sft_has_frozen_is_trained(make_trainer, policy):
    policy.value_head.requires_grad_(False)
    before = copy.deepcopy(policy.value_head.state_dict())
    make_trainer(policy, even_length).train()
    assert not torch.equal(policy.value_head.last.weight, before["last.weight"])


def test_a_detached_value_head_learns_and_leaves_the_policy_alone(make_trainer, policy):
    start = copy.deepcopy(policy.state_dict())
    ends = []
    for options in ({"value_coef": 0.0}, {"value_coef": 0.5, "value_detach": True}):
        policy.load_state_dict(start)
        make_trainer(
            policy, even_length, num_rollouts=2, lam=1.0, rloo_baseline=True, max_grad_norm=1e9,
            value_source="none", learning_rate=1e-3, value_learning_rate=1e-2, **options,
        ).train()  # fmt: skip
        ends.append({name: x.clone() for name, x in policy.state_dict().items()})
    assert ends[0].keys() == ends[1].keys()
    changed = {name for name, x in ends[0].items() if not torch.equal(x, ends[1][name])}
    assert changed
    assert changed == {"value_head.last.weight", "value_head.last.bias"}
    assert not torch.equal(ends[0]["lm_head.weight"], start["lm_head.weight"])


def test_the_policy_learns_what_is_rewarded(make_trainer, policy):
    def starts_with_its_end(completions: list, **columns: Any) -> list[float]:
        return [float(message["content"] == "") for (message,) in completions]

    trainer = make_trainer(
        policy,
        starts_with_its_end,
        num_rollouts=25,
        completions_per_question=8,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
    )
    trainer.train()
    rewards = logged(trainer, "reward")
    # One in seven does by itself: e^4 against 319 others.
    assert sum(rewards[:5]) / 5 < 0.4
    assert sum(rewards[-5:]) / 5 > 0.8


def test_a_completion_without_a_reward_is_left_out_of_the_update(make_trainer, policy):
    def scored(completions: list, source: list[str], **columns: Any) -> list[float | None]:
        return [1.0 if name == source[0] else None for name in source]

    trainer = make_trainer(policy, scored, ppo_epochs=2, micro_batch_size=1)
    trainer.train()
    took_part_B = trainer.rollout_batch["completion_mask"].any(dim=1)
    assert took_part_B.tolist() == [True] * 4 + [False] * 4
    assert trainer.rollout_batch["advantages"][4:].abs().sum() == 0
    assert logged(trainer, "reward") == [1.0]
    assert weights(policy).isfinite().all()


def test_a_rollout_without_rewards_changes_nothing(make_trainer, policy):
    before = weights(policy)
    make_trainer(policy, always(None), num_minibatches=2, entropy_coef=0.1).train()
    assert torch.equal(weights(policy), before)


def test_weighted_rewards_add_up_without_those_that_do_not_apply(make_trainer, policy, spy):
    calls = spy("place_rewards")
    make_trainer(
        policy, always(1.0), always(3.0), always(None), reward_weights=[0.5, 2.0, 1.0]
    ).train()
    assert calls[0][0].tolist() == [6.5] * 8  # 0.5 * 1 + 2 * 3


def test_step_rewards_are_on_the_token_of_the_step(make_trainer, policy, tokenizer, spy):
    calls, asked = spy("gae"), []
    pieces = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    broken = [token for token, piece in enumerate(pieces) if "\ufffd" in piece]
    with_logits(policy, dict.fromkeys(broken, -1e9))

    def second_character(problem: Problem, text: str) -> list[tuple[int, float]]:
        asked.append(problem)
        return [(1, 0.25)] if len(text) > 1 else []

    trainer = make_trainer(
        policy, always(1.0), own={**OF_PROBLEMS, "step_rewards": second_character}
    )
    trainer.train()
    assert len(asked) == 8 and set(asked) <= set(PROBLEMS)
    ids_BC, mask_BC = (
        trainer.rollout_batch["completion_ids"],
        trainer.rollout_batch["completion_mask"],
    )
    for rewards, ids, mask in zip(calls[0][0], ids_BC, mask_BC, strict=True):
        expected, text = torch.zeros(len(ids)), ""
        expected[mask.sum() - 1] = 1.0
        for token, index in enumerate(ids[mask].tolist()):
            if len(text) < 2 <= len(text + pieces[index]) and index != tokenizer.eos_token_id:
                expected[token] += 0.25
            text += pieces[index]
        assert torch.equal(rewards, expected), text
    assert logged(trainer, "reward/steps")[0] > 0


def test_step_rewards_alone_train_the_policy(make_trainer, policy, spy):
    calls = spy("gae")
    own = {"step_rewards": lambda problem, text: [(0, 0.5)] if text else [], **OF_PROBLEMS}
    before = weights(policy)
    make_trainer(policy, own=own).train()
    assert 0.5 in calls[0][0].sum(dim=1).tolist()
    assert not torch.equal(weights(policy), before)


def test_a_completion_whose_steps_have_no_verdict_does_not_change_the_weights(make_trainer, policy):
    own = {"step_rewards": lambda problem, text: None, **OF_PROBLEMS}
    before = weights(policy)
    trainer = make_trainer(policy, own=own, weight_decay=0.1)
    trainer.train()
    assert torch.equal(weights(policy), before)
    assert logged(trainer, "completions/no_reward") == [1.0]


def test_rewards_by_name_get_the_problems_and_the_texts_themselves(make_trainer, policy, spy):
    calls, seen = spy("place_rewards"), []

    def length(problem: Problem, text: str) -> float:
        seen.append((problem, text))
        return float(len(text))

    def sometimes(problem: Problem, text: str) -> float | None:
        return None if problem is PROBLEMS[0] else 10.0

    trainer = make_trainer(
        policy,
        {"package.module:length": length, "sometimes": sometimes},
        reward_weights=[1.0, 0.5],
        own=OF_PROBLEMS,
        questions_per_rollout=6,
    )
    trainer.train()
    assert len(seen) == 24
    asked = [problem for problem, _ in seen[::4]]
    assert sorted(map(id, asked)) == sorted(map(id, PROBLEMS))  # the very objects
    assert [p for p, _ in seen] == [p for p in asked for _ in range(4)]
    expected = [len(text) + 5.0 * (problem is not PROBLEMS[0]) for problem, text in seen]
    assert calls[0][0].tolist() == expected
    assert logged(trainer, "reward/length") == [pytest.approx(sum(len(t) for _, t in seen) / 24)]
    assert logged(trainer, "reward/sometimes") == [10.0]  # of those it applies to


def test_rewards_by_name_train_as_the_same_function_of_trl(make_trainer, policy):
    def named(problem: Problem, text: str) -> float:
        return float(len(text) % 2 == 0)

    trained = []
    for reward, own in ((even_length, {}), ({"even_length": named}, OF_PROBLEMS)):
        model = copy.deepcopy(policy)
        make_trainer(model, reward, num_rollouts=2, own=own).train()
        trained.append(weights(model))
    assert torch.equal(*trained)


def test_functions_of_trl_read_the_fields_of_problems_as_columns(make_trainer, policy):
    seen = {}

    def look(completions: list, **columns: Any) -> list[float]:
        seen.update(columns)
        return [0.0] * len(completions)

    make_trainer(policy, look, own=OF_PROBLEMS).train()
    assert [PROBLEMS[index].answer for index in seen["problem"]] == seen["answer"]
    assert [PROBLEMS[index].source for index in seen["problem"]] == seen["source"]


def test_problems_are_evaluated_apart_from_those_that_are_trained_on(make_trainer, policy):
    others = [Problem(question="What is 1 + 1?", answer="2"), Problem(question="9?", answer="9")]
    seen = set()

    def look(problem: Problem, text: str) -> float:
        seen.add(problem)
        return float(problem in others)

    own = {
        "problems": [*PROBLEMS, *others],
        "train_dataset": problem_dataset(PROBLEMS),
        "eval_dataset": problem_dataset(others, first=len(PROBLEMS)),
    }
    trainer = make_trainer(policy, {"look": look}, own=own)
    assert trainer.evaluate()["eval_reward"] == 1.0
    assert seen == set(others)


def test_a_reward_by_name_that_is_not_finite_leaves_the_rollout_out(make_trainer, policy, capsys):
    before = weights(policy)
    bad = {"bad": lambda problem, text: float("nan")}
    trainer = make_trainer(policy, bad, own=OF_PROBLEMS)
    trainer.train()
    assert torch.equal(weights(policy), before)
    assert trainer.nonfinite.total == 1
    assert "reward bad = nan" in capsys.readouterr().out


def test_vllm_samples_and_the_policy_scores(make_trainer, policy, tokenizer):
    end = tokenizer.eos_token_id

    class Engine:
        synced = 0
        calls: ClassVar[list] = []

        def sync_weights(self) -> None:
            self.synced += 1

        def generate(self, prompts: list, images: Any, num_generations: int) -> tuple:
            self.calls.append((prompts, num_generations))
            ids = [[100 + i, end] if i % 2 else [100 + i, 101] for i in range(len(prompts))]
            return prompts, ids, None, None

    trainer = make_trainer(policy, even_length, num_rollouts=2, max_completion_length=2)
    trainer.policy_sampler.vllm = Engine()
    trainer.train()
    assert trainer.policy_sampler.vllm.synced == 2  # once for each version of the weights
    prompts, group = Engine.calls[0]
    assert group == 4 and prompts[:4] == [prompts[0]] * 4 and len(prompts) == 8
    batch = trainer.rollout_batch
    assert batch["completion_ids"].tolist() == [[100 + i, end if i % 2 else 101] for i in range(8)]
    assert logged(trainer, "completions/truncated") == [0.5, 0.5]
    assert logged(trainer, "approx_kl")[0] < 1e-10  # scored by the policy that is trained
    assert batch["old_values"].abs().min() > 0


def test_a_reward_function_of_trl_works(make_trainer, policy):
    trainer = make_trainer(policy, think_format_reward)
    trainer.train()
    assert logged(trainer, "reward/think_format_reward") == [0.0]


def test_reward_functions_see_the_conversation_and_the_columns(make_trainer, policy):
    seen = {}

    def look(prompts: list, completions: list, **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.0] * len(prompts)

    make_trainer(policy, look).train()
    assert [p[0]["content"] for p in seen["prompts"]] == seen["question"]
    assert len(set(seen["question"])) == 2 and len(seen["answer"]) == 8
    assert {c[0]["role"] for c in seen["completions"]} == {"assistant"}
    assert not any("<eos>" in c[0]["content"] for c in seen["completions"])


def test_no_declared_end_token_is_a_part_of_the_text(make_trainer, tiny_policy, tokenizer):
    turn_end = tokenizer.convert_tokens_to_ids("<|user|>")
    tiny_policy.generation_config.eos_token_id = [tokenizer.eos_token_id, turn_end]
    with_logits(tiny_policy, {turn_end: 30.0})
    texts = []

    def look(completions: list, **columns: Any) -> list[float]:
        texts.extend(message["content"] for (message,) in completions)
        return [0.0] * len(completions)

    make_trainer(tiny_policy, look).train()
    assert texts == [""] * 8


# ---- value head ----


@pytest.mark.parametrize("options", [{}, {"muon": True}, {"micro_batch_size": 2}], ids=str)
def test_the_warm_up_trains_the_value_head_and_nothing_else(make_trainer, policy, options):
    before = copy.deepcopy(policy)
    trainer = make_trainer(
        policy, even_length, value_warmup=1, num_rollouts=1, weight_decay=0.1, **options
    )
    trainer.train()
    for (name, a), b in zip(policy.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b) != name.startswith("value_head."), name


def test_after_the_warm_up_everything_is_trained(make_trainer, policy):
    before = copy.deepcopy(policy)
    make_trainer(policy, even_length, value_warmup=1, num_rollouts=2).train()
    for (name, a), b in zip(policy.named_parameters(), before.parameters(), strict=True):
        assert not torch.equal(a, b), name


@pytest.mark.parametrize("muon", [False, True])
def test_the_value_head_has_its_own_learning_rate(make_trainer, policy, muon):
    before = policy.value_head.last.weight.detach().clone()
    make_trainer(policy, even_length, value_learning_rate=0.1, muon=muon).train()
    moved = (policy.value_head.last.weight - before).abs()
    # The first step of AdamW is the rate itself.
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-2, atol=0)


def test_adapters_and_the_value_head_are_trained_and_the_rest_is_the_reference(
    make_trainer, policy, tmp_path
):
    before = copy.deepcopy(policy)
    trainer = make_trainer(
        policy,
        even_length,
        num_rollouts=2,
        kl_coef=0.1,
        learning_rate=1e-2,
        save_every=2,
        own={"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])},
    )
    trainer.train()
    first, second = logged(trainer, "kl")
    assert abs(first) < 1e-6 and abs(second) > 1e-5
    assert not torch.equal(policy.value_head.last.weight, before.value_head.last.weight)
    assert torch.equal(policy.model.embed_tokens.weight, before.model.embed_tokens.weight)
    saved = tmp_path / "ppo" / "checkpoint-2"
    assert (saved / "adapter_model.safetensors").exists()
    assert torch.equal(load_value_head(saved).last.weight, policy.value_head.last.weight)


# ---- saving and resuming ----


def test_a_saved_checkpoint_loads_without_warnings(make_trainer, checkpoint, tmp_path, caplog):
    policy, _ = load_policy(checkpoint)
    make_trainer(policy, even_length, save_every=1).train()
    saved = tmp_path / "ppo" / "checkpoint-1"
    logging.getLogger("transformers").propagate = True
    caplog.clear()
    loaded, _ = load_policy(saved)
    plain = AutoModelForCausalLM.from_pretrained(saved)
    assert [record.getMessage() for record in caplog.records] == []
    assert torch.equal(weights(loaded), weights(policy))
    ids = torch.tensor([[100, 101, 102]])
    torch.testing.assert_close(plain(ids).logits, policy.eval()(ids).logits)


RESUMED = {
    "one epoch of data": {"questions_per_rollout": 1, "num_rollouts": 4},
    "two epochs of data": {"questions_per_rollout": 3, "num_rollouts": 4},
    "muon": {"muon": True, "num_rollouts": 2, "num_minibatches": 2, "micro_batch_size": 2},
    "a rate for the value head": {"value_learning_rate": 1e-2, "num_rollouts": 2},
    "evaluation": {"eval_strategy": "steps", "num_rollouts": 2},
}


@pytest.mark.parametrize("options", RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(
    make_trainer, checkpoint, tmp_path, options
):
    at = options["num_rollouts"] - 1
    # A rollout has ppo_epochs x num_minibatches steps.
    saved = tmp_path / "ppo" / f"checkpoint-{at * 2 * options.get('num_minibatches', 1)}"
    ended = []
    for resume_from in (None, str(saved)):
        policy, _ = load_policy(checkpoint)
        trainer = make_trainer(
            policy,
            even_length,
            own={"eval_dataset": DATA},
            **{"save_every": at, "ppo_epochs": 2, "kl_coef": 0.1, "learning_rate": 1e-2, **options},
        )
        trainer.train(resume_from_checkpoint=resume_from)
        ended.append((weights(policy), logged(trainer, "reward")[-1]))
    assert trainer.state.global_step == trainer.args.max_steps
    assert ended[0][1] == ended[1][1]
    torch.testing.assert_close(ended[0][0], ended[1][0], atol=1e-6, rtol=0)


def test_adapters_of_the_value_head_are_refused(make_trainer, checkpoint):
    policy, _ = load_policy(checkpoint)
    config = LoraConfig(r=2, target_modules="all-linear")
    with pytest.raises(ValueError, match="exclude_modules"):
        make_trainer(policy, even_length, own={"peft_config": config})


def test_resuming_warns_of_nothing(make_trainer, checkpoint, tmp_path, caplog):
    make_trainer(load_policy(checkpoint)[0], even_length, save_every=1, num_rollouts=2).train()
    trainer = make_trainer(load_policy(checkpoint)[0], even_length, num_rollouts=2, save_every=1)
    logging.getLogger("transformers").propagate = True
    caplog.clear()
    trainer.train(resume_from_checkpoint=str(tmp_path / "ppo" / "checkpoint-1"))
    assert [record.getMessage() for record in caplog.records] == []


def test_a_checkpoint_without_a_value_head_cannot_be_resumed(make_trainer, checkpoint, tmp_path):
    make_trainer(load_policy(checkpoint)[0], even_length, save_every=1).train()
    (tmp_path / "ppo" / "checkpoint-1" / "value_head.safetensors").unlink()
    write_manifest(tmp_path / "ppo" / "checkpoint-1")  # whole, as far as it knows
    trainer = make_trainer(load_policy(checkpoint)[0], even_length, num_rollouts=2)
    with pytest.raises(ValueError, match="checkpoint-1 has no value head"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "ppo" / "checkpoint-1"))


def test_every_epoch_has_all_questions_in_a_new_order(make_trainer, policy):
    trainer = make_trainer(policy, even_length, num_rollouts=6)
    order, epochs = trainer.train_sampler(), []
    for step in (0, 2, 3, 5):  # three rollouts of two questions and one step make an epoch
        trainer.state.global_step = step
        epochs.append(list(order))
    assert epochs[0] == epochs[1] and epochs[2] == epochs[3]
    assert epochs[0] != epochs[2]
    assert all(sorted(set(epoch)) == list(range(6)) for epoch in epochs)


def test_the_seed_decides_the_run(make_trainer, tiny_policy):
    def run(seed: int) -> torch.Tensor:
        policy = copy.deepcopy(tiny_policy)
        make_trainer(policy, even_length, seed=seed).train()
        return weights(policy)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_two_rewards_with_one_function_name_are_logged_apart(make_trainer, policy):
    rewards = {
        "correctness": lambda problem, text: 0.25,
        "own:correctness": lambda problem, text: 0.75,
        "own:steps": lambda problem, text: 0.5,  # reward/steps is that of the steps
        "own:short": lambda problem, text: 1.0,
    }
    trainer = make_trainer(policy, rewards, own=OF_PROBLEMS, log_completions=True)
    trainer.train()
    names = {"correctness": 0.25, "own:correctness": 0.75, "own:steps": 0.5, "short": 1.0}
    assert {name: logged(trainer, f"reward/{name}") for name in names} == {
        name: [reward] for name, reward in names.items()
    }
    assert not logged(trainer, "reward/steps")


def test_rewards_can_log_metrics_and_columns_of_the_first_completions(
    make_trainer, policy, tmp_path
):
    calls = []

    def reward(completions, log_extra, log_metric, **columns):
        calls.append(len(completions))
        log_extra("call", [len(calls)] * len(completions))
        log_metric("calls", len(calls))
        return [0.0] * len(completions)  # no variance: the groups are sampled again

    trainer = make_trainer(
        policy, reward, zero_variance_groups="resample", resample_tries=1, log_completions=True
    )
    trainer.train()
    assert len(calls) == 2 and logged(trainer, "calls") == [1.0]
    (table,) = (tmp_path / "ppo" / "completions").glob("*.parquet")
    assert pandas.read_parquet(table)["call"].tolist() == [1] * 8


# ---- evaluation ----


def test_evaluation_does_not_change_the_training(make_trainer, tiny_policy):
    trained = []
    for strategy in ("no", "steps"):
        policy = copy.deepcopy(tiny_policy)
        trainer = make_trainer(
            policy,
            even_length,
            num_rollouts=3,
            eval_strategy=strategy,
            eval_steps=1,
            own={"eval_dataset": DATA},
        )
        trainer.train()
        trained.append(weights(policy))
    assert torch.equal(*trained)
    assert len(logged(trainer, "eval_reward")) == 3
    assert all(loss == loss for loss in logged(trainer, "eval_loss"))


@pytest.mark.parametrize("adapters", [None, LoraConfig(r=2, target_modules=["q_proj"])])
def test_the_best_model_has_its_value_head_and_its_verifier(
    make_trainer, checkpoint, tmp_path, adapters
):
    policy, _ = load_policy(checkpoint)
    trainer = make_trainer(
        policy,
        even_length,
        own={"eval_dataset": DATA, "peft_config": adapters},
        num_rollouts=3,
        value_learning_rate=0.1,
        verifier=True,
        right_outcome=0.5,
        eval_strategy="steps",
        eval_steps=1,
        save_every=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_completions/mean_length",
    )
    lengths = iter([3.0, 2.0, 1.0])  # the first is the best
    evaluate = trainer.evaluate
    trainer.evaluate = lambda *args, **options: (
        evaluate(*args, **options) | {"eval_completions/mean_length": next(lengths)}
    )
    trainer.train()
    best = tmp_path / "ppo" / "checkpoint-1"
    assert trainer.state.best_model_checkpoint == str(best)
    for part, loaded in ((policy.value_head, load_value_head), (policy.verifier, load_verifier)):
        for name, weight in loaded(best).state_dict().items():
            assert torch.equal(part.state_dict()[name], weight), name


def test_the_same_policy_is_evaluated_with_the_same_samples(make_trainer, tiny_policy):
    trainer = make_trainer(tiny_policy, even_length, own={"eval_dataset": DATA})
    trainer.train()
    seen = []
    trainer.reward_funcs[0] = lambda completions, **columns: (
        seen.append(completions) or [0.0] * len(completions)
    )
    for _ in range(2):  # without a training step between them
        trainer.evaluate()
    assert seen[0] == seen[1]


def test_completions_can_be_logged(make_trainer, policy, tmp_path):
    trainer = make_trainer(policy, even_length, log_completions=True)
    trainer.train()
    (file,) = (tmp_path / "ppo" / "completions").iterdir()
    advantages = pandas.read_parquet(file)["advantage"].tolist()
    batch = trainer.rollout_batch
    for found, advantages_C, mask_C in zip(
        advantages, batch["advantages"], batch["completion_mask"], strict=True
    ):
        assert found == pytest.approx(advantages_C[mask_C].mean().item(), rel=1e-5)


def test_the_table_has_no_advantage_of_completions_that_are_not_trained_on():
    rollout = Rollout(
        prompt_ids_BP=torch.ones(4, 1),
        mask_prompt_BP=torch.ones(4, 1, dtype=torch.bool),
        completion_ids_BC=torch.tensor([[5, 1], [6, 1], [1, 0], [7, 1]]),
        mask_completion_BC=torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]]).bool(),
        logprobs_BC=torch.zeros(4, 2),
        values_BC=torch.zeros(4, 2),
        truncated_B=torch.zeros(4, dtype=torch.bool),
    )
    batch = {  # the second is left out, and another one has replaced the last
        "completion_ids": torch.tensor([[5, 1, 0], [6, 1, 0], [1, 0, 0], [8, 8, 1]]),
        "completion_mask": torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]]).bool(),
        "advantages": torch.tensor([[1.0, 2.0, 0.0], [0.0] * 3, [-1.0, 0.0, 0.0], [3.0] * 3]),
    }
    found = mean_advantages(batch, rollout)
    assert found[0] == 1.5 and found[2] == -1.0
    assert math.isnan(found[1]) and math.isnan(found[3])


# ---- what is refused ----


def test_a_model_without_a_value_head_is_refused(make_trainer, make_model, tokenizer):
    model = make_model("llama", vocab_size=len(tokenizer))
    with pytest.raises(ValueError, match="has no value head; call attach_value_head"):
        make_trainer(model, even_length)


def test_too_few_problems_are_refused(make_trainer, tiny_policy):
    with pytest.raises(ValueError, match="questions_per_rollout=7 is more than the 6 problems"):
        make_trainer(tiny_policy, even_length, questions_per_rollout=7)


def test_step_rewards_and_rewards_by_name_without_problems_are_refused(make_trainer, tiny_policy):
    with pytest.raises(ValueError, match="step_rewards reads Problems; give problems="):
        make_trainer(tiny_policy, even_length, own={"step_rewards": lambda *texts: []})
    with pytest.raises(ValueError, match="a reward function by name reads Problems; give problems"):
        make_trainer(tiny_policy, {"one": lambda problem, text: 1.0})


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_a_data_set_beside_problems_has_their_indices(make_trainer, tiny_policy, name):
    with pytest.raises(ValueError, match=f"{name} beside problems needs the column 'problem'"):
        make_trainer(tiny_policy, even_length, own={**OF_PROBLEMS, name: DATA})


def test_what_ppo_would_ignore_is_refused(make_trainer, tiny_policy):
    with pytest.raises(ValueError, match="tools belongs to GRPOTrainer and does nothing in PPO"):
        make_trainer(tiny_policy, even_length, own={"tools": [print]})


def test_a_prompt_may_be_plain_text(make_trainer, policy):
    plain = Dataset.from_list([{"prompt": row["question"], **row} for row in ROWS])
    trained = []
    for data in (plain, DATA):
        model = copy.deepcopy(policy)
        make_trainer(model, even_length, own={"train_dataset": data}).train()
        trained.append(weights(model))
    assert torch.equal(*trained)


def test_a_prompt_of_several_messages_is_asked_whole(make_trainer, policy, monkeypatch):
    messages = [{"role": "system", "content": "Be brief."}, *user_message("What is 2 + 3?")]
    data = Dataset.from_list([{"prompt": messages}] * 4)
    trainer = make_trainer(policy, even_length, own={"train_dataset": data})
    asked = []
    sample = trainer.collector.sample

    def look(questions: list, *rest: Any) -> Any:
        asked.extend(questions)
        return sample(questions, *rest)

    monkeypatch.setattr(trainer.collector, "sample", look)
    trainer.train()
    assert asked and all(question == messages for question in asked)


def test_a_prompt_that_does_not_end_with_the_user_is_refused(make_trainer, policy):
    messages = [*user_message("What is 2 + 3?"), {"role": "assistant", "content": "5"}]
    data = Dataset.from_list([{"prompt": messages}] * 4)
    trainer = make_trainer(policy, even_length, own={"train_dataset": data})
    with pytest.raises(ValueError, match="messages user, assistant"):
        trainer.train()


def test_the_text_of_a_completion_keeps_its_thought(make_trainer, tiny_policy, tokenizer):
    with_logits(tiny_policy, {tokenizer.convert_tokens_to_ids(END_THINK): 30.0})
    texts = []

    def look(completions: list, **columns: Any) -> list[float]:
        texts.extend(message["content"] for (message,) in completions)
        return [0.0] * len(completions)

    make_trainer(tiny_policy, look, max_completion_length=2).train()
    assert set(texts) == {END_THINK * 2}
