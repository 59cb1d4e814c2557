"""KL divergence of the policy from the reference, estimated from the sampled tokens.

    log r = log pi_ref(a_t) - log pi(a_t),  a_t sampled by pi
    k1 = -log r                 unbiased; negative where the reference gives more probability
    k2 = (log r)^2 / 2          biased, low variance, never negative
    k3 = (r - 1) - log r        unbiased, low variance, never negative

In nats a token, 0 on padding (Schulman, http://joschu.net/blog/kl-approx.html). Subtracted from the
reward, any of them is a valid penalty. As a loss they differ: the expected gradient of k1 is 0,
that of k2 is the gradient of KL(pi || pi_ref), that of k3 the one of KL(pi_ref || pi)
(arXiv:2506.09477).
"""

from collections.abc import Callable

import torch

from pipeline.ppo.options import PPOOptions

Estimator = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def k1(
    logprobs_BC: torch.Tensor, ref_logprobs_BC: torch.Tensor, mask_BC: torch.Tensor
) -> torch.Tensor:
    """Return the difference of the log-probabilities, 0 on padding."""
    return _masked(logprobs_BC - ref_logprobs_BC, mask_BC)


def k2(
    logprobs_BC: torch.Tensor, ref_logprobs_BC: torch.Tensor, mask_BC: torch.Tensor
) -> torch.Tensor:
    """Return half the squared log ratio, 0 on padding."""
    return 0.5 * _masked(logprobs_BC - ref_logprobs_BC, mask_BC).square()


def k3(
    logprobs_BC: torch.Tensor, ref_logprobs_BC: torch.Tensor, mask_BC: torch.Tensor
) -> torch.Tensor:
    """Return (r - 1) - log r, 0 on padding."""
    # Masked first: on padding the difference may be large, and its exponential infinite.
    log_r_BC = _masked(ref_logprobs_BC - logprobs_BC, mask_BC)
    return log_r_BC.expm1() - log_r_BC


ESTIMATORS: dict[str, Estimator] = {"k1": k1, "k2": k2, "k3": k3}


def kl_penalty(
    logprobs_BC: torch.Tensor,
    ref_logprobs_BC: torch.Tensor,
    mask_BC: torch.Tensor,
    estimator: str = "k1",
) -> torch.Tensor:
    """Return kl_BC by the estimator of that name.

    >>> logprobs, reference, mask = torch.zeros(1, 1), torch.ones(1, 1).log1p(), torch.ones(1, 1)
    >>> [round(kl_penalty(logprobs, reference, mask, k).item(), 3) for k in ("k1", "k2", "k3")]
    [-0.693, 0.24, 0.307]
    """
    return ESTIMATORS[estimator](logprobs_BC, ref_logprobs_BC, mask_BC)


def _masked(x_BC: torch.Tensor, mask_BC: torch.Tensor) -> torch.Tensor:
    """Return x where the mask is not 0, else 0, also where x is NaN (0 * NaN is NaN)."""
    return x_BC.masked_fill(mask_BC == 0, 0)


class FixedKL:
    """A constant KL coefficient."""

    def __init__(self, coef: float):
        self.coef = coef
        self.rollout_coef = coef  # coefficient of the rollout that is being trained on

    def update(self, kl: float, sequences: int) -> None:
        """Take in the KL of a rollout, in nats a token; a constant coefficient ignores it."""

    def state_dict(self) -> dict[str, float]:
        """Nothing: the coefficient is part of the configuration."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Nothing to load."""


class AdaptiveKL(FixedKL):
    """A KL coefficient that rises while the KL is above `target` nats a token, and falls below it.

        error = clip(KL / target - 1, -0.2, 0.2)
        coef  = coef * (1 + error * sequences / horizon)

    Ziegler et al. 2019 (arXiv:1909.08593, 2.2), with their gain of 0.1 a batch replaced by
    sequences / horizon, so that the rate depends on the sequences seen, not on the rollout size.
    It stays above 0 with fewer than 5 * horizon sequences.
    """

    def __init__(self, coef: float, *, target: float, horizon: int):
        super().__init__(coef)
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, sequences: int) -> None:
        """Set the coefficient of the next rollout by the KL of this one, in nats a token."""
        self.rollout_coef = self.coef
        error = max(-0.2, min(0.2, kl / self.target - 1))
        self.coef *= 1 + error * sequences / self.horizon

    def state_dict(self) -> dict[str, float]:
        """The coefficients of the next and of the current rollout."""
        return {"coef": self.coef, "charged": self.rollout_coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on with the coefficients of a checkpoint; ValueError for one of a fixed KL."""
        if not state:
            raise ValueError(
                "the checkpoint was saved with kl_controller=fixed, and this run is adaptive; "
                "resume with the configuration it was saved with"
            )
        self.coef, self.rollout_coef = state["coef"], state["charged"]


def make_kl_controller(options: PPOOptions) -> FixedKL:
    """Return the controller that `kl_controller` names."""
    if options.kl_controller == "fixed":
        return FixedKL(options.kl_coef)
    return AdaptiveKL(options.kl_coef, target=options.kl_target, horizon=options.kl_horizon)
