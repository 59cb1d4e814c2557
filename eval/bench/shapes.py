"""The models and prompts that are timed, made on the spot and the same for every contender.

The models are random, so nothing has to be trained or downloaded, and end a completion with about
the same probability at every token: lengths are mixed, as those of a trained reasoner are.
"""

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from pipeline.chat.prompts import encode_prompts
from pipeline.data import load_problems
from pipeline.model import attach_value_head, build_nano, load_policy, save_policy, train_tokenizer


@dataclass(frozen=True)
class Shape:
    """A model by its sizes, and what one PPO update of it is made of."""

    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 384
    num_key_value_heads: int | None = None  # None: Qwen3 as nano; a number: Qwen2, grouped queries
    vocab_size: int | None = None  # None: the tokenizer's
    mean_length: int = 40  # tokens a completion would have without a bound
    max_length: int = 160
    questions: int = 32
    completions: int = 2
    epochs: int = 4
    minibatches: int = 4


# Qwen2.5-0.5B by its sizes.
QWEN = Shape(
    hidden_size=896,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    intermediate_size=4864,
    vocab_size=151_936,
    mean_length=160,
    max_length=256,
    questions=16,
    completions=4,
)

SHAPES = {
    "nano": Shape(),
    "nano4": Shape(questions=16, completions=4),
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
    # For a GPU, in bfloat16, the second for a shorter look.
    "qwen0.5b": QWEN,
    "qwen0.5b-short": replace(QWEN, mean_length=80, max_length=96),
}


def make_model(
    shape: Shape, folder: Path, checkpoint: str | None = None, questions: int | None = None
) -> None:
    """Write the model (random, or `checkpoint`), its tokenizer and `prompts.json` into `folder`:
    as many questions as are asked in one update, or as `questions` says."""
    problems = load_problems("nano", "train")
    if checkpoint:
        model, tokenizer = load_policy(checkpoint)
        attach_value_head(model)
    else:
        tokenizer = train_tokenizer(problem.question for problem in problems[:400])
        model = random_model(shape, tokenizer)
    save_policy(model, tokenizer, folder)
    problems = problems[: questions or shape.questions]
    asked = [problem.question for problem in problems]
    prompts = {
        "questions": asked,
        "ids": encode_prompts(tokenizer, asked),
        "answers": [problem.answer for problem in problems],
    }
    (folder / "prompts.json").write_text(json.dumps(prompts))


def random_model(shape: Shape, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    sizes = {
        name: getattr(shape, name)
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        )
    }
    if shape.num_key_value_heads is None:
        model = build_nano(tokenizer, **sizes)
    else:
        model = _qwen2(tokenizer, num_key_value_heads=shape.num_key_value_heads, **sizes)
    torch.manual_seed(0)
    if shape.vocab_size is not None:
        model.resize_token_embeddings(shape.vocab_size, mean_resizing=False)
    lift_end_token(model, tokenizer.eos_token_id, shape.mean_length)
    return attach_value_head(model)


def _qwen2(tokenizer: PreTrainedTokenizerFast, **sizes: int) -> PreTrainedModel:
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
        **sizes,
    )
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).eval()


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


def matmul_peak(device: str = "cpu", dtype: str = "float32") -> float:
    """Measured matrix products, the best of some tries, in GFLOP a second: of processor time and a
    thread on the CPU, of time on the clock on a GPU."""
    size = 2048 if device == "cpu" else 8192
    left, right = torch.randn(2, size, size, device=device, dtype=getattr(torch, dtype))
    best = math.inf
    for _ in range(8):
        start = _now(device)
        left @ right
        best = min(best, _now(device) - start)
    return 2 * size**3 / best / 1e9


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def linear_flops(model: PreTrainedModel, trunk_tokens: int, head_tokens: int) -> float:
    """FLOP of the linear layers for one forward and backward: 6 a weight and token.

    Attention, and logits that are made twice to save memory, are not counted; a question counts for
    each of its completions, also where they share the work.
    """
    head = model.get_output_embeddings().weight.numel()
    embeddings = model.get_input_embeddings().weight
    trunk = sum(p.numel() for p in model.base_model.parameters() if p is not embeddings)
    return 6.0 * (trunk * trunk_tokens + head * head_tokens)
