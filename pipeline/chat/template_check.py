"""Render an untrusted chat template, read from stdin, as transformers would.

`pipeline.model.trust` runs this file in a separate process with a time limit; the memory limit is
set here. Exit code 0: rendering ended, possibly in an error of the template, which will show again
when it is used. Exit code 3, with the reason on stdout: not a Jinja template. Any other exit code:
the memory limit was exceeded.
"""

import contextlib
import json
import resource
import sys
import time

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

QUESTION = [{"role": "user", "content": "1+1?"}]
TEMPLATE_ERRORS = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),
)
WITH_SYSTEM_PROMPT = [{"role": "system", "content": "Be brief."}, *QUESTION]
SECOND_TURN = [*QUESTION, {"role": "assistant", "content": "2"}, *QUESTION]


class Generation(Extension):
    """Parses `{% generation %}`, which marks assistant text, and renders its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[Node]:
        """The nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: str) -> None:
    """The function of that name that transformers offers to templates."""
    raise jinja2.TemplateError(message)


def main() -> None:
    """Render the template for three conversations, each with thinking on, off and undefined."""
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda x, **options: json.dumps(x)
    environment.globals.update(raise_exception=raise_exception, strftime_now=time.strftime)
    try:
        template = environment.from_string(sys.stdin.read())
    except jinja2.TemplateSyntaxError as error:
        print(error)
        raise SystemExit(3) from None
    options: tuple[dict[str, bool], ...] = (
        {},
        {"enable_thinking": True},
        {"enable_thinking": False},
    )
    for messages in (QUESTION, WITH_SYSTEM_PROMPT, SECOND_TURN):
        for option in options:
            _render(template, messages, option)


def _render(template: jinja2.Template, messages: list[dict], option: dict[str, bool]) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    with contextlib.suppress(*TEMPLATE_ERRORS):
        template.render(messages=messages, add_generation_prompt=True, **tokens, **option)


if __name__ == "__main__":
    main()
