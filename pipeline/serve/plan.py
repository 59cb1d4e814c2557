"""Fill in what a request leaves open: its strategy, its token budget, its seed."""

import secrets
from dataclasses import dataclass, fields, replace

from pipeline.search import VOTES, SearchOptions, check_strategy
from pipeline.search.options import DEFAULT_SAMPLE_TOKENS
from pipeline.serve.requests import ChatRequest, RequestError

ONE_PATH = ("greedy", "sample")
VOTE_SAMPLES = 8  # of a vote whose request does not say how many
# What a request may set besides its own fields, with the largest value.
STRATEGY_OPTIONS = {
    "n": 64,
    "step_tokens": 1024,
    "branches": 16,
    "width": 16,
    "simulations": 256,
    "leaves": 16,
    "playouts": 8,
    "first_samples": 16,
    "retries": 32,
    "c_puct": 100.0,
    "posterior": 1.0,
    "sure_value": 1.0,
    "fall": 1.0,
    "value_temperature": 100.0,
    "choose": None,  # a text
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request with every default filled in."""

    request: ChatRequest
    strategy: str
    options: SearchOptions
    path_tokens: int  # most tokens of one completion of greedy or sample

    @property
    def streams(self) -> bool:
        """Whether tokens become visible one by one."""
        return self.strategy in ONE_PATH


def plan_of(
    request: ChatRequest, defaults: SearchOptions, *, strategy: str, token_limit: int
) -> Plan:
    """The strategy and options of a request.

    Args:
        defaults: where the request says nothing.
        strategy: where the request names none and has no temperature.
        token_limit: most tokens of a request, over all of its search.

    Raises:
        RequestError: the strategy is unknown, or does not go with the other fields.
    """
    strategy = request.strategy or _default_strategy(request, strategy)
    if request.strategy_options and strategy in ONE_PATH:
        raise RequestError(
            f"strategy_options are for searches, and this request is answered with {strategy}: "
            "name a search in strategy, or leave them out",
            param="strategy_options",
        )
    try:
        options = _options(request, defaults, strategy, token_limit)
        check_strategy(strategy, options)
    except ValueError as error:
        raise RequestError(str(error), param="strategy") from None
    if request.n > 1 and strategy != "sample":
        raise RequestError(
            f"n={request.n} needs the strategy sample, {strategy} gives one answer: set a "
            "temperature, or give strategy_options.n for the samples of a vote",
            param="n",
        )
    if request.return_tree and strategy != "mcts":
        raise RequestError(f"{strategy} has no tree: give strategy mcts", param="return_tree")
    path = min(options.sample_tokens, token_limit)
    return Plan(request=request, strategy=strategy, options=options, path_tokens=path)


def checked_strategy_options(request: ChatRequest) -> dict[str, int | float | str]:
    """The `strategy_options` of a request, each within its bound.

    Raises:
        RequestError: a name is unknown, or a value too large.
    """
    types = {f.name: f.default for f in fields(SearchOptions)}
    for name, value in request.strategy_options.items():
        if name not in STRATEGY_OPTIONS:
            raise RequestError(
                f"strategy_options.{name[:40]} is not one of {', '.join(STRATEGY_OPTIONS)}",
                param="strategy_options",
            )
        most = STRATEGY_OPTIONS[name]
        if most is not None and (isinstance(value, str) or not value <= most):
            raise RequestError(
                f"strategy_options.{name} must be a number of at most {most}",
                param="strategy_options",
            )
        if isinstance(types[name], int) and isinstance(value, float):
            raise RequestError(
                f"strategy_options.{name} must be an integer", param="strategy_options"
            )
    return request.strategy_options


def _default_strategy(request: ChatRequest, strategy: str) -> str:
    if request.temperature is not None:
        return "sample" if request.temperature > 0 else "greedy"
    if strategy == "greedy" and request.n > 1:
        return "sample"
    return strategy


def _options(
    request: ChatRequest, defaults: SearchOptions, strategy: str, token_limit: int
) -> SearchOptions:
    changes: dict[str, object] = dict(checked_strategy_options(request))
    if strategy in VOTES and defaults.n == 1:
        changes.setdefault("n", VOTE_SAMPLES)
    if strategy in ONE_PATH:
        changes["n"] = 1
    elif strategy not in VOTES:  # the default is for votes
        changes.setdefault("n", 1)
    if request.temperature is not None:
        changes["temperature"] = request.temperature
    changes["seed"] = secrets.randbelow(2**31)
    if request.seed is not None:
        changes["seed"] = request.seed % 2**63
    effort = {"none": None, "minimal": "low", "xhigh": "high"}.get(
        str(request.reasoning_effort), request.reasoning_effort
    )
    if request.reasoning_effort == "none":
        changes["think"] = False
    effort_tokens = None if effort is None else defaults.effort_tokens()[effort]
    asked = [t for t in (request.max_completion_tokens, effort_tokens) if t is not None]
    given = asked or [t for t in (defaults.total_tokens,) if t is not None]
    limit = None if strategy in ONE_PATH and not given else token_limit
    changes["max_completion_tokens"] = min(
        [*given, *([] if limit is None else [limit])], default=None
    )
    changes["reasoning_effort"] = None
    options = replace(defaults, **changes)  # type: ignore[arg-type]  # checked by the class
    if strategy in ONE_PATH or options.max_sample_tokens is not None:
        return options
    # Samples of all of the budget would be decoded one after another, and the first that does not
    # end would use it up.
    paths = options.n if strategy in VOTES else options.simulations if strategy == "mcts" else 1
    share = options.sample_tokens // paths if given else 0
    return replace(options, max_sample_tokens=max(DEFAULT_SAMPLE_TOKENS, share))
