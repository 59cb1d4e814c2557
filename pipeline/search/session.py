"""Decoding for the strategies: one prefix engine for all questions, one token budget per question.

Strategies request steps and complete answers for many questions and sequences at once. Tokens are
reserved, spent and counted here, and thoughts are closed early enough to leave room for the answer.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.plain import encode_questions, opens_thought, stop_text, token_id
from pipeline.chat.prompts import Question, question_text
from pipeline.chat.tags import END_THINK, THINK, split_ids
from pipeline.generation.shared_prefix import DecodeRequest, PartialSequence, new_engine
from pipeline.model import verifier_features, verifier_of
from pipeline.records import Answer, Usage
from pipeline.search.budget import TokenBudget
from pipeline.search.options import SearchOptions


@dataclass(frozen=True, kw_only=True)
class ExpandRequest:
    """A sequence of question q to continue."""

    q: int
    sequence: PartialSequence
    stream: tuple[int, ...]  # seed of its random numbers, beside options.seed and the question
    temperature: float | None = None  # default: that of the session
    max_thought_tokens: int | None = None  # force END_THINK after so many; default: `answer_tokens`


class SearchSession:
    """Engine, budgets and prefilled prompts for one call of a strategy.

    Args:
        max_paths: the budget of a question, in answers of full length, if the options set no total.
        temperature: default: that of the options.

    Raises:
        ValueError: a question leaves no room in the model's context window.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        options: SearchOptions,
        *,
        max_paths: int = 1,
        temperature: float | None = None,
    ):
        options = options.for_model(tokenizer)
        self.tokenizer, self.options = tokenizer, options
        self.temperature = options.temperature if temperature is None else temperature
        self.questions = [question_text(question) for question in questions]
        prompts = encode_questions(tokenizer, questions, think=options.think)
        self.thinks = opens_thought(tokenizer, options.think)
        self.stop_text = stop_text(tokenizer)
        self.think_id, self.end_think_id = (token_id(tokenizer, t) for t in (THINK, END_THINK))
        total = options.total_tokens or max_paths * options.sample_tokens
        self.budgets = [_token_budget(model, prompt, options, total) for prompt in prompts]
        self.engine = new_engine(model, tokenizer, batch_size=options.batch_size)
        self.verifier = verifier_of(model)
        self.roots = self._scored(self.engine.start(prompts, closed=not self.thinks))
        self._keys = [_key(prompt) for prompt in prompts]
        # Tokens reserved for the closing tag and the answer.
        self.answer_reserve = options.answer_tokens + 1 if options.answer_tokens else 0

    def finish(self, requests: Sequence[ExpandRequest]) -> list[PartialSequence | None]:
        """Continue each sequence to its answer, closing the thought early enough.

        None for a request without tokens left.
        """
        wanted = [self._remaining_path(request) for request in requests]
        return self._extend_in_waves(requests, wanted, [None] * len(requests))

    def steps(self, requests: Sequence[ExpandRequest]) -> list[PartialSequence | None]:
        """Continue each sequence by one step of thought; the last step includes the answer.

        The thought of a sequence near its limit is closed. None for a request whose question has
        only the tokens left that are reserved for an answer.
        """
        most = self.options.step_tokens + self.answer_reserve
        rooms = [self._remaining_path(request) for request in requests]
        step_limits = [self.options.step_tokens if room > most else None for room in rooms]
        wanted = [min(most, room) for room in rooms]
        return self._extend_in_waves(
            requests, wanted, step_limits, keep=self.answer_reserve, partial=False
        )

    def answer(
        self, q: int, sequence: PartialSequence, usage: Usage | None = None, **notes: object
    ) -> Answer:
        """The sequence as an Answer; `usage` is by default everything spent on the question."""
        hidden, visible = self.split(sequence)
        thought = self.text([i for i in hidden if i not in (self.think_id, self.end_think_id)])
        text = self.text(visible)
        if self.stop_text:
            text = text.partition(self.stop_text)[0]
        text = text.strip()
        return Answer(
            text=text,
            thought=thought.strip(),
            value=sequence.score,
            usage=self.budgets[q].usage if usage is None else usage,
            finish_reason="stop" if text and sequence.ended else "length",
            forced=sequence.forced,
            notes=notes,
        )

    def with_total_usage(self, q: int, answer: Answer, **notes: object) -> Answer:
        """The answer with everything spent on the question as usage, and further notes."""
        return replace(answer, usage=self.budgets[q].usage, notes=answer.notes | notes)

    def own_usage(self, sequence: PartialSequence) -> Usage:
        """Usage of this sequence alone."""
        hidden, visible = self.split(sequence)
        return Usage(
            prompt_tokens=sequence.prompt_tokens,
            reasoning_tokens=len(hidden),
            visible_tokens=len(visible),
        )

    def text(self, ids: Sequence[int]) -> str:
        """Decoded ids without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    @torch.no_grad()
    def _scored(self, sequences: list[PartialSequence]) -> list[PartialSequence]:
        """The sequences with `score` set.

        The score is the verifier's probability of a correct answer, V without a verifier, and None
        without a value head.
        """
        if self.verifier is None or not sequences:
            return [replace(b, score=b.value) for b in sequences]
        features = []
        for b in sequences:
            first = b.values[0] if b.values else b.known_value
            features.append(verifier_features(b.logprobs, first, b.known_value, ended=b.ended))
        scores = self.verifier(torch.tensor(features)).tolist()
        return [replace(b, score=score) for b, score in zip(sequences, scores, strict=True)]

    def split(self, sequence: PartialSequence) -> tuple[list[int], list[int]]:
        """(thought ids with the closing tag, visible ids)."""
        ids = list(sequence.ids)
        # With think=False a model may write a thought all the same: it must not become visible.
        thinks = self.thinks or self.think_id in ids or self.end_think_id in ids
        if not thinks or self.end_think_id is None:
            return [], ids
        return split_ids(ids, self.end_think_id, self.think_id)

    def _remaining_path(self, request: ExpandRequest) -> int:
        """Tokens that the sequence may still have."""
        return self.budgets[request.q].path - request.sequence.length

    def _extend_in_waves(
        self,
        requests: Sequence[ExpandRequest],
        wanted: Sequence[int],
        step_limits: Sequence[int | None],
        *,
        keep: int = 0,
        partial: bool = True,
    ) -> list[PartialSequence | None]:
        """Decode the requests; one whose tokens are reserved by others of its question waits.

        Args:
            wanted: tokens of each request; those it does not use pay for the next wave.
            keep: tokens of every question that are left over.
            partial: whether a request gets what is left, if nothing is reserved and that is less
                than it wants; otherwise it gets nothing.

        Returns:
            The longer sequences; None for a request without tokens.
        """
        found: list[PartialSequence | None] = [None] * len(requests)
        waiting = list(range(len(requests)))
        while waiting:
            granted: dict[int, int] = {}
            for i in waiting:
                budget = self.budgets[requests[i].q]
                covered = budget.left - keep >= wanted[i]
                if covered or not budget.reserved:
                    granted[i] = budget.reserve(wanted[i], keep=keep) if covered or partial else 0
            extended = self._extend(
                [requests[i] for i in granted],
                list(granted.values()),
                [step_limits[i] for i in granted],
            )
            for i, sequence in zip(granted, extended, strict=True):
                found[i] = sequence
            waiting = [i for i in waiting if i not in granted]
        return found

    def _extend(
        self,
        requests: Sequence[ExpandRequest],
        granted: Sequence[int],
        step_limits: Sequence[int | None],
    ) -> list[PartialSequence | None]:
        """Decode the requests with the granted tokens and book what was spent; None without any."""
        decode_requests, indices = [], []
        for i, (request, budget, step_limit) in enumerate(
            zip(requests, granted, step_limits, strict=True)
        ):
            if budget < 1 or request.sequence.ended:
                self.budgets[request.q].spend(budget, reasoning=0, visible=0)
                continue
            indices.append(i)
            decode_requests.append(
                DecodeRequest(
                    sequence=request.sequence,
                    budget=budget,
                    stream=(self.options.seed, self._keys[request.q], *request.stream),
                    temperature=self.temperature
                    if request.temperature is None
                    else request.temperature,
                    max_step_tokens=step_limit,
                    max_thought_tokens=self._thought_limit(request, budget)
                    if step_limit is None
                    else None,
                )
            )
        found: list[PartialSequence | None] = [None] * len(requests)
        for i, sequence in zip(
            indices, self._scored(self.engine.extend(decode_requests)), strict=True
        ):
            found[i] = sequence
            self._spend(requests[i], granted[i], sequence)
        return found

    def _thought_limit(self, request: ExpandRequest, budget: int) -> int | None:
        """Tokens of thought before END_THINK is forced; None if it is not.

        If the request has no limit, and the budget is smaller than twice the reserve, half of it.
        """
        if request.max_thought_tokens is not None:
            return request.max_thought_tokens
        if request.sequence.closed or not self.answer_reserve:
            return None
        return budget - min(self.answer_reserve, (budget + 1) // 2)

    def _spend(self, request: ExpandRequest, granted: int, sequence: PartialSequence) -> None:
        """Book the tokens that `sequence` has beyond the request's."""
        before, after = self.own_usage(request.sequence), self.own_usage(sequence)
        self.budgets[request.q].spend(
            granted,
            reasoning=after.reasoning_tokens - before.reasoning_tokens,
            visible=after.visible_tokens - before.visible_tokens,
        )


def _token_budget(
    model: PreTrainedModel, prompt: list[int], options: SearchOptions, total: int
) -> TokenBudget:
    """The budget of one question, limited by the model's context window."""
    window = getattr(model.config, "max_position_embeddings", None)
    room = options.sample_tokens if window is None else window - len(prompt)
    if room < 1:
        raise ValueError(
            f"a question of {len(prompt)} tokens leaves no room for an answer in the model's "
            f"context window of {window} tokens: shorten it"
        )
    return TokenBudget(
        total=total, path=min(options.sample_tokens, room), prompt_tokens=len(prompt)
    )


def _key(prompt: list[int]) -> int:
    """Hash of the prompt, so that random numbers do not depend on the order of questions."""
    return int.from_bytes(
        hashlib.blake2b(np.asarray(prompt, dtype=np.int64).tobytes(), digest_size=8).digest(), "big"
    )
