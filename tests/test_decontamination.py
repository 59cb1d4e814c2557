"""Repeated questions: inside a list, between two lists, and what is taken out."""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from pipeline.data.decontamination import (
    duplicates,
    shared,
    without_overlap,
)
from pipeline.data.leak_index import masked_numbers, normalised
from pipeline.data.problems import load_problems
from pipeline.records import Problem

MIRROR = Path(os.environ.get("THINKHEAD_DATA") or Path(__file__).parents[2] / "shared" / "data")
mirror = pytest.mark.skipif(
    not MIRROR.is_dir(), reason=f"no local data: neither THINKHEAD_DATA nor {MIRROR} is a folder"
)


@cache
def read(name: str, split: str, limit: int | None = None) -> tuple[Problem, ...]:
    """The problems of a data set, converted once for all tests."""
    return tuple(load_problems(name, split, MIRROR, limit))


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


def test_every_turn_of_the_user_is_compared_with_the_test_questions():
    def talk(*texts: str) -> Problem:
        roles = ("user", "assistant") * len(texts)
        turns = tuple(zip(roles, texts, strict=False))
        return Problem(question="And 5 more?", answer="1", turns=turns)

    test = ask("How many pens?", "And 4 more?")
    train = [
        talk("How many pens?", "3"),
        talk("Hello", "Hi", " how many  pens?", "3"),
        talk("Hello", "How many pens?"),
    ]
    overlap = shared(train, test)
    assert (overlap.exact, overlap.normalised) == ([(0, 0)], [(1, 0)])
    assert overlap.number_swapped == [(2, 1)]
    assert without_overlap(train, test) == (train[2:], train[:2])


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
    assert shared(kept, test).counts() == {
        "exact": 0,
        "normalised": 0,
        "ngram": 0,
        "number_swapped": 1,
    }


def test_empty_lists_overlap_in_nothing():
    assert without_overlap([], ask("a?")) == ([], [])
    assert without_overlap(ask("a?"), []) == (ask("a?"), [])


def test_other_options_make_another_question():
    assert sum(duplicates(ask("Which?\nA) x\nB) y", "Which?\nA) x\nB) z")).counts().values()) == 0


VARIANTS = (
    str,
    str.upper,
    lambda q: q.replace(" ", "  "),
    lambda q: q.replace("\\frac", "\\dfrac").replace("$", "$$"),
    lambda q: q.replace("$", r"\(", 1).replace("$", r"\)", 1),
    lambda q: q.replace("(", r"\left(").replace(")", r"\right)").replace("+", r"\,+\;"),
    lambda q: f"Here is a question I found. {q} Please think.",
    lambda q: f"{q}\n\nA) 1\nB) 2",
)


@mirror
def test_a_hundred_planted_leaks_are_found_and_a_thousand_clean_rows_stay():
    clean = [*read("gsm8k", "train", 500), *read("math", "train", 700)]
    held_out = [*read("gsm8k", "test"), *read("math", "test")]
    clean, _ = without_overlap(clean, held_out)
    clean = clean[:1000]
    leaks = held_out[:: len(held_out) // 99][:100]
    # A question of a few words cannot be told apart when it is hidden in a longer text.
    planted = [
        replace(p, question=VARIANTS[i % (8 if len(p.question.split()) > 14 else 6)](p.question))
        for i, p in enumerate(leaks)
    ]
    kept, removed = without_overlap([*clean, *planted], held_out)
    assert (len(planted), len(removed), len(kept)) == (100, 100, 1000)
    assert removed == planted


@mirror
def test_a_thousand_rows_of_other_data_sets_are_no_leak_of_gsm8k_and_math():
    other = [*read("commonsense_qa", "train", 600), *read("knights_knaves", "train", 400)]
    held_out = [*read("gsm8k", "test"), *read("math", "test"), *read("knights_knaves", "test")]
    assert without_overlap(other, held_out)[1] == []


def test_twins_with_other_numbers_or_signs_are_no_leak():
    question = (
        "Find the smallest n such that all the roots of z^4 {}z^2 + {} = 0 are roots of unity"
    )
    train = ask(question.format("+", "1"), question.format("-", "3"))
    assert without_overlap(train, ask(question.format("-", "1")))[1] == []


def test_a_template_that_many_questions_share_is_no_leak():
    island = (
        "On a very special island that is inhabited by knights and knaves only you meet {} who {}"
    )
    test = ask(
        *(island.format(name, "lies") for name in ("Al", "Bo", "Cy", "Di", "Ed", "Flo", "Gus"))
    )
    assert without_overlap(ask(island.format("Hal", "sings a song")), test)[1] == []


@mirror
def test_gsm8k_train_and_test_share_nothing_but_twins():
    counts = shared(read("gsm8k", "train"), read("gsm8k", "test"))
    assert counts.exact == counts.normalised == []


@mirror
def test_what_math_train_shares_with_test_is_found():
    train, test = read("math", "train"), read("math", "test")
    _, removed = without_overlap(train, test)
    ids = {problem.id.removeprefix("train/").removesuffix(".json") for problem in removed}
    same = {"algebra/517", "algebra/777", "algebra/2197", "geometry/6032"}
    assert same <= ids
    # These hold a whole test question and more: a story before it, options behind it, two in one.
    assert ids - same == {
        "counting_and_probability/75",
        "number_theory/7035",
        "number_theory/7105",
    }


@mirror
def test_all_of_math500_stands_in_math_test():
    test, small = read("math", "test"), read("math500", "test")
    kept, removed = without_overlap(test, small)
    assert (len(kept), len(removed)) == (4500, 500)
