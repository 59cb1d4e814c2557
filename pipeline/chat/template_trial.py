"""Render the chat template on stdin once, as transformers would; run in a process of its own.

Ends with 0 also where the template refuses the question: only a template that never ends, or that
takes more memory than it gets, keeps it from ending well.
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
    template = environment.from_string(sys.stdin.read())
    for messages in (QUESTION, ANSWERED):
        template.render(messages=messages, add_generation_prompt=True, bos_token="", eos_token="")


if __name__ == "__main__":
    # What a template does wrong in any other way shows when it is used.
    with contextlib.suppress(jinja2.TemplateError, TypeError, ValueError, AttributeError, KeyError):
        main()
