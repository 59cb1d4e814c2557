"""The benchmark's own machinery: turns, failures, and figures done by hand."""

import json
import textwrap
from pathlib import Path

import pytest
import torch

from eval.bench import __main__ as bench
from eval.bench import learning
from eval.bench.__main__ import IMPLEMENTATIONS, BenchArguments, _chosen, _ppo, main, table
from eval.bench.grpo_ppo import _whole
from eval.bench.iteration import reward_of, right
from eval.bench.runner import Implementation, ratios, run_benchmark, summary
from eval.bench.shapes import Shape, linear_flops, make_model, random_model
from eval.bench.verdicts import answers
from pipeline.grading import same_answer

SCRIPT = """
from pathlib import Path
from eval.bench.iteration import Iterations, read_task

laps, task = Iterations(), read_task()
print("noise of a library")
while True:
    laps.begin()
    with Path(task["diary"]).open("a") as diary:
        diary.write(task["name"] + laps.mode + " ")
    if task["name"] == "bad":
        raise ValueError("the cause, in its last line")
    laps.end(samples=2, tokens=10)
"""


@pytest.fixture
def contender(tmp_path):
    """`contender("a", modes)`: a script that writes its turns into a diary."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))

    def make(name: str, modes: dict[str, str]) -> Implementation:
        task = {"name": name, "diary": str(tmp_path / "diary")}
        return Implementation(name, str(script), task, modes=modes)

    return make


def test_contenders_take_turns_and_nobody_is_always_first(contender, tmp_path):
    both = [contender("a", {"": "1", " again": "2"}), contender("b", {"": "1"})]
    reports = run_benchmark(both, tmp_path, iterations=2, warmup=1)
    turns = (tmp_path / "diary").read_text().replace(" ", "")
    assert turns == "a1a2b1" + "b1a1a2" + "a1a2b1"
    # The first round is warm-up.
    assert {name: len(iterations) for name, iterations in reports.items()} == {
        "a": 2,
        "a again": 2,
        "b": 2,
    }
    iteration = reports["b"][0]
    assert 0 < iteration["cpu_s"] < 10 and iteration["wall_s"] > 0 and iteration["peak_mib"] > 1
    assert all(c.process.poll() == 0 for c in both)


def test_a_contender_that_fails_is_named_with_its_last_line(contender, tmp_path):
    both = [contender("good", {"": "1"}), contender("bad", {"": "1"})]
    with pytest.raises(ValueError, match=r"bad failed: ValueError: the cause, in its last line"):
        run_benchmark(both, tmp_path, iterations=1, warmup=0)
    assert both[0].process.poll() is not None  # the others do not stay behind


def iteration(samples: float, wall: float, cpu: float, peak: float) -> dict[str, float]:
    return {"samples": samples, "tokens": 10, "wall_s": wall, "cpu_s": cpu, "peak_mib": peak}


def test_the_median_rate_counts_and_the_highest_peak():
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


def test_without_the_peer_it_is_left_out_with_one_line(capsys, tmp_path):
    contenders = _ppo({}, BenchArguments(peer_python=str(tmp_path / "none")))
    assert [c.name for c in contenders] == ["ours", "grpo"]
    assert "`make peer` makes it" in capsys.readouterr().out


def test_contenders_are_chosen_by_name_and_mode(tmp_path):
    peer = tmp_path / "python"
    peer.touch()
    everyone = _ppo({}, BenchArguments(peer_python=str(peer)))
    chosen = _chosen(everyone, ["ours", "trl-1.12 ppo without gc"])
    assert [(c.name, list(c.modes.values())) for c in chosen] == [
        ("ours", ["run"]),
        ("trl-1.12 ppo", ["nogc"]),
    ]
    with pytest.raises(ValueError, match=r"only='mine' is none of ours, "):
        _chosen(everyone, ["mine"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["swim"], "'swim' is no benchmark; one of ppo, rollout, search, sft, memory, judge, "),
        ([], "'' is no benchmark"),
        (["ppo", "--shape", "huge"], "shape='huge' is none of nano, "),
        (["ppo", "--iterations", "0"], "iterations=0 must be at least 1"),
        (["learn"], "`learn` needs a model that is right at times: give --checkpoint"),
        (["learn", "--reward", "length"], "argument --reward: invalid choice: 'length'"),
        (["learn", "--seeds", "1,a"], "seeds='1,a' must be whole numbers"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_speed_is_timed_on_weights_that_stay_where_they_are(monkeypatch, tokenizer):
    asked = []

    def race_of(contenders: list[Implementation], *rest: object, **named: int) -> None:
        asked.append(contenders[0].task["learning_rate"])
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "_race", race_of)
    monkeypatch.setattr(bench, "make_model", lambda *_: None)
    monkeypatch.setattr(bench, "matmul_peak", lambda *_: 1.0)
    for more in (["ppo"], ["ppo", "--learning_rate", "1e-6"], ["learn", "--reward", "digits"]):
        with pytest.raises(SystemExit):
            main(more)
    still, given, learns = asked
    # AdamW moves a weight by about its rate a step; float32 tells 1e-8 from nothing beside 0.1.
    assert still * 1_000 < 1e-8
    assert given == 1e-6 and learns >= 1e-5


def test_the_answers_that_are_judged_are_right_and_wrong_as_they_say():
    pairs = answers()
    assert len(pairs) == 1_500
    assert sum(right for *_, right in pairs) == 1_000
    assert all(same_answer(said, expected) == right for said, expected, right in pairs)


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
    *_, ours, peer = learning.table(runs).splitlines()
    # Ours begins at 0.2 and 0.4, ends at 0.6 and 0.8; all of it has means of 0.4 and 0.48.
    assert ours == "| ours | 0.300 | 0.700 | 0.440 |  | 10 |"
    assert peer == "| peer | 0.300 | 0.500 | 0.400 | +0.200, -0.120 | 10 |"
    learning.draw(runs, tmp_path / "learn.png", "share of digits")
    assert (tmp_path / "learn.png").stat().st_size > 10_000


def test_learning_is_paid_by_the_answer_behind_the_thought():
    told = {"role": "assistant", "reasoning_content": "1+1=2", "content": "2"}
    assert right(_whole(told), "2") == 1.0
    assert right(_whole({"content": "2"}), "2") == 0.0  # the thought was never closed
    assert reward_of({"reward": "digits"})("a1", "7") == 0.5


def test_every_question_of_the_pool_has_its_answer(tmp_path, tokenizer):
    make_model(Shape(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), tmp_path)
    few = json.loads((tmp_path / "prompts.json").read_text())
    make_model(Shape(), tmp_path, questions=50)
    pool = json.loads((tmp_path / "prompts.json").read_text())
    assert (len(few["questions"]), len(pool["questions"])) == (32, 50)
    assert len(pool["answers"]) == len(pool["ids"]) == 50
    assert all(answer.isdigit() for answer in pool["answers"])


def test_a_random_model_ends_as_often_as_asked(tokenizer):
    model = random_model(Shape(hidden_size=64, num_hidden_layers=2, mean_length=20), tokenizer)
    with torch.no_grad():
        logits = model(torch.randint(10, 256, (8, 40))).logits
    ends = logits.softmax(dim=-1)[..., tokenizer.eos_token_id]
    assert 1 / 40 < ends.mean() < 1 / 10
    assert (ends > 1 / 200).float().mean() > 0.9  # everywhere, not at a few places


def test_flops_are_six_a_weight_and_token(tokenizer):
    shape = Shape(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = random_model(shape, tokenizer)
    # q, k, v, o of 16 x 16; up, gate, down of 16 x 32; norms: three of 16, two of 8.
    trunk = 4 * 16 * 16 + 3 * 16 * 32 + 3 * 16 + 2 * 8
    assert linear_flops(model, 10, 3) == 6 * (trunk * 10 + len(tokenizer) * 16 * 3)


@pytest.mark.parametrize("command", ["ppo", "rollout", "search", "sft", "memory", "learn"])
def test_every_contender_is_a_script_of_the_folder(tmp_path, command):
    peer = tmp_path / "python"
    peer.touch()
    folder = Path(__file__).parents[1] / "eval" / "bench"
    contenders = IMPLEMENTATIONS[command]({}, BenchArguments(peer_python=str(peer)))
    assert contenders and all((folder / c.script).exists() for c in contenders)


def test_a_vote_is_timed_with_as_many_samples_as_generate_returns_sequences():
    small = BenchArguments(completions=3)
    for contender in IMPLEMENTATIONS["search"]({"questions": 32}, small):
        assert (contender.task["questions"], contender.task["completions"]) == (8, 3)
        assert contender.task["batch_size"] == 24


SHORT = Shape(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_length=6
)


def test_both_search_contenders_write_the_same_greedy_tokens_and_count_what_they_sample(tmp_path):
    make_model(SHORT, tmp_path / "model")
    task = {"model": str(tmp_path / "model"), "max_length": 6, "questions": 32}
    both = IMPLEMENTATIONS["search"](task, BenchArguments(completions=2))
    reports = run_benchmark(both, tmp_path, iterations=1, warmup=0)
    assert list(reports) == ["ours", "generate", "generate by question"]
    iterations = [iteration for (iteration,) in reports.values()]
    assert len({iteration["greedy"] for iteration in iterations}) == 1
    assert all(
        iteration["samples"] == 16 <= iteration["tokens"] <= 16 * 6 for iteration in iterations
    )
