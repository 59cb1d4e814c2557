"""Grading: whether an answer is correct. One grader for rewards, votes, metrics and the verifier.

grade        the verdict on a visible answer to a problem, by the problem's own check
same_answer  whether two written answers agree
Verdict      what `grade` returns
"""

from pipeline.grading.equivalence import same_answer
from pipeline.grading.grader import grade
from pipeline.grading.verdict import Verdict

__all__ = ["Verdict", "grade", "same_answer"]
