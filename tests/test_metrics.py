"""Metrics against sums by hand, brute force and the identities they must satisfy."""

from itertools import combinations
from math import lgamma
from pathlib import Path

import numpy as np
import pytest

from eval.metrics.modules import METRICS
from eval.metrics.scores import avg_at_k, majority_at_k, mean_tokens, pass_at_k, unbiased_pass_at_k
from pipeline.stats.intervals import Estimate, accuracy, bootstrap_mean, bounded_mean, wilson
from pipeline.stats.paired import mcnemar, paired_bootstrap
from tests.forked import run_forked

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(8, 10, 0.490162, 0.943318), (10, 20, 0.299298, 0.700702), (1, 100, 0.001767, 0.054486)],
)
def test_wilson_gives_the_published_values(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-6)


def test_a_mean_of_an_array_is_that_of_the_list():
    shares = [0.0, 0.5, 1.0]
    assert bounded_mean(np.array(shares)) == bounded_mean(shares)


def test_wilson_keeps_its_width_when_nothing_succeeds():
    # z^2 / (n + z^2) = 3.8415 / 13.8415
    assert wilson(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson(10, 10) == pytest.approx((0.722467, 1.0), abs=1e-6)


def test_wilson_bounds_have_the_critical_value_of_the_score_test():
    for bound in wilson(3, 17):
        z = abs(3 / 17 - bound) / np.sqrt(bound * (1 - bound) / 17)
        assert z == pytest.approx(1.959964, abs=1e-6)


def test_an_interval_contains_its_proportion_exactly():
    for n in (1, 5, 7, 100, 1319):
        for successes in (0, 1, n // 2, n - 1, n):
            low, high = wilson(successes, n)
            assert 0 <= low <= successes / n <= high <= 1


def test_a_higher_confidence_gives_a_wider_interval():
    assert wilson(5, 9, 0.99)[0] < wilson(5, 9, 0.95)[0] < wilson(5, 9, 0.5)[0]


@pytest.mark.parametrize("bad", [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(bad):
    with pytest.raises(ValueError, match="n must be at least 1"):
        wilson(*bad)


def test_accuracy_is_the_share_with_its_wilson_interval():
    assert accuracy([True] * 8 + [False] * 2) == Estimate(0.8, *wilson(8, 10))


@pytest.mark.parametrize("n", [1, 4, 6])
def test_pass_at_k_equals_the_share_of_subsets_with_a_right_sample(n):
    for c in range(n + 1):
        samples = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = [any(s) for s in combinations(samples, k)]
            assert unbiased_pass_at_k(n, c, k) == pytest.approx(sum(subsets) / len(subsets))


def test_pass_at_k_is_exact_for_many_samples():
    assert unbiased_pass_at_k(1000, 1, 500) == pytest.approx(0.5)


def test_pass_at_one_is_avg_at_k():
    outcomes_QG = [[True, False, False, True], [False] * 4, [True, True, True, False]]
    assert pass_at_k(outcomes_QG, 1).mean == pytest.approx(avg_at_k(outcomes_QG).mean)
    # (2/4 + 0/4 + 3/4) / 3
    assert avg_at_k(outcomes_QG).mean == pytest.approx(5 / 12)


def test_pass_at_k_refuses_more_than_was_sampled():
    with pytest.raises(ValueError, match="k=3 of n=2 samples"):
        pass_at_k([[True, False]], 3)


def test_a_majority_of_the_first_k_counts():
    texts_QG = [["8", "9", "9"], ["1", "1", "2"]]
    # k = 1: 8 and 1; k = 3: 9 and 1. Expected 9 and 1.
    assert majority_at_k(texts_QG, ["9", "1"], k=1).mean == 0.5
    assert majority_at_k(texts_QG, ["9", "1"], k=3).mean == 1.0


def test_a_tie_goes_to_the_answer_seen_first():
    assert majority_at_k([["5", "6"]], ["5"], k=2).mean == 1.0
    assert majority_at_k([["6", "5"]], ["5"], k=2).mean == 0.0


def test_a_majority_reads_a_percentage_as_the_question_asks_for_it():
    texts_QG, questions = [["3", "3", "20%", "20", "20 %"]], ["What percentage of them is red?"]
    assert majority_at_k(texts_QG, ["20"], k=5, questions_Q=questions).mean == 1.0
    assert majority_at_k(texts_QG, ["20"], k=5).mean == 0.0
    modules = {"predictions": ["20%"], "references": ["20"]}
    assert METRICS["accuracy"]().compute(**modules, questions=questions)["accuracy"] == 1.0
    assert METRICS["accuracy"]().compute(**modules)["accuracy"] == 0.0


def test_paired_and_calibration_modules_grade_with_the_questions_too():
    references, questions = ["20", "7"], ["What percentage of them is red?", "How many?"]
    pair = {"predictions1": ["20%", "8"], "predictions2": ["20%", "7"]}
    gain = METRICS["paired_difference"]().compute(
        **pair, references=references, questions=questions
    )
    assert gain["difference"] == 0.5
    sure = {"predictions": ["20%", "8"], "references": references, "confidences": [0.9, 0.1]}
    assert METRICS["calibration_error"]().compute(**sure)["brier"] == pytest.approx(0.41)
    with_questions = METRICS["calibration_error"]().compute(**sure, questions=questions)
    assert with_questions["brier"] == pytest.approx(0.01)


def test_a_question_without_any_answer_counts_as_wrong():
    assert majority_at_k([["", ""]], ["5"], k=2).mean == 0.0


@pytest.mark.parametrize("score", [lambda: accuracy([]), lambda: mean_tokens([])])
def test_no_questions_have_no_score(score):
    with pytest.raises(ValueError, match="no questions"):
        score()


def test_the_bootstrap_is_reproducible_and_independent_of_order():
    values = [i * i % 97 for i in range(200)]
    assert bootstrap_mean(values, seed=7) == bootstrap_mean(sorted(values), seed=7)
    assert bootstrap_mean(values, seed=7) != bootstrap_mean(values, seed=8)


def test_the_bootstrap_does_not_depend_on_its_blocks():
    """The distinct values decide how many resamples are drawn at once; the means stay the same."""
    values = np.arange(3000.0)  # 666 resamples a block
    blocked = bootstrap_mean(values, resamples=1500)
    rng = np.random.default_rng(0)
    means = rng.multinomial(3000, np.full(3000, 1 / 3000), size=1500) @ values / 3000
    low, high = np.quantile(means, [0.025, 0.975])
    assert (blocked.low, blocked.high) == pytest.approx((low, high))


def test_the_bootstrap_agrees_with_resampling_by_index():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 50, size=80)
    means = values[rng.integers(0, 80, size=(10_000, 80))].mean(axis=1)
    naive = np.quantile(means, [0.025, 0.975])
    ours = mean_tokens(values)
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx(naive, abs=0.15)  # the interval is 6.5 wide


def test_paired_differences_ignore_how_hard_the_questions_are():
    gain = paired_bootstrap([0, 0, 1, 1] * 25, [0, 1, 1, 1] * 25)
    assert gain.mean == 0.25
    # sd of a difference is sqrt(0.25 * 0.75), 1.96 of it over sqrt(100) is 0.085
    assert (gain.low, gain.high) == pytest.approx((0.165, 0.335), abs=0.011)


def test_swapping_the_pair_negates_the_interval():
    before, after = [0, 0, 1, 1, 0, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 1]
    there, back = paired_bootstrap(before, after), paired_bootstrap(after, before)
    assert there.mean == -back.mean
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=0.126)  # one of 8


def test_the_paired_interval_covers_the_truth_95_percent_of_the_time():
    """400 evaluations of 150 questions; after wins 20% and loses 10%, so the truth is 0.1."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        change = rng.choice([1, -1, 0], size=150, p=[0.2, 0.1, 0.7])
        gain = paired_bootstrap((change < 0).astype(int), (change > 0).astype(int), resamples=1000)
        covered += gain.low <= 0.1 <= gain.high
    assert 0.92 <= covered / 400 <= 0.975


@pytest.mark.parametrize(("share", "n"), [(0.5, 150), (0.9, 600), (0.03, 1319)])
def test_the_accuracy_interval_covers_the_truth_95_percent_of_the_time(share, n):
    """Exact, not sampled: the probability of every count whose interval holds the truth."""
    counts = np.arange(n + 1)
    log_choose = np.array([lgamma(n + 1) - lgamma(c + 1) - lgamma(n - c + 1) for c in counts])
    chances = np.exp(log_choose + counts * np.log(share) + (n - counts) * np.log1p(-share))
    holds = [low <= share <= high for low, high in (wilson(int(c), n) for c in counts)]
    assert chances[holds].sum() == pytest.approx(0.95, abs=0.015)


def test_the_token_interval_covers_the_truth_95_percent_of_the_time():
    """400 evaluations of 200 questions whose cost is skewed, as thoughts are; the mean is 40."""
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        found = bootstrap_mean(np.round(rng.gamma(4, 10, size=200)), resamples=500)
        covered += found.low <= 40 <= found.high
    assert 0.92 <= covered / 400 <= 0.975


def test_pass_at_k_intervals_cover_at_least_their_confidence():
    """Questions of different difficulty, 8 samples each, k = 4: shares vary less than coins do."""
    rng = np.random.default_rng(3)
    truth = np.mean(1 - (1 - np.linspace(0.0005, 0.9995, 1000)) ** 4)  # over uniform difficulty
    covered = 0
    for _ in range(400):
        chance = rng.random(150)
        found = pass_at_k(rng.random((150, 8)) < chance[:, None], 4)
        covered += found.low <= truth <= found.high
    assert covered / 400 >= 0.95


def test_unequal_numbers_of_outcomes_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        paired_bootstrap([1, 0, 1], [1, 0])
    with pytest.raises(ValueError, match="shorter"):
        mcnemar([True, False], [True])


def test_mcnemar_by_hand():
    before = [True, False, False, False, False, False, True, False]
    after = [False, True, True, True, True, True, True, False]
    # one lost, five won: 2 * (C(6,0) + C(6,1)) / 2^6 = 14 / 64
    assert mcnemar(before, after) == 14 / 64 == mcnemar(after, before)


def test_mcnemar_is_one_without_a_net_change():
    assert mcnemar([True, False, True], [True, False, True]) == 1.0
    assert mcnemar([True, False], [False, True]) == 1.0


def test_mcnemar_is_exact_for_thousands_of_questions():
    assert 0 < mcnemar([False] * 3000 + [True] * 2000, [True] * 3000 + [False] * 2000) < 1e-40


def test_every_metric_loads_offline_from_any_folder(tmp_path):
    script = """
import os, evaluate
evaluate.config.HF_MODULES_CACHE = os.path.join(os.getcwd(), "modules")
evaluate.config.HF_METRICS_CACHE = os.path.join(os.getcwd(), "metrics")
answers, expected = ["7", "8"], ["7", "9"]
samples = [["7", "8"], ["9", "9"]]
here = lambda name: os.path.join(ROOT, "eval", "metrics", name)
print(evaluate.load(here("accuracy")).compute(predictions=answers, references=expected)["accuracy"])
print(evaluate.load(here("paired_difference")).compute(
    predictions1=answers, predictions2=expected, references=expected)["difference"])
print(evaluate.load(here("mean_tokens")).compute(data=[10, 20])["mean_tokens"])
os.chdir(ROOT)
load = lambda name: evaluate.load("eval/metrics/" + name)
many = {"predictions": samples, "references": expected}
print(load("majority_at_k").compute(**many, k=2)["majority_at_k"])
print(load("pass_at_k").compute(**many, k=2)["pass_at_k"])
print(load("avg_at_k").compute(**many)["ci95"])
print(load("calibration_error").compute(
    predictions=answers, references=expected, confidences=[0.75, 0.25])["ece"])
"""
    done = run_forked(lambda: exec(script, {"ROOT": str(ROOT)}), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    # avg@2 is (1/2 + 2/2) / 2 = 0.75 over two questions
    printed = [0.5, 0.5, 15.0, 1.0, 1.0, list(wilson(1.5, 2)), 0.25]
    assert done.stdout.split("\n")[:-1] == [str(value) for value in printed]
