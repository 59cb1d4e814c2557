"""Render the chat template on stdin, as transformers would; run in a process of its own.

Ends with 0 also where the template refuses the question, with 3 and the reason where it is no
template. Otherwise only one that never ends, or that takes more memory than it gets, keeps it from
ending well.
"""

import contextlib
import json
import resource
import sys
import time
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

QUESTION = [{"role": "user", "content": "1+1?"}]
MISTAKES = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),
)
ADVISED = [{"role": "system", "content": "Be brief."}, *QUESTION]
ANSWERED = [*QUESTION, {"role": "assistant", "content": "2"}, *QUESTION]


class Generation(Extension):
    """`{% generation %}` marks what the assistant says; here it is only read."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda x, **options: json.dumps(x)
    environment.globals.update(raise_exception=refuse, strftime_now=time.strftime)
    try:
        template = environment.from_string(sys.stdin.read())
    except jinja2.TemplateSyntaxError as error:
        print(error)
        raise SystemExit(3) from None
    options = ({}, {"enable_thinking": True}, {"enable_thinking": False})
    for messages in (QUESTION, ADVISED, ANSWERED):
        for option in options:
            _render(template, messages, option)


def _render(template: jinja2.Template, messages: list[dict], option: dict[str, bool]) -> None:
    """What a template does wrong in any other way shows when it is used."""
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    with contextlib.suppress(*MISTAKES):
        template.render(messages=messages, add_generation_prompt=True, **tokens, **option)


if __name__ == "__main__":
    main()
