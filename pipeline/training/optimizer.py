"""Muon for the matrices of the trunk, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024; `muon.py`) makes each update of a weight matrix orthogonal. From
scratch it needs several times fewer tokens than AdamW to learn the nano task. Embeddings, norms,
biases, the LM head and the value head are trained with AdamW.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from transformers.hf_argparser import HfArg

from pipeline.config import Bounds, PositiveFloat, require, require_defaults
from pipeline.training.muon import Muon

# Fields of TrainingArguments for the optimizer that Muon replaces.
ADAMW_FIELDS = (
    "optim",
    "optim_args",
    "optim_target_modules",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
)


@dataclass
class MuonOptions:
    """Fields of a training configuration for Muon."""

    ONLY_WITH: ClassVar[dict[str, tuple[str, ...]]] = {"muon=true": ("muon_momentum",)}

    muon: bool = HfArg(default=False, help="Muon for the trunk's matrices instead of AdamW")
    muon_momentum: Annotated[float, Bounds(ge=0, lt=1)] = HfArg(
        default=0.95, help="of Muon; a short run learns more with less"
    )
    adamw_learning_rate: PositiveFloat | None = HfArg(
        default=None, help="muon: of embeddings, norms and biases; default: learning_rate"
    )

    def check_muon(self) -> None:
        """Raise ValueError for options that need Muon without it, or do nothing with it."""
        require(
            self.adamw_learning_rate is None or self.muon,
            f"adamw_learning_rate={self.adamw_learning_rate} is AdamW's part beside Muon; give "
            "muon=true, or set learning_rate",
        )
        if self.muon:
            require_defaults(
                self,
                ADAMW_FIELDS,
                "does nothing with muon=true, which brings an AdamW of its own; leave it out, or "
                "give muon=false",
            )

    def muon_options(self) -> dict[str, float | None]:
        """Return them as arguments of `muon_adamw`."""
        return {"momentum": self.muon_momentum, "adamw_learning_rate": self.adamw_learning_rate}


class MuonAdamW(Optimizer):
    """Muon and AdamW as one optimizer: one list of parameter groups, one state to save."""

    def __init__(self, muon: Muon, adamw: AdamW):
        self.parts = {"muon": muon, "adamw": adamw}
        super().__init__([p for group in self._groups() for p in group["params"]], {})
        self._link()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take a step of both parts; `closure` is not called."""
        for part in self.parts.values():
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Delete the gradients of both parts, or set them to 0."""
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, dict]:
        """The state of each part by its name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, dict]) -> None:
        """Load the states of both parts."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self._link()

    def _groups(self) -> Iterator[dict]:
        for part in self.parts.values():
            yield from part.param_groups

    def _link(self) -> None:
        # The scheduler writes learning rates into these dictionaries: they must be the parts' own.
        self.param_groups = list(self._groups())


def muon_adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    momentum: float = 0.95,
    adamw_learning_rate: float | None = None,
    head_learning_rate: float | None = None,
) -> MuonAdamW:
    """Return the optimizer for a causal LM, with or without a value head.

    Muon's updates are scaled to the RMS of AdamW's (arXiv:2502.16982, equation 4), so that one
    learning rate fits both; `adamw_learning_rate` and `head_learning_rate`, of the value head,
    default to it.
    """
    matrices, rest, head = [], [], []
    outside = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    outside |= {id(p) for p in model.get_output_embeddings().parameters()}
    outside |= {id(p) for n, p in model.named_parameters() if "reasoning_layer.head." in n}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "value_head." in name:
            head.append(parameter)
        elif parameter.dim() == 2 and id(parameter) not in outside:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    muon = Muon(
        matrices,
        lr=learning_rate,
        weight_decay=weight_decay,
        momentum=momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    groups: list[dict[str, object]] = [{"params": rest}]
    if head:
        groups.append({"params": head, "lr": head_learning_rate or learning_rate})
    rate = adamw_learning_rate or learning_rate
    adamw = AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return MuonAdamW(muon, adamw)


def give_own_rate(optimizer: Optimizer, head: nn.Module, learning_rate: float) -> None:
    """Move the parameters of the value head into a parameter group with this learning rate."""
    mine = {id(parameter) for parameter in head.parameters()}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in mine]
    optimizer.add_param_group(
        {"params": list(head.parameters()), "lr": learning_rate, "weight_decay": 0.0}
    )
