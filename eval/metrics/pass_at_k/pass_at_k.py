"""`evaluate.load("eval/metrics/pass_at_k")`: see eval/metrics/modules.py."""

from eval.metrics.modules import METRICS

Module = METRICS["pass_at_k"]
