"""The rollout of a PPO trainer: sample with its model or with vLLM, score, and have it judged.

RolloutSource asks the trainer for what TRL keeps (the wrapped model, vLLM, the reward functions);
the functions below it need no trainer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from pipeline.chat.prompts import encode_prompts
from pipeline.chat.token_offsets import offsets_to_tokens, token_end_offsets
from pipeline.generation import Sampler
from pipeline.generation.kv_cache import pad_left
from pipeline.ppo.ppo_checks import question_of
from pipeline.records import Problem, Rollout
from pipeline.scoring import Scores, score_completions, score_completions_and_rows
from pipeline.training.nonfinite import no_way_out

# (problem, completion) -> (character offset in the completion, reward) of each step, or None where
# the completion cannot be judged
StepRewards = Callable[[Problem, str], Sequence[tuple[int, float]] | None]


class RolloutSource:
    """Completions of the trainer's policy, their scores by any model, and their outcomes."""

    def __init__(self, trainer: GRPOTrainer, policy: PreTrainedModel):
        self.trainer = trainer
        self.accelerator = trainer.accelerator
        self.tokenizer = trainer._tokenizer
        self.sampler = Sampler(
            policy,
            self.tokenizer,
            temperature=trainer.args.temperature,
            max_new_tokens=trainer.args.max_completion_length,
            batch_size=trainer.args.sampling_batch_size,
        )

    def sample(self, prompts: list, group: int, generator: torch.Generator) -> Rollout:
        """One completion a prompt; a prompt that stands `group` times in a row is prefilled once.

        vLLM draws from random numbers of its own.
        """
        questions = [question_of(prompt) for prompt in prompts]
        whole = len(questions) % group == 0 and all(
            questions[i] == questions[i - i % group] for i in range(len(questions))
        )
        group = group if whole else 1
        prompt_ids = encode_prompts(self.tokenizer, questions[::group])
        if self.trainer.use_vllm:
            return self._sample_with_vllm(prompt_ids, group)
        # Under one autocast for all tokens, weights are cast once, not once a token.
        with (
            unwrap_model_for_generation(
                self.trainer.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.trainer.args.ds3_gather_for_generation,
            ) as model,
            self.accelerator.autocast(),
        ):
            self.sampler.model = model
            self.sampler.generator = generator
            rollout = self.sampler.sample(prompt_ids, group=group)
        return _to(rollout, self.accelerator.device)

    def _sample_with_vllm(self, prompt_ids: list[list[int]], group: int) -> Rollout:
        """vLLM samples; one forward of the policy gives log-probabilities and values."""
        repeated = [ids for ids in prompt_ids for _ in range(group)]
        completions, _ = self.trainer._generate_single_turn(repeated, None, {}, group)
        rollout = _rollout_of_ids(repeated, completions, self.tokenizer.pad_token_id)
        rollout = _to(rollout, self.accelerator.device)
        scores = self.score(self.trainer.model, rollout)
        last = [ids[-1] in self.trainer.eos_token_ids for ids in completions]
        return Rollout(
            **{
                **vars(rollout),
                "logprobs_BC": scores.logprobs_BC,
                "values_BC": scores.values_BC,
                "truncated_B": ~torch.tensor(last, device=self.accelerator.device),
            }
        )

    def texts(self, ids: list[list[int]]) -> list[str]:
        """The completions, each without its end token."""
        # A model may end in one of several tokens; none of them is a part of the answer.
        ends = set(self.sampler.eos_ids)
        return self.tokenizer.batch_decode([row[:-1] if row[-1] in ends else row for row in ids])

    def outcomes(
        self, inputs: Any, prompts: list, texts: list[str], ids: list[list[int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(outcomes_B, parts of all processes by function): the weighted reward of a completion.

        Reward functions see `thought</think>answer` as one assistant message. A completion that no
        function could judge has outcome nan.
        """
        completions = [[{"role": "assistant", "content": text}] for text in texts]
        with no_way_out("a reward function"):
            parts = self.trainer._calculate_rewards(inputs, prompts, completions, ids)
        first = self.accelerator.process_index * len(texts)
        mine = parts[first : first + len(texts)]
        weighted = mine * self.trainer.reward_weights.to(parts.device)
        outcomes_B = weighted.nansum(dim=1)
        outcomes_B[weighted.isnan().all(dim=1)] = torch.nan
        return outcomes_B, parts

    @torch.no_grad()
    def reference(self, rollout: Rollout) -> Scores:
        """The frozen SFT model's log-probabilities: a model of its own, or the policy without its
        adapters."""
        if self.trainer.ref_model is not None:
            return self.score(self.trainer.ref_model, rollout)
        with self.accelerator.unwrap_model(self.trainer.model).disable_adapter():
            return self.score(self.trainer.model, rollout)

    @torch.no_grad()
    def score(self, model: Any, rollout: Rollout, size: int = 32) -> Scores:
        """Scores of a rollout in chunks of like length."""
        lengths_B = rollout.mask_prompt_BP.sum(dim=1) + rollout.mask_completion_BC.sum(dim=1)
        order = lengths_B.argsort()
        chunks = [
            self.score_batch(
                model,
                rollout.prompt_ids_BP[rows],
                rollout.mask_prompt_BP[rows],
                rollout.completion_ids_BC[rows],
                rollout.mask_completion_BC[rows],
            )
            for rows in order.split(size)
        ]
        back = order.argsort()
        values = [chunk.values_BC for chunk in chunks]
        return Scores(
            logprobs_BC=torch.cat([chunk.logprobs_BC for chunk in chunks])[back],
            entropy_BC=torch.cat([chunk.entropy_BC for chunk in chunks])[back],
            values_BC=None if values[0] is None else torch.cat(values)[back],
        )

    def score_batch(self, model: Any, *tensors: torch.Tensor) -> Scores:
        """One forward at the temperature of the samples; with gradients where they are on."""
        return self._scored(score_completions, model, *tensors)

    def score_batch_and_rows(
        self, model: Any, *tensors: torch.Tensor
    ) -> tuple[Scores, torch.Tensor]:
        """`score_batch` of the first four tensors, and logprobs_RT of the rows in the last two."""
        return self._scored(score_completions_and_rows, model, *tensors)

    def _scored(self, score: Callable, model: Any, *tensors: torch.Tensor) -> Any:
        with self.accelerator.autocast():
            return score(model, *tensors, temperature=self.trainer.args.temperature)


def step_reward_tokens(
    step_rewards: StepRewards,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Any,
    texts: list[str],
    ids: list[list[int]],
) -> list[list[tuple[int, float]] | None]:
    """(token, reward) of each paid step of each completion; None for one that cannot be judged."""
    steps: list[list[tuple[int, float]] | None] = []
    for example, text, tokens in zip(inputs, texts, ids, strict=True):
        with no_way_out("step_rewards"):
            found = step_rewards(Problem.from_columns(example), text)
            marks = None if found is None else list(found)
        ends = token_end_offsets(tokenizer, tokens) if marks else [0]
        steps.append(None if marks is None else offsets_to_tokens(marks, ends))
    return steps


def make_minibatches(
    rollout: dict[str, torch.Tensor], minibatches: int, accumulate: int, generator: torch.Generator
) -> list[list[dict[str, torch.Tensor]]]:
    """The rollout as minibatches in random order, each cut into micro-batches.

    Rows of like length share a micro-batch inside a minibatch, which saves padding and changes
    nothing else.
    """
    rows = torch.randperm(len(rollout["advantages"]), generator=generator)
    lengths = (rollout["prompt_mask"].sum(dim=1) + rollout["completion_mask"].sum(dim=1)).cpu()
    return [
        [
            {name: value[part] for name, value in rollout.items()}
            for part in minibatch[lengths[minibatch].argsort()].chunk(accumulate)
        ]
        for minibatch in rows.chunk(minibatches)
    ]


def unpad(ids_BC: torch.Tensor, mask_BC: torch.Tensor) -> list[list[int]]:
    """The ids that count, row by row."""
    return [ids[mask].tolist() for ids, mask in zip(ids_BC, mask_BC, strict=True)]


def _to(rollout: Rollout, device: torch.device) -> Rollout:
    return Rollout(**{name: tensor.to(device) for name, tensor in vars(rollout).items()})


def _rollout_of_ids(prompts: list[list[int]], completions: list[list[int]], pad_id: int) -> Rollout:
    prompt_ids_BP, mask_prompt_BP = pad_left(prompts, pad_id)
    reversed_BC, mask_BC = pad_left([ids[::-1] for ids in completions], pad_id)
    blank_BC = torch.zeros(mask_BC.shape)
    return Rollout(
        prompt_ids_BP=prompt_ids_BP,
        mask_prompt_BP=mask_prompt_BP,
        completion_ids_BC=reversed_BC.flip(1),
        mask_completion_BC=mask_BC.flip(1),
        logprobs_BC=blank_BC,
        values_BC=blank_BC,
        truncated_B=torch.zeros(len(completions), dtype=torch.bool),
    )
