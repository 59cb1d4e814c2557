"""`evaluate.load("eval/metrics/calibration_error")`: see eval/metrics/modules.py."""

from eval.metrics.modules import METRICS

Module = METRICS["calibration_error"]
