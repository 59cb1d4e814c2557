"""Tokens per second of the server: many clients at once, against the same requests one by one.

python -m eval.bench serve --shape nano --clients 32

Every client sends its next request as soon as it has the response to its last one. The requests are
the same in all modes; modes alternate. With --transformers, `transformers serve` answers them too.
"""

import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArg

from eval.bench.server_process import Server, free_port
from eval.bench.shapes import SHAPES, make_model
from eval.tables import markdown_table
from pipeline.cli import CommandParser
from pipeline.config import PositiveFloat, PositiveInt, check_types, require
from pipeline.progress import Progress
from pipeline.runtime import write_json

ALLOWED = (200, 429, 503)  # statuses under load
SLOWER = 1.25  # times an earlier latency


@dataclass(kw_only=True)
class ServeBenchArguments:
    """The model, the requests and the clients."""

    shape: str = HfArg(default="nano", help=f"one of {', '.join(SHAPES)}")
    checkpoint: str | None = HfArg(default=None, help="measure this model, not a random one")
    clients: PositiveInt = HfArg(default=32, help="clients at a time")
    requests: PositiveInt = HfArg(default=64, help="requests of an iteration")
    tokens: PositiveInt = HfArg(default=64, help="max_completion_tokens of a request")
    iterations: PositiveInt = HfArg(default=3, help="measured iterations of each mode")
    threads: PositiveInt = HfArg(default=1, help="threads of each server")
    transformers: bool = HfArg(
        default=False, help="also `transformers serve`: pip install 'transformers[serving]'"
    )
    seconds: PositiveFloat | None = HfArg(
        default=None, help="load test: all clients for so long, then statuses and latencies"
    )
    against: str = HfArg(
        default="", help="JSON of an earlier load test here: fail where p50 or p99 is 25% above it"
    )
    output: str = HfArg(default="", help="JSON file; default: runs/bench/serve-SHAPE.json")

    def __post_init__(self) -> None:
        check_types(self)
        require(self.shape in SHAPES, f"shape={self.shape!r} is none of {', '.join(SHAPES)}")
        require(
            not self.against or self.seconds is not None,
            f"against={self.against} is a load test; give --seconds, or leave against out",
        )


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a client saw of one request."""

    status: int
    tokens: int
    seconds: float


def main(argv: Sequence[str]) -> None:
    """Run the benchmark or the load test; print a table and write the JSON file."""
    (args,) = CommandParser(ServeBenchArguments).parse_args_and_config(argv)
    call = f"python -m eval.bench serve {' '.join(argv)}"
    path = Path(args.output or f"runs/bench/serve-{args.shape}.json")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(SHAPES[args.shape], folder / "model", args.checkpoint)
        servers = {"ours": _ours(folder, args)}
        if args.transformers:
            sample_by_default(folder / "model")
            servers["transformers serve"] = _transformers(folder, args)
        try:
            for server in servers.values():
                server.wait()
            measured = _load(servers["ours"], args) if args.seconds else _compare(servers, args)
        finally:
            for server in servers.values():
                server.stop()
    machine = {"processor": platform.processor() or platform.machine()}
    write_json(path, {"command": call, "arguments": asdict(args), "machine": machine} | measured)
    print(measured["table"])
    print(f"all figures: {path}")
    if args.seconds:
        figures = measured["figures"]
        assert isinstance(figures, dict)
        earlier = json.loads(Path(args.against).read_text())["figures"] if args.against else {}
        check_load(figures, earlier)


def check_load(figures: dict[str, Any], earlier: dict[str, float]) -> None:
    """Raise ValueError where a load test found a fault of the server.

    Faults are a status besides 200, 429 and 503, a client with less than half of the mean client's
    responses, and a p50 or p99 more than `SLOWER` times that of `earlier`, which may be empty.
    """
    odd = {status: n for status, n in figures["statuses"].items() if int(status) not in ALLOWED}
    require(
        not odd,
        f"responses had the statuses {odd}, and only {ALLOWED} are expected under load; look for "
        "the failed requests in the server's log",
    )
    share = figures["slowest_client_over_mean"]
    require(
        share >= 0.5,
        f"the slowest client got {share:.2f} of the mean, and every one should get at least half; "
        "measure again on an idle machine, then look at the server's /metrics",
    )
    for name in ("p50_s", "p99_s"):
        now, limit = figures[name], SLOWER * earlier.get(name, float("inf"))
        require(
            now <= limit,
            f"{name}={now:.2f} is more than {SLOWER} times the {limit / SLOWER:.2f} of the earlier "
            "load test; measure both on an idle machine before looking for a slower server",
        )


def sample_by_default(folder: Path) -> None:
    """Set do_sample in the generation configuration of a checkpoint: `transformers serve` decodes
    greedily without it, whatever temperature a request has."""
    path = folder / "generation_config.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, stored | {"do_sample": True})


def _compare(servers: dict[str, Server], args: ServeBenchArguments) -> dict[str, object]:
    """Every mode in turns: tokens per second of elapsed time and of the server's processor time."""
    modes = {
        f"{name}, {clients} client{'s' if clients > 1 else ''}": (server, clients)
        for name, server in servers.items()
        for clients in (1, args.clients)
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in modes}
    with Progress(args.iterations * len(modes), "serve", unit="iteration") as progress:
        for server in servers.values():  # a warm-up, not measured
            asyncio.run(_drive(server, args, clients=2, requests=4))
        for i in range(args.iterations):
            for name in list(modes) if i % 2 == 0 else list(modes)[::-1]:
                server, clients = modes[name]
                begin, cpu = time.perf_counter(), server.cpu_seconds()
                replies = asyncio.run(_drive(server, args, clients, args.requests))
                wall, used = time.perf_counter() - begin, server.cpu_seconds() - cpu
                bad = sorted({reply.status for reply in replies} - {200})
                require(not bad, f"{name}: responses had the statuses {bad}")
                tokens = sum(reply.tokens for reply in replies)
                runs[name].append(
                    {"tokens": tokens, "per_wall_s": tokens / wall, "per_cpu_s": tokens / used}
                )
                progress.advance(1)
    first = next(iter(runs))
    rows = [["", "tokens", "tokens/s, wall", "tokens/s, cpu", f"against {first}, wall", "cpu"]]
    figures = {}
    for name, iterations in runs.items():
        pairs = list(zip(iterations, runs[first], strict=True))
        figures[name] = {
            key: statistics.median(run[key] for run in iterations)
            for key in ("tokens", "per_wall_s", "per_cpu_s")
        } | {
            f"ratio_{key}": statistics.median(a[key] / b[key] for a, b in pairs)
            for key in ("per_wall_s", "per_cpu_s")
        }
        found = figures[name]
        rows.append(
            [
                name,
                f"{found['tokens']:.0f}",
                f"{found['per_wall_s']:.0f}",
                f"{found['per_cpu_s']:.0f}",
                f"{found['ratio_per_wall_s']:.2f}x",
                f"{found['ratio_per_cpu_s']:.2f}x",
            ]
        )
    return {"figures": figures, "iterations": runs, "table": markdown_table(rows)}


def _load(server: Server, args: ServeBenchArguments) -> dict[str, object]:
    """All clients for `seconds`: statuses, latencies, and the slowest client's share."""
    assert args.seconds is not None
    by_client = asyncio.run(_drive_for(server, args, args.seconds))
    replies = [reply for client in by_client for reply in client]
    counts = [len(client) for client in by_client]
    seconds = sorted(reply.seconds for reply in replies if reply.status == 200)
    statuses = {s: sum(r.status == s for r in replies) for s in {r.status for r in replies}}
    figures = {
        "requests": len(replies),
        "statuses": statuses,
        "p50_s": seconds[len(seconds) // 2],
        "p99_s": seconds[int(len(seconds) * 0.99)],
        "tokens_per_s": sum(reply.tokens for reply in replies) / args.seconds,
        "slowest_client_over_mean": min(counts) / statistics.mean(counts),
    }
    rows = [list(figures), [str(value) for value in figures.values()]]
    return {"figures": figures, "table": markdown_table(rows)}


async def _drive(
    server: Server, args: ServeBenchArguments, clients: int, requests: int
) -> list[Reply]:
    """Let so many clients send the requests 0, 1, ... between them."""
    left = iter(range(requests))

    async def client() -> list[Reply]:
        return [await _request(server, args, i) for i in left]

    return [reply for replies in await asyncio.gather(*(client() for _ in range(clients)))
            for reply in replies]  # fmt: skip


async def _drive_for(
    server: Server, args: ServeBenchArguments, seconds: float
) -> list[list[Reply]]:
    end = time.monotonic() + seconds

    async def client(number: int) -> list[Reply]:
        replies: list[Reply] = []
        while time.monotonic() < end:
            replies.append(await _request(server, args, number * 1000 + len(replies) % 1000))
        return replies

    return list(await asyncio.gather(*(client(i) for i in range(args.clients))))


async def _request(server: Server, args: ServeBenchArguments, number: int) -> Reply:
    """Send request `number` over a connection of its own."""
    fields = {
        "model": server.model,
        "messages": [{"role": "user", "content": f"What is {number} + {7 * number % 100}?"}],
        "max_completion_tokens": args.tokens,
        "max_tokens": args.tokens,
        "temperature": 1.0,
        "seed": number,
        "stream": False,
    }
    body = json.dumps(fields).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    begin = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head.encode() + body)
    said = await reader.read()
    writer.close()
    status = int(said.split(b" ", 2)[1])
    content = said.partition(b"\r\n\r\n")[2]
    tokens = json.loads(content)["usage"]["completion_tokens"] if status == 200 else 0
    return Reply(status=status, tokens=tokens, seconds=time.perf_counter() - begin)


def _ours(folder: Path, args: ServeBenchArguments) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "stages.serve", "--checkpoint", str(folder / "model")]
    # No tokens are kept for the answer: generate of transformers closes no thought either.
    options = ["--port", str(port), "--answer_tokens", "0", "--max_running", str(args.clients)]
    return Server([*command, *options], port, "model", folder, args.threads)


def _transformers(folder: Path, args: ServeBenchArguments) -> Server:
    port, model = free_port(), str(folder / "model")
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    options = ["--device", "cpu", "--continuous-batching"]
    return Server([*command, *options], port, model, folder, args.threads)
