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


class MeanTokens(TypedDict):
    """Mean completion tokens with the interval [low, high]."""

    mean: float
    ci95: list[float]


class Metrics(TypedDict):
    """metrics.json of eval.run; its intervals `ci95` are [low, high]."""

    suite: str
    strategy: str
    checkpoint: str
    reasoning_tokens: NotRequired[bool]  # false: a baseline
    last_number: NotRequired[int]  # answers of a baseline graded by their last number
    engine: NotRequired[str]  # what decodes, if it is not this project
    device: NotRequired[str]
    dtype: NotRequired[str]
    n: int
    no_verdict: NotRequired[int]
    accuracy: float
    ci95: list[float]
    by_level: NotRequired[Mapping[str, Mapping[str, object]]]  # n, no_verdict, accuracy, ci95
    correct_traces: NotRequired[Mapping[str, object] | None]  # None: no trace has equations
    finished: float
    tokens: Mapping[str, int]  # prompt, reasoning, visible, total
    completion_tokens_per_question: MeanTokens
    seconds: float
    rows_read: NotRequired[int]
    too_long: NotRequired[int]  # questions without room for an answer, counted as wrong
    fingerprint: NotRequired[str]  # of the questions and answers
    options: Mapping[str, Any]  # the fields of `SearchOptions`


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


class CalibrationBin(TypedDict):
    """Answers of similar value: their number, mean value, and share right with its interval."""

    n: int
    confidence: float
    right: Mapping[str, float]  # mean, low, high


class CalibrationFigures(TypedDict):
    """The "value" entry in metrics.json of eval.samples."""

    ece: float
    brier: float
    auroc: float | None
    bins: list[CalibrationBin]
    within_question_auroc_pooled: NotRequired[float | None]
    within_question_auroc: NotRequired[float | None]  # its name in earlier versions


class SampleMetrics(TypedDict):
    """metrics.json of eval.samples."""

    suite: str
    strategy: str
    checkpoint: str
    n: int
    samples: int
    tokens_a_sample: float
    seconds: float
    by_k: list[Mapping[str, Any]]  # k, tokens, and avg, majority, pass: mean, low, high
    value: CalibrationFigures | None


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
