"""The models and prompts that are timed, made on the spot and the same for every contender.

The models are random, so nothing has to be trained or downloaded, and end a completion with about
the same probability at every token: lengths are mixed, as those of a trained reasoner are.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.data import load_problems
from pipeline.model import attach_value_head, build_nano, load_policy, save_policy, train_tokenizer
from pipeline.prompts import encode_prompts


@dataclass(frozen=True)
class Shape:
    """A model by its sizes, and what one PPO update of it is made of."""

    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 384
    vocab_size: int | None = None  # None: the tokenizer's
    mean_length: int = 40  # tokens a completion would have without a bound
    max_length: int = 160
    questions: int = 32
    completions: int = 2
    epochs: int = 4
    minibatches: int = 4


SHAPES = {
    "nano": Shape(),
    "nano8": Shape(completions=8),
    "vocab150k": Shape(
        hidden_size=512,
        num_hidden_layers=9,
        num_attention_heads=8,
        intermediate_size=1536,
        vocab_size=150_016,
        mean_length=24,
        max_length=48,
        questions=8,
        minibatches=1,
    ),
}


def make_model(shape: Shape, folder: Path, checkpoint: str | None = None) -> None:
    """Write the model (random, or `checkpoint`), its tokenizer and `prompts.json` into `folder`."""
    problems = load_problems("nano", "train")[:400]
    if checkpoint:
        model, tokenizer = load_policy(checkpoint)
        attach_value_head(model)
    else:
        tokenizer = train_tokenizer(problem.question for problem in problems)
        model = random_model(shape, tokenizer)
    save_policy(model, tokenizer, folder)
    questions = [problem.question for problem in problems[: shape.questions]]
    prompts = {"questions": questions, "ids": encode_prompts(tokenizer, questions)}
    (folder / "prompts.json").write_text(json.dumps(prompts))


def random_model(shape: Shape, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    model = build_nano(
        tokenizer,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size,
    )
    torch.manual_seed(0)
    if shape.vocab_size is not None:
        model.resize_token_embeddings(shape.vocab_size, mean_resizing=False)
    lift_end_token(model, tokenizer.eos_token_id, shape.mean_length)
    return attach_value_head(model)


@torch.no_grad()
def lift_end_token(model: PreTrainedModel, eos_id: int, mean_length: int) -> None:
    """Give the end token a probability of about 1 / mean_length everywhere.

    One direction is added to every embedding. Hidden states then have a part along it, which
    changes no probability, as all tokens share it, and the end token's row is made longer in it.
    """
    weight_VD = model.get_input_embeddings().weight
    direction_D = nn.functional.normalize(torch.randn(weight_VD.shape[1]), dim=0)
    weight_VD += direction_D * weight_VD.norm(dim=1).mean()
    ids_BT = torch.randint(10, 256, (8, 40))
    hidden_ND = model.base_model(ids_BT)[0].flatten(0, 1)
    logits_NV = hidden_ND @ weight_VD.T
    eos_N = logits_NV[:, eos_id].clone()
    logits_NV[:, eos_id] = -math.inf
    wanted_N = logits_NV.logsumexp(dim=1) - math.log(mean_length - 1)
    weight_VD[eos_id] += (wanted_N - eos_N).mean() / (hidden_ND @ direction_D).mean() * direction_D


def matmul_peak(size: int = 2048) -> float:
    """Measured float32 matrix products of this process, in GFLOP a second of processor time and
    thread; the best of some tries."""
    left, right = torch.randn(2, size, size)
    best = math.inf
    for _ in range(8):
        start = time.process_time()
        left @ right
        best = min(best, time.process_time() - start)
    return 2 * size**3 / best / 1e9


def linear_flops(model: PreTrainedModel, trunk_tokens: int, head_tokens: int) -> float:
    """FLOP of the linear layers for one forward and backward: 6 a weight and token.

    Attention, and logits that are made twice to save memory, are not counted; a question counts for
    each of its completions, also where they share the work.
    """
    head = model.get_output_embeddings().weight.numel()
    embeddings = model.get_input_embeddings().weight
    trunk = sum(p.numel() for p in model.base_model.parameters() if p is not embeddings)
    return 6.0 * (trunk * trunk_tokens + head * head_tokens)
