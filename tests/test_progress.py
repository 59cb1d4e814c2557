"""Progress: one bar in a terminal, lines in a file, one short line a rollout."""

import io
import sys

import pytest

from pipeline import progress as progress_module
from pipeline.answers.run_folder import RunFolder
from pipeline.progress import Progress, count_sequences, sequence_finished
from pipeline.records import Problem
from pipeline.training.progress import log_line

ROW = {
    "loss": -0.0576,
    "time/sample": 0.1345,
    "reward": 0.4123,
    "reward/correctness": 0.375,
    "kl": 0.00213,
    "entropy": 0.514,
    "completions/mean_length": 139.2,
    "tokens_per_second": 2140.4,
    "value/auroc": None,
}


@pytest.fixture(autouse=True)
def every_tenth(monkeypatch):
    monkeypatch.setattr(progress_module, "SECONDS_BETWEEN_LINES", 0.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_a_line_a_tenth_and_no_carriage_return(capsys):
    with Progress(100, "nano greedy", unit="q") as progress:
        for _ in range(100):
            progress.advance(1)
    said = capsys.readouterr().err
    assert "\r" not in said
    assert [line.split(" q, ")[0] for line in said.splitlines()] == [
        f"nano greedy: {done}/100" for done in range(10, 101, 10)
    ]
    assert " left" in said.splitlines()[0] and " left" not in said.splitlines()[-1]


def test_a_fast_task_prints_its_end_alone(capsys, monkeypatch):
    monkeypatch.setattr(progress_module, "SECONDS_BETWEEN_LINES", 60.0)
    with Progress(100, "nano greedy", unit="q") as progress:
        for _ in range(100):
            progress.advance(1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nano greedy: 100/100 q, ")


def test_a_terminal_gets_one_bar_that_starts_where_an_earlier_run_stopped(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(10, "PPO", unit="rollouts", initial=4) as progress:
        progress.note("accuracy 0.5")
        progress.reach(10)
    said = sys.stderr.getvalue()
    assert "4/10" in said and "10/10" in said and said.count("\n") == 1


def test_the_count_never_falls(capsys):
    progress = Progress(10, "x", unit="q")
    progress.reach(5)
    progress.reach(3)
    assert progress.done == 5


def test_an_evaluation_counts_single_questions_inside_a_chunk(tmp_path, capsys):
    problems = [Problem(question=str(i), answer="") for i in range(20)]
    seen = []

    def answer(part, start):
        for _ in range(len(part) * 2):  # two samples a question
            sequence_finished()
            seen.append(progress_lines())
        return [{"id": str(i)} for i in range(len(part))]

    def progress_lines() -> int:
        return capsys.readouterr().err.count("\n")

    RunFolder(tmp_path, {"n": 2}, chunk=10, total=20).complete(problems, answer, "nano")
    assert sum(seen) >= 8  # nine tenths are printed before the chunks end


def test_sequences_are_counted_in_the_context_alone():
    counted = []
    with count_sequences(lambda: counted.append(1)):
        sequence_finished()
    sequence_finished()
    assert counted == [1]


def test_a_rollout_is_one_line_of_80_columns_at_most():
    line = log_line("119/190", ROW)
    assert line == (
        "119/190  reward 0.412  right 38%  KL 0.0021  entropy 0.51  139 tok  2,140 tok/s"
    )
    assert len(line) <= 80


def test_a_number_that_rounds_to_zero_has_no_sign():
    line = log_line("1/2", {"reward": -0.0001, "kl": -0.00002})
    assert line == "    1/2  reward 0.000  KL 0.0000"
    assert log_line("1/2", {"loss": -0.0001}) == "    1/2  loss 0.000"
    assert "KL -0.0001" in log_line("1/2", {"reward": 0.0, "kl": -0.0001})


@pytest.mark.parametrize("row", [{"train_runtime": 3.0, "loss": 1.0}, {"epoch": 1.0}, {}])
def test_a_row_without_a_loss_or_a_reward_is_not_printed(row):
    assert log_line("1/2", row) == ""


def test_an_evaluation_during_training_is_named_as_such():
    assert log_line("1/2", {"eval_reward": 0.5}) == "    1/2  evaluation  reward 0.500"


def test_a_training_prints_a_line_a_rollout_and_no_dictionary(make_ppo, policy, capsys):
    trainer = make_ppo(policy, lambda completions, **_: [1.0] * len(completions), num_rollouts=2)
    trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if "reward" in line]
    assert [line.split()[0] for line in lines] == ["1/2", "2/2"]
    assert all("reward 1.000" in line and "'" not in line for line in lines)
