"""PPO's core without a trainer: a rollout collected, cut into minibatches, and its loss."""

import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.ppo.advantages import standardize, standardize_groups
from pipeline.ppo.collector import SAMPLED_TOKENS, RolloutCollector
from pipeline.ppo.curriculum import LevelCurriculum
from pipeline.ppo.groups import ScoredRollout
from pipeline.ppo.kl import AdaptiveKL, FixedKL
from pipeline.ppo.metrics import PPOLog
from pipeline.ppo.minibatches import MicroBatch, cut_evenly, make_micro_batches
from pipeline.ppo.options import PPOOptions
from pipeline.ppo.replay import ReplayBuffer
from pipeline.ppo.rollout import reward_parts, weighted_outcomes
from pipeline.ppo.run_state import load_rollout, save_rollout
from pipeline.ppo.update import evaluation_loss, micro_batch_loss
from pipeline.records import Problem, Rollout
from pipeline.scoring import Scores
from pipeline.stats.value_metrics import explained_variance
from pipeline.training.nonfinite import NonfiniteCheck
from pipeline.verifier.online import OnlineVerifier, new_verifier

PROBLEMS = [
    Problem(question=f"{n}?", answer=str(n), level=["even", "odd"][n % 2]) for n in range(6)
]
ROWS = [{"problem": index, "level": p.level} for index, p in enumerate(PROBLEMS)]
ONE_PROCESS = SimpleNamespace(
    process_index=0,
    num_processes=1,
    device=torch.device("cpu"),
    reduce=lambda x, reduction: x,
    gather=lambda x: x,
)
WIDTH, END = 5, 1


class Fake:
    """A sampler of completions of 1 to 5 tokens, and the rewards and scores of them."""

    def __init__(self, right: Any = lambda problem, index: index % 2 == 0):
        self.right = right
        self.asked: list[list[str]] = []

    def sample(self, questions: list[str], group: int, generator: torch.Generator) -> Rollout:
        self.asked.append(questions)
        rows = len(questions) * group
        lengths_B = torch.arange(rows) % WIDTH + 1
        mask_BC = torch.arange(WIDTH) < lengths_B.unsqueeze(1)
        noise_BC = torch.randn(rows, WIDTH, generator=generator) * mask_BC
        ids_BC = torch.full((rows, WIDTH), 7) * mask_BC
        ids_BC[torch.arange(rows), lengths_B - 1] = END
        return Rollout(
            prompt_ids_BP=torch.full((rows, 2), 9),
            mask_prompt_BP=torch.ones(rows, 2, dtype=torch.bool),
            completion_ids_BC=ids_BC,
            mask_completion_BC=mask_BC,
            logprobs_BC=-noise_BC.abs(),
            values_BC=noise_BC,
            truncated_B=lengths_B == WIDTH,
        )

    def score(self, rows_B: list, texts: list[str], ids: list) -> tuple:
        problems = [PROBLEMS[row["problem"]] for row in rows_B]
        outcomes = [float(self.right(p, index)) for index, p in enumerate(problems)]
        return torch.tensor(outcomes), torch.tensor(outcomes).unsqueeze(1)


def collector(fake: Fake, **options: Any) -> RolloutCollector:
    given = {"questions_per_rollout": 2, "completions_per_question": 4, "kl_coef": 0.0, **options}
    made = PPOOptions(**given)
    made.check_options()
    levels = [problem.level for problem in PROBLEMS]
    return RolloutCollector(
        options=made,
        tokenizer=SimpleNamespace(batch_decode=lambda rows: [str(len(row)) for row in rows]),
        sample=fake.sample,
        score=fake.score,
        reference=lambda rollout: Scores(rollout.logprobs_BC - 0.5, None, None),
        accelerator=ONE_PROCESS,
        seed=0,
        dataset=ROWS,
        end_ids=[END],
        kl=AdaptiveKL(made.kl_coef, target=0.1, horizon=100)
        if made.kl_controller == "adaptive"
        else FixedKL(made.kl_coef),
        nonfinite=NonfiniteCheck(ONE_PROCESS),
        problems=PROBLEMS,
        curriculum=LevelCurriculum(levels, seed=0, decay=0.9, floor=0.05)
        if made.curriculum
        else None,
    )


def collect(made: RolloutCollector, rows: list | None = None, step: int = 0) -> tuple:
    log = PPOLog(defaultdict(list), ONE_PROCESS)
    rows_B = [row for row in (rows or ROWS[:2]) for _ in range(4)]
    return *made.collect(rows_B, step, log), log.metrics


# ---- metrics ----


def explained_variance_of(*processes: tuple) -> float:
    """What the first process logs; each has (values_BC, returns_BC, mask_BC)."""
    sums, ends, metrics = [], [], defaultdict(list)
    for process in reversed(processes):
        accelerator = SimpleNamespace(
            reduce=lambda x, reduction: sums.append(x) or sum(sums),
            gather=lambda x: ends.append(x) or torch.cat(ends),
        )
        metrics = defaultdict(list)
        PPOLog(metrics, accelerator).explained_variance(*process)
    return metrics["explained_variance"][0]


def test_explained_variance_is_that_of_the_tokens_of_all_processes():
    mask_BC = torch.tensor([[True, True, False], [True, False, False]])
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(2, 3, generator=generator) for _ in range(2)]
    # Constant on each process, and different between them.
    returns = [torch.zeros(2, 3), torch.ones(2, 3)]
    found = explained_variance_of(*zip(values, returns, [mask_BC] * 2, strict=True))
    tokens = [torch.cat([x[mask_BC] for x in both]).numpy() for both in (values, returns)]
    assert found == pytest.approx(explained_variance(*tokens), rel=1e-5)
    one = explained_variance_of((values[0], values[1], mask_BC))
    alone = (x[mask_BC].numpy() for x in values)
    assert one == pytest.approx(explained_variance(*alone), rel=1e-5)


@pytest.mark.parametrize("mask", [[[True, True]], [[False, False]]])
def test_explained_variance_of_equal_returns_or_none_is_not_a_number(mask):
    values_BC, returns_BC = torch.tensor([[0.1, 0.2]]), torch.tensor([[0.7, 0.7]])
    assert math.isnan(explained_variance_of((values_BC, returns_BC, torch.tensor(mask))))


# ---- rollout ----


def test_a_rollout_becomes_a_batch_with_standardized_advantages():
    fake = Fake()
    batch, samples, metrics = collect(collector(fake))
    assert fake.asked == [["0?", "1?"]]  # every question once, for its four completions
    mask_BC = batch["completion_mask"]
    assert mask_BC.sum(dim=1).tolist() == [1, 2, 3, 4, 5, 1, 2, 3]
    advantages = batch["advantages"][mask_BC]
    assert advantages.mean().abs() < 1e-6 and (advantages.var(correction=0) - 1).abs() < 1e-4
    assert batch["advantages"][~mask_BC].abs().sum() == 0
    assert samples.texts == ["0", "1", "2", "3", "4", "0", "1", "2"]  # without the end token
    assert samples.questions_B == ["0?"] * 4 + ["1?"] * 4
    assert metrics[SAMPLED_TOKENS] == [21.0] and metrics["completions/truncated"] == [1 / 8]


def test_v_is_ranked_within_questions_at_the_end_and_at_the_ends_of_steps():
    values_BC = torch.tensor([[0.9, 0.8], [0.1, 0.6], [0.2, 0.4], [0.5, 0.2]])
    outcomes_B = torch.tensor([1.0, 0.0, 1.0, 0.0])  # two questions, each with one right completion
    mask_BC = torch.ones(4, 2, dtype=torch.bool)
    rollout = Rollout(
        prompt_ids_BP=mask_BC.long(),
        mask_prompt_BP=mask_BC,
        completion_ids_BC=mask_BC.long(),
        mask_completion_BC=mask_BC,
        logprobs_BC=-values_BC,
        values_BC=values_BC,
        truncated_B=~mask_BC[:, 0],
    )
    steps = [[(0, 0.0), (1, 0.0)], [(0, 0.0)], [(1, 0.0)], [(0, 0.0)]]
    log = PPOLog(defaultdict(list), ONE_PROCESS)
    log.value_ranking(ScoredRollout(rollout, outcomes_B, steps), 1.0, 2)
    # Before the last token: 0.8 > 0.6 and 0.4 > 0.2. At the first step: 0.9 > 0.1, and 0.4 < 0.5;
    # the second step of the first completion has no other to compare with.
    assert log.metrics["value/auroc_within"] == [1.0]
    assert log.metrics["value/auroc_within_steps"] == [0.5]
    # Each value is alone in its bin: |0.8 - 1|, |0.6 - 0|, |0.4 - 1| and |0.2 - 0|.
    assert log.metrics["value/calibration_error"] == [pytest.approx(1.6 / 4)]


def test_advantages_are_normalized_over_the_rollout_a_question_or_not_at_all():
    fake = Fake(right=lambda problem, index: index == 0)  # the second question has no variance
    own = {"gamma": 1.0, "lam": 1.0}
    batches = {
        name: collect(collector(fake, normalize_advantages=name, **own))[0]
        for name in ("batch", "group", "none")
    }
    mask_BC, values_BC = (batches["none"][name] for name in ("completion_mask", "old_values"))
    outcomes_B1 = torch.tensor([1.0, *[0.0] * 7]).unsqueeze(1)
    raw_BC = (outcomes_B1 - values_BC) * mask_BC
    torch.testing.assert_close(batches["none"]["advantages"], raw_BC)
    torch.testing.assert_close(batches["batch"]["advantages"], standardize(raw_BC, mask_BC))
    for rows in (slice(0, 4), slice(4, 8)):
        raw = [x_C[mask_C] for x_C, mask_C in zip(raw_BC[rows], mask_BC[rows], strict=True)]
        mean = sum(x.mean() for x in raw) / 4
        std = (sum((x - mean).square().mean() for x in raw) / 4) ** 0.5
        expected_BC = ((raw_BC[rows] - mean) / std) * mask_BC[rows]
        torch.testing.assert_close(batches["group"]["advantages"][rows], expected_BC)


def test_advantages_of_a_group_are_those_of_grpo_whatever_the_lengths():
    rewards_B = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.0, 0.0, 0.0])
    mask_BC = torch.arange(6) < torch.tensor([6, 1, 1, 5, 2, 6, 3, 1]).unsqueeze(1)
    made_BC = standardize_groups(rewards_B.unsqueeze(1) * mask_BC, mask_BC, 4)
    groups_QG = rewards_B.view(2, 4)
    expected_B = (groups_QG - groups_QG.mean(1, keepdim=True)) / groups_QG.std(
        1, keepdim=True, correction=0
    )
    torch.testing.assert_close(made_BC, expected_B.view(-1, 1) * mask_BC, rtol=1e-5, atol=1e-6)


def test_step_lam_reads_the_steps_of_the_rollout():
    made = collector(Fake(right=lambda problem, index: False), step_lam=0.0, lam=1.0,
                     normalize_advantages="none")  # fmt: skip
    log = PPOLog(defaultdict(list), ONE_PROCESS)
    samples = made.sample_and_score(ROWS[:2], 4, "sample", 0, log)
    blank = replace(
        samples.scored.rollout, values_BC=torch.zeros_like(samples.scored.rollout.values_BC)
    )
    steps = [[(0, 0.0), (2, -1.0)] if b == 4 else [] for b in range(8)]  # five tokens
    scored = replace(samples.scored, rollout=blank, steps=steps)
    batch = made.make_batch(scored, torch.ones(8, dtype=torch.bool), log)
    assert batch["advantages"][4].tolist() == [0.0, -1.0, -1.0, 0.0, 0.0]
    assert not batch["advantages"][[0, 1, 2, 3, 5, 6, 7]].any()


def test_samples_follow_from_seed_and_step():
    same, again, other = (collect(collector(Fake()), step=step)[0] for step in (3, 3, 4))
    assert torch.equal(same["old_values"], again["old_values"])
    assert not torch.equal(same["old_values"], other["old_values"])


def test_a_group_without_variance_is_resampled_from_the_data():
    fake = Fake(lambda problem, index: problem.level == "odd" and index % 2)
    made = collector(fake, zero_variance_groups="resample", resample_tries=20)
    batch, samples, metrics = collect(made)
    assert [len(questions) for questions in fake.asked][:2] == [2, 1]  # one group is replaced
    assert batch["completion_mask"].any(dim=1).all()
    assert metrics["groups/left_out"] == [0.0]
    assert metrics["groups/zero_variance"] == [0.5]  # of the first samples
    assert samples.questions_B == ["0?"] * 4 + ["1?"] * 4


def test_the_curriculum_draws_the_questions_and_counts_their_outcomes():
    fake = Fake(lambda problem, index: problem.level == "odd")
    made = collector(fake, curriculum=True)
    for step in range(12):
        metrics = collect(made, step=step)[2]
    drawn = {question for questions in fake.asked for question in questions}
    assert drawn == {problem.question for problem in PROBLEMS}
    assert metrics["curriculum/odd/success"][0] > 0.8 > 0.2 > metrics["curriculum/even/success"][0]


def test_a_number_that_is_not_finite_leaves_no_token_in_the_batch(capsys):
    fake = Fake(lambda problem, index: torch.inf)
    made = collector(fake, kl_coef=0.1, kl_controller="adaptive")
    batch, _, _ = collect(made)
    assert not batch["completion_mask"].any() and batch["advantages"].abs().sum() == 0
    assert made.nonfinite.total == 1 and made.kl.coef == 0.1
    assert "not finite: a reward" in capsys.readouterr().out


def test_a_rollout_that_is_not_finite_teaches_the_verifier_nothing_and_is_not_replayed():
    fake = Fake(lambda problem, index: torch.inf if index == 3 else index == 1)
    made = collector(fake, zero_variance_groups="replay")
    verifier = new_verifier(seed=0)
    before = [x.clone() for x in verifier.state_dict().values()]
    made.verifier = OnlineVerifier(verifier, learning_rate=0.1, steps=1)
    made.tokenizer._step_end_ids = frozenset([7])
    made.tokenizer.convert_tokens_to_ids = lambda token: 3
    made.replay = ReplayBuffer(group=4, size=8, age=4, success=0.9, right_outcome=1.0)
    learned = []
    made.fit_values = lambda scored, counts_B, step: learned.append(step) or {}
    collect(made)
    assert made.nonfinite.total == 1 and made.verifier.rollouts == 0 and not made.replay.groups
    assert not learned and all(map(torch.equal, before, verifier.state_dict().values()))
    fake.right = lambda problem, index: index == 1
    collect(made, step=1)
    assert made.verifier.rollouts == 1 and len(made.replay.groups) == 1 and learned == [1]


def test_the_share_of_tokens_with_a_policy_loss_is_of_those_in_the_loss():
    made = collector(Fake(lambda problem, index: torch.nan if index % 2 else 1.0))
    made.options.policy_token_share = 0.5
    # The entropy is highest in completions without an outcome, which are left out of the loss.
    entropy_BC = torch.rand(8, WIDTH) + torch.arange(8).remainder(2).unsqueeze(1)
    made.policy_scores = lambda rollout: Scores(rollout.logprobs_BC, entropy_BC, None)
    batch, _, metrics = collect(made)
    tokens = batch["completion_mask"].sum()
    assert tokens == 1 + 3 + 5 + 2 and batch["policy_mask"].sum() == 6  # half of 11
    assert metrics["policy_tokens"] == [pytest.approx(6 / 11)]


def test_the_kl_from_the_reference_is_subtracted_and_moves_the_coefficient():
    made = collector(Fake(), kl_coef=0.1, kl_controller="adaptive")
    _, _, metrics = collect(made)
    assert metrics["kl"] == [pytest.approx(0.5)]
    assert made.kl.coef == pytest.approx(0.1 * (1 + 0.2 * 8 / 100))  # the error is at its bound


def test_an_evaluation_has_one_completion_a_row_and_no_penalty_in_training_terms():
    made = collector(Fake(), overlong_penalty=1.0)
    log = PPOLog(defaultdict(list), ONE_PROCESS)
    batch, samples = made.evaluate(ROWS, 1, log)
    assert len(samples.texts) == len(ROWS)
    assert "reward/overlong" not in log.metrics and SAMPLED_TOKENS not in log.metrics
    again, _ = made.evaluate(ROWS, 1, log)
    assert torch.equal(batch["old_values"], again["old_values"])


# ---- rewards ----


def test_rewards_are_one_column_a_function_and_nan_where_none_applies():
    recorded = []
    functions = {
        "length": lambda problem, text: len(text),
        "even": lambda problem, text: 1.0 if problem.level == "even" else None,
    }
    parts_BF = reward_parts(
        functions,
        PROBLEMS[:2],
        ["abc", "d"],
        lambda name, rewards: recorded.append((name, rewards)),
    )
    torch.testing.assert_close(
        parts_BF, torch.tensor([[3.0, 1.0], [1.0, torch.nan]]), equal_nan=True
    )
    assert recorded == [("length", [3, 1]), ("even", [1.0, None])]
    outcomes_B = weighted_outcomes(parts_BF, torch.tensor([0.5, 2.0]))
    assert outcomes_B.tolist() == [3.5, 0.5]
    assert weighted_outcomes(parts_BF[1:, 1:], torch.ones(1)).isnan().all()


# ---- update ----


def scores_of(batch: dict, seed: int = 1) -> Scores:
    """Scores that differ from those of the rollout, and follow from it row by row."""
    offset_BC = 0.3 * torch.sin(17 * batch["old_logprobs"] + seed)
    logprobs_BC = (batch["old_logprobs"] + offset_BC).detach().requires_grad_()
    return Scores(logprobs_BC, -logprobs_BC, batch["old_values"] + offset_BC)


def micro_batches(batch: dict, size: int) -> list[MicroBatch]:
    """The micro-batches of one minibatch."""
    (minibatch,) = make_micro_batches(batch, 1, torch.Generator(), cut_evenly(size))
    return minibatch


def loss_of(batches: list[dict], options: PPOOptions, **given: Any) -> torch.Tensor:
    log = PPOLog(defaultdict(list), ONE_PROCESS)
    settings = {"kl_coef": 0.0, "warming_up": False, "processes": 1, **given}
    return sum(micro_batch_loss(scores_of(b), b, options, log, **settings) for b in batches)


@pytest.mark.parametrize(
    "options", [{}, {"positive_nll_coef": 0.5}, {"dual_clip": 2.0, "clip_high": 0.3}], ids=str
)
def test_micro_batches_have_the_loss_of_their_minibatch(options):
    made = collector(Fake(), **options)
    batch, _, _ = collect(made)
    losses = [loss_of(micro_batches(batch, size), made.options) for size in (8, 4, 1)]
    assert losses[0].abs() > 1e-3
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


@pytest.mark.parametrize("minibatches", [2, 4])
def test_with_the_mean_of_the_rollout_the_minibatches_have_its_loss_on_average(minibatches):
    made = collector(Fake())
    batch, _, _ = collect(made)
    whole = loss_of(micro_batches(batch, 8), made.options)
    means = {}
    for token_mean in ("rollout", "minibatch"):
        generator = torch.Generator().manual_seed(0)
        parts = make_micro_batches(
            batch, minibatches, generator, cut_evenly(2), token_mean=token_mean
        )
        means[token_mean] = sum(loss_of(part, made.options) for part in parts) / minibatches
    torch.testing.assert_close(means["rollout"], whole)
    # A minibatch with few tokens has the same weight as one with many.
    assert (means["minibatch"] - whole).abs() > 1e-3


def test_every_epoch_has_all_rows_in_a_new_order_with_their_token_counts():
    batch, _, _ = collect(collector(Fake()))
    generator = torch.Generator().manual_seed(0)
    minibatches = [make_micro_batches(batch, 2, generator, cut_evenly(2)) for _ in range(2)]
    epochs = [[micro for part in epoch for micro in part] for epoch in minibatches]
    for micro in epochs:
        assert len(micro) == 4 and all(len(b["returns"]) == 2 for b in micro)
        tokens = [int(b["completion_mask"].sum()) for b in micro]
        assert [int(b["minibatch_tokens"]) for b in micro] == [
            *[tokens[0] + tokens[1]] * 2,
            *[tokens[2] + tokens[3]] * 2,
        ]
    first, second = (torch.cat([b["old_values"][:, 0] for b in micro]) for micro in epochs)
    assert sorted(first.tolist()) == sorted(second.tolist()) and first.tolist() != second.tolist()


def test_warming_up_leaves_the_policy_without_gradient():
    made = collector(Fake(), entropy_coef=0.1)
    batch, _, _ = collect(made)
    (micro,) = micro_batches(batch, 8)
    log = PPOLog(defaultdict(list), ONE_PROCESS)
    for warming_up in (True, False):
        scores = scores_of(micro)
        loss = micro_batch_loss(
            scores, micro, made.options, log, kl_coef=0.0, warming_up=warming_up, processes=1
        )
        loss.backward()
        assert bool(scores.logprobs_BC.grad.abs().sum() == 0) == warming_up


def test_the_kl_loss_is_added_in_training_and_not_in_evaluation():
    made = collector(Fake(), kl_coef=0.1, kl_in="loss", kl_estimator="k2")
    batch, _, _ = collect(made)
    (micro,) = micro_batches(batch, 8)
    scores, mask_BC = scores_of(micro), micro["completion_mask"]
    log_ratio = (scores.logprobs_BC - micro["ref_logprobs"])[mask_BC]
    without, with_kl = (loss_of([micro], made.options, kl_coef=coef) for coef in (0.0, 0.1))
    torch.testing.assert_close(with_kl - without, 0.1 * 0.5 * log_ratio.square().mean())
    log = PPOLog(defaultdict(list), ONE_PROCESS)
    torch.testing.assert_close(evaluation_loss(scores, micro, made.options, log), without)


def test_a_stored_rollout_is_refused_with_both_numbers_of_processes(tmp_path):
    for process in range(2):
        save_rollout(tmp_path, process, {"returns": torch.ones(1, 1)})
    with pytest.raises(ValueError, match=r"processes=2, and this run has processes=1;"):
        load_rollout(tmp_path, 0, 1, torch.device("cpu"))
