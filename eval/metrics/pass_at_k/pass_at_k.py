"""evaluate.load("eval/metrics/pass_at_k"): chance that one of k samples is right."""

import datasets
import evaluate

from eval.metrics.scores import pass_at_k
from pipeline.grading.equivalence import same_answer

_DESCRIPTION = "Unbiased pass@k (arXiv:2107.03374, equation 1), 95% interval over questions."


class PassAtK(evaluate.Metric):
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
        pairs = zip(predictions, references, strict=True)
        correct = [[same_answer(text, expected) for text in texts] for texts, expected in pairs]
        score = pass_at_k(correct, k)
        return {"pass_at_k": score.mean, "ci95": [score.low, score.high]}
