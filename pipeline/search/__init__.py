"""Strategies: how an answer is found at inference, by name, each with its full cost in tokens.

A strategy reads the model, the tokenizer and questions as plain strings; no expected answer comes
near it. Randomness is `options.seed`: the same call gives the same answers.
"""

from difflib import get_close_matches

from pipeline.search.adaptive import adaptive
from pipeline.search.beam import beam
from pipeline.search.consensus import best_of_n, clusters, elect, likelihood, vote, weighted
from pipeline.search.mcts import mcts
from pipeline.search.options import SearchOptions
from pipeline.search.revise import calculator, random_cut, revise
from pipeline.search.strategy import Strategy, greedy, sample, sample_answers

STRATEGIES: dict[str, Strategy] = {
    "greedy": greedy,
    "sample": sample,
    "consensus": vote,
    "likelihood": likelihood,
    "weighted": weighted,
    "best_of_n": best_of_n,
    "beam": beam,
    "mcts": mcts,
    "adaptive": adaptive,
    "revise": revise,
    "calculator": calculator,
    "random_cut": random_cut,
}


def check_strategy(name: str, options: SearchOptions) -> None:
    """ValueError for an unknown strategy, or options it cannot work with."""
    if name not in STRATEGIES:
        near = get_close_matches(str(name), STRATEGIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(STRATEGIES)}"
        raise ValueError(f"no strategy is called {name!r}: {hint}")
    STRATEGIES[name](None, None, [], options)  # no question: nothing runs but its own checks


__all__ = [
    "STRATEGIES",
    "SearchOptions",
    "Strategy",
    "check_strategy",
    "clusters",
    "elect",
    "sample_answers",
]
