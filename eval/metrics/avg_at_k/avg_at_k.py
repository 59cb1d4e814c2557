"""`evaluate.load("eval/metrics/avg_at_k")`: see eval/metrics/modules.py."""

from eval.metrics.modules import METRICS

Module = METRICS["avg_at_k"]
