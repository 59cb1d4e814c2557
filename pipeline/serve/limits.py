"""What the server allows a request to use, and what requests may not exceed together."""

from dataclasses import dataclass

from transformers.hf_argparser import HfArg

from pipeline.config import PositiveFloat, PositiveInt


@dataclass(kw_only=True)
class Limits:
    """Limits of one request, and of all requests together."""

    max_body_bytes: PositiveInt = HfArg(default=1_000_000, help="largest body of a request")
    max_messages: PositiveInt = HfArg(default=256, help="most messages of a conversation")
    prompt_limit: PositiveInt = HfArg(
        default=16_384, help="most tokens of a conversation; others wait while it is read"
    )
    max_choices: PositiveInt = HfArg(default=8, help="largest n: answers of one request")
    token_limit: PositiveInt = HfArg(
        default=4096, help="largest max_completion_tokens of a request, thought and search included"
    )
    max_running: PositiveInt = HfArg(
        default=32, help="requests answered at a time; further ones wait"
    )
    max_waiting: PositiveInt = HfArg(
        default=64, help="requests that may wait; further ones get status 429"
    )
    max_rows: PositiveInt = HfArg(
        default=64, help="sequences decoded at a time, those of searches included; bounds memory"
    )
    request_seconds: PositiveFloat = HfArg(
        default=300.0, help="a request that takes longer is ended with status 503"
    )
    read_seconds: PositiveFloat = HfArg(
        default=2.0, help="time in which a client has to send its headers, and then its body"
    )
    stop_seconds: PositiveFloat = HfArg(
        default=30.0, help="time that running requests get when the server is stopped"
    )
