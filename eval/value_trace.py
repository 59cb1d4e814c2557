"""Value traces: greedy answers with the value V before every token."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from eval.row_types import Record
from eval.run import load_checkpoint
from pipeline.chat.prompts import encode_prompts
from pipeline.chat.tags import END_THINK, split_ids
from pipeline.chat.token_offsets import token_end_offsets
from pipeline.generation import Sampler
from pipeline.grading import grade
from pipeline.model import has_value_head
from pipeline.records import Problem


class TokenValue(TypedDict):
    """Text of a token, V before it, and whether it belongs to the visible answer."""

    text: str
    value: float
    visible: bool


class Trace(TypedDict):
    """A greedy answer with the values of its tokens."""

    question: str
    expected: str
    answer: str
    correct: bool
    tokens: list[TokenValue]


def value_traces(
    checkpoint: str, rows: Sequence[Record], options: Mapping[str, Any]
) -> list[Trace]:
    """Value traces of the rows' questions; see `trace_values`.

    Raises:
        ValueError: the checkpoint has no value head.
    """
    model, tokenizer = load_checkpoint(checkpoint)
    if not has_value_head(model):
        raise ValueError(
            f"checkpoint {checkpoint} has no value head to colour thoughts with: leave "
            "--checkpoint out, or name one trained by PPO"
        )
    limit = options.get("max_sample_tokens") or options.get("max_completion_tokens") or 256
    return trace_values(model, tokenizer, rows, limit, think=options.get("think", True))


def trace_values(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Record],
    max_new_tokens: int,
    *,
    think: bool = True,
) -> list[Trace]:
    """One record per row: question, expected, answer, correct, and the tokens of `token_values`."""
    prompts = encode_prompts(tokenizer, [row["question"] for row in rows], think=think)
    sampler = Sampler(model, tokenizer, temperature=0.0, max_new_tokens=max_new_tokens)
    rollout = sampler.sample(prompts)
    found: list[Trace] = []
    for b, row in enumerate(rows):
        mask_C = rollout.mask_completion_BC[b]
        ids = rollout.completion_ids_BC[b][mask_C].tolist()
        values = rollout.values_BC[b][mask_C].tolist()
        end_think_id = tokenizer.convert_tokens_to_ids(END_THINK)
        hidden, visible = split_ids(ids, end_think_id) if think else ([], ids)
        text = tokenizer.decode(visible, skip_special_tokens=True).strip()
        found.append(
            {
                "question": row["question"],
                "expected": row["expected"],
                "answer": text,
                "correct": grade(_problem(row), text).passed,
                "tokens": token_values(tokenizer, ids, values, hidden=len(hidden)),
            }
        )
    return found


def _problem(row: Record) -> Problem:
    """The problem of a record; one without a `check` is graded by its expected answer."""
    check = row.get("check", "")
    return Problem(question=row["question"], answer=row["expected"], check=check)


def token_values(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], values: Sequence[float], *, hidden: int
) -> list[TokenValue]:
    """Text, value and visibility of every token; the first `hidden` tokens are not visible.

    Tokens that form a character only together are merged, with the value of the first.
    """
    text, ends = tokenizer.decode(ids), token_end_offsets(tokenizer, ids)
    found: list[TokenValue] = []
    start = first = 0
    for c, end in enumerate(ends):
        if end == start and c + 1 < len(ids):
            continue
        found.append({"text": text[start:end], "value": values[first], "visible": first >= hidden})
        start, first = end, c + 1
    return found
