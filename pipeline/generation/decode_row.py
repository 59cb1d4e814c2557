"""The request to continue a sequence, and its state while it is decoded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from pipeline.generation.sequence import CachedPath, PartialSequence
from pipeline.progress import sequence_finished

__all__ = ["DecodeRequest", "DecodeRow", "EndTokens", "LastLogits", "PartialSequence"]


@dataclass(frozen=True, kw_only=True)
class DecodeRequest:
    """How to continue a sequence: until an end token, or by one step with `max_step_tokens`.

    A step is a line of the thought. Once the thought is closed, decoding goes on to the end token.
    """

    sequence: PartialSequence
    budget: int  # most tokens to generate
    stream: tuple[int, ...]  # seed of its random numbers
    temperature: float  # 0 is greedy
    max_step_tokens: int | None = None  # stop after a step of at most so many tokens
    max_thought_tokens: int | None = None  # force END_THINK after so many further tokens


class LastLogits(Protocol):
    """Logits and values of the last token of every row of a batch."""

    logits_nV: torch.Tensor
    values_n: torch.Tensor | None


class EndTokens(Protocol):
    """What a row has to know of its engine: where thoughts, steps and answers end."""

    eos_ids: frozenset[int]
    end_think_id: int
    step_ends: frozenset[int]
    on_token: Callable[[DecodeRequest, int], None] | None

    def stops(self, ids: list[int], *, closed: bool) -> bool:
        """Whether the last tokens contain the text that ends an answer."""


class DecodeRow:
    """State of one request while it is decoded."""

    def __init__(self, request: DecodeRequest, engine: EndTokens):
        self.request, self.engine = request, engine
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.values: list[float] = []
        self.closed, self.ended, self.forced = request.sequence.closed, False, False
        self.active = True
        self.needs_forward = False  # the last token is still to be fed
        self.to_store = False  # keys and values are still to be copied to the pool
        self.value = request.sequence.value
        self.cached: CachedPath | None = None  # of the sequence, once its step is in the pool
        self.logits_V: torch.Tensor | None = None
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(request.stream)))
        self._uniform = generator.random(request.budget)

    def uniform(self, step: int) -> float:
        """The random number in [0, 1) of this step; 0 once the row has finished."""
        return float(self._uniform[step]) if step < len(self._uniform) else 0.0

    def closes_thought(self, step: int) -> bool:
        """Whether this step's token is forced to be END_THINK."""
        return not self.closed and self.active and self.request.max_thought_tokens == step

    def input_id(self, pad_id: int) -> int:
        """The token to feed next; padding for a row that needs no forward."""
        return self.ids[-1] if self.needs_forward else pad_id

    def write(self, token: int, logprob: float, value: float | None, forced: bool) -> None:
        """Append a token and decide whether the row goes on."""
        engine, request = self.engine, self.request
        self.ids.append(token)
        self.logprobs.append(logprob)
        if value is not None:
            self.values.append(value)
            self.value = value
        self.forced |= forced
        self.closed |= token == engine.end_think_id
        if engine.on_token is not None:
            engine.on_token(request, token)
        self.ended = token in engine.eos_ids or engine.stops(self.ids, closed=self.closed)
        step_limit = request.max_step_tokens
        at_step_end = (
            step_limit is not None
            and not self.closed
            and (token in engine.step_ends or len(self.ids) >= step_limit)
        )
        self.active = not (self.ended or at_step_end or len(self.ids) >= request.budget)
        # Only a request that decodes by steps is continued later, also if the budget stopped it.
        self.to_store = step_limit is not None and not self.active and not self.ended
        self.needs_forward = self.active or self.to_store
        if not self.active and not self.to_store:
            sequence_finished()

    def after_forward(self, state: LastLogits, index: int) -> None:
        """Keep logits and value of the state behind the last token of a row that stopped."""
        if self.to_store and self.needs_forward:
            self.logits_V = state.logits_nV[index].clone()
            self.value = None if state.values_n is None else float(state.values_n[index])
            self.needs_forward = False

    def sequence(self) -> PartialSequence:
        """The request's sequence with the generated tokens appended."""
        before = self.request.sequence
        return replace(
            before,
            tokens=before.tokens.then(tuple(self.ids), tuple(self.logprobs), tuple(self.values)),
            value=self.value,
            score=None,
            closed=self.closed,
            forced=before.forced or self.forced,
            ended=self.ended,
            cached=self.cached,
            logits_V=self.logits_V,
        )
