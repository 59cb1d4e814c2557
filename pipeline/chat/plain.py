"""Ask a model that was not trained here: a baseline, asked plainly and answering in its own way.

    chat template    its own, with its own default for thoughts
    no template      Question: question\\nAnswer:     until it writes the next "Question:"

A conversation may hold solved examples as earlier turns (few-shot). A model is prepared once
`pipeline.model.add_reasoning_tokens` has run on it; `encode_questions` then is `encode_prompts`.
"""

from collections.abc import Sequence
from copy import copy
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from pipeline.chat.prompts import Question, as_messages, encode_prompts, thinks_by_default
from pipeline.chat.tags import END_THINK, THINK
from pipeline.chat.template import control_tokens, writes_bos

NO_TOKEN = -1  # no token has this id
NEXT_QUESTION = "\nQuestion:"
PLAIN_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ 'Question: ' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '\\nAnswer: ' + m.content + '\\n\\n' }}"
    "{% else %}{{ m.content + '\\n\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAnswer:' }}{% endif %}"
)


def has_reasoning_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `add_reasoning_tokens` has prepared the tokenizer. A model may know the tags without
    it: then it is a baseline with thoughts of its own."""
    return {THINK, END_THINK} <= set(tokenizer.chat_control_tokens or ())


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a token, NO_TOKEN where the vocabulary does not have it as one token."""
    found = tokenizer.convert_tokens_to_ids(token)
    known = found is not None and tokenizer.convert_ids_to_tokens(found) == token
    return int(found) if known else NO_TOKEN


def encode_questions(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], *, think: bool | None
) -> list[list[int]]:
    """One unpadded list of prompt ids for each question, for any causal LM.

    `think` of a baseline goes to its own chat template as `enable_thinking`; None is the default of
    the template. Control tokens in a question are encoded as ordinary text.
    """
    if has_reasoning_tokens(tokenizer):
        think = thinks_by_default(tokenizer) if think is None else think
        return encode_prompts(tokenizer, questions, think=think)
    # Without the list transformers guesses. A copy has it, since it marks a prepared tokenizer.
    listed = copy(tokenizer)
    listed.chat_control_tokens = control_tokens(tokenizer)
    how = {"return_dict": False, "sanitize_control_tokens": True}
    return [cast(list[int], _render(listed, q, think, **how)) for q in questions]


def opens_thought(tokenizer: PreTrainedTokenizerBase, think: bool | None) -> bool:
    """Whether a completion begins inside a thought, which the model closes with END_THINK.

    Raises:
        ValueError: `think` is true and the vocabulary has no END_THINK.
    """
    if has_reasoning_tokens(tokenizer):
        return thinks_by_default(tokenizer) if think is None else think
    if token_id(tokenizer, END_THINK) == NO_TOKEN:
        if think:
            raise ValueError(
                f"think=true, and the model of {tokenizer.name_or_path or 'this tokenizer'} has no "
                "reasoning tokens: leave think out, or train the model with stages.sft first"
            )
        return False
    return str(_render(tokenizer, "any question", think, tokenize=False)).rstrip().endswith(THINK)


def stop_text(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The text at which a base model without a chat template has finished its answer, else None."""
    plain = tokenizer.chat_template is None and not has_reasoning_tokens(tokenizer)
    return NEXT_QUESTION if plain else None


def end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The control token that a baseline's chat template writes after an answer.

    It is often not the tokenizer's EOS. Empty without a template, or where the answer is followed
    by ordinary text.
    """
    if has_reasoning_tokens(tokenizer) or tokenizer.chat_template is None:
        return []
    turns = [*as_messages("any question"), {"role": "assistant", "content": "any answer"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:  # it has no assistant turns
        return []
    ids = tokenizer(text.rpartition("any answer")[2], add_special_tokens=False).input_ids
    return [i for i in ids[:1] if i in tokenizer.added_tokens_decoder]


def _render(
    tokenizer: PreTrainedTokenizerBase, question: Question, think: bool | None, **how: bool
) -> str | list[int]:
    template = None
    if tokenizer.chat_template is None:
        template = ("{{ bos_token }}" if writes_bos(tokenizer) else "") + PLAIN_TEMPLATE
    option = {} if think is None else {"enable_thinking": think}
    return tokenizer.apply_chat_template(
        as_messages(question),
        chat_template=template,
        add_generation_prompt=True,
        **option,
        **how,
    )
