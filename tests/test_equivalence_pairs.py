"""Equivalence of answers on a labelled table; and no text of a model raises or takes long."""

import gzip
import json
import os
import random
import time
from pathlib import Path

import pytest

from pipeline.data import load_problems
from pipeline.grading import same_answer
from pipeline.grading.equivalence import final_answer
from pipeline.grading.math_comparison import grader_stats
from pipeline.grading.normalization import plain
from pipeline.grading.percent import asks_percent
from pipeline.grading.units import read_unit
from tests.equivalence_pairs import ASKED_RIGHT, ASKED_WRONG, KNOWN_REFUSALS, RIGHT, WRONG

DATA = Path(os.environ.get("THINKHEAD_DATA") or Path(__file__).parents[2] / "shared" / "data")


def triples(
    table: list[tuple[str, ...]], asked: list[tuple[str, ...]]
) -> list[tuple[str, str, str]]:
    """(answer, expected, question) of the cases without a question and of those with one."""
    plain_cases = [(a, expected, "") for expected, *answers in table for a in answers]
    return plain_cases + [(a, expected, q) for q, expected, *answers in asked for a in answers]


RIGHT_CASES = triples(RIGHT, ASKED_RIGHT)
WRONG_CASES = triples(WRONG, ASKED_WRONG)


def test_the_table_has_right_and_wrong_answers_in_equal_parts():
    assert len(RIGHT_CASES) + len(WRONG_CASES) >= 590
    assert 0.95 < len(RIGHT_CASES) / len(WRONG_CASES) < 1.05
    assert len(set(RIGHT_CASES)) == len(RIGHT_CASES) and len(set(WRONG_CASES)) == len(WRONG_CASES)


def test_every_equivalent_answer_is_accepted_but_the_known_refusals():
    refused = {(expected, a) for a, expected, q in RIGHT_CASES if not same_answer(a, expected, q)}
    assert refused == set(KNOWN_REFUSALS)


def test_every_other_answer_is_refused():
    assert [case for case in WRONG_CASES if same_answer(*case)] == []


def test_at_most_one_percent_of_the_equivalents_is_refused():
    assert len(KNOWN_REFUSALS) <= 0.01 * len(RIGHT_CASES)
    assert set(KNOWN_REFUSALS) <= {(expected, answer) for answer, expected, _ in RIGHT_CASES}


def test_every_expected_answer_equals_itself():
    for _, expected, question in RIGHT_CASES + WRONG_CASES:
        assert same_answer(expected, expected, question), expected


def test_fewer_than_one_pair_in_ten_needs_math_verify():
    before = grader_stats()["requests"]
    for answer, expected, question in RIGHT_CASES + WRONG_CASES:
        same_answer(answer, expected, question)
    assert grader_stats()["requests"] - before < 0.1 * (len(RIGHT_CASES) + len(WRONG_CASES))


MEGABYTES = [
    r"\boxed{{{" + "{" * 1_000_000,
    r"\boxed{1}" * 100_000,
    r"\boxed" * 150_000,
    r"\boxed{1} and " * 70_000,
    "<answer>" * 120_000,
    "The answer is " * 70_000,
    "answer" + " " * 1_000_000,
    "correct " * 120_000,
    "$$" + "x" * 1_000_000,
    r"The answer is \[" * 60_000,
    "#" * 1_000_000,
    "(" * 500_000 + ")" * 500_000,
    "*" * 1_000_000,
    "\u221a" * 400_000,
]
DEEP = [
    "(" * 400 + "1" + ")" * 400,
    "(" * 400 + "1,2" + ")" * 400,
    r"\{" * 400 + "1,2" + r"\}" * 400,
    r"\frac{1}{" * 400 + "2" + "}" * 400,
    r"\sqrt{" * 400 + "2" + "}" * 400,
    "-" * 4000 + "1",
    "x" + "^x" * 2000,
    "x" + "!" * 4000,
    r"\pm 1" * 600,
    r"\pm " * 1000,
    "|" * 4000,
    "x_" * 2000,
    "1," * 2000,
    ",".join(f"({i},{i})" for i in range(400)),
    r"\{" + ",".join(rf"\{{{i},{i + 1}\}}" for i in range(63)) + r"\}",
    r"\text{" * 700 + "}" * 700,
    r"\begin{array}{c}" * 200,
    r"(\begin{array}{c}" * 230,
    "x<" * 1500 + "1",
    "1 and " * 600 + "2",
    "(x+y+z+a+b+c)^{16}(x+y)^{16}(a+b)^{16}",
    "(1+x)^{16}" * 20,
    r"\sin " * 50 + "x",
    r"\ln" * 90 + " x",
    r"\sqrt" * 59 + " x",
    "x^" * 140 + "x",
    "The answer is " + "1" * 4000 + ")",
    "The answer is 1" + " " * 4000 + "(one",
    "The answer is " + "1. " * 1300,
    "x=" * 2000 + "1",
    "1 " * 2000 + "m",
    r"\frac{1}{0}",
    r"0^{-1}",
    r"\sqrt[0]{2}",
    r"0.\overline{0}",
    "\ud800",
    "{" * 31 + "x" + "}" * 31,
]


@pytest.mark.parametrize("text", MEGABYTES + DEEP, ids=lambda text: repr(text[:20]))
def test_no_text_raises_or_takes_long(text):
    begin = time.process_time()
    for expected in ("7", r"x+\sqrt{7}", r"\pm 1 \pm i", r"\{1,2\}", "(B)", text[:4000]):
        same_answer(text, expected)
    assert time.process_time() - begin < 3


def test_time_is_linear_in_the_length_of_a_text():
    def seconds(text: str) -> float:
        begin = time.process_time()
        same_answer(text, "7")
        return time.process_time() - begin

    for piece in (r"\boxed{", r"\boxed{1}, ", "the answer is 3, ", "<answer>1", "$1$ "):
        short = min(seconds(piece * 4_000) for _ in range(3))
        assert seconds(piece * 64_000) < 16 * 4 * short + 0.1, piece


def test_random_pieces_of_answers_never_raise():
    rng = random.Random(1)
    answers = [a for a, _, _ in RIGHT_CASES + WRONG_CASES]
    signs = [*"(){}[],.=<>|!^_-+/*$%:;&~' \n\\", r"\pm", r"\frac", r"\boxed{", "and", "or", r"\le"]
    signs += [r"\sqrt", r"\overline{", r"\log_", "x", "7", "0", "\u00bd", "\u221a", "e9"]
    for _ in range(1_000):
        one, other = rng.choice(answers), rng.choice(answers)
        text = one[: rng.randrange(len(one) + 1)] + other[rng.randrange(len(other) + 1) :]
        at = rng.randrange(len(text) + 1)
        text = text[:at] + "".join(rng.choices(signs, k=rng.randrange(4))) + text[at:]
        assert same_answer(text, rng.choice(answers)) in (True, False)
        assert final_answer(text) == final_answer(text).strip()
        assert plain(plain(text)) is not None


def test_the_number_in_words_behind_an_announced_answer_is_left_out():
    assert same_answer("The answer is 5 (five)", "5") and not same_answer("5 (five)", "5")


def test_a_unit_is_read_from_the_table():
    assert {read_unit(text).name for text in (" centimeters", " cm", "cm")} == {"cm"}
    assert {read_unit(text).name for text in (" miles per hour", " mph", " mi/h")} == {"mi/hour"}
    assert {read_unit(text).name for text in (" ft^2", " square feet", "ft^2")} == {"square ft"}
    assert read_unit(" cm").is_sure and not read_unit(" m").is_sure and not read_unit("mg").is_sure
    for word in (" lakh", " tens", "x", " thousand", " less", " wug", "pi", " cm cm", " per"):
        assert read_unit(word) is None, word
    assert read_unit(" wugs", "How many wugs are there?").nouns == {"wug"}


def test_a_percentage_is_asked_for_or_only_mentioned():
    asked = ["What percent of 50 is 10?", "By what percent does it rise?", "Find the percentage."]
    asked += ["Express your answer as a percent.", "If 5% is lost, what percentage is left?"]
    mentioned = ["What is 20 percent of 50?", "It is 20 percent. What is it?", "How much is 5%?"]
    mentioned += ["If the percentage is the same for all, how many are there?", "", "Eleven?"]
    assert all(map(asks_percent, asked)) and not any(map(asks_percent, mentioned))


OPTION_FORMS = (
    "{letter}) {text}",
    "The correct answer is ({letter}) {text}",
    "Answer: {letter}. {text}",
    "{letter}, {text}",
    "The correct answer is option ({letter}).",
    "Option {letter} is correct.",
    "[{letter}]",
)


def test_every_arc_option_is_read_as_itself_in_every_form():
    if not (DATA / "arc_challenge").exists():
        pytest.skip("no arc_challenge under the data root; set THINKHEAD_DATA to run this test")
    problems = load_problems("arc_challenge", "test", data_root=DATA)
    for problem in problems[::4]:
        for letter, text in zip("ABCDEFGH", problem.choices, strict=False):
            for form in OPTION_FORMS:
                answer = form.format(letter=letter, text=text)
                is_right = letter == problem.answer
                assert same_answer(answer, problem.answer, problem.question) == is_right, answer


def test_every_gsm8k_percentage_may_be_written_with_its_sign():
    path = DATA / "gsm8k" / "test.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path.name} under the data root; set THINKHEAD_DATA to run this test")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    golds = [(r["question"], r["answer"].split("####")[1].strip()) for r in rows]
    asked = [(question, gold) for question, gold in golds if asks_percent(question)]
    assert len(asked) == 21
    for question, gold in asked:
        assert same_answer(f"The answer is {gold}%.", gold, question)
        assert not same_answer(str(int(gold) / 100), gold, question)
