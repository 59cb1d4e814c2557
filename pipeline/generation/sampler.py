"""Sample completions, and keep what PPO needs of every token while it is at hand.

One pass records the token, its log-probability and the value before it: no second forward, no
scores over the vocabulary kept. Prompts of like length share a batch, the completions of a question
share one prefill, and a finished row leaves the batch.

Every row has its own stream of random numbers, drawn before batches are formed. What is sampled for
a question therefore does not depend on the questions beside it, beyond rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.generation.cuda_graph import with_cuda_graph
from pipeline.generation.kv_cache import (
    DecodeState,
    compaction_indices,
    eos_ids,
    evaluating,
    pad_left,
    preallocated_cache,
)
from pipeline.generation.sampling import logprobs_of, sample_tokens
from pipeline.records import Rollout


class Sampler:
    """Completions of one policy at one temperature; 0 is greedy.

    `batch_size` bounds the rows decoded together. At temperature 0 log-probabilities are those of
    temperature 1.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int = 0,
        batch_size: int = 256,
    ):
        if temperature < 0:
            raise ValueError(f"temperature={temperature} must be at least 0 (0 is greedy)")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.model = model
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.pad_id = tokenizer.pad_token_id
        self.eos_ids = eos_ids(model, tokenizer)
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def sample(
        self,
        prompts: list[list[int]],
        *,
        group: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> Rollout:
        """`group` completions of each prompt, side by side, in the order of the prompts.

        `progress` is called with the number of completions that are done.
        """
        self.check_room(prompts)
        steps = self.max_new_tokens
        noise_BC = torch.rand(len(prompts) * group, steps, generator=self.generator)
        columns = _Columns.empty(len(prompts) * group, steps, self.pad_id, self.model.device)
        noise_BC = noise_BC.to(self.model.device)
        with evaluating(self.model):
            for questions, part in self._batches(prompts, group):
                rows = [q * group + g for q in questions for g in part]
                self._complete([prompts[q] for q in questions], len(part), rows, noise_BC, columns)
                if progress is not None:
                    progress(len(rows))
        return self._rollout(prompts, group, columns.gathered())

    def check_room(self, prompts: list[list[int]]) -> None:
        """Raise ValueError unless every prompt has tokens, and the model's window room for more."""
        window = getattr(self.model.config, "max_position_embeddings", None)
        longest = max(map(len, prompts), default=0)
        if not prompts or min(map(len, prompts)) == 0:
            raise ValueError("there is nothing to complete: every prompt needs at least one token")
        if window is not None and longest + self.max_new_tokens > window:
            raise ValueError(
                f"a prompt of {longest} tokens and max_new_tokens={self.max_new_tokens} do not fit "
                f"the model's window of {window} tokens; shorten the question or lower the budget"
            )

    def _batches(self, prompts: list[list[int]], group: int) -> list[tuple[list[int], range]]:
        """(questions, which of their completions) of every batch; a group that is larger than a
        batch is cut, and its question prefilled once a part."""
        by_length = sorted(range(len(prompts)), key=lambda q: len(prompts[q]), reverse=True)
        size, cut = max(1, self.batch_size // group), min(group, self.batch_size)
        return [
            (by_length[i : i + size], range(first, min(first + cut, group)))
            for i in range(0, len(by_length), size)
            for first in range(0, group, cut)
        ]

    def _complete(
        self,
        prompts: list[list[int]],
        group: int,
        rows: list[int],
        noise_BC: torch.Tensor,
        columns: "_Columns",
    ) -> None:
        """Decode one batch and write what it gives into `columns`, row by row.

        The device is waited for once a token: when the host asks which rows have finished.
        """
        device = self.model.device
        ids_QP, mask_QP = pad_left(prompts, self.pad_id)
        cache = preallocated_cache(self.model.config)
        state = DecodeState.prefill(self.model, cache, ids_QP.to(device), mask_QP.to(device))
        if group > 1:
            state.repeat(group)
        state = with_cuda_graph(state, self.model, self.max_new_tokens)
        rows_n = torch.tensor(rows, device=device)
        eos_ids = torch.tensor(self.eos_ids, device=device)
        for step in range(self.max_new_tokens):
            tokens_n, logprobs_n = self._choose(state.logits_nV, noise_BC[rows_n, step])
            columns.write(rows_n, step, tokens_n, logprobs_n, state.values_n)
            # A finished row that waits to be dropped is marked with -1: it writes into a spare row.
            rows_n = torch.where(torch.isin(tokens_n, eos_ids), -1, rows_n)
            live_n = (rows_n >= 0).cpu()
            if step + 1 == self.max_new_tokens or not live_n.any():
                return
            if 1 - live_n.float().mean() >= state.compact_share:
                keep_n = compaction_indices(live_n).to(device)
                state.keep(keep_n)
                rows_n, tokens_n = rows_n[keep_n], tokens_n[keep_n]
            state.step(self.model, tokens_n)

    def _choose(
        self, logits_nV: torch.Tensor, noise_n: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens_n, logprobs_n)."""
        if self.temperature == 0:
            tokens_n = logits_nV.argmax(dim=-1)
            return tokens_n, logprobs_of(tokens_n, logits_nV)
        return sample_tokens(logits_nV / self.temperature, noise_n)

    def _rollout(self, prompts: list[list[int]], group: int, columns: "_Columns") -> Rollout:
        ids_QP, mask_QP = pad_left(prompts, self.pad_id)
        width = int(columns.lengths.max())
        mask_BC = torch.arange(width) < columns.lengths.unsqueeze(1)
        last_B = columns.ids[torch.arange(len(columns.lengths)), columns.lengths - 1]
        return Rollout(
            prompt_ids_BP=ids_QP.repeat_interleave(group, dim=0),
            mask_prompt_BP=mask_QP.repeat_interleave(group, dim=0),
            completion_ids_BC=columns.ids[:, :width],
            mask_completion_BC=mask_BC,
            logprobs_BC=columns.logprobs[:, :width],
            values_BC=columns.values[:, :width],
            truncated_B=~torch.isin(last_B, torch.tensor(self.eos_ids)),
        )


@dataclass
class _Columns:
    """What has been sampled so far, one row a completion, and a spare one at the end; they stay on
    the model's device until all is done."""

    ids: torch.Tensor
    logprobs: torch.Tensor
    values: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def empty(cls, rows: int, steps: int, pad_id: int, device: torch.device) -> "_Columns":
        return cls(
            ids=torch.full((rows + 1, steps), pad_id, device=device),
            logprobs=torch.zeros(rows + 1, steps, device=device),
            values=torch.zeros(rows + 1, steps, device=device),
            lengths=torch.zeros(rows + 1, dtype=torch.long, device=device),
        )

    def write(
        self,
        rows_n: torch.Tensor,
        step: int,
        tokens_n: torch.Tensor,
        logprobs_n: torch.Tensor,
        values_n: torch.Tensor | None,
    ) -> None:
        self.ids[rows_n, step] = tokens_n
        self.logprobs[rows_n, step] = logprobs_n
        if values_n is not None:
            self.values[rows_n, step] = values_n
        self.lengths[rows_n] = step + 1

    def gathered(self) -> "_Columns":
        """On the CPU, without the spare row."""
        return _Columns(**{name: column[:-1].cpu() for name, column in vars(self).items()})
