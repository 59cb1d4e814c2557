"""Weights for vLLM: those of the causal LM alone. A stub refuses names that it does not know, as
vLLM's loader does (`KeyError` in `load_weights`)."""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl.generation.vllm_generation import VLLMGeneration

from pipeline.chat.prompts import user_message
from pipeline.chat.tags import END_THINK, THINK
from pipeline.config import ModelConfig
from pipeline.generation.vllm_weights import lm_name, merged_lm_weights
from pipeline.model import attach_value_head, load_policy, lora_config, save_policy
from pipeline.ppo.config import PPOConfig
from pipeline.ppo.trl_trainer import ReasoningPPOTrainer

DATA = Dataset.from_list([{"prompt": user_message(f"What is {n} + 1?")} for n in range(4)])
IDS = torch.tensor([[3, 1, 2, 5]])
LORA = ModelConfig(model="sft", use_peft=True, lora_r=4, lora_alpha=64)


class StrictEngine:
    """A causal LM that loads weights by name, and completes prompts greedily with two tokens."""

    def __init__(self, policy: PreTrainedModel):
        self.model = AutoModelForCausalLM.from_config(copy.deepcopy(policy.config))
        self.known = dict(self.model.named_parameters())
        self.loaded: list[str] = []
        # vllm.LLM(...).llm_engine.model_executor.driver_worker.model_runner.model
        runner = SimpleNamespace(model=self)
        worker = SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        self.llm_engine = SimpleNamespace(model_executor=worker)

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in weights:
            parameter = self.known[name]  # KeyError for a name that is not the model's
            assert parameter.shape == tensor.shape, name
            parameter.data.copy_(tensor)
            self.loaded.append(name)

    def reset_prefix_cache(self) -> None:
        pass

    @torch.no_grad()
    def complete(self, prompts: list[list[int]]) -> list[list[int]]:
        found = []
        for ids in prompts:
            written: list[int] = []
            for _ in range(2):
                logits_V = self.model(torch.tensor([[*ids, *written]])).logits[0, -1]
                written.append(int(logits_V.argmax()))
            found.append(written)
        return found


@pytest.fixture
def train(tmp_path, monkeypatch, tiny_policy, tokenizer) -> Callable:
    """`trainer, differences = train(peft_config)`: two rollouts with the stub as vLLM. After every
    synchronisation: the greatest difference of its logits from the policy's."""
    save_policy(tiny_policy, tokenizer, tmp_path / "sft")

    def start(model_config: ModelConfig, **options: object) -> tuple:
        policy, _ = load_policy(tmp_path / "sft")
        differences: list[float] = []

        def init(self: VLLMGeneration) -> None:
            self.llm = StrictEngine(policy)

        def generate(self: VLLMGeneration, prompts: list, images: None, num_generations: int):
            with torch.no_grad():
                ours, theirs = self.model(IDS)["logits"], self.llm.model(IDS).logits
            differences.append(float((ours - theirs).abs().max()))
            return prompts, self.llm.complete(prompts), None, None

        monkeypatch.setattr(VLLMGeneration, "_init_vllm", init)
        monkeypatch.setattr(VLLMGeneration, "generate", generate)
        args = PPOConfig(
            output_dir=str(tmp_path / "out"),
            use_vllm=True,
            vllm_mode="colocate",
            num_rollouts=2,
            questions_per_rollout=2,
            completions_per_question=2,
            num_minibatches=1,
            ppo_epochs=1,
            max_completion_length=2,
            kl_coef=0.0,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            disable_tqdm=True,
            **options,
        )
        trainer = ReasoningPPOTrainer(
            policy,
            [lambda completions, **columns: [float(i % 2) for i in range(len(completions))]],
            args,
            train_dataset=DATA,
            processing_class=tokenizer,
            peft_config=lora_config(model_config, policy, tokenizer),
        )
        trainer.train()
        return trainer, differences

    return start


def test_every_synchronisation_loads_the_policys_weights_and_nothing_else(train):
    trainer, differences = train(ModelConfig())
    engine = trainer.vllm_generation.llm
    assert set(engine.loaded) == set(engine.known)
    assert len(engine.loaded) == 2 * len(engine.known)  # in each of two rollouts
    assert differences == [0.0, 0.0]


def test_adapters_and_the_rows_of_the_tags_are_merged_for_vllm(train, tokenizer):
    trainer, differences = train(LORA)
    engine = trainer.vllm_generation.llm
    assert set(engine.loaded) == set(engine.known)
    assert max(differences) < 1e-5
    # Training has changed the adapters and the two rows, and nothing else of the embedding.
    start = trainer.model.get_base_model().get_input_embeddings().token_adapter.base_layer.weight
    engine.load_weights(list(merged_lm_weights(trainer.model)))
    changed = (engine.known["model.embed_tokens.weight"] != start).any(dim=1).nonzero().flatten()
    assert len(changed) and set(changed.tolist()) <= set(
        tokenizer.convert_tokens_to_ids([THINK, END_THINK])
    )


def test_merging_for_vllm_does_not_change_the_frozen_weights(train):
    trainer, _ = train(LORA)
    for name, module in trainer.model.named_modules():
        if name.endswith("q_proj.base_layer"):
            before = module.weight.clone()
            merged = dict(merged_lm_weights(trainer.model))
            assert torch.equal(module.weight, before)
            plain = lm_name(name + ".weight")
            assert not torch.equal(merged[plain], before)


def test_the_stub_refuses_the_value_head_as_vllm_does(tiny_policy):
    engine = StrictEngine(tiny_policy)
    with pytest.raises(KeyError, match="value_head"):
        engine.load_weights([(n, p) for n, p in attach_value_head(tiny_policy).named_parameters()])
