"""Statistics: confidence intervals, paired tests, ranking, calibration, Elo, scaling law.

Functions take numpy arrays or sequences of numbers and compute in float64. Tensors are converted
by the caller: `x.float().cpu().numpy()`.
"""
