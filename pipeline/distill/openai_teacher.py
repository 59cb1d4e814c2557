"""A teacher behind an OpenAI-compatible address: POST /chat/completions, one request a sample.

The thought is the message's `reasoning_content` (DeepSeek, vLLM, SGLang) or `reasoning`, or stands
in the text between <think> and </think>. The key is sent as a header and never written.
"""

import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from types import TracebackType
from urllib.parse import urlsplit

from pipeline.config import require
from pipeline.distill.config import DistillConfig
from pipeline.distill.teacher import LENGTH, REFUSED, STOP, TeacherSample, split_text
from pipeline.records import Problem

PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # HTTP statuses worth another try
OF_THE_REQUEST = {400, 413, 422}  # the server refuses this question; others may pass
REFUSED_AT_FIRST = 3  # that many refused questions, and no answered one, are a mistake
LONGEST_WAIT = 60.0  # seconds between two tries
LOCAL = ("127.0.0.1", "::1", "localhost")
Outcome = list[TeacherSample] | Exception  # of one question


class OpenAITeacher:
    """Asks a server; use it with `with`, which closes the connections.

    Args:
        key: sent as `Authorization: Bearer KEY`; "" sends none.
        system: a system message before every question, "" for none.
        sleep: waits some seconds between two tries.

    Raises:
        ImportError: the package httpx2 is not installed.
    """

    def __init__(
        self,
        config: DistillConfig,
        key: str = "",
        *,
        system: str = "",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            import httpx2
        except ImportError:
            raise ImportError(
                f"teacher={config.teacher} is an address, which needs the package httpx2; run "
                "`pip install 'thinkhead[teacher]'`"
            ) from None
        self._http, self._config, self._system, self._sleep = httpx2, config, system, sleep
        self._key = key.strip()
        self._address = f"{config.teacher.rstrip('/')}/chat/completions"
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx2.Limits(max_connections=config.concurrency)
        self._client = httpx2.Client(headers=headers, timeout=config.timeout, limits=limits)

    def __enter__(self) -> "OpenAITeacher":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    @property
    def sends_key_unencrypted(self) -> bool:
        """Whether the key crosses a network as plain text."""
        parts = urlsplit(self._address)
        return bool(self._key) and parts.scheme == "http" and parts.hostname not in LOCAL

    def fingerprints(self) -> dict[str, object]:
        """Nothing: address and name of the model are all that is known of it."""
        return {}

    def sample(self, problems: Mapping[int, Problem]) -> Iterator[tuple[int, list[TeacherSample]]]:
        """As `Teacher.sample`, `concurrency` questions at a time.

        Raises:
            ValueError: the server refuses the key, the address or the first questions, or answers
                with something else than a chat completion.
            OSError: the server cannot be reached, or fails again and again.
        """
        left, done = deque(problems.items()), SimpleQueue[tuple[int, Outcome]]()
        for _ in range(min(self._config.concurrency, len(left))):
            # Daemon threads: a request without an answer must not keep the program running.
            threading.Thread(target=self._work, args=(left, done), daemon=True).start()
        held: list[tuple[int, list[TeacherSample]]] | None = []  # refused, none answered yet
        try:
            for _ in range(len(problems)):
                number, samples = done.get()
                if isinstance(samples, Exception):
                    raise samples
                if held is not None and all(each.finish == REFUSED for each in samples):
                    held.append((number, samples))
                    why = f"refuses the first {REFUSED_AT_FIRST} questions: {samples[0].answer}"
                    require(len(held) < REFUSED_AT_FIRST, self._said(why))
                    continue
                yield from held or ()
                held = None
                yield number, samples
            yield from held or ()
        finally:
            left.clear()  # the threads end after their request

    def _work(
        self, left: deque[tuple[int, Problem]], done: SimpleQueue[tuple[int, Outcome]]
    ) -> None:
        """Ask one question after the other until none is left, or one fails."""
        while True:
            try:
                number, problem = left.popleft()
            except IndexError:
                return
            try:
                done.put((number, self._samples(number, problem)))
            except Exception as error:
                done.put((number, error))
                return

    def _samples(self, number: int, problem: Problem) -> list[TeacherSample]:
        first = self._config.seed + number * self._config.n
        return [self._ask(problem, first + i) for i in range(self._config.n)]

    def _ask(self, problem: Problem, seed: int) -> TeacherSample:
        config = self._config
        prompt = problem.prompt
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        system = [{"role": "system", "content": self._system}] if self._system else []
        body = {
            "model": config.teacher_model,
            "messages": [*system, *turns],
            "temperature": config.temperature,
            config.token_field: config.max_tokens,
            "seed": seed,
        }
        status, answer = self._post(body)
        if status in OF_THE_REQUEST:
            return TeacherSample("", self._shortened(answer), REFUSED)
        require(
            status == 200,
            self._said(
                f"answers with status {status}: {self._shortened(answer)}; check the address, "
                f"--teacher_model, and the key in the variable {config.api_key_env}"
            ),
        )
        sample = parse_completion(answer)
        require(
            sample is not None,
            self._said(
                f"does not answer with a chat completion: {self._shortened(answer)}; give an "
                "address that ends in /v1"
            ),
        )
        assert sample is not None
        return sample

    def _post(self, body: Mapping[str, object]) -> tuple[int, object]:
        """(status, JSON or text of the response), after further tries where they may help."""
        for attempt in range(self._config.retries + 1):
            wait = min(LONGEST_WAIT, 2.0**attempt * (0.5 + random.random()))
            try:
                response = self._client.post(self._address, json=body)
            except self._http.TransportError as error:
                failed = f"cannot be reached ({type(error).__name__})"
            else:
                if response.status_code not in PASSING:
                    return response.status_code, _content(response.text)
                failed = f"answers with status {response.status_code}"
                wait = _retry_after(response.headers.get("retry-after", "")) or wait
            if attempt < self._config.retries:
                self._sleep(wait)
        raise OSError(
            self._said(
                f"{failed} after {self._config.retries + 1} tries; the same command continues "
                "with the questions that are left"
            )
        )

    def _said(self, what: str) -> str:
        """An error message without the key, which a server may repeat."""
        text = f"teacher={self._config.teacher} {what}"
        return text.replace(self._key, "<API_KEY>") if self._key else text

    def _shortened(self, answer: object) -> str:
        """The message of an error response, or its first characters."""
        found = answer
        if isinstance(found, Mapping):
            found = found.get("error", found)
            found = found.get("message", found) if isinstance(found, Mapping) else found
        text = " ".join(str(found).split())
        return (text.replace(self._key, "<API_KEY>") if self._key else text)[:200]


def parse_completion(answer: object) -> TeacherSample | None:
    """The sample of a response's JSON; None where it is no chat completion.

    >>> message = {"content": "2", "reasoning_content": "1+1=2"}
    >>> parse_completion({"choices": [{"message": message, "finish_reason": "stop"}]})
    TeacherSample(thought='1+1=2', answer='2', finish='stop', tokens=0)
    """
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(answer, Mapping) or not isinstance(choice, Mapping):
        return None
    if not isinstance(message, Mapping):
        return None
    usage = answer.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, Mapping) else 0
    tokens = count if isinstance(count, int) else 0
    finish = STOP if choice.get("finish_reason") in ("stop", None) else LENGTH
    text = message.get("content") or ""
    if isinstance(text, list):
        text = "\n".join(str(part.get("text", "")) for part in text if isinstance(part, Mapping))
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and thought.strip():
        return TeacherSample(thought.strip(), str(text).strip(), finish, tokens)
    return split_text(str(text), tokens, finish)


def _content(text: str) -> object:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return text


def _retry_after(header: str) -> float:
    """Seconds that a server asks to wait, at most LONGEST_WAIT; 0 where it names none."""
    return min(LONGEST_WAIT, float(header)) if header.isdigit() else 0.0
