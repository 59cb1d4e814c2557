"""Repeated questions: inside a list, between two lists, and what is taken out."""

import os
from pathlib import Path

import pytest

from pipeline.data.overlap import duplicates, masked_numbers, normalised, shared, without_overlap
from pipeline.data.problems import load_problems
from pipeline.records import Problem

MIRROR = Path(os.environ.get("REASONER_DATA") or Path(__file__).parents[2] / "shared" / "data")
mirror = pytest.mark.skipif(
    not MIRROR.is_dir(), reason=f"no local data: neither REASONER_DATA nor {MIRROR} is a folder"
)


def ask(*questions: str) -> list[Problem]:
    return [Problem(question=question, answer="1") for question in questions]


def test_each_repeat_is_paired_with_the_first_and_counted_once():
    overlap = duplicates(ask("2 + 3?", "Who?", "2 + 3?", "2 + 3?"))
    assert overlap.exact == [(0, 2), (0, 3)]
    assert overlap.normalised == overlap.number_swapped == []


def test_the_closest_degree_wins():
    overlap = duplicates(ask("Is 2 more?", "Is 3 more?", "is  3 more?", "Is 3 more?"))
    assert overlap.number_swapped == [(0, 1)]
    assert overlap.normalised == [(1, 2)]
    assert overlap.exact == [(1, 3)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is  $x$?\n", "what is $x$?"),
        ("Solve $y = x^2 + 1$.", "Solve $y=x^{2}+1$."),
        ("A,B", "a, b"),
    ],
)
def test_case_whitespace_and_idle_braces_do_not_count(one, other):
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("z^4+z^2+1", "z^4-z^2+1"),
        ("2 3", "23"),
        ("x^{12}", "x^1 2"),
        ("12 apples", "13 apples"),
        ("now here", "nowhere"),
    ],
)
def test_digits_signs_and_word_boundaries_count(one, other):
    assert normalised(one) != normalised(other)


def test_a_number_is_masked_whole():
    assert masked_numbers("1,234.5 and 7 and .5") == masked_numbers("9 and 88 and .25")
    assert masked_numbers("7 - 2") != masked_numbers("7 + 2")


def test_shared_pairs_the_train_position_with_the_test_position():
    overlap = shared(ask("a?", "b 1?", "C ?"), ask("b 2?", "c?", "a?"))
    assert (overlap.exact, overlap.normalised) == ([(0, 2)], [(2, 1)])
    assert overlap.number_swapped == [(1, 0)]


def test_what_stands_in_test_is_removed_from_train_and_twins_stay():
    train, test = ask("a?", "b 1?", "C ?", "d?"), ask("b 2?", "c?", "a?")
    kept, removed = without_overlap(train, test)
    assert [p.question for p in kept] == ["b 1?", "d?"]
    assert [p.question for p in removed] == ["a?", "C ?"]


def test_after_the_removal_nothing_but_twins_is_shared():
    train, test = ask("a?", "A ?", "b 1?"), ask("a?", "b 2?")
    kept, _ = without_overlap(train, test)
    assert shared(kept, test).counts() == {"exact": 0, "normalised": 0, "number_swapped": 1}


def test_empty_lists_overlap_in_nothing():
    assert without_overlap([], ask("a?")) == ([], [])
    assert without_overlap(ask("a?"), []) == (ask("a?"), [])


def test_other_options_make_another_question():
    assert sum(duplicates(ask("Which?\nA) x\nB) y", "Which?\nA) x\nB) z")).counts().values()) == 0


@mirror
def test_gsm8k_train_and_test_share_nothing_but_twins():
    counts = shared(load_problems("gsm8k", "train", MIRROR), load_problems("gsm8k", "test", MIRROR))
    assert counts.exact == counts.normalised == []


@mirror
def test_the_three_problems_that_math_train_shares_with_test_are_found():
    train, test = load_problems("math", "train", MIRROR), load_problems("math", "test", MIRROR)
    _, removed = without_overlap(train, test)
    ids = {problem.id for problem in removed}
    assert ids == {f"train/{x}.json" for x in ("algebra/517", "algebra/777", "geometry/6032")}


@mirror
def test_all_of_math500_stands_in_math_test():
    test, small = load_problems("math", "test", MIRROR), load_problems("math500", "test", MIRROR)
    kept, removed = without_overlap(test, small)
    assert (len(kept), len(removed)) == (4500, 500)
