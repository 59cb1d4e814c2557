"""Strategies: how an answer is found at inference, by name, each with its full cost in tokens.

A strategy reads the model, the tokenizer and questions as plain strings; no expected answer comes
near it. Randomness is `options.seed`: the same call gives the same answers.
"""

from pipeline.search.consensus import clusters, elect, vote
from pipeline.search.strategy import SearchOptions, Strategy, draw, greedy, sample

STRATEGIES: dict[str, Strategy] = {"greedy": greedy, "sample": sample, "consensus": vote}

__all__ = ["STRATEGIES", "SearchOptions", "Strategy", "clusters", "draw", "elect"]
