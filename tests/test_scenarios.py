"""Word problems about everyday situations: right equations, every number used, plain sentences."""

import random
import re
from collections import Counter

import pytest

from pipeline.data import make_arithmetic_problems
from pipeline.data.scenarios import LARGEST, TEMPLATES, scenario
from pipeline.grading.arithmetic import equations_in

LINES = TEMPLATES.strip().splitlines()


def made(steps: int, count: int = 600) -> list[tuple[str, tuple[str, ...]]]:
    rng = random.Random(steps)
    return [scenario(rng, steps) for _ in range(count)]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_equations_hold_and_are_as_many_as_asked_for(steps):
    for question, chain in made(steps):
        assert len(chain) == steps, question
        equations = list(equations_in("\n".join(chain)))
        assert len(equations) == steps and all(each.holds for each in equations), chain
        assert all(1 <= int(line.split("=")[1]) <= LARGEST for line in chain)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_operand_is_a_number_of_the_question_or_an_earlier_result(steps):
    for question, chain in made(steps):
        numbers = Counter(map(int, re.findall(r"\d+", question)))
        used, results = set(), []
        for line in chain:
            left, result = line.split("=")
            operands = [int(x) for x in re.split(r"[-+*/]", left)]
            assert all(x in numbers or x in results for x in operands), (question, chain)
            used |= set(operands)
            results.append(int(result))
        assert set(numbers) <= used, (question, chain)
        assert all(result in used for result in results[:-1]), (question, chain)


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split(" | ")[0])
def test_every_letter_of_a_template_is_in_its_text_once(line):
    steps, text = line.split(" | ")
    letters = set(re.findall(r"[a-d]", steps))
    fields = Counter(re.findall(r"\{(\w+)\}", text))
    assert {name for name in fields if len(name) == 1} == letters
    assert all(fields[name] == 1 for name in letters)
    assert text.endswith("?") and text[0] in "{ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def test_no_text_occurs_twice_and_two_steps_have_many_structures():
    texts = [line.split(" | ")[1] for line in LINES]
    assert len(set(texts)) == len(texts)
    structures = Counter(line.split(" | ")[0] for line in LINES)
    assert sum(structure.count(",") == 1 for structure in structures) >= 15


def test_divisors_are_of_all_sizes():
    divisors = Counter(
        int(re.split("[/=]", line)[1])
        for _, chain in made(2, 2000)
        for line in chain
        if "/" in line
    )
    assert set(divisors) == set(range(2, 13))
    assert max(divisors.values()) < 3 * min(divisors.values())


def test_articles_are_right():
    for question, _ in made(1) + made(2):
        assert not re.search(r"\b[Aa] [aeiou]", question), question


def test_scenarios_are_kinds_of_problems_that_can_be_trained_on():
    problems = make_arithmetic_problems({"scenario1": 1, "scenario2": 2}, size=90, seed=3)
    assert Counter(p.level for p in problems) == {"scenario1": 30, "scenario2": 60}
    assert all(len(p.thought.split("\n")) == int(p.level[-1]) for p in problems)
    assert all(p.thought.endswith(f"={p.answer}") for p in problems)
    again = make_arithmetic_problems({"scenario1": 1, "scenario2": 2}, size=90, seed=3)
    assert again == problems
