"""A value network with its own trunk: whose V is used, what is trained, and exact resume."""

import copy

import pytest
import torch

from pipeline.model import save_policy
from pipeline.ppo.groups import ScoredRollout
from pipeline.ppo.value_model import VALUE_MODEL_FILE, future_rewards
from pipeline.records import Rollout

OPTIONS = {"value_source": "model", "ppo_epochs": 2, "num_minibatches": 2}


def reward(completions, **_):
    return [float(len(row[0]["content"]) % 3) for row in completions]


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_returns_are_the_rewards_that_are_still_to_come():
    mask = torch.tensor([[True, True, True], [True, True, False]])
    blank = torch.zeros(2, 1, dtype=torch.long)
    zeros = torch.zeros(2, 3)
    rollout = Rollout(
        prompt_ids_BP=blank,
        mask_prompt_BP=blank.bool(),
        completion_ids_BC=zeros.long(),
        mask_completion_BC=mask,
        logprobs_BC=zeros,
        values_BC=zeros,
        truncated_B=torch.zeros(2, dtype=torch.bool),
    )
    scored = ScoredRollout(rollout, torch.tensor([1.0, 0.5]), [[(0, 0.25)], [(1, 2.0)]])
    expected = torch.tensor([[1.25, 1.0, 1.0], [2.5, 2.5, 0.0]])
    torch.testing.assert_close(future_rewards(scored), expected)


def test_the_advantages_use_its_values_and_both_networks_train_apart(policy, make_ppo):
    trainer = make_ppo(policy, reward, learning_rate=1e-2, **OPTIONS)
    value = trainer.value_model
    assert not {id(p) for p in value.model.parameters()} & {id(p) for p in policy.parameters()}
    torch.nn.init.normal_(value.model.value_head.last.weight, std=1.0)
    before, seen = weights(value.model), []
    original = type(value).__call__

    def keep(scored, counts_B, step, log):
        found = original(value, scored, counts_B, step, log)
        seen.append((scored.rollout.values_BC, found.values_BC))
        return found

    trainer.collector.values = keep
    trainer.train()
    head, own = seen[0]
    assert not torch.allclose(head, own, atol=1e-2)
    after = weights(value.model)
    trunk = [name for name in after if "layers" in name and "reasoning" not in name]
    assert all(not torch.equal(before[name], after[name]) for name in trunk)
    rows = [row for row in trainer.state.log_history if "value_model/loss" in row]
    assert rows and rows[0]["value_model/loss"] > 0


def test_it_learns_the_returns(policy, make_ppo):
    trainer = make_ppo(
        policy,
        lambda completions, **_: [1.0] * len(completions),
        value_source="model",
        num_rollouts=8,
        value_learning_rate=1e-2,
        value_clip=None,
        ppo_epochs=4,
    )
    trainer.train()
    losses = [r["value_model/loss"] for r in trainer.state.log_history if "value_model/loss" in r]
    assert losses[-1] < 0.1 * losses[0]


def test_a_resumed_run_ends_with_the_same_bits(policy, make_ppo, tmp_path):
    def run(model, **more):
        trainer = make_ppo(
            copy.deepcopy(model),
            reward,
            num_rollouts=2,
            save_every=1,
            learning_rate=1e-2,
            **OPTIONS,
        )
        trainer.train(**more)
        return trainer

    once = run(policy)
    first = min(tmp_path.glob("ppo/checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert (first / VALUE_MODEL_FILE).is_file()
    again = run(policy, resume_from_checkpoint=str(first))
    for a, b in ((once.value_model.model, again.value_model.model), (once.model, again.model)):
        for (name, p), (_, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
            assert torch.equal(p, q), name


def test_it_starts_from_a_folder_whose_vocabulary_is_the_policy_s(
    policy, tiny_policy, tokenizer, make_model, make_ppo, tmp_path
):
    other = make_model("qwen3", vocab_size=tiny_policy.config.vocab_size)
    save_policy(other, tokenizer, tmp_path / "value")
    trainer = make_ppo(policy, reward, value_source="model", value_model=str(tmp_path / "value"))
    own = trainer.value_model.model.model.embed_tokens.weight
    assert torch.equal(own, other.model.embed_tokens.weight)
    save_policy(make_model("qwen3", vocab_size=400), tokenizer, tmp_path / "large")
    with pytest.raises(ValueError, match="take a model with the tokenizer of the policy"):
        make_ppo(policy, reward, value_source="model", value_model=str(tmp_path / "large"))
    with pytest.raises(ValueError, match="give value_source=model"):
        make_ppo(policy, reward, value_model=str(tmp_path / "value"))
