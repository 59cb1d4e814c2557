"""A base model without SFT is refused by PPO, RFT and the verifier, with the command to run."""

from pathlib import Path

import pytest
import torch

from stages import ppo, rft, verifier

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
