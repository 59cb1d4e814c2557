"""Sampling: prompts to completions, with the log-probability and the value of each sampled token."""

from pipeline.generation.sampler import Sampler

__all__ = ["Sampler"]
