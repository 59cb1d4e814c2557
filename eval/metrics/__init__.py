"""Metrics: pure functions in scores.py, and modules of the package `evaluate` around them.

>>> import evaluate
>>> metric = evaluate.load("eval/metrics/accuracy")  # doctest: +SKIP
>>> metric.compute(predictions=["7", "8"], references=["7", "9"])  # doctest: +SKIP
{'accuracy': 0.5, 'ci95': [0.0945, 0.9055]}
"""
