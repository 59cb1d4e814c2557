"""Rejection sampling: of a teacher's samples the right and distinct ones, as rows of SFT data."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NotRequired, TypedDict

from pipeline.chat.tags import END_THINK, THINK
from pipeline.distill.config import SelectionConfig
from pipeline.distill.teacher import LENGTH, REFUSED, UNCLEAR, TeacherSample
from pipeline.grading import grade
from pipeline.grading.distinct import distinct, plain_spaces
from pipeline.records import Problem

KEPT = "kept"
ENDED = {LENGTH: "cut by max_tokens", REFUSED: "refused by the server", UNCLEAR: "unclear tags"}


class DistilledRow(TypedDict):
    """A row of train.jsonl, in the columns that own data has (`pipeline.data.columns`)."""

    question: str | list[dict[str, str]]
    thought: str
    answer: str
    level: str
    id: str
    source: str
    check: NotRequired[str]


@dataclass(frozen=True)
class Selection:
    """The rows, and what became of every sample."""

    rows: list[DistilledRow]
    fates: dict[str, int]  # {"kept": 7, "wrong answer": 2, ...}; the sum is the number of samples
    right_Q: list[int]  # right samples of each question
    sampled_Q: list[int]  # all its samples


def select(
    problems: Sequence[Problem],
    samples: Mapping[int, Sequence[TeacherSample]],
    config: SelectionConfig,
) -> Selection:
    """At most `max_per_question` right and distinct samples of each question with samples.

    Two samples are equal if their thoughts are, apart from spaces and line ends; of programs, if
    their texts are too. The order of the questions is kept.

    Raises:
        SandboxError: a program has to be graded, and nothing on this machine isolates it.
    """
    rows: list[DistilledRow] = []
    fates: Counter[str] = Counter()
    right_Q, sampled_Q = [], []
    for number in sorted(samples):
        problem, right = problems[number], []
        for sample in samples[number]:
            fate, thought = fate_of(problem, sample, config)
            fates[fate] += fate != KEPT
            if fate == KEPT:
                right.append((thought, sample.answer))
        found = distinct(right, partial(_identity, problem))
        if config.prefer == "shortest":
            found.sort(key=lambda each: len(each[0]))
        kept = found[: config.max_per_question]
        fates["repeated"] += len(right) - len(found)
        fates["over max_per_question"] += len(found) - len(kept)
        fates[KEPT] += len(kept)
        rows += [_row(problem, *each, config) for each in kept]
        right_Q.append(len(right))
        sampled_Q.append(len(samples[number]))
    return Selection(rows, {fate: n for fate, n in fates.items() if n}, right_Q, sampled_Q)


def fate_of(problem: Problem, sample: TeacherSample, config: SelectionConfig) -> tuple[str, str]:
    """(KEPT or why a sample is left out, its thought).

    >>> two = Problem(question="1+1?", answer="2")
    >>> fate_of(two, TeacherSample("1+1=2", "2"), SelectionConfig())
    ('kept', '1+1=2')
    >>> fate_of(two, TeacherSample("", "1+1=2. The answer is 2."), SelectionConfig())[0]
    'no thought'
    """
    if sample.finish in ENDED:
        return ENDED[sample.finish], ""
    thought = sample.thought or (sample.answer if config.plain_as_thought else "")
    if not thought.strip():
        return "no thought", ""
    if THINK in thought + sample.answer or END_THINK in thought + sample.answer:
        return ENDED[UNCLEAR], ""
    verdict = grade(problem, sample.answer)
    if verdict.right is None:
        return "no verdict", ""
    return (KEPT, thought) if verdict.right else ("wrong answer", "")


def _identity(problem: Problem, sample: tuple[str, str]) -> tuple[str, str]:
    thought, answer = sample
    return plain_spaces(thought), answer.strip() if problem.check else ""


def _row(problem: Problem, thought: str, answer: str, config: SelectionConfig) -> DistilledRow:
    own = bool(problem.check) or config.visible == "teacher"
    row = DistilledRow(
        question=problem.prompt,
        thought=thought,
        answer=answer if own else problem.answer,
        level=problem.level,
        id=problem.id,
        source=problem.source,
    )
    if problem.check:
        row["check"] = problem.check
    return row
