"""The ablation: what stands in its cells, what it trains, what it skips, and that it resumes."""

import json
from pathlib import Path

import pytest

from eval import ablate
from eval.ablate import AblationArguments
from eval.ablation_table import Cell, Row, from_samples, table_figures, tell
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


def test_one_answer_is_the_mean_of_the_samples_and_a_vote_their_majority():
    rows = _samples("rrrx", "xxxr")
    assert from_samples(rows, "sample") == Cell([0.75, 0.25], 10.0, "sample")
    assert from_samples(rows, "consensus") == Cell([1.0, 0.0], 40.0, "consensus@4")


def test_equal_tokens_give_a_plain_vote_what_the_first_row_spends():
    rows = [Row("full", "ppo", "mcts", "consensus"), Row("less", "sft", "sample", "consensus")]
    samples = {"ppo": _samples("rrrx", "xxxr"), "sft": _samples("rrrr", "rrrr", tokens=5)}
    cells = {
        ("full", "single"): Cell([1.0, 1.0], 20.0, "mcts"),
        ("less", "single"): from_samples(samples["sft"], "sample"),
    }
    full, less = table_figures(rows, cells, samples)
    # 20 tokens are 2 samples of 10, or 4 samples of 5
    assert (full["single"]["equal_tokens"]["k"], less["single"]["equal_tokens"]["k"]) == (2, 4)
    assert less["single"]["equal_tokens"]["full_gains"]["mean"] == 0.0
    assert "to_full" not in full["single"] and less["single"]["to_full"]["mean"] == 0.0
    assert "vote" not in full


def test_a_budget_above_the_samples_is_said_so():
    rows = [Row("full", "ppo", "mcts", "mcts")]
    cells = {("full", "single"): Cell([1.0, 0.0], 90.0, "mcts")}
    figures = table_figures(rows, cells, {"ppo": _samples("rr", "xx")})
    text = tell("nano", figures, {})
    assert "k=2, the tokens pay for 9" in text


def test_a_difference_is_paired_with_the_first_row():
    rows = [Row("full", "ppo", "sample", "x"), Row("less", "sft", "sample", "x")]
    samples = {"ppo": _samples("rr", "rr", "rr", "xx"), "sft": _samples("rr", "xx", "xx", "xx")}
    cells = {(r.name, "single"): from_samples(samples[r.model], "sample") for r in rows}
    figures = table_figures(rows, cells, samples)
    assert figures[1]["single"]["to_full"]["mean"] == -0.5
    assert "| less | 25.0 [" in tell("nano", figures, {})


@pytest.fixture
def workplace(tmp_path, monkeypatch, tiny_policy, tokenizer) -> list[list[str]]:
    """An empty models folder, configurations, and a training that copies a tiny model; returns the
    trainings that were asked for."""
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


def test_missing_models_are_trained_and_what_is_not_there_is_skipped_aloud(workplace, capsys):
    ablate.main(_command())
    assert [command[0] for command in workplace] == ["stages.sft", "stages.ppo"]
    assert workplace[1][workplace[1].index("--model") + 1] == "models/sft"
    printed = capsys.readouterr().out
    assert "skipped 'full', single: no strategy is called 'chess' here" in printed
    assert "skipped 'no CoT': neither models/sft_direct nor configs/sft_direct.yaml" in printed
    figures = json.loads(Path("out/ablation.json").read_text())["rows"]
    assert [row["name"] for row in figures] == ["full", "without RL"]
    assert "single" not in figures[0] and figures[0]["vote"]["strategy"] == "consensus@4"
    assert figures[1]["vote"]["to_full"]["mean"] == 0.0  # the same tiny model twice
    assert "| full | - |" in Path("out/ablation.md").read_text()
    assert Path("out/scaling.png").stat().st_size > 1000
    assert set(json.loads(Path("out/scaling.json").read_text())) == {"ppo", "sft"}


def test_a_second_call_trains_and_asks_nothing_again(workplace, monkeypatch):
    asked = []

    def counting(model, tokenizer, questions, options):
        asked.extend(questions)
        return STRATEGIES["greedy"](model, tokenizer, questions, options)

    monkeypatch.setitem(STRATEGIES, "chess", counting)
    ablate.main(_command())
    first = json.loads(Path("out/ablation.json").read_text())
    assert len(asked) == 3 and len(workplace) == 2
    assert first["rows"][0]["single"]["strategy"] == "chess"
    monkeypatch.setattr(
        "eval.samples.sample_answers", lambda *_args, **_options: pytest.fail("drawn again")
    )
    ablate.main(_command())
    assert len(asked) == 3 and len(workplace) == 2
    assert json.loads(Path("out/ablation.json").read_text()) == first


def test_a_failed_training_ends_the_command_with_its_code(workplace, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "run_module", lambda _arguments: 3)
    with pytest.raises(SystemExit) as stopped:
        ablate.main(_command())
    assert stopped.value.code == 3
    assert "the training of sft ended with exit code 3" in capsys.readouterr().err


def test_an_interrupted_training_goes_on_from_its_newest_checkpoint(workplace):
    Path("models/sft/checkpoint-5").mkdir(parents=True)
    ablate.main(_command())
    assert workplace[0][-2:] == ["--resume_from_checkpoint", "last"]
    assert "--resume_from_checkpoint" not in workplace[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": "full = ppo mcts"}, "must read NAME = MODEL SINGLE VOTE"),
        ({"rows": "a = ppo sample sample; a = sft sample sample"}, "the same name"),
        ({"votes": "1"}, "votes=1 must be at least 2"),
        ({"suite": "nan"}, "did you mean 'nano'?"),
        ({"search": "dreams=3"}, "the strategies have no option 'dreams'"),
    ],
)
def test_a_mistake_costs_one_line_before_anything_is_trained(workplace, capsys, changes, said):
    with pytest.raises(SystemExit):
        ablate.main(_command(**changes))
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert workplace == []


def test_the_papers_configuration_can_be_read():
    path = Path(__file__).parents[1] / "configs" / "ablations" / "paper.yaml"
    (args,) = ablate.CommandParser(AblationArguments).parse_args_and_config(["--config", str(path)])
    names = [row.name for row in args.parsed_rows()]
    assert names[0] == "full" and "without RL" in names and len(names) == 5
