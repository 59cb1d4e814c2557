"""Sampling of completions, with log-probability and value of each sampled token."""

from pipeline.generation.sampler import Sampler

__all__ = ["Sampler"]
