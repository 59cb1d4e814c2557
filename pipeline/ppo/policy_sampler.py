"""Completions sampled from the policy that is trained, by our sampler or by vLLM."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from pipeline.chat.prompts import Question, encode_prompts
from pipeline.generation import Sampler
from pipeline.generation.kv_memory import MOST_ROWS, rows_that_fit
from pipeline.generation.shared_prefix import PrefixEngine
from pipeline.generation.vllm_weights import lm_weights, merged_lm_weights
from pipeline.model import is_adapted
from pipeline.model.unsharded import gathered, is_sharded, named_weights
from pipeline.ppo import rollout
from pipeline.ppo.monte_carlo import continuations
from pipeline.ppo.options import PPOOptions
from pipeline.ppo.policy_scores import PolicyScorer
from pipeline.records import Rollout


class VLLMEngine(Protocol):
    """What is used of TRL's VLLMGeneration."""

    def sync_weights(self) -> None:
        """Give vLLM the weights of the policy."""

    def generate(
        self, prompts: list[list[int]], images: None, num_generations: int
    ) -> tuple[object, list[list[int]], object, object]:
        """Return (prompts, token ids of the completions, two more)."""


@dataclass(kw_only=True)
class PolicySampler:
    """Samples from the policy as it is at that moment.

    Args:
        policy: () -> the policy as it is trained; it may be wrapped, and divided among processes.
        whole_policy: () -> a context with the policy unwrapped and its weights gathered.
        skeleton: () -> a copy of the policy without weights, to gather those of a divided one.
        temperature: of the samples.
        scorer: gives log-probabilities and values of what vLLM has sampled.
        step: () -> optimizer steps so far: the version of the weights.
        vllm: None: our sampler.
    """

    options: PPOOptions
    temperature: float
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    policy: Callable[[], nn.Module]
    whole_policy: Callable[[], AbstractContextManager[nn.Module]]
    skeleton: Callable[[], nn.Module]
    scorer: PolicyScorer
    step: Callable[[], int]
    together: bool  # DeepSpeed: gathering weights needs every process
    vllm: VLLMEngine | None = None
    sampler: Sampler = field(init=False)
    vllm_step: int = field(init=False, default=-1)  # of the weights that vLLM has

    def __post_init__(self) -> None:
        self.sampler = Sampler(
            self._unwrapped(),
            self.tokenizer,
            temperature=self.temperature,
            max_new_tokens=self.options.max_completion_length,
            batch_size=self.options.sampling_batch_size or MOST_ROWS,
        )

    def sample(self, questions: list[Question], group: int, generator: torch.Generator) -> Rollout:
        """Sample `group` completions of each question; vLLM has random numbers of its own."""
        prompt_ids = encode_prompts(self.tokenizer, questions)
        if self.vllm is not None:
            copies = rollout.per_completion(prompt_ids, group)
            return self._sample_with_vllm(self.vllm, copies, group)
        # Under one autocast for all tokens, weights are cast once, not for every token.
        with self.whole_policy() as model, self.accelerator.autocast():
            self.sampler.model = model
            self.sampler.generator = generator
            longest = max(map(len, prompt_ids)) + self.options.max_completion_length
            self.sampler.batch_size = self.batch_size(longest)
            samples = self.sampler.sample(prompt_ids, group=group)
        return rollout.rollout_to(samples, self.accelerator.device)

    @torch.no_grad()
    def go_on(
        self, prompts: Sequence[list[int]], budgets: Sequence[int], samples: int, seed: int
    ) -> list[list[int]]:
        """Return `samples` continuations of each prompt; vLLM is not used for these."""
        with self.whole_policy() as model, self.accelerator.autocast():
            longest = max(map(sum, zip(map(len, prompts), budgets, strict=True)), default=1)
            engine = PrefixEngine(model, self.tokenizer, batch_size=self.batch_size(longest))
            return continuations(
                engine, prompts, budgets, samples, seed, temperature=self.temperature
            )

    def batch_size(self, tokens: int) -> int:
        """Return how many sequences of so many tokens are sampled at a time."""
        policy = self._unwrapped()
        return self.options.sampling_batch_size or rows_that_fit(
            policy.config, policy.dtype, self.accelerator.device, tokens
        )

    def weights_for_vllm(
        self, every_weight: Callable[[], Iterable[tuple[str, torch.Tensor]]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the weights that vLLM is given, by their names in the plain causal LM.

        All processes must iterate to the end. `every_weight` gathers those of TRL's choice.
        """
        policy = self._unwrapped()
        if not is_adapted(policy) or self.together:
            yield from lm_weights(every_weight())
        elif is_sharded(policy):
            with gathered(named_weights(policy), self.skeleton()) as whole:
                yield from merged_lm_weights(whole)
        else:
            yield from merged_lm_weights(policy)

    def _sample_with_vllm(
        self, vllm: VLLMEngine, prompt_ids: list[list[int]], group: int
    ) -> Rollout:
        """Sample with vLLM; one forward of the policy gives log-probabilities and values."""
        if self.vllm_step != self.step():
            vllm.sync_weights()
            self.vllm_step = self.step()
        _, completions, *_ = vllm.generate(prompts=prompt_ids, images=None, num_generations=group)
        samples = rollout.rollout_of_ids(
            prompt_ids, completions, self.tokenizer.pad_token_id, self.sampler.eos_ids
        )
        samples = rollout.rollout_to(samples, self.accelerator.device)
        scores = self.scorer.rollout(self.policy(), samples)
        return replace(samples, logprobs_BC=scores.logprobs_BC, values_BC=scores.values_BC)

    def _unwrapped(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.policy())
