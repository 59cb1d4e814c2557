"""Chat template, response template and control tokens of a tokenizer.

For every model the generation prompt ends in `<think>`, or with `enable_thinking=False` in
`<think></think>`, and an assistant turn is `<think>thought</think>answer<eos>`. Without
`enable_thinking`, a model trained on direct answers gets `<think></think>`, any other `<think>`.

    tokenizer with role markers   <|user|>question<|assistant|><think>
    base model, no template       Question: question\\nAnswer:<think>
    instruct model                its own template, with the missing tags added
"""

import json
from functools import lru_cache
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from pipeline.chat.prompt_settings import (
    change_templates,
    read_template,
    set_prompt,
    split_prompt_block,
    stored_prompt,
)
from pipeline.chat.tags import END_THINK, THINK

USER = "<|user|>"
ASSISTANT = "<|assistant|>"
# Prepended to a template whose default differs from how the model was trained.
DEFAULTS = {
    think: "{% if enable_thinking is not defined %}{% set enable_thinking = "
    + str(think).lower()
    + " %}{% endif %}"
    for think in (True, False)
}


def configure_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Set chat template, response template, control tokens and left padding of the tokenizer.

    The tags must be in the vocabulary already. A second call changes nothing.
    """
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _own_template(tokenizer)
    else:
        change_templates(tokenizer, lambda template: _with_thoughts(tokenizer, template))
    tokenizer.chat_control_tokens = control_tokens(tokenizer)
    tokenizer.response_template = _response_template(tokenizer)
    tokenizer.padding_side = "left"
    # The attribute alone is lost on save.
    tokenizer.init_kwargs["padding_side"] = "left"


def set_default_thinking(tokenizer: PreTrainedTokenizerBase, think: bool) -> None:
    """Set what the template does without `enable_thinking`: open a thought, or close an empty one.

    Anyone who loads the model then prompts it as it was trained.
    """

    def with_default(template: str) -> str:
        block, template = split_prompt_block(template)
        for prefix in DEFAULTS.values():
            template = template.removeprefix(prefix)
        default, wanted = (_prompt(tokenizer, template, think=t) for t in (None, think))
        return block + (template if default == wanted else DEFAULTS[think] + template)

    change_templates(tokenizer, with_default)


def choose_template(tokenizer: PreTrainedTokenizerBase, choice: str) -> None:
    """Set the chat template: "own" keeps the model's, "plain" is `Question: ... Answer:` (or role
    markers where the vocabulary has them), anything else is the path of a Jinja file.

    System prompt and examples stay. The tags must be in the vocabulary already.

    Raises:
        ValueError: no such file, or its template fails.
    """
    if choice == "own":
        return
    settings = stored_prompt(tokenizer)
    tokenizer.chat_template = None if choice == "plain" else read_template(choice)
    if THINK not in tokenizer.get_vocab():
        return  # a model without reasoning tokens is asked plainly
    try:
        configure_tokenizer(tokenizer)
    except (TemplateError, TypeError, ValueError) as error:
        raise ValueError(
            f"chat_template={choice} fails on one question: {error}; correct the template"
        ) from None
    set_prompt(tokenizer, system_prompt=settings.system_prompt, examples=settings.examples)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every added token that user text must not produce.

    Some vocabularies (GPT-NeoX, Gemma) have white space as added tokens; that is ordinary text. So
    is the token of unknown characters, unless it also begins, ends or pads a text (GPT-2).
    """
    roles = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    unknown = {tokenizer.unk_token} - roles
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    return [token for token in added if not token.isspace() and token not in unknown]


@lru_cache(maxsize=1)
def built_in_templates() -> frozenset[str]:
    """Every chat template that `configure_tokenizer` gives to a tokenizer without one."""
    plain = [
        _filled_template(has_roles, writes_bos)
        for has_roles in (True, False)
        for writes_bos in (True, False)
    ]
    return frozenset(start + template for template in plain for start in ("", *DEFAULTS.values()))


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    vocabulary = tokenizer.get_vocab()
    has_roles = USER in vocabulary and ASSISTANT in vocabulary
    return _filled_template(has_roles, writes_bos(tokenizer))


def _filled_template(has_roles: bool, writes_bos: bool) -> str:
    texts = {
        "user": USER if has_roles else "Question: ",
        "assistant": ASSISTANT if has_roles else "\nAnswer:",
        "gap": "" if has_roles else "\n\n",
    }
    template = _read("chat.jinja")
    for name, text in texts.items():
        template = template.replace(f"<<{name}>>", json.dumps(text))
    return template.replace("<<bos>>", "bos_token" if writes_bos else '""')


def writes_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer begins every text with BOS."""
    # Rendered templates are encoded without special tokens, so the template has to write BOS.
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == (
        tokenizer.bos_token_id
    )


def _with_thoughts(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The template with thoughts in assistant turns and tags after the generation prompt."""
    # Jinja ignores a last newline at the end of a template only, so it is removed before appending.
    body = template.removesuffix("\n")
    if "reasoning_content" not in template and END_THINK not in template:
        body = _read("wrap.jinja") + "\n" + body
    tags_on = _missing_tags(_prompt(tokenizer, body, think=True), think=True)
    tags_off = _missing_tags(_prompt(tokenizer, body, think=False), think=False)
    if not tags_on and not tags_off:
        return template
    return body + (
        "{% if add_generation_prompt %}"
        f"{{{{ '{tags_off}' if enable_thinking is defined and not enable_thinking "
        f"else '{tags_on}' }}}}"
        "{% endif %}"
    )


def _missing_tags(prompt: str, *, think: bool) -> str:
    """The tags to append to a generation prompt, which may end in some of them already.

    >>> _missing_tags("user: hi assistant:", think=True), _missing_tags("<think>", think=True)
    ('<think>', '')
    >>> _missing_tags("assistant: <think> ", think=False)
    '</think>'
    """
    end = prompt.rstrip()
    if think:
        return "" if end.endswith(THINK) else THINK
    if end.endswith(THINK):
        return END_THINK
    return "" if end.endswith(END_THINK) else THINK + END_THINK


def _response_template(tokenizer: PreTrainedTokenizerBase) -> dict:
    """The response template, by which `tokenizer.parse_response` splits thought and answer."""
    return {
        "defaults": {"role": "assistant"},
        # The last tag of a prompt is written by the template: parsing starts before it.
        "start_anchor_pattern": f"(?={THINK})",
        "fields": {
            "reasoning_content": {"open": THINK, "close": END_THINK, "content": "text"},
            "content": {"close": tokenizer.eos_token, "content": "text"},
        },
    }


def _prompt(tokenizer: PreTrainedTokenizerBase, template: str, *, think: bool | None) -> str:
    """The rendered prompt of a question; None leaves `enable_thinking` undefined."""
    option = {} if think is None else {"enable_thinking": think}
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": "question"}],
        chat_template=template,
        add_generation_prompt=True,
        tokenize=False,
        **option,
    )


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8").removesuffix("\n")
