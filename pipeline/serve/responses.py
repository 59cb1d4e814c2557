"""The JSON of responses, as the OpenAI API has it."""

import json
import time
import uuid
from collections.abc import Iterator
from typing import NotRequired, TypedDict

from pipeline.records import Usage
from pipeline.search.tree import TreeJson
from pipeline.serve.answering import Completion
from pipeline.serve.text_stream import TextDelta

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class UsageJson(TypedDict):
    """The cost of a request in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: dict[str, int]


class CompletionJson(TypedDict):
    """A response, or one chunk of a stream."""

    id: str
    object: str
    created: int
    model: str
    choices: list[dict]
    usage: NotRequired[UsageJson | None]
    search_tree: NotRequired[TreeJson]


class ResponseHead:
    """What all parts of one response have in common: id, time and model."""

    def __init__(self, model: str, *, show_reasoning: bool):
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created, self.model, self.show_reasoning = int(time.time()), model, show_reasoning

    def completion(self, completion: Completion) -> CompletionJson:
        """The body of a response that is not streamed."""
        choices = []
        for i, choice in enumerate(completion.choices):
            message: dict[str, str] = {"role": "assistant", "content": choice.text}
            if self.show_reasoning:
                message["reasoning_content"] = choice.thought
            choices.append(self._choice(i, choice.finish_reason, message=message))
        body = self._body("chat.completion", choices)
        body["usage"] = usage_json(completion.usage)
        if self.show_reasoning and completion.tree is not None:
            body["search_tree"] = completion.tree
        return body

    def first_chunk(self, choice: int) -> CompletionJson:
        """The chunk that opens a choice."""
        return self._chunk(choice, {"role": "assistant", "content": ""}, None)

    def delta_chunk(self, choice: int, delta: TextDelta) -> CompletionJson | None:
        """The chunk of further text; None where the client sees nothing of it."""
        shown = {"content": delta.visible} if delta.visible else {}
        if self.show_reasoning and delta.thought:
            shown["reasoning_content"] = delta.thought
        return self._chunk(choice, shown, None) if shown else None

    def last_chunks(
        self, completion: Completion, *, include_usage: bool
    ) -> Iterator[CompletionJson]:
        """The chunks behind the text: why each choice ended, and the usage."""
        for i, choice in enumerate(completion.choices):
            chunk = self._chunk(i, {}, choice.finish_reason)
            if i == 0 and self.show_reasoning and completion.tree is not None:
                chunk["search_tree"] = completion.tree
            yield chunk
        if include_usage:
            body = self._body("chat.completion.chunk", [])
            body["usage"] = usage_json(completion.usage)
            yield body

    def _chunk(self, choice: int, delta: dict[str, str], reason: str | None) -> CompletionJson:
        return self._body("chat.completion.chunk", [self._choice(choice, reason, delta=delta)])

    def _choice(self, index: int, reason: str | None, **content: dict[str, str]) -> dict:
        return {"index": index, **content, "logprobs": None, "finish_reason": reason}

    def _body(self, kind: str, choices: list[dict]) -> CompletionJson:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def usage_json(usage: Usage) -> UsageJson:
    """The usage with the thought counted apart.

    >>> usage_json(Usage(prompt_tokens=9, reasoning_tokens=4, visible_tokens=2))["total_tokens"]
    15
    """
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def error_json(status: int, message: str, param: str | None = None) -> dict[str, dict]:
    """The body of an error.

    >>> error_json(400, "n=0 must be an integer from 1 to 8", "n")["error"]["type"]
    'invalid_request_error'
    """
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def event(content: CompletionJson | dict[str, dict]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"


STREAM_END = b"data: [DONE]\n\n"
KEEP_ALIVE = b": searching\n\n"  # a comment, which clients ignore
