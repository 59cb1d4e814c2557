"""`--preset NAME`: the values of fields that neither configuration nor command line gives."""

from pathlib import Path

import pytest
import yaml

from pipeline.cli import CommandParser
from pipeline.config import ModelConfig
from pipeline.ppo.config import PPOConfig
from stages import ppo, sft

ROOT = Path(__file__).parents[1]
PRESETS = sorted((ROOT / ppo.PRESETS).glob("*.yaml"))


@pytest.fixture
def read(tmp_path):
    """`read("--preset", "vapo", config="clip: 0.1")`: the PPOConfig that comes out."""

    def parse(*arguments: str, config: str | None = None) -> PPOConfig:
        given = ["--output_dir", str(tmp_path)]
        if config is not None:
            (tmp_path / "ppo.yaml").write_text(config)
            given += ["--config", str(tmp_path / "ppo.yaml")]
        parser = CommandParser([ModelConfig, PPOConfig], presets=str(ROOT / ppo.PRESETS))
        return parser.parse_args_and_config([*arguments, *given])[1]

    return parse


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_read_and_every_value_of_it_arrives(read, path):
    args = read("--preset", path.stem)
    for name, value in yaml.safe_load(path.read_text()).items():
        assert getattr(args, name) == value, name
    assert path.read_text().startswith("# Preset: ")


def test_the_three_presets_are_there():
    assert [path.stem for path in PRESETS] == ["orz", "paper", "vapo"]


def test_the_preset_of_the_paper_is_table_a1_and_its_ppo_rows_are_the_defaults(read):
    paper, default = read("--preset", "paper"), read()
    rows = ("clip", "ppo_epochs", "value_coef", "entropy_coef")
    assert [getattr(default, row) for row in rows] == [0.2, 4, 0.5, 0.01]
    assert [getattr(paper, row) for row in rows] == [0.2, 4, 0.5, 0.01]
    assert paper.rollout_size // paper.num_minibatches == 256
    rest = (paper.warmup_steps, paper.weight_decay, paper.max_completion_length)
    assert rest == (1000, 0.1, 1024)


def test_the_numbers_of_the_presets_are_those_of_their_sources(read):
    orz, vapo = read("--preset", "orz"), read("--preset", "vapo")
    assert (orz.gamma, orz.lam, orz.kl_coef, orz.value_learning_rate) == (1.0, 1.0, 0.0, 5e-6)
    assert (orz.steps_per_rollout, orz.policy_steps_per_rollout) == (12, 1)
    assert (vapo.value_warmup, vapo.value_lam, vapo.lam_alpha) == (50, 1.0, 0.05)
    assert (vapo.clip, vapo.clip_high, vapo.positive_nll_coef) == (0.2, 0.28, 0.1)


def test_the_configuration_replaces_the_preset_and_the_command_line_replaces_both(read):
    config = "clip: 0.1\nclip_high: 0.15\n"
    args = read("--preset", "vapo", "--clip_high", "0.3", config=config)
    assert (args.clip, args.clip_high, args.value_lam) == (0.1, 0.3, 1.0)


def test_a_configuration_may_name_its_preset_and_the_command_line_another(read):
    assert read(config="preset: vapo\nlam: 0.9\n").lam_alpha == 0.05
    assert read(config="preset: vapo\n").value_lam == 1.0
    other = read("--preset", "paper", config="preset: vapo\n")
    assert other.lam_alpha is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "vpo"], "preset 'vpo' is not one of orz, paper, vapo in "),
        (["--preset"], "--preset needs a name"),
    ],
)
def test_a_mistyped_preset_is_refused_in_one_line(arguments, message):
    parser = CommandParser([ModelConfig, PPOConfig], presets=str(ROOT / ppo.PRESETS))
    with pytest.raises(ValueError, match=message) as caught:
        parser.parse_args_and_config(arguments)
    assert "\n" not in str(caught.value)


def test_a_preset_with_an_unknown_field_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("clipp: 0.1\n")
    parser = CommandParser([ModelConfig, PPOConfig], presets=str(tmp_path))
    with pytest.raises(ValueError, match="'clipp' in the preset mine is no argument here; did you"):
        parser.parse_args_and_config(["--preset", "mine"])


def test_a_stage_without_presets_refuses_the_flag(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        sft.main(["--config", sft.DEFAULT_CONFIG, "--preset", "vapo"])
    assert "--preset" in capsys.readouterr().err
