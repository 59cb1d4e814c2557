"""Advantages and returns from rewards and values: pure functions of tensors.

    r_t = step and outcome rewards - kl_coef * KL estimate (pipeline.ppo.kl)
    A_t = generalized advantage estimate, standardized over the rollout (normalize_advantages)

Everything is 0 where the mask is False.
"""

from collections.abc import Sequence

import torch


def place_rewards(
    outcomes_B: torch.Tensor,
    mask_BC: torch.Tensor,
    steps: Sequence[Sequence[tuple[int, float]]] | None = None,
) -> torch.Tensor:
    """Return rewards_BC: each outcome on the last sampled token, each step reward on its own token.

    The last sampled token is the end token, or the last token of the budget; never padding, also
    where padding and end token share an id.

    Args:
        steps: a list of (token index, reward) for each completion.

    Raises:
        ValueError: where a completion has no sampled token.
    """
    rewards_BC = torch.zeros(mask_BC.shape, dtype=outcomes_B.dtype, device=outcomes_B.device)
    last_B = mask_BC.sum(dim=1) - 1
    if (last_B < 0).any():
        raise ValueError(
            f"completion {int((last_B < 0).nonzero()[0])} has no sampled token to carry a reward; "
            "a completion holds at least its end token"
        )
    rewards_BC[torch.arange(len(last_B)), last_B] = outcomes_B
    for row, step_rewards in enumerate(steps or ()):
        for token, reward in step_rewards:
            rewards_BC[row, token] += reward
    return rewards_BC


def gae(
    rewards_BC: torch.Tensor,
    values_BC: torch.Tensor,
    mask_BC: torch.Tensor,
    *,
    gamma: float,
    lam: float | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation (arXiv:1506.02438) over right-padded completions.

        delta_t = r_t + gamma * V_{t+1} - V_t
        A_t     = delta_t + gamma * lam * A_{t+1}
        R_t     = A_t + V_t

    Rewards and values are ignored where mask_BC is False, NaN included. V is 0 after the last
    sampled token. That holds for a truncated completion too: it has used up its budget and can earn
    nothing more. `lam` is one number, lam_B (one a completion) or lam_BC: lambda_t is the weight of
    A_{t+1} in A_t.

    Returns (advantages_BC, returns_BC), both 0 where mask_BC is False.
    """
    # Filled, not multiplied: 0 * NaN is NaN, and would spread over the whole row.
    rewards_BC, values_BC = (x.masked_fill(~mask_BC, 0) for x in (rewards_BC, values_BC))
    advantages_BC = torch.zeros_like(rewards_BC)
    next_advantage_B = torch.zeros_like(rewards_BC[:, 0])
    next_value_B = torch.zeros_like(rewards_BC[:, 0])
    for t in reversed(range(rewards_BC.shape[1])):
        delta_B = rewards_BC[:, t] + gamma * next_value_B - values_BC[:, t]
        lam_t = lam[:, t] if isinstance(lam, torch.Tensor) and lam.ndim == 2 else lam
        advantage_B = delta_B + gamma * lam_t * next_advantage_B
        # On padding both carries stay 0, so the last real token sees an ended episode.
        next_advantage_B = advantages_BC[:, t] = advantage_B * mask_BC[:, t]
        next_value_B = values_BC[:, t]
    return advantages_BC, advantages_BC + values_BC


def estimate_advantages(
    rewards_BC: torch.Tensor,
    values_BC: torch.Tensor,
    mask_BC: torch.Tensor,
    *,
    gamma: float,
    lam: float,
    value_lam: float | None = None,
    lam_alpha: float | None = None,
    rloo_group: int | None = None,
    step_lam: float | None = None,
    step_ends: Sequence[Sequence[int]] | None = None,
    policy_values_BC: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (advantages_BC, returns_BC) by GAE, with the options of the policy's advantages.

    The RLOO baseline corrects the advantages alone: the value head learns the expected reward of a
    question, not what remains after subtracting the other completions. Lambda may differ as well: a
    higher one for the value head lowers its bias, a lower one for the policy its variance (VC-PPO,
    arXiv:2503.01491).

    Args:
        value_lam: lambda of the returns; default: lam.
        lam_alpha: sets the policy's lambda by length (`length_adaptive_lambda`); default: lam.
        rloo_group: completions of a question, side by side, for the RLOO baseline; None: without.
        step_lam: the policy's lambda at the last token of a step; default: as at other tokens. With
            0 the reward of a step is credited to the tokens of that step alone.
        step_ends: the index of the last token of each step of each completion.
        policy_values_BC: V of the policy's advantages; default: values_BC, of which the returns
            always are.
    """
    value_lam = lam if value_lam is None else value_lam
    policy_lam: float | torch.Tensor = lam
    if lam_alpha is not None:
        policy_lam = length_adaptive_lambda(mask_BC, lam_alpha)
    if step_lam is not None and step_ends is not None:
        policy_lam = lambda_with_steps(mask_BC, policy_lam, step_ends, step_lam)
    advantages_BC, returns_BC = gae(rewards_BC, values_BC, mask_BC, gamma=gamma, lam=value_lam)
    differs = policy_lam is not value_lam or policy_values_BC is not None
    values_BC = values_BC if policy_values_BC is None else policy_values_BC
    if rloo_group is not None:
        # A completion without a token in the mask says nothing about the others.
        counts_B = mask_BC.any(dim=1)
        totals_B = rewards_BC.sum(dim=1).masked_fill(~counts_B, torch.nan)
        baseline_B = rloo_baseline(totals_B, values_BC[:, 0], rloo_group)
        rewards_BC = rewards_BC.clone()
        rewards_BC[counts_B] -= place_rewards(baseline_B[counts_B], mask_BC[counts_B])
    if rloo_group is not None or differs:
        advantages_BC, _ = gae(rewards_BC, values_BC, mask_BC, gamma=gamma, lam=policy_lam)
    return advantages_BC, returns_BC


def rloo_baseline(totals_B: torch.Tensor, first_values_B: torch.Tensor, group: int) -> torch.Tensor:
    """Return baseline_B, the leave-one-out baseline of RLOO (arXiv:2402.14740) on top of V.

        b_i = mean over the other completions j of the question of (R_j - V(question))

    R_j is the sum of completion j's rewards. As its own reward is left out, subtracting b_i from
    its outcome changes the variance of the policy gradient and not its mean, with gamma and lambda
    1; with lower ones b_i reaches a token with a weight that depends on the length of completion i.
    Completions whose total is NaN are left out of the mean, which is 0 where there is no other one.

    >>> rloo_baseline(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.5, 0.5, 0.5]), 3).tolist()
    [-0.5, 0.0, 0.0]
    """
    return leave_one_out(totals_B - first_values_B, group)


def leave_one_out(x_B: torch.Tensor, group: int) -> torch.Tensor:
    """Return mean_B, the mean over the question's other completions, `group` side by side, of the
    x that are not NaN; 0 where there is none.

    >>> leave_one_out(torch.tensor([1.0, 0.0, 0.5]), 3).tolist()
    [0.25, 0.75, 0.5]
    """
    x_QG = x_B.view(-1, group)
    known_QG = ~x_QG.isnan()
    x_QG = x_QG.nan_to_num()
    sums_QG = x_QG.sum(dim=1, keepdim=True) - x_QG
    counts_QG = known_QG.sum(dim=1, keepdim=True) - known_QG.int()
    return (sums_QG / counts_QG.clamp_min(1)).flatten()


def standardize(
    x_BC: torch.Tensor, mask_BC: torch.Tensor, moments: tuple[float, float] | None = None
) -> torch.Tensor:
    """Return x with mean 0 and variance 1 where mask_BC is True, 0 elsewhere.

    `moments` are (mean, variance), over all processes for example; default: those of x.
    """
    mean, variance = moments or masked_moments(masked_sums(x_BC, mask_BC))
    return ((x_BC - mean) * (variance + 1e-8) ** -0.5).masked_fill(~mask_BC, 0)


def standardize_groups(x_BC: torch.Tensor, mask_BC: torch.Tensor, group: int) -> torch.Tensor:
    """Return x with mean 0 and variance 1 over each question's `group` completions, 0 where mask_BC
    is False; every completion has the same weight, whatever its length.

    For advantages that are constant over a completion this is GRPO's (r - mean) / std over the
    rewards of a question (arXiv:2402.03300), with the variance divided by G. A mean over tokens
    instead would be that of the long completions: where these are the correct ones, it would take
    away most of their advantage.

    >>> x_BC = torch.tensor([[3.0, 3.0], [1.0, 0.0], [5.0, 5.0], [5.0, 0.0]])
    >>> mask_BC = torch.tensor([[True, True], [True, False], [True, True], [True, False]])
    >>> standardize_groups(x_BC, mask_BC, 2).tolist()
    [[1.0, 1.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """
    mask_QGC = mask_BC.view(-1, group, mask_BC.shape[1])
    x_QGC = x_BC.view_as(mask_QGC).masked_fill(~mask_QGC, 0)
    length_QG1 = mask_QGC.sum(dim=2, keepdim=True).clamp_min(1)
    count_Q = mask_QGC.any(dim=2).sum(dim=1).clamp_min(1)

    def mean(y_QGC: torch.Tensor) -> torch.Tensor:
        return ((y_QGC / length_QG1).sum(dim=(1, 2)) / count_Q).view(-1, 1, 1)

    centred_QGC = (x_QGC - mean(x_QGC)).masked_fill(~mask_QGC, 0)
    scale_Q11 = (mean(centred_QGC.square()) + 1e-8) ** -0.5
    return (centred_QGC * scale_Q11).view_as(x_BC)


def masked_sums(x_BC: torch.Tensor, mask_BC: torch.Tensor) -> torch.Tensor:
    """Return (sum, sum of squares, count) of x where mask_BC is True, in float64 (float32 on mps,
    which has no float64); sums over processes are sums of these."""
    x = x_BC[mask_BC].to(torch.float32 if x_BC.device.type == "mps" else torch.float64)
    return torch.stack([x.sum(), x.square().sum(), torch.tensor(float(x.numel())).to(x)])


def masked_moments(sums: torch.Tensor) -> tuple[float, float]:
    """Return (mean, variance) from the sums of `masked_sums`.

    >>> masked_moments(torch.tensor([6.0, 20.0, 2.0]))
    (3.0, 1.0)
    """
    total, squares, count = sums.tolist()
    mean = total / max(count, 1.0)
    return mean, max(squares / max(count, 1.0) - mean * mean, 0.0)


def length_adaptive_lambda(mask_BC: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return lam_B = 1 - 1 / (alpha * length), at least 0 (VAPO, arXiv:2504.05118).

    The weights lam^k of a sum of TD errors add up to 1 / (1 - lam) = alpha * length: the estimate
    covers the same share of a short completion as of a long one.

    >>> length_adaptive_lambda(torch.ones(1, 40, dtype=torch.bool), alpha=0.05).tolist()
    [0.5]
    """
    lengths_B = mask_BC.sum(dim=1).clamp_min(1).float()
    return (1 - 1 / (alpha * lengths_B)).clamp_min(0.0)


def lambda_with_steps(
    mask_BC: torch.Tensor,
    lam: float | torch.Tensor,
    step_ends: Sequence[Sequence[int]],
    step_lam: float,
) -> torch.Tensor:
    """Return lam_BC: `step_lam` at the last token of each step, else `lam` (a number or lam_B).

    With step_lam 0 the sum of TD errors stops at the end of the step, and V after the step stands
    for all that follows: the advantages of steps in VinePPO (arXiv:2410.01679).

    >>> lambda_with_steps(torch.ones(1, 4, dtype=torch.bool), 1.0, [[1]], 0.0).tolist()
    [[1.0, 0.0, 1.0, 1.0]]
    """
    lam_BC = torch.ones(mask_BC.shape, device=mask_BC.device)
    lam_BC = lam_BC * (lam.unsqueeze(1) if isinstance(lam, torch.Tensor) else lam)
    for row, tokens in enumerate(step_ends):
        lam_BC[row, list(tokens)] = step_lam
    return lam_BC


def overlong(
    lengths_B: torch.Tensor, truncated_B: torch.Tensor, *, budget: int, buffer: int
) -> torch.Tensor:
    """Return overlong_B, the share used of the last `buffer` tokens of the budget, 0 to 1.

        overlong = clip((length - (budget - buffer)) / buffer, 0, 1)

    Subtracted from the reward, it is the soft overlong punishment of DAPO (arXiv:2503.14476,
    equation 13). Without a buffer it is 1 for truncated completions.

    >>> lengths, cut = torch.tensor([6, 7, 8]), torch.tensor([False, False, True])
    >>> overlong(lengths, cut, budget=8, buffer=2).tolist()
    [0.0, 0.5, 1.0]
    >>> overlong(lengths, cut, budget=8, buffer=0).tolist()
    [0.0, 0.0, 1.0]
    """
    if not buffer:
        return truncated_B.float()
    return (lengths_B - (budget - buffer)).clamp_min(0).float() / buffer
