"""Log-probabilities, entropy and values of given sequences."""

from pipeline.scoring.chunked_lm_head import token_scores
from pipeline.scoring.logprobs import (
    Scores,
    score_completions,
    score_completions_and_rows,
    score_rows,
)

__all__ = [
    "Scores",
    "score_completions",
    "score_completions_and_rows",
    "score_rows",
    "token_scores",
]
