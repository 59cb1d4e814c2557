"""Elo ratings: simulated contestants are recovered, and sums by hand."""

import json
from math import inf

import numpy as np
import pytest

from eval import codeforces
from eval.codeforces import rate, read_verdicts
from pipeline.stats.elo import chance_to_solve, elo, percentile


def test_at_the_estimate_the_expected_number_of_solved_problems_is_the_actual_one():
    ratings = [800, 1000, 1200, 1500, 1900, 2400]
    found = elo(ratings, [True, True, False, True, False, False])
    assert sum(chance_to_solve(found.rating, d) for d in ratings) == pytest.approx(3, abs=1e-6)


def test_for_equal_problems_the_estimate_has_the_share_solved_as_its_probability():
    # p = 10/11 is 400 points above the problems
    assert elo([1500] * 11, [True] * 10 + [False]).rating == pytest.approx(1900, abs=1e-3)


def test_the_bounds_of_the_interval_have_the_critical_likelihood_ratio():
    ratings = np.array([900, 1300, 1300, 1700])
    solved = np.array([True, False, True, False])
    found = elo(ratings, solved)

    def log_likelihood(r: float) -> float:
        p = np.array([chance_to_solve(r, d) for d in ratings])
        return float(np.log(np.where(solved, p, 1 - p)).sum())

    for end in (found.low, found.high):
        lost = 2 * (log_likelihood(found.rating) - log_likelihood(end))
        assert lost == pytest.approx(3.841459, abs=1e-4)  # chi2 with one degree of freedom


def test_a_shift_of_all_problems_shifts_the_rating():
    solved = [True, False, True, False]
    here, there = (elo([d + s for d in (900, 1100, 1500, 2000)], solved) for s in (0, 300))
    assert there.rating - here.rating == pytest.approx(300, abs=1e-3)
    assert there.low - here.low == pytest.approx(300, abs=1e-3)


@pytest.mark.parametrize("shift", [-8000, 4900, 1e6, 1e12])
def test_ratings_of_another_scale_have_an_estimate_and_two_bounds(shift):
    here, there = (elo([d + s for d in (1000, 1000)], [True, False]) for s in (0, shift))
    found = [x - shift for x in (there.rating, there.low, there.high)]
    assert found == pytest.approx([here.rating, here.low, here.high], abs=1e-2)


def test_all_or_none_solved_gives_one_finite_bound():
    best = elo([1000, 1200], [True, True])
    assert best.rating == best.high == inf and 0 < best.low < 1200
    worst = elo([1000, 1200], [False, False])
    assert worst.rating == worst.low == -inf and worst.high > 1000


def test_the_interval_covers_simulated_ratings_95_percent_of_the_time():
    """1,200 contestants of known rating on 60 problems each: 95% +- 1.5 points."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1200):
        true = rng.uniform(1000, 2200)
        ratings = rng.uniform(800, 2600, size=60)
        solved = rng.random(60) < 1 / (1 + 10 ** ((ratings - true) / 400))
        found = elo(ratings, solved)
        covered += found.low <= true <= found.high
    assert 0.935 <= covered / 1200 <= 0.965


def test_only_the_first_submissions_count():
    late = {"rating": 1000, "verdicts": [False] * 10 + [True]}
    assert rate([late])["solved"] == 0
    assert rate([late], submissions=11)["solved"] == 1


def test_a_percentile_counts_lower_ratings_and_half_of_equal_ones():
    assert percentile(1200, [1000, 1200, 1200, 1400]) == 50.0


@pytest.mark.parametrize(
    "line",
    [
        *("[]", "{}", '{"rating": 5, "verdicts": [1]}', '{"rating": "x", "verdicts": []}'),
        *('{"rating": NaN, "verdicts": [true]}', '{"rating": -Infinity, "verdicts": [true]}'),
    ],
)
def test_an_error_names_the_line_without_verdicts(line):
    with pytest.raises(ValueError, match="line 2 is no problem"):
        read_verdicts(['{"rating": 800, "verdicts": [true]}', line])


def test_the_command_rates_a_file(tmp_path, capsys):
    rows = [{"rating": 1000, "verdicts": [True]}, {"rating": 2000, "verdicts": [False]}]
    (tmp_path / "v.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "others.txt").write_text("1000\n1400\n1800\n2200\n")
    options = ["--contestants", str(tmp_path / "others.txt"), "--output", str(tmp_path / "e.json")]
    codeforces.main(["--verdicts", str(tmp_path / "v.jsonl"), *options])
    assert "rating 1500 [" in capsys.readouterr().out
    figures = json.loads((tmp_path / "e.json").read_text())
    assert (round(figures["rating"]), figures["percentile"]) == (1500, 50.0)


@pytest.mark.parametrize(("solved", "unknown"), [(False, "low"), (True, "high")])
def test_an_infinite_rating_is_null_in_the_file(tmp_path, solved, unknown):
    (tmp_path / "v.jsonl").write_text(json.dumps({"rating": 1000, "verdicts": [solved]}))
    codeforces.main(["--verdicts", str(tmp_path / "v.jsonl"), "--output", str(tmp_path / "e.json")])
    text = (tmp_path / "e.json").read_text()
    figures = json.loads(text, parse_constant=pytest.fail)
    assert figures["rating"] is figures[unknown] is None and figures["n"] == 1


def test_a_contestant_without_a_finite_rating_is_refused(tmp_path):
    (tmp_path / "others.txt").write_text("1000\nnan\n")
    with pytest.raises(ValueError, match="rating 2 is 'nan'; write one number a line"):
        codeforces.read_ratings(str(tmp_path / "others.txt"))
    (tmp_path / "others.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"others\.txt is empty"):
        codeforces.read_ratings(str(tmp_path / "others.txt"))
