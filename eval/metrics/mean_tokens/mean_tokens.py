"""evaluate.load("eval/metrics/mean_tokens"): what an answer costs."""

import datasets
import evaluate

from eval.metrics.scores import mean_tokens

_DESCRIPTION = "Mean tokens a question, with its 95% bootstrap interval over questions."


class MeanTokens(evaluate.Measurement):
    def _info(self) -> evaluate.MeasurementInfo:
        return evaluate.MeasurementInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="data: tokens of each answer, all its samples counted",
            features=datasets.Features({"data": datasets.Value("int64")}),
        )

    def _compute(self, data: list[int]) -> dict:
        score = mean_tokens(data)
        return {"mean_tokens": score.mean, "ci95": [score.low, score.high]}
