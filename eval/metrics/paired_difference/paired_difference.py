"""evaluate.load("eval/metrics/paired_difference"): is the second variant better, or lucky."""

import datasets
import evaluate

from pipeline.grading.equivalence import same_answer
from pipeline.stats.paired import mcnemar, paired_bootstrap

_DESCRIPTION = "Accuracy gained from the first variant to the second, on the same questions."


class PairedDifference(evaluate.Comparison):
    def _info(self) -> evaluate.ComparisonInfo:
        return evaluate.ComparisonInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions1, predictions2: answers of both; references: expected",
            features=datasets.Features(
                {
                    "predictions1": datasets.Value("string"),
                    "predictions2": datasets.Value("string"),
                    "references": datasets.Value("string"),
                }
            ),
        )

    def _compute(
        self, predictions1: list[str], predictions2: list[str], references: list[str]
    ) -> dict:
        before, after = (
            [same_answer(text, expected) for text, expected in zip(texts, references, strict=True)]
            for texts in (predictions1, predictions2)
        )
        gain = paired_bootstrap(before, after)
        return {
            "difference": gain.mean,
            "ci95": [gain.low, gain.high],
            "p_mcnemar": mcnemar(before, after),
        }
