"""What a dry run shows: one example as the model sees it, with token ids and trained tokens."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from pipeline.chat.prompts import encode_prompt
from pipeline.records import Problem

SHOWN = 400  # tokens; of a longer example both ends are shown


def sft_view(tokenizer: PreTrainedTokenizerBase, example: Mapping[str, list[int]]) -> str:
    """Lines with an SFT example: text, token ids, and 1 for every trained token."""
    ids, mask = list(example["input_ids"]), list(example["completion_mask"])
    trained = tokenizer.decode([i for i, on in zip(ids, mask, strict=True) if on])
    return "\n".join(
        [
            f"one example as the model sees it, {len(ids)} tokens, {sum(mask)} of them trained:",
            f"  text: {tokenizer.decode(ids)!r}",
            f"  trained: {trained!r}",
            f"  token ids: {_row(ids)}",
            f"  mask: {_row(mask)}",
        ]
    )


def ppo_view(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> str:
    """Lines with a PPO prompt: text, token ids, and what is trained."""
    ids = encode_prompt(tokenizer, problem.prompt)
    return "\n".join(
        [
            f"one prompt as the model sees it, {len(ids)} tokens; all tokens sampled after it are "
            "trained:",
            f"  text: {tokenizer.decode(ids)!r}",
            f"  expected answer: {problem.answer!r}",
            f"  token ids: {_row(ids)}",
            f"  mask: {_row([0] * len(ids))} and 1 for every sampled token",
        ]
    )


def _row(numbers: Sequence[int]) -> str:
    """The numbers with spaces, without the middle of a long row.

    >>> _row([1, 2]), len(_row([1] * 1000).split())
    ('1 2', 404)
    """
    if len(numbers) <= SHOWN:
        return " ".join(map(str, numbers))
    ends = [*map(str, numbers[: SHOWN // 2]), "", *map(str, numbers[-SHOWN // 2 :])]
    ends[SHOWN // 2] = f"... ({len(numbers) - SHOWN} more) ..."
    return " ".join(ends)
