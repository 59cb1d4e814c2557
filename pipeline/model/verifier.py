"""The verifier: the probability that a partial or complete thought ends in a correct answer.

The value head reads one hidden state and does not see how likely the sampled tokens were. A wrong
token often has a low probability under the policy itself, so among answers to one question the
likelihood of a path separates right from wrong better than V alone (figures in docs/search.md). The
verifier is a small network over both, stored in verifier.safetensors beside the value head.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from pipeline.model.resolve import folder_or_download
from pipeline.model.weights import read_header, read_tensors

VERIFIER_FILE = "verifier.safetensors"
OLD_VERIFIER_FILE = "critic.safetensors"  # of older checkpoints; read for one release
FEATURES = ("v", "v_start", "logprob", "sqrt_logprob", "likelihood", "lowest", "length", "ended")


def verifier_features(
    logprobs: Sequence[float], start: float, value: float, *, ended: bool
) -> list[float]:
    """The input of the verifier for one path, in the order of FEATURES.

    Args:
        logprobs: of every token after the prompt, under the policy at temperature 1, in nats.
        start: V after the last token of the prompt.
        value: V after the last token of the path.
        ended: whether the path has ended in the end-of-text token.

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
    """Probability of a correct answer from path features; one hidden layer, float32, on the CPU."""

    def __init__(self, hidden: int = 32):
        super().__init__()
        self.hidden = hidden
        self.inner = nn.Linear(len(FEATURES), hidden)
        self.last = nn.Linear(hidden, 1)
        self.register_buffer("mean", torch.zeros(len(FEATURES)))
        self.register_buffer("scale", torch.ones(len(FEATURES)))

    def standardize(self, features_NF: torch.Tensor) -> None:
        """Set mean and standard deviation of the features from those of the training set."""
        self.mean.copy_(features_NF.mean(dim=0))
        self.scale.copy_(features_NF.std(dim=0).clamp_min(1e-3))

    def logits(self, features_NF: torch.Tensor) -> torch.Tensor:
        """logits_N of a correct answer."""
        standard_NF = ((features_NF - self.mean) / self.scale).clamp(-10, 10)
        return self.last(nn.functional.gelu(self.inner(standard_NF))).squeeze(-1)

    def forward(self, features_NF: torch.Tensor) -> torch.Tensor:
        """Probabilities of a correct answer, (N,)."""
        return torch.sigmoid(self.logits(features_NF))


def attach_verifier(model: PreTrainedModel, verifier: Verifier | None) -> None:
    """Make search use the verifier instead of V; None removes it.

    It is no submodule, so the weights of the model stay those of the plain architecture.
    """
    model.__dict__["verifier"] = verifier


def verifier_of(model: PreTrainedModel | None) -> Verifier | None:
    """The verifier attached to the model, or None."""
    return None if model is None else model.__dict__.get("verifier")


def save_verifier(verifier: Verifier, folder: str | Path) -> None:
    """Write VERIFIER_FILE into the folder."""
    weights = {name: weight.contiguous() for name, weight in verifier.state_dict().items()}
    content = {"hidden": verifier.hidden, "features": FEATURES}
    # One entry: the order in which safetensors writes several differs between processes. Its key
    # keeps the network's earlier name, so that files of earlier versions load.
    save_file(
        weights,
        Path(folder) / VERIFIER_FILE,
        metadata={"verifier": json.dumps(content, sort_keys=True)},
    )


def load_verifier(folder: str | Path, *, revision: str | None = None) -> Verifier | None:
    """The stored verifier in eval mode, or None if the checkpoint has none.

    Raises ValueError for other features, for shapes that contradict the metadata, and for values
    that are not finite.
    """
    folder = folder_or_download(folder, revision)
    names = (VERIFIER_FILE, OLD_VERIFIER_FILE)
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        return None
    verifier = Verifier(_checked_width(path))
    verifier.load_state_dict(read_tensors(path))
    return verifier.eval()


def _checked_width(path: Path) -> int:
    """Width of the hidden layer, if metadata and tensor shapes agree.

    The metadata alone is not trusted: it could make the loader allocate any amount of memory.
    """
    remedy = "train it again with python -m stages.verifier"
    stored, metadata = read_header(path)
    try:
        content = json.loads(metadata.get("verifier") or metadata["critic"])
        features, hidden = tuple(content["features"]), content["hidden"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path} has no metadata 'verifier' with features and hidden, so it is no verifier; "
            f"{remedy}"
        ) from None
    if features != FEATURES:
        raise ValueError(
            f"{path} reads the features {list(features)}, this version has {FEATURES}; {remedy}"
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
            f"{path}: {name} has the shape {shapes.get(name)}, and a verifier with "
            f"hidden={hidden} has {wanted.get(name)}; {remedy}"
        )
    return stored["inner.weight"].shape[0]
