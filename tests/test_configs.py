"""Every configuration of the package can be read, and those of a folder fit together."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from eval.run import EvalArguments
from pipeline.cli import CommandParser
from pipeline.config import DataConfig, ModelConfig, RewardConfig
from pipeline.ppo.config import PPOConfig
from pipeline.pretrain.config import PretrainConfig, PretrainDataConfig
from pipeline.rft.config import RFTConfig
from pipeline.search import SearchOptions
from pipeline.sft.trainer import ReasoningSFTConfig
from pipeline.verifier.offline import VerifierConfig
from stages.recipe import RecipeConfig
from stages.verifier import SourceConfig

ROOT = Path(__file__).parents[1]
CLASSES = {
    "pretrain": [ModelConfig, PretrainDataConfig, PretrainConfig],
    "sft": [ModelConfig, DataConfig, ReasoningSFTConfig],
    "sft_direct": [ModelConfig, DataConfig, ReasoningSFTConfig],
    "sft_masked": [ModelConfig, DataConfig, ReasoningSFTConfig],
    "sft_mixed": [ModelConfig, DataConfig, ReasoningSFTConfig],
    "sft_mixed_hard": [ModelConfig, DataConfig, ReasoningSFTConfig],
    "ppo": [ModelConfig, DataConfig, RewardConfig, PPOConfig],
    "ppo_alone": [ModelConfig, DataConfig, RewardConfig, PPOConfig],
    "ppo_hard": [ModelConfig, DataConfig, RewardConfig, PPOConfig],
    "ppo_efficient": [ModelConfig, DataConfig, RewardConfig, PPOConfig],
    "rft": [ModelConfig, DataConfig, RFTConfig, ReasoningSFTConfig],
    "recipe": [RecipeConfig],
    "search": [SearchOptions],
    "eval": [EvalArguments],
    "verifier": [SourceConfig, DataConfig, VerifierConfig],
}
OTHERS = ("accelerate", "presets", "ablations")  # folders with tests of their own
FILES = [p for p in sorted((ROOT / "configs").rglob("*/*.yaml")) if p.parent.name not in OTHERS]
FOLDERS = sorted({path.parent for path in FILES if path.stem == "ppo"})


def _name(path: Path) -> str:
    return path.relative_to(ROOT / "configs").as_posix()


def _read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_configuration_can_be_read(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    configs = CommandParser(CLASSES[path.stem]).parse_args_and_config(["--config", str(path)])
    assert len(configs) == len(CLASSES[path.stem])


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_configuration_opens_with_its_purpose(path):
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("folder", FOLDERS, ids=_name)
def test_ppo_starts_where_the_sft_of_its_folder_ends(folder):
    sft, ppo = _read(folder / "sft.yaml"), _read(folder / "ppo.yaml")
    mixed = folder / "sft_mixed.yaml"
    starts = [sft, _read(mixed)] if mixed.is_file() else [sft]
    assert ppo["model"] in [start["output_dir"] for start in starts]
    assert ppo["output_dir"] != sft["output_dir"]


def test_the_baseline_without_thoughts_differs_only_in_its_thoughts():
    sft, direct = (_read(ROOT / "configs/nano" / f"{n}.yaml") for n in ("sft", "sft_direct"))
    differing = {key for key in sft | direct if sft.get(key) != direct.get(key)}
    # decomposed_share is about thoughts.
    assert differing - {"decomposed_share"} == {"output_dir", "think"}


PRESETS = ("nano", "smol", "small", "mini", "preview")


@pytest.mark.parametrize("folder", PRESETS)
def test_a_preset_has_every_stage_and_evaluates_what_its_ppo_trains(folder):
    values = {
        stage: _read(ROOT / "configs" / folder / f"{stage}.yaml")
        for stage in ("pretrain", "sft", "ppo", "eval", "search")
    }
    assert values["eval"]["checkpoint"] == values["ppo"]["output_dir"]
    assert values["eval"]["max_sample_tokens"] >= values["ppo"]["max_completion_length"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs/accelerate").glob("*.yaml")), ids=_name)
def test_accelerate_can_read_its_launch_files(path):
    assert path.read_text(encoding="utf-8").startswith("# ")
    kind = "DEEPSPEED" if path.stem.startswith("zero") else "FSDP"
    config = load_config_from_file(str(path))
    assert config.distributed_type == kind
    assert (config.deepspeed_config if kind == "DEEPSPEED" else config.fsdp_config) != {}
    known = {f"--{key}" for key in (*config.fsdp_config, *config.deepspeed_config)}
    assert known <= set(launch_command_parser()._option_string_actions)


LAUNCH_FILES = [ROOT / "accelerate_config.yaml", *sorted((ROOT / "configs/accelerate").glob("*"))]
RUN_BY = re.compile(r"# Run by (tests/test_\w+\.py)::(test_\w+)(, [\w ]+)?\.")


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_the_first_line_of_a_launch_file_names_a_test_that_runs_it_or_says_that_none_does(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    if first.startswith("# Not run"):
        return
    named = RUN_BY.fullmatch(first)
    assert named, f"{path.name} begins with {first!r}"
    test, function = ROOT / named[1], named[2]
    source = test.read_text(encoding="utf-8")
    assert f"def {function}(" in source
    assert path.stem in source.partition(f"def {function}(")[0] + _body(source, function)


def _body(source: str, function: str) -> str:
    """The text of a function of a module."""
    found = [node for node in ast.parse(source).body if getattr(node, "name", "") == function]
    return ast.unparse(found[0])


@pytest.mark.parametrize(("folder", "output"), [("preview", 32_768), ("mini", 65_536)])
def test_the_highest_effort_is_the_papers_limit(folder, output):
    options = SearchOptions(
        **_read(ROOT / "configs" / folder / "search.yaml"), reasoning_effort="high"
    )
    assert options.total_tokens == options.sample_tokens == output
