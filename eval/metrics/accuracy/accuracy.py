"""evaluate.load("eval/metrics/accuracy"): share of right final answers."""

import datasets
import evaluate

from pipeline.grading.equivalence import same_answer
from pipeline.stats.intervals import accuracy

_DESCRIPTION = "Share of answers that equal the expected one, with its 95% Wilson interval."


class Accuracy(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: visible answers; references: expected answers",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                }
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict:
        correct = [same_answer(p, r) for p, r in zip(predictions, references, strict=True)]
        score = accuracy(correct)
        return {"accuracy": score.mean, "ci95": [score.low, score.high]}
