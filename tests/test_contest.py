"""The contest: submissions, penalty, rating of a planted contestant, and the command."""

import json
import random

import pytest

from eval import contest
from eval.contest_rules import (
    ContestRow,
    parse_ratings,
    problem_rating,
    rating_of,
    standing,
    submit,
)
from pipeline.data import read_problems
from pipeline.grading.verdict import Verdict
from pipeline.model import save_policy
from pipeline.records import Answer, Problem
from pipeline.stats.elo import chance_to_solve

PROBLEM = Problem(question="?", answer="right", id="a")


def judge(problem: Problem, text: str) -> Verdict:
    if text == "lost":
        return Verdict(None, "no verdict")
    return Verdict(text == problem.answer, "" if text == problem.answer else "other output")


def row(verdicts: list[bool | None], rating: float = 1500) -> ContestRow:
    made = [{"answer": "", "accepted": verdict, "why": ""} for verdict in verdicts]
    return {
        **{"id": "", "level": "", "question": "", "rating": rating, "submissions": made},
        **{"repeated": 0, "correct": bool(verdicts) and verdicts[-1] is True},
    }


def test_submissions_end_with_the_first_accepted_one_and_no_program_comes_twice():
    made, repeated = submit(PROBLEM, ["a", "a ", "lost", "right", "b"], 10, judge)
    assert [each["accepted"] for each in made] == [False, None, True]
    assert repeated == 1


def test_no_more_than_the_allowed_submissions_are_made():
    made, _ = submit(PROBLEM, [*map(str, range(10)), "right"], 10, judge)
    assert [each["accepted"] for each in made] == [False] * 10


def test_two_answers_with_one_program_are_one_submission():
    check = json.dumps({"judge": "program", "kind": "stdio", "inputs": [""], "outputs": ["1"]})
    problem = Problem(question="?", answer="", check=check)
    answers = ["```python\nprint(1)\n```", "So:\n```python\nprint(1)  \n```"]
    made, repeated = submit(problem, answers, 10, lambda problem, text: Verdict(False))
    assert (len(made), repeated) == (1, 1)


def test_the_penalty_counts_rejected_submissions_of_solved_problems_only():
    rows = [row([True]), row([False, None, True]), row([False] * 10), row([])]
    found = standing(rows)
    assert (found.solved, found.n, found.penalty, found.submissions) == (2, 4, 40, 14)
    assert (found.first_try, found.no_verdict) == (1, 1)


@pytest.mark.parametrize("planted", [900.0, 1500.0, 2300.0])
def test_a_planted_rating_lies_in_its_interval_as_often_as_stated(planted):
    rng = random.Random(int(planted))
    covered, estimates = 0, []
    for _ in range(200):
        rows = []
        for _ in range(40):
            rating = planted + rng.uniform(-600, 600)
            # A submission passes so often that one of ten does with the chance to solve.
            once = 1 - (1 - chance_to_solve(planted, rating)) ** (1 / 10)
            tries = next((i for i in range(10) if rng.random() < once), None)
            rows.append(row([False] * 10 if tries is None else [False] * tries + [True], rating))
        found = rating_of(rows, 10)
        covered += found["low"] <= planted <= found["high"]
        estimates.append(found["rating"])
    assert 182 <= covered <= 198  # 95%, give or take 2.6 standard errors
    assert sum(estimates) / 200 == pytest.approx(planted, abs=15)


def test_ratings_come_from_the_level_or_from_the_option():
    easy, rated = (Problem(question="?", answer="", level=level) for level in ("easy", "1200"))
    assert problem_rating(easy, parse_ratings("easy=1000")) == 1000
    assert problem_rating(rated, {}) == 1200
    with pytest.raises(ValueError, match="level='easy', which is no rating; give --ratings"):
        problem_rating(easy, {})
    with pytest.raises(ValueError, match="level='nan', which is no rating; give --ratings"):
        problem_rating(Problem(question="?", answer="", level="nan"), {})
    for text, item in (("easy=1,hard", "hard"), ("=1000", "=1000")):
        with pytest.raises(ValueError, match=f"must look like 'introductory=.*; '{item}' does not"):
            parse_ratings(text)
    assert parse_ratings("") == {}


def test_the_command_holds_a_contest_and_rates_again(
    tmp_path, tiny_policy, tokenizer, monkeypatch, capsys
):
    rows = [
        {
            "question": f"Print {n}.",
            "tests": {"inputs": [""], "outputs": [str(n)]},
            "level": 1000 * n,
        }
        for n in (1, 2)
    ]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert all(p.check for p in read_problems(str(tmp_path / "tasks.jsonl"), "test").problems)
    save_policy(tiny_policy, tokenizer, tmp_path / "model")
    asked = []

    def programs(model, tokenizer, questions, options, *, temperature):
        asked.append((len(questions), options.n))
        texts = ["```python\nprint(0)\n```", "```python\nprint(1)\n```"]
        return [[Answer(text=text) for text in texts] for _ in questions]

    monkeypatch.setattr(contest, "sample_answers", programs)
    (tmp_path / "ratings.txt").write_text("900\n1600\n1700\n")
    command = [
        *("--checkpoint", str(tmp_path / "model"), "--dataset", str(tmp_path / "tasks.jsonl")),
        *("--max_sample_tokens", "64", "--output_dir", str(tmp_path / "out")),
    ]
    contest.main(command)
    result = json.loads((tmp_path / "out" / "contest.json").read_text())
    assert (result["solved"], result["n"], result["penalty"]) == (1, 2, 20)
    assert result["rating"]["rating"] == pytest.approx(1500)
    contest.main([*command, "--contestants", str(tmp_path / "ratings.txt")])
    assert asked == [(2, 10)]
    result = json.loads((tmp_path / "out" / "contest.json").read_text())
    assert result["rating"]["percentile"] == pytest.approx(100 / 3)
    assert result["population"] == {"file": "ratings.txt", "n": 3}
    assert "above 33.3%; 1 of 2 problems in 10 submissions" in capsys.readouterr().out

    def cut(model, tokenizer, questions, options, *, temperature):
        return [[Answer(text="", finish_reason="length")] for _ in questions]

    monkeypatch.setattr(contest, "sample_answers", cut)
    contest.main([*command[:-1], str(tmp_path / "short")])
    assert "no sample is finished" in capsys.readouterr().out
