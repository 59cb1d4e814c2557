"""Decoding with vLLM in place of `PrefixEngine`, for strategies that sample whole answers.

vLLM batches, caches prefixes and samples; budgets, forced ends of thoughts and the parts of an
answer stay with the caller. It knows the causal LM alone: sequences have no values, and no steps.
Interface of vLLM: docs.vllm.ai, `LLM.generate` with prompts as token ids.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.plain import end_of_turn_ids, stop_text, token_id
from pipeline.chat.tags import END_THINK
from pipeline.device import choose_device, choose_dtype
from pipeline.generation.decode_row import DecodeRequest, PartialSequence
from pipeline.generation.kv_cache import eos_ids
from pipeline.generation.sequence import TokenPath
from pipeline.generation.shared_prefix import PrefixEngine, use_engine


class LogProb(Protocol):
    """vLLM's `Logprob`."""

    logprob: float


class CompletionOutput(Protocol):
    """vLLM's class of that name; token_ids include the end token."""

    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, LogProb]]  # of the sampled token at least
    finish_reason: str | None  # "stop" or "length"


class RequestOutput(Protocol):
    """vLLM's class of that name."""

    outputs: Sequence[CompletionOutput]


class LLM(Protocol):
    """What is used of `vllm.LLM`."""

    def generate(
        self,
        prompts: Sequence[Mapping[str, list[int]]],
        *,
        sampling_params: Sequence[object],
        use_tqdm: bool,
    ) -> Sequence[RequestOutput]:
        """Complete the prompts, each with its own `SamplingParams`."""


# Strategies that need neither values nor steps.
VLLM_STRATEGIES = ("greedy", "sample", "consensus")


def require_vllm() -> None:
    """Raise ValueError where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise ValueError(
            "engine=vllm needs the package vllm, which is not installed here: pip install vllm "
            "(CUDA), or leave engine out"
        )


def vllm_dtype(name: str) -> str:
    """`--dtype` in the words of vLLM, which has no `fastest`."""
    if name != "fastest":
        return name
    return str(choose_dtype(name, torch.float32, choose_device())).removeprefix("torch.")


def load_vllm(folder: Path, *, dtype: str = "auto", seed: int = 0) -> LLM:
    """vLLM's `LLM` of a plain checkpoint folder; `dtype` as `--dtype`. Raises as `require_vllm`."""
    require_vllm()
    llm = import_module("vllm").LLM
    return llm(model=str(folder), dtype=vllm_dtype(dtype), seed=seed, trust_remote_code=False)


@contextmanager
def use_vllm(llm: LLM) -> Iterator[None]:
    """Searches inside the context decode with this `vllm.LLM`."""

    def make(
        model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int
    ) -> PrefixEngine:
        return cast(PrefixEngine, VLLMEngine(llm, model, tokenizer))

    with use_engine(make):
        yield


class VLLMEngine:
    """Continues sequences with vLLM; `start` and `extend` as those of `PrefixEngine`.

    Log-probabilities are those of the policy at temperature 1 (vLLM's default, `raw_logprobs`).

    Args:
        llm: a `vllm.LLM` of the model.
        model: read for its end tokens alone.
    """

    def __init__(self, llm: LLM, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        self.llm = llm
        self.sampling_params = import_module("vllm").SamplingParams
        self.eos_ids = frozenset([*eos_ids(model, tokenizer), *end_of_turn_ids(tokenizer)])
        self.end_think_id = token_id(tokenizer, END_THINK)
        self.stop_text = stop_text(tokenizer)
        self.prompts: dict[int, tuple[TokenPath, list[int]]] = {}  # id of the root -> root, prompt
        self.generated_tokens = 0

    def start(self, prompts: Sequence[list[int]], *, closed: bool = False) -> list[PartialSequence]:
        """One empty sequence for each prompt; vLLM computes a prompt when it is first continued."""
        found = []
        for prompt in prompts:
            root = TokenPath()
            self.prompts[id(root)] = root, list(prompt)
            found.append(PartialSequence(prompt_tokens=len(prompt), tokens=root, closed=closed))
        return found

    def extend(self, requests: Sequence[DecodeRequest]) -> list[PartialSequence]:
        """Continue the sequences to their ends or budgets; an ended one comes back unchanged.

        A thought that has a limit is decoded up to `</think>` first. Where it does not close
        itself, `</think>` is written, and the answer follows.

        Raises:
            ValueError: a request for a step.
        """
        if any(request.max_step_tokens is not None for request in requests):
            raise ValueError(
                f"engine=vllm decodes whole answers and no steps: take one of the strategies "
                f"{', '.join(VLLM_STRATEGIES)}"
            )
        rows = [_Row(request, self) for request in requests]
        open_thoughts = [row for row in rows if row.limits_thought]
        self._generate([r for r in open_thoughts if r.request.max_thought_tokens], thoughts=True)
        for row in open_thoughts:
            row.close_thought()
        self._generate([row for row in rows if row.goes_on], thoughts=False)
        return [row.sequence() for row in rows]

    def _generate(self, rows: Sequence["_Row"], *, thoughts: bool) -> None:
        """Append what vLLM samples: up to `</think>` for thoughts, else up to the end."""
        if not rows:
            return
        asked = [{"prompt_token_ids": row.prompt()} for row in rows]
        params = [row.params(thoughts=thoughts) for row in rows]
        answers = self.llm.generate(asked, sampling_params=params, use_tqdm=False)
        for row, answer in zip(rows, answers, strict=True):
            (completion,) = answer.outputs
            row.append(completion)
            self.generated_tokens += len(completion.token_ids)


class _Row:
    """A request and the tokens that were generated for it so far."""

    def __init__(self, request: DecodeRequest, engine: VLLMEngine):
        self.request, self.engine = request, engine
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.closed, self.ended = request.sequence.closed, request.sequence.ended
        self.forced = request.sequence.forced

    @property
    def left(self) -> int:
        return self.request.budget - len(self.ids)

    @property
    def goes_on(self) -> bool:
        return self.left > 0 and not self.ended

    @property
    def limits_thought(self) -> bool:
        return self.goes_on and not self.closed and self.request.max_thought_tokens is not None

    def prompt(self) -> list[int]:
        """The ids of prompt and completion so far."""
        sequence = self.request.sequence
        root = sequence.tokens.steps()[0]
        return [*self.engine.prompts[id(root)][1], *sequence.ids, *self.ids]

    def params(self, *, thoughts: bool) -> object:
        limit = self.request.max_thought_tokens
        most = self.left if not thoughts or limit is None else min(self.left, limit)
        stops = self.engine.eos_ids | ({self.engine.end_think_id} if thoughts else set())
        return self.engine.sampling_params(
            n=1,
            temperature=self.request.temperature,
            max_tokens=most,
            seed=_seed((*self.request.stream, len(self.ids))),
            stop_token_ids=sorted(stops),
            stop=[self.engine.stop_text] if self.engine.stop_text else None,
            include_stop_str_in_output=True,
            logprobs=0,  # of the sampled token alone
            skip_special_tokens=False,
        )

    def append(self, completion: CompletionOutput) -> None:
        ids = list(completion.token_ids)
        self.ids += ids
        self.logprobs += [
            chosen[token].logprob for token, chosen in zip(ids, completion.logprobs, strict=True)
        ]
        self.closed |= self.engine.end_think_id in ids
        stopped = completion.finish_reason == "stop"
        self.ended = stopped and bool(ids) and ids[-1] != self.engine.end_think_id

    def close_thought(self) -> None:
        """Write `</think>` where the thought has used its tokens; it counts as a token."""
        if self.goes_on and not self.closed:
            self.ids.append(self.engine.end_think_id)
            self.logprobs.append(0.0)  # not sampled
            self.closed = self.forced = True

    def sequence(self) -> PartialSequence:
        before = self.request.sequence
        if not self.ids:
            return before
        return PartialSequence(
            prompt_tokens=before.prompt_tokens,
            tokens=before.tokens.then(tuple(self.ids), tuple(self.logprobs), ()),
            closed=self.closed,
            forced=self.forced,
            ended=self.ended,
        )


def _seed(stream: Sequence[int]) -> int:
    """A seed of 63 bits, which vLLM accepts, from the numbers that name a stream."""
    return int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0] >> np.uint64(1))
