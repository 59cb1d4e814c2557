"""One evaluation shared by several processes: the records of one, merged, resumed."""

import copy
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from eval import run
from eval.run import evaluate_checkpoint
from pipeline.answers import shared_folder
from pipeline.device import choose_device
from pipeline.hosts import Place
from pipeline.model import save_policy
from pipeline.records import Problem
from pipeline.search import STRATEGIES, SearchOptions

PROBLEMS = [
    Problem(question=f"What is {n} + 1?", answer=str(n + 1), level=str(n % 2), id=f"p{n}")
    for n in range(7)
]
PAIRS = SearchOptions(batch_size=2, max_completion_tokens=5, temperature=1.0)  # chunks of two


def records(folder: Path) -> list[dict]:
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture
def answered(monkeypatch) -> list[tuple[int, str]]:
    """(rank, question) of everything that is answered, by "sample"."""
    seen: list[tuple[int, str]] = []
    sample = STRATEGIES["sample"]

    def counted(model, tokenizer, questions, options):
        seen.extend((run.this_place().rank, question) for question in questions)
        return sample(model, tokenizer, questions, options)

    monkeypatch.setitem(STRATEGIES, "sample", counted)
    return seen


@pytest.fixture
def evaluate(monkeypatch, tiny_policy, tokenizer) -> Callable[..., list]:
    """`evaluate(folder, world)`: an evaluation by so many threads; what each has returned."""
    here = threading.local()
    monkeypatch.setattr(run, "this_place", lambda: getattr(here, "ranks", Place()))

    def start(folder: Path, world: int = 1) -> list:
        found: list = [None] * world

        def work(rank: int) -> None:
            here.ranks = Place(rank, world)
            policy = copy.deepcopy(tiny_policy)
            found[rank] = evaluate_checkpoint(policy, tokenizer, PROBLEMS, "sample", PAIRS, folder)

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(1, world)]
        for thread in threads:
            thread.start()
        work(0)
        for thread in threads:
            thread.join()
        return found

    return start


def test_two_processes_share_the_chunks_and_end_with_the_records_of_one(
    tmp_path, evaluate, answered
):
    (alone,) = evaluate(tmp_path / "one")
    answered.clear()
    metrics, nothing = evaluate(tmp_path / "two", world=2)
    assert records(tmp_path / "two") == records(tmp_path / "one")
    assert metrics["accuracy"] == alone["accuracy"] and metrics["n"] == 7 and nothing is None
    assert len(answered) == 7  # nothing twice
    shares = [[q for rank, q in answered if rank == wanted] for wanted in (0, 1)]
    assert [len(share) for share in shares] == [4, 3]  # chunks 0 and 2; chunks 1 and 3
    assert not list((tmp_path / "two").glob("*.part.jsonl"))


@pytest.mark.parametrize("world", [1, 3])
def test_chunks_of_a_killed_evaluation_are_used_by_any_number_of_processes(
    tmp_path, evaluate, answered, world
):
    evaluate(tmp_path / "whole")
    whole = (tmp_path / "whole" / "records.jsonl").read_text().splitlines()
    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / "settings.json").write_bytes((tmp_path / "whole" / "settings.json").read_bytes())
    chunk = {"start": 2, "rows": [json.loads(line) for line in whole[2:4]]}
    unfinished = '{"start": 6, "rows": [{"id": "p6"'
    (folder / "records-1.part.jsonl").write_text(json.dumps(chunk) + "\n" + unfinished)
    (folder / "records.jsonl").write_text("".join(line + "\n" for line in whole[:2]))
    answered.clear()
    evaluate(folder, world)
    assert records(folder) == records(tmp_path / "whole")
    assert sorted(question for _, question in answered) == [f"What is {n} + 1?" for n in (4, 5, 6)]
    assert not list(folder.glob("*.part.jsonl"))


def test_a_finished_evaluation_is_not_answered_again_by_several(tmp_path, evaluate, answered):
    evaluate(tmp_path)
    answered.clear()
    metrics, nothing = evaluate(tmp_path, world=2)
    assert answered == [] and metrics["n"] == 7 and nothing is None


def test_each_process_of_a_launch_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("pipeline.device.available_devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == "cuda:1"
    assert choose_device("cuda") == "cuda:0"
    monkeypatch.setattr("pipeline.device.available_devices", lambda: ["cpu"])
    assert choose_device("auto") == "cpu"


@pytest.mark.slow
def test_the_launched_command_writes_the_records_of_one_process(
    tmp_path, tiny_policy, tokenizer, launch
):
    save_policy(tiny_policy, tokenizer, tmp_path / "checkpoint")
    lines = [json.dumps({"question": p.question, "answer": p.answer}) for p in PROBLEMS]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    arguments = ["-m", "eval.run", "--checkpoint", tmp_path / "checkpoint", "--suite"]
    arguments += [tmp_path / "own.jsonl", "--strategy", "sample", "--batch_size", "2"]
    arguments += ["--max_completion_tokens", "5", "--device", "cpu", "--output_dir"]
    config = Path(__file__).parents[1] / "accelerate_config.yaml"
    for name, processes in (("one", 1), ("two", 2)):
        options = ["--config_file", config, "--num_processes", processes]
        started = launch(tmp_path, *options, *arguments, tmp_path / name)
        said, _ = started.communicate(timeout=600)
        assert started.returncode == 0, said
        assert said.count("accuracy") >= 1 and os.linesep in said
    assert records(tmp_path / "two") == records(tmp_path / "one")
    assert len(records(tmp_path / "two")) == 7


def test_part_files_that_the_first_process_removes_meanwhile_are_passed_over(tmp_path, monkeypatch):
    parts = shared_folder._Parts(tmp_path)
    parts.append(1, 0, [{"answer": "7"}])
    listed = [tmp_path / "records-0.part.jsonl", tmp_path / "records-1.part.jsonl"]
    with monkeypatch.context() as patch:  # the first file is removed after it was listed
        patch.setattr(Path, "glob", lambda *_: listed)
        assert parts.read() == {0: [{"answer": "7"}]} and parts.found == {0}
