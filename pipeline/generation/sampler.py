"""Sample completions and record log-probability and value of every token.

Both are recorded while decoding, so PPO needs no second forward and no logits are stored. Prompts
of similar length share a batch, the completions of a prompt share one prefill, and finished rows
are dropped from the batch.

The random numbers of every row are drawn before batches are formed, so the samples of a prompt do
not depend on the other prompts of its batch, beyond rounding.
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
    evaluation_mode,
    pad_left,
    preallocated_cache,
)
from pipeline.generation.sampling import logprobs_of, sample_tokens
from pipeline.records import Rollout


class Sampler:
    """Samples completions of one policy at one temperature.

    Args:
        temperature: 0 is greedy decoding; log-probabilities are then those of temperature 1.
        max_new_tokens: most tokens of a completion.
        seed: of the random numbers; a second call of `sample` continues the sequence.
        batch_size: most rows decoded together.

    Raises:
        ValueError: an argument is out of range, or the tokenizer has no end-of-text token.
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
        """`group` completions of each prompt; those of a prompt are adjacent, B = Q * group.

        `progress` is called after every batch with its number of completions.
        """
        self.check_lengths(prompts)
        steps = self.max_new_tokens
        uniform_BC = torch.rand(len(prompts) * group, steps, generator=self.generator)
        sampled = _SampledTokens.empty(len(prompts) * group, steps, self.pad_id, self.model.device)
        uniform_BC = uniform_BC.to(self.model.device)
        with evaluation_mode(self.model):
            for questions, part in self._batches(prompts, group):
                rows = [q * group + g for q in questions for g in part]
                self._decode_batch(
                    [prompts[q] for q in questions], len(part), rows, uniform_BC, sampled
                )
                if progress is not None:
                    progress(len(rows))
        return self._rollout(prompts, group, sampled.to_cpu())

    def check_lengths(self, prompts: list[list[int]]) -> None:
        """Raise ValueError for an empty prompt, or one too long for the model's context window."""
        window = getattr(self.model.config, "max_position_embeddings", None)
        longest = max(map(len, prompts), default=0)
        if not prompts or min(map(len, prompts)) == 0:
            raise ValueError("nothing to complete: every prompt needs at least one token")
        if window is not None and longest + self.max_new_tokens > window:
            raise ValueError(
                f"a prompt of {longest} tokens and max_new_tokens={self.max_new_tokens} do not fit "
                f"the model's window of {window} tokens; shorten the question or lower the budget"
            )

    def _batches(self, prompts: list[list[int]], group: int) -> list[tuple[list[int], range]]:
        """(prompt indices, completion indices within the group) of every batch, longest first.

        A group larger than a batch is split, and its prompt is prefilled once per part.
        """
        by_length = sorted(range(len(prompts)), key=lambda q: len(prompts[q]), reverse=True)
        size, cut = max(1, self.batch_size // group), min(group, self.batch_size)
        return [
            (by_length[i : i + size], range(first, min(first + cut, group)))
            for i in range(0, len(by_length), size)
            for first in range(0, group, cut)
        ]

    def _decode_batch(
        self,
        prompts: list[list[int]],
        group: int,
        rows: list[int],
        uniform_BC: torch.Tensor,
        sampled: "_SampledTokens",
    ) -> None:
        """Decode one batch and write its tokens into `sampled`.

        Host and device synchronize once per token, to find out which rows have finished.

        Args:
            prompts: the prompts of the batch.
            group: completions per prompt.
            rows: for each row of the batch, its row in `uniform_BC` and `sampled`.
            uniform_BC: uniform random numbers, one per token.
            sampled: written in place.
        """
        device = self.model.device
        ids_QP, mask_QP = pad_left(prompts, self.pad_id)
        cache = preallocated_cache(self.model.config)
        start = DecodeState.prefill(self.model, cache, ids_QP.to(device), mask_QP.to(device))
        if group > 1:
            start.repeat(group)
        state = with_cuda_graph(start, self.model, self.max_new_tokens)
        rows_n = torch.tensor(rows, device=device)
        eos_ids = torch.tensor(self.eos_ids, device=device)
        for step in range(self.max_new_tokens):
            tokens_n, logprobs_n = self._sample(state.logits_nV, uniform_BC[rows_n, step])
            sampled.write(rows_n, step, tokens_n, logprobs_n, state.values_n)
            # Finished rows not yet dropped get index -1 and write into the spare last row.
            rows_n = torch.where(torch.isin(tokens_n, eos_ids), -1, rows_n)
            live_n = (rows_n >= 0).cpu()
            if step + 1 == self.max_new_tokens or not live_n.any():
                return
            if 1 - live_n.float().mean() >= state.compact_share:
                keep_n = compaction_indices(live_n).to(device)
                state.keep(keep_n)
                rows_n, tokens_n = rows_n[keep_n], tokens_n[keep_n]
            state.step(self.model, tokens_n)

    def _sample(
        self, logits_nV: torch.Tensor, uniform_n: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens_n, logprobs_n): the next token of each row and its log-probability."""
        if self.temperature == 0:
            tokens_n = logits_nV.argmax(dim=-1)
            return tokens_n, logprobs_of(tokens_n, logits_nV)
        scaled_nV = logits_nV if self.temperature == 1 else logits_nV / self.temperature
        return sample_tokens(scaled_nV, uniform_n)

    def _rollout(self, prompts: list[list[int]], group: int, sampled: "_SampledTokens") -> Rollout:
        ids_QP, mask_QP = pad_left(prompts, self.pad_id)
        width = int(sampled.lengths.max())
        mask_BC = torch.arange(width) < sampled.lengths.unsqueeze(1)
        last_B = sampled.ids[torch.arange(len(sampled.lengths)), sampled.lengths - 1]
        return Rollout(
            prompt_ids_BP=ids_QP.repeat_interleave(group, dim=0),
            mask_prompt_BP=mask_QP.repeat_interleave(group, dim=0),
            completion_ids_BC=sampled.ids[:, :width],
            mask_completion_BC=mask_BC,
            logprobs_BC=sampled.logprobs[:, :width],
            values_BC=sampled.values[:, :width],
            truncated_B=~torch.isin(last_B, torch.tensor(self.eos_ids)),
        )


@dataclass
class _SampledTokens:
    """Tokens sampled so far on the model's device, (B + 1, C), and the lengths (B + 1,).

    The last row is spare: rows that have finished write into it.
    """

    ids: torch.Tensor
    logprobs: torch.Tensor
    values: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def empty(cls, rows: int, steps: int, pad_id: int, device: torch.device) -> "_SampledTokens":
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
        """Write token number `step` of the given rows."""
        self.ids[rows_n, step] = tokens_n
        self.logprobs[rows_n, step] = logprobs_n
        if values_n is not None:
            self.values[rows_n, step] = values_n
        self.lengths[rows_n] = step + 1

    def to_cpu(self) -> "_SampledTokens":
        """The same on the CPU, without the spare row."""
        return _SampledTokens(**{name: x_BC[:-1].cpu() for name, x_BC in vars(self).items()})
