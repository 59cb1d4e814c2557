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


def seeded():
    return torch.Generator().manual_seed(0)


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


@pytest.mark.parametrize("limit", [{"micro_batch_size": 1}, {"micro_batch_tokens": 60}])
def test_micro_batches_bound_its_forwards_and_leave_the_result(policy, make_ppo, limit):
    def fitted(**options) -> tuple[dict[str, torch.Tensor], list[tuple[int, int]]]:
        model = copy.deepcopy(policy)
        value = (trainer := make_ppo(model, reward, **OPTIONS, **options)).value_model
        torch.nn.init.normal_(value.model.value_head.last.weight, std=1.0, generator=seeded())
        # AdamW would divide what rounding leaves of a gradient of 0 by its own size.
        value.optimizer = torch.optim.SGD(list(value.named.values()), lr=0.1)
        score, sizes = value.scorer, []

        def scorer(model):
            def scored(*tensors):
                sizes.append((len(tensors[0]), int(tensors[1].sum() + tensors[3].sum())))
                return score(model)(*tensors)

            return scored

        value.scorer = scorer
        trainer.train()
        return weights(value.model), sizes

    whole, seen = fitted()
    parts, sizes = fitted(**limit)
    assert max(rows for rows, _ in seen) == 8
    if "micro_batch_size" in limit:
        assert {rows for rows, _ in sizes} == {1}
    assert max(tokens for _, tokens in sizes) <= 60 < max(tokens for _, tokens in seen)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)


def test_a_gradient_that_is_not_finite_leaves_its_weights_alone(policy, make_ppo):
    trainer = make_ppo(policy, reward, max_grad_norm=0.0, **OPTIONS)
    value = trainer.value_model
    before = weights(value.model)
    value.model.value_head.last.bias.register_hook(lambda gradient: gradient * torch.inf)
    trainer.train()
    assert all(torch.equal(x, before[name]) for name, x in weights(value.model).items())


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
