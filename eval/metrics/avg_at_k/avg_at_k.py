"""evaluate.load("eval/metrics/avg_at_k"): accuracy of a single sample, averaged over k."""

import datasets
import evaluate

from eval.metrics.scores import avg_at_k
from pipeline.grading.equivalence import same_answer

_DESCRIPTION = "Mean accuracy of the k samples of a question, 95% interval over questions."


class AvgAtK(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: samples of each question; references: answers",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("string")),
                    "references": datasets.Value("string"),
                }
            ),
        )

    def _compute(self, predictions: list[list[str]], references: list[str]) -> dict:
        pairs = zip(predictions, references, strict=True)
        correct = [[same_answer(text, expected) for text in texts] for texts, expected in pairs]
        score = avg_at_k(correct)
        return {"avg_at_k": score.mean, "ci95": [score.low, score.high]}
