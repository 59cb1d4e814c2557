"""Tiny tokenizers and models, built in memory: nothing is downloaded, each takes milliseconds.

torch and transformers are imported by the fixtures: pytest-xdist reads this file once more in the
process that only distributes the tests.
"""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest

from tests.hub import hub  # noqa: F401

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from tests.planted import Planted

TEXTS = [
    "What is 12 + 7? 12+7=19. The answer is 19.",
    "Tom has 3 apples and buys 4 more. How many apples does he have? 3+4=7",
    "A train goes 60 miles in 2 hours. How many miles in one hour? 60/2=30",
]
FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "mistral": {"num_key_value_heads": 2},
    "gemma": {"num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {},
    # The hidden states that enter OPT's LM head are narrower than its trunk.
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    # Logits that are not the output of the LM head: divided by 8, softly capped.
    "granite": {"num_key_value_heads": 2, "logits_scaling": 8.0},
    "nanochat": {"num_key_value_heads": 2, "final_logit_softcapping": 15.0},
}


ROOT = Path(__file__).parents[1]
# Of the machine. What tests before have set in this process is none of a launched one's business.
KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SYSTEMROOT")


def variables_of_a_launch(home: Path) -> dict[str, str]:
    """The environment of a launcher, without a GPU."""
    return {name: os.environ[name] for name in KEPT if name in os.environ} | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="session")
def launch() -> Callable[..., subprocess.Popen]:
    """`launch(home, *arguments)`: `accelerate launch` without a GPU, output in one pipe; `home`
    holds no settings of the user's own. It takes 20 s of processor time to start two processes;
    where it does not matter who starts them, tests.ranks.start_ranks needs none."""
    count = 0

    def start(home: Path, *arguments: object) -> subprocess.Popen:
        nonlocal count
        # accelerate takes a port that is free, lets go of it, and listens seconds later: anybody's
        # connection may have it by then. Below 32768 only who asks for a port by number gets it.
        port = 20000 + (os.getpid() * 16 + count) % 12000
        count += 1
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        return subprocess.Popen(
            [*command, "--main_process_port", str(port), *map(str, arguments)],
            env=variables_of_a_launch(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports make no garbage, and a collector that runs between them finds none each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the cache of the user."""
    os.environ["THINKHEAD_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage() -> None:
    """accelerate collects garbage before every training; 0.3 s with all that was imported."""
    gc.freeze()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Nano's tokenizer with templates and reasoning tags. Shared: do not change it."""
    from pipeline.model import train_tokenizer

    return train_tokenizer(TEXTS, vocab_size=320)


@pytest.fixture(scope="session")
def _tiny_policy(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    import torch

    from pipeline.model import attach_value_head, build_nano

    model = build_nano(
        tokenizer,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
    )
    attach_value_head(model)
    with torch.no_grad():
        # A head of zeros would make every test of values pass, and stop every gradient.
        generator = torch.Generator().manual_seed(1)
        weight = model.value_head.last.weight
        weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


@pytest.fixture
def tiny_policy(_tiny_policy: PreTrainedModel) -> PreTrainedModel:
    """Nano with 2 layers of 32 and a value head that says something; a fresh copy for each test."""
    return copy.deepcopy(_tiny_policy)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., PreTrainedModel]:
    """`make_model("qwen3", vocab_size=300, tie=False)`: two layers of 32, random weights, eval."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(family: str, *, vocab_size: int, tie: bool = False, seed: int = 0) -> PreTrainedModel:
        config = AutoConfig.for_model(
            family,
            vocab_size=vocab_size,
            tie_word_embeddings=tie,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            initializer_range=0.2,  # a real model's logits differ from each other
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
            **FAMILIES[family],
        )
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()

    return make


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """`make_tokenizer(pad="missing")`: a tokenizer as found on the Hub, before any token is added.

    pad is "own", "missing" or "eos"; `added` are further tokens; `bos` is put before every text;
    `nfkc` folds full-width letters before it looks for tokens, as SentencePiece models do.
    """

    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    def make(
        *,
        pad: str = "own",
        eos: str | None = "</s>",
        bos: bool = False,
        nfkc: bool = False,
        template: str | None = None,
        added: tuple[str, ...] = (),
    ) -> PreTrainedTokenizerFast:
        special = [token for token in ("<s>", eos, "[PAD]" if pad == "own" else None) if token]
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        backend = Tokenizer(models.BPE(vocab={x: i for i, x in enumerate(letters)}, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.normalizer = normalizers.NFKC() if nfkc else None
        tokens = [AddedToken(t, special=True, normalized=nfkc) for t in (*special, *added)]
        backend.add_special_tokens(tokens)
        if bos:
            backend.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
            )
        made = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token=eos,
            bos_token="<s>" if bos else None,
            pad_token={"own": "[PAD]", "eos": eos, "missing": None}[pad],
            clean_up_tokenization_spaces=False,
        )
        made.chat_template = template
        return made

    return make


@pytest.fixture
def policy(tiny_policy: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The tiny policy with a higher logit of its end token: completions differ in length."""
    import torch

    taste = torch.zeros(tiny_policy.config.vocab_size)
    taste[tokenizer.eos_token_id] = 4.0
    tiny_policy.lm_head.register_forward_hook(lambda module, args, output: output + taste)
    return tiny_policy


@pytest.fixture
def make_ppo(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Any]:
    """`make_ppo(model, reward, lam=1.0, own={...})`: a PPO trainer on six sums of three levels, two
    questions of four completions a rollout, one optimizer step."""
    from datasets import Dataset

    from pipeline.chat.prompts import user_message
    from pipeline.ppo.config import PPOConfig
    from pipeline.ppo.trl_trainer import ReasoningPPOTrainer

    sums = [(2, 3), (4, 5), (7, 1), (3, 3), (8, 2), (6, 9)]
    rows = [
        {"question": f"What is {a} + {b}?", "answer": str(a + b), "level": f"level {i % 3}"}
        for i, (a, b) in enumerate(sums)
    ]
    data = Dataset.from_list([{"prompt": user_message(row["question"]), **row} for row in rows])
    defaults = {
        "output_dir": str(tmp_path / "ppo"),
        "num_rollouts": 1,
        "questions_per_rollout": 2,
        "completions_per_question": 4,
        "ppo_epochs": 1,
        "num_minibatches": 1,
        "max_completion_length": 12,
        "kl_coef": 0.0,
        "learning_rate": 1e-3,
        "disable_tqdm": True,
    }

    def make(model: PreTrainedModel, *rewards: Callable, own: dict | None = None, **options: Any):
        given = {"train_dataset": data, "processing_class": tokenizer, **(own or {})}
        args = PPOConfig(**{**defaults, **options})
        return ReasoningPPOTrainer(model, list(rewards), args, **given)

    return make


@pytest.fixture
def planted(tokenizer) -> Callable[..., Planted]:
    """`planted({"1+1=2\\n</think>2<eos>": 0.6, ...}, value=lambda text: 0.5)`: a policy by hand."""

    from tests.planted import Planted

    def make(completions: dict[str, float], value=None, **settings) -> Planted:
        return Planted(tokenizer, completions, value, **settings).eval()

    return make
