"""A problem gets other numbers, and its worked solution is computed anew."""

import random
import re
from dataclasses import replace

import pytest

from pipeline.config import DataConfig
from pipeline.data.number_variants import (
    LARGEST,
    with_number_variants,
    with_other_numbers,
)
from pipeline.records import Problem
from stages.training_problems import problem_stream, training_problems

SHELLS = Problem(
    question="Ann has 24 shells, finds thirty-six more and shares them among 5 friends. Each?",
    thought="24+36=60\n60/5=12",
    answer="12",
    source="own/train",
)


def variants(problem: Problem, count: int = 40) -> list[Problem]:
    rng = random.Random(0)
    return [with_other_numbers(problem, rng) for _ in range(count)]


def test_every_equation_of_a_variant_holds_and_its_last_result_is_the_answer():
    made = variants(SHELLS)
    assert len({p.question for p in made}) > 30
    for problem in made:
        results = []
        for line in problem.thought.split("\n"):
            a, operator, b, result = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", line).groups()
            value = {"+": int(a) + int(b), "/": int(a) / int(b)}[operator]
            assert value == int(result)
            results.append(int(result))
        assert problem.answer == str(results[-1])
        assert all(0 < result <= LARGEST for result in results)


def test_the_operands_of_a_variant_are_the_numbers_of_its_question_in_their_places():
    for problem in variants(SHELLS):
        first, _, words, _, shared = re.fullmatch(
            r"Ann has (\d+) (shells), finds ([a-z-]+|\d+) (more) and shares them among (\d+) .*",
            problem.question,
        ).groups()
        lines = problem.thought.split("\n")
        assert lines[0].startswith(f"{first}+")
        assert lines[1].split("=")[0].endswith(f"/{shared}")
        added = lines[0].split("+")[1].split("=")[0]
        assert words == spelled(int(added))


def spelled(number: int) -> str:
    units = ["", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    teens = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
    tens = "twenty thirty forty fifty sixty seventy eighty ninety"
    if number < 20:
        return [*units, *teens.split()][number]
    ten, unit = divmod(number, 10)
    return f"{tens.split()[ten - 2]}-{units[unit]}".rstrip("-")


def test_a_number_that_occurs_twice_stays_one_number():
    problem = Problem(question="3 boys and 3 girls, 7 pens each?", thought="3+3=6\n6*7=42",
                      answer="42")  # fmt: skip
    for made in variants(problem):
        boys, girls, pens = re.findall(r"\d+", made.question)
        assert boys == girls
        assert made.thought.startswith(f"{boys}+{boys}=")
        assert made.thought.split("\n")[1].startswith(f"{2 * int(boys)}*{pens}=")


@pytest.mark.parametrize("thought", ["12/12=1", "12-12=0", "12+12=24\n24-12=12\n12/12=1"])
def test_a_difference_or_quotient_of_equal_numbers_may_be_two_quantities_and_stays(thought):
    problem = Problem(question="12 boxes fill how many cases of 12?", thought=thought,
                      answer=thought.rpartition("=")[2])  # fmt: skip
    assert all(made == problem for made in variants(problem))


def test_a_round_number_becomes_a_round_number_and_a_small_one_a_small_one():
    problem = Problem(question="He pays 700 dollars in 7 parts", thought="700/7=100", answer="100")
    for made in variants(problem):
        price, parts = map(int, re.findall(r"\d+", made.question))
        assert price % 100 == 0
        assert 100 <= price <= 900
        assert 2 <= parts <= 12


@pytest.mark.parametrize(
    "changes",
    [
        {"question": "2 days with twice 24 hours?", "thought": "2*24=48", "answer": "48"},
        {"thought": "24+36=60\n60/5=13", "answer": "13"},
        {"thought": "24+36=60\nso 60/5=12"},
        {"thought": "(24+36)/5=12"},
        {"thought": "24+36=60.0\n60/5=12"},
        {"answer": "13"},
        {"thought": "24-24=0\n0+12=12"},
        {"question": "Ann, 24, 36 and 60, among 5"},
        {"question": "no number at all"},
        {"thought": ""},
        {"choices": ("12", "13")},
        {"untrained_spans": ((0, 3),)},
        {"check": "{}"},
        {"turns": (("user", "hello"),)},
        {"source": "nano/train"},
        {"question": "24 36 5 in a week of 7 days", "thought": "5*7=35", "answer": "35"},
        # 8 is 2*4, 20 is 15+5; 12 is a result and that of the trout; 10 changes and 10th does not.
        {"question": "2 eggs for 4 children, 3 for him?", "thought": "3+8=11", "answer": "11"},
        {"question": "15 and 5 chairs, 3 each?", "thought": "20*3=60", "answer": "60"},
        {
            "question": "6 two-pound and a twelve-pound?",
            "thought": "6*2=12\n2*12=24",
            "answer": "24",
        },
        {"question": "10 win a 10th of 1,600?", "thought": "1600/10=160", "answer": "160"},
        # The larger of two products, and a result that the answer is not computed from.
        {"question": "8 by 5 or 4 by 11, the most?", "thought": "8*5=40\n4*11=44", "answer": "44"},
        {"question": "5 from half of 30?", "thought": "30/2=15\n5+5=10", "answer": "10"},
    ],
)
def test_a_problem_that_could_become_wrong_keeps_its_numbers(changes):
    problem = replace(SHELLS, **changes)
    assert all(made == problem for made in variants(problem, 10))


def test_decimals_fractions_and_names_with_digits_are_no_numbers_of_the_question():
    problem = Problem(
        question="1/2 of 3.5 kg, 1,200 g, v2 and 8 bags of 4 kg?", thought="8*4=32", answer="32"
    )
    for made in variants(problem):
        assert made.question.startswith("1/2 of 3.5 kg, 1,200 g, v2 and ")


def test_a_constant_is_written_in_the_question_or_implied_by_a_word_of_it():
    bags = Problem(question="8 bags of 1,200 g?", thought="8*1200=9600", answer="9600")
    eggs = Problem(question="5 dozen eggs?", thought="5*12=60", answer="60")
    for problem, constant in ((bags, 1200), (eggs, 12)):
        made = variants(problem, 10)
        assert any(each != problem for each in made)
        assert all(f"*{constant}=" in each.thought for each in made)


def test_a_share_of_the_problems_is_changed_and_the_same_ones_for_a_seed():
    problems = [SHELLS] * 400
    made = with_number_variants(problems, share=0.25, seed=3)
    assert made == with_number_variants(problems, share=0.25, seed=3)
    assert 70 <= sum(p != SHELLS for p in made) <= 130
    assert with_number_variants(problems, share=0.0, seed=3) == problems


def own_data(tmp_path, **options):
    file = tmp_path / "own.jsonl"
    rows = [
        f'{{"question": "Ann has {n} shells and finds 36 more.", "answer": "{n + 36}", '
        f'"thought": "{n}+36={n + 36}"}}'
        for n in range(50, 60)
    ]
    file.write_text("\n".join(rows))
    return DataConfig(dataset=str(file), number_variants=1.0, **options)


def test_training_problems_have_other_numbers(tmp_path, capsys):
    problems = training_problems(own_data(tmp_path), seed=0)
    assert "10 of 10 problems have other numbers" in capsys.readouterr().out
    assert sum("36 more" in p.question for p in problems) < 3


def a_mixture(tmp_path, **options):
    """30 problems, of which five of six are the ten of `own_data`."""
    own = own_data(tmp_path)
    return replace(own, dataset=f"{own.dataset}=5,nano=1", shares="wording=1", size=30, **options)


def test_a_mixture_takes_a_small_data_set_several_times_with_other_numbers(tmp_path):
    data = a_mixture(tmp_path)
    problems = training_problems(data, seed=0)
    own = [p for p in problems if p.source != "nano/train"]
    assert (len(problems), len(own)) == (30, 25)
    names = {p.id for p in own}
    assert len(names) == 10 and {sum(p.id == name for p in own) for name in names} == {2, 3}
    assert len({p.question for p in own}) == 25


def test_without_variants_a_mixture_takes_no_problem_twice(tmp_path):
    data = a_mixture(tmp_path, number_variants=0.0)
    with pytest.raises(ValueError, match="than its 10 problems; take at most 12"):
        training_problems(data, seed=0)


def test_a_stream_has_other_numbers_in_every_problem(tmp_path):
    problems = list(problem_stream(own_data(tmp_path), seed=0)())
    assert len(problems) == 10
    assert sum("36 more" in p.question for p in problems) < 3


def test_a_variant_that_is_a_test_question_is_not_taken(tmp_path, monkeypatch):
    import stages.training_problems as module

    class Everything:
        def holds(self, problem: Problem) -> bool:
            return True

    monkeypatch.setattr(module, "held_out_index", lambda names, root: (Everything(), []))
    monkeypatch.setattr(module, "without_held_out", lambda problems, names, data: problems)
    problems = training_problems(own_data(tmp_path), seed=0)
    assert all("36 more" in p.question for p in problems)
