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

from pipeline.chat.prompts import Question, encode_prompts
from pipeline.chat.tags import END_THINK, THINK, split_ids
from pipeline.generation.shared_prefix import Ask, Branch, PrefixEngine
from pipeline.model import critic_of, path_features
from pipeline.records import Answer, Usage
from pipeline.search.budget import Account
from pipeline.search.options import SearchOptions


@dataclass(frozen=True, kw_only=True)
class Want:
    """A branch of question q to go on with; `stream` names its random numbers."""

    q: int
    branch: Branch
    stream: tuple[int, ...]
    temperature: float | None = None  # None takes that of the options


class Thinker:
    """The questions of one call of a strategy. `ways` is how many whole answers a question may
    cost where the options set no total."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        options: SearchOptions,
        *,
        ways: int = 1,
        temperature: float | None = None,
    ):
        options = options.for_model(tokenizer)
        self.tokenizer, self.options = tokenizer, options
        self.temperature = options.temperature if temperature is None else temperature
        prompts = encode_prompts(tokenizer, questions, think=options.think)
        total = options.total_tokens or ways * options.sample_tokens
        self.accounts = [_account(model, prompt, options, total) for prompt in prompts]
        self.engine = PrefixEngine(model, tokenizer, batch_size=options.batch_size)
        self.critic = critic_of(model)
        self.roots = self._scored(self.engine.start(prompts, closed=not options.think))
        self._keys = [_key(prompt) for prompt in prompts]
        # What an answer takes: the closing tag, then its tokens.
        self.reserve = options.answer_tokens + 1 if options.answer_tokens else 0

    def finish(self, wants: Sequence[Want]) -> list[Branch | None]:
        """Each branch to its end: its thought is closed in time to answer. None where no token is
        left."""
        granted = [self.accounts[want.q].hold(self._room(want)) for want in wants]
        return self._extend(wants, granted, [None] * len(wants))

    def steps(self, wants: Sequence[Want]) -> list[Branch | None]:
        """Each branch by one step of thought; with the last step comes the answer.

        None where what is left must be kept for an answer. A way near its bound is closed.
        """
        granted, pauses = [], []
        for want in wants:
            room = self._room(want)
            most = self.options.step_tokens + self.reserve
            pauses.append(self.options.step_tokens if room > most else None)
            granted.append(self.accounts[want.q].hold(min(most, room), keep=self.reserve))
            if granted[-1] < min(most, room):  # a step cut short would be no step
                self.accounts[want.q].book(granted[-1], reasoning=0, visible=0)
                granted[-1] = 0
        return self._extend(wants, granted, pauses)

    def answer(self, q: int, branch: Branch, usage: Usage | None = None, **notes: Any) -> Answer:
        """The branch as an Answer, with all that its question has cost unless told otherwise."""
        hidden, visible = self._cut(branch)
        tags = self.tokenizer.convert_tokens_to_ids([THINK, END_THINK])
        text = self.text(visible).strip()
        return Answer(
            text=text,
            thought=self.text([i for i in hidden if i not in tags]).strip(),
            value=branch.score,
            usage=self.accounts[q].usage if usage is None else usage,
            finish_reason="stop" if text and branch.ended else "length",
            forced=branch.forced,
            notes=notes,
        )

    def billed(self, q: int, answer: Answer, **notes: Any) -> Answer:
        """The answer with all that its question has cost."""
        return replace(answer, usage=self.accounts[q].usage, notes=answer.notes | notes)

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
        if self.critic is None or not branches:
            return [replace(b, score=b.value) for b in branches]
        features = [
            path_features(b.logprobs, (*b.values, b.value)[0], b.value, ended=b.ended)
            for b in branches
        ]
        scores = self.critic(torch.tensor(features)).tolist()
        return [replace(b, score=score) for b, score in zip(branches, scores, strict=True)]

    def _cut(self, branch: Branch) -> tuple[list[int], list[int]]:
        """(hidden ids with their closing tag, visible ids)."""
        ids = list(branch.ids)
        tags = self.tokenizer.convert_tokens_to_ids([THINK, END_THINK])
        # A model told not to think that does so all the same is cut like any other: nothing leaks.
        thinks = self.options.think or not set(tags).isdisjoint(ids)
        return split_ids(ids, tags[1]) if thinks else ([], ids)

    def _room(self, want: Want) -> int:
        return self.accounts[want.q].path - len(want.branch.ids)

    def _extend(
        self,
        wants: Sequence[Want],
        granted: list[int],
        pauses: list[int | None],
    ) -> list[Branch | None]:
        asks, asked = [], []
        for i, (want, budget, pause) in enumerate(zip(wants, granted, pauses, strict=True)):
            if budget < 1 or want.branch.ended:
                self.accounts[want.q].book(budget, reasoning=0, visible=0)
                continue
            asked.append(i)
            asks.append(
                Ask(
                    branch=want.branch,
                    budget=budget,
                    stream=(self.options.seed, self._keys[want.q], *want.stream),
                    temperature=self.temperature if want.temperature is None else want.temperature,
                    pause_after=pause,
                    close_after=self._close_after(want.branch, budget) if pause is None else None,
                )
            )
        found: list[Branch | None] = [None] * len(wants)
        for i, branch in zip(asked, self._scored(self.engine.extend(asks)), strict=True):
            found[i] = branch
            self._book(wants[i], granted[i], branch)
        return found

    def _close_after(self, branch: Branch, budget: int) -> int | None:
        """Tokens of thought before the closing tag; half of a budget too small for an answer."""
        if branch.closed or not self.reserve:
            return None
        return budget - min(self.reserve, (budget + 1) // 2)

    def _book(self, want: Want, granted: int, branch: Branch) -> None:
        before, after = self.own_usage(want.branch), self.own_usage(branch)
        self.accounts[want.q].book(
            granted,
            reasoning=after.reasoning_tokens - before.reasoning_tokens,
            visible=after.visible_tokens - before.visible_tokens,
        )


def _account(
    model: PreTrainedModel, prompt: list[int], options: SearchOptions, total: int
) -> Account:
    window = getattr(model.config, "max_position_embeddings", None)
    room = options.sample_tokens if window is None else window - len(prompt)
    if room < 1:
        raise ValueError(
            f"a question of {len(prompt)} tokens leaves no room for an answer in the model's "
            f"window of {window} tokens: shorten it"
        )
    return Account(total=total, path=min(options.sample_tokens, room), prompt_tokens=len(prompt))


def _key(prompt: list[int]) -> int:
    """Names a question by its tokens: its random numbers do not depend on where it stands."""
    return int.from_bytes(
        hashlib.blake2b(np.asarray(prompt, dtype=np.int64).tobytes(), digest_size=8).digest(), "big"
    )
