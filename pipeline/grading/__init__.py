"""Grading: whether an answer is correct. One grader for rewards, metrics and the verifier."""
