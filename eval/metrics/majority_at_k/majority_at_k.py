"""evaluate.load("eval/metrics/majority_at_k"): accuracy of the answer most samples agree on."""

import datasets
import evaluate

from eval.metrics.scores import majority_at_k

_DESCRIPTION = (
    "Accuracy of a majority vote among k samples (arXiv:2203.11171), 95% Wilson interval."
)


class MajorityAtK(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: samples of each question; references: answers; k",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("string")),
                    "references": datasets.Value("string"),
                }
            ),
        )

    def _compute(self, predictions: list[list[str]], references: list[str], k: int) -> dict:
        score = majority_at_k(predictions, references, k)
        return {"majority_at_k": score.mean, "ci95": [score.low, score.high]}
