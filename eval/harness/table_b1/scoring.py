"""Functions called by lm-evaluation-harness, which copies this file beside its task files."""

from eval.harness.scoring import direct, visible
from eval.harness.table_b1.metrics import binary_f1, mcc, pearson, process_results, spearman

__all__ = ["binary_f1", "direct", "mcc", "pearson", "process_results", "spearman", "visible"]
