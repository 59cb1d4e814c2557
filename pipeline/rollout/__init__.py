"""Prompts in, completions out, with the log-probability and the value of every sampled token."""

from pipeline.rollout.head import token_scores
from pipeline.rollout.logprobs import (
    Scores,
    score_completions,
    score_completions_and_rows,
    score_rows,
)
from pipeline.rollout.sampler import Sampler

__all__ = [
    "Sampler",
    "Scores",
    "score_completions",
    "score_completions_and_rows",
    "score_rows",
    "token_scores",
]
