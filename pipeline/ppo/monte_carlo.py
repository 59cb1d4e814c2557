"""V by sampling: the mean return of completions that go on from the end of a step.

VinePPO (arXiv:2410.01679) estimates the value of the states between two steps of a thought without
a value head: it samples K completions from each and takes their mean return. With `lam: 1` and
`step_lam: 0` all tokens of a step have the advantage

    A = rewards of the step + V(state after the step) - V(state before the step)

States are the prompt, the ends of the lines of the thought, and the state after `</think>`. Equal
states of a question are sampled once. V of the prompt needs no sampling: it is the mean return of
the question's other completions. Samples from one state share its keys and values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from pipeline.chat.tags import END_THINK
from pipeline.chat.token_offsets import step_end_ids
from pipeline.generation.shared_prefix import DecodeRequest, PrefixEngine
from pipeline.ppo.advantages import leave_one_out
from pipeline.ppo.groups import ScoredRollout
from pipeline.ppo.metrics import PPOLog
from pipeline.ppo.rollout import (
    Row,
    StepRewards,
    completion_texts,
    step_reward_tokens,
    unpad,
)
from pipeline.ppo.values import TokenValues
from pipeline.records import Problem
from pipeline.training.determinism import seeded_generator
from pipeline.training.reward_errors import raise_together

# (prompts, most tokens of each, samples of each, seed) -> the sampled ids, those of a prompt side
# by side, without the prompt
Continue = Callable[[Sequence[list[int]], Sequence[int], int, int], list[list[int]]]
Score = Callable[[list[Row], list[str], list[list[int]]], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class State:
    """A state of a rollout: the prompt of row `row` and its first `length` completion tokens."""

    row: int
    length: int


@dataclass(frozen=True, kw_only=True)
class MonteCarloValues:
    """V of the states between steps, by `samples` completions of each.

    Args:
        group: completions of a question, side by side in a rollout.
        budget: most tokens of a completion, of which those of the state count.
        go_on: samples completions of given prompts.
        score: (rows, texts, ids) -> (outcomes, ...), as the collector's.
        seed: of the samples, with step and process.
    """

    samples: int
    group: int
    budget: int
    go_on: Continue
    score: Score
    tokenizer: PreTrainedTokenizerBase
    end_ids: Sequence[int]
    accelerator: Accelerator
    seed: int
    problems: Sequence[Problem] = ()
    step_rewards: StepRewards | None = None

    def __call__(
        self, scored: ScoredRollout, counts_B: torch.Tensor, step: int, log: PPOLog
    ) -> TokenValues:
        """Return V, constant over the tokens of a step, and the last token of each step."""
        ids = unpad(scored.rollout.completion_ids_BC, scored.rollout.mask_completion_BC)
        starts = self.step_starts(ids)
        counts = counts_B.tolist()
        states = self._states(ids, starts, counts)
        values = self._sampled_values(scored, ids, states, step, log)
        first_B = leave_one_out(scored.totals(), self.group).tolist()
        values_BC = torch.zeros(scored.rollout.values_BC.shape)
        for b, places in enumerate(starts):
            if not counts[b]:
                continue
            sampled = [values[_key(ids, b, place, self.group)] for place in places[1:]]
            for place, value in zip(places, [first_B[b], *sampled], strict=True):
                values_BC[b, place : len(ids[b])] = value
        ends = [[place - 1 for place in places[1:]] for places in starts]
        return TokenValues(values_BC.to(scored.rollout.values_BC.device), ends)

    def step_starts(self, ids: Sequence[list[int]]) -> list[list[int]]:
        """Return, for each completion, the index of the first token of each of its steps."""
        ends = step_end_ids(self.tokenizer)
        end_think_id = self.tokenizer.convert_tokens_to_ids(END_THINK)
        return [step_starts(row, ends, end_think_id) for row in ids]

    def _states(
        self, ids: Sequence[list[int]], starts: Sequence[Sequence[int]], counts: Sequence[bool]
    ) -> list[State]:
        """Return the distinct states to sample from, each with the first completion that has it."""
        found: dict[tuple[int, tuple[int, ...]], State] = {}
        for b, places in enumerate(starts):
            for place in places[1:] if counts[b] else ():
                found.setdefault(_key(ids, b, place, self.group), State(b, place))
        return list(found.values())

    def _sampled_values(
        self,
        scored: ScoredRollout,
        ids: Sequence[list[int]],
        states: Sequence[State],
        step: int,
        log: PPOLog,
    ) -> dict[tuple[int, tuple[int, ...]], float]:
        """Return the mean return of the samples from each state, by its key."""
        rollout, samples = scored.rollout, self.samples
        prompts_B = unpad(rollout.prompt_ids_BP, rollout.mask_prompt_BP)
        generator = seeded_generator(self.seed, self.accelerator.process_index, "monte carlo", step)
        drawn = int(torch.randint(2**31, (), generator=generator))
        prompts = [prompts_B[state.row] + ids[state.row][: state.length] for state in states]
        budgets = [self.budget - state.length for state in states]
        # Also without states: where the weights are divided, all processes gather them together.
        new = self.go_on(prompts, budgets, samples, drawn)
        owners = [state for state in states for _ in range(samples)]
        whole = [ids[s.row][: s.length] + own for s, own in zip(owners, new, strict=True)]
        returns = self._returns([s.row for s in owners], whole, [s.length for s in owners], scored)
        counts = torch.tensor([len(states), sum(map(len, new))], device=self.accelerator.device)
        counts = self.accelerator.reduce(counts.float(), reduction="sum").tolist()
        log.add_all(dict(zip(("monte_carlo/states", "monte_carlo/tokens"), counts, strict=True)))
        means_S = returns.view(-1, samples).nanmean(dim=1).nan_to_num().tolist()
        keys = [_key(ids, state.row, state.length, self.group) for state in states]
        return dict(zip(keys, means_S, strict=True))

    def _returns(
        self,
        rows: list[int],
        ids: list[list[int]],
        lengths: list[int],
        scored: ScoredRollout,
    ) -> torch.Tensor:
        """Return returns_N: outcome and step rewards from token `length` on; NaN without verdict.

        Reward functions are called as often on all processes, because rewards are gathered.
        """
        count = torch.tensor([len(rows)], device=self.accelerator.device)
        most = int(self.accelerator.gather(count).max())
        if not most:
            return torch.zeros(0)
        missing = most - len(rows)
        filler = unpad(scored.rollout.completion_ids_BC[:1], scored.rollout.mask_completion_BC[:1])
        ids_N = ids + filler * missing
        rows_N: list[Row] = [dict(scored.rows_B[row]) for row in rows + [0] * missing]
        texts = completion_texts(self.tokenizer, ids_N, self.end_ids)
        outcomes_N = self.score(rows_N, texts, ids_N)[0][: len(rows)].cpu()
        if self.step_rewards is None:
            return outcomes_N
        problems = [self.problems[row["problem"]] for row in rows_N[: len(rows)]]
        with raise_together(self.accelerator):
            steps = step_reward_tokens(
                self.step_rewards, self.tokenizer, problems, texts[: len(rows)], ids
            )
        later = [
            torch.nan if found is None else sum(r for token, r in found if token >= length)
            for found, length in zip(steps, lengths, strict=True)
        ]
        return outcomes_N + torch.tensor(later)


def step_starts(ids: Sequence[int], step_ends: frozenset[int], end_think_id: int) -> list[int]:
    """Return the index of the first token of each step: the prompt's state, the states after each
    line of the thought, and the state after END_THINK; never beyond the last token.

    >>> step_starts([5, 2, 6, 3, 7, 0], frozenset([2]), end_think_id=3)
    [0, 2, 4]
    """
    closed = ids.index(end_think_id) if end_think_id in ids else len(ids)
    ends = [c + 1 for c, token in enumerate(ids[:closed]) if token in step_ends] + [closed + 1]
    return [0, *(place for place in dict.fromkeys(ends) if place < len(ids))]


def continuations(
    engine: PrefixEngine,
    prompts: Sequence[list[int]],
    budgets: Sequence[int],
    samples: int,
    seed: int,
    *,
    temperature: float,
) -> list[list[int]]:
    """Return the ids of `samples` continuations of each prompt, side by side.

    A continuation ends with an end token or after its prompt's budget of tokens.
    """
    sequences = engine.start(prompts)
    requests = [
        DecodeRequest(
            sequence=sequence, budget=budget, stream=(seed, index, k), temperature=temperature
        )
        for index, (sequence, budget) in enumerate(zip(sequences, budgets, strict=True))
        for k in range(samples)
    ]
    return [list(sequence.ids) for sequence in engine.extend(requests)]


def _key(
    ids: Sequence[list[int]], row: int, length: int, group: int
) -> tuple[int, tuple[int, ...]]:
    """Return (question, tokens so far), equal for equal states."""
    return row // group, tuple(ids[row][:length])
