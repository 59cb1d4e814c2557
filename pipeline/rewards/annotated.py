"""The reward of the paper's 4.3.3: the written thought compared with the annotated one."""

import re
from collections import Counter
from collections.abc import Hashable, Sequence

from pipeline.chat.tags import split_completion
from pipeline.grading.arithmetic import equations_in
from pipeline.records import Problem

MAX_STEPS = 4096  # of a thought; the rest is not compared


def annotated_thought(problem: Problem, completion: str) -> float:
    """F1 of the steps of the written and of the annotated thought, in [0, 1].

        F1 = 2 * |common steps| / (|written steps| + |annotated steps|)

    Steps are the equations, equal up to the order of operands, where both thoughts have some, and
    otherwise the lines, equal up to case, spaces and final punctuation. A repeated step counts as
    often as it stands there, so that copies lower the reward. 0.0 where the problem has no
    annotated thought, and for a malformed completion.

    >>> problem = Problem(question="", answer="10", thought="2+3=5\\n5*2=10")
    >>> annotated_thought(problem, "3+2=5\\n5*2=10</think>10")
    1.0
    >>> annotated_thought(problem, "2+3=5</think>5")  # one of two steps
    0.6666666666666666
    """
    parts = split_completion(completion)
    if parts is None or not problem.thought.strip():
        return 0.0
    written, annotated = _equations(parts[0]), _equations(problem.thought)
    if not written or not annotated:
        written, annotated = _lines(parts[0]), _lines(problem.thought)
    if not written or not annotated:
        return 0.0
    common = (Counter(written) & Counter(annotated)).total()
    return 2 * common / (len(written) + len(annotated))


def _equations(thought: str) -> Sequence[Hashable]:
    return [each.key for each in equations_in(thought)][:MAX_STEPS]


def _lines(thought: str) -> Sequence[Hashable]:
    lines = (re.sub(r"\s+", " ", line.lower()).strip(" .;:") for line in thought.splitlines())
    return [line for line in lines if line][:MAX_STEPS]
