"""`evaluate.load("eval/metrics/majority_at_k")`: see eval/metrics/modules.py."""

from eval.metrics.modules import METRICS

Module = METRICS["majority_at_k"]
