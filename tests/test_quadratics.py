"""Quadratic equations: roots, text, worked solutions, the check of every line, and the examples."""

from fractions import Fraction

import pytest

from examples import appendix_e
from pipeline.data.quadratics import (
    KINDS,
    check_quadratic_thought,
    coefficients_in,
    equation,
    make_problem,
    quadratic_problems,
    roots_of,
)
from pipeline.grading import grade
from pipeline.records import Answer

PAPER = """a=2, b=5, c=-3
5*5=25
4*2*-3=-24
25--24=49
7*7=49
2*2=4
-5-7=-12
-12/4=-3
-5+7=2
2/4=1/2
2*-3*-3+5*-3-3=0
2*1/2*1/2+5*1/2-3=0"""


def test_the_equation_of_the_paper_has_its_roots_and_its_steps():
    problem = make_problem((2, 5, -3))
    assert (problem.question, problem.answer) == ("Solve 2x^2+5x-3=0.", "x = -3 or x = 1/2")
    assert problem.thought == PAPER


@pytest.mark.parametrize(
    ("coefficients", "roots"),
    [
        ((1, -5, 6), [2, 3]),
        ((1, -4, 4), [2]),
        ((-1, 0, 4), [-2, 2]),
        ((1, 0, 1), []),
        ((3, 0, 0), [0]),
    ],
)
def test_the_roots_are_exact(coefficients, roots):
    assert roots_of(coefficients) == [Fraction(root) for root in roots]
    assert coefficients_in(f"Solve {equation(coefficients)}.") == coefficients
    problem = make_problem(coefficients)
    assert all(check_quadratic_thought(problem.question, problem.thought))


@pytest.mark.parametrize(
    ("coefficients", "said"), [((0, 1, 1), "linear"), ((1, 0, -2), "irrational")]
)
def test_an_equation_without_rational_roots_is_refused(coefficients, said):
    with pytest.raises(ValueError, match=said):
        make_problem(coefficients)


def test_every_worked_solution_is_right_line_by_line_and_every_answer_is_graded_right():
    problems = quadratic_problems("train", 60)
    assert {problem.level for problem in problems} == set(KINDS)
    for problem in problems:
        assert all(check_quadratic_thought(problem.question, problem.thought)), problem.question
        assert grade(problem, problem.answer).passed, problem.question
    assert quadratic_problems("train", 60) == problems


def test_no_training_equation_is_one_of_the_test():
    test = {problem.question for problem in quadratic_problems("test")}
    assert len(test) == 300
    assert not test & {problem.question for problem in quadratic_problems("train", 500)}


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        ("a=2, b=5, c=-3", "a=2, b=5, c=3"),
        ("25--24=49", "25--24=1"),
        ("2/4=1/2", "2/4=2"),
        ("2*2=4", "2*2=4=4"),
        ("2*2=4", "__import__('os')=4"),
        ("2*2=4", "9**9**9=4"),
        ("2*2=4", "1/0=4"),
    ],
)
def test_a_wrong_line_is_found(line, changed):
    found = check_quadratic_thought("Solve 2x^2+5x-3=0.", PAPER.replace(line, changed))
    assert found == [each != line for each in PAPER.splitlines()]


def test_one_root_of_two_is_not_the_answer():
    problem = make_problem((2, 5, -3))
    assert grade(problem, "x = 1/2 or x = -3").passed
    assert not grade(problem, "x = 1/2").passed


# ---- appendix E ----


def test_the_written_answers_of_appendix_e_pass_their_checks(capsys):
    appendix_e.main([])
    said = capsys.readouterr().out
    assert "check: right; 12 of 12 lines of the thought are right" in said
    assert "check: right (5 tests in the sandbox)" in said
    assert "missing: -" in said


def test_wrong_answers_of_appendix_e_are_found():
    assert appendix_e.check_equation(Answer(text="x = 1", thought="2*2=5")) == (
        "wrong (another answer); 0 of 1 lines of the thought are right"
    )
    off_by_one = appendix_e.FIBONACCI_ANSWER.text.replace("range(n)", "range(n + 1)")
    assert appendix_e.check_fibonacci(Answer(text=off_by_one)).startswith("wrong (other value)")
    found = appendix_e.check_ethics(Answer(text="Yes."))
    assert found.startswith("not graded; names none; missing: consequences")
