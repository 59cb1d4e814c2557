"""Majority vote over sampled answers, for `generate` of transformers; needs transformers only.

    model.generate(**prompt, custom_generate="user/name", trust_remote_code=True,
                   tokenizer=tokenizer, num_votes=8, max_new_tokens=256)

Samples `num_votes` completions of each prompt, compares their visible answers (the text after
</think>), and returns the first completion with the most frequent answer in the format of generate:
prompt and completion, one row for each prompt. Completions without </think> do not vote.
Self-consistency, arXiv:2203.11171.
"""

from collections import Counter

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    num_votes: int = 8,
    **kwargs: object,
) -> torch.Tensor:
    """Ids (prompts, prompt + completion) of the selected completions, padded on the right."""
    for name in ("custom_generate", "trust_remote_code", "do_sample", "num_return_sequences"):
        kwargs.pop(name, None)
    sampled = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        do_sample=True,
        num_return_sequences=num_votes,
        **kwargs,
    )
    length = input_ids.shape[1]
    groups = sampled.view(input_ids.shape[0], num_votes, -1)
    return torch.stack([group[elect(group[:, length:], tokenizer)] for group in groups])


def elect(completions: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> int:
    """Index of the first row with the most frequent answer; 0 if no row has an answer."""
    answers = [answer_of(ids.tolist(), tokenizer) for ids in completions]
    votes = Counter(answer for answer in answers if answer)
    return answers.index(votes.most_common(1)[0][0]) if votes else 0


def answer_of(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The visible answer, "" without </think>."""
    end = tokenizer.convert_tokens_to_ids("</think>")
    if end not in ids:
        return ""
    visible = ids[ids.index(end) + 1 :]
    if tokenizer.eos_token_id in visible:
        visible = visible[: visible.index(tokenizer.eos_token_id)]
    return " ".join(tokenizer.decode(visible, skip_special_tokens=True).split())
