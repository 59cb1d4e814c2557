"""Questions being thought about: one engine for all, an account for each.

Strategies ask here for steps and for whole answers, of many questions and branches at once. Here
alone tokens are held, spent and counted, and a thought is closed before it eats the budget.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.prompts import Question, encode_prompts, question_text
from pipeline.chat.tags import END_THINK, THINK, split_ids
from pipeline.generation.shared_prefix import Branch, DecodeRequest, PrefixEngine
from pipeline.model import verifier_features, verifier_of
from pipeline.records import Answer, Usage
from pipeline.search.budget import TokenBudget
from pipeline.search.options import SearchOptions


@dataclass(frozen=True, kw_only=True)
class ExpandRequest:
    """A branch of question q to go on with; `stream` names its random numbers."""

    q: int
    branch: Branch
    stream: tuple[int, ...]
    temperature: float | None = None  # None takes that of the options


class SearchSession:
    """The questions of one call of a strategy. `ways` is how many whole answers a question may
    cost where the options set no total."""

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
        prompts = encode_prompts(tokenizer, questions, think=options.think)
        total = options.total_tokens or max_paths * options.sample_tokens
        self.budgets = [_token_budget(model, prompt, options, total) for prompt in prompts]
        self.engine = PrefixEngine(model, tokenizer, batch_size=options.batch_size)
        self.verifier = verifier_of(model)
        self.roots = self._scored(self.engine.start(prompts, closed=not options.think))
        self._keys = [_key(prompt) for prompt in prompts]
        # What an answer takes: the closing tag, then its tokens.
        self.answer_reserve = options.answer_tokens + 1 if options.answer_tokens else 0

    def finish(self, requests: Sequence[ExpandRequest]) -> list[Branch | None]:
        """Each branch to its end: its thought is closed in time to answer. None where no token is
        left."""
        granted = [self.budgets[request.q].reserve(self._room(request)) for request in requests]
        return self._extend(requests, granted, [None] * len(requests))

    def steps(self, requests: Sequence[ExpandRequest]) -> list[Branch | None]:
        """Each branch by one step of thought; with the last step comes the answer.

        None where what is left must be kept for an answer. A way near its bound is closed.
        """
        granted, pauses = [], []
        for request in requests:
            room = self._room(request)
            most = self.options.step_tokens + self.answer_reserve
            pauses.append(self.options.step_tokens if room > most else None)
            granted.append(
                self.budgets[request.q].reserve(min(most, room), keep=self.answer_reserve)
            )
            if granted[-1] < min(most, room):  # a step cut short would be no step
                self.budgets[request.q].spend(granted[-1], reasoning=0, visible=0)
                granted[-1] = 0
        return self._extend(requests, granted, pauses)

    def answer(self, q: int, branch: Branch, usage: Usage | None = None, **notes: Any) -> Answer:
        """The branch as an Answer, with all that its question has cost unless told otherwise."""
        hidden, visible = self._cut(branch)
        tags = self.tokenizer.convert_tokens_to_ids([THINK, END_THINK])
        text = self.text(visible).strip()
        return Answer(
            text=text,
            thought=self.text([i for i in hidden if i not in tags]).strip(),
            value=branch.score,
            usage=self.budgets[q].usage if usage is None else usage,
            finish_reason="stop" if text and branch.ended else "length",
            forced=branch.forced,
            notes=notes,
        )

    def with_total_usage(self, q: int, answer: Answer, **notes: Any) -> Answer:
        """The answer with all that its question has cost."""
        return replace(answer, usage=self.budgets[q].usage, notes=answer.notes | notes)

    def own_usage(self, branch: Branch) -> Usage:
        """What this branch alone would cost."""
        hidden, visible = self._cut(branch)
        return Usage(
            prompt_tokens=branch.prompt_tokens,
            reasoning_tokens=len(hidden),
            visible_tokens=len(visible),
        )

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    @torch.no_grad()
    def _scored(self, branches: list[Branch]) -> list[Branch]:
        """The branches with the score a search goes by: the critic's chance of a right answer,
        without a critic V, and None without a value head."""
        if self.verifier is None or not branches:
            return [replace(b, score=b.value) for b in branches]
        features = [
            verifier_features(b.logprobs, (*b.values, b.value)[0], b.value, ended=b.ended)
            for b in branches
        ]
        scores = self.verifier(torch.tensor(features)).tolist()
        return [replace(b, score=score) for b, score in zip(branches, scores, strict=True)]

    def _cut(self, branch: Branch) -> tuple[list[int], list[int]]:
        """(hidden ids with their closing tag, visible ids)."""
        ids = list(branch.ids)
        tags = self.tokenizer.convert_tokens_to_ids([THINK, END_THINK])
        # A model told not to think that does so all the same is cut like any other: nothing leaks.
        thinks = self.options.think or not set(tags).isdisjoint(ids)
        return split_ids(ids, tags[1]) if thinks else ([], ids)

    def _room(self, request: ExpandRequest) -> int:
        return self.budgets[request.q].path - len(request.branch.ids)

    def _extend(
        self,
        requests: Sequence[ExpandRequest],
        granted: list[int],
        pauses: list[int | None],
    ) -> list[Branch | None]:
        decode_requests, asked = [], []
        for i, (request, budget, pause) in enumerate(zip(requests, granted, pauses, strict=True)):
            if budget < 1 or request.branch.ended:
                self.budgets[request.q].spend(budget, reasoning=0, visible=0)
                continue
            asked.append(i)
            decode_requests.append(
                DecodeRequest(
                    branch=request.branch,
                    budget=budget,
                    stream=(self.options.seed, self._keys[request.q], *request.stream),
                    temperature=self.temperature
                    if request.temperature is None
                    else request.temperature,
                    pause_after=pause,
                    close_after=self._close_after(request.branch, budget)
                    if pause is None
                    else None,
                )
            )
        found: list[Branch | None] = [None] * len(requests)
        for i, branch in zip(asked, self._scored(self.engine.extend(decode_requests)), strict=True):
            found[i] = branch
            self._spend(requests[i], granted[i], branch)
        return found

    def _close_after(self, branch: Branch, budget: int) -> int | None:
        """Tokens of thought before the closing tag; half of a budget too small for an answer."""
        if branch.closed or not self.answer_reserve:
            return None
        return budget - min(self.answer_reserve, (budget + 1) // 2)

    def _spend(self, request: ExpandRequest, granted: int, branch: Branch) -> None:
        before, after = self.own_usage(request.branch), self.own_usage(branch)
        self.budgets[request.q].spend(
            granted,
            reasoning=after.reasoning_tokens - before.reasoning_tokens,
            visible=after.visible_tokens - before.visible_tokens,
        )


def _token_budget(
    model: PreTrainedModel, prompt: list[int], options: SearchOptions, total: int
) -> TokenBudget:
    window = getattr(model.config, "max_position_embeddings", None)
    room = options.sample_tokens if window is None else window - len(prompt)
    if room < 1:
        raise ValueError(
            f"a question of {len(prompt)} tokens leaves no room for an answer in the model's "
            f"window of {window} tokens: shorten it"
        )
    return TokenBudget(
        total=total, path=min(options.sample_tokens, room), prompt_tokens=len(prompt)
    )


def _key(prompt: list[int]) -> int:
    """Names a question by its tokens: its random numbers do not depend on where it stands."""
    return int.from_bytes(
        hashlib.blake2b(np.asarray(prompt, dtype=np.int64).tobytes(), digest_size=8).digest(), "big"
    )
