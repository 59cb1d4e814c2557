"""The command that a stage proposes next has the data and the suite of its run."""

import sys
from pathlib import Path

import pytest

from eval.suites import SUITES
from pipeline.config import DataConfig, ModelConfig
from pipeline.data.problems import GENERATED
from pipeline.data.registry import SOURCES
from stages import next_steps
from stages.next_steps import command, evaluation_after, ppo_after, suites_of


@pytest.fixture(autouse=True)
def activated(monkeypatch, tmp_path):
    """A shell in which `python` is the Python of the tests."""
    monkeypatch.setattr(next_steps.shutil, "which", lambda name: f"{sys.prefix}/bin/python")


def test_ppo_follows_sft_with_the_configuration_of_the_same_folder(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    model, data = ModelConfig(), DataConfig(dataset="gsm8k_equations")
    assert ppo_after(Path("runs/gsm8k/sft"), model, data) == (
        "python -m stages.ppo --config configs/gsm8k/ppo.yaml --model runs/gsm8k/sft "
        "--output_dir runs/gsm8k/ppo"
    )


def test_ppo_follows_sft_on_other_data_with_these_data():
    data = DataConfig(dataset="math=2,gsm8k=1", data_root="some where")
    assert ppo_after(Path("runs/mine"), ModelConfig(model="user/name"), data) == (
        "python -m stages.ppo --model runs/mine --dataset math=2,gsm8k=1 "
        "--data_root 'some where' --output_dir runs/mine-ppo"
    )


def test_ppo_after_sft_on_few_rows_asks_as_many_questions_and_reads_the_same_split():
    data = DataConfig(dataset="rows", dataset_split="first")
    assert ppo_after(Path("runs/mine/sft"), ModelConfig(), data, 3) == (
        "python -m stages.ppo --model runs/mine/sft --dataset rows --dataset_split first "
        "--questions_per_rollout 3 --output_dir runs/mine/ppo"
    )
    assert "questions_per_rollout" not in ppo_after(Path("runs/sft"), ModelConfig(), data, 32)


def test_the_evaluation_after_ppo_is_on_the_suites_of_its_data():
    asked = evaluation_after(Path("runs/p"), DataConfig(dataset="gsm8k_equations=2,math=1"))
    assert asked == (
        "python -m eval.run --checkpoint runs/p --suite gsm8k,math --output_dir runs/p/eval"
    )
    assert "eval.suites" in evaluation_after(Path("runs/p"), DataConfig(dataset="apps"))


@pytest.mark.parametrize("name", [*GENERATED, *SOURCES])
def test_every_data_set_has_suites_that_exist_or_none(name):
    suites = suites_of(name)
    assert set(suites) <= set(SUITES)
    assert suites or not [s for s in SUITES.values() if s.source == name]


def test_outside_of_its_environment_python_is_called_by_its_path(monkeypatch):
    monkeypatch.setattr(next_steps.shutil, "which", lambda name: "/usr/bin/python")
    assert command("eval.run").split()[0].endswith(("bin/python", Path(sys.executable).name))
    assert command("eval.run").split()[0] != "python"
