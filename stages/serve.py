"""Serve a checkpoint over HTTP with the OpenAI API; its thoughts are hidden by default.

python -m stages.serve --checkpoint runs/nano/ppo --port 8000

Requests are decoded in one batch that they join and leave between two tokens. The chat page is at
http://127.0.0.1:8000/. The API key is read from THINKHEAD_API_KEY. docs/serve.md has the rest.
"""

import logging
import math
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, NoReturn

from transformers.hf_argparser import HfArg

from pipeline.cli import CommandParser
from pipeline.config import Bounds, PromptConfig, Required, require
from pipeline.data.few_shot import apply_prompt, few_shot_problems
from pipeline.device import DeviceOptions
from pipeline.model import load_for_inference
from pipeline.runtime import environment, one_line_errors, set_threads
from pipeline.search import STRATEGIES, SearchOptions, check_strategy
from pipeline.serve.limits import Limits

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIN_KEY_LENGTH = 16


@dataclass(kw_only=True)
class ServeArguments(DeviceOptions, SearchOptions, PromptConfig, Limits):
    """The checkpoint, the address, the limits, and the defaults of requests."""

    checkpoint: Required = HfArg(default="", help="checkpoint folder, or a model on the Hub")
    host: str = HfArg(
        default="127.0.0.1", help="address to listen at; others than loopback need an API key"
    )
    port: Annotated[int, Bounds(ge=0, le=65535)] = HfArg(
        default=8000, help="port to listen at; 0: a free one"
    )
    served_name: str | None = HfArg(
        default=None, help="name of the model in the API; default: that of the checkpoint"
    )
    strategy: str = HfArg(
        default="greedy",
        help="of requests with neither strategy nor temperature: " + ", ".join(STRATEGIES),
    )
    show_reasoning: bool = HfArg(
        default=False, help="send thoughts as reasoning_content, and search trees on request"
    )
    api_key_file: str | None = HfArg(
        default=None, help="file with the API key; default: the variable THINKHEAD_API_KEY"
    )

    def __post_init__(self) -> None:
        PromptConfig.__post_init__(self)
        super().__post_init__()
        check_strategy(self.strategy, self.options)

    def api_key(self) -> str | None:
        """The key of the file or of the environment.

        Raises:
            ValueError: it is short, or missing where other machines reach the server.
        """
        key = environment("API_KEY")
        if self.api_key_file is not None:
            key = Path(self.api_key_file).read_text(encoding="utf-8").strip()
        require(
            not key or len(key) >= MIN_KEY_LENGTH,
            f"the API key has {len(key or '')} characters, fewer than {MIN_KEY_LENGTH}: make one "
            "with `openssl rand -hex 32`",
        )
        require(
            bool(key) or self.host in LOOPBACK,
            f"host={self.host} is reached by other machines: set THINKHEAD_API_KEY, or leave host "
            "out",
        )
        return key or None

    @property
    def limits(self) -> Limits:
        """The limits alone."""
        return Limits(**{f.name: getattr(self, f.name) for f in fields(Limits)})


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM; running requests are finished first."""
    (args,) = CommandParser(
        ServeArguments, without_effect=("seed",), set_later=("strategy", "reasoning_effort")
    ).parse_args_and_config(argv)
    key = args.api_key()
    try:
        import uvicorn

        from pipeline.serve.answering import Answering
        from pipeline.serve.app import make_app, make_service
        from pipeline.serve.decode_loop import DecodeLoop
        from pipeline.serve.protocol import GracefulServer, timed_protocol
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the server needs {error.name}, which is not installed: pip install 'thinkhead[serve]'"
        ) from None
    set_threads()
    listener = _bound_socket(args.host, args.port)
    model, tokenizer = load_for_inference(args.checkpoint, args)
    apply_prompt(tokenizer, args, examples=few_shot_problems(args))
    limits = args.limits
    loop = DecodeLoop(model, max_rows=limits.max_rows)
    answering = Answering(
        model,
        tokenizer,
        loop,
        options=args.options,
        strategy=args.strategy,
        token_limit=limits.token_limit,
        prompt_limit=limits.prompt_limit,
    )
    name = args.served_name or Path(args.checkpoint).name
    service = make_service(answering, limits, model_name=name, show_reasoning=args.show_reasoning)
    config = uvicorn.Config(
        make_app(service, api_key=key),
        host=args.host,
        port=args.port,
        http=timed_protocol(limits.read_seconds),
        ws="none",
        access_log=False,
        server_header=False,
        log_config=None,
        limit_concurrency=2 * (limits.max_running + limits.max_waiting) + 64,
        # In whole seconds; 0 would end running requests at once.
        timeout_graceful_shutdown=math.ceil(min(limits.stop_seconds, 1e9)),
    )
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stderr)
    for logger in ("thinkhead.serve", "uvicorn.error"):
        logging.getLogger(logger).setLevel(logging.INFO)

    shown = f"[{args.host}]" if ":" in args.host else args.host
    where = f"http://{shown}:{listener.getsockname()[1]}"

    def start() -> None:
        print(f"{name} at {where}/v1, chat page {where}/, Ctrl-C stops", flush=True)

    def stop() -> None:
        service.admission.closed = True

    server = GracefulServer(config, on_start=start, on_stop=stop, works=lambda: loop.alive)
    # uvicorn raises the signal again after a graceful stop, which then has done its work.
    signal.signal(signal.SIGTERM, _exit)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    require(not server.failed, "the decode loop has ended; the log has the reason: start it again")


def _bound_socket(host: str, port: int) -> socket.socket:
    """A socket at that address, which does not listen yet.

    Raises:
        ValueError: the address is in use, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ValueError(
            f"host={host} port={port} cannot be used ({error.strerror}): give another --port or "
            "--host"
        ) from None
    return listener


def _exit(number: int, frame: object) -> NoReturn:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
