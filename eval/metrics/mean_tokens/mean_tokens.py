"""`evaluate.load("eval/metrics/mean_tokens")`: see eval/metrics/modules.py."""

from eval.metrics.modules import METRICS

Module = METRICS["mean_tokens"]
