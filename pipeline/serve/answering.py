"""Answer one request: from a checked request to its choices, their usage, and events on the way.

    greedy, sample     n completions of one prompt, token by token
    other strategies   one answer; the search itself has no visible text

Runs in a thread of its own; the decode loop of the server does the work.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.plain import encode_questions, opens_thought, stop_text
from pipeline.generation.decode_row import DecodeRequest
from pipeline.generation.shared_prefix import PrefixEngine, use_engine
from pipeline.records import Usage
from pipeline.search import STRATEGIES, SearchOptions
from pipeline.search.mcts import answers_and_trees
from pipeline.search.session import ExpandRequest, SearchSession
from pipeline.search.tree import TreeJson
from pipeline.serve.decode_loop import BatchedEngine, DecodeLoop
from pipeline.serve.plan import Plan, plan_of
from pipeline.serve.requests import ChatRequest, RequestError
from pipeline.serve.text_stream import TextStream, split_text

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


class Answering:
    """What all requests share: the policy, the decode loop and the defaults.

    Args:
        options: defaults of the search; a request may change some of them.
        strategy: where a request names none and no temperature.
        token_limit: most tokens of a request, over all of its search.
        prompt_limit: most tokens of a conversation.
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
        prompt_limit: int = 16_384,
    ):
        self.model, self.tokenizer, self.loop = model, tokenizer, loop
        self.options, self.strategy = options.for_model(tokenizer), strategy
        self.token_limit, self.prompt_limit = token_limit, prompt_limit

    def plan(self, request: ChatRequest) -> Plan:
        """The request with the defaults of this server; raises RequestError as `plan_of` does."""
        return plan_of(request, self.options, strategy=self.strategy, token_limit=self.token_limit)

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
        if len(prompt) > self.prompt_limit:
            raise RequestError(
                f"the messages have {len(prompt)} tokens, more than the {self.prompt_limit} that "
                "this server takes: shorten them",
                param="messages",
            )
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


def _hear(listener: TokenListener, request: DecodeRequest, token: int) -> None:
    """Report a token with the index of its choice, the last part of its random stream."""
    listener(request.stream[-1], token)
