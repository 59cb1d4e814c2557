"""From prompts to a training batch: texts, rewards, scores of other models, advantages.

Pure functions of tensors, texts and callables; a trainer brings the model and the sampler.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from pipeline.chat.prompts import Question
from pipeline.chat.token_offsets import offsets_to_tokens, token_end_offsets
from pipeline.generation.kv_cache import pad_left
from pipeline.ppo.advantages import (
    estimate_advantages,
    masked_moments,
    masked_sums,
    overlong,
    place_rewards,
    standardize,
    standardize_groups,
)
from pipeline.ppo.groups import ScoredRollout
from pipeline.ppo.kl import FixedKL, kl_charge
from pipeline.ppo.metrics import PPOLog
from pipeline.ppo.minibatches import Batch
from pipeline.ppo.options import PPOOptions
from pipeline.records import Problem, Rollout
from pipeline.scoring import Scores
from pipeline.stats.value_metrics import explained_variance
from pipeline.training.nonfinite import no_system_exit

T = TypeVar("T")
# (problem, completion) -> reward, or None where the function does not apply
RewardFn = Callable[[Problem, str], float | None]
# (problem, completion) -> (character offset in the completion, reward) of each step, or None where
# the completion has no verdict
StepRewards = Callable[[Problem, str], Sequence[tuple[int, float]] | None]


def question_of(prompt: Question) -> Question:
    """Return the question of a prompt: plain text, or messages that end in one of the user.

    >>> question_of("2+3?"), question_of([{"role": "user", "content": "2+3?"}])
    ('2+3?', '2+3?')
    """
    if isinstance(prompt, str):
        return prompt
    if not prompt or prompt[-1]["role"] != "user":
        roles = ", ".join(message["role"] for message in prompt)
        raise ValueError(
            f"a prompt has the messages {roles or 'none'}; the last must be of the user, as made "
            "by pipeline.chat.prompts.user_message"
        )
    return prompt[0]["content"] if len(prompt) == 1 else list(prompt)


def per_completion(items_Q: Iterable[T], group: int) -> list[T]:
    """Return the item of each completion, where `group` completions of a question stand together.

    >>> per_completion(["a", "b"], 2)
    ['a', 'a', 'b', 'b']
    """
    return [item for item in items_Q for _ in range(group)]


def unpad(ids_BC: torch.Tensor, mask_BC: torch.Tensor) -> list[list[int]]:
    """Return the ids where the mask is True, row by row."""
    return [ids[mask].tolist() for ids, mask in zip(ids_BC, mask_BC, strict=True)]


def completion_texts(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[list[int]], end_ids: Iterable[int]
) -> list[str]:
    """Decode completions, each without its end token, which may be any of `end_ids`."""
    ends = set(end_ids)
    return tokenizer.batch_decode([row[:-1] if row[-1] in ends else row for row in ids])


# ---- rewards ----


def reward_parts(
    functions: Mapping[str, RewardFn],
    problems_B: Sequence[Problem],
    texts: Sequence[str],
    record: Callable[[str, list[float | None]], None] = lambda name, rewards: None,
) -> torch.Tensor:
    """Return parts_BF: the reward of each completion (row) by each function (column), float32.

    A function that returns None does not apply; its entry is NaN. `record` receives what each
    function returned, before None becomes NaN.
    """
    parts_BF = torch.zeros(len(texts), len(functions))
    for column, (name, function) in enumerate(functions.items()):
        with no_system_exit(f"reward {name}"):
            rewards = [function(p, text) for p, text in zip(problems_B, texts, strict=True)]
        record(name, rewards)
        parts_BF[:, column] = torch.tensor([torch.nan if r is None else r for r in rewards])
    return parts_BF


def weighted_outcomes(parts_BF: torch.Tensor, weights_F: torch.Tensor) -> torch.Tensor:
    """Return outcomes_B, the weighted sum over the functions that apply; NaN where none does."""
    weighted_BF = parts_BF * weights_F.to(parts_BF.device)
    outcomes_B = weighted_BF.nansum(dim=1)
    outcomes_B[weighted_BF.isnan().all(dim=1)] = torch.nan
    return outcomes_B


def step_reward_tokens(
    step_rewards: StepRewards,
    tokenizer: PreTrainedTokenizerBase,
    problems_B: Sequence[Problem],
    texts: Sequence[str],
    ids: Sequence[list[int]],
) -> list[list[tuple[int, float]] | None]:
    """Return (token index, reward) of each step of each completion; None for a completion without a
    verdict."""
    steps: list[list[tuple[int, float]] | None] = []
    for problem, text, tokens in zip(problems_B, texts, ids, strict=True):
        with no_system_exit("step_rewards"):
            found = step_rewards(problem, text)
            offsets = None if found is None else list(found)
        ends = token_end_offsets(tokenizer, tokens) if offsets else [0]
        steps.append(None if offsets is None else offsets_to_tokens(offsets, ends))
    return steps


# ---- scores ----


@torch.no_grad()
def score_rollout(score: Callable[..., Scores], rollout: Rollout, size: int = 32) -> Scores:
    """Score a rollout in chunks of `size` sequences of similar length.

    `score` takes (prompt_ids_BP, mask_prompt_BP, completion_ids_BC, mask_completion_BC).
    """
    lengths_B = rollout.mask_prompt_BP.sum(dim=1) + rollout.mask_completion_BC.sum(dim=1)
    order = lengths_B.argsort()
    chunks = [
        score(
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


def rollout_of_ids(
    prompts: list[list[int]], completions: list[list[int]], pad_id: int, end_ids: Iterable[int]
) -> Rollout:
    """Return the padded rollout of completions that another engine sampled, without scores.

    Log-probabilities and values are 0; a completion whose last token is no end token is truncated.
    """
    ends = set(end_ids)
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
        truncated_B=torch.tensor([ids[-1] not in ends for ids in completions]),
    )


def rollout_to(rollout: Rollout, device: torch.device) -> Rollout:
    """Return the rollout on a device."""
    return Rollout(**{name: tensor.to(device) for name, tensor in vars(rollout).items()})


# ---- training batch ----


def training_batch(
    scored: ScoredRollout,
    counts_B: torch.Tensor,
    options: PPOOptions,
    log: PPOLog,
    *,
    kl: FixedKL,
    ref_logprobs_BC: torch.Tensor | None = None,
    training: bool = True,
) -> tuple[Batch, torch.Tensor, float | None]:
    """Return (batch, rewards_BC, mean KL from the reference): what the update reads.

    A completion that does not count, or has no outcome, has no token in `completion_mask`. The mean
    KL is over the tokens of all processes; None without reference or tokens.
    """
    rollout = scored.rollout
    has_outcome_B = ~scored.outcomes_B.isnan()
    mask_BC = rollout.mask_completion_BC & (has_outcome_B & counts_B).unsqueeze(1)
    rewards_BC = _rewards(scored, has_outcome_B, options, log, training=training) * mask_BC
    batch, mean_kl = {}, None
    if ref_logprobs_BC is not None:
        kl_BC = kl_charge(
            rollout.logprobs_BC, ref_logprobs_BC, mask_BC, estimator=options.kl_estimator
        )
        if options.kl_in == "reward":
            rewards_BC = rewards_BC - kl.coef * kl_BC
        else:
            batch["ref_logprobs"] = ref_logprobs_BC
        mean_kl = log.means({"kl": kl_BC}, mask_BC).get("kl")
        log.add("kl_coef", kl.coef)
    whole_groups = len(mask_BC) % options.completions_per_question == 0
    advantages_BC, returns_BC = estimate_advantages(
        rewards_BC,
        rollout.values_BC,
        mask_BC,
        gamma=options.gamma,
        lam=options.lam,
        value_lam=options.value_lam,
        lam_alpha=options.lam_alpha,
        rloo_group=options.completions_per_question
        if options.rloo_baseline and training and whole_groups
        else None,
        step_lam=options.step_lam,
        steps=scored.steps,
    )
    if options.normalize_advantages == "batch" or not training:
        sums = log.accelerator.reduce(masked_sums(advantages_BC, mask_BC), reduction="sum")
        advantages_BC = standardize(advantages_BC, mask_BC, masked_moments(sums))
    elif options.normalize_advantages == "group":
        group = options.completions_per_question
        advantages_BC = standardize_groups(advantages_BC, mask_BC, group)
    kept = (x_BC[mask_BC].float().cpu().numpy() for x_BC in (rollout.values_BC, returns_BC))
    log.add("explained_variance", explained_variance(*kept))
    log.means({"value": rollout.values_BC, "return": returns_BC}, mask_BC)
    if options.positive_nll_coef:
        batch["right"] = scored.outcomes_B >= options.right_outcome
    batch |= {
        "prompt_ids": rollout.prompt_ids_BP,
        "prompt_mask": rollout.mask_prompt_BP,
        "completion_ids": rollout.completion_ids_BC,
        "completion_mask": mask_BC,
        "old_logprobs": rollout.logprobs_BC,
        "old_values": rollout.values_BC,
        "advantages": advantages_BC,
        "returns": returns_BC,
    }
    return batch, rewards_BC, mean_kl


def without_tokens(batch: Batch) -> Batch:
    """Return the batch with an empty completion mask and every float 0, so that it has no loss."""
    return {
        name: torch.zeros_like(x) if x.is_floating_point() or name == "completion_mask" else x
        for name, x in batch.items()
    }


def _rewards(
    scored: ScoredRollout,
    has_outcome_B: torch.Tensor,
    options: PPOOptions,
    log: PPOLog,
    *,
    training: bool,
) -> torch.Tensor:
    """Return rewards_BC: step rewards on their tokens, the outcome on the last token, less the
    overlong penalty in training."""
    rollout = scored.rollout
    outcomes_B = torch.where(has_outcome_B, scored.outcomes_B, 0.0)
    if options.overlong_penalty and training:
        overlong_B = overlong(
            rollout.mask_completion_BC.sum(dim=1),
            rollout.truncated_B,
            budget=options.max_completion_length,
            buffer=options.overlong_buffer,
        )
        outcomes_B = outcomes_B - options.overlong_penalty * overlong_B
        share = log.accelerator.reduce(overlong_B.mean(), reduction="mean")
        log.add("reward/overlong", -options.overlong_penalty * share.item())
    return place_rewards(outcomes_B, rollout.mask_completion_BC, scored.steps)
