"""A module `vllm` whose LLM is a causal LM of transformers: the calls and fields that are used."""

import importlib.machinery
import types
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM


@dataclass
class SamplingParams:
    """The fields of vLLM's class, by keyword alone; another name fails as there."""

    n: int
    temperature: float
    max_tokens: int
    seed: int
    stop_token_ids: list[int]
    stop: list[str] | None
    include_stop_str_in_output: bool
    logprobs: int
    skip_special_tokens: bool

    def __post_init__(self) -> None:
        assert self.max_tokens >= 1, "vLLM refuses max_tokens below 1"
        assert self.stop is None


class LLM:
    """Samples token by token; `calls` counts the prompts of each call."""

    def __init__(self, model: str, dtype: str, seed: int, trust_remote_code: bool):
        self.model = AutoModelForCausalLM.from_pretrained(model).eval()
        self.calls: list[int] = []

    @torch.no_grad()
    def generate(
        self, prompts: list[dict], sampling_params: list[SamplingParams], use_tqdm: bool
    ) -> list[SimpleNamespace]:
        self.calls.append(len(prompts))
        pairs = zip(prompts, sampling_params, strict=True)
        return [SimpleNamespace(outputs=[self._one(p["prompt_token_ids"], s)]) for p, s in pairs]

    def _one(self, prompt: list[int], params: SamplingParams) -> SimpleNamespace:
        generator = torch.Generator().manual_seed(params.seed)
        ids, logprobs, reason = [], [], "length"
        while len(ids) < params.max_tokens and reason == "length":
            logits_V = self.model(torch.tensor([[*prompt, *ids]])).logits[0, -1]
            if params.temperature == 0:
                token = int(logits_V.argmax())
            else:
                chances_V = (logits_V / params.temperature).softmax(-1)
                token = int(torch.multinomial(chances_V, 1, generator=generator))
            ids.append(token)
            chosen = float(logits_V.log_softmax(-1)[token])
            logprobs.append({token: SimpleNamespace(logprob=chosen)})
            if token in params.stop_token_ids:
                reason = "stop"
        return SimpleNamespace(token_ids=tuple(ids), logprobs=logprobs, finish_reason=reason)


def module() -> types.ModuleType:
    """The module, as `sys.modules` holds it."""
    made = types.ModuleType("vllm")
    made.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    made.LLM, made.SamplingParams = LLM, SamplingParams
    return made
