"""`evaluate.load("eval/metrics/paired_difference")`: see eval/metrics/modules.py."""

from eval.metrics.modules import METRICS

Module = METRICS["paired_difference"]
