"""Log-probabilities, entropy and values of given sequences."""

from pipeline.scoring.chunked_lm_head import token_scores
from pipeline.scoring.completions import Completions, prepare_completions
from pipeline.scoring.logprobs import (
    Scores,
    row_hidden_states,
    score_completions,
    score_completions_and_rows,
    score_prepared,
    score_rows,
    supports_packing,
)

__all__ = [
    "Completions",
    "Scores",
    "prepare_completions",
    "row_hidden_states",
    "score_completions",
    "score_completions_and_rows",
    "score_prepared",
    "score_rows",
    "supports_packing",
    "token_scores",
]
