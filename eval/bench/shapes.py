"""Models, prompts and answers of the benchmarks, generated and the same for every implementation.

The models have random weights, so nothing has to be trained or downloaded, and end a completion
with about the same probability at every token: lengths are mixed, as with a trained reasoner.
"""

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from eval.bench.measure import Task, read_prompts
from pipeline.chat.prompts import encode_prompts, user_message
from pipeline.data import load_problems
from pipeline.model import attach_value_head, build_nano, load_policy, save_policy, train_tokenizer


@dataclass(frozen=True)
class Shape:
    """The sizes of a model and of one PPO update."""

    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 384
    num_key_value_heads: int | None = None  # None: Qwen3 as nano; a number: Qwen2, grouped queries
    vocab_size: int | None = None  # None: the tokenizer's
    mean_length: int = 40  # mean tokens of a completion without a limit
    max_length: int = 160
    questions: int = 32
    completions: int = 2
    epochs: int = 4
    minibatches: int = 4
    sft_steps: int = 20  # supervised steps of an iteration


# The sizes of Qwen2.5-0.5B.
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
    # A rollout and an update of configs/nano/ppo_alone.yaml.
    "nano512": Shape(questions=64, completions=8, max_length=224, epochs=1, minibatches=2),
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
    # The sizes of SmolLM2-135M, with short answers.
    "smol": Shape(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49_152,
        mean_length=24,
        max_length=48,
        questions=8,
        completions=8,
        epochs=1,
        minibatches=2,
        sft_steps=4,
    ),
    # For a GPU, in bfloat16; the second one takes less time.
    "qwen0.5b": QWEN,
    "qwen0.5b-short": replace(QWEN, mean_length=80, max_length=96),
    # Minibatches of 128 sequences, about 27,000 tokens: enough to keep a GPU busy.
    "qwen0.5b-busy": replace(QWEN, completions=32, epochs=1),
}


def make_model(
    shape: Shape, folder: Path, checkpoint: str | None = None, questions: int | None = None
) -> None:
    """Write a random model or `checkpoint`, its tokenizer and `prompts.json` to `folder`.

    questions  number of prompts, by default that of one update
    """
    problems = load_problems("nano", "train")
    if checkpoint:
        model, tokenizer = load_policy(checkpoint)
        attach_value_head(model)
    else:
        tokenizer = train_tokenizer(problem.question for problem in problems[:400])
        model = random_model(shape, tokenizer)
    save_policy(model, tokenizer, folder)
    problems = problems[: questions or shape.questions]
    texts = [problem.question for problem in problems]
    prompts = {
        "questions": texts,
        "ids": encode_prompts(tokenizer, texts),
        "answers": [problem.answer for problem in problems],
    }
    (folder / "prompts.json").write_text(json.dumps(prompts))


def prompt_dataset(task: Task) -> Dataset:
    """The prompts of `make_model` with their expected answers, as TRL's trainers take them."""
    prompts = read_prompts(task)
    return Dataset.from_dict(
        {"prompt": list(map(user_message, prompts["questions"])), "answer": prompts["answers"]}
    )


def graded_answers(count: int = 1_500) -> list[tuple[str, str, bool]]:
    """(visible answer, expected answer, whether it is correct), the same in every process.

    GSM8K-like: a number in one of the forms that models write, a third of them wrong.
    """
    forms = ("{}", "The answer is {}.", r"\boxed{{{}}}", "${}", "{}.00", "{} apples", "{} kg")
    answers = []
    for i, problem in enumerate(load_problems("nano", "train")[:count]):
        right = i % 3 != 2
        number = problem.answer if right else str(int(problem.answer) + 1 + i % 9)
        answers.append((forms[i % len(forms)].format(number), problem.answer, right))
    return answers


def random_model(shape: Shape, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model of the given sizes with random weights and a value head; the seed is fixed."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = {name: getattr(shape, name) for name in names}
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
    """Change the tied embedding in place so that p(end token) is about 1 / mean_length everywhere.

    One direction is added to every embedding, so that all hidden states have a component along it.
    This alone changes no probability, since all tokens share it; then the end token's embedding is
    scaled along that direction.
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
    """Measured peak of matrix products in GFLOP/s, best of eight: per second of processor time on
    the CPU, of elapsed time on a GPU."""
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
    """FLOP of the linear layers for one forward and backward pass: 6 per weight and token.

    Attention and the recomputation of logits are not counted. A question counts once per
    completion, even where completions share its computation.
    """
    head = model.get_output_embeddings().weight.numel()
    embeddings = model.get_input_embeddings().weight
    trunk = sum(p.numel() for p in model.base_model.parameters() if p is not embeddings)
    return 6.0 * (trunk * trunk_tokens + head * head_tokens)
