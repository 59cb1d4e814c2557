"""Decode sequences that share prefixes; keys and values of a shared token are computed once.

A pool stores keys and values of single tokens in numbered slots, and a sequence has a chain of
slots (paged attention, arXiv:2309.06180, with a page size of one token). Sequences of different
prompts and lengths are decoded in one batch, and continuations of one sequence share its slots.

The caller names the stream of random numbers of every continuation, so its tokens do not depend on
the rest of the batch, beyond rounding.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.plain import end_of_turn_ids, stop_text, token_id
from pipeline.chat.tags import END_THINK
from pipeline.chat.token_offsets import step_end_ids
from pipeline.generation.cuda_graph import State, with_cuda_graph
from pipeline.generation.decode_row import DecodeRequest, DecodeRow, PartialSequence
from pipeline.generation.kv_cache import (
    DecodeState,
    compaction_indices,
    eos_ids,
    evaluation_mode,
    pad_left,
    preallocated_cache,
)
from pipeline.generation.kv_pool import KVPool
from pipeline.generation.sampling import keep_nucleus, logprobs_of, sample_tokens

__all__ = [
    "DecodeRequest",
    "PartialSequence",
    "PrefixEngine",
    "new_engine",
    "sample_or_argmax",
    "use_engine",
]

MAX_PADDING = 0.1  # share of the tokens of a prefill
LEAST_ROWS = 16  # of a prefill: fewer would not use the processor well
LEAST_PREFIX = 16  # tokens that prompts have in common; for fewer a forward of their own costs more


class PrefixEngine:
    """Decodes sequences of one policy that share prefixes.

    `generated_tokens` counts all tokens added to sequences, sampled or forced.

    Args:
        batch_size: most sequences decoded together.
        top_p: sample from the most probable tokens whose probabilities sum to at least this.
        on_token: called with the request and the id of every generated token, as it is generated.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 64,
        top_p: float = 1.0,
        on_token: Callable[[DecodeRequest, int], None] | None = None,
    ):
        self.model = model
        self.batch_size, self.top_p, self.on_token = batch_size, top_p, on_token
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
        with evaluation_mode(self.model):
            sequences = self._prefill([prompts[q] for q in order], closed)
        found = dict(zip(order, sequences, strict=True))
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
        order = sorted(active, key=lambda i: requests[i].sequence.known_cached.length)
        with evaluation_mode(self.model):
            for i in range(0, len(order), self.batch_size):
                part = order[i : i + self.batch_size]
                found |= dict(zip(part, self._decode([requests[j] for j in part]), strict=True))
        return [found[i] for i in range(len(requests))]

    def stops(self, ids: list[int], *, closed: bool) -> bool:
        """Whether the last tokens contain the text that ends an answer.

        `closed` says whether the thought is closed; a plain base model has none.
        """
        if self.stop_text is None:
            return False
        # A token has at least one character, but for parts of a longer one.
        return self.stop_text in self.tokenizer.decode(ids[-len(self.stop_text) - 2 :])

    def store_prompts(
        self, state: DecodeState, rows: Sequence[int], *, closed: bool
    ) -> list[PartialSequence]:
        """The sequences of those rows of a prefilled batch; keys and values go to the pool."""
        mask_BP = torch.zeros_like(state.mask_nT)
        mask_BP[list(rows)] = state.mask_nT[list(rows)]
        slots = self.pool.write(state.cache, *mask_BP.nonzero(as_tuple=True))
        lengths = mask_BP.sum(dim=1)[list(rows)].tolist()
        return [
            PartialSequence(
                prompt_tokens=len(own),
                closed=closed,
                value=None if state.values_n is None else float(state.values_n[b]),
                cached=self.pool.path(None, own),
                logits_V=state.logits_nV[b].clone(),
            )
            for b, own in zip(rows, slots.split(lengths), strict=True)
        ]

    def _prefill(self, prompts: list[list[int]], closed: bool) -> list[PartialSequence]:
        """The sequences of prompts in ascending order of length."""
        shared = shared_state(self.model, prompts)
        sequences = []
        for part in batches_of_prompts(prompts, self.batch_size):
            state = prefill(self.model, part, self.pad_id, shared)
            sequences += self.store_prompts(state, range(len(part)), closed=closed)
        return sequences

    def _decode(self, requests: list[DecodeRequest]) -> list[PartialSequence]:
        """Decode one batch: sample a token per active row, feed it, drop finished rows.

        The last token of a row that stops after a step is fed too, so that it can be continued.
        """
        rows = [DecodeRow(request, self) for request in requests]
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
        self, rows: list["DecodeRow"], batch_rows: list[int], state: State, step: int
    ) -> None:
        """Append the next token to every active row."""
        temperature_n = torch.tensor([rows[i].request.temperature for i in batch_rows])
        uniform_n = torch.tensor([rows[i].uniform(step) for i in batch_rows])
        top_p_n = torch.full_like(temperature_n, self.top_p)
        tokens_n = sample_or_argmax(state.logits_nV, temperature_n, uniform_n, top_p_n)
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

    def _store(self, rows: list["DecodeRow"], batch_rows: list[int], state: State) -> None:
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
            row.cached = self.pool.path(row.request.sequence.known_cached, own)
            row.to_store = False


class EngineMaker(Protocol):
    """Makes the engine of a search, as the class `PrefixEngine` does."""

    def __call__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int
    ) -> PrefixEngine: ...


_make_engine: ContextVar[EngineMaker] = ContextVar("make_engine", default=PrefixEngine)


@contextmanager
def use_engine(make: EngineMaker) -> Iterator[None]:
    """Searches inside the context decode with the engine that `make` returns.

    A server lets searches of many requests share one batch; a chat receives every token.
    """
    token = _make_engine.set(make)
    try:
        yield
    finally:
        _make_engine.reset(token)


def new_engine(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int
) -> PrefixEngine:
    """A `PrefixEngine`, or what `use_engine` names in its place."""
    return _make_engine.get()(model, tokenizer, batch_size=batch_size)


def prefill(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    pad_id: int,
    shared: DecodeState | None = None,
) -> DecodeState:
    """The state after a forward over the prompts; tokens that all begin with are computed once.

    Padding is on the left of the prompts, or of what follows their common tokens.

    Args:
        shared: the `shared_state` of these and perhaps further prompts; default: it is computed
    """
    shared = shared or shared_state(model, prompts)
    if shared is None:
        ids_BP, mask_BP = (t.to(model.device) for t in pad_left(list(prompts), pad_id))
        return DecodeState.prefill(model, preallocated_cache(None), ids_BP, mask_BP)
    start = copy.deepcopy(shared)
    start.repeat(len(prompts))
    rests = pad_left([prompt[shared.start :] for prompt in prompts], pad_id)
    ids_BP, mask_BP = (t.to(model.device) for t in rests)
    mask_BT = torch.cat([start.mask_nT, mask_BP], dim=1)
    return DecodeState.prefill(model, start.cache, ids_BP, mask_BT)


def shared_state(model: PreTrainedModel, prompts: Sequence[list[int]]) -> DecodeState | None:
    """The state after the tokens that all prompts begin with; None where these are few."""
    prefix = common_prefix(prompts) if len(prompts) > 1 and _attends_to_all(model) else []
    if len(prefix) < LEAST_PREFIX:
        return None
    ids_1P = torch.tensor([prefix], device=model.device)
    return DecodeState.prefill(model, preallocated_cache(None), ids_1P, torch.ones_like(ids_1P) > 0)


def batches_of_prompts(prompts: Sequence[list[int]], most: int) -> Iterator[list[list[int]]]:
    """Batches of at most `most` prompts, which are in ascending order of length.

    A batch ends where its padding would exceed the share `MAX_PADDING`, but not before it has
    `LEAST_ROWS` rows.

    >>> prompts = [[1] * 5] * 40 + [[1] * 50] * 3
    >>> [len(batch) for batch in batches_of_prompts(prompts, most=64)]
    [40, 3]
    """
    batch: list[list[int]] = []
    for prompt in prompts:
        tokens, padded = sum(map(len, batch)) + len(prompt), (len(batch) + 1) * len(prompt)
        too_wide = len(batch) >= LEAST_ROWS and tokens < (1 - MAX_PADDING) * padded
        if len(batch) == most or too_wide:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def common_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """The tokens that all prompts begin with, but at least one of each prompt is left over.

    >>> common_prefix([[1, 2, 3, 4], [1, 2, 5]]), common_prefix([[1, 2], [1, 2]])
    ([1, 2], [1])
    """
    first, last = min(prompts), max(prompts)  # all others begin with what these two share
    length, most = 0, min(map(len, prompts)) - 1
    while length < most and first[length] == last[length]:
        length += 1
    return first[:length]


def _attends_to_all(model: PreTrainedModel) -> bool:
    """Whether every layer attends to all tokens: a sliding window would count the padding."""
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or [])
    if kinds:
        return kinds == {"full_attention"}
    return getattr(text, "sliding_window", None) is None


def sample_or_argmax(
    logits_nV: torch.Tensor,
    temperature_n: torch.Tensor,
    uniform_n: torch.Tensor,
    top_p_n: torch.Tensor | None = None,
) -> torch.Tensor:
    """tokens_n: sampled at each row's temperature by inverse transform; argmax at temperature 0.

    Where top_p_n is below 1, only the most probable tokens are sampled, see `keep_nucleus`.

    >>> sample_or_argmax(torch.zeros(3, 2), torch.ones(3), torch.tensor([0.0, 0.4, 0.6])).tolist()
    [0, 0, 1]
    """
    if not temperature_n.any():
        return logits_nV.argmax(dim=-1)
    scaled_nV = logits_nV
    temperature_n = temperature_n.to(logits_nV.device)
    greedy_n = temperature_n == 0
    if bool((temperature_n != 1).any()):
        scaled_nV = logits_nV / torch.where(greedy_n, 1.0, temperature_n).unsqueeze(1)
    if top_p_n is not None and bool((top_p_n < 1).any()):
        scaled_nV = keep_nucleus(scaled_nV, top_p_n.to(logits_nV.device))
    tokens_n, _ = sample_tokens(scaled_nV, uniform_n.to(logits_nV))
    if greedy_n.any():
        tokens_n = torch.where(greedy_n, logits_nV.argmax(dim=-1), tokens_n)
    return tokens_n


def _batch_state(
    sequences: Sequence[PartialSequence], pool: KVPool, device: torch.device
) -> DecodeState:
    """The sequences as one left-padded batch; those with one cached path read the pool once."""
    distinct = {id(b.cached): b.known_cached for b in sequences}
    index_of_path = {key: m for m, key in enumerate(distinct)}
    rows_n = torch.tensor([index_of_path[id(b.cached)] for b in sequences])
    lengths = torch.tensor([path.length for path in distinct.values()])
    width = int(lengths.max())
    mask_MT = torch.arange(width) >= width - lengths.unsqueeze(1)
    slots_MT = torch.zeros(len(distinct), width, dtype=torch.long)
    slots_MT[mask_MT] = torch.cat([path.all_slots() for path in distinct.values()])
    values = [b.value for b in sequences]
    return DecodeState(
        pool.read(slots_MT, rows_n),
        mask_MT[rows_n].to(device),
        torch.stack([b.logits_V for b in sequences]),
        None if values[0] is None else torch.tensor(values),
    )
