"""Read the body of a chat completion request; whatever is wrong with it is one `RequestError`."""

import json
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import NoReturn

from pipeline.serve.limits import Limits

Messages = list[dict[str, str]]
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MAX_STOPS, MAX_STOP_LENGTH = 4, 64  # characters of a stop text
MAX_SEED = 2**63
# Fields of the OpenAI API that change nothing here.
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
# Fields of the OpenAI API that are accepted where they ask for nothing.
NOTHING: dict[str, tuple[object, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (True, False),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


class RequestError(Exception):
    """A request that is answered with an error of the client: status, message, field."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None):
        super().__init__(message)
        self.message, self.status, self.param = message, status, param


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A checked request. None means that the server's default holds."""

    messages: Messages
    model: str | None = None
    max_completion_tokens: int | None = None
    reasoning_effort: str | None = None
    n: int = 1
    temperature: float | None = None
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False  # streaming: a last chunk with the usage
    strategy: str | None = None
    strategy_options: dict[str, int | float | str] = field(default_factory=dict)
    return_tree: bool = False


def parse_chat_request(body: bytes, limits: Limits) -> ChatRequest:
    """The request in a body.

    Raises:
        RequestError: the body is no JSON object, or a field is unknown or out of range.
    """
    fields = {name: value for name, value in _json_object(body).items() if value is not None}
    read = _Fields(fields)
    most = limits.token_limit
    tokens = read.integer("max_completion_tokens", 1, most)
    older = read.integer("max_tokens", 1, most)
    stream = read.boolean("stream")
    request = ChatRequest(
        messages=_messages(fields.pop("messages", None), limits),
        model=read.text("model", 200),
        max_completion_tokens=older if tokens is None else tokens,
        reasoning_effort=read.choice("reasoning_effort", EFFORTS),
        n=read.integer("n", 1, limits.max_choices) or 1,
        temperature=read.number("temperature", 0, 2),
        top_p=_top_p(read.number("top_p", 0, 1)),
        stop=_stops(fields.pop("stop", [])),
        seed=read.integer("seed", -MAX_SEED, MAX_SEED - 1),
        stream=stream,
        include_usage=_include_usage(fields.pop("stream_options", None), stream),
        strategy=read.text("strategy", 40),
        strategy_options=_strategy_options(fields.pop("strategy_options", {})),
        return_tree=read.boolean("return_tree"),
    )
    _refuse_unknown(fields)
    return request


def _json_object(body: bytes) -> dict[str, object]:
    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    try:
        content = json.loads(body.decode("utf-8"), parse_constant=constant)
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    except UnicodeDecodeError:
        raise RequestError("the body is not UTF-8") from None
    except ValueError:
        raise RequestError("the body is no JSON: send an object with a list `messages`") from None
    if not isinstance(content, dict):
        raise RequestError("the body must be a JSON object with a list `messages`")
    return content


@dataclass
class _Fields:
    """Takes fields out of a dict and checks their types and bounds."""

    fields: dict[str, object]

    def integer(self, name: str, low: int, high: int) -> int | None:
        value = self.fields.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise RequestError(
                f"{name}={_shown(value)} must be an integer from {low} to {high}", param=name
            )
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.fields.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise RequestError(f"{name}={_shown(value)} must be a number", param=name)
        if not low <= value <= high:  # also not infinite
            raise RequestError(f"{name}={_shown(value)} must be from {low} to {high}", param=name)
        return float(value)

    def boolean(self, name: str) -> bool:
        value = self.fields.pop(name, False)
        if not isinstance(value, bool):
            raise RequestError(f"{name}={_shown(value)} must be true or false", param=name)
        return value

    def text(self, name: str, longest: int) -> str | None:
        value = self.fields.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > longest or not _encodable(value):
            raise RequestError(f"{name} must be a text of at most {longest} characters", param=name)
        return value

    def choice(self, name: str, values: tuple[str, ...]) -> str | None:
        value = self.text(name, 40)
        if value is not None and value not in values:
            raise RequestError(f"{name}={value!r} must be one of {', '.join(values)}", param=name)
        return value


def _messages(value: object, limits: Limits) -> Messages:
    if not isinstance(value, list) or not value:
        raise RequestError("messages must be a list with at least one message", param="messages")
    if len(value) > limits.max_messages:
        raise RequestError(
            f"{len(value)} messages are more than the {limits.max_messages} that this server takes",
            param="messages",
        )
    messages = [_message(each, i) for i, each in enumerate(value)]
    if messages[-1]["role"] != "user":
        raise RequestError("the last message must have the role user", param="messages")
    return messages


def _message(value: object, index: int) -> dict[str, str]:
    where = f"messages[{index}]"
    if not isinstance(value, dict):
        raise RequestError(f"{where} must be an object with role and content", param=where)
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(
            f"{where}.role={_shown(role)} must be one of {', '.join(ROLES)}", param=f"{where}.role"
        )
    content = value.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if content is None and role == "assistant":
        content = ""
    if not isinstance(content, str) or not _encodable(content):
        raise RequestError(
            f"{where}.content must be a text, or a list of parts of the type text",
            param=f"{where}.content",
        )
    return {"role": ROLES[role], "content": content}


def _part(part: object, where: str) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise RequestError(
            f"{where}.content has a part that is not of the type text", param=f"{where}.content"
        )
    return text


def _top_p(value: float | None) -> float:
    if value == 0:
        raise RequestError("top_p=0 must be above 0: give temperature 0 for greedy decoding")
    return 1.0 if value is None else value


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if isinstance(stops, list) and len(stops) <= MAX_STOPS and all(map(_is_stop, stops)):
        return tuple(stops)
    raise RequestError(
        f"stop must be a text or a list of up to {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} "
        "characters",
        param="stop",
    )


def _is_stop(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_STOP_LENGTH and _encodable(value)


def _include_usage(value: object, stream: bool) -> bool:
    if value is None:
        return False
    if not stream:
        raise RequestError("stream_options needs stream=true", param="stream_options")
    if not isinstance(value, dict) or set(value) - {"include_usage", "include_obfuscation"}:
        raise RequestError(
            "stream_options must be an object with include_usage", param="stream_options"
        )
    return _Fields(dict(value)).boolean("include_usage")


def _strategy_options(value: object) -> dict[str, int | float | str]:
    if not isinstance(value, dict) or len(value) > 20:
        raise RequestError("strategy_options must be an object", param="strategy_options")
    for name, each in value.items():
        if isinstance(each, bool) or not isinstance(each, int | float | str):
            raise RequestError(
                f"strategy_options.{name[:40]} must be a number or a text", param="strategy_options"
            )
    return value


def _refuse_unknown(fields: dict[str, object]) -> None:
    for name, value in fields.items():
        if name in IGNORED or (name in NOTHING and value in NOTHING[name]):
            continue
        if name in NOTHING:
            raise RequestError(f"{name} is not supported: leave it out", param=name)
        known = [*ChatRequest.__dataclass_fields__, *NOTHING, *IGNORED]
        near = get_close_matches(name[:60], known, n=1)
        hint = f"did you mean {near[0]}?" if near else "see docs/serve.md for the fields"
        raise RequestError(f"{name[:60]!r} is no field of a request; {hint}", param=name[:60])


def _encodable(text: str) -> bool:
    """Whether the text has no lone surrogates, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """A value as JSON, at most 40 characters of it."""
    text = json.dumps(value) if not isinstance(value, dict | list) else type(value).__name__
    return text if len(text) <= 40 else text[:37] + "..."
