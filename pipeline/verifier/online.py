"""Fit the verifier during PPO, from the rollouts.

A completion gives states (after the prompt, after each line of thought, before the last token) with
their features (V and log-probabilities so far) and the label whether the answer is right. Each
rollout is a few optimizer steps, after its rewards are known and before the policy is updated; no
gradient reaches the policy. The loss is that of `pipeline.verifier.offline`, which fits the same
network to stored samples of a fixed policy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import nn

from pipeline.model import Verifier, attach_verifier, is_adapted, verifier_features
from pipeline.records import Rollout
from pipeline.stats.ranking import within_question_auroc_pooled
from pipeline.verifier.offline import FINAL_STEP, centred_loss, state_positions

KEEP = 0.9  # decay of the running mean and standard deviation of the features, per rollout


@dataclass(frozen=True)
class VerifierStates:
    """Features and labels of the states of a rollout, N in all."""

    features_NF: torch.Tensor
    right_N: torch.Tensor  # 1.0 where the completion's answer is right
    group_N: torch.Tensor  # the same number for states of one question at the same step
    last_B: torch.Tensor  # the state of each completion's last token; -1 without an outcome


def verifier_states(
    rollout: Rollout,
    right_B: torch.Tensor,
    has_outcome_B: torch.Tensor,
    group: int,
    *,
    step_ends: frozenset[int],
    end_think_id: int,
) -> VerifierStates:
    """Return the states of a rollout, without completions that have no outcome.

    Args:
        step_ends: ids of tokens that end a line of thought.
    """
    features, rights, groups, last = [], [], [], []
    lengths = rollout.mask_completion_BC.sum(dim=1).tolist()
    # Converted at once: reading single elements of a tensor is slow, above all on a GPU.
    ids, values = rollout.completion_ids_BC.tolist(), rollout.values_BC.float().tolist()
    logprobs = rollout.logprobs_BC.float().tolist()
    known, right = has_outcome_B.tolist(), right_B.tolist()
    for b, length in enumerate(lengths):
        if known[b]:
            for place, step, ended in state_positions(ids[b][:length], step_ends, end_think_id):
                path = logprobs[b][: place + ended]
                start, value = values[b][0], values[b][place]
                features.append(verifier_features(path, start, value, ended=ended))
                rights.append(float(right[b]))
                groups.append(b // group * (2 * FINAL_STEP) + step)
        last.append(len(features) - 1 if known[b] else -1)
    width = len(verifier_features([], 0.0, 0.0, ended=False))
    return VerifierStates(
        features_NF=torch.tensor(features).view(-1, width),
        right_N=torch.tensor(rights),
        group_N=torch.tensor(groups, dtype=torch.long),
        last_B=torch.tensor(last),
    )


class VerifierState(TypedDict):
    """State of an OnlineVerifier: its rollouts, weights and the optimizer's state by parameter."""

    rollouts: int
    weights: dict[str, list]
    optimizer: list[dict[str, list]]


class OnlineVerifier:
    """A verifier and its optimizer. `average` returns a tensor's mean over all processes."""

    def __init__(
        self,
        verifier: Verifier,
        *,
        learning_rate: float,
        steps: int,
        average: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    ):
        self.verifier, self.steps, self.average = verifier, steps, average
        self.parameters = list(verifier.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=0.05)
        self.rollouts = 0

    def learn(self, states: VerifierStates, group: int) -> dict[str, float]:
        """Take the optimizer steps of one rollout; return its metrics from before them, on
        completions that the verifier has not been trained on."""
        self._standardize(states.features_NF)
        metrics = self._metrics_of(states, group)
        for _ in range(self.steps):
            self.optimizer.zero_grad(set_to_none=False)
            loss = self._loss(states)
            loss.backward()
            grads = torch.cat([p.grad.flatten() for p in self.parameters])
            parts = self.average(grads).split([p.numel() for p in self.parameters])
            for parameter, part in zip(self.parameters, parts, strict=True):
                parameter.grad.copy_(part.view_as(parameter))
            self.optimizer.step()
        self.rollouts += 1
        return metrics

    def _loss(self, states: VerifierStates) -> torch.Tensor:
        if not len(states.right_N):  # no outcome on this process; others may have some
            return sum(p.sum() * 0.0 for p in self.parameters)
        logits_N = self.verifier.logits(states.features_NF)
        pooled = nn.functional.binary_cross_entropy_with_logits(logits_N, states.right_N)
        return pooled + centred_loss(torch.sigmoid(logits_N), states.right_N, states.group_N)

    @torch.no_grad()
    def _standardize(self, features_NF: torch.Tensor) -> None:
        """Update the running mean and standard deviation of the features."""
        count = features_NF.new_tensor([float(len(features_NF))])
        sums = [count, features_NF.sum(dim=0), features_NF.square().sum(dim=0)]
        count, total_F, square_F = self.average(torch.cat(sums)).split(
            [1, *[features_NF.shape[1]] * 2]
        )
        if not count:
            return
        mean_F = total_F / count
        std_F = (square_F / count - mean_F.square()).clamp_min(0).sqrt()
        keep = KEEP if self.rollouts else 0.0
        self.verifier.mean.lerp_(mean_F, 1 - keep)
        self.verifier.scale.lerp_(std_F.clamp_min(1e-3), 1 - keep)

    @torch.no_grad()
    def _metrics_of(self, states: VerifierStates, group: int) -> dict[str, float]:
        """Return the loss and the AUROC within questions, over the states of all processes."""
        whole_Q = (states.last_B >= 0).view(-1, group).all(dim=1)
        last_QG = states.last_B.view(-1, group)[whole_Q]
        within, pairs = 0.0, 0
        if len(last_QG):
            scores_N = self.verifier(states.features_NF)[last_QG.flatten()].cpu().numpy()
            right_N = states.right_N[last_QG.flatten()].cpu().numpy()
            question_N = np.arange(len(last_QG)).repeat(group)
            right_Q = right_N.reshape(-1, group).sum(axis=1)
            pairs = int((right_Q * (group - right_Q)).sum())
            if pairs:
                within = within_question_auroc_pooled(scores_N, right_N, question_N)
        count, loss = len(states.right_N), self._loss(states).item()
        sums = self.average(torch.tensor([loss * count, count, within * pairs, pairs]))
        loss, count, won, pairs = sums.tolist()
        metrics = {"verifier/loss": loss / count if count else 0.0}
        if pairs:  # some question has right and wrong completions
            metrics["verifier/auroc_within"] = won / pairs
        return metrics

    def state_dict(self) -> VerifierState:
        """Plain numbers, which JSON stores exactly."""
        kept = [self.optimizer.state.get(p, {}) for p in self.parameters]
        return {
            "rollouts": self.rollouts,
            "weights": {name: x.tolist() for name, x in self.verifier.state_dict().items()},
            "optimizer": [
                {name: torch.as_tensor(x).tolist() for name, x in s.items()} for s in kept
            ],
        }

    def load_state_dict(self, state: VerifierState) -> None:
        """Go on with the state of `state_dict`."""
        self.rollouts = state["rollouts"]
        weights = {name: torch.tensor(x) for name, x in state["weights"].items()}
        self.verifier.load_state_dict(weights)
        for parameter, kept in zip(self.parameters, state["optimizer"], strict=True):
            self.optimizer.state[parameter] = {name: torch.tensor(x) for name, x in kept.items()}


def attach_new_verifier(policy: nn.Module, *, seed: int) -> Verifier:
    """Return a new verifier, attached to the policy so that it is saved with it."""
    verifier = new_verifier(seed=seed)
    for model in (policy, policy.get_base_model()) if is_adapted(policy) else (policy,):
        attach_verifier(model, verifier)
    return verifier


def new_verifier(*, seed: int) -> Verifier:
    """Return a new verifier. Its initialization does not advance the global random state: a run
    with a verifier samples the same completions as one without."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Verifier()
