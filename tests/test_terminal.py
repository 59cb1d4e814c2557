"""The help of every command, and dry runs, which write nothing."""

from pathlib import Path

import pytest
import torch

from eval import run as eval_run
from pipeline import config_files
from pipeline.cli import CommandParser
from pipeline.model import save_policy
from stages import (
    chat,
    data,
    distill,
    infer,
    merge,
    ppo,
    publish,
    recipe,
    rft,
    serve,
    sft,
    verifier,
)
from tests.test_hub_push import PPO, SFT

MAINS = {
    "sft": sft.main,
    "distill": distill.main,
    "ppo": ppo.main,
    "rft": rft.main,
    "verifier": verifier.main,
    "merge": merge.main,
    "infer": infer.main,
    "chat": chat.main,
    "serve": serve.main,
    "recipe": recipe.main,
    "publish": publish.main,
    "data": data.command,
    "eval": eval_run.main,
}


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", MAINS)
def test_the_help_of_every_command_is_three_screens_at_most(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        MAINS[name](["--help"])
    said = capsys.readouterr().out.splitlines()
    assert caught.value.code == 0
    assert len(said) <= 170  # of 56 lines
    assert max(map(len, said)) <= 100
    fields = [line.split()[0] for line in said if line.startswith("  --")]
    assert len(fields) == len(set(fields))


@pytest.mark.parametrize("name", MAINS)
def test_the_help_fits_into_a_terminal_of_80_columns(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        MAINS[name](["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_help_is_that_of_the_field_and_is_not_cut_at_three_dots(capsys):
    with pytest.raises(SystemExit):
        eval_run.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--output_dir folder of metrics.json and records.jsonl" in said
    assert "plain: Question: ... Answer:, or a Jinja file" in said


def test_every_field_of_this_project_has_a_help(capsys):
    for name, main in MAINS.items():
        with pytest.raises(SystemExit):
            main(["--help"])
        lines = capsys.readouterr().out.splitlines()
        entries = zip(lines, [*lines[1:], ""], strict=True)
        bare = [a for a, b in entries if a.startswith("  --") and not (a[30:].strip() or b[30:])]
        assert bare == [], name


def test_the_fields_of_transformers_are_listed_on_request(capsys):
    with pytest.raises(SystemExit):
        sft.main(["--help"])
    short = capsys.readouterr().out
    assert "--help_all" in short and "--adam_beta1" not in short and "--thought_weight" in short
    assert "--save_strategy" in short and "--save_steps" in short
    with pytest.raises(SystemExit):
        sft.main(["--help_all"])
    assert "--adam_beta1" in capsys.readouterr().out


def test_help_all_is_not_a_field_of_a_configuration():
    configs = CommandParser([publish.PublishConfig]).parse_args_and_config(
        ["--checkpoint", "a", "--repo_id", "b"]
    )
    assert len(configs) == 1


def test_a_dry_run_of_sft_prints_the_plan_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "sft.yaml").write_text(SFT)
    out = tmp_path / "out"
    hub = ["--push_to_hub", "true", "--hub_model_id", "user/name"]
    arguments = ["--config", str(tmp_path / "sft.yaml"), "--output_dir", str(out)]
    sft.main([*arguments, "--dry_run", "true", *hub])
    said = capsys.readouterr().out
    assert "nothing was trained or written" in said
    assert "work: SFT on 16 examples, 2 steps" in said
    assert f"would be written to: {out}" in said
    assert "would be pushed: every save and the end, to user/name on the Hub" in said
    assert not out.exists()


def test_a_dry_run_of_ppo_checks_the_context_window_and_writes_nothing(
    tmp_path, tiny_policy, tokenizer, capsys
):
    save_policy(tiny_policy, tokenizer, tmp_path / "sft")
    (tmp_path / "ppo.yaml").write_text(PPO)
    start = ["--config", str(tmp_path / "ppo.yaml"), "--model", str(tmp_path / "sft")]
    arguments = [*start, "--output_dir", str(tmp_path / "out"), "--dry_run", "true"]
    ppo.main(arguments)
    assert "work: PPO on 8 problems" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        ppo.main([*arguments, "--max_completion_length", "5000"])
    assert "do not fit the model's window" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--questions_per_rollout", "16"], "questions_per_rollout=16 is more than the 8 problems"),
        (["--supervised_coef", "1"], "are fewer than supervised_batch_size=16"),
        (["--step_lam", "0"], "step_lam=0.0 needs step rewards"),
        (["--frozen_layers", "9"], "frozen_layers=9 must be less than"),
    ],
)
def test_a_dry_run_of_ppo_refuses_what_the_trainer_refuses(
    options, message, tmp_path, tiny_policy, tokenizer, capsys
):
    save_policy(tiny_policy, tokenizer, tmp_path / "sft")
    (tmp_path / "ppo.yaml").write_text(PPO)
    start = ["--config", str(tmp_path / "ppo.yaml"), "--model", str(tmp_path / "sft")]
    with pytest.raises(SystemExit):
        ppo.main([*start, "--output_dir", str(tmp_path / "out"), "--dry_run", "true", *options])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_the_parameters_that_are_trained(tmp_path, tiny_policy, tokenizer, capsys):
    save_policy(tiny_policy, tokenizer, tmp_path / "base")
    (tmp_path / "sft.yaml").write_text(SFT)
    start = ["--config", str(tmp_path / "sft.yaml"), "--model", str(tmp_path / "base")]
    lora = ["--use_peft", "true", "--lora_r", "1", "--lora_target_modules", "q_proj"]
    sft.main([*start, *lora, "--output_dir", str(tmp_path / "out"), "--dry_run", "true"])
    layer = next(m for n, m in tiny_policy.named_modules() if n.endswith("q_proj"))
    layers, width = tiny_policy.config.num_hidden_layers, tiny_policy.config.hidden_size
    trained = layers * sum(layer.weight.shape) + 2 * width  # and the rows of the two tags
    assert f" {trained:,} of them trained" in capsys.readouterr().out


def test_a_dry_run_refuses_a_checkpoint_of_other_data(tmp_path, capsys):
    (tmp_path / "sft.yaml").write_text(SFT)
    arguments = ["--config", str(tmp_path / "sft.yaml"), "--output_dir", str(tmp_path / "out")]
    sft.main(arguments)
    for name in ("config.json", "run.json"):  # as after an interruption
        (tmp_path / "out" / name).unlink()
    sft.main([*arguments, "--dry_run", "true"])
    with pytest.raises(SystemExit):
        sft.main([*arguments, "--size", "12", "--dry_run", "true"])
    assert "training data" in capsys.readouterr().err


def test_a_dry_run_of_ppo_without_its_sft_checkpoint_trains_none(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config_files, "CONFIGS", tmp_path / "configs")
    Path("configs/nano").mkdir(parents=True)
    Path("configs/nano/sft.yaml").write_text(f"{SFT}output_dir: runs/nano/sft\n")
    Path("configs/nano/ppo.yaml").write_text(f"{PPO}model: runs/nano/sft\noutput_dir: runs/p\n")
    ppo.main(["--config", "configs/nano/ppo.yaml", "--dry_run", "true"])
    said = capsys.readouterr().out
    assert "running the SFT stage" in said and "dry run" in said
    assert not Path("runs").exists()
