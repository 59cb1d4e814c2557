"""Our PPO against TRL 1.12.0's own PPOTrainer: one stored update of it, number by number.

The stored update is made by tests/fixtures/make_trl_parity.py; docs/benchmarks.md has the table of
what is the same and what is not.
"""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from pipeline.chat.prompts import user_message
from pipeline.model import attach_value_head, build_nano, save_policy, train_tokenizer
from pipeline.ppo.advantages import gae, masked_sums, place_rewards, standardize
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.kl import kl_penalty
from pipeline.ppo.losses import value_loss
from pipeline.ppo.trl_trainer import ReasoningPPOTrainer
from pipeline.records import Rollout
from pipeline.scoring import Scores, score_completions

STORED = load_file(Path(__file__).parent / "fixtures" / "trl_ppo_parity.safetensors")
PAD, EOS = 0, 1
LAM, GAMMA, KL_COEF = 0.95, 1.0, 0.05


def stored(rollout: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(f"{rollout}."): x
        for name, x in STORED.items()
        if name.startswith(f"{rollout}.")
    }


def policy_before(peer: dict[str, torch.Tensor]):
    """(model, tokenizer) with the weights that TRL started from."""
    tokenizer = train_tokenizer(["What is 12 + 7? 12+7=19. The answer is 19."], vocab_size=280)
    model = build_nano(
        tokenizer,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    attach_value_head(model)
    before = {n.removeprefix("before."): x for n, x in peer.items() if n.startswith("before.")}
    assert not model.load_state_dict(before, strict=False).unexpected_keys
    return model, tokenizer


def rollout_of(peer: dict[str, torch.Tensor]) -> Rollout:
    """The stored sequences as our record; what TRL calls padding is no sampled token."""
    prompts = int(peer["context_length"])
    ids_BT = peer["query_responses"]
    mask_BC = ~peer["padding_mask"]
    return Rollout(
        prompt_ids_BP=ids_BT[:, :prompts],
        mask_prompt_BP=ids_BT[:, :prompts] != PAD,
        completion_ids_BC=ids_BT[:, prompts:],
        mask_completion_BC=mask_BC,
        logprobs_BC=peer["logprobs"] * mask_BC,
        values_BC=peer["values"] * mask_BC,
        truncated_B=~(ids_BT[:, prompts:] == EOS).any(dim=1),
    )


def unbiased(sums: torch.Tensor) -> tuple[float, float]:
    """(mean, variance) as TRL has them: the variance divided by n - 1."""
    total, squares, n = sums.tolist()
    return total / n, (squares - total**2 / n) / (n - 1)


def same(ours: torch.Tensor, theirs: torch.Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(ours.float(), theirs.float(), atol=atol, rtol=0)


@pytest.mark.parametrize("name", ["full", "mixed"])
def test_logprobs_and_values_of_the_sampled_tokens_equal_trls(name):
    peer = stored(name)
    model, _ = policy_before(peer)
    rollout = rollout_of(peer)
    with torch.no_grad():
        scores = score_completions(
            model,
            rollout.prompt_ids_BP,
            rollout.mask_prompt_BP,
            rollout.completion_ids_BC,
            rollout.mask_completion_BC,
        )
    same(scores.logprobs_BC, rollout.logprobs_BC)
    same(scores.values_BC, rollout.values_BC)


def test_rewards_advantages_and_returns_equal_trls_where_every_completion_runs_to_the_budget():
    peer = stored("full")
    mask_BC = ~peer["padding_mask"]
    assert mask_BC.all()
    penalty_BC = KL_COEF * kl_penalty(peer["logprobs"], peer["ref_logprobs"], mask_BC)
    rewards_BC = place_rewards(peer["scores"], mask_BC) - penalty_BC
    same(rewards_BC, peer["rewards"])
    advantages_BC, returns_BC = gae(rewards_BC, peer["values"], mask_BC, gamma=GAMMA, lam=LAM)
    same(returns_BC, peer["returns"])
    moments = unbiased(masked_sums(advantages_BC, mask_BC))
    same(standardize(advantages_BC, mask_BC, moments), peer["advantages"])


def test_the_whitening_differs_by_the_variance_of_a_sample_alone():
    peer = stored("full")
    mask_BC = ~peer["padding_mask"]
    n = int(mask_BC.sum())
    advantages_BC = peer["returns"] - peer["values"]
    # Divided by n instead of n - 1, the variance is smaller and what it divides is larger.
    ours_BC = standardize(advantages_BC, mask_BC)
    same(ours_BC * ((n - 1) / n) ** 0.5, peer["advantages"])


def test_trl_puts_the_reward_one_token_after_the_end_token_and_we_on_it():
    peer = stored("mixed")
    mask_BC = ~peer["padding_mask"]
    ended_B = (peer["responses"] == EOS).any(dim=1)
    assert 0 < ended_B.sum() < len(ended_B)
    penalty_BC = KL_COEF * kl_penalty(peer["logprobs"], peer["ref_logprobs"], mask_BC)
    theirs_BC = peer["rewards"] + penalty_BC
    last_B = mask_BC.sum(dim=1) - 1
    rows = torch.arange(len(last_B))
    same(theirs_BC[rows, last_B + ended_B.long()], peer["scores"])
    same(place_rewards(peer["scores"], mask_BC)[rows, last_B], peer["scores"])


def test_with_trls_mask_and_reward_placement_the_estimates_of_mixed_lengths_are_equal():
    peer = stored("mixed")
    mask_BC, with_one_more_BC = ~peer["padding_mask"], ~peer["padding_mask_p1"]
    assert with_one_more_BC.sum() > mask_BC.sum()
    advantages_BC, returns_BC = gae(
        peer["rewards"], peer["values"], with_one_more_BC, gamma=GAMMA, lam=LAM
    )
    same(returns_BC * with_one_more_BC, peer["returns"] * with_one_more_BC)
    moments = unbiased(masked_sums(advantages_BC, mask_BC))
    same(standardize(advantages_BC, mask_BC, moments), peer["advantages"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[ReasoningPPOTrainer, dict[str, torch.Tensor]]:
    """Our trainer after one epoch over TRL's rollout, in TRL's order, with TRL's whitening."""
    peer = stored("full")
    model, tokenizer = policy_before(peer)
    folder = tmp_path_factory.mktemp("parity")
    save_policy(model, tokenizer, folder / "model")
    model.config._name_or_path = str(folder / "model")
    # TRL's value head is a product without a bias.
    model.value_head.last.bias.requires_grad_(False)
    args = PPOConfig(
        output_dir=str(folder / "run"),
        num_rollouts=1,
        questions_per_rollout=4,
        completions_per_question=2,
        ppo_epochs=1,
        num_minibatches=2,
        max_completion_length=12,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_grad_norm=1e9,
        value_coef=0.1,
        entropy_coef=0.0,
        kl_coef=KL_COEF,
        lam=LAM,
        disable_tqdm=True,
    )
    rows = [{"prompt": user_message(f"{n}?")} for n in range(4)]
    trainer = ReasoningPPOTrainer(
        model,
        lambda completions, **columns: [0.0] * len(completions),
        args,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
    )
    model.value_head.last.bias.requires_grad_(False)
    scores_B = peer["scores"].float()
    trainer.collector.sample = lambda questions, group, generator: rollout_of(peer)
    trainer.collector.score = lambda *inputs: (scores_B, scores_B.unsqueeze(1))
    trainer.collector.reference = lambda rollout: Scores(
        peer["ref_logprobs"], torch.zeros_like(peer["ref_logprobs"]), None
    )
    with pytest.MonkeyPatch.context() as patch:
        order, randperm = peer["b_inds"], torch.randperm
        # The 8 sequences in TRL's order; the 4 questions in any.
        patch.setattr(torch, "randperm", lambda n, **k: order if n == 8 else randperm(n, **k))
        patch.setattr("pipeline.ppo.batch.masked_moments", unbiased)
        trainer.train()
    return trainer, peer


def test_the_losses_equal_trls(trained):
    trainer, peer = trained
    (logged,) = [line for line in trainer.state.log_history if "loss/policy" in line]
    # Both minibatches have as many tokens, so the mean of their means is the mean over tokens.
    assert logged["loss/policy"] == pytest.approx(peer["pg_loss_stats"].mean().item(), abs=2e-5)
    assert logged["loss/value"] == pytest.approx(peer["vf_loss_stats"].mean().item(), abs=2e-5)


def test_the_weights_after_an_epoch_equal_trls(trained):
    trainer, peer = trained
    weights = dict(trainer.model.named_parameters())
    after = {n.removeprefix("after."): x for n, x in peer.items() if n.startswith("after.")}
    assert len(after) > 20
    for name, theirs in after.items():
        moved = (theirs - peer[f"before.{name}"]).abs().max()
        assert moved > 1e-4, f"{name} did not move"
        # A step of AdamW moves a weight by at most the learning rate, 1e-3.
        difference = (weights[name] - theirs).abs()
        assert difference.max() < 1e-4 and difference.mean() < 1e-6, (name, difference.max())


def test_the_value_loss_is_trls_over_the_tokens_that_both_count():
    peer = stored("full")
    values_BC, returns_BC = peer["values"], peer["returns"]
    loss_BC, _ = value_loss(values_BC + 0.5, values_BC, returns_BC, clip=0.2)
    # TRL's two lines, written out.
    near_BC = torch.clamp(values_BC + 0.5, values_BC - 0.2, values_BC + 0.2)
    theirs_BC = torch.max((values_BC + 0.5 - returns_BC) ** 2, (near_BC - returns_BC) ** 2)
    same(loss_BC, 0.5 * theirs_BC)
