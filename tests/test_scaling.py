"""Scaling: simulated laws are recovered; votes over stored samples against brute force."""

import json
from dataclasses import asdict
from itertools import permutations

import numpy as np
import pytest

from eval import scaling
from eval.samples import NO_VOTE, majority_curve, sample_scores
from pipeline.stats.scaling_law import fit_log_law, per_doubling_interval

TOKENS = [20 * 2**i for i in range(7)]


def _row(n: int, votes: list[int], right: int = 0, tokens: int = 10) -> dict:
    samples = [
        {
            "answer": str(v),
            "vote": v,
            "correct": v == right,
            "tokens": tokens,
            "value": 0.75 if v == right else 0.25,
        }
        for v in votes
    ]
    about = {"id": f"p{n}", "level": "", "question": f"{n}?", "expected": "0", "seconds": 1.0}
    return about | {"samples": samples}


def test_a_simulated_law_is_recovered():
    law = fit_log_law(TOKENS, [0.1 + 0.05 * min(i, 4) for i in range(7)])
    assert law.per_doubling == pytest.approx(0.05, abs=2e-3)
    assert np.log2(law.saturates_at / 20) == pytest.approx(4, abs=0.1)
    assert law.ceiling == pytest.approx(0.3, abs=2e-3)
    assert law.r2 > 0.999


def test_a_straight_line_has_no_saturation():
    law = fit_log_law(TOKENS, [0.1 + 0.05 * i for i in range(7)])
    assert law.saturates_at is None
    assert law.r2 == pytest.approx(1.0)
    assert law(40) == pytest.approx(0.15) and law(640) == pytest.approx(0.35)


def test_a_flat_curve_gains_nothing_and_has_no_r2():
    law = fit_log_law(TOKENS, [0.4] * 7)
    assert (law.per_doubling, law.r2) == (pytest.approx(0.0), None)


def test_points_of_equal_cost_are_fitted_together():
    law = fit_log_law([10, 10, 20, 40], [0.1, 0.3, 0.3, 0.4])
    assert law.per_doubling == pytest.approx(0.1) and law(10) == pytest.approx(0.2)


@pytest.mark.parametrize(("cost", "accuracy"), [(np.nan, 0.2), (np.inf, 0.2), (20.0, np.nan)])
def test_a_point_that_is_not_finite_is_refused(cost, accuracy):
    with pytest.raises(ValueError, match="not a finite number"):
        fit_log_law([10.0, cost, 40.0, 80.0], [0.1, accuracy, 0.3, 0.4])


def test_the_gain_per_doubling_does_not_depend_on_the_unit_of_cost():
    accuracy = [0.1, 0.2, 0.28, 0.33, 0.35, 0.36, 0.36]
    one, thousand = fit_log_law(TOKENS, accuracy), fit_log_law([1000 * t for t in TOKENS], accuracy)
    assert thousand.per_doubling == pytest.approx(one.per_doubling)
    assert thousand.saturates_at == pytest.approx(1000 * one.saturates_at)


def test_the_interval_of_the_slope_covers_the_truth():
    """200 evaluations of 100 questions that become right at a random place of a straight law."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        turns = rng.random(100)  # right from k on, where 0.1 + 0.1 i passes this
        curve = np.array([turns < 0.1 + 0.1 * i for i in range(5)]).T.astype(float)
        found = per_doubling_interval(TOKENS[:5], curve, resamples=200, seed=seed)
        covered += found.low <= 0.1 <= found.high
    assert 0.9 <= covered / 200 <= 0.99


def test_fewer_than_three_costs_are_refused():
    with pytest.raises(ValueError, match="2 different costs"):
        fit_log_law([10, 20], [0.1, 0.2])


def test_a_vote_of_one_is_a_single_sample():
    rows = [_row(0, [0, 0, 1]), _row(1, [1, 1, 0])]
    curve = majority_curve(rows, [1, 3])
    assert curve[:, 1].tolist() == [1.0, 0.0]
    assert curve[:, 0] == pytest.approx([2 / 3, 1 / 3], abs=0.35)  # 16 random first samples


def test_the_curve_is_near_the_mean_over_all_orders():
    votes = [0, 1, 1, 2, 0, NO_VOTE]
    rows = [_row(i, votes) for i in range(150)]
    for k in (2, 3, 4):
        exact = np.mean([_plurality(order[:k]) == 0 for order in permutations(votes)])
        assert majority_curve(rows, [k]).mean() == pytest.approx(exact, abs=0.03)


def _plurality(votes: tuple[int, ...]) -> int:
    cast = [v for v in votes if v != NO_VOTE]
    return max(cast, key=lambda v: (cast.count(v), -cast.index(v))) if cast else NO_VOTE


def test_samples_without_an_answer_count_as_wrong():
    assert majority_curve([_row(0, [NO_VOTE, NO_VOTE])], [1, 2]).tolist() == [[0.0, 0.0]]


def test_metrics_of_stored_samples_by_hand():
    figures = sample_scores([_row(0, [0, 0, 1, 0]), _row(1, [1, 1, 1, 0])])
    assert (figures["n"], figures["samples"], figures["tokens_a_sample"]) == (2, 4, 10.0)
    last = figures["by_k"][-1]
    assert (last["k"], last["tokens"]) == (4, 40.0)
    assert last["avg"]["mean"] == (3 / 4 + 1 / 4) / 2
    assert (last["majority"]["mean"], last["pass"]["mean"]) == (0.5, 1.0)
    # right samples have a value of 0.75, wrong ones of 0.25
    assert (
        figures["value"]["ece"] == 0.25 and figures["value"]["within_question_auroc_pooled"] == 1.0
    )


def test_results_with_the_name_of_their_plot_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        scaling.main(["--samples", "PPO=any", "--output", str(tmp_path / "s.png")])
    assert "s.png" in capsys.readouterr().err


def test_a_constant_value_head_has_no_calibration():
    rows = [_row(0, [0, 1]), _row(1, [0, 1])]
    assert sample_scores(rows)["value"] is not None
    for value in (0.0, None):
        for row in rows:
            row["samples"] = [s | {"value": value} for s in row["samples"]]
        assert sample_scores(rows)["value"] is None


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        ([0.1, 0.2, 0.3, 0.4], "still rising at 160 tokens"),
        ([0.4, 0.3, 0.2, 0.1], "still falling at 160 tokens"),
        ([0.1, 0.3, 0.3, 0.3], "saturating at 40 tokens and 30.0%"),
        ([0.3, 0.1, 0.1, 0.1], "falling to 10.0% at 40 tokens, then flat"),
        ([0.3, 0.3, 0.3, 0.3], "flat up to 160 tokens"),
    ],
)
def test_a_curve_is_said_to_rise_only_where_it_does(accuracy, said):
    tokens = [20.0, 40.0, 80.0, 160.0]
    law = fit_log_law(tokens, accuracy)
    slope = {"mean": law.per_doubling, "low": -1e-9, "high": 0.0}
    points = [{"k": 1, "tokens": t, "accuracy": a} for t, a in zip(tokens, accuracy, strict=True)]
    line = scaling.describe_law({"points": points, "law": asdict(law), "per_doubling": slope})
    assert said in line and "-0.0" not in line


def test_the_command_writes_points_law_and_plot(tmp_path, capsys):
    folder = tmp_path / "samples"
    folder.mkdir()
    rows = [_row(i, [0, 0, 0, 1] if i % 2 else [1, 0, 1, 1]) for i in range(20)]
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "metrics.json").write_text("{}")
    scaling.main(["--samples", f"PPO={folder}", "--output", str(tmp_path / "s.json")])
    points = json.loads((tmp_path / "s.json").read_text())["PPO"]["points"]
    assert [p["tokens"] for p in points] == [10.0, 20.0, 40.0]
    assert points[-1]["accuracy"] == 0.5
    assert "points per doubling of the tokens" in capsys.readouterr().out
    assert (tmp_path / "s.png").stat().st_size > 1000
