"""A base model: PPO, RFT and the verifier refuse it, and SFT keeps to its context window."""

from pathlib import Path

import pytest
import torch

from pipeline.ppo.config import PPOConfig
from pipeline.records import Problem
from stages import ppo, rft, sft, verifier
from stages.common import fitting_length

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
DATA = ["--shares", "wording=1", "--size", "8", "--output_dir", "OUT"]


@pytest.fixture(params=[None, TEMPLATE], ids=["without a template", "with a template"])
def base(request, make_model, make_tokenizer, tmp_path, monkeypatch) -> str:
    """The folder of a tiny GPT-2 as found on the Hub."""
    tokenizer = make_tokenizer(template=request.param)
    make_model("gpt2", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    return "gpt2"


def _no_data(*args: object) -> None:
    raise AssertionError("data was read")


@pytest.mark.parametrize(
    ("stage", "option", "training", "more"),
    [
        (ppo, "model", "PPO", []),
        (ppo, "model", "PPO", ["--dry_run", "true"]),
        (rft, "model", "RFT", []),
        (rft, "model", "RFT", ["--dry_run", "true"]),
        (verifier, "checkpoint", "the verifier", []),
    ],
    ids=["ppo", "ppo dry run", "rft", "rft dry run", "verifier"],
)
def test_a_base_model_is_refused_before_data_is_read_with_the_command_for_sft(
    base, monkeypatch, capsys, stage, option, training, more
):
    monkeypatch.setattr(stage, "training_problems", _no_data)
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as stopped:
        stage.main([f"--{option}", base, *DATA, *more])
    torch.set_num_threads(threads)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert stopped.value.code == 2
    assert errors == [
        f"error: gpt2 has no reasoning tokens, and {training} starts from an SFT checkpoint: "
        "python -m stages.sft --model gpt2 --dataset ... --output_dir DIR, "
        f"then --{option} DIR"
    ]
    assert not Path("OUT").exists()


@pytest.mark.parametrize("base", [None], indirect=True)
def test_examples_longer_than_the_context_window_are_left_out(base, capsys):
    problems = [
        Problem(question="2+3?", thought="2+3=5\n" * lines, answer="5") for lines in (2, 40, 3)
    ]
    options = ["--model", base, "--output_dir", "OUT", "--max_length", "4096"]
    config, data, args, _ = sft.parse(
        (sft.ModelConfig, sft.DataConfig, sft.ReasoningSFTConfig, sft.StageConfig), "", options
    )
    model, tokenizer, rows = sft._prepare(config, data, args, problems)
    assert len(rows) == 2
    assert "1 longer than 128 tokens" in capsys.readouterr().out
    model(input_ids=torch.tensor([max(rows["input_ids"], key=len)]))  # 128 learned positions
    args = PPOConfig(output_dir="OUT", supervised_coef=1.0)
    solved = ppo._worked_solutions(tokenizer, problems, args, fitting_length(model))
    assert solved is not None
    assert len(solved) == 2
