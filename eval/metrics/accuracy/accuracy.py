"""`evaluate.load("eval/metrics/accuracy")`: see eval/metrics/modules.py."""

from eval.metrics.modules import METRICS

Module = METRICS["accuracy"]
