"""Texts, rewards and scores of a rollout: pure functions of tensors, texts and callables.

A trainer brings the model and the sampler; `pipeline.ppo.batch` makes the training batch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from pipeline.chat.prompts import Question
from pipeline.chat.token_offsets import (
    decode_completions,
    offsets_to_tokens,
    token_end_offsets,
)
from pipeline.generation.kv_cache import pad_left
from pipeline.records import Problem, Rollout
from pipeline.scoring import Scores
from pipeline.training.reward_errors import reward_errors, reward_number, reward_steps
from pipeline.training.token_budget import MostOfProcesses, cut_by_tokens, into_parts, one_process

T = TypeVar("T")
Row = dict[str, Any]  # of a data set
# (problem, completion) -> reward, or None where the function does not apply
RewardFn = Callable[[Problem, str], float | None]
# (problem, completion) -> (character offset in the completion, reward) of each step, or None where
# the completion has no verdict
StepRewards = Callable[[Problem, str], Sequence[tuple[int, float]] | None]


def question_of(prompt: Question) -> Question:
    """Return the question of a prompt: plain text, or messages that end in one of the user.

    Raises:
        ValueError: the last message is not of the user.

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
    """Decode completions, each without its end token, which may be any of `end_ids`, with the tags
    of `decode_completions`."""
    ends = set(end_ids)
    return decode_completions(tokenizer, [row[:-1] if row[-1] in ends else row for row in ids])


# ---- rewards ----


def reward_parts(
    functions: Mapping[str, RewardFn],
    problems_B: Sequence[Problem],
    texts: Sequence[str],
    record: Callable[[str, list[float | None]], None] = lambda name, rewards: None,
) -> torch.Tensor:
    """Return parts_BF: the reward of each completion (row) by each function (column), float32.

    A function that returns None does not apply; its entry is NaN. `record` receives what each
    function returned, before None becomes NaN. RewardError names a function that fails.
    """
    parts_BF = torch.zeros(len(texts), len(functions))
    for column, (name, function) in enumerate(functions.items()):
        title = f"reward {name}"
        with reward_errors(title, function):
            rewards = [
                reward_number(title, function, function(p, text))
                for p, text in zip(problems_B, texts, strict=True)
            ]
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
    verdict. RewardError names a function that fails."""
    steps: list[list[tuple[int, float]] | None] = []
    for problem, text, tokens in zip(problems_B, texts, ids, strict=True):
        with reward_errors("step_rewards", step_rewards):
            offsets = reward_steps("step_rewards", step_rewards, step_rewards(problem, text))
        ends = token_end_offsets(tokenizer, tokens) if offsets else [0]
        steps.append(None if offsets is None else offsets_to_tokens(offsets, ends))
    return steps


# ---- scores ----


@torch.no_grad()
def score_rollout(
    score: Callable[..., Scores],
    rollout: Rollout,
    size: int | None = 32,
    max_tokens: int | None = None,
    *,
    padded: bool = True,
    most_of_processes: MostOfProcesses = one_process,
) -> Scores:
    """Score a rollout in chunks of sequences of similar length.

    Args:
        score: of (prompt_ids_BP, mask_prompt_BP, completion_ids_BC, mask_completion_BC).
        size: most sequences of a chunk; None: no limit.
        max_tokens: most tokens of a chunk, at least one sequence; None: no limit.
        padded: whether `score` pads a chunk to its longest sequence.
        most_of_processes: the largest of the processes' numbers of chunks, where all must have the
            same number because they share a sharded model.
    """
    lengths_B = rollout.mask_prompt_BP.sum(dim=1) + rollout.mask_completion_BC.sum(dim=1)
    order = lengths_B.argsort()
    lengths = lengths_B[order].tolist()
    limit = max_tokens or len(lengths) * max(lengths)
    sizes = cut_by_tokens(lengths, limit, max_rows=size, padded=padded)
    sizes = into_parts(sizes, most_of_processes([len(sizes)])[0])
    chunks = [
        score(
            rollout.prompt_ids_BP[rows],
            rollout.mask_prompt_BP[rows],
            rollout.completion_ids_BC[rows],
            rollout.mask_completion_BC[rows],
        )
        for rows in order.split(sizes)
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
