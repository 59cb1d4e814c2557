"""Fit a value head and a verifier to stored samples of a policy whose trunk is frozen.

Every completion gives states (the prompt, the end of each step, the last token), each with a Monte
Carlo target: 1 if the completion's answer is correct. The trunk is evaluated once and not trained;
two small networks are fitted one after the other:

    value head   V of the hidden state, by squared error
    verifier     probability of a correct answer from V and the path's likelihood, by cross entropy

To both losses a term is added that depends only on differences within a group, the states of one
question at the same step, since a loss over all states is reduced by learning which questions are
hard:

    centred = mean of ((v - mean of v) - (y - mean of y))^2, with means over the group
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.hf_argparser import HfArg

from pipeline.chat.prompts import encode_prompts
from pipeline.chat.tags import END_THINK, split_ids
from pipeline.chat.token_offsets import step_end_ids
from pipeline.config import (
    Bounds,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Required,
    check_types,
)
from pipeline.generation import Sampler
from pipeline.generation.kv_cache import pad_left
from pipeline.grading import grade
from pipeline.model import ValueHead, Verifier, verifier_features
from pipeline.records import Problem

FINAL_STEP = 10_000  # step index of the state before the last token, for any number of steps


@dataclass
class VerifierConfig:
    """Sampling and training settings of the verifier."""

    output_dir: Required = HfArg(default="", help="checkpoint folder to write")
    rollouts: str | None = HfArg(
        default=None, help="file of stored samples; default: rollouts.jsonl in output_dir"
    )
    completions_per_question: Annotated[
        int, Bounds(ge=2, why="one sample leaves nothing to compare within a question")
    ] = HfArg(default=8, help="samples per question")
    temperature: Annotated[float, Bounds(gt=0, why="at 0 all samples are equal")] = HfArg(
        default=1.0, help="sampling temperature"
    )
    max_completion_length: PositiveInt = HfArg(default=160, help="most tokens of a sample")
    batch_size: PositiveInt = HfArg(default=256, help="sequences sampled in one batch")
    held_out: Annotated[float, Bounds(gt=0, lt=1)] = HfArg(
        default=0.2, help="share of the questions kept for evaluation"
    )
    value_hidden: PositiveInt | None = HfArg(
        default=None, help="width of a hidden layer of the value head; default: linear"
    )
    verifier_hidden: PositiveInt = HfArg(default=32, help="width of the verifier's hidden layer")
    centred_coef: NonNegativeFloat = HfArg(default=1.0, help="weight of the centred loss")
    verifier_epochs: PositiveInt = HfArg(default=20, help="epochs over the states")
    verifier_learning_rate: PositiveFloat = HfArg(
        default=3e-3, help="decays to a tenth over the epochs"
    )
    seed: int = HfArg(default=42, help="of sampling and training")

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One completion of question q and whether its answer is correct."""

    q: int
    prompt_ids: list[int]
    ids: list[int]
    right: bool


@dataclass(frozen=True, kw_only=True)
class States:
    """Inputs and targets of the two networks, one row per state.

    hidden_ND   input of the value head
    paths_N     (log-probabilities of the tokens before the state, row of the prompt's state, ended)
    """

    hidden_ND: torch.Tensor
    paths_N: list[tuple[list[float], int, bool]]
    right_N: torch.Tensor  # 1.0 if the completion's answer is correct
    question_N: torch.Tensor
    step_N: torch.Tensor  # number of steps before the state; FINAL_STEP before the last token

    def features(self, values_N: torch.Tensor) -> torch.Tensor:
        """(N, F) inputs of the verifier, given V of every state."""
        values = values_N.tolist()
        rows = [
            verifier_features(logprobs, values[start], value, ended=ended)
            for (logprobs, start, ended), value in zip(self.paths_N, values, strict=True)
        ]
        return torch.tensor(rows)

    def select(self, rows: torch.Tensor) -> "States":
        """The given rows, which must include those of their prompts."""
        back = {int(old): new for new, old in enumerate(rows)}
        paths = [self.paths_N[int(i)] for i in rows]
        return States(
            hidden_ND=self.hidden_ND[rows],
            paths_N=[(logprobs, back[start], ended) for logprobs, start, ended in paths],
            right_N=self.right_N[rows],
            question_N=self.question_N[rows],
            step_N=self.step_N[rows],
        )


def draw_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    config: VerifierConfig,
    progress: Callable[[int], None] | None = None,
) -> list[Sample]:
    """`completions_per_question` samples of each problem, graded as in the evaluation.

    Completions without a verdict are left out.
    """
    prompts = encode_prompts(tokenizer, [p.prompt for p in problems])
    sampler = Sampler(
        model,
        tokenizer,
        temperature=config.temperature,
        max_new_tokens=config.max_completion_length,
        seed=config.seed,
        batch_size=config.batch_size,
    )
    group = config.completions_per_question
    rollout = sampler.sample(prompts, group=group, progress=progress)
    end_think_id = tokenizer.convert_tokens_to_ids(END_THINK)
    samples = []
    for b, mask_C in enumerate(rollout.mask_completion_BC):
        ids = rollout.completion_ids_BC[b][mask_C].tolist()
        _, visible = split_ids(ids, end_think_id)
        text = tokenizer.decode(visible, skip_special_tokens=True)
        right = False if rollout.truncated_B[b] else grade(problems[b // group], text).right
        if right is not None:
            samples.append(
                Sample(q=b // group, prompt_ids=prompts[b // group], ids=ids, right=right)
            )
    return samples


@torch.no_grad()
def read_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    *,
    batch_size: int = 64,
) -> States:
    """The states of all samples, with one forward per sample."""
    steps = step_end_ids(tokenizer)
    end_think_id = tokenizer.convert_tokens_to_ids(END_THINK)
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].prompt_ids + samples[i].ids))
    found: dict[int, tuple] = {}
    for i in range(0, len(order), batch_size):
        part = order[i : i + batch_size]
        found |= dict(zip(part, _forward(model, [samples[j] for j in part]), strict=True))
    hidden, targets = [], []
    paths: list[tuple[list[float], int, bool]] = []
    for i, sample in enumerate(samples):
        states_CD, logprobs = found[i]
        start = len(paths)
        for position, step, ended in state_positions(sample.ids, steps, end_think_id):
            hidden.append(states_CD[position])
            paths.append((logprobs[: position + ended], start, ended))
            targets.append((float(sample.right), sample.q, step))
    right, question, step = zip(*targets, strict=True)
    return States(
        hidden_ND=torch.stack(hidden),
        paths_N=paths,
        right_N=torch.tensor(right),
        question_N=torch.tensor(question),
        step_N=torch.tensor(step),
    )


def state_positions(ids: list[int], steps: frozenset[int], end_think_id: int) -> list[tuple]:
    """(tokens before the state, its step, ended) of the states that a search evaluates.

    They are those after the prompt, after each line of thought, and before the last token.
    """
    closed = ids.index(end_think_id) if end_think_id in ids else len(ids)
    ends = [c + 1 for c, token in enumerate(ids[:closed]) if token in steps]
    steps_done = [(end, k + 1, False) for k, end in enumerate(ends) if end < len(ids)]
    return [(0, 0, False), *steps_done, (len(ids) - 1, FINAL_STEP, True)]


def _forward(model: PreTrainedModel, samples: list[Sample]) -> list[tuple]:
    """(inputs of the value head before each token (C, D), log-probabilities) of each sample."""
    whole = [s.prompt_ids + s.ids for s in samples]
    reversed_BT, _ = pad_left([ids[::-1] for ids in whole], 0)
    ids_BT = reversed_BT.flip(1).to(model.device)  # padded right: no mask needed
    inputs: list[torch.Tensor] = []
    hook = model.value_head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        logits_BTV = model(input_ids=ids_BT, use_cache=False)["logits"]
    finally:
        hook.remove()
    logprobs_BT = -nn.functional.cross_entropy(
        logits_BTV[:, :-1].transpose(1, 2).float(), ids_BT[:, 1:], reduction="none"
    )
    found = []
    for b, sample in enumerate(samples):
        first, last = len(sample.prompt_ids) - 1, len(whole[b]) - 1
        found.append((inputs[0][b, first:last].float().cpu(), logprobs_BT[b, first:last].tolist()))
    return found


def fit_value_head(states: States, config: VerifierConfig) -> ValueHead:
    """A value head trained on the states' outcomes."""
    torch.manual_seed(config.seed)
    head = ValueHead(states.hidden_ND.shape[1], hidden=config.value_hidden)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        values_N, right_N = head(states.hidden_ND[rows]), states.right_N[rows]
        centred = centred_loss(values_N, right_N, _groups(states, rows))
        return (values_N - right_N).square().mean() + config.centred_coef * centred

    _fit(head, loss, states, config)
    return head.eval()


def fit_verifier(states: States, values_N: torch.Tensor, config: VerifierConfig) -> Verifier:
    """A verifier trained on the states' outcomes, given V of every state."""
    torch.manual_seed(config.seed)
    verifier = Verifier(config.verifier_hidden)
    features_NF = states.features(values_N)
    verifier.standardize(features_NF)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        logits_N, right_N = verifier.logits(features_NF[rows]), states.right_N[rows]
        centred = centred_loss(torch.sigmoid(logits_N), right_N, _groups(states, rows))
        pooled = nn.functional.binary_cross_entropy_with_logits(logits_N, right_N)
        return pooled + config.centred_coef * centred

    _fit(verifier, loss, states, config)
    return verifier.eval()


def centred_loss(
    values_N: torch.Tensor, targets_N: torch.Tensor, group_N: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of values and targets, each centred within its group.

    An error that is equal for all members of a group costs nothing.

    >>> group = torch.tensor([0, 0])
    >>> centred_loss(torch.tensor([5.0, 6.0]), torch.tensor([0.0, 1.0]), group).item()
    0.0
    """
    difference_N = values_N - targets_N
    _, group_N = group_N.unique(return_inverse=True)
    sums = torch.zeros(int(group_N.max()) + 1).index_add(0, group_N, difference_N)
    counts = torch.bincount(group_N).clamp_min(1)
    return (difference_N - (sums / counts)[group_N]).square().mean()


def _groups(states: States, rows: torch.Tensor) -> torch.Tensor:
    """Group index of each row: states of one question and step share it."""
    return states.question_N[rows] * (2 * FINAL_STEP) + states.step_N[rows]


def _fit(
    network: nn.Module,
    loss: Callable[[torch.Tensor], torch.Tensor],
    states: States,
    config: VerifierConfig,
    questions: int = 64,
) -> None:
    """Train with AdamW on minibatches of whole questions; the learning rate decays to a tenth."""
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.verifier_learning_rate, weight_decay=0.05
    )
    decay = 0.1 ** (1 / config.verifier_epochs)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, decay)
    generator = torch.Generator().manual_seed(config.seed)
    known = states.question_N.unique()
    of_question = {int(q): (states.question_N == q).nonzero().squeeze(1) for q in known}
    for _ in range(config.verifier_epochs):
        for part in known[torch.randperm(len(known), generator=generator)].split(questions):
            rows = torch.cat([of_question[int(q)] for q in part])
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
        schedule.step()
