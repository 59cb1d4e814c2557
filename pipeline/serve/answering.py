"""Answer one request: from a checked request to its choices, their usage, and events on the way.

    greedy, sample     n completions of one prompt, token by token
    other strategies   one answer; the search itself has no visible text

Runs in a thread of its own; the decode loop of the server does the work.
"""

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.plain import encode_questions, opens_thought, stop_text
from pipeline.generation.decode_row import DecodeRequest
from pipeline.generation.shared_prefix import PrefixEngine, use_engine
from pipeline.records import Usage
from pipeline.search import STRATEGIES, VOTES, SearchOptions, check_strategy
from pipeline.search.mcts import answers_and_trees
from pipeline.search.session import ExpandRequest, SearchSession
from pipeline.search.tree import TreeJson
from pipeline.serve.decode_loop import BatchedEngine, DecodeLoop
from pipeline.serve.requests import ChatRequest, RequestError
from pipeline.serve.text_stream import TextStream, split_text

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
TokenListener = Callable[[int, int], None]  # (choice, token id), called in the decode loop


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One answer to a request."""

    text: str
    thought: str = field(default="", repr=False)  # so that no log shows it
    finish_reason: str = "stop"


@dataclass(frozen=True, kw_only=True)
class Completion:
    """All answers to a request and what they cost together."""

    choices: tuple[Choice, ...]
    usage: Usage
    tree: TreeJson | None = field(default=None, repr=False)


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


class Answering:
    """What all requests share: the policy, the decode loop and the defaults.

    Args:
        options: defaults of the search; a request may change some of them.
        strategy: where a request names none and no temperature.
        token_limit: most tokens of a request, over all of its search.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        loop: DecodeLoop,
        *,
        options: SearchOptions,
        strategy: str = "greedy",
        token_limit: int = 4096,
    ):
        self.model, self.tokenizer, self.loop = model, tokenizer, loop
        self.options, self.strategy = options.for_model(tokenizer), strategy
        self.token_limit = token_limit

    def plan(self, request: ChatRequest) -> Plan:
        """The strategy and options of a request.

        Raises:
            RequestError: the strategy is unknown, or does not go with the other fields.
        """
        strategy = request.strategy or self._default_strategy(request)
        try:
            options = self._options(request, strategy)
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
        path = min(options.sample_tokens, self.token_limit)
        return Plan(request=request, strategy=strategy, options=options, path_tokens=path)

    def prompt_tokens(self, plan: Plan) -> int:
        """Length of the prompt.

        Raises:
            RequestError: it leaves no room for an answer, or the template refuses the messages.
        """
        try:
            (prompt,) = encode_questions(
                self.tokenizer, [plan.request.messages], think=plan.options.think
            )
        except Exception as error:  # a template of the checkpoint may raise anything
            raise RequestError(
                "the chat template of this model refuses the messages "
                f"({type(error).__name__}): check the order of their roles",
                param="messages",
            ) from None
        window = getattr(self.model.config, "max_position_embeddings", None)
        if window is not None and len(prompt) >= window:
            raise RequestError(
                f"the messages have {len(prompt)} tokens, which leaves no room for an answer in "
                f"the model's context window of {window} tokens: shorten them",
                param="messages",
            )
        return len(prompt)

    def run(
        self, plan: Plan, cancelled: threading.Event, on_token: TokenListener | None = None
    ) -> Completion:
        """The answers to a request.

        Raises:
            RequestError: the model cannot run the strategy, or the messages are too long.
            Cancelled: `cancelled` was set, or the server stops.
            DecodingFailed: the model failed.
        """
        self.prompt_tokens(plan)
        made: list[PrefixEngine] = []

        def make(
            model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int
        ) -> PrefixEngine:
            engine = BatchedEngine(
                model,
                tokenizer,
                loop=self.loop,
                cancelled=cancelled,
                batch_size=batch_size,
                top_p=plan.request.top_p,
                stop=plan.request.stop,
                on_token=None if on_token is None else partial(_hear, on_token),
            )
            made.append(engine)
            return engine

        try:
            with use_engine(make):
                return self._sample(plan) if plan.streams else self._search(plan)
        except ValueError as error:
            if any(engine.generated_tokens for engine in made):
                raise
            # Before the first token: the checkpoint lacks what the strategy needs.
            raise RequestError(str(error), param="strategy") from None

    def text_stream(self, plan: Plan) -> TextStream:
        """An empty stream for a completion of this request."""
        plain = stop_text(self.tokenizer)
        stop = (*plan.request.stop, *([] if plain is None else [plain]))
        in_thought = opens_thought(self.tokenizer, plan.options.think)
        return TextStream(self.tokenizer, in_thought=in_thought, stop=stop)

    def _sample(self, plan: Plan) -> Completion:
        options = replace(
            plan.options,
            max_sample_tokens=plan.path_tokens,
            max_completion_tokens=None,
            reasoning_effort=None,
        )
        temperature = 0.0 if plan.strategy == "greedy" else options.temperature
        n = plan.request.n
        session = SearchSession(
            self.model,
            self.tokenizer,
            [plan.request.messages],
            options,
            max_paths=n,
            temperature=temperature,
        )
        roots = [ExpandRequest(q=0, sequence=session.roots[0], stream=(0, i)) for i in range(n)]
        choices = []
        for sequence in session.finish(roots):
            assert sequence is not None  # every path has its own tokens
            thought, text = split_text(self.text_stream(plan), sequence.ids)
            reason = "stop" if sequence.ended else "length"
            choices.append(Choice(text=text, thought=thought, finish_reason=reason))
        return Completion(choices=tuple(choices), usage=session.budgets[0].usage)

    def _search(self, plan: Plan) -> Completion:
        shared = (self.model, self.tokenizer, [plan.request.messages], plan.options)
        tree: TreeJson | None = None
        if plan.request.return_tree:
            ((answer, found),) = answers_and_trees(*shared)
            tree = found.to_json()
        else:
            (answer,) = STRATEGIES[plan.strategy](*shared)
        text = answer.text
        for stop in plan.request.stop:
            text = text.partition(stop)[0].strip()
        choice = Choice(text=text, thought=answer.thought, finish_reason=answer.finish_reason)
        return Completion(choices=(choice,), usage=answer.usage, tree=tree)

    def _default_strategy(self, request: ChatRequest) -> str:
        if request.temperature is not None:
            return "sample" if request.temperature > 0 else "greedy"
        if self.strategy == "greedy" and request.n > 1:
            return "sample"
        return self.strategy

    def _options(self, request: ChatRequest, strategy: str) -> SearchOptions:
        changes: dict[str, object] = dict(checked_strategy_options(request))
        if strategy in VOTES and self.options.n == 1:
            changes.setdefault("n", VOTE_SAMPLES)
        if strategy in ONE_PATH:
            changes["n"] = 1
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
        tokens = [request.max_completion_tokens or self.options.total_tokens]
        if effort is not None:
            tokens.append(self.options.effort_tokens()[effort])
        given = [count for count in tokens if count is not None]
        limit = None if strategy in ONE_PATH and not given else self.token_limit
        changes["max_completion_tokens"] = min(
            [*given, *([] if limit is None else [limit])], default=None
        )
        changes["reasoning_effort"] = None
        return replace(self.options, **changes)  # type: ignore[arg-type]  # checked by the class


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


def _hear(listener: TokenListener, request: DecodeRequest, token: int) -> None:
    """Report a token with the index of its choice, the last part of its random stream."""
    listener(request.stream[-1], token)
