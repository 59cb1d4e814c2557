"""Decode sequences that share prefixes; keys and values of a shared token are computed once.

A pool stores keys and values of single tokens in numbered slots, and a sequence holds the list of
its slots (paged attention, arXiv:2309.06180, with a page size of one token). Sequences of different
prompts and lengths are decoded in one batch, and continuations of one sequence share its slots.

The caller names the stream of random numbers of every continuation, so its tokens do not depend on
the rest of the batch, beyond rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.plain import end_of_turn_ids, stop_text, token_id
from pipeline.chat.tags import END_THINK
from pipeline.chat.token_offsets import step_end_ids
from pipeline.generation.cuda_graph import State, with_cuda_graph
from pipeline.generation.kv_cache import (
    DecodeState,
    compaction_indices,
    eos_ids,
    evaluation_mode,
    pad_left,
    preallocated_cache,
)
from pipeline.generation.kv_pool import KVPool
from pipeline.generation.sampling import logprobs_of, sample_tokens
from pipeline.progress import sequence_finished


@dataclass(frozen=True, kw_only=True, eq=False)
class PartialSequence:
    """A prompt and the completion generated for it so far.

    `value` is V of the current state while the sequence can be continued, V before the end token
    once it has ended, and None without a value head.
    """

    prompt_tokens: int
    ids: tuple[int, ...] = ()  # of the completion
    logprobs: tuple[float, ...] = ()  # of the policy at temperature 1
    values: tuple[float, ...] = ()  # V before each token; empty without a value head
    value: float | None = None
    score: float | None = None  # what a search ranks by; set by the caller
    closed: bool = False  # the thought is closed; further tokens are visible
    forced: bool = False  # the thought was closed by the budget, not by the model
    ended: bool = False  # the last token is an end token
    slots: torch.Tensor | None = field(default=None, repr=False)  # None: cannot be continued
    logits_V: torch.Tensor | None = field(default=None, repr=False)  # of the next token

    @property
    def known_value(self) -> float:
        """V of a sequence of a policy with a value head."""
        assert self.value is not None
        return self.value

    @property
    def known_score(self) -> float:
        """The score of a sequence that has one, as with a value head every sequence of a search."""
        assert self.score is not None
        return self.score

    @property
    def known_slots(self) -> torch.Tensor:
        """The slots of a sequence that can be continued."""
        assert self.slots is not None
        return self.slots


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


class PrefixEngine:
    """Decodes sequences of one policy that share prefixes.

    `generated_tokens` counts all tokens added to sequences, sampled or forced.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 64
    ):
        self.model = model
        self.batch_size = batch_size
        self.tokenizer = tokenizer
        self.eos_ids = frozenset([*eos_ids(model, tokenizer), *end_of_turn_ids(tokenizer)])
        pad_id = tokenizer.pad_token_id  # a baseline may have none; padding is masked
        self.pad_id = min(self.eos_ids) if pad_id is None else pad_id
        self.end_think_id = token_id(tokenizer, END_THINK)
        self.stop_text = stop_text(tokenizer)
        self.step_ends = step_end_ids(tokenizer)
        self.pool = KVPool()
        self.generated_tokens = 0

    @torch.no_grad()
    def start(self, prompts: Sequence[list[int]], *, closed: bool = False) -> list[PartialSequence]:
        """Prefill the prompts; one sequence each. `closed`: the prompts end in a closed thought."""
        order = sorted(range(len(prompts)), key=lambda q: len(prompts[q]))
        found: dict[int, PartialSequence] = {}
        with evaluation_mode(self.model):
            for i in range(0, len(order), self.batch_size):
                part = order[i : i + self.batch_size]
                sequences = self._prefill([prompts[q] for q in part], closed)
                found |= dict(zip(part, sequences, strict=True))
        return [found[q] for q in range(len(prompts))]

    @torch.no_grad()
    def extend(self, requests: Sequence[DecodeRequest]) -> list[PartialSequence]:
        """Continue the sequences, in order of the requests; an ended one comes back unchanged."""
        found = {i: request.sequence for i, request in enumerate(requests)}
        active = [
            i
            for i, request in enumerate(requests)
            if not request.sequence.ended and request.budget > 0
        ]
        order = sorted(active, key=lambda i: len(requests[i].sequence.known_slots))
        with evaluation_mode(self.model):
            for i in range(0, len(order), self.batch_size):
                part = order[i : i + self.batch_size]
                found |= dict(zip(part, self._decode([requests[j] for j in part]), strict=True))
        return [found[i] for i in range(len(requests))]

    def stops(self, ids: list[int]) -> bool:
        """Whether the last tokens contain the text that ends an answer."""
        if self.stop_text is None:
            return False
        # A token has at least one character, but for parts of a longer one.
        return self.stop_text in self.tokenizer.decode(ids[-len(self.stop_text) - 2 :])

    def _prefill(self, prompts: list[list[int]], closed: bool) -> list[PartialSequence]:
        ids_BP, mask_BP = (t.to(self.model.device) for t in pad_left(prompts, self.pad_id))
        state = DecodeState.prefill(self.model, preallocated_cache(None), ids_BP, mask_BP)
        slots = self.pool.write(state.cache, *mask_BP.nonzero(as_tuple=True))
        return [
            PartialSequence(
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

    def _decode(self, requests: list[DecodeRequest]) -> list[PartialSequence]:
        """Decode one batch: sample a token per active row, feed it, drop finished rows.

        The last token of a row that stops after a step is fed too, so that it can be continued.
        """
        rows = [_ActiveRow(request, self) for request in requests]
        start = _batch_state(
            [request.sequence for request in requests], self.pool, self.model.device
        )
        state = with_cuda_graph(start, self.model, max(request.budget for request in requests))
        batch_rows = list(range(len(rows)))  # index into `rows` of each row of the batch
        step = 0
        while True:
            self._sample_step(rows, batch_rows, state, step)
            step += 1
            if not any(rows[i].needs_forward for i in batch_rows):
                self._store(rows, batch_rows, state)
                break
            last_n = torch.tensor([rows[i].input_id(self.pad_id) for i in batch_rows])
            state.step(self.model, last_n.to(self.model.device))
            for index, i in enumerate(batch_rows):
                rows[i].after_forward(state, index)
            live_n = torch.tensor([rows[i].active for i in batch_rows])
            if not live_n.any() or 1 - live_n.float().mean() >= state.compact_share:
                self._store(rows, batch_rows, state)
                keep_n = compaction_indices(live_n)
                batch_rows = [batch_rows[index] for index in keep_n.tolist()]
                if not batch_rows:
                    break
                state.keep(keep_n.to(self.model.device))
        return [row.sequence() for row in rows]

    def _sample_step(
        self, rows: list["_ActiveRow"], batch_rows: list[int], state: State, step: int
    ) -> None:
        """Append the next token to every active row."""
        temperature_n = torch.tensor([rows[i].request.temperature for i in batch_rows])
        uniform_n = torch.tensor([rows[i].uniform(step) for i in batch_rows])
        tokens_n = sample_or_argmax(state.logits_nV, temperature_n, uniform_n)
        forced = [rows[i].closes_thought(step) for i in batch_rows]
        if any(forced):
            end_think_n = torch.full_like(tokens_n, self.end_think_id)
            tokens_n = torch.where(
                torch.tensor(forced, device=tokens_n.device), end_think_n, tokens_n
            )
        logprobs_n = logprobs_of(tokens_n, state.logits_nV).tolist()
        values_n = [None] * len(batch_rows) if state.values_n is None else state.values_n.tolist()
        tokens = tokens_n.tolist()
        for index, i in enumerate(batch_rows):
            if rows[i].active:
                rows[i].write(tokens[index], logprobs_n[index], values_n[index], forced[index])
                self.generated_tokens += 1

    def _store(self, rows: list["_ActiveRow"], batch_rows: list[int], state: State) -> None:
        """Copy keys and values of rows that stopped after a step from the batch to the pool."""
        stopped = [(index, rows[i]) for index, i in enumerate(batch_rows) if rows[i].to_store]
        if not stopped:
            return
        rows_n = torch.tensor([index for index, row in stopped for _ in row.ids])
        columns = torch.tensor([state.start + c for _, row in stopped for c in range(len(row.ids))])
        slots = self.pool.write(state.cache, rows_n, columns)
        for (_, row), own in zip(
            stopped, slots.split([len(row.ids) for _, row in stopped]), strict=True
        ):
            row.slots, row.to_store = own, False


def sample_or_argmax(
    logits_nV: torch.Tensor, temperature_n: torch.Tensor, uniform_n: torch.Tensor
) -> torch.Tensor:
    """tokens_n: sampled at each row's temperature by inverse transform; argmax at temperature 0.

    >>> sample_or_argmax(torch.zeros(3, 2), torch.ones(3), torch.tensor([0.0, 0.4, 0.6])).tolist()
    [0, 0, 1]
    """
    temperature_n = temperature_n.to(logits_nV.device)
    greedy_n = temperature_n == 0
    scale_n = torch.where(greedy_n, 1.0, temperature_n)
    tokens_n, _ = sample_tokens(logits_nV / scale_n.unsqueeze(1), uniform_n.to(logits_nV))
    if greedy_n.any():
        tokens_n = torch.where(greedy_n, logits_nV.argmax(dim=-1), tokens_n)
    return tokens_n


class _ActiveRow:
    """State of one request while it is decoded."""

    def __init__(self, request: DecodeRequest, engine: PrefixEngine):
        self.request, self.engine = request, engine
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.values: list[float] = []
        self.closed, self.ended, self.forced = request.sequence.closed, False, False
        self.active = True
        self.needs_forward = False  # the last token is still to be fed
        self.to_store = False  # keys and values are still to be copied to the pool
        self.value = request.sequence.value
        self.slots: torch.Tensor | None = None
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
        self.ended = token in engine.eos_ids or engine.stops(self.ids)
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

    def after_forward(self, state: State, index: int) -> None:
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
            ids=before.ids + tuple(self.ids),
            logprobs=before.logprobs + tuple(self.logprobs),
            values=before.values + tuple(self.values),
            value=self.value,
            score=None,
            closed=self.closed,
            forced=before.forced or self.forced,
            ended=self.ended,
            slots=None if self.slots is None else torch.cat([before.known_slots, self.slots]),
            logits_V=self.logits_V,
        )


def _batch_state(
    sequences: Sequence[PartialSequence], pool: KVPool, device: torch.device
) -> DecodeState:
    """The sequences as one left-padded batch; sequences with the same slots read the pool once."""
    distinct = {id(b.slots): b.known_slots for b in sequences}
    index_of_slots = {key: m for m, key in enumerate(distinct)}
    rows_n = torch.tensor([index_of_slots[id(b.slots)] for b in sequences])
    lengths = torch.tensor([len(slots) for slots in distinct.values()])
    width = int(lengths.max())
    mask_MT = torch.arange(width) >= width - lengths.unsqueeze(1)
    slots_MT = torch.zeros(len(distinct), width, dtype=torch.long)
    slots_MT[mask_MT] = torch.cat(list(distinct.values()))
    values = [b.value for b in sequences]
    return DecodeState(
        pool.read(slots_MT, rows_n),
        mask_MT[rows_n].to(device),
        torch.stack([b.logits_V for b in sequences]),
        None if values[0] is None else torch.tensor(values),
    )
