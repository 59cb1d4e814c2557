"""A value network with a trunk of its own, instead of the value head on the policy's trunk.

    V = value head(trunk of the value model)        value_source: model

As in the paper's 4.3 and PPO for RLHF (arXiv:2203.02155), policy and value share no weights: no
gradient of one loss reaches the other. It starts as a copy of the initial policy with a value head
of 0, or from a folder, and is fitted to the returns of every rollout after its values were used:

    R_t = sum of the rewards from token t on,   loss = `losses.value_loss` over the tokens

The policy's value head is trained as without it, so that search can use it.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from pipeline.config import require
from pipeline.model import attach_value_head, attach_verifier, is_adapted, load_policy
from pipeline.ppo.advantages import place_rewards
from pipeline.ppo.groups import ScoredRollout
from pipeline.ppo.losses import value_loss
from pipeline.ppo.metrics import PPOLog
from pipeline.ppo.minibatches import cut_evenly, cut_to_budget
from pipeline.ppo.options import PPOOptions
from pipeline.ppo.rollout import score_rollout
from pipeline.ppo.values import TokenValues
from pipeline.records import Rollout
from pipeline.scoring import Scores, supports_packing
from pipeline.stats.value_metrics import explained_variance
from pipeline.training.token_budget import one_process

SCORING_ROWS = 32  # of a forward without gradients, where micro_batch_size is not given
VALUE_MODEL_FILE = "value_model.safetensors"  # of a checkpoint-N: weights and optimizer
VALUE_MODEL_FOLDER = "value_model"  # of the final result: a plain checkpoint
Scorer = Callable[[nn.Module], Callable[..., Scores]]


class ValueModel:
    """A value network and its optimizer; a `ValueSource`.

    Args:
        model: a causal LM with a value head; only that head and its trunk are used and trained.
        options: epochs, minibatches, micro-batches and clipping of the policy's update.
        learning_rate: of AdamW.
        max_grad_norm: the gradient's norm is clipped to it; 0 for no limit.
        scorer: (model) -> function of a rollout's four tensors to its scores.
        seed: of the order of the completions.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        options: PPOOptions,
        *,
        learning_rate: float,
        max_grad_norm: float,
        scorer: Scorer,
        seed: int,
    ):
        self.model, self.options, self.seed = model.eval(), options, seed
        self.scorer, self.max_grad_norm = scorer, max_grad_norm
        self.named = {n: p.requires_grad_(True) for n, p in model.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            list(self.named.values()), lr=learning_rate, weight_decay=0.0
        )

    def __call__(
        self, scored: ScoredRollout, counts_B: torch.Tensor, step: int, log: PPOLog
    ) -> TokenValues:
        """Return V at every token, before the model is fitted to them."""
        return TokenValues(self.values(scored.rollout))

    @torch.no_grad()
    def values(self, samples: Rollout) -> torch.Tensor:
        """values_BC of a rollout, float32, 0 on padding."""
        scores = score_rollout(
            self.scorer(self.model),
            samples,
            self.options.micro_batch_size or SCORING_ROWS,
            self.options.micro_batch_tokens,
            padded=not supports_packing(self.model),
        )
        return _values(scores)

    def learn(self, scored: ScoredRollout, counts_B: torch.Tensor, step: int) -> dict[str, float]:
        """Fit V to the returns of the completions where counts_B is True; return metrics.

        Completions without an outcome are left out. `step` is a part of the seed.
        """
        totals_B = scored.totals()
        rows = (counts_B & ~totals_B.isnan()).nonzero().squeeze(1)
        if not len(rows):
            return {}
        returns_BC = future_rewards(scored)
        old_BC = self.values(scored.rollout)
        tokens_BC = scored.rollout.mask_completion_BC[rows]
        pair = (x[rows][tokens_BC].cpu().numpy() for x in (old_BC, returns_BC))
        before = explained_variance(*pair)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        losses = []
        for _ in range(self.options.ppo_epochs):
            order = rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
            for part in order.tensor_split(min(self.options.num_minibatches, len(order))):
                losses.append(self._fit(scored.rollout, part, old_BC, returns_BC))
        return {
            "value_model/loss": sum(losses) / len(losses),
            "value_model/explained_variance": before,
        }

    def _fit(
        self,
        samples: Rollout,
        rows: torch.Tensor,
        old_BC: torch.Tensor,
        returns_BC: torch.Tensor,
    ) -> float:
        """Take one optimizer step on these rows, unless it is not finite; return their loss."""
        tokens = samples.mask_completion_BC[rows].sum().clamp_min(1)
        losses = []
        self.optimizer.zero_grad()
        for few in self._micro_batches(samples, rows):
            mask_BC = samples.mask_completion_BC[few]
            values_BC = _values(
                self.scorer(self.model)(
                    samples.prompt_ids_BP[few],
                    samples.mask_prompt_BP[few],
                    samples.completion_ids_BC[few],
                    mask_BC,
                )
            )
            loss_BC, _ = value_loss(
                values_BC, old_BC[few], returns_BC[few], clip=self.options.value_clip
            )
            loss = (loss_BC * mask_BC).sum() / tokens
            loss.backward()
            losses.append(loss.detach())
        total = torch.stack(losses).sum()
        norm = nn.utils.clip_grad_norm_(self.named.values(), self.max_grad_norm or torch.inf)
        if total.isfinite() and norm.isfinite():
            self.optimizer.step()
        return total.item()

    def _micro_batches(self, samples: Rollout, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the rows of a minibatch in parts, the shortest sequences first."""
        options = self.options
        lengths_B = samples.mask_prompt_BP.sum(dim=1) + samples.mask_completion_BC.sum(dim=1)
        rows = rows[lengths_B[rows].argsort()]
        cut = cut_evenly(options.micro_batch_size or len(rows))
        if options.micro_batch_tokens is not None:
            padded = not supports_packing(self.model)
            limits = options.micro_batch_tokens, options.micro_batch_size
            cut = cut_to_budget(*limits, padded=padded, most_of_processes=one_process)
        (sizes,) = cut([lengths_B[rows].tolist()])
        return rows.split(sizes)

    def save(self, folder: Path) -> None:
        """Write weights and optimizer to VALUE_MODEL_FILE."""
        content = {f"model.{name}": p.detach().clone() for name, p in self.named.items()}
        for name, parameter in self.named.items():
            for key, x in self.optimizer.state.get(parameter, {}).items():
                content[f"{key}.{name}"] = x.detach().clone().contiguous()
        save_file(content, folder / VALUE_MODEL_FILE)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Go on with the weights and the optimizer of a checkpoint.

        Raises:
            ValueError: the checkpoint has no value model.
        """
        path = folder / VALUE_MODEL_FILE
        if not path.is_file():
            raise ValueError(
                f"{folder} has no {VALUE_MODEL_FILE}, and value_source=model has a value model; "
                "resume with the configuration it was saved with"
            )
        content = load_file(path)
        self.optimizer.state.clear()
        for name, parameter in self.named.items():
            parameter.copy_(content[f"model.{name}"])
            keys = ("step", "exp_avg", "exp_avg_sq")
            stored = {key: content[f"{key}.{name}"] for key in keys if f"{key}.{name}" in content}
            if stored:
                moments = {k: x.to(parameter.device) for k, x in stored.items() if k != "step"}
                self.optimizer.state[parameter] = {"step": stored["step"], **moments}


def start_value_model(
    policy: PreTrainedModel,
    options: PPOOptions,
    accelerator: Accelerator,
    *,
    learning_rate: float,
    max_grad_norm: float,
    scorer: Scorer,
    seed: int,
) -> ValueModel | None:
    """The value model of a run: a copy of the initial policy, or the model of
    `options.value_model`; None where `value_source` is another. The last four arguments are those
    of `ValueModel`.

    Raises:
        ValueError: there are several processes, the copy would be one of adapters, or the model has
            another vocabulary than the policy.
    """
    if options.value_source != "model":
        return None
    require(
        accelerator.num_processes == 1
        and accelerator.distributed_type is not DistributedType.DEEPSPEED,
        "value_source=model trains a second network in one process; give value_source=head",
    )
    require(
        not is_adapted(policy) or options.value_model is not None,
        "value_source=model copies the policy, and adapters cannot be copied as a whole model; "
        "give value_model=FOLDER as well",
    )
    if options.value_model is None:
        model = copy.deepcopy(policy)
        for module in model.modules():  # a trainer's own forward would call the policy
            module.__dict__.pop("forward", None)
    else:
        model, _ = load_policy(options.value_model, value_head="optional", dtype=torch.float32)
        attach_value_head(model)
        rows, wanted = (len(m.get_input_embeddings().weight) for m in (model, policy))
        if rows != wanted:
            raise ValueError(
                f"value_model={options.value_model} has {rows:,} tokens and the policy {wanted:,}; "
                "take a model with the tokenizer of the policy"
            )
    attach_verifier(model, None)  # it belongs to the policy
    return ValueModel(
        model.to(policy.device),
        options,
        learning_rate=learning_rate,
        max_grad_norm=max_grad_norm,
        scorer=scorer,
        seed=seed,
    )


def future_rewards(scored: ScoredRollout) -> torch.Tensor:
    """returns_BC: the sum of the rewards from each token on, float32; 0 after the last token."""
    mask_BC = scored.rollout.mask_completion_BC
    outcomes_B = scored.outcomes_B.nan_to_num().float()
    rewards_BC = place_rewards(outcomes_B, mask_BC, scored.steps)
    return rewards_BC.flip(1).cumsum(dim=1).flip(1) * mask_BC


def _values(scores: Scores) -> torch.Tensor:
    assert scores.values_BC is not None, "the value model has a value head"
    return scores.values_BC.float()
