"""Types of what evaluations store as JSON: rows of records.jsonl, metrics.json, fitted laws."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict


class Record(TypedDict):
    """A row of eval.run: one problem with its answer. Rows of earlier versions lack some keys."""

    id: str
    level: str
    question: str
    expected: str
    answer: str
    correct: bool
    no_verdict: NotRequired[bool]
    check: NotRequired[str]
    reasoning_tokens: NotRequired[bool]  # False: a baseline, its whole text was graded
    last_number: NotRequired[bool]  # the last number was graded, as no answer was announced
    finish_reason: str
    forced: bool
    notes: Mapping[str, object]
    usage: Mapping[str, int]  # the fields of `Usage`
    value: NotRequired[float | None]
    reasoning: str
    seconds: float


class Metrics(TypedDict):
    """metrics.json of eval.run; its intervals `ci95` are [low, high]."""

    suite: str
    strategy: str
    checkpoint: str
    n: int
    no_verdict: NotRequired[int]
    accuracy: float
    ci95: list[float]
    finished: float
    tokens: Mapping[str, int]  # prompt, reasoning, visible, total
    completion_tokens_per_question: Mapping[str, Any]  # mean, ci95
    seconds: float
    options: Mapping[str, Any]  # the fields of `SearchOptions`
    reasoning_tokens: NotRequired[bool]
    last_number: NotRequired[int]


class Sample(TypedDict):
    """One sample of a question; samples with equivalent answers have the same `vote`."""

    answer: str
    vote: int
    correct: bool
    no_verdict: NotRequired[bool]
    tokens: int
    value: float | None


class SamplesRow(TypedDict):
    """A row of eval.samples: one problem with all its samples."""

    id: str
    level: str
    question: str
    expected: str
    samples: list[Sample]
    seconds: float


class CalibrationFigures(TypedDict):
    """The "value" entry in metrics.json of eval.samples."""

    ece: float
    brier: float
    auroc: float | None
    bins: list[Mapping[str, Any]]  # n, confidence, and `right`: mean, low, high
    within_question_auroc_pooled: NotRequired[float | None]
    within_question_auroc: NotRequired[float | None]  # its name in earlier versions


class ScalingPoint(TypedDict):
    """A majority vote of k samples, and its completion tokens a question."""

    k: int
    tokens: float
    accuracy: float


class ScalingResult(TypedDict):
    """What eval.scaling writes for each run."""

    points: list[ScalingPoint]
    law: Mapping[str, Any]  # the fields of `LogLaw`
    per_doubling: Mapping[str, float]  # mean, low, high
