"""PPO's options beyond the paper, in a trainer."""

import copy
import json
from typing import Any

import pytest
import torch

from pipeline.model import load_policy, save_policy
from pipeline.model.atomic import write_manifest
from pipeline.ppo import advantages
from pipeline.ppo import batch as ppo_batch
from pipeline.ppo.advantages import length_adaptive_lambda
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.delayed_update import DelayedUpdate


def even_length(completions: list, **columns: Any) -> list[float]:
    return [float(len(message["content"]) % 2 == 0) for (message,) in completions]


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def logged(trainer: Any, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


@pytest.fixture
def checkpoint(policy, tokenizer, tmp_path):
    save_policy(policy, tokenizer, tmp_path / "sft")
    return tmp_path / "sft"


@pytest.fixture
def trained(make_ppo, policy):
    """`trained(reward, lam=1.0)`: the trainer and its weights after training a copy."""

    def train(*rewards: Any, **options: Any) -> tuple[Any, torch.Tensor]:
        model = copy.deepcopy(policy)
        trainer = make_ppo(model, *rewards, **options)
        trainer.train()
        return trainer, weights(model)

    return train


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_in": "loss"}, "kl_estimator=k1 in the loss has an expected gradient of 0; give k2"),
        ({"kl_controller": "adaptive", "kl_coef": 0.0}, "adaptive multiplies kl_coef, and 0 stays"),
        (
            {"kl_controller": "adaptive", "kl_horizon": 1},
            "kl_horizon=1 is too short for rollouts of 8 sequences: .* give kl_horizon=2 or more",
        ),
        ({"kl_in": "nowhere"}, "kl_in='nowhere' must be one of 'reward', 'loss"),
        ({"value_lam": 1.2}, r"value_lam=1.2 must lie in \[0, 1\]"),
        ({"lam_alpha": 0.0}, "lam_alpha=0.0 must be above 0"),
        ({"step_lam": -0.5}, r"step_lam=-0.5 must lie in \[0, 1\]"),
        ({"normalize_advantages": "yes"}, "normalize_advantages='yes' must be one of 'batch'"),
        ({"dual_clip": 1.0}, "dual_clip=1.0 must be above 1"),
        (
            {"policy_steps_per_rollout": 3},
            "policy_steps_per_rollout=3 must divide the 4 epochs",
        ),
        ({"overlong_buffer": 8}, "overlong_buffer=8 does nothing without overlong_penalty"),
        (
            {"overlong_buffer": 256, "overlong_penalty": 1.0},
            "overlong_buffer=256 must be below max_completion_length=256",
        ),
        ({"target_kl": 0.01, "ppo_epochs": 1}, "target_kl=0.01 does nothing with ppo_epochs=1"),
        (
            {"target_kl": 0.01, "ppo_epochs": 4, "policy_steps_per_rollout": 1},
            "target_kl=0.01 leaves out steps that policy_steps_per_rollout=1 would accumulate",
        ),
        ({"sampling_batch_size": 0}, "sampling_batch_size=0 must be at least 1"),
        ({"resample_tries": 0}, "resample_tries=0 must be at least 1"),
        ({"replay_success": 1.0}, r"replay_success=1.0 must lie in \(0, 1\)"),
        (
            {"zero_variance_groups": "replay", "value_source": "monte_carlo"},
            "value_source=monte_carlo samples on from every state again",
        ),
        (
            {"rloo_baseline": True, "value_source": "monte_carlo"},
            "rloo_baseline=true with value_source=monte_carlo: V of the question is the mean",
        ),
        (
            {"rloo_baseline": True, "gamma": 0.99},
            "rloo_baseline=true compares V with returns without discount, and gamma=0.99",
        ),
        ({"alarm_patience": 0}, "alarm_patience=0 must be at least 1"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options, message):
    size = {"questions_per_rollout": 2, "completions_per_question": 4, "num_minibatches": 1}
    with pytest.raises(ValueError, match=message) as caught:
        PPOConfig(**{**size, **options})
    assert "\n" not in str(caught.value)


def test_step_lam_without_step_rewards_is_refused(make_ppo, policy):
    with pytest.raises(ValueError, match=r"step_lam=0\.0 needs step rewards"):
        make_ppo(policy, even_length, step_lam=0.0)


# ---- KL penalty ----


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_kl_penalty_in_the_reward_uses_the_estimator(
    make_ppo, checkpoint, monkeypatch, estimator
):
    seen, original = [], advantages.gae
    monkeypatch.setattr(advantages, "gae", lambda *a, **k: seen.append(a) or original(*a, **k))
    trainer = make_ppo(
        load_policy(checkpoint)[0],
        lambda completions, **columns: [1.0] * len(completions),
        kl_coef=0.5,
        kl_estimator=estimator,
        num_rollouts=2,
        learning_rate=1e-2,
    )
    trainer.train()
    rewards_BC, _, mask_BC = seen[1]
    tokens = mask_BC.sum()
    drift = logged(trainer, "kl")[1]
    # What is missing of a reward of 1 a completion is the penalty, token by token.
    assert (8 - rewards_BC.sum()).item() / tokens == pytest.approx(0.5 * drift, rel=1e-3)
    assert (drift > 0) or estimator == "k1"


def without_advantages(trainer: Any) -> Any:
    """The trainer, whose policy nothing moves but what stands beside the policy loss."""
    batch = trainer.collector.make_batch
    trainer.collector.make_batch = lambda *args: (
        batch(*args) | {"advantages": torch.zeros_like(args[0].rollout.logprobs_BC)}
    )
    return trainer


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_kl_loss_lowers_the_kl(make_ppo, checkpoint, estimator):
    model, _ = load_policy(checkpoint)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    trainer = make_ppo(
        model,
        even_length,
        kl_coef=1.0,
        kl_in="loss",
        kl_estimator=estimator,
        value_coef=0.0,
        entropy_coef=0.0,
        num_rollouts=8,
        completions_per_question=32,
        max_completion_length=6,
        ppo_epochs=2,
        learning_rate=1e-2,
    )
    without_advantages(trainer).train()
    drift = logged(trainer, "kl")
    assert drift[-1] < 0.6 * drift[0]


def test_the_kl_loss_does_not_change_the_rewards(make_ppo, checkpoint, monkeypatch):
    seen, original = [], advantages.gae
    monkeypatch.setattr(advantages, "gae", lambda *a, **k: seen.append(a) or original(*a, **k))
    make_ppo(
        load_policy(checkpoint)[0],
        lambda completions, **columns: [1.0] * len(completions),
        kl_coef=0.5,
        kl_in="loss",
        kl_estimator="k3",
        num_rollouts=2,
        learning_rate=1e-2,
    ).train()
    assert seen[1][0].sum() == 8


def test_the_adaptive_kl_coefficient_rises_with_the_kl_and_resumes_exactly(
    make_ppo, checkpoint, tmp_path
):
    options = {
        "kl_coef": 0.1,
        "kl_controller": "adaptive",
        "kl_estimator": "k3",
        "kl_target": 1e-4,
        "kl_horizon": 80,
        "num_rollouts": 4,
        "save_every": 1,
        "learning_rate": 1e-2,
    }
    ended = []
    for resume_from in (None, str(tmp_path / "ppo" / "checkpoint-2")):
        model, _ = load_policy(checkpoint)
        trainer = make_ppo(model, even_length, **options)
        trainer.train(resume_from_checkpoint=resume_from)
        ended.append((trainer.kl.coef, weights(model)))
    prices = logged(trainer, "kl_coef")
    # 8 sequences over a horizon of 80, the error at its bound: 2% down, then 2% up a rollout.
    assert prices[:3] == pytest.approx([0.1, 0.098, 0.098 * 1.02])
    assert ended[0][0] == ended[1][0]
    torch.testing.assert_close(ended[0][1], ended[1][1], atol=1e-6, rtol=0)


# ---- estimates ----


def test_the_value_head_may_have_its_own_lambda(trained):
    base, _ = trained(even_length, lam=0.5)
    both, _ = trained(even_length, lam=0.5, value_lam=1.0)
    same = "advantages", "old_values"
    for name in same:
        torch.testing.assert_close(both.rollout_batch[name], base.rollout_batch[name])
    # With lambda 1 and gamma 1 every token's target is the outcome.
    mask_BC = both.rollout_batch["completion_mask"]
    targets_BC = both.rollout_batch["returns"]
    outcome_B = (targets_BC * mask_BC).amax(dim=1, keepdim=True).round()
    torch.testing.assert_close(targets_BC, outcome_B * mask_BC, atol=1e-5, rtol=0)
    assert not torch.allclose(base.rollout_batch["returns"], targets_BC)


def test_a_lambda_by_length_is_used_for_the_advantages_and_not_for_the_returns(
    trained, monkeypatch
):
    seen, original = [], advantages.gae
    monkeypatch.setattr(advantages, "gae", lambda *a, **k: seen.append((a, k)) or original(*a, **k))
    trained(even_length, lam=0.9, lam_alpha=0.2)
    (_, for_values), (tensors, for_policy) = seen
    assert for_values["lam"] == 0.9
    torch.testing.assert_close(for_policy["lam"], length_adaptive_lambda(tensors[2], 0.2))
    assert len(set(for_policy["lam"].tolist())) > 2


# ---- which completions are trained on ----


def reward_by_question(right: set[str]):
    """Half of the completions of these questions are right, none of the others'."""

    def reward(completions: list, question: list[str], **columns: Any) -> list[float]:
        return [float(q in right and i % 2 == 0) for i, q in enumerate(question)]

    return reward


def test_groups_without_variance_are_skipped(trained):
    asked = "What is 2 + 3?", "What is 4 + 5?", "What is 7 + 1?"
    trainer, _ = trained(
        reward_by_question(set(asked)),
        zero_variance_groups="skip",
        num_rollouts=3,
        questions_per_rollout=2,
    )
    # Six questions in three rollouts: three of them have no variance, wherever they fall.
    assert sum(logged(trainer, "groups/left_out")) == pytest.approx(1.5)
    assert logged(trainer, "groups/left_out") == logged(trainer, "groups/zero_variance")
    counted_Q = trainer.rollout_batch["completion_mask"].view(2, -1).any(dim=1)
    assert counted_Q.float().mean() == 1 - logged(trainer, "groups/left_out")[-1]


def test_skipped_groups_have_no_advantages(trained):
    trainer, _ = trained(
        reward_by_question({"What is 2 + 3?"}), zero_variance_groups="skip", num_rollouts=3
    )
    mask_BC = trainer.rollout_batch["completion_mask"]
    assert trainer.rollout_batch["advantages"][~mask_BC].abs().sum() == 0


def test_groups_without_variance_are_resampled(trained):
    teach = {"What is 2 + 3?", "What is 4 + 5?", "What is 7 + 1?"}
    trainer, _ = trained(
        reward_by_question(teach), zero_variance_groups="resample", resample_tries=8, num_rollouts=3
    )
    assert sum(logged(trainer, "groups/zero_variance")) == pytest.approx(1.5)
    # Half of the questions teach: all eight tries fail once in 2^8.
    assert logged(trainer, "groups/left_out") == [0.0, 0.0, 0.0]
    assert trainer.rollout_batch["completion_mask"].any(dim=1).all()


def test_resampling_is_bounded_and_what_is_left_is_skipped(trained):
    calls = []

    def never(completions: list, **columns: Any) -> list[float]:
        calls.append(len(completions))
        return [0.0] * len(completions)

    trainer, after = trained(never, zero_variance_groups="resample", resample_tries=2)
    assert calls == [8, 8, 8]  # the rollout, and two tries for its two questions
    assert logged(trainer, "groups/left_out") == [1.0]
    assert not trainer.rollout_batch["completion_mask"].any()
    assert after.isfinite().all()


def test_a_resampled_rollout_follows_from_the_seed(trained):
    reward = reward_by_question({"What is 2 + 3?", "What is 8 + 2?"})
    runs = [trained(reward, zero_variance_groups="resample", num_rollouts=2)[1] for _ in range(2)]
    assert torch.equal(*runs)


def test_groups_of_earlier_rollouts_stand_in_for_those_without_variance(trained):
    # Three of the six questions of three rollouts have no variance, wherever they fall. Stored
    # groups take their places from the second rollout on.
    teach = {"What is 2 + 3?", "What is 4 + 5?", "What is 7 + 1?"}
    trainer, after = trained(
        reward_by_question(teach), zero_variance_groups="replay", num_rollouts=3
    )
    lacking, replayed, left = (
        logged(trainer, f"groups/{name}") for name in ("zero_variance", "replayed", "left_out")
    )
    assert replayed[0] == 0.0 and sum(replayed) > 0
    assert [a - b for a, b in zip(lacking, replayed, strict=True)] == pytest.approx(left)
    assert after.isfinite().all()


def test_truncated_completions_can_be_left_out(trained):
    trainer, _ = trained(even_length, mask_truncated_completions=True, max_completion_length=4)
    took_part_B = trainer.rollout_batch["completion_mask"].any(dim=1)
    cut = logged(trainer, "completions/truncated")[0]
    assert 0 < cut < 1
    assert took_part_B.float().mean() == pytest.approx(1 - cut)


def test_completions_that_use_up_their_budget_have_a_penalty(trained, monkeypatch):
    seen, original = [], ppo_batch.place_rewards
    monkeypatch.setattr(ppo_batch, "place_rewards", lambda *a: seen.append(a) or original(*a))
    trainer, _ = trained(
        lambda completions, **columns: [1.0] * len(completions),
        overlong_penalty=0.5,
        overlong_buffer=2,
        max_completion_length=6,
    )
    outcomes_B, mask_BC = seen[0][0], seen[0][1]
    expected = {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 0.75, 6: 0.5}
    lengths = mask_BC.sum(dim=1).tolist()
    assert outcomes_B.tolist() == [expected[length] for length in lengths]
    assert len(set(lengths)) > 2
    # The reward that is logged is what the completions earned.
    assert logged(trainer, "reward") == [1.0]
    assert logged(trainer, "reward/overlong")[0] == pytest.approx(outcomes_B.mean().item() - 1)


# ---- the update ----


def test_the_likelihood_loss_of_right_completions_raises_their_probability(make_ppo, policy):
    def ends_at_once(completions: list, **columns: Any) -> list[float]:
        return [float(message["content"] == "") for (message,) in completions]

    off = {"value_coef": 0.0, "entropy_coef": 0.0, "positive_nll_coef": 1.0}
    rewards = {}
    for threshold in (1.0, 2.0):  # 2.0 is never reached: nothing to imitate
        model = copy.deepcopy(policy)
        trainer = make_ppo(
            model,
            ends_at_once,
            num_rollouts=12,
            completions_per_question=8,
            max_completion_length=6,
            right_outcome=threshold,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            **off,
        )
        without_advantages(trainer).train()
        rewards[threshold] = logged(trainer, "reward")
    assert sum(rewards[1.0][-3:]) / 3 > 0.8 > 0.5 > sum(rewards[2.0][-3:]) / 3
    assert logged(trainer, "loss/positive") == []


def test_the_likelihood_loss_does_not_depend_on_micro_batches(trained):
    runs = [
        trained(
            even_length,
            positive_nll_coef=0.7,
            micro_batch_size=micro,
            optim="sgd",
            learning_rate=0.5,
        )[1]
        for micro in (8, 1)
    ]
    torch.testing.assert_close(runs[1], runs[0], atol=1e-6, rtol=0)


def test_the_policy_may_take_one_step_where_the_value_head_takes_four(make_ppo, policy):
    steps = {"num_minibatches": 4, "learning_rate": 1e-2, "optim": "sgd"}
    before = copy.deepcopy(policy)
    trainer = make_ppo(
        policy, even_length, policy_steps_per_rollout=1, value_learning_rate=1e-2, **steps
    )
    seen = []
    release = trainer.release_gradients

    def watch() -> None:
        release()
        trunk = [p.grad is not None for n, p in policy.named_parameters() if "value_head" not in n]
        head = [p.grad is not None for p in policy.value_head.parameters()]
        seen.append((any(trunk), all(head)))

    trainer.release_gradients = watch
    trainer.train()
    assert seen == [(False, True)] * 3 + [(True, True)]
    assert not torch.equal(weights(policy), weights(before))


def test_one_step_of_the_policy_on_four_minibatches_is_one_on_the_whole(make_ppo, policy):
    """With plain SGD and a value head that stays, the mean of four gradients is the gradient of the
    rollout, as completions of one length weigh the same."""
    ends = []
    for minibatches, steps in ((4, 1), (1, None)):
        model = copy.deepcopy(policy)
        make_ppo(
            model,
            even_length,
            num_minibatches=minibatches,
            policy_steps_per_rollout=steps,
            max_completion_length=1,
            value_coef=0.0,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            max_grad_norm=1e9,
        ).train()
        ends.append(weights(model))
    torch.testing.assert_close(ends[0], ends[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("skipped", [1, 3])
def test_a_step_that_is_not_finite_is_left_out_of_the_mean_of_its_rollout(
    make_ppo, policy, skipped
):
    trainer = make_ppo(
        policy, even_length, num_rollouts=2, num_minibatches=4, policy_steps_per_rollout=1
    )
    weight, release = policy.model.layers[0].mlp.up_proj.weight, trainer.release_gradients
    finite, applied = [], []

    def watch() -> None:
        step = trainer.state.global_step
        if step == skipped:
            weight.grad.fill_(torch.nan)
        else:
            finite.append(weight.grad.clone())
        release()
        if step % 4 == 3:
            assert trainer.delayed_update.state_dict() == {}
            applied.append(weight.grad.clone())

    trainer.release_gradients = watch
    trainer.train()
    assert len(finite) == 7
    for found, parts in zip(applied, (finite[:3], finite[3:]), strict=True):
        torch.testing.assert_close(found, torch.stack(parts).mean(dim=0))


def test_the_gradients_of_an_earlier_checkpoint_are_those_of_every_step_before():
    """It has no count of its steps."""
    weight = torch.nn.Parameter(torch.zeros(1))
    found = {}
    for name in ("now", "earlier"):
        delayed = DelayedUpdate([weight], steps=4)
        for index, gradient in enumerate([1.0, 2.0, 3.0]):
            weight.grad = torch.tensor([gradient])
            delayed.step(4 + index)
        state = delayed.state_dict()
        assert state.pop("count") == 3
        delayed = DelayedUpdate([weight], steps=4)
        delayed.load_state_dict(state | ({"count": torch.tensor(3)} if name == "now" else {}), 7)
        weight.grad = torch.tensor([6.0])
        delayed.step(7)
        found[name] = weight.grad.item()
    assert found == {"now": 3.0, "earlier": 3.0}


@pytest.mark.parametrize(("usable", "applied"), [(True, 1.0), (False, None)])
def test_sums_that_an_earlier_version_left_after_a_rollout_are_not_applied(usable, applied):
    weight = torch.nn.Parameter(torch.zeros(1))
    delayed = DelayedUpdate([weight], steps=2)
    delayed.load_state_dict({"0": torch.tensor([4.0])}, 4)
    for index in (4, 5):
        weight.grad = torch.tensor([1.0])
        delayed.step(index, usable=usable)
    assert (None if weight.grad is None else weight.grad.item()) == applied


# ---- curriculum ----


def test_the_curriculum_draws_the_level_that_is_sometimes_right(trained):
    def by_level(completions: list, level: list[str], **columns: Any) -> list[float]:
        rules = {
            "level 0": lambda i: 1.0,
            "level 1": lambda i: float(i % 2),
            "level 2": lambda i: 0,
        }
        return [float(rules[name](i)) for i, name in enumerate(level)]

    trainer, _ = trained(by_level, curriculum=True, num_rollouts=25, max_completion_length=2)
    shares = {n: logged(trainer, f"curriculum/level {n}/share")[-1] for n in range(3)}
    assert shares[1] > 0.5 > 0.3 > max(shares[0], shares[2])
    assert logged(trainer, "curriculum/level 0/success")[-1] > 0.7
    assert logged(trainer, "curriculum/level 2/success")[-1] < 0.3


def test_a_run_with_a_curriculum_resumes_exactly(make_ppo, checkpoint, tmp_path):
    ended = []
    for resume_from in (None, str(tmp_path / "ppo" / "checkpoint-3")):
        model, _ = load_policy(checkpoint)
        trainer = make_ppo(
            model, even_length, curriculum=True, num_rollouts=6, save_every=1, learning_rate=1e-2
        )
        trainer.train(resume_from_checkpoint=resume_from)
        ended.append((trainer.curriculum.state_dict(), weights(model)))
    assert ended[0][0] == ended[1][0]
    torch.testing.assert_close(ended[0][1], ended[1][1], atol=1e-6, rtol=0)
    # Without the curriculum it is another run.
    with pytest.raises(ValueError, match=r"curriculum=True.*, and this run has .*curriculum=False"):
        make_ppo(load_policy(checkpoint)[0], even_length).train(
            resume_from_checkpoint=str(tmp_path / "ppo" / "checkpoint-3")
        )


def test_a_checkpoint_with_the_former_names_of_controllers_resumes(make_ppo, checkpoint, tmp_path):
    make_ppo(load_policy(checkpoint)[0], even_length, save_every=1).train()
    saved = tmp_path / "ppo" / "checkpoint-1"
    file = saved / "controllers.json"
    states = json.loads(file.read_text())
    states["guard"] = states.pop("nonfinite") | {"total": 5}
    file.write_text(json.dumps(states))
    write_manifest(saved)
    trainer = make_ppo(load_policy(checkpoint)[0], even_length, num_rollouts=2)
    trainer.train(resume_from_checkpoint=str(saved))
    assert trainer.nonfinite.total == 5


HALFWAY = {
    "held gradients": {"policy_steps_per_rollout": 1},
    "adaptive price in the loss": {
        "kl_coef": 0.1,
        "kl_controller": "adaptive",
        "kl_in": "loss",
        "kl_estimator": "k3",
        "kl_horizon": 80,
    },
    "imitation": {"positive_nll_coef": 0.1},
    # The first epoch of the second rollout ends at step 6, and its second epoch is left out.
    "target KL": {"target_kl": 1e-9, "ppo_epochs": 2, "num_minibatches": 2},
    "resampling": {"zero_variance_groups": "resample", "curriculum": True},
    "replay": {"zero_variance_groups": "replay"},
}


def test_target_kl_leaves_out_the_epochs_after_the_one_that_passed_it(trained):
    # At the first minibatch the policy is the one that sampled, so the second epoch passes.
    steps = {"learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    _, left = trained(even_length, target_kl=1e-9, ppo_epochs=4, **steps)
    _, two = trained(even_length, ppo_epochs=2, **steps)
    far, everything = trained(even_length, target_kl=1e9, ppo_epochs=4, **steps)
    _, four = trained(even_length, ppo_epochs=4, **steps)
    torch.testing.assert_close(left, two, atol=1e-7, rtol=0)
    assert torch.equal(everything, four) and (four - two).abs().max() > 1e-3
    assert logged(far, "target_kl/left_out") == [0.0]


def test_every_rollout_begins_with_updates_again(trained):
    stopped, _ = trained(
        even_length, target_kl=1e-9, ppo_epochs=4, num_rollouts=2, learning_rate=1e-2
    )
    assert logged(stopped, "target_kl/left_out") == [0.5, 0.5]


@pytest.mark.parametrize("options", HALFWAY.values(), ids=HALFWAY)
def test_a_run_that_is_resumed_in_the_middle_of_a_rollout_ends_the_same(
    make_ppo, checkpoint, tmp_path, monkeypatch, options
):
    options = {"num_minibatches": 4, "num_rollouts": 3, "save_every": 1, **options}
    ended = []
    for resume_from in (None, str(tmp_path / "ppo" / "checkpoint-6")):  # of 4 steps a rollout
        model, _ = load_policy(checkpoint)
        trainer = make_ppo(model, even_length, learning_rate=1e-2, **options)
        trainer.args.save_steps = trainer.state.save_steps = 6
        trainer.train(resume_from_checkpoint=resume_from)
        ended.append((weights(model), trainer.kl.coef, logged(trainer, "reward")[-1]))
    assert ended[0][1:] == ended[1][1:]
    torch.testing.assert_close(ended[0][0], ended[1][0], atol=1e-6, rtol=0)


def test_a_curriculum_without_levels_is_refused(make_ppo, policy):
    data = make_ppo(policy, even_length).train_dataset.remove_columns("level")
    with pytest.raises(ValueError, match="curriculum=true needs the column 'level'"):
        make_ppo(policy, even_length, curriculum=True, own={"train_dataset": data})
