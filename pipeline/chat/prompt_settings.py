"""System prompt and worked examples before every question, stored in the chat template.

An example is a question with its answer, or a conversation that ends in one.

They are a block at the beginning of the template, so every program that renders it asks in the same
way: training, search, evaluation, plain transformers, a server. A conversation with a system
message of its own keeps that one.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

BEGIN = "{#- system prompt and examples, written by thinkhead -#}"
END = "{#- end of system prompt and examples -#}"
BLOCK = re.compile(
    re.escape(BEGIN) + r"\{%- set prompt_settings = (?P<json>.*?) -%\}.*?" + re.escape(END),
    re.DOTALL,
)
INSERT = (
    '{%- set own_system = messages and messages[0].role == "system" -%}'
    "{%- set messages = (messages[:1] if own_system else prompt_settings.system)"
    " + prompt_settings.examples + (messages[1:] if own_system else messages) -%}"
)


@dataclass(frozen=True, kw_only=True)
class WorkedExample:
    """A question with its thought, "" for none, and the visible answer.

    `turns` are (role, text) of the user and the assistant before the question, in a conversation.
    """

    question: str
    answer: str
    thought: str = ""
    turns: tuple[tuple[str, str], ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The fields; `turns` only where there are any."""
        fields = {"question": self.question, "answer": self.answer, "thought": self.thought}
        return fields | ({"turns": [list(turn) for turn in self.turns]} if self.turns else {})


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """What stands before every question."""

    system_prompt: str = ""
    examples: tuple[WorkedExample, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """The settings that say something, for logs and `settings.json`."""
        examples = [example.as_dict() for example in self.examples]
        found = {"system_prompt": self.system_prompt, "examples": examples}
        return {name: value for name, value in found.items() if value}


def split_prompt_block(template: str) -> tuple[str, str]:
    """(block of prompt settings, rest) of a chat template; the block is "" where there is none."""
    found = BLOCK.match(template)
    return (found[0], template[found.end() :]) if found else ("", template)


def stored_prompt(tokenizer: PreTrainedTokenizerBase) -> PromptSettings:
    """The settings that the tokenizer's chat template has."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default", "")
    found = BLOCK.match(template or "")
    if found is None:
        return PromptSettings()
    stored = json.loads(found["json"])
    return PromptSettings(
        system_prompt="".join(message["content"] for message in stored["system"]),
        examples=tuple(_stored_examples(stored["examples"])),
    )


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits of the SHA-256 of the chat template; of "" without one."""
    template = tokenizer.chat_template or ""
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stored_examples(messages: Sequence[dict[str, str]]) -> Iterator[WorkedExample]:
    """The examples in the order of their messages; each one ends in the message marked as such."""
    before: list[dict[str, str]] = []
    for message in messages:
        if "example" not in message:
            before.append(message)
            continue
        *earlier, asked = before
        yield WorkedExample(
            question=asked["content"],
            answer=message["content"],
            thought=message["reasoning_content"],
            turns=tuple((turn["role"], turn["content"]) for turn in earlier),
        )
        before = []


def set_prompt(
    tokenizer: PreTrainedTokenizerBase,
    *,
    system_prompt: str | None = None,
    examples: Sequence[WorkedExample] | None = None,
) -> PromptSettings:
    """Store what stands before every question; None keeps what is stored, "" and () remove it.

    Raises:
        ValueError: the tokenizer has no chat template, or one that refuses a system message; a text
            contains a control token.
    """
    settings = stored_prompt(tokenizer)
    if not system_prompt and not examples and settings == PromptSettings():
        return settings
    if system_prompt is not None:
        settings = replace(settings, system_prompt=system_prompt)
    if examples is not None:
        settings = replace(settings, examples=tuple(examples))
    _check_texts(tokenizer, settings)
    block = _block(settings) if settings != PromptSettings() else ""
    change_templates(tokenizer, lambda template: block + split_prompt_block(template)[1])
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "question"}], tokenize=False)
    except TemplateError as error:
        raise ValueError(
            f"the model's chat template refuses the system prompt or the examples ({error}); leave "
            "them out, or give --chat_template plain"
        ) from None
    return settings


def _check_texts(tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> None:
    if tokenizer.chat_template is None:
        raise ValueError(
            "the model has no chat template to store system_prompt and few_shot in; train it "
            "first, or give --chat_template FILE"
        )
    messages = [message for each in settings.examples for message in _turns(each)]
    texts = [text for message in messages for text in message.values()]
    for token in getattr(tokenizer, "chat_control_tokens", None) or ():
        found = next((t for t in (settings.system_prompt, *texts) if token in t), None)
        if found is not None:
            raise ValueError(
                f"system_prompt and few_shot must not contain the control token {token!r}, as in "
                f"{found[:60]!r}; take it out"
            )


def change_templates(tokenizer: PreTrainedTokenizerBase, change: Callable[[str], str]) -> None:
    """Replace the chat template, or every one of several named ones, by `change` of it."""
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = {k: change(t) for k, t in tokenizer.chat_template.items()}
    else:
        tokenizer.chat_template = change(tokenizer.chat_template)


def read_template(path: str) -> str:
    """The text of a Jinja file.

    Raises:
        ValueError: there is no such file.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"chat_template={path} is no file; give own, plain, or the path of a Jinja file"
        )
    return Path(path).read_text(encoding="utf-8")


def _block(settings: PromptSettings) -> str:
    # JSON is a Jinja literal as well; text stays as it is, since Jinja joins no surrogate pairs.
    content = {
        "system": [{"role": "system", "content": settings.system_prompt}]
        if settings.system_prompt
        else [],
        "examples": [message for each in settings.examples for message in _turns(each)],
    }
    literal = json.dumps(content, ensure_ascii=False).replace("-%}", "-\\u0025}")
    return f"{BEGIN}{{%- set prompt_settings = {literal} -%}}{INSERT}{END}"


def _turns(example: WorkedExample) -> list[dict[str, str]]:
    turns = (*example.turns, ("user", example.question), ("assistant", example.answer))
    *messages, last = [{"role": role, "content": text} for role, text in turns]
    return [*messages, last | {"reasoning_content": example.thought, "example": "yes"}]
