"""Where V of the policy's advantages comes from: the value head, the verifier, or sampling.

The value head reads one hidden state and ranks the completions of a question at chance early in
training. Other sources are used through the same GAE (`value_source`):

    none          0: the advantages are those of the other completions or of the rewards alone
    verifier      the network of pipeline.verifier.online, at every token
    model         a value network with a trunk of its own (pipeline.ppo.value_model)
    monte_carlo   mean return of completions sampled on from the end of each step
                  (pipeline.ppo.monte_carlo)

The last three are V of outcome and step rewards, without the KL and the overlong penalty. The value
head is trained on its own values whatever the source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from pipeline.chat.tags import END_THINK
from pipeline.chat.token_offsets import step_end_ids
from pipeline.model import Verifier
from pipeline.model.verifier import FEATURES
from pipeline.ppo.advantages import place_rewards
from pipeline.ppo.groups import ScoredRollout
from pipeline.ppo.metrics import PPOLog
from pipeline.records import Rollout
from pipeline.verifier.online import (
    OnlineVerifier,
    VerifierStates,
    new_verifier,
    verifier_states,
)


@dataclass(frozen=True)
class TokenValues:
    """V before each token, in units of the return that is still to come."""

    values_BC: torch.Tensor
    step_ends: Sequence[Sequence[int]] | None = None  # last token of each step; None: no steps


class ValueSource(Protocol):
    """Estimates V of the completions of a rollout."""

    def __call__(
        self, scored: ScoredRollout, counts_B: torch.Tensor, step: int, log: PPOLog
    ) -> TokenValues | None:
        """Return V of the completions where counts_B is True; None: use the value head's.

        `step` is a part of the seed of what is sampled.
        """
        ...


class NoValues:
    """V of 0 at every token, for advantages without a critic (REINFORCE, RLOO, GRPO)."""

    def __call__(
        self, scored: ScoredRollout, counts_B: torch.Tensor, step: int, log: PPOLog
    ) -> TokenValues:
        """Return zeros; only the shape of `scored` is read."""
        return TokenValues(torch.zeros_like(scored.rollout.values_BC))


@dataclass(frozen=True)
class VerifierValues:
    """V from the verifier as it was before it is fitted to this rollout.

    With p the verifier's probability of a right answer, M1 and M0 the mean returns of the right and
    of the wrong completions of the rollout, and G_t the rewards before token t,

        V_t = p_t * M1 + (1 - p_t) * M0 - G_t

    In the first rollout the verifier has not been fitted, and the value head's V is used.

    Args:
        right_outcome: lowest outcome of a right completion.
    """

    verifier: OnlineVerifier
    right_outcome: float

    def __call__(
        self, scored: ScoredRollout, counts_B: torch.Tensor, step: int, log: PPOLog
    ) -> TokenValues | None:
        """Return V at every token; `counts_B` and `step` have no effect."""
        if not self.verifier.rollouts:
            return None
        return TokenValues(
            verifier_values(
                self.verifier.verifier, scored, right_outcome=self.right_outcome, log=log
            )
        )


@dataclass(frozen=True)
class CrossFittedVerifier:
    """V from a verifier that is fitted to one half of the questions, for the other half.

    For samples of one policy, where no earlier rollout exists. No completion's V depends on its own
    outcome.

    Args:
        group: completions of a question, side by side.
        right_outcome: lowest outcome of a right completion.
        steps: of AdamW, over all states of a half.
        learning_rate: of AdamW.
    """

    tokenizer: PreTrainedTokenizerBase
    group: int
    right_outcome: float
    steps: int = 300
    learning_rate: float = 3e-3

    def __call__(
        self, scored: ScoredRollout, counts_B: torch.Tensor, step: int, log: PPOLog
    ) -> TokenValues:
        """Return V at every token; `counts_B` and `step` have no effect."""
        questions = len(scored.outcomes_B) // self.group
        first_B = torch.arange(len(scored.outcomes_B)) // self.group < questions // 2
        values_BC = torch.zeros_like(scored.rollout.values_BC, dtype=torch.float32)
        for here_B in (first_B, ~first_B):
            online = OnlineVerifier(
                new_verifier(seed=0), learning_rate=self.learning_rate, steps=self.steps
            )
            online.learn(self._states(scored, ~here_B), self.group)
            found_BC = verifier_values(
                online.verifier, scored, right_outcome=self.right_outcome, log=log
            )
            values_BC[here_B] = found_BC[here_B].to(values_BC)
        return TokenValues(values_BC)

    def _states(self, scored: ScoredRollout, chosen_B: torch.Tensor) -> VerifierStates:
        rows = {name: x[chosen_B] for name, x in vars(scored.rollout).items()}
        outcomes_B = scored.outcomes_B[chosen_B]
        return verifier_states(
            Rollout(**rows),
            outcomes_B >= self.right_outcome,
            ~outcomes_B.isnan(),
            self.group,
            step_ends=step_end_ids(self.tokenizer),
            end_think_id=self.tokenizer.convert_tokens_to_ids(END_THINK),
        )


@torch.no_grad()
def verifier_values(
    verifier: Verifier, scored: ScoredRollout, *, right_outcome: float, log: PPOLog
) -> torch.Tensor:
    """Return values_BC by the verifier, as `VerifierValues` describes; 0 on padding.

    M1 and M0 are over all processes. Where one of the two does not occur, it equals the other.
    """
    mask_BC = scored.rollout.mask_completion_BC
    known_B = ~scored.outcomes_B.isnan()
    totals_B, right_B = scored.totals().nan_to_num(), scored.outcomes_B >= right_outcome
    parts = [known_B & right_B, known_B & ~right_B]
    sums = torch.stack([x for part_B in parts for x in (totals_B[part_B].sum(), part_B.sum())])
    total1, count1, total0, count0 = log.accelerator.reduce(sums.float(), reduction="sum").tolist()
    mean = (total1 + total0) / max(count1 + count0, 1)
    mean1, mean0 = (total1 / count1 if count1 else mean), (total0 / count0 if count0 else mean)
    features_BCF = token_features(scored.rollout)
    p_BC = verifier(features_BCF.flatten(0, 1).cpu()).view(mask_BC.shape).to(mask_BC.device)
    rewards_BC = place_rewards(totals_B * 0, mask_BC, scored.steps)
    before_BC = rewards_BC.cumsum(dim=1) - rewards_BC
    return (p_BC * mean1 + (1 - p_BC) * mean0 - before_BC) * mask_BC


def token_features(rollout: Rollout) -> torch.Tensor:
    """Return features_BCF: `pipeline.model.verifier_features` of the state before each token."""
    logprobs_BC = (rollout.logprobs_BC * rollout.mask_completion_BC).float()
    blank_B1 = torch.zeros_like(logprobs_BC[:, :1])
    # Of the tokens before each one: the last column is dropped, the first is the prompt alone.
    earlier_BC = torch.cat([blank_B1, logprobs_BC[:, :-1]], dim=1)
    total_BC = earlier_BC.cumsum(dim=1)
    values_BC = rollout.values_BC.float()
    count_C = torch.arange(values_BC.shape[1], device=values_BC.device)
    # Log-probabilities are at most 0, so that the 0 of the prompt is never the lowest.
    by_name = {
        "v": values_BC,
        "v_start": values_BC[:, :1].expand_as(values_BC),
        "logprob": total_BC,
        "sqrt_logprob": -total_BC.neg().clamp_min(0).sqrt(),
        "likelihood": total_BC.clamp_max(0).exp(),
        "lowest": earlier_BC.cummin(dim=1).values,
        "length": count_C.float().log1p().expand_as(values_BC),
        "ended": torch.zeros_like(values_BC),
    }
    return torch.stack([by_name[name] for name in FEATURES], dim=-1)
