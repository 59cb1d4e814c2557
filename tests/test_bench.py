"""The benchmark: alternating processes, their failures, and figures calculated by hand."""

import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eval.bench import __main__ as bench
from eval.bench import measure, ours, reference
from eval.bench.__main__ import learning_table, main, plot_learning
from eval.bench.implementations import BENCHMARKS, BenchArguments, implementations, task_of
from eval.bench.measure import reward_of, right
from eval.bench.reference import completion_text
from eval.bench.runner import Implementation, ratios, run_benchmark, summary, table
from eval.bench.shapes import Shape, graded_answers, linear_flops, make_model, random_model
from pipeline.grading import same_answer
from pipeline.model import load_policy

# An interpreter with TRL 1.12.0, if there is one.
PEER = os.environ.get("THINKHEAD_PEER_PYTHON", ".venv-peer/bin/python")

SCRIPT = """
import os
import signal
from pathlib import Path
from eval.bench.measure import run_workload


def work(iterations, task):
    print("output of a library")
    while True:
        iterations.begin()
        with Path(task["calls"]).open("a") as calls:
            calls.write(task["name"] + iterations.mode + " ")
        if task["name"] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if task["name"] == "bad":
            raise ValueError("the cause, in its last line")
        iterations.end(samples=2, tokens=10)


run_workload({"work": work})
"""


@pytest.fixture
def make_implementation(tmp_path):
    """`make_implementation("a", modes)`: a script that appends its iterations to a file."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))

    def make(name: str, modes: dict[str, str]) -> Implementation:
        task = {"name": name, "calls": str(tmp_path / "calls")}
        return Implementation(name, str(script), "work", task, modes=modes)

    return make


def test_implementations_alternate_and_the_order_is_reversed_every_time(
    make_implementation, tmp_path
):
    both = [make_implementation("a", {"": "1", " again": "2"}), make_implementation("b", {"": "1"})]
    reports = run_benchmark(both, tmp_path, iterations=2, warmup=1)
    calls = (tmp_path / "calls").read_text().replace(" ", "")
    assert calls == "a1a2b1" + "b1a1a2" + "a1a2b1"
    # The first iteration is warm-up.
    assert {name: len(iterations) for name, iterations in reports.items()} == {
        "a": 2,
        "a again": 2,
        "b": 2,
    }
    iteration = reports["b"][0]
    assert 0 < iteration["cpu_s"] < 10 and iteration["wall_s"] > 0 and iteration["peak_mib"] > 1
    assert all(c.process.poll() == 0 for c in both)


def test_an_implementation_that_fails_is_named_with_its_last_line(make_implementation, tmp_path):
    (tmp_path / "models").mkdir()
    both = [make_implementation("good", {"": "1"}), make_implementation("bad", {"": "1"})]
    with pytest.raises(ValueError, match=r"bad failed: ValueError: the cause, in its") as failure:
        run_benchmark(both, tmp_path / "models", iterations=1, warmup=0)
    shutil.rmtree(tmp_path / "models")  # as the command does when it ends
    log = Path(str(failure.value).partition("its log: ")[2])
    assert "Traceback" in log.read_text()
    assert both[0].process.poll() is not None  # the others are ended too


def iteration(samples: float, wall: float, cpu: float, peak: float) -> dict[str, float]:
    return {"samples": samples, "tokens": 10, "wall_s": wall, "cpu_s": cpu, "peak_mib": peak}


def test_an_implementation_that_was_killed_is_reported_as_such(make_implementation, tmp_path):
    killed = make_implementation("killed", {"": "run"})
    with pytest.raises(ValueError, match="killed was killed, as where the machine runs out of mem"):
        run_benchmark([killed], tmp_path, iterations=1, warmup=0)


def test_the_summary_has_the_median_rate_and_the_highest_peak():
    figures = summary([iteration(8, 4, 2, 100), iteration(8, 8, 1, 300), iteration(8, 2, 4, 200)])
    assert figures["samples_per_wall_s"] == 2.0  # of 2, 1 and 4
    assert figures["samples_per_wall_s_range"] == [1.0, 4.0]
    assert figures["samples_per_cpu_s"] == 4.0  # of 4, 8 and 2
    assert figures["peak_mib"] == 300


def test_ratios_say_how_many_times_faster_and_how_much_of_the_memory():
    figures = {
        "ours": summary([iteration(8, 2, 1, 100)]),
        "peer": summary([iteration(8, 4, 4, 400)]),
    }
    found = ratios(figures)["peer"]
    assert found["samples_per_wall_s"] == 2.0
    assert found["samples_per_cpu_s"] == 4.0
    assert (found["tokens_per_cpu_s"], found["tokens_per_wall_s"]) == (4.0, 2.0)
    assert found["peak_memory"] == 0.25
    result = {"figures": figures, "ratios": ratios(figures), "arguments": {"device": "cpu"}}
    assert "| peer | 2.00 | 2.00 | 2.50 | 400 | 4.00x | 4.00x | 2.00x |" in table(result)
    result["arguments"]["device"] = "cuda"  # the clock alone
    assert "| peer | 2.00 | 2.50 | 400 | 2.00x | 2.00x |" in table(result)


def test_without_the_interpreter_of_the_peer_it_is_left_out_with_one_line(capsys, tmp_path):
    found = implementations("ppo", {}, BenchArguments(peer_python=str(tmp_path / "none")))
    assert [i.name for i in found] == ["ours", "grpo"]
    assert "`make peer` makes it" in capsys.readouterr().out


def test_only_selects_implementations_by_name_and_mode(tmp_path):
    peer = tmp_path / "python"
    peer.touch()
    both = BenchArguments(peer_python=str(peer), only="ours,trl-1.12 ppo without gc")
    assert [(i.name, list(i.modes.values())) for i in implementations("ppo", {}, both)] == [
        ("ours", ["run"]),
        ("trl-1.12 ppo", ["nogc"]),
    ]
    unknown = BenchArguments(peer_python=str(peer), only="mine")
    with pytest.raises(ValueError, match=r"only='mine' is none of ours, "):
        implementations("ppo", {}, unknown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["swim"], "'swim' is no benchmark; one of ppo, rollout, search, sft, pretrain, memory, "),
        ([], "'' is no benchmark"),
        (["ppo", "--shape", "huge"], "shape='huge' is none of nano, "),
        (["ppo", "--iterations", "0"], "iterations=0 must be at least 1"),
        (["learn"], "`learn` needs a model that earns rewards: give --checkpoint"),
        (["learn", "--reward", "length"], "argument --reward: invalid choice: 'length'"),
        (["learn", "--seeds", "1,a"], "seeds='1,a' must be whole numbers"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_speed_is_measured_at_a_learning_rate_that_leaves_the_weights_unchanged(
    monkeypatch, tokenizer
):
    rates = []

    def record(found: list[Implementation], *rest: object, **named: int) -> None:
        rates.append(found[0].task["learning_rate"])
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run_benchmark", record)
    monkeypatch.setattr(bench, "make_model", lambda *_: None)
    monkeypatch.setattr(bench, "matmul_peak", lambda *_: 1.0)
    for more in (["ppo"], ["ppo", "--learning_rate", "1e-6"], ["learn", "--reward", "digits"]):
        with pytest.raises(SystemExit):
            main(more)
    unchanged, given, learning = rates
    # AdamW moves a weight by about its rate a step; float32 cannot resolve 1e-8 beside 0.1.
    assert unchanged * 1_000 < 1e-8
    assert given == 1e-6 and learning >= 1e-5


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        (["judge"], "grader"),
        (["grader"], "grader"),
        (["stability", "--pairs", "3"], ["--pairs", "3"]),
        (["verdict_stability", "--busy", "1"], ["--busy", "1"]),
    ],
)
def test_old_names_of_commands_are_accepted(monkeypatch, arguments, called):
    calls = []
    monkeypatch.setattr(bench, "_compare", lambda command, *_: calls.append(command))
    monkeypatch.setattr(bench.verdict_stability, "main", lambda rest: calls.append(rest) or 0)
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code == 0
    assert calls == [called]


def test_help_names_every_benchmark(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    assert all(f"`{command}`" in text for command in bench.COMMANDS)


def test_graded_answers_are_correct_and_wrong_as_labelled():
    answers = graded_answers()
    assert len(answers) == 1_500
    assert sum(right for *_, right in answers) == 1_000
    assert all(same_answer(text, expected) == right for text, expected, right in answers)


def _run(ours: list[float], peer: list[float]) -> dict:
    return {
        name: {"samples": [64] * len(reward), "reward": reward, "cpu_s": [2.0] * len(reward)}
        for name, reward in (("ours", ours), ("peer", peer))
    }


def test_learning_is_compared_over_fifths_and_seed_by_seed(tmp_path):
    runs = {
        0: _run([0.2, 0.4, 0.4, 0.4, 0.6], [0.2, 0.2, 0.2, 0.2, 0.2]),
        1: _run([0.4, 0.4, 0.4, 0.4, 0.8], [0.4, 0.6, 0.6, 0.6, 0.8]),
    }
    *_, ours, peer = learning_table(runs).splitlines()
    # Ours begins at 0.2 and 0.4, ends at 0.6 and 0.8; all of it has means of 0.4 and 0.48.
    assert ours == "| ours | 0.300 | 0.700 | 0.440 |  | 10 |"
    assert peer == "| peer | 0.300 | 0.500 | 0.400 | +0.200, -0.120 | 10 |"
    plot_learning(runs, tmp_path / "learn.png", "share of digits")
    assert (tmp_path / "learn.png").stat().st_size > 10_000


def test_the_reward_of_learning_is_for_the_answer_after_the_thought():
    message = {"role": "assistant", "reasoning_content": "1+1=2", "content": "2"}
    assert right(completion_text(message), "2") == 1.0
    assert right(completion_text({"content": "2"}), "2") == 0.0  # the thought was never closed
    assert reward_of({"reward": "digits"})("a1", "7") == 0.5


def test_every_question_of_the_pool_has_its_answer(tmp_path, tokenizer):
    make_model(Shape(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), tmp_path)
    few = json.loads((tmp_path / "prompts.json").read_text())
    make_model(Shape(), tmp_path, questions=50)
    pool = json.loads((tmp_path / "prompts.json").read_text())
    assert (len(few["questions"]), len(pool["questions"])) == (32, 50)
    assert len(pool["answers"]) == len(pool["ids"]) == 50
    assert all(answer.isdigit() for answer in pool["answers"])


def test_a_random_model_ends_with_the_given_mean_length(tokenizer):
    model = random_model(Shape(hidden_size=64, num_hidden_layers=2, mean_length=20), tokenizer)
    with torch.no_grad():
        logits = model(torch.randint(10, 256, (8, 40))).logits
    ends = logits.softmax(dim=-1)[..., tokenizer.eos_token_id]
    assert 1 / 40 < ends.mean() < 1 / 10
    assert (ends > 1 / 200).float().mean() > 0.9  # everywhere, not at a few places


def test_flops_are_six_per_weight_and_token(tokenizer):
    shape = Shape(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = random_model(shape, tokenizer)
    # q, k, v, o of 16 x 16; up, gate, down of 16 x 32; norms: three of 16, two of 8.
    trunk = 4 * 16 * 16 + 3 * 16 * 32 + 3 * 16 + 2 * 8
    assert linear_flops(model, 10, 3) == 6 * (trunk * 10 + len(tokenizer) * 16 * 3)


@pytest.mark.parametrize("command", sorted(BENCHMARKS))
def test_every_implementation_has_a_workload_in_its_script(tmp_path, command):
    peer = tmp_path / "python"
    peer.touch()
    workloads = {"ours.py": ours.WORKLOADS, "reference.py": reference.WORKLOADS}
    found = implementations(command, {}, BenchArguments(peer_python=str(peer)))
    assert found and all(i.workload in workloads[i.script] for i in found)


def test_no_two_implementations_train_in_one_folder(tmp_path):
    peer = tmp_path / "python"
    peer.touch()
    args = BenchArguments(peer_python=str(peer), checkpoint="none", reward="right")
    found = implementations("learn", {"output_dir": str(tmp_path)}, args)
    folders = [implementation.task["output_dir"] for implementation in found]
    assert len(found) == 5 and len(set(folders)) == 5


def test_the_code_for_the_environment_of_the_peer_imports_nothing_of_the_pipeline():
    code = "import sys; from eval.bench import measure, reference; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in ended.stdout.split()}
    assert not loaded & {"pipeline", "stages", "trl", "transformers", "torch"}


def test_a_vote_has_as_many_samples_as_generate_returns_sequences():
    small = BenchArguments(completions=3)
    for implementation in implementations("search", {"questions": 32}, small):
        task = implementation.task
        assert (task["questions"], task["completions"], task["batch_size"]) == (8, 3, 24)


SHORT = Shape(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_length=6
)


@pytest.mark.slow
def test_both_search_implementations_have_the_same_greedy_tokens_and_count_their_samples(
    tmp_path,
):
    make_model(SHORT, tmp_path / "model")
    task = {"model": str(tmp_path / "model"), "max_length": 6, "questions": 32}
    both = implementations("search", task, BenchArguments(completions=2))
    reports = run_benchmark(both, tmp_path, iterations=1, warmup=0)
    assert list(reports) == ["ours", "generate", "generate by question"]
    iterations = [iteration for (iteration,) in reports.values()]
    assert len({iteration["greedy"] for iteration in iterations}) == 1
    assert all(
        iteration["samples"] == 16 <= iteration["tokens"] <= 16 * 6 for iteration in iterations
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ppo", "rollout", "sft", "pretrain"])
def test_every_implementation_reports_one_iteration_of_a_tiny_model(tmp_path, command):
    tiny = replace(SHORT, questions=4, completions=2, epochs=2, minibatches=2)
    make_model(tiny, tmp_path / "model")
    args = BenchArguments(peer_python=PEER, learning_rate=1e-12, completions=2, profile=True)
    task = task_of(args, tmp_path) | asdict(tiny)
    found = implementations(command, task, args)
    reports = run_benchmark(found, tmp_path, iterations=1, warmup=0)
    assert set(reports) == {i.name + suffix for i in found for suffix in i.modes}
    for (iteration,) in reports.values():
        assert iteration["samples"] > 0 and iteration["cpu_s"] > 0 and iteration["peak_mib"] > 0
        assert iteration["tokens"] <= iteration["samples"] * 6 or command in ("sft", "pretrain")
        assert 0 <= iteration.get("reward", 0) <= 1
    if command == "ppo":
        (ours,) = reports["ours"]
        assert len(ours["operations"]) == 12 and ours["sample_s"] <= ours["rollout_s"]
        assert {iteration["samples"] for (iteration,) in reports.values()} == {8}


@pytest.mark.parametrize(("ending", "calls"), [("stop\n", 2), ("", 0)])
def test_a_process_saves_its_model_when_it_is_stopped_and_not_when_the_runner_died(
    monkeypatch, ending, calls
):
    monkeypatch.setattr(measure.os, "dup2", lambda *_: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO(ending))
    iterations, saved = measure.Iterations(), []
    part = SimpleNamespace(save_pretrained=saved.append)
    save = reference.save_pretrained(part, part)
    measure.save_at_stop(iterations, {"save_to": "folder"}, save)
    with pytest.raises(SystemExit):
        iterations.begin()
    assert saved == ["folder"] * calls


def test_a_model_of_an_earlier_run_is_not_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "make_model", lambda *_: None)
    monkeypatch.setattr(bench, "run_benchmark", None)  # nothing is measured
    (tmp_path / "grpo-1").mkdir()
    with pytest.raises(SystemExit):
        main(["learn", "--reward", "digits", "--only", "grpo", "--save_dir", str(tmp_path)])
    assert f"save_dir={tmp_path} already has grpo-1; give another" in capsys.readouterr().err


@pytest.mark.slow
def test_learn_saves_a_trained_model_of_every_implementation(tmp_path, monkeypatch):
    tiny = replace(SHORT, questions=4, completions=2, epochs=1, minibatches=2)
    monkeypatch.setitem(bench.SHAPES, "nano", tiny)
    names = ["ours without V", "grpo"]
    names += ["trl-1.12 ppo"] if Path(PEER).exists() else []
    options = ["--reward", "digits", "--iterations", "2", "--seeds", "3", "--learning_rate", "1e-2"]
    options += ["--save_dir", f"{tmp_path}/saved", "--output", f"{tmp_path}/learn.json"]
    main(["learn", *options, "--peer_python", PEER, "--only", ",".join(names)])
    folders = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert folders == sorted(f"{name.replace(' ', '_')}-3" for name in names)
    make_model(tiny, tmp_path / "start")
    start, _ = load_policy(str(tmp_path / "start"))
    for folder in folders:
        trained, tokenizer = load_policy(str(tmp_path / "saved" / folder), value_head="optional")
        changed = trained.get_input_embeddings().weight != start.get_input_embeddings().weight
        assert changed.any() and tokenizer.chat_template
