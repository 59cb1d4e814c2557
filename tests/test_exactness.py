"""What sampling records is what training computes, on eighty sequences of mixed lengths."""

import pytest
import torch
from torch import nn

from pipeline.generation import Sampler
from pipeline.model import add_reasoning_tokens, attach_value_head
from pipeline.scoring import score_completions


@pytest.mark.parametrize("family", ["gpt2", "llama"])  # learned positions, rotary ones
def test_eighty_sequences_are_scored_as_they_were_sampled(family, make_model, make_tokenizer):
    tokenizer = make_tokenizer()
    model = make_model(family, vocab_size=len(tokenizer))
    add_reasoning_tokens(model, tokenizer)
    attach_value_head(model)
    torch.manual_seed(0)
    nn.init.normal_(model.value_head.last.weight, std=0.5)
    prompts = [[10 + (7 * row + i) % 90 for i in range(1 + row % 13)] for row in range(20)]
    sampler = Sampler(model, tokenizer, temperature=1.0, max_new_tokens=16, seed=1)
    rollout = sampler.sample(prompts, group=4)
    assert len(rollout.logprobs_BC) == 80
    furthest = 0.0
    for size in (1, 8, 80):
        for rows in torch.arange(80).split(size):
            with torch.no_grad():
                scores = score_completions(
                    model,
                    rollout.prompt_ids_BP[rows],
                    rollout.mask_prompt_BP[rows],
                    rollout.completion_ids_BC[rows],
                    rollout.mask_completion_BC[rows],
                )
            found = (scores.logprobs_BC - rollout.logprobs_BC[rows]).abs().max()
            furthest = max(furthest, found.item())
            # Values are sums of 32 products, of any size.
            torch.testing.assert_close(
                scores.values_BC, rollout.values_BC[rows], rtol=1e-5, atol=1e-5
            )
    print(f"T8 {family}: at most {furthest:.1e} nats off")
    assert furthest <= 1e-5
