"""Distillation: a local teacher, a server, selection by the grader, resume, the card."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch

from pipeline.config import OwnDataConfig
from pipeline.data import read_problems
from pipeline.distill import (
    DistillConfig,
    LocalTeacher,
    OpenAITeacher,
    SampleStore,
    SelectionConfig,
    TeacherSample,
    select,
)
from pipeline.model import save_policy
from pipeline.records import Problem
from stages import distill
from tests.chat_server import ChatServer, completion

KEY = "sk-secret-of-the-test"
SUMS = [Problem(question=f"What is {a} + 1?", answer=str(a + 1), id=str(a)) for a in (2, 3, 4)]


@pytest.fixture
def questions(tmp_path) -> Path:
    path = tmp_path / "sums.jsonl"
    rows = [{"question": p.question, "answer": p.answer, "id": p.id} for p in SUMS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def adds(body: dict):
    """The right answer with a thought; for an odd seed a wrong one."""
    a = int(body["messages"][-1]["content"].split()[2])
    total = a + 1 + body["seed"] % 2
    return completion(f"The answer is {total}.", reasoning_content=f"{a}+1={total}")


def command(url: str, questions: Path, out: Path, *more: str) -> list[str]:
    own = ["--dataset", str(questions), "--output_dir", str(out), "--overlap", "allow"]
    return ["--teacher", url, "--teacher_model", "m", "--n", "2", *own, *more]


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


# ---- selection ----


def chosen(*samples: TeacherSample, problem: Problem = SUMS[0], **config):
    return select([problem], {0: samples}, SelectionConfig(**config))


def test_right_and_distinct_samples_are_kept_and_every_other_has_a_reason():
    found = chosen(
        TeacherSample("2+1=3, surely", "3"),
        TeacherSample("2+1=3", "3"),
        TeacherSample(" 2+1=3\n", "The answer is 3."),  # equal to the one before
        TeacherSample("2+1=4", "4"),
        TeacherSample("", "3"),
        TeacherSample("2+1=3", "", "length"),
        TeacherSample("1+2=3", "3"),
        TeacherSample("a</think>b", "3"),
        max_per_question=2,
    )
    assert [row["thought"] for row in found.rows] == ["2+1=3", "1+2=3"]
    assert found.fates == {
        "kept": 2,
        "over max_per_question": 1,
        "repeated": 1,
        "wrong answer": 1,
        "no thought": 1,
        "cut by max_tokens": 1,
        "unclear tags": 1,
    }
    assert (found.right_Q, found.sampled_Q) == ([4], [8])


def test_the_first_samples_are_kept_where_the_shortest_are_not_preferred():
    samples = TeacherSample("2+1=3, surely", "3"), TeacherSample("2+1=3", "3")
    assert chosen(*samples, prefer="first").rows[0]["thought"] == "2+1=3, surely"


def test_the_visible_text_is_the_expected_answer_or_the_teachers():
    sample = TeacherSample("2+1=3", "The answer is 3.")
    assert chosen(sample).rows[0]["answer"] == "3"
    assert chosen(sample, visible="teacher").rows[0]["answer"] == "The answer is 3."


def test_a_text_without_tags_is_a_thought_only_on_request():
    sample = TeacherSample("", "2+1=3. The answer is 3.")
    assert chosen(sample).rows == []
    assert chosen(sample, plain_as_thought=True).rows[0]["thought"] == sample.answer


def test_a_program_is_the_teachers_own_and_can_be_graded_when_read_again(tmp_path):
    test = {"judge": "program", "kind": "stdio", "inputs": ["2\n"], "outputs": ["4"]}
    problem = Problem(question="Double it.", answer="reference", check=json.dumps(test))
    program = "```python\nprint(2 * int(input()))  #### not a mark\n```"
    (row,) = chosen(TeacherSample("Multiply.", program), problem=problem).rows
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "check": "", "answer": "5"}))
    own = OwnDataConfig(columns="check=check")
    again, plain = read_problems(str(path), "train", own=own).problems
    assert (again.answer, again.thought, again.check) == (program, "Multiply.", problem.check)
    assert (plain.answer, plain.check) == ("5", "")


# ---- teachers ----


def test_a_local_teacher_samples_every_question_alike_whatever_is_left(planted, tokenizer):
    model = planted({"2+1=3</think>3<eos>": 0.5, "2+1=4</think>4<eos>": 0.5})
    config = DistillConfig(
        teacher="x", output_dir="y", n=4, temperature=1.0, max_tokens=32, batch_size=4
    )
    teacher = LocalTeacher(model, tokenizer, config)
    every = dict(teacher.sample(dict(enumerate(SUMS))))
    assert {(s.thought, s.answer, s.finish) for group in every.values() for s in group} == {
        ("2+1=3", "3", "stop"),
        ("2+1=4", "4", "stop"),
    }
    assert dict(teacher.sample({2: SUMS[2]})) == {2: every[2]}


def test_a_thought_that_the_budget_ends_is_no_example(planted, tokenizer):
    model = planted({"2+1=3, and so on</think>3<eos>": 1.0})
    config = DistillConfig(teacher="x", output_dir="y", n=2, temperature=1.0, max_tokens=6)
    ((_, samples),) = LocalTeacher(model, tokenizer, config).sample({0: SUMS[0]})
    assert [sample.finish for sample in samples] == ["length", "length"]


def api_samples(reply, *, key: str = "", **options):
    waits: list[float] = []
    with ChatServer(reply) as server:
        given = {"n": 1, "output_dir": "y", "teacher_model": "m"} | options
        config = DistillConfig(teacher=server.url, **given)
        with OpenAITeacher(config, key, system="Add.", sleep=waits.append) as teacher:
            found = dict(teacher.sample(dict(enumerate(SUMS))))
    return found, server.requests, waits


def test_a_server_is_asked_once_a_sample_with_key_limit_and_seed():
    found, requests, waits = api_samples(adds, key=KEY, n=2, max_tokens=99)
    assert found[0] == [
        TeacherSample("2+1=3", "The answer is 3.", tokens=7),
        TeacherSample("2+1=4", "The answer is 4.", tokens=7),
    ]
    assert len(found) == 3 and waits == []
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers, _ in requests)
    assert sorted(body["seed"] for _, body in requests) == list(range(6))
    body = requests[0][1]
    assert (body["model"], body["max_tokens"]) == ("m", 99)
    assert body["messages"][0] == {"role": "system", "content": "Add."}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (completion("<think>2+1=3</think>3"), TeacherSample("2+1=3", "3", tokens=7)),
        (completion("3", reasoning="2+1=3"), TeacherSample("2+1=3", "3", tokens=7)),
        (completion("3"), TeacherSample("", "3", tokens=7)),
        (completion("", "length", reasoning="2"), TeacherSample("2", "", "length", 7)),
        (
            completion("2</think>3</think>"),
            TeacherSample("", "2</think>3</think>", "unclear tags", 7),
        ),
    ],
)
def test_the_thought_of_a_server_is_found_where_it_stands(reply, expected):
    assert api_samples(lambda body: reply)[0][0] == [expected]


def test_a_busy_server_is_asked_again_and_a_refused_question_is_left_out():
    count = {"calls": 0}

    def busy(body):
        count["calls"] += 1
        if count["calls"] <= 2:
            return 429, {"error": {"message": "slow down"}}
        return (
            (400, {"error": "too long"}) if "4 +" in body["messages"][-1]["content"] else adds(body)
        )

    found, _, waits = api_samples(busy, concurrency=1)
    assert len(waits) == 2 and 0.5 <= waits[0] <= 1.5 and 1.0 <= waits[1] <= 3.0
    assert [found[i][0].finish for i in range(3)] == ["stop", "stop", "refused"]


def test_a_server_that_stays_away_is_an_error_of_one_line():
    with pytest.raises(OSError, match=r"status 503 after 3 tries; the same command continues"):
        api_samples(lambda body: (503, {}), retries=2)


def test_a_request_without_an_answer_neither_keeps_the_program_running_nor_asks_on(monkeypatch):
    asked: list[bool] = []

    def ask(self, problem, seed):
        asked.append(threading.current_thread().daemon)
        raise ValueError("no answer")

    monkeypatch.setattr(OpenAITeacher, "_ask", ask)
    with pytest.raises(ValueError, match="no answer"):
        api_samples(adds, concurrency=1)
    assert asked == [True]


def test_after_an_error_the_questions_that_are_left_are_not_asked(monkeypatch):
    """One of two requests fails while the other one waits for its answer."""
    asked: list[int] = []
    workers: list[threading.Thread] = []
    both, answered = threading.Barrier(2), threading.Event()

    def ask(self, problem, seed):
        asked.append(seed)
        workers.append(threading.current_thread())
        both.wait(10)
        if seed == 0:
            raise ValueError("no answer")
        answered.wait(10)
        return TeacherSample("", "2", tokens=1)

    monkeypatch.setattr(OpenAITeacher, "_ask", ask)
    with pytest.raises(ValueError, match="no answer"):
        api_samples(adds, concurrency=2)
    answered.set()
    for worker in workers:
        worker.join(20)
    assert sorted(asked) == [0, 1]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((401, {"error": {"message": f"bad key {KEY}"}}), "status 401: bad key <API_KEY>; check"),
        (
            (400, {"error": {"message": "no such field"}}),
            "the first 3 questions: no such field",
        ),
        ((200, {"hello": 1}), "does not answer with a chat completion"),
    ],
)
def test_a_server_that_refuses_is_an_error_that_never_has_the_key(reply, said):
    with pytest.raises(ValueError, match=said) as caught:
        api_samples(lambda body: reply, key=KEY)
    assert KEY not in str(caught.value)


# ---- the command ----


def test_the_command_makes_rows_that_sft_reads_and_a_card(questions, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    out = tmp_path / "out"
    with ChatServer(adds) as server:
        distill.main(command(server.url, questions, out, "--api_key_env", "TEACHER_KEY"))
    assert server.requests[0][0]["Authorization"] == f"Bearer {KEY}"
    assert [row["thought"] for row in rows_of(out)] == ["2+1=3", "3+1=4", "4+1=5"]
    problems = read_problems(str(out / "train.jsonl"), "train").problems
    first = problems[0]
    assert (first.question, first.thought, first.answer) == ("What is 2 + 1?", "2+1=3", "3")
    card = json.loads((out / "data_card.json").read_text())
    assert card["splits"]["train.jsonl"]["kept"] == 3
    assert card["samples"] == {
        "questions": 3,
        "questions_with_a_right_sample": 3,
        "mean_right": 0.5,
        "samples": {"wrong answer": 3, "kept": 3},
        "rows": 3,
    }
    assert "| mean share of right samples | 0.5 |" in (out / "README.md").read_text()
    assert f"--dataset {out / 'train.jsonl'}" in capsys.readouterr().out
    written = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    assert KEY.encode() not in written and b"TEACHER_KEY" in written


def test_a_stopped_command_asks_only_for_what_is_missing(questions, tmp_path, capsys):
    out = tmp_path / "out"
    with ChatServer(adds) as server:
        more = ["--concurrency", "1", "--retries", "0"]
        broken = {"left": 3}

        def breaks(body):
            broken["left"] -= 1
            return adds(body) if broken["left"] >= 0 else (503, {})

        with ChatServer(breaks) as breaking, pytest.raises(SystemExit):
            # The address is a setting, so that samples of two teachers never mix.
            distill.main(command(breaking.url, questions, out, *more))
        assert "503 after 1 tries" in capsys.readouterr().err
        assert [json.loads(x)["number"] for x in (out / "samples.jsonl").open()] == [0]
        with pytest.raises(SystemExit):
            distill.main(command(server.url, questions, out, *more))
        assert "has samples with teacher=" in capsys.readouterr().err
        settings = json.loads((out / "sampling.json").read_text())
        (out / "sampling.json").write_text(json.dumps(settings | {"teacher": server.url}))
        with (out / "samples.jsonl").open("a") as file:
            file.write('{"number": 1, "sam')  # a line that a kill has cut
        distill.main(command(server.url, questions, out, *more))
        asked = {body["messages"][-1]["content"] for _, body in server.requests}
        assert asked == {"What is 3 + 1?", "What is 4 + 1?"}
        distill.main(command(server.url, questions, out, *more, "--visible", "teacher"))
        assert len(server.requests) == 4
    assert [row["answer"] for row in rows_of(out)] == [f"The answer is {a}." for a in (3, 4, 5)]


@pytest.mark.parametrize("changed", ["weights", "questions"])
def test_samples_of_another_checkpoint_at_the_same_path_are_refused(
    questions, tiny_policy, tokenizer, tmp_path, capsys, changed
):
    save_policy(tiny_policy, tokenizer, tmp_path / "teacher")
    arguments = [
        *("--teacher", str(tmp_path / "teacher"), "--dataset", str(questions)),
        *("--output_dir", str(tmp_path / "out"), "--overlap", "allow"),
        *("--n", "2", "--max_tokens", "4"),
    ]
    with pytest.raises(SystemExit):
        distill.main(arguments)
    assert "no sample of 6 is right" in capsys.readouterr().err
    samples = tmp_path / "out" / "samples.jsonl"
    samples.write_text(samples.read_text()[:-20])  # the last question has to be sampled again
    if changed == "weights":
        with torch.no_grad():
            tiny_policy.lm_head.weight.mul_(1.5)
        save_policy(tiny_policy, tokenizer, tmp_path / "teacher")
    else:
        questions.write_text(
            json.dumps({"question": "?", "answer": "1"}) + "\n" + questions.read_text()
        )
    with pytest.raises(SystemExit) as stop:
        distill.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"has samples with {changed}=" in error
    assert "choose another --output_dir or delete it" in error


def test_where_no_sample_is_missing_the_teacher_is_not_needed(
    questions, tiny_policy, tokenizer, tmp_path, capsys
):
    save_policy(tiny_policy, tokenizer, tmp_path / "teacher")
    arguments = ["--teacher", str(tmp_path / "teacher"), "--dataset", str(questions)]
    arguments += ["--output_dir", str(tmp_path / "out"), "--n", "2", "--max_tokens", "4"]
    for _ in range(2):
        with pytest.raises(SystemExit):
            distill.main([*arguments, "--overlap", "allow"])
        assert "no sample of 6 is right" in capsys.readouterr().err
        shutil.rmtree(tmp_path / "teacher", ignore_errors=True)
    with pytest.raises(SystemExit):
        distill.main([*arguments, "--overlap", "allow", "--chat_template", "plain"])
    assert "has samples with template=own" in capsys.readouterr().err


def test_without_a_right_sample_there_is_no_data_set(questions, tmp_path, capsys):
    server = ChatServer(lambda body: completion("0", reasoning="no"))
    with server, pytest.raises(SystemExit) as caught:
        distill.main(command(server.url, questions, tmp_path / "out"))
    assert caught.value.code == 2
    assert "no sample of 6 is right and complete (6 wrong answer)" in capsys.readouterr().err
    assert not (tmp_path / "out" / "train.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"teacher": "http://a:b@host/v1"}, "without user, password or query"),
        ({"teacher": "http://host/v1", "teacher_model": None}, "name one with --teacher_model"),
        ({"temperature": 0.0}, "are all the same"),
        ({"max_per_question": 0}, "max_per_question=0 must be at least 1"),
        ({"teacher": ""}, "--teacher is missing"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(options, said):
    given = {"teacher": "runs/x", "teacher_model": "m", "output_dir": "y"} | options
    with pytest.raises(ValueError, match=said):
        DistillConfig(**given)


def test_a_key_crosses_a_network_in_plain_text_only_with_a_warning():
    def unencrypted(teacher: str, key: str) -> bool:
        config = DistillConfig(teacher=teacher, teacher_model="m", output_dir="y")
        with OpenAITeacher(config, key) as made:
            return made.sends_key_unencrypted

    assert unencrypted("http://host/v1", KEY)
    assert not unencrypted("https://host/v1", KEY)
    assert not unencrypted("http://127.0.0.1/v1", KEY)
    assert not unencrypted("http://host/v1", "")


def test_a_damaged_line_is_named_and_its_question_is_asked_again_without_it(tmp_path):
    store = SampleStore(tmp_path, {"n": 1})
    for number in range(3):
        store.add(number, [TeacherSample("2+1=3", "3")])
    path = tmp_path / "samples.jsonl"
    first, second, third = path.read_text().splitlines(keepends=True)
    for damaged in ("garbage\n", '{"number": 1}\n', second.replace("thought", "though")):
        path.write_text(first + damaged + third)
        with pytest.raises(ValueError, match=r"samples.jsonl is damaged .*; delete its line 2"):
            SampleStore(tmp_path, {"n": 1})
    path.write_text(first + third)
    assert set(SampleStore(tmp_path, {"n": 1}).samples) == {0, 2}


def test_a_store_refuses_the_folder_of_another_result(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an evaluation"):
        SampleStore(tmp_path, {})
