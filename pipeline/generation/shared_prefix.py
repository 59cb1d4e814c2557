"""Continue sequences that share prefixes: the keys and values of a token are computed once.

A pool keeps keys and values token by token in numbered slots; a branch is the list of slots on its
way (paged attention, arXiv:2309.06180, with pages of one token). Branches of many questions, of any
depth, are decoded side by side, and what one branch has computed, all that grow out of it share.

Every continuation has a stream of random numbers named by its caller. What is sampled for it does
not depend on what is decoded beside it, beyond rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.tags import END_THINK
from pipeline.generation.cuda_graph import State, with_cuda_graph
from pipeline.generation.kv_cache import (
    DecodeState,
    compaction_indices,
    eos_ids,
    evaluating,
    pad_left,
    preallocated_cache,
)
from pipeline.generation.sampling import logprobs_of, sample_tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch:
    """A prompt and what has been written behind it so far.

    `value` is V of the state the branch is in, where it can go on, and V before its end token,
    where it has ended; None without a value head.
    """

    prompt_tokens: int
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()  # of the policy itself, whatever the temperature of sampling
    values: tuple[float, ...] = ()  # V before each token; empty without a value head
    value: float | None = None
    score: float | None = None  # what a search goes by; for its caller to fill in
    closed: bool = False  # the thought is closed: what follows is visible
    forced: bool = False  # by the budget, not by the model
    ended: bool = False  # the last token is an end token
    slots: torch.Tensor | None = field(default=None, repr=False)  # None: nothing can follow
    logits_V: torch.Tensor | None = field(default=None, repr=False)  # of the next token


@dataclass(frozen=True, kw_only=True)
class DecodeRequest:
    """How a branch is to go on: up to an end token, or where it may pause up to the end of a step.

    A step is a line of thought. With the thought closed nothing pauses: the answer is one step.
    """

    branch: Branch
    budget: int  # tokens at most
    stream: tuple[int, ...]  # names its random numbers
    temperature: float
    pause_after: int | None = None  # a step has so many tokens at most; None never pauses
    close_after: int | None = None  # so many tokens of thought, then it is closed for the model


class PrefixEngine:
    """Branches of one policy. `produced` counts every token written, sampled or forced."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 64
    ):
        self.model = model
        self.batch_size = batch_size
        self.pad_id = tokenizer.pad_token_id
        self.end_think_id = tokenizer.convert_tokens_to_ids(END_THINK)
        self.eos_ids = frozenset(eos_ids(model, tokenizer))
        self.step_ends = step_end_ids(tokenizer)
        self.pool = _Pool()
        self.produced = 0

    @torch.no_grad()
    def start(self, prompts: Sequence[list[int]], *, closed: bool = False) -> list[Branch]:
        """One branch a prompt, its prompt encoded; `closed` where it ends in a closed thought."""
        order = sorted(range(len(prompts)), key=lambda q: len(prompts[q]))
        found: dict[int, Branch] = {}
        with evaluating(self.model):
            for i in range(0, len(order), self.batch_size):
                part = order[i : i + self.batch_size]
                branches = self._prefill([prompts[q] for q in part], closed)
                found |= dict(zip(part, branches, strict=True))
        return [found[q] for q in range(len(prompts))]

    @torch.no_grad()
    def extend(self, requests: Sequence[DecodeRequest]) -> list[Branch]:
        """The branches, each with what was written behind it; behind an end nothing is."""
        found = {i: request.branch for i, request in enumerate(requests)}
        going = [
            i
            for i, request in enumerate(requests)
            if not request.branch.ended and request.budget > 0
        ]
        order = sorted(going, key=lambda i: len(requests[i].branch.slots))
        with evaluating(self.model):
            for i in range(0, len(order), self.batch_size):
                part = order[i : i + self.batch_size]
                found |= dict(zip(part, self._decode([requests[j] for j in part]), strict=True))
        return [found[i] for i in range(len(requests))]

    def _prefill(self, prompts: list[list[int]], closed: bool) -> list[Branch]:
        ids_BP, mask_BP = (t.to(self.model.device) for t in pad_left(prompts, self.pad_id))
        state = DecodeState.prefill(self.model, preallocated_cache(None), ids_BP, mask_BP)
        slots = self.pool.write(state.cache, *mask_BP.nonzero(as_tuple=True))
        return [
            Branch(
                prompt_tokens=len(prompt),
                closed=closed,
                value=None if state.values_n is None else float(state.values_n[b]),
                slots=own,
                logits_V=state.logits_nV[b].clone(),
            )
            for b, (prompt, own) in enumerate(
                zip(prompts, slots.split([len(p) for p in prompts]), strict=True)
            )
        ]

    def _decode(self, requests: list[DecodeRequest]) -> list[Branch]:
        """Token by token: sample for the rows that go on, feed what they wrote, let go of the rest.

        A row that pauses is fed its last token as well, so that it can be continued.
        """
        rows = [_Row(request, self) for request in requests]
        state = _side_by_side(
            [request.branch for request in requests], self.pool, self.model.device
        )
        state = with_cuda_graph(state, self.model, max(request.budget for request in requests))
        here = list(range(len(rows)))  # which row stands at each place of the batch
        step = 0
        while True:
            self._write(rows, here, state, step)
            step += 1
            if not any(rows[i].fed for i in here):
                self._store(rows, here, state)
                break
            last_n = torch.tensor([rows[i].last_id(self.pad_id) for i in here])
            state.step(self.model, last_n.to(self.model.device))
            for place, i in enumerate(here):
                rows[i].after_feeding(state, place)
            live_n = torch.tensor([rows[i].going for i in here])
            if not live_n.any() or 1 - live_n.float().mean() >= state.compact_share:
                self._store(rows, here, state)
                keep_n = compaction_indices(live_n)
                here = [here[place] for place in keep_n.tolist()]
                if not here:
                    break
                state.keep(keep_n.to(self.model.device))
        return [row.branch() for row in rows]

    def _write(self, rows: list["_Row"], here: list[int], state: State, step: int) -> None:
        temperature_n = torch.tensor([rows[i].request.temperature for i in here])
        noise_n = torch.tensor([rows[i].noise(step) for i in here])
        tokens_n = choose(state.logits_nV, temperature_n, noise_n)
        forced = [rows[i].closing(step) for i in here]
        if any(forced):
            end_n = torch.full_like(tokens_n, self.end_think_id)
            tokens_n = torch.where(torch.tensor(forced, device=tokens_n.device), end_n, tokens_n)
        logprobs_n = logprobs_of(tokens_n, state.logits_nV).tolist()
        values_n = [None] * len(here) if state.values_n is None else state.values_n.tolist()
        tokens = tokens_n.tolist()
        for place, i in enumerate(here):
            if rows[i].going:
                rows[i].write(tokens[place], logprobs_n[place], values_n[place], forced[place])
                self.produced += 1

    def _store(self, rows: list["_Row"], here: list[int], state: State) -> None:
        """Keys and values of rows that pause go to the pool before the batch lets go of them."""
        paused = [(place, rows[i]) for place, i in enumerate(here) if rows[i].kept]
        if not paused:
            return
        places = torch.tensor([place for place, row in paused for _ in row.ids])
        columns = torch.tensor([state.start + c for _, row in paused for c in range(len(row.ids))])
        slots = self.pool.write(state.cache, places, columns)
        for (_, row), own in zip(
            paused, slots.split([len(row.ids) for _, row in paused]), strict=True
        ):
            row.slots, row.kept = own, False


def choose(
    logits_nV: torch.Tensor, temperature_n: torch.Tensor, noise_n: torch.Tensor
) -> torch.Tensor:
    """tokens_n: one uniform number picks a token by the inverse of the distribution function;
    temperature 0 takes the likeliest.

    >>> choose(torch.zeros(3, 2), torch.ones(3), torch.tensor([0.0, 0.4, 0.6])).tolist()
    [0, 0, 1]
    """
    temperature_n = temperature_n.to(logits_nV.device)
    greedy_n = temperature_n == 0
    scale_n = torch.where(greedy_n, 1.0, temperature_n)
    tokens_n, _ = sample_tokens(logits_nV / scale_n.unsqueeze(1), noise_n.to(logits_nV))
    if greedy_n.any():
        tokens_n = torch.where(greedy_n, logits_nV.argmax(dim=-1), tokens_n)
    return tokens_n


def step_end_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id whose text holds the end of a line, looked up once a tokenizer."""
    known = tokenizer.__dict__.get("_step_end_ids")
    if known is None:
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        known = frozenset(i for i, text in enumerate(texts) if "\n" in text)
        tokenizer.__dict__["_step_end_ids"] = known
    return known


class _Row:
    """One ask while it is decoded."""

    def __init__(self, request: DecodeRequest, engine: PrefixEngine):
        self.request, self.engine = request, engine
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.values: list[float] = []
        self.closed, self.ended, self.forced = request.branch.closed, False, False
        self.going = True
        self.fed = self.kept = False  # to be fed once more; to be stored in the pool
        self.value = request.branch.value
        self.slots = self.logits_V = None
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(request.stream)))
        self._noise = generator.random(request.budget)

    def noise(self, step: int) -> float:
        return float(self._noise[step]) if step < len(self._noise) else 0.0

    def closing(self, step: int) -> bool:
        return not self.closed and self.going and self.request.close_after == step

    def last_id(self, pad_id: int) -> int:
        return self.ids[-1] if self.fed else pad_id

    def write(self, token: int, logprob: float, value: float | None, forced: bool) -> None:
        engine, request = self.engine, self.request
        self.ids.append(token)
        self.logprobs.append(logprob)
        if value is not None:
            self.values.append(value)
            self.value = value
        self.forced |= forced
        self.closed |= token == engine.end_think_id
        self.ended = token in engine.eos_ids
        pauses = request.pause_after is not None
        at_pause = (
            pauses
            and not self.closed
            and (token in engine.step_ends or len(self.ids) >= request.pause_after)
        )
        self.going = not (self.ended or at_pause or len(self.ids) >= request.budget)
        # Only what pauses is continued one day: a branch cut by its budget is as well where it may.
        self.kept = pauses and not self.going and not self.ended
        self.fed = self.going or self.kept

    def after_feeding(self, state: State, place: int) -> None:
        if self.kept and self.fed:
            self.logits_V = state.logits_nV[place].clone()
            self.value = None if state.values_n is None else float(state.values_n[place])
            self.fed = False

    def branch(self) -> Branch:
        before = self.request.branch
        return replace(
            before,
            ids=before.ids + tuple(self.ids),
            logprobs=before.logprobs + tuple(self.logprobs),
            values=before.values + tuple(self.values),
            value=self.value,
            score=None,
            closed=self.closed,
            forced=before.forced or self.forced,
            ended=self.ended,
            slots=None if self.slots is None else torch.cat([before.slots, self.slots]),
            logits_V=self.logits_V,
        )


def _side_by_side(branches: Sequence[Branch], pool: "_Pool", device: torch.device) -> DecodeState:
    """The branches padded on the left; the pool is read once for those that go on from the same
    place."""
    places = {id(b.slots): b.slots for b in branches}
    place_of = {name: place for place, name in enumerate(places)}
    rows_n = torch.tensor([place_of[id(b.slots)] for b in branches])
    lengths = torch.tensor([len(slots) for slots in places.values()])
    width = int(lengths.max())
    mask_MT = torch.arange(width) >= width - lengths.unsqueeze(1)
    slots_MT = torch.zeros(len(places), width, dtype=torch.long)
    slots_MT[mask_MT] = torch.cat(list(places.values()))
    values = [b.value for b in branches]
    return DecodeState(
        pool.read(slots_MT, rows_n),
        mask_MT[rows_n].to(device),
        torch.stack([b.logits_V for b in branches]),
        None if values[0] is None else torch.tensor(values),
    )


class _Pool:
    """Keys and values of single tokens, (slots, heads, width) a layer; grows by doubling."""

    def __init__(self) -> None:
        self.used = 0
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def write(self, cache: DynamicCache, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """The slots that hold the tokens at (rows, columns) of the cache from now on."""
        slots = torch.arange(self.used, self.used + len(rows))
        self._make_room(cache, self.used + len(rows))
        self.used += len(rows)
        for layer, (keys, values) in zip(cache.layers, self.layers, strict=True):
            where = slots.to(keys.device)
            keys[where] = layer.keys[rows, :, columns]
            values[where] = layer.values[rows, :, columns]
        return slots

    def read(self, slots_MT: torch.Tensor, rows_n: torch.Tensor) -> DynamicCache:
        """A cache with the tokens in the slots of row rows_n[i] in row i, (n, heads, T, width) a
        layer."""
        cache = preallocated_cache(None)
        for i, (keys, values) in enumerate(self.layers):
            where = slots_MT.to(keys.device)
            cache.update(keys[where].transpose(1, 2), values[where].transpose(1, 2), i)
            cache.layers[i].spread(rows_n)
        return cache

    def _make_room(self, cache: DynamicCache, size: int) -> None:
        if not self.layers:
            self.layers = [(_blank(layer.keys), _blank(layer.values)) for layer in cache.layers]
        have = len(self.layers[0][0])
        if size > have:
            more = max(size, 2 * have) - have
            self.layers = [(_longer(k, more), _longer(v, more)) for k, v in self.layers]


def _blank(states: torch.Tensor) -> torch.Tensor:
    return states.new_empty(0, states.shape[1], states.shape[3])


def _longer(states: torch.Tensor, more: int) -> torch.Tensor:
    return torch.cat([states, states.new_zeros(more, *states.shape[1:])])
