"""Counters of the server, in the text format of Prometheus."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from threading import Lock

from pipeline.records import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
GAUGES = {
    "requests_running": "requests that are answered now",
    "requests_waiting": "requests that wait",
    "batch_rows": "sequences in the batch now",
}


class Histogram:
    """Counts of durations by upper bound.

    >>> times = Histogram()
    >>> times.add(0.07)
    >>> [line for line in times.lines("t") if 'le="0.1"' in line or "count" in line]
    ['t_bucket{le="0.1"} 1', 't_count 1']
    """

    def __init__(self) -> None:
        self.counts, self.sum = [0] * (len(SECONDS) + 1), 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        """The samples of a histogram of Prometheus."""
        below = 0
        for bound, count in zip((*SECONDS, "+Inf"), self.counts, strict=True):
            below += count
            yield f'{name}_bucket{{le="{bound}"}} {below}'
        yield f"{name}_sum {self.sum:.6f}"
        yield f"{name}_count {below}"


class Metrics:
    """What has happened since the start."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.requests: Counter[int] = Counter()  # by status; 499 is a client that went away
        self.tokens: Counter[str] = Counter()
        self.seconds, self.first_token_seconds = Histogram(), Histogram()

    def finished(self, status: int, seconds: float, usage: Usage | None = None) -> None:
        """Count a request that has ended."""
        with self._lock:
            self.requests[status] += 1
            self.seconds.add(seconds)
            if usage is not None:
                self.tokens["prompt"] += usage.prompt_tokens
                self.tokens["reasoning"] += usage.reasoning_tokens
                self.tokens["visible"] += usage.visible_tokens

    def first_token(self, seconds: float) -> None:
        """Count the time from a request to its first token, be it thought or answer."""
        with self._lock:
            self.first_token_seconds.add(seconds)

    def text(self, gauges: Mapping[str, float], counters: Mapping[str, float]) -> str:
        """All metrics; `gauges` are those of GAUGES, `counters` those of the decode loop."""
        with self._lock:
            lines = [*self._lines(gauges, counters)]
        return "\n".join(lines) + "\n"

    def _lines(self, gauges: Mapping[str, float], counters: Mapping[str, float]) -> Iterator[str]:
        yield from _head("requests_total", "counter", "requests by status of the response")
        for status, count in sorted(self.requests.items()):
            yield f'thinkhead_requests_total{{status="{status}"}} {count}'
        yield from _head("tokens_total", "counter", "tokens of finished requests")
        for kind in ("prompt", "reasoning", "visible"):
            yield f'thinkhead_tokens_total{{kind="{kind}"}} {self.tokens[kind]}'
        for name, value in counters.items():
            yield from _head(name, "counter", name.removesuffix("_total").replace("_", " "))
            yield f"thinkhead_{name} {value:g}"
        for name, text in GAUGES.items():
            yield from _head(name, "gauge", text)
            yield f"thinkhead_{name} {gauges[name]:g}"
        histograms = {
            "request_seconds": (self.seconds, "duration of requests"),
            "first_token_seconds": (self.first_token_seconds, "time to the first token"),
        }
        for name, (histogram, text) in histograms.items():
            yield from _head(name, "histogram", text)
            yield from histogram.lines(f"thinkhead_{name}")


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP thinkhead_{name} {text}", f"# TYPE thinkhead_{name} {kind}"
