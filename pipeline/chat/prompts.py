"""Encode questions and conversations as prompt ids.

    encode_prompt(tokenizer, "What is 2 + 3?")               ... <think>           a thought follows
    encode_prompt(tokenizer, "What is 2 + 3?", think=False)  ... <think></think>   an answer follows

A question is untrusted text. Reasoning tags, end-of-text, role markers and every other control
token in it are encoded as ordinary characters, so that it cannot open or close a thought or end its
turn.
`pipeline.model.add_reasoning_tokens` stores the list of these tokens in the tokenizer.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from pipeline.chat.tags import END_THINK, THINK

# A question, or a whole conversation that ends in one: [{"role": ..., "content": ...}, ...].
Question = str | list[dict[str, str]]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, question: Question, *, think: bool = True
) -> list[int]:
    """Ids of the prompt, up to and including the tags before the completion."""
    return encode_prompts(tokenizer, [question], think=think)[0]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], *, think: bool = True
) -> list[list[int]]:
    """One unpadded list of ids for each question.

    All are encoded in one batch. If a prompt then has other control tokens than the template
    writes, its question contains some, and is encoded again with these as ordinary text.
    """
    _require_reasoning_tokens(tokenizer)
    chats = [as_messages(question) for question in ("any question", *questions)]
    texts = _apply(tokenizer, chats, think=think, tokenize=False)
    sample, *prompts = tokenizer(texts, add_special_tokens=False).input_ids
    control_ids = set(tokenizer.convert_tokens_to_ids(tokenizer.chat_control_tokens))
    written = [i for i in sample if i in control_ids]
    return [
        ids if [i for i in ids if i in control_ids] == written else _sanitized(tokenizer, q, think)
        for q, ids in zip(questions, prompts, strict=True)
    ]


def thinks_by_default(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template opens a thought by default.

    False for a model trained on direct answers (`pipeline.model.set_default_thinking`).
    """
    prompt = tokenizer.apply_chat_template(
        user_message("any question"), add_generation_prompt=True, tokenize=False
    )
    return not prompt.rstrip().endswith(END_THINK)


def user_message(question: str) -> list[dict[str, str]]:
    """The conversation with one question.

    >>> user_message("What is 2 + 3?")
    [{'role': 'user', 'content': 'What is 2 + 3?'}]
    """
    return [{"role": "user", "content": question}]


def question_text(question: Question) -> str:
    """The text of a question: of a conversation, its last user message.

    >>> question_text([{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}])
    '1+1?'
    """
    messages = reversed(as_messages(question))
    return next((each["content"] for each in messages if each["role"] == "user"), "")


def as_messages(question: Question) -> list[dict[str, str]]:
    """The conversation of a question, which may be one already.

    >>> as_messages("1+1?")
    [{'role': 'user', 'content': '1+1?'}]
    """
    return user_message(question) if isinstance(question, str) else question


def _sanitized(tokenizer: PreTrainedTokenizerBase, question: Question, think: bool) -> list[int]:
    # Correct for every question; time grows with the number of added tokens (18 ms with 6000).
    return _apply(tokenizer, as_messages(question), think=think, sanitize_control_tokens=True)


def _apply(tokenizer: PreTrainedTokenizerBase, chats: list, *, think: bool, **how: bool) -> list:
    return tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, enable_thinking=think, return_dict=False, **how
    )


def _require_reasoning_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    # Without the list transformers infers the control tokens from the template, and misses some.
    control_tokens = tokenizer.chat_control_tokens or ()
    if THINK not in control_tokens or END_THINK not in control_tokens:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r} does not protect "
            f"{THINK} and {END_THINK} from user text; call add_reasoning_tokens(model, tokenizer) "
            "first, or load the tokenizer with load_policy"
        )
