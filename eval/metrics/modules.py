"""Modules of the package `evaluate`, one for every function decorated here.

`evaluate.load("eval/metrics/NAME")` runs eval/metrics/NAME/NAME.py, which takes METRICS[NAME].
"""

from collections.abc import Callable, Sequence
from copy import copy

import evaluate
from datasets import Features, Value
from datasets import Sequence as ListOf

from eval.metrics import scores
from pipeline.grading import same_answer
from pipeline.stats import calibration, intervals, paired

TEXT, TEXTS = Value("string"), ListOf(Value("string"))
INPUTS = {
    "predictions": "visible answers, or the list of samples of each question",
    "predictions1": "answers of the first variant",
    "predictions2": "answers of the second variant",
    "references": "expected answers",
    "confidences": "numbers in [0, 1]",
    "data": "tokens of each answer, all its samples included",
}
Result = dict[str, float | list[float] | None]  # figures by name
METRICS: dict[str, type[evaluate.EvaluationModule]] = {}


def module(
    kind: str = "Metric", **features: object
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Decorator: registers a function of these features (and options, as k) in METRICS.

    `kind` is Metric, Measurement or Comparison. The docstring becomes the description.
    """

    def register(compute: Callable[..., Result]) -> Callable[..., Result]:
        info = getattr(evaluate, f"{kind}Info")(
            description=compute.__doc__,
            citation="",
            inputs_description="; ".join(f"{name}: {INPUTS[name]}" for name in features),
            features=Features(features),
        )
        methods = {
            # A copy: instances write their configuration into it.
            "_info": lambda self: copy(info),
            "_compute": lambda self, **inputs: compute(**inputs),
        }
        METRICS[compute.__name__] = type(compute.__name__, (getattr(evaluate, kind),), methods)
        return compute

    return register


@module(predictions=TEXT, references=TEXT)
def accuracy(
    predictions: list[str], references: list[str], questions: list[str] | None = None
) -> Result:
    """Share of answers that equal the expected one, with its 95% Wilson interval."""
    return _with_interval(
        "accuracy", intervals.accuracy(_correct(predictions, references, questions))
    )


@module(predictions=TEXTS, references=TEXT)
def avg_at_k(
    predictions: list[list[str]], references: list[str], questions: list[str] | None = None
) -> Result:
    """Mean accuracy of the k samples of a question, 95% interval over questions."""
    correct_QG = _correct_samples(predictions, references, questions)
    return _with_interval("avg_at_k", scores.avg_at_k(correct_QG))


@module(predictions=TEXTS, references=TEXT)
def pass_at_k(
    predictions: list[list[str]], references: list[str], k: int, questions: list[str] | None = None
) -> Result:
    """Unbiased pass@k (arXiv:2107.03374, equation 1), 95% interval over questions."""
    correct_QG = _correct_samples(predictions, references, questions)
    return _with_interval("pass_at_k", scores.pass_at_k(correct_QG, k))


@module(predictions=TEXTS, references=TEXT)
def majority_at_k(
    predictions: list[list[str]], references: list[str], k: int, questions: list[str] | None = None
) -> Result:
    """Accuracy of a majority vote among k samples (arXiv:2203.11171), 95% Wilson interval."""
    score = scores.majority_at_k(predictions, references, k, questions_Q=questions)
    return _with_interval("majority_at_k", score)


@module("Measurement", data=Value("int64"))
def mean_tokens(data: list[int]) -> Result:
    """Mean tokens per question, with its 95% bootstrap interval over questions."""
    return _with_interval("mean_tokens", scores.mean_tokens(data))


@module("Comparison", predictions1=TEXT, predictions2=TEXT, references=TEXT)
def paired_difference(
    predictions1: list[str],
    predictions2: list[str],
    references: list[str],
    questions: list[str] | None = None,
) -> Result:
    """Accuracy gained from the first variant to the second, on the same questions."""
    pair = [_correct(texts, references, questions) for texts in (predictions1, predictions2)]
    difference = _with_interval("difference", paired.paired_bootstrap(*pair))
    return difference | {"p_mcnemar": paired.mcnemar(*pair)}


@module(predictions=TEXT, references=TEXT, confidences=Value("float64"))
def calibration_error(
    predictions: list[str],
    references: list[str],
    confidences: list[float],
    questions: list[str] | None = None,
) -> Result:
    """Expected calibration error (arXiv:1706.04599), Brier score and AUROC."""
    found = calibration.calibration(confidences, _correct(predictions, references, questions))
    return {"ece": found.ece, "brier": found.brier, "auroc": found.auroc}


def _correct(
    predictions: Sequence[str], references: Sequence[str], questions: Sequence[str] | None = None
) -> list[bool]:
    questions = [""] * len(references) if questions is None else questions
    rows = zip(predictions, references, questions, strict=True)
    return [same_answer(*row) for row in rows]


def _correct_samples(
    predictions: Sequence[Sequence[str]],
    references: Sequence[str],
    questions: Sequence[str] | None = None,
) -> list[list[bool]]:
    questions = [""] * len(references) if questions is None else questions
    return [
        [same_answer(text, reference, question) for text in texts]
        for texts, reference, question in zip(predictions, references, questions, strict=True)
    ]


def _with_interval(name: str, score: intervals.Estimate) -> Result:
    return {name: score.mean, "ci95": [score.low, score.high]}
