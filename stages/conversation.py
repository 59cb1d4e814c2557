"""A conversation with a model: its turns without thoughts, its strategy, and what it has cost."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.plain import encode_questions, opens_thought, stop_text
from pipeline.chat.prompts import user_message
from pipeline.config import require
from pipeline.generation.decode_row import DecodeRequest
from pipeline.generation.shared_prefix import PrefixEngine, use_engine
from pipeline.records import Answer, Usage
from pipeline.runtime import write_json
from pipeline.search import STRATEGIES, VOTES, SearchOptions, check_strategy
from pipeline.serve.plan import ONE_PATH, VOTE_SAMPLES
from pipeline.serve.text_stream import TextDelta, TextStream

Turns = list[dict[str, str]]
Listener = Callable[[TextDelta], None]
EFFORTS = ("low", "medium", "high")


class Chat:
    """One conversation."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        strategy: str,
        options: SearchOptions,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.strategy, self.options = strategy, options.for_model(tokenizer)
        self._given = self.options  # before /effort and /strategy changed anything
        self.system = ""
        self.turns: Turns = []
        self.usage = Usage()  # of all answers since the start

    def ask(self, question: str, listen: Listener | None = None) -> Answer:
        """Answer to the next question; both are added to the turns.

        `listen` is called with further text: as it is generated with greedy and sample, at the end
        with other strategies.
        """
        turns = self._fitting([*self.turns, *user_message(question)])
        stream = self._text_stream()
        streams = listen is not None and self.strategy in ONE_PATH

        def hear(request: DecodeRequest, token: int) -> None:
            assert listen is not None
            listen(stream.feed(token))

        make = partial(PrefixEngine, on_token=hear if streams else None)
        with use_engine(make):
            (answer,) = STRATEGIES[self.strategy](
                self.model, self.tokenizer, [self._with_system(turns)], self.options
            )
        if listen is not None:
            whole = TextDelta(visible=answer.text, thought=answer.thought)
            listen(stream.finish() if streams else whole)
        self.turns = [*turns, {"role": "assistant", "content": answer.text}]
        self.usage += answer.usage
        return answer

    def set_strategy(self, name: str) -> None:
        """Answer with another strategy from now on.

        Raises:
            ValueError: there is no such strategy, or it does not accept the options.
        """
        n = 1
        if name in VOTES:
            n = VOTE_SAMPLES if self._given.n == 1 else self._given.n
        options = replace(self.options, n=n)
        check_strategy(name, options)
        self.strategy, self.options = name, options

    def set_effort(self, name: str) -> None:
        """Bound the tokens of further answers by an effort; `default` takes the bound back.

        Raises:
            ValueError: there is no such effort.
        """
        if name == "default":
            given = self._given
            self.options = replace(
                self.options,
                reasoning_effort=given.reasoning_effort,
                max_completion_tokens=given.max_completion_tokens,
            )
            return
        require(name in EFFORTS, f"effort {name!r} must be one of {', '.join(EFFORTS)}, default")
        self.options = SearchOptions(
            **vars(self.options) | {"reasoning_effort": name, "max_completion_tokens": None}
        )

    def new(self) -> None:
        """Forget the turns; the system prompt stays."""
        self.turns = []

    @property
    def messages(self) -> Turns:
        """The conversation with its system prompt, as the API takes it."""
        return self._with_system(self.turns)

    def save(self, path: str | Path) -> None:
        """Write the messages, without thoughts, as a JSON file that the server takes as a body."""
        require(bool(self.turns), "there is nothing to save yet: ask a question first")
        write_json(Path(path), {"messages": self.messages})

    def _with_system(self, turns: Turns) -> Turns:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *turns]

    def _text_stream(self) -> TextStream:
        stop = stop_text(self.tokenizer)
        in_thought = opens_thought(self.tokenizer, self.options.think)
        return TextStream(
            self.tokenizer, in_thought=in_thought, stop=[] if stop is None else [stop]
        )

    def _fitting(self, turns: Turns) -> Turns:
        """The last turns that leave room in the context window for an answer, at most half of it.

        Otherwise a budget as large as the window would leave no turn.
        """
        window = getattr(self.model.config, "max_position_embeddings", None)
        while window is not None and len(turns) > 2:
            conversation = self._with_system(turns)
            (prompt,) = encode_questions(self.tokenizer, [conversation], think=self.options.think)
            if len(prompt) + min(self.options.sample_tokens, window // 2) <= window:
                break
            turns = turns[2:]
        return turns
