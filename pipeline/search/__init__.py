"""Inference strategies by name: from questions to answers with their full cost in tokens.

A strategy receives the model, the tokenizer and the questions, never an expected answer. All
randomness comes from `options.seed`, so the same call gives the same answers.
"""

from difflib import get_close_matches

from pipeline.search.adaptive import adaptive
from pipeline.search.beam import beam
from pipeline.search.completion import Completion, generate_completion
from pipeline.search.consensus import (
    best_of_n,
    clusters,
    likelihood,
    select_by_vote,
    vote,
    weighted,
)
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

# Choose among the n samples of a question.
VOTES = ("consensus", "likelihood", "weighted", "best_of_n", "adaptive")
# Refuse a model without a value head; the other strategies work with any.
NEED_VALUES = ("weighted", "best_of_n", "beam", "mcts", "revise")
# The option that sets how much the other searches sample, in place of n.
_INSTEAD_OF_N = {
    "beam": "width",
    "mcts": "simulations",
    "revise": "retries",
    "calculator": "retries",
    "random_cut": "retries",
}


def check_strategy(name: str, options: SearchOptions) -> None:
    """Raise ValueError for an unknown strategy or options that it does not accept."""
    if name not in STRATEGIES:
        near = get_close_matches(str(name), STRATEGIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(STRATEGIES)}"
        raise ValueError(f"no strategy is called {name!r}: {hint}")
    if name in VOTES and options.n == 1:
        raise ValueError(f"n=1 leaves {name} one sample, which is no vote: give --n 8, or greedy")
    if name in _INSTEAD_OF_N and options.n != 1:
        raise ValueError(
            f"n={options.n}, but {name} does not draw n samples: "
            f"leave n at 1 and set {_INSTEAD_OF_N[name]}"
        )
    STRATEGIES[name](None, None, [], options)  # without questions it only checks its options


__all__ = [
    "NEED_VALUES",
    "STRATEGIES",
    "VOTES",
    "Completion",
    "SearchOptions",
    "Strategy",
    "check_strategy",
    "clusters",
    "generate_completion",
    "sample_answers",
    "select_by_vote",
]
