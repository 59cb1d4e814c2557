"""Is a visible answer right? Equal to the expected one, or whatever test the problem brings.

""                       same_answer with `Problem.answer` and `Problem.question`
{"judge": "program"}     the program in the answer passes its tests, in a sandbox
{"judge": "puzzle"}      reasoning-gym's scorer gives its full mark
"""

import json

from pipeline.grading.equivalence import same_answer
from pipeline.grading.programs import grade_program
from pipeline.grading.puzzles import puzzle_is_right
from pipeline.records import Problem


def is_right(problem: Problem, visible: str) -> bool:
    r"""Whether a visible answer solves the problem.

    >>> is_right(Problem(question="1+1?", answer="2"), "The answer is 2.")
    True
    """
    if not problem.check:
        return same_answer(visible, problem.answer, problem.question)
    test = json.loads(problem.check)
    if test["judge"] == "puzzle":
        return puzzle_is_right(problem.check, visible)
    return grade_program(visible, test).passed
