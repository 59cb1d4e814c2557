"""One completion with the token ids of its two parts: `generate_completion` of the paper's 5.2."""

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.chat.plain import encode_questions
from pipeline.chat.prompts import Question
from pipeline.config import require
from pipeline.records import Usage
from pipeline.search.options import SearchOptions
from pipeline.search.session import ExpandRequest, SearchSession

RESERVED_TOKENS = 25_000  # recommended by the paper (5.2) for thought and answer, of 128k


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A completion. Its tokens are those of the thought and the visible ones.

    A thought that is opened again behind </think>, up to its </think>, is thought as well.
    """

    completion_tokens: list[int]  # ids without the prompt; </think> and the end token included
    reasoning_tokens: list[int]  # ids of the hidden thought, with its tags
    visible_tokens: list[int]  # ids of the answer
    text: str  # the visible answer
    thought: str
    finish_reason: str  # "stop", or "length" as in `Answer`
    usage: Usage


def generate_completion(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    *,
    max_completion_tokens: int,
    max_reasoning_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    think: bool | None = None,
    reserve: int = 0,
) -> Completion:
    """Sample one completion; thought and answer together have at most `max_completion_tokens` ids.

    Args:
        max_completion_tokens: bound of all generated tokens, as in the API of o1.
        max_reasoning_tokens: bound of the first thought, </think> included; the rest of the budget
            is then free for the answer. None: a thought may take everything.
        temperature: 0 is greedy decoding.
        think: whether to think; None: as the model was trained.
        reserve: tokens of the context window that the question must leave; RESERVED_TOKENS is the
            recommendation for a window of 128k.

    Raises:
        ValueError: a bound is out of range, or the question leaves less than `reserve`, or less
            than `max_completion_tokens`, in the context window.
    """
    require(
        max_completion_tokens >= 1,
        f"max_completion_tokens={max_completion_tokens} must be at least 1",
    )
    if max_reasoning_tokens is not None:
        require(
            1 <= max_reasoning_tokens < max_completion_tokens,
            f"max_reasoning_tokens={max_reasoning_tokens} must be at least 1 and below "
            f"max_completion_tokens={max_completion_tokens}, so that an answer has room",
        )
    (prompt,) = encode_questions(tokenizer, [question], think=think)
    check_room(model, len(prompt), max_completion_tokens, reserve)
    options = SearchOptions(
        max_completion_tokens=max_completion_tokens,
        answer_tokens=0,
        temperature=temperature,
        seed=seed,
        think=think,
    )
    session = SearchSession(model, tokenizer, [question], options)
    request = ExpandRequest(
        q=0,
        sequence=session.roots[0],
        stream=(0, 0),
        max_thought_tokens=None if max_reasoning_tokens is None else max_reasoning_tokens - 1,
    )
    (sequence,) = session.finish([request])
    assert sequence is not None  # the budget has at least one token
    answer = session.answer(0, sequence)
    hidden, visible = session.split(sequence)
    return Completion(
        completion_tokens=list(sequence.ids),
        reasoning_tokens=hidden,
        visible_tokens=visible,
        text=answer.text,
        thought=answer.thought,
        finish_reason=answer.finish_reason,
        usage=answer.usage,
    )


def check_room(
    model: PreTrainedModel, prompt_tokens: int, max_completion_tokens: int, reserve: int = 0
) -> None:
    """Raise ValueError unless the context window has room beside a prompt.

    The room must be at least `reserve` and at least `max_completion_tokens`, all in tokens. A model
    without a fixed window has room for everything.
    """
    window = getattr(model.config, "max_position_embeddings", None)
    if window is None:
        return
    room = max(0, window - prompt_tokens)
    for name, tokens in (("reserve", reserve), ("max_completion_tokens", max_completion_tokens)):
        require(
            room >= tokens,
            f"{name}={tokens} does not fit: the question has {prompt_tokens} tokens, so the window "
            f"of {window} tokens has room for {room}; shorten the question or lower {name}",
        )
