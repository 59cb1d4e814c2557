"""The ablation: its cells, what it trains and skips, and that it resumes."""

import json
from pathlib import Path

import pytest

from eval import ablate
from eval.ablate import AblationArguments
from eval.ablation_table import (
    Cell,
    Row,
    ablation_report,
    ablation_results,
    cell_from_samples,
)
from pipeline.model import save_policy
from pipeline.search import STRATEGIES

ROWS = (
    "full = ppo chess consensus; without RL = sft sample consensus; "
    "no CoT = sft_direct sample greedy"
)


def _samples(*questions: str, tokens: int = 10) -> list[dict]:
    """Stored samples: a letter a sample, "r" right, others wrong answers that agree by letter."""
    return [
        {
            "samples": [
                {"vote": ord(v), "correct": v == "r", "tokens": tokens, "value": None, "answer": v}
                for v in votes
            ]
        }
        for votes in questions
    ]


def test_a_single_answer_is_the_mean_of_the_samples_and_a_vote_their_majority():
    rows = _samples("rrrx", "xxxr")
    assert cell_from_samples(rows, "sample") == Cell([0.75, 0.25], 10.0, "sample")
    assert cell_from_samples(rows, "consensus") == Cell([1.0, 0.0], 40.0, "consensus@4")


def test_equal_tokens_give_a_plain_vote_what_the_first_row_spends():
    rows = [Row("full", "ppo", "mcts", "consensus"), Row("less", "sft", "sample", "consensus")]
    samples = {"ppo": _samples("rrrx", "xxxr"), "sft": _samples("rrrr", "rrrr", tokens=5)}
    cells = {
        ("full", "single"): Cell([1.0, 1.0], 20.0, "mcts"),
        ("less", "single"): cell_from_samples(samples["sft"], "sample"),
    }
    full, less = ablation_results(rows, cells, samples)
    # 20 tokens are 2 samples of 10, or 4 samples of 5
    assert (full["single"]["equal_tokens"]["k"], less["single"]["equal_tokens"]["k"]) == (2, 4)
    assert less["single"]["equal_tokens"]["full_gains"]["mean"] == 0.0
    assert "to_full" not in full["single"] and less["single"]["to_full"]["mean"] == 0.0
    assert "vote" not in full


def test_a_cell_says_how_many_samples_the_tokens_pay_for_beyond_those_stored():
    rows = [Row("full", "ppo", "mcts", "mcts")]
    cells = {("full", "single"): Cell([1.0, 0.0], 90.0, "mcts")}
    results = ablation_results(rows, cells, {"ppo": _samples("rr", "xx")})
    text = ablation_report("nano", results, {})
    assert "k=2, the tokens pay for 9" in text


def test_differences_are_paired_with_the_first_row():
    rows = [Row("full", "ppo", "sample", "x"), Row("less", "sft", "sample", "x")]
    samples = {"ppo": _samples("rr", "rr", "rr", "xx"), "sft": _samples("rr", "xx", "xx", "xx")}
    cells = {(r.name, "single"): cell_from_samples(samples[r.model], "sample") for r in rows}
    results = ablation_results(rows, cells, samples)
    assert results[1]["single"]["to_full"]["mean"] == -0.5
    assert "| less | 25.0 [" in ablation_report("nano", results, {})


@pytest.fixture
def workspace(tmp_path, monkeypatch, tiny_policy, tokenizer) -> list[list[str]]:
    """An empty models folder, configurations, and a training that copies a tiny model; returns the
    arguments of the trainings that ran."""
    monkeypatch.chdir(tmp_path)
    for name in ("sft", "ppo"):
        Path("configs").mkdir(exist_ok=True)
        Path(f"configs/{name}.yaml").write_text("seed: 1\n")
    trained = []

    def train(arguments: list[str]) -> int:
        trained.append(list(arguments))
        folder = Path(arguments[arguments.index("--output_dir") + 1])
        save_policy(tiny_policy, tokenizer, folder)
        (folder / "run.json").write_text("{}")
        return 0

    monkeypatch.setattr(ablate, "run_module", train)
    return trained


def _command(**changes: str) -> list[str]:
    arguments = {
        "config_dir": "configs",
        "models_dir": "models",
        "output_dir": "out",
        "rows": ROWS,
        "suite": "nano",
        "limit": "3",
        "votes": "4",
        "max_sample_tokens": "6",
        "batch_size": "8",
    }
    return [part for k, v in (arguments | changes).items() for part in (f"--{k}", v)]


def test_missing_models_are_trained_and_unavailable_rows_are_skipped_with_a_message(
    workspace, capsys
):
    ablate.main(_command())
    assert [command[0] for command in workspace] == ["stages.sft", "stages.ppo"]
    assert workspace[1][workspace[1].index("--model") + 1] == "models/sft"
    printed = capsys.readouterr().out
    assert "skipped 'full', single: no strategy is called 'chess'" in printed
    assert "skipped 'no CoT': neither models/sft_direct nor configs/sft_direct.yaml" in printed
    figures = json.loads(Path("out/ablation.json").read_text())["rows"]
    assert [row["name"] for row in figures] == ["full", "without RL"]
    assert "single" not in figures[0] and figures[0]["vote"]["strategy"] == "consensus@4"
    assert figures[1]["vote"]["to_full"]["mean"] == 0.0  # the same tiny model twice
    assert "| full | - |" in Path("out/ablation.md").read_text()
    assert Path("out/scaling.png").stat().st_size > 1000
    assert set(json.loads(Path("out/scaling.json").read_text())) == {"ppo", "sft"}


def test_a_second_call_repeats_no_training_and_no_evaluation(workspace, monkeypatch):
    answered = []

    def counting(model, tokenizer, questions, options):
        answered.extend(questions)
        return STRATEGIES["greedy"](model, tokenizer, questions, options)

    monkeypatch.setitem(STRATEGIES, "chess", counting)
    ablate.main(_command())
    first = json.loads(Path("out/ablation.json").read_text())
    assert len(answered) == 3 and len(workspace) == 2
    assert first["rows"][0]["single"]["strategy"] == "chess"
    monkeypatch.setattr(
        "eval.samples.sample_answers", lambda *_args, **_options: pytest.fail("sampled again")
    )
    ablate.main(_command())
    assert len(answered) == 3 and len(workspace) == 2
    assert json.loads(Path("out/ablation.json").read_text()) == first


def test_a_failed_training_ends_the_command_with_its_code(workspace, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "run_module", lambda _arguments: 3)
    with pytest.raises(SystemExit) as stopped:
        ablate.main(_command())
    assert stopped.value.code == 3
    assert "the training of sft ended with exit code 3" in capsys.readouterr().err


def test_an_interrupted_training_resumes_from_its_newest_checkpoint(workspace):
    Path("models/sft/checkpoint-5").mkdir(parents=True)
    ablate.main(_command())
    assert workspace[0][-2:] == ["--resume_from_checkpoint", "last"]
    assert "--resume_from_checkpoint" not in workspace[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": "full = ppo mcts"}, "must read NAME = MODEL SINGLE VOTE"),
        ({"rows": "a = ppo sample sample; a = sft sample sample"}, "the same name"),
        ({"votes": "3"}, "votes=3 must be at least 4"),
        ({"search": "n=4"}, "n is set by eval.ablate itself"),
        ({"search": "width=true"}, "width='true'"),
        ({"search": "choose=all"}, "choose='all'"),
        ({"suite": "nan"}, "did you mean 'nano'?"),
        ({"search": "dreams=3"}, "the strategies have no option 'dreams'"),
    ],
)
def test_an_invalid_argument_is_refused_in_one_line_before_any_training(
    workspace, capsys, changes, message
):
    with pytest.raises(SystemExit):
        ablate.main(_command(**changes))
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert workspace == []


def test_the_papers_configuration_can_be_read():
    path = Path(__file__).parents[1] / "configs" / "ablations" / "paper.yaml"
    (args,) = ablate.CommandParser(AblationArguments).parse_args_and_config(["--config", str(path)])
    names = [row.name for row in args.parsed_rows()]
    assert names[0] == "full" and "without RL" in names and len(names) == 5


def test_a_search_option_may_be_a_word():
    options = ablate.AblationArguments(search="choose=visits, c_puct=2, width=3").options(
        "vote", "ppo"
    )
    assert (options.choose, options.c_puct, options.width) == ("visits", 2, 3)
