"""One thread that decodes the sequences of all requests in one batch.

A request runs its search in a thread of its own with a `BatchedEngine`, which hands prompts and
sequences to the loop and waits for them. Sequences join the batch between two tokens.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.plain import token_id
from pipeline.chat.tags import THINK
from pipeline.generation.continuous import ContinuousBatch
from pipeline.generation.decode_row import DecodeRequest, DecodeRow, PartialSequence
from pipeline.generation.kv_cache import evaluation_mode
from pipeline.generation.shared_prefix import PrefixEngine, batches_of_prompts, prefill
from pipeline.serve.failures import place_of

logger = logging.getLogger("thinkhead.serve")
Result = Future[list[PartialSequence]]


class Cancelled(Exception):  # noqa: N818 - it is no error
    """The client has gone, the time limit has passed, or the server stops."""


class DecodingFailed(Exception):  # noqa: N818
    """A forward of the model failed; the message has no text of a completion."""


@dataclass(eq=False)
class _PrefillJob:
    engine: "BatchedEngine"
    prompts: list[list[int]]
    closed: bool
    result: Result = field(default_factory=Future)


@dataclass(eq=False)
class _DecodeJob:
    engine: "BatchedEngine"
    rows: list[DecodeRow]
    waiting: deque[DecodeRow] = field(default_factory=deque)
    unfinished: int = 0
    result: Result = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.waiting = deque(self.rows)
        self.unfinished = len(self.rows)


class DecodeLoop:
    """The thread and its batch.

    Args:
        max_rows: most sequences decoded together; further ones wait for a free row.
        prefill_tokens: most prompt tokens computed between two tokens of the batch, unless one
            prompt alone is longer. Long prompts delay running requests by this much.
    """

    def __init__(self, model: PreTrainedModel, *, max_rows: int = 64, prefill_tokens: int = 2048):
        self.model, self.max_rows, self.prefill_tokens = model, max_rows, prefill_tokens
        self.batch = ContinuousBatch(model)
        self.steps = self.decoded_rows = 0  # forwards of the batch, and the sum of their rows
        self.failures = 0  # forwards that raised
        self._new: deque[_PrefillJob | _DecodeJob] = deque()
        self._prefills: deque[_PrefillJob] = deque()
        self._queue: deque[_DecodeJob] = deque()  # jobs with rows that have not joined
        self._owners: dict[int, _DecodeJob] = {}  # id of a row in the batch -> its job
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="decode-loop", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread; what it still decodes is cancelled."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and not self._stopped

    def submit(self, job: _PrefillJob | _DecodeJob) -> list[PartialSequence]:
        """Hand a job to the loop and wait for its result.

        Raises:
            Cancelled: the request was cancelled, or the loop has ended.
            DecodingFailed: a forward of the model raised.
        """
        with self._changed:
            if self._stopped:
                raise Cancelled("the server stops")
            self._new.append(job)
            self._changed.notify()
        return job.result.result()

    def wake(self) -> None:
        """Let the loop look for cancelled jobs at once."""
        with self._changed:
            self._changed.notify()

    @torch.no_grad()
    def _run(self) -> None:
        try:
            with evaluation_mode(self.model):
                while self._take_new():
                    self._drop_cancelled()
                    self._attempt(self._prefill_some, self._fail_prefills)
                    self._attempt(self._decode_step, self._fail_rows)
        except Exception as error:
            logger.error("the decode loop ends because of %s", place_of(error))
        finally:
            with self._changed:
                self._stopped = True
                jobs = [*self._new, *self._prefills, *self._queue, *self._owners.values()]
            for job in jobs:
                _end(job, Cancelled("the server stops"))

    def _take_new(self) -> bool:
        """Wait until there is work; False once the loop is to end."""
        with self._changed:
            while not (self._stopped or self._new or self._prefills or self._queue or self._owners):
                self._changed.wait()
            while self._new:
                job = self._new.popleft()
                if isinstance(job, _PrefillJob):
                    self._prefills.append(job)
                else:
                    self._queue.append(job)
            return not self._stopped

    def _attempt(self, work: Callable[[], None], fail: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            logger.error("a forward of the model failed with %s", place_of(error))
            self.failures += 1
            fail()

    def _drop_cancelled(self) -> None:
        for jobs in (self._prefills, self._queue):
            for job in [job for job in jobs if job.engine.cancelled.is_set()]:
                jobs.remove(job)  # type: ignore[arg-type]  # it is from this very queue
                _end(job, Cancelled("the request was cancelled"))
        gone = [row for row in self.batch.rows if self._owner(row).engine.cancelled.is_set()]
        for row in self.batch.remove(gone):
            _end(self._owners.pop(id(row)), Cancelled("the request was cancelled"))

    def _prefill_some(self) -> None:
        """One forward over the prompts of the first waiting jobs."""
        taken: list[_PrefillJob] = []
        while self._prefills:
            widths = [len(p) for job in (*taken, self._prefills[0]) for p in job.prompts]
            if taken and max(widths) * len(widths) > self.prefill_tokens:
                break
            taken.append(self._prefills.popleft())
        if not taken:
            return
        self._prefilling = taken
        prompts = [prompt for job in taken for prompt in job.prompts]
        state = prefill(self.model, prompts, taken[0].engine.pad_id)
        first = 0
        for job in taken:
            rows = range(first, first + len(job.prompts))
            job.result.set_result(job.engine.store_prompts(state, rows, closed=job.closed))
            first += len(job.prompts)

    def _fail_prefills(self) -> None:
        for job in self._prefilling:
            _end(job, DecodingFailed("the model failed on a prompt"))

    def _decode_step(self) -> None:
        joining: list[tuple[DecodeRow, PrefixEngine]] = []
        while self._queue and len(self.batch.rows) + len(joining) < self.max_rows:
            job = self._queue[0]
            row = job.waiting.popleft()
            self._owners[id(row)] = job
            joining.append((row, job.engine))
            if not job.waiting:
                self._queue.popleft()
        self.batch.add(joining)
        if not self.batch.rows:
            return
        self.steps += 1
        self.decoded_rows += len(self.batch.rows)
        for row in self.batch.step():
            job = self._owners.pop(id(row))
            job.unfinished -= 1
            if not job.unfinished and not job.result.done():
                job.result.set_result([each.sequence() for each in job.rows])

    def _fail_rows(self) -> None:
        """End the jobs of all rows: it is unknown whose row made the forward fail."""
        failed = {id(job): job for job in self._owners.values()}
        self._owners.clear()
        self.batch.clear()
        for job in failed.values():
            if job in self._queue:
                self._queue.remove(job)
            _end(job, DecodingFailed("the model failed while it decoded"))

    def _owner(self, row: DecodeRow) -> _DecodeJob:
        return self._owners[id(row)]


class BatchedEngine(PrefixEngine):
    """A `PrefixEngine` whose sequences are decoded by a loop, together with those of others.

    Args:
        loop: the thread that decodes.
        stop: texts that end a visible answer. They are not looked for in thoughts.
        cancelled: set by the server when the result is no longer wanted.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        loop: DecodeLoop,
        cancelled: threading.Event,
        batch_size: int = 64,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        on_token: Callable[[DecodeRequest, int], None] | None = None,
    ):
        super().__init__(model, tokenizer, batch_size=batch_size, top_p=top_p, on_token=on_token)
        self.loop, self.cancelled, self.stop = loop, cancelled, tuple(stop)
        # A token has at least one byte; those of a tag or an unfinished character come on top.
        self._stop_window = max((len(text.encode()) for text in self.stop), default=0) + 2
        self._tags = (self.end_think_id, token_id(tokenizer, THINK))

    def stops(self, ids: list[int], *, closed: bool) -> bool:
        """Whether the last visible tokens contain a text that ends the answer."""
        if super().stops(ids, closed=closed):
            return True
        if not self.stop or not closed:
            return False
        visible: list[int] = []
        for token in reversed(ids[-self._stop_window :]):
            if token in self._tags:
                if token != self.end_think_id:  # a thought that was opened again
                    return False
                break
            visible.insert(0, token)
        text = self.tokenizer.decode(visible, skip_special_tokens=True)
        return any(stop in text for stop in self.stop)

    def _prefill(self, prompts: list[list[int]], closed: bool) -> list[PartialSequence]:
        sequences = []
        for part in batches_of_prompts(prompts, self.batch_size):
            self._check_cancelled()
            sequences += self.loop.submit(_PrefillJob(self, part, closed))
        return sequences

    def _decode(self, requests: list[DecodeRequest]) -> list[PartialSequence]:
        self._check_cancelled()
        rows = [DecodeRow(request, self) for request in requests]
        return self.loop.submit(_DecodeJob(self, rows))

    def _check_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled("the request was cancelled")


def _end(job: _PrefillJob | _DecodeJob, error: Exception) -> None:
    if not job.result.done():
        job.result.set_exception(error)
