"""A verifier: the chance that a thought, as far as it is written, ends in a right answer.

The value head reads one hidden state and does not see how likely the tokens on the way were. A slip
of the pen is a token the policy itself gave little chance, so within one question the likelihood
of a path tells right from wrong far better than V alone (docs/search.md has the figures). The
critic is a small network over both, in verifier.safetensors beside the value head.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import cached_file

from pipeline.model.weights import read_header, read_tensors

VERIFIER_FILE = "verifier.safetensors"
OLD_VERIFIER_FILE = "critic.safetensors"  # of older checkpoints; read for one release
FEATURES = ("v", "v_start", "logprob", "sqrt_logprob", "likelihood", "lowest", "length", "ended")


def verifier_features(
    logprobs: Sequence[float], start: float, value: float, *, ended: bool
) -> list[float]:
    """What the critic reads, in the order of FEATURES.

    `logprobs` are the policy's, at temperature 1, of every token behind the prompt; `start` and
    `value` are V behind the prompt and V now.

    >>> verifier_features([-1.0, -3.0], 0.5, 0.25, ended=True)[:4]
    [0.25, 0.5, -4.0, -2.0]
    """
    total = math.fsum(logprobs)
    return [
        value,
        start,
        total,
        -math.sqrt(max(0.0, -total)),
        math.exp(min(0.0, total)),
        min(logprobs, default=0.0),
        math.log1p(len(logprobs)),
        float(ended),
    ]


class Verifier(nn.Module):
    """Probability of a right answer from path features, one hidden layer; float32, on the CPU."""

    def __init__(self, hidden: int = 32):
        super().__init__()
        self.hidden = hidden
        self.inner = nn.Linear(len(FEATURES), hidden)
        self.last = nn.Linear(hidden, 1)
        self.register_buffer("mean", torch.zeros(len(FEATURES)))
        self.register_buffer("scale", torch.ones(len(FEATURES)))

    def standardize(self, features_NF: torch.Tensor) -> None:
        """Read mean and spread of the features from the training set."""
        self.mean.copy_(features_NF.mean(dim=0))
        self.scale.copy_(features_NF.std(dim=0).clamp_min(1e-3))

    def logits(self, features_NF: torch.Tensor) -> torch.Tensor:
        standard_NF = ((features_NF - self.mean) / self.scale).clamp(-10, 10)
        return self.last(nn.functional.gelu(self.inner(standard_NF))).squeeze(-1)

    def forward(self, features_NF: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.logits(features_NF))


def attach_verifier(model: PreTrainedModel, verifier: Verifier | None) -> None:
    """Search asks it instead of V from now on. It is no submodule: the weights stay plain."""
    model.__dict__["verifier"] = verifier


def verifier_of(model: PreTrainedModel | None) -> Verifier | None:
    return None if model is None else model.__dict__.get("verifier")


def save_verifier(verifier: Verifier, folder: str | Path) -> None:
    weights = {name: weight.contiguous() for name, weight in verifier.state_dict().items()}
    about = {"hidden": verifier.hidden, "features": FEATURES}
    # One entry: safetensors writes several in an order that changes from process to process.
    save_file(
        weights,
        Path(folder) / VERIFIER_FILE,
        metadata={"verifier": json.dumps(about, sort_keys=True)},
    )


def load_verifier(folder: str | Path, *, revision: str | None = None) -> Verifier | None:
    """The stored verifier, or None where the checkpoint has none.

    Raises ValueError in one line for other features, other shapes than it says, NaN and infinity.
    """
    options = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    path = cached_file(folder, VERIFIER_FILE, **options)
    path = path or cached_file(folder, OLD_VERIFIER_FILE, **options)
    if path is None:
        return None
    hidden = _checked_width(Path(path))
    verifier = Verifier(hidden)
    verifier.load_state_dict(read_tensors(Path(path)))
    return verifier.eval()


def _checked_width(path: Path) -> int:
    """Width of the hidden layer, once the header says the same in its metadata and its shapes: a
    width from the metadata alone could ask for any amount of memory."""
    again = "train it again with python -m stages.verifier"
    stored, metadata = read_header(path)
    try:
        about = json.loads(metadata.get("verifier") or metadata["critic"])
        features, hidden = tuple(about["features"]), about["hidden"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path} has no metadata 'verifier' with features and hidden, so it is no verifier; {again}"
        ) from None
    if features != FEATURES:
        raise ValueError(
            f"{path} reads the features {list(features)}, this version gives {FEATURES}: {again}"
        )
    wanted = {
        "inner.weight": (hidden, len(FEATURES)),
        "inner.bias": (hidden,),
        "last.weight": (1, hidden),
        "last.bias": (1,),
        "mean": (len(FEATURES),),
        "scale": (len(FEATURES),),
    }
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    if shapes != wanted:
        name = min(n for n in shapes.keys() | wanted.keys() if shapes.get(n) != wanted.get(n))
        raise ValueError(
            f"{path}: {name} has the shape {shapes.get(name)}, and a verifier with hidden={hidden} "
            f"has {wanted.get(name)}; {again}"
        )
    return stored["inner.weight"].shape[0]
