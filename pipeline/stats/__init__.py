"""Statistics: confidence intervals, paired tests, ranking quality, calibration, Elo, scaling law."""
