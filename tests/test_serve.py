"""The HTTP server: responses, streams, batching, limits, and that no thought gets out."""

import json
import os
import random
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.chat.tags import END_THINK, THINK
from pipeline.search import STRATEGIES, SearchOptions
from pipeline.serve.decode_loop import BatchedEngine, DecodeLoop
from pipeline.serve.plan import plan_of
from pipeline.serve.requests import ChatRequest
from tests.serving import KEY, Running, served

CANARY = "QZXJQZXJ"
LEAKS = ("QZ", "ZX", "XJ", "JQ")  # two letters of the canary are enough to see it
WITH_CANARY = {f"{CANARY}{END_THINK}the sum is 2.<eos>": 1.0}
ASK = [{"role": "user", "content": "1+1?"}]


@pytest.fixture(scope="module")
def tiny(_tiny_policy, tokenizer):
    with served(_tiny_policy, tokenizer) as running:
        yield running


@pytest.fixture
def secret(planted):
    """A server of a model that thinks of the canary and answers "the sum is 2."."""
    model = planted(WITH_CANARY)
    with served(model, model.tokenizer) as running:
        yield running


def events(body: str) -> list[dict]:
    """The chunks of a stream, which has to end in [DONE]."""
    lines = [line for line in body.split("\n\n") if line and not line.startswith(":")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def streamed(running: Running, field: str = "content", **fields) -> list[str]:
    """The text of every choice of a streamed response, put together."""
    chunks = events(running.chat(stream=True, **fields).text)
    texts = [""] * fields.get("n", 1)
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get(field, "")
    return texts


def test_a_response_has_the_form_of_the_openai_api(secret):
    body = secret.chat(model="tiny").json()
    (choice,) = body["choices"]
    assert body["object"] == "chat.completion" and body["model"] == "tiny"
    assert choice["message"] == {"role": "assistant", "content": "the sum is 2."}
    assert choice["finish_reason"] == "stop"
    usage = body["usage"]
    # Eight letters and </think>; thirteen letters and the end token.
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 9}
    assert usage["completion_tokens"] == 9 + 14
    assert usage["total_tokens"] == usage["prompt_tokens"] + 23


def test_a_stream_has_the_same_text_in_pieces_and_the_usage_at_the_end(secret):
    response = secret.chat(stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    first, *_, last, usage = chunks = events(response.text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 23
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[1:-2]]
    assert "".join(deltas) == "the sum is 2." and len(deltas) == 10  # spaces come with a letter
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_streamed_answer_equals_the_plain_one(tiny, temperature):
    fields = {"temperature": temperature, "seed": 5, "max_completion_tokens": 24}
    assert streamed(tiny, **fields) == [tiny.text(**fields)]


def test_the_seed_makes_an_answer_repeatable_and_another_seed_another_answer(tiny):
    fields = {"temperature": 1.5, "n": 3, "max_completion_tokens": 12}
    first, again, other = (
        [c["message"]["content"] for c in tiny.chat(seed=seed, **fields).json()["choices"]]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first)) > 1


def test_requests_that_share_a_batch_have_the_text_they_have_alone(tiny):
    questions = [f"What is {i} + {i * i}? {'Think. ' * (i % 5)}" for i in range(6)]
    alone = [tiny.text(q, max_completion_tokens=16 + i) for i, q in enumerate(questions)]
    steps = tiny.service.answering.loop.steps
    with ThreadPoolExecutor(6) as pool:
        together = pool.map(
            lambda pair: tiny.text(pair[1], max_completion_tokens=16 + pair[0]),
            enumerate(questions),
        )
    assert list(together) == alone
    # One by one these are 111 forwards of the batch.
    assert tiny.service.answering.loop.steps - steps < 80


def test_a_sampled_answer_is_that_of_the_strategy_without_a_server(tiny):
    found = tiny.text(temperature=0.9, seed=7, max_completion_tokens=16)
    options = SearchOptions(temperature=0.9, seed=7, max_sample_tokens=16, answer_tokens=4)
    answering = tiny.service.answering
    (answer,) = STRATEGIES["sample"](answering.model, answering.tokenizer, [ASK], options)
    assert found == answer.text


@pytest.mark.parametrize("strategy", ["consensus", "mcts"])
def test_a_search_runs_in_the_same_batch(tiny, strategy):
    options = {"simulations": 2, "branches": 2, "step_tokens": 8}
    fields = {"strategy_options": {"n": 3} if strategy == "consensus" else options}
    response = tiny.chat(strategy=strategy, seed=3, max_completion_tokens=60, **fields)
    assert response.status_code == 200, response.text
    usage = response.json()["usage"]
    assert 0 < usage["completion_tokens"] <= 60
    stream = streamed(tiny, strategy=strategy, seed=3, max_completion_tokens=60, **fields)
    assert stream == [response.json()["choices"][0]["message"]["content"]]


def test_the_samples_of_a_vote_are_decoded_together_without_a_bound_of_one(planted):
    model = planted({f"1+1=2{END_THINK}2<eos>": 1.0})  # 8 tokens
    with served(model, model.tokenizer, options=SearchOptions()) as running:
        loop = running.service.answering.loop
        for total in ({}, {"max_completion_tokens": 2400}):
            steps = loop.steps
            response = running.chat(strategy="consensus", temperature=1, **total).json()
            assert response["usage"]["completion_tokens"] == 8 * 8
            assert loop.steps - steps <= 8 + 1


def test_a_vote_with_a_sample_that_does_not_end_is_that_of_the_strategy_without_a_server(planted):
    model = planted({f"1+1=2{END_THINK}2<eos>": 0.7, f"{'a' * 2000}{END_THINK}3<eos>": 0.3})
    with served(model, model.tokenizer, options=SearchOptions()) as running:
        for seed in range(2):
            body = running.chat(strategy="consensus", seed=seed, temperature=1).json()
            options = SearchOptions(n=8, temperature=1.0, seed=seed)
            (answer,) = STRATEGIES["consensus"](model, model.tokenizer, [ASK], options)
            assert body["choices"][0]["message"]["content"] == answer.text == "2"
            assert body["usage"]["completion_tokens"] == answer.usage.completion_tokens > 256


def test_the_samples_of_a_vote_by_default_do_not_reach_other_searches(_tiny_policy, tokenizer):
    options = SearchOptions(n=4, max_sample_tokens=12, answer_tokens=4)
    with served(_tiny_policy, tokenizer, options=options, strategy="consensus") as running:
        for strategy in ("beam", "mcts", "revise", "greedy"):
            response = running.chat(strategy=strategy, max_completion_tokens=12)
            assert response.status_code == 200, response.text


def test_a_stop_text_ends_the_visible_answer_and_is_not_part_of_it(secret):
    body = secret.chat(stop=[" is", "2"]).json()
    assert body["choices"][0]["message"]["content"] == "the sum"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == 9 + len("the sum is")
    assert streamed(secret, stop=" is") == ["the sum"]
    assert secret.text(stop=["JQ", END_THINK]) == "the sum is 2."  # they are in the thought


def test_a_stop_text_is_found_where_its_characters_have_several_tokens(_tiny_policy, tokenizer):
    ids = tokenizer("2🙂🙂", add_special_tokens=False).input_ids
    assert len(ids) == 1 + 2 * 4  # a token a byte
    loop, never = DecodeLoop(_tiny_policy), threading.Event()
    engine = BatchedEngine(_tiny_policy, tokenizer, loop=loop, cancelled=never, stop=["🙂🙂"])
    assert [engine.stops(ids[:n], closed=True) for n in (7, 8, 9)] == [False, False, True]


def test_effort_and_tokens_bound_thought_and_answer_together(tiny):
    for fields, most in [
        ({"max_completion_tokens": 7}, 7),
        ({"max_tokens": 9}, 9),
        ({"reasoning_effort": "low"}, 40),  # the path of this server
        ({"reasoning_effort": "low", "max_completion_tokens": 11}, 11),
    ]:
        usage = tiny.chat(**fields).json()["usage"]
        assert usage["completion_tokens"] <= most


def test_a_bound_of_the_request_replaces_that_of_the_server():
    defaults = SearchOptions(reasoning_effort="low", efforts="low=30,medium=60,high=90")

    def bound(**fields) -> int | None:
        plan = plan_of(
            ChatRequest(messages=ASK, **fields), defaults, strategy="greedy", token_limit=4096
        )
        return plan.options.max_completion_tokens

    assert bound() == 30
    assert bound(reasoning_effort="high") == 90
    assert bound(max_completion_tokens=70) == 70
    assert bound(max_completion_tokens=70, reasoning_effort="high") == 70
    assert bound(max_completion_tokens=70, reasoning_effort="medium") == 60


def test_without_effort_the_answer_follows_at_once(planted):
    model = planted({f"{CANARY}{END_THINK}2<eos>": 0.9, f"{END_THINK}3<eos>": 0.1})
    with served(model, model.tokenizer) as running:
        body = running.chat(reasoning_effort="none").json()
        assert running.text() == "2"
    assert body["choices"][0]["message"]["content"] == "3"
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}


def test_with_show_reasoning_the_thought_is_sent_apart(planted):
    model = planted(WITH_CANARY)
    with served(model, model.tokenizer, show_reasoning=True) as running:
        message = running.chat().json()["choices"][0]["message"]
        assert message["reasoning_content"] == CANARY and message["content"] == "the sum is 2."
        assert streamed(running, "reasoning_content") == [CANARY]
        assert streamed(running) == ["the sum is 2."]


def test_a_search_tree_is_sent_with_show_reasoning_only(tiny, _tiny_policy, tokenizer):
    options = {"simulations": 2, "branches": 2, "step_tokens": 6}
    fields = {"strategy": "mcts", "strategy_options": options, "return_tree": True}
    refused = tiny.chat(**fields)
    assert refused.status_code == 400 and "--show_reasoning" in refused.text
    with served(_tiny_policy, tokenizer, show_reasoning=True) as running:
        tree = running.chat(max_completion_tokens=40, **fields).json()["search_tree"]
        last = events(running.chat(max_completion_tokens=40, stream=True, **fields).text)[-1]
    assert tree["question"] == "1+1?" and len(tree["nodes"]) > 1
    assert "search_tree" in last


def test_a_served_tree_has_as_many_visits_as_simulations(planted):
    steps = {f"{a}+1=2\n{b}+2=4\n{END_THINK}7<eos>": 0.1 for a in "aceg" for b in "xyz"}
    model = planted(steps, lambda text: 0.5)
    fields = {"strategy": "mcts", "strategy_options": {"simulations": 12}, "return_tree": True}
    with served(model, model.tokenizer, options=SearchOptions(), show_reasoning=True) as running:
        for total in ({}, {"max_completion_tokens": 2000}):
            tree = running.chat(temperature=1, **fields, **total).json()["search_tree"]
            assert tree["nodes"][0]["visits"] == 12


@pytest.mark.parametrize(
    "completion",
    [
        f"{CANARY}{END_THINK}the sum is 2.<eos>",
        f"{CANARY}{END_THINK}the{THINK}{CANARY}{END_THINK} sum<eos>",
        f"{CANARY}{END_THINK}the{THINK}{CANARY}<eos>",
        f"{THINK}{CANARY}{END_THINK}2{END_THINK}3<eos>",
        f"{CANARY * 4}",
        f"stop{CANARY}stop{END_THINK}2<eos>",
    ],
    ids=["closed", "reopened", "reopened and open", "doubled tags", "never closed", "stop inside"],
)
def test_no_response_has_any_part_of_a_thought(planted, caplog, completion):
    caplog.set_level("DEBUG")
    model = planted({completion.replace(THINK, "\0"): 1.0})
    think = model.tokenizer.convert_tokens_to_ids(THINK)
    zero = model.tokenizer.convert_tokens_to_ids("\0")
    model.completions = {
        tuple(think if i in (zero, None) else i for i in ids): p
        for ids, p in model.completions.items()
    }
    options = SearchOptions(max_sample_tokens=30, answer_tokens=0)
    said = ""
    with served(model, model.tokenizer, options=options) as running:
        for fields in (
            {},
            {"n": 3, "temperature": 1},
            {"stop": ["stop", "JQ"]},
            {"max_completion_tokens": 5},
            {"max_completion_tokens": 13},
            {"strategy": "consensus", "strategy_options": {"n": 3}},
            {"return_tree": True},
            {"reasoning_effort": "high"},
        ):
            response = running.chat(stream=len(said) % 2 == 0, **fields)
            assert response.status_code in (200, 400), response.text
            said += response.text + str(response.headers)
        said += running.client.get("/metrics").text
    said += caplog.text
    assert [part for part in LEAKS if part in said] == []


def failing_at(model, number: int, begun: threading.Event | None = None) -> list[int]:
    """Let one forward of the model fail, after `begun` is set; the list holds the calls so far."""
    forward, calls = model.forward, []

    def failing(**inputs):
        calls.append(1)
        if len(calls) == number:
            if begun is not None:
                assert begun.wait(20)
            raise RuntimeError(f"the thought was {CANARY}")
        return forward(**inputs)

    model.forward = failing
    return calls


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_the_model_is_status_500_without_any_text_and_the_next_request_works(
    planted, caplog, stream
):
    model = planted(WITH_CANARY)
    failing_at(model, 1)  # before there is a token: also a stream has not begun
    with served(model, model.tokenizer) as running:
        failed = running.chat(stream=stream)
        assert failed.status_code == 500 and failed.json()["error"]["type"] == "server_error"
        assert running.text() == "the sum is 2."
        assert running.client.get("/health").status_code == 200
    assert "RuntimeError" in caplog.text and "QZ" not in caplog.text + failed.text


def test_an_error_in_a_stream_that_has_begun_is_its_last_event(planted, caplog):
    model, begun, body = planted(WITH_CANARY), threading.Event(), ""
    failing_at(model, 6, begun)
    ask = {"messages": ASK, "stream": True}
    with served(model, model.tokenizer) as running:
        with running.client.stream("POST", "/v1/chat/completions", json=ask) as response:
            for part in response.iter_text():
                body += part
                begun.set()  # the status and the first chunk are here
        first, *_, last = events(body)
        assert response.status_code == 200
        assert first["choices"][0]["delta"]["role"] == "assistant"
        assert last["error"]["code"] == 500
        assert running.text() == "the sum is 2."
    assert "RuntimeError" in caplog.text and "QZ" not in caplog.text + body


def test_a_hundred_forced_errors_show_no_code(planted):
    model = planted(WITH_CANARY)
    kinds = (RuntimeError, ValueError, KeyError, ZeroDivisionError, MemoryError)
    forward, said = model.forward, ""

    def failing(**inputs):
        raise kinds[len(said) % len(kinds)](f"at {__file__}: {CANARY}")

    with served(model, model.tokenizer) as running:
        model.forward = failing
        for i in range(100):
            response = running.chat(stream=i % 2 == 0)
            assert response.status_code in (200, 500)
            said += response.text + str(response.headers)
        model.forward = forward
        assert running.text() == "the sum is 2."
    for part in ("Traceback", 'File "', ".py", "Error", CANARY):
        assert part not in said.replace("server_error", ""), part


@pytest.mark.parametrize("times", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_a_client_that_goes_away_frees_its_place(planted, times):
    model = planted({f"{'a' * 3000}{END_THINK}2<eos>": 1.0})
    options = SearchOptions(max_sample_tokens=3000)
    with served(model, model.tokenizer, options=options, max_running=2) as running:
        running.client.get("/health")  # its connection stays
        descriptors, tasks = len(os.listdir("/proc/self/fd")), running.tasks()
        for i in range(times):
            body = json.dumps({"messages": ASK, "stream": i % 2 == 0}).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection = running.raw()
            connection.sendall(head.encode() + body)
            while not running.service.answering.loop.batch.rows:
                time.sleep(0.001)
            connection.close()
            assert running.idle()
        while running.service.metrics.requests.total() < times:  # counted at the very end
            time.sleep(0.001)
        assert running.service.metrics.requests == {499: times}
        assert len(os.listdir("/proc/self/fd")) <= descriptors
        end = time.monotonic() + 20
        while running.tasks() > tasks and time.monotonic() < end:
            time.sleep(0.01)
        assert running.tasks() <= tasks


@pytest.mark.parametrize("count", [20, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_part_of_a_thought_in_any_of_many_responses(planted, caplog, count):
    """Of random requests: plain and streamed, cut anywhere, stopped, refused, and cancelled."""
    caplog.set_level("DEBUG")
    rng = random.Random(0)
    model = planted(
        {
            f"{CANARY}{END_THINK}two<eos>": 0.4,
            f"{CANARY}": 0.2,
            f"{CANARY}{END_THINK}{END_THINK}a{END_THINK}b<eos>": 0.2,
            f"{CANARY * 2}{END_THINK}<eos>": 0.2,
        }
    )
    options = SearchOptions(max_sample_tokens=30, answer_tokens=0)
    fields = [
        {
            "stream": rng.random() < 0.5,
            "temperature": rng.choice([0, 1]),
            "seed": i,
            **rng.choice([{}, {}, {"max_completion_tokens": rng.randint(1, 24)}]),
            **rng.choice([{}, {}, {"stop": rng.sample(["Q", "JQ", "t", "two", "o"], 2)}]),
            **rng.choice([{}, {}, {"reasoning_effort": rng.choice(["low", "none"])}]),
            **rng.choice([{}, {}, {}, {"n": 3, "temperature": 1}]),
            **rng.choice([{}] * 9 + [{"logprobs": True}, {"return_tree": True}, {"n": -1}]),
        }
        for i in range(count)
    ]

    def ask(i: int) -> list[str]:
        with running.client.stream(
            "POST", "/v1/chat/completions", json={"messages": ASK, **fields[i]}
        ) as response:
            assert response.status_code in (200, 400)
            said = str(response.headers)
            for j, text in enumerate(response.iter_text()):
                said += text
                if i % 10 == 7 and j == 2:  # goes away in the middle of a stream
                    break
        return [part for part in LEAKS if part in said]

    with served(model, model.tokenizer, options=options) as running, ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(ask, range(count)))
        log = running.client.get("/metrics").text + caplog.text
    assert [part for part in LEAKS if part in log] == []


@pytest.mark.slow
def test_many_clients_get_an_answer_or_are_told_to_wait(planted):
    model = planted({f"{CANARY * 2}{END_THINK}the sum is 2.<eos>": 0.7, f"a{END_THINK}3<eos>": 0.3})
    counts, statuses, end = [0] * 32, set(), time.monotonic() + 30

    def client(i: int) -> None:
        while time.monotonic() < end:
            response = running.chat(temperature=1, seed=counts[i], stream=i % 2 == 0)
            statuses.add(response.status_code)
            counts[i] += 1
            assert not any(part in response.text for part in LEAKS)

    with served(model, model.tokenizer, max_running=8) as running, ThreadPoolExecutor(32) as pool:
        list(pool.map(client, range(32)))
    assert 200 in statuses and statuses <= {200, 429, 503}
    assert min(counts) >= statistics.mean(counts) / 2, counts


def test_a_decode_loop_that_ends_leaves_no_request_waiting_and_stops_the_server(planted):
    model = planted({f"{'a' * 3000}{END_THINK}2<eos>": 1.0})
    options = SearchOptions(max_sample_tokens=3000)
    with served(model, model.tokenizer, options=options) as running, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.chat)
        while not running.service.answering.loop.batch.rows:
            time.sleep(0.001)
        running.service.answering.loop._drop_cancelled = lambda: 1 / 0
        assert answer.result(20).status_code == 503
        end = time.monotonic() + 20
        while not running.server.failed and time.monotonic() < end:
            time.sleep(0.01)
        assert running.server.failed


def test_a_full_queue_is_status_429_and_a_slow_request_503(planted):
    model = planted({f"{'a' * 8000}{END_THINK}2<eos>": 1.0})
    limits = {"max_running": 1, "max_waiting": 1, "request_seconds": 0.4}
    options = SearchOptions(max_sample_tokens=8000)
    with served(model, model.tokenizer, options=options, **limits) as running:
        with ThreadPoolExecutor(4) as pool:
            responses = list(pool.map(lambda _: running.chat(), range(4)))
        assert sorted(r.status_code for r in responses) == [429, 429, 503, 503]
        assert all(r.headers["retry-after"] == "1" for r in responses)
        assert running.idle()


def test_every_route_but_health_needs_the_key(planted):
    model = planted(WITH_CANARY)
    with served(model, model.tokenizer, api_key=KEY) as running:
        assert running.text() == "the sum is 2."
        app = running.server.config.app
        paths = [(next(iter(r.methods - {"HEAD"})), r.path) for r in app.routes]
        assert ("GET", "/health") in paths and len(paths) == 6
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic wrong"}):
            for method, path in paths:
                running.client.headers.pop("Authorization", None)
                response = running.client.request(method, path, headers=wrong)
                assert response.status_code == (200 if path == "/health" else 401), path
                assert "access-control-allow-origin" not in response.headers
        assert running.client.get("/", auth=("any", KEY)).status_code == 200


def test_without_a_key_only_loopback_names_are_served(secret):
    for host, status in [("evil.example", 421), ("localhost:80", 200), ("[::1]:80", 200)]:
        assert secret.client.get("/health", headers={"Host": host}).status_code == status


def test_models_metrics_and_health(secret):
    secret.text()
    (model,) = secret.client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny" and model["object"] == "model"
    assert secret.client.get("/v1/models/tiny").json() == model
    assert secret.client.get("/v1/models/other").json()["error"]["code"] == 404
    assert secret.client.get("/health").json() == {"status": "ok"}
    metrics = secret.client.get("/metrics").text
    assert 'thinkhead_requests_total{status="200"} 1' in metrics
    assert 'thinkhead_tokens_total{kind="reasoning"} 9' in metrics
    names = [line.split()[2] for line in metrics.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)) == 10


def test_the_openai_client_works(secret):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{secret.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    made = client.chat.completions.create(model="tiny", messages=ASK, seed=1)
    assert made.choices[0].message.content == "the sum is 2."
    assert made.usage.completion_tokens_details.reasoning_tokens == 9
    stream = client.chat.completions.create(model="tiny", messages=ASK, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "the sum is 2."
    voted = client.chat.completions.create(
        model="tiny", messages=ASK, extra_body={"strategy": "consensus"}
    )
    assert voted.usage.completion_tokens == 8 * 23
    with pytest.raises(openai.BadRequestError, match="no field"):
        client.chat.completions.create(model="tiny", messages=ASK, extra_body={"stragety": "x"})
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt", messages=ASK)


def test_a_server_that_stops_finishes_what_runs_and_refuses_the_rest(planted):
    model = planted({f"{'a' * 150}{END_THINK}2<eos>": 1.0})
    options = SearchOptions(max_sample_tokens=200)
    with served(model, model.tokenizer, options=options, stop_seconds=20) as running:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(running.text()))
        thread.start()
        while not running.service.answering.loop.batch.rows:
            time.sleep(0.001)
        running.service.admission.closed = True
        assert running.chat().status_code == 503
        assert running.client.get("/health").json()["status"] == "stopping"
        running.server.should_exit = True
        thread.join(20)
        assert answers == ["2"]


def test_the_page_asks_no_other_server_and_names_its_script_by_hash(secret):
    response = secret.client.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    assert "'sha256-" in policy and "unsafe" not in policy
    assert "http" not in response.text.replace("http-equiv", "")
    assert '"showReasoning": false' in response.text
