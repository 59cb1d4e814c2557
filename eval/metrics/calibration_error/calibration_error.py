"""evaluate.load("eval/metrics/calibration_error"): whether confidences mean what they say."""

import datasets
import evaluate

from pipeline.grading.equivalence import same_answer
from pipeline.stats.calibration import calibration

_DESCRIPTION = "Expected calibration error (arXiv:1706.04599), Brier score and AUROC."


class CalibrationError(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions: answers; references: expected; confidences: [0, 1]",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                    "confidences": datasets.Value("float64"),
                }
            ),
        )

    def _compute(
        self, predictions: list[str], references: list[str], confidences: list[float]
    ) -> dict:
        pairs = zip(predictions, references, strict=True)
        found = calibration(confidences, [same_answer(text, expected) for text, expected in pairs])
        return {"ece": found.ece, "brier": found.brier, "auroc": found.auroc}
