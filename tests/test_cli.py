"""Old names of fields, configurations of the package, and the command `thinkhead`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import pytest
from transformers.hf_argparser import HfArg
from transformers.trainer_utils import SaveStrategy
from trl import TrlParser

from pipeline import config_files, runtime
from pipeline.cli import RENAMED_FIELDS, RENAMED_REWARDS, CommandParser
from pipeline.config import (
    Bounds,
    DataConfig,
    ModelConfig,
    PositiveFloat,
    PositiveInt,
    Required,
    RewardConfig,
    UnitInterval,
    check_types,
)
from pipeline.config_files import find_config
from pipeline.data.problems import data_folder
from pipeline.ppo.config import PPOConfig
from pipeline.pretrain.config import PretrainConfig, PretrainDataConfig
from pipeline.search import STRATEGIES, SearchOptions
from pipeline.sft.trainer import ReasoningSFTConfig
from stages import __main__ as command
from stages import distill, pretrain, rft, serve, verifier
from stages.chat import ChatArguments
from stages.infer import InferArguments
from stages.recipe_variants import RecipeConfig
from tests.conftest import ROOT


@dataclass
class Sample:
    """A field for every kind of rule, and two that were renamed."""

    rloo_baseline: bool = HfArg(default=False, help="renamed")
    verifier_learning_rate: PositiveFloat = HfArg(default=0.5, help="renamed twice")
    n: PositiveInt = HfArg(default=1, help="samples")
    limit: PositiveInt | None = HfArg(default=None, help="problems")
    share: UnitInterval = HfArg(default=0.0, help="of all")
    votes: Annotated[int, Bounds(ge=2, why="one is no vote")] = HfArg(default=8, help="of a vote")
    momentum: Annotated[float, Bounds(ge=0, lt=1)] = HfArg(default=0.5, help="of SGD")
    between: Annotated[float, Bounds(gt=0, lt=1)] = HfArg(default=0.5, help="open interval")
    name: Required = HfArg(default="x", help="has to be given")

    def __post_init__(self):
        check_types(self)


def parse(*arguments: str, classes: tuple = (Sample, RewardConfig)) -> tuple:
    return CommandParser(list(classes)).parse_args_and_config(arguments)


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


# ---- bounds ----


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 1),
        ("limit", None),
        ("share", 0),
        ("share", 1.0),
        ("votes", 2),
        ("momentum", 0.0),
        ("between", 1e-9),
        ("verifier_learning_rate", "1e-5"),
    ],
)
def test_a_value_on_or_inside_its_bounds_is_kept(field, value):
    assert getattr(Sample(**{field: value}), field) == (1e-5 if value == "1e-5" else value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n", 0, "n=0 must be at least 1; the default is 1"),
        ("limit", 0, "limit=0 must be at least 1, or null"),
        ("share", 1.01, "share=1.01 must lie in [0, 1]; the default is 0.0"),
        ("share", float("nan"), "share=nan must lie in [0, 1]; the default is 0.0"),
        ("votes", 1, "votes=1 must be at least 2: one is no vote; the default is 8"),
        ("momentum", 1.0, "momentum=1.0 must lie in [0, 1); the default is 0.5"),
        ("between", 0, "between=0 must lie in (0, 1); the default is 0.5"),
        (
            "verifier_learning_rate",
            "-1e-5",
            "verifier_learning_rate=-1e-05 must be above 0; the default is 0.5",
        ),
        ("name", " ", "--name is missing: pass --name or set it in the --config"),
        ("n", 2.5, "n=2.5 must be a whole number; the default is 1"),
    ],
)
def test_a_value_outside_its_bounds_is_refused_with_the_rule_and_the_default(field, value, message):
    with pytest.raises(ValueError) as caught:
        Sample(**{field: value})
    assert str(caught.value) == message


def test_a_configuration_may_be_given_with_an_equals_sign(yaml_file):
    path = yaml_file("n: 3\nname: a=b\n")
    (apart, _), (joined, _) = parse("--config", str(path)), parse(f"--config={path}")
    assert apart == joined and joined.n == 3
    assert parse(f"--config={path}", "--n=4")[0].n == 4


def test_the_help_shows_bounds_and_defaults(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = CommandParser([DataConfig, PPOConfig]).format_help().splitlines()
    shown = {line.split()[0][2:]: line for line in lines if line.startswith("  --")}
    assert shown["processes"].endswith(" [1; >= 1]")
    assert shown["size"].endswith(" [>= 1]")
    assert shown["lam"].endswith(" [0.95; in [0, 1]]")
    assert shown["muon_momentum"].endswith(" [0.95; in [0, 1)]")
    assert shown["learning_rate"].endswith(" [1e-06; > 0]")


def test_the_help_counts_only_fields_of_other_projects_as_theirs():
    assert "more fields" not in CommandParser(SearchOptions, without_effect=["n"]).format_help()
    assert "more fields" in CommandParser([PPOConfig]).format_help()


def test_the_help_names_no_field_with_a_default_required():
    lines = CommandParser(RecipeConfig).format_help().splitlines()
    (suites,) = [line for line in lines if line.startswith("  --suites ")]
    assert suites.endswith("[nano,nano_hard,o1nano]")


def test_the_parser_of_trl_alone_understands_fields_with_bounds():
    (sample,) = TrlParser([Sample]).parse_args_and_config(["--n", "3", "--limit", "4"])
    assert (sample.n, sample.limit) == (3, 4)


# ---- renamed fields ----


@pytest.mark.parametrize("old", ["--sibling_baseline", "--sibling-baseline"])
def test_an_old_flag_is_accepted_with_a_note(old, capsys):
    assert parse(old, "true")[0].rloo_baseline is True
    assert parse(f"{old}=true")[0].rloo_baseline is True
    assert capsys.readouterr().err == "note: sibling_baseline is now rloo_baseline\n" * 2


def test_an_old_key_is_accepted_and_the_command_line_replaces_it(yaml_file, capsys):
    path = yaml_file("critic_learning_rate: 0.25\nsibling_baseline: true\n")
    sample, _ = parse("--config", path, "--verifier_learning_rate", "0.125")
    assert (sample.rloo_baseline, sample.verifier_learning_rate) == (True, 0.125)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_an_old_reward_is_accepted_by_name_alone(yaml_file, capsys):
    text = "correctness=1,steps_hold=0.5,my.module:steps_hold=2"
    for reward in (
        parse("--rewards", text)[1],
        parse(f"--rewards={text}")[1],
        parse("--config", yaml_file(f"rewards: {text}"))[1],
    ):
        weights = {"correctness": 1.0, "correct_steps": 0.5, "my.module:steps_hold": 2.0}
        assert reward.weights() == weights
    assert capsys.readouterr().err == "note: steps_hold is now correct_steps\n" * 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("--sibling_baseline", "true", "--rloo_baseline", "true"),
        ("--critic_learning_rate", "1", "--path_critic_learning_rate", "1"),
        ("--rewards", "steps_hold=1,correct_steps=1"),
    ],
)
def test_an_old_and_a_new_name_together_are_refused(arguments, yaml_file):
    with pytest.raises(ValueError, match=r"is now \w+, and both are given; leave \w+ out$"):
        parse(*arguments)
    if arguments[0] != "--rewards":
        text = f"{arguments[0][2:]}: 1\n{arguments[2][2:]}: 1\n"
        with pytest.raises(ValueError, match=r"is now \w+, and both are given; leave \w+ out$"):
            parse("--config", yaml_file(text))


def test_an_old_name_of_another_command_is_unknown_here():
    with pytest.raises(ValueError, match="--laps is no argument here"):
        parse("--laps", "3")


def test_every_renamed_field_and_reward_exists_under_its_new_name():
    from eval.bench.__main__ import BenchArguments
    from pipeline.rewards.rubric import REWARDS
    from pipeline.verifier.offline import VerifierConfig

    classes = (BenchArguments, DataConfig, PPOConfig, VerifierConfig)
    known = {name for cls in classes for name in cls.__dataclass_fields__}
    assert set(RENAMED_FIELDS.values()) <= known and not set(RENAMED_FIELDS) & known
    assert set(RENAMED_REWARDS.values()) <= set(REWARDS)


def test_an_old_environment_variable_is_read_with_a_note(monkeypatch, tmp_path, capsys):
    runtime._note_renamed.cache_clear()
    monkeypatch.delenv("THINKHEAD_DATA", raising=False)
    monkeypatch.setenv("REASONER_DATA", str(tmp_path))
    assert data_folder(None) == data_folder(None) == tmp_path
    note = "note: the environment variable REASONER_DATA is now THINKHEAD_DATA\n"
    assert capsys.readouterr().err == note
    monkeypatch.setenv("THINKHEAD_DATA", str(tmp_path.parent))
    assert data_folder(None) == tmp_path.parent


# ---- configurations of the package ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--replay_size", "9"),
            "--replay_size does nothing with zero_variance_groups=keep; give "
            "zero_variance_groups=replay, or leave --replay_size out",
        ),
        (("--lora-r=4",), "--lora-r does nothing with use_peft=false; give use_peft=true"),
        (
            ("--alarms", "off", "--alarm_kl", "2"),
            "--alarm_kl does nothing with alarms=off; give alarms=warn or stop",
        ),
        (
            ("--supervised_batch_size", "2"),
            "--supervised_batch_size does nothing with supervised_coef=0.0; give supervised_coef "
            "above 0",
        ),
        (("--model", "mine", "--nano_layers", "2"), "with model=mine; give model=nano"),
        (("--hub_model_id", "a/b"), "with push_to_hub=false; give push_to_hub=true"),
        (("--kl_coef", "0", "--alarm_kl", "2"), "with kl_coef=0.0; give kl_coef above 0"),
    ],
)
def test_a_flag_without_effect_is_refused_with_the_field_that_it_needs(arguments, message):
    with pytest.raises(ValueError) as caught:
        parse(*arguments, "--output_dir", "out", classes=(ModelConfig, PPOConfig))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (rft, ["num_train_epochs=5", "push_to_hub=true", "direct_share=0.5", "energy_country=DEU"]),
        (pretrain, ["chat_template=plain"]),
        (verifier, ["streaming=true", "think=false"]),
        (distill, ["few_shot=2", "think=false"]),
        (serve, ["seed=1"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_flag_that_a_command_ignores_is_refused(module, flags, capsys):
    for flag, _, value in (f"--{flag}".partition("=") for flag in flags):
        with pytest.raises(SystemExit):
            module.main([flag, value])
        assert f"{flag} does nothing in this command; leave it out" in capsys.readouterr().err


def test_a_flag_with_the_field_that_it_needs_is_taken_and_a_file_may_prepare_it(yaml_file):
    classes = (ModelConfig, PPOConfig)
    own = ("--output_dir", "out", "--zero_variance_groups", "replay", "--replay_size", "9")
    assert parse(*own, classes=classes)[1].replay_size == 9
    path = yaml_file("lora_r: 4\nreplay_size: 9\noutput_dir: out\n")
    model, ppo = parse("--config", path, classes=classes)
    assert (model.lora_r, ppo.replay_size) == (4, 9)


@pytest.mark.parametrize("cls", [ReasoningSFTConfig, PretrainConfig])
def test_a_number_of_steps_between_checkpoints_is_refused_where_none_is_saved(cls):
    steps = ("--output_dir", "out", "--save_steps", "20")
    with pytest.raises(ValueError, match="--save_steps does nothing with save_strategy=no; give"):
        parse(*steps, "--save_strategy", "no", classes=(cls,))
    assert parse(*steps, "--save_strategy", "steps", classes=(cls,))[0].save_steps == 20


@pytest.mark.parametrize("cls", [ReasoningSFTConfig, PretrainConfig, PPOConfig])
def test_a_limit_of_checkpoints_is_taken_where_only_signals_save_them(cls):
    kind = ("--save_every", "0") if cls is PPOConfig else ("--save_strategy", "no")
    limit = ("--output_dir", "out", *kind, "--save_total_limit", "1")
    assert parse(*limit, classes=(cls,))[0].save_total_limit == 1


def test_a_flag_is_given_by_its_whole_name():
    with pytest.raises(ValueError, match="--shar is no argument here; did you mean --share"):
        parse("--shar", "0.5")


def test_an_option_of_another_strategy_is_refused_where_the_strategy_is_fixed():
    infer = ("--checkpoint", "x", "--question", "1+1?", "--strategy", "beam", "--c_puct", "2")
    with pytest.raises(ValueError, match="--c_puct does nothing with strategy=beam; give strategy"):
        parse(*infer, classes=(InferArguments,))
    with pytest.raises(ValueError, match="--temperature does nothing with strategy=greedy; give"):
        parse(*infer[:4], "--temperature", "1", classes=(InferArguments,))
    with pytest.raises(ValueError, match="--efforts does nothing with reasoning_effort=null; give"):
        parse(*infer[:4], "--efforts", "low=1,medium=2,high=3", classes=(InferArguments,))
    parser = CommandParser([ChatArguments], set_later=("strategy",))
    (chat,) = parser.parse_args_and_config(["--checkpoint", "x", "--c_puct", "2"])
    assert chat.c_puct == 2


@pytest.mark.parametrize(
    "cls",
    [
        *(PPOConfig, ReasoningSFTConfig, PretrainConfig, PretrainDataConfig),
        *(ModelConfig, InferArguments),
    ],
    ids=lambda c: c.__name__,
)
def test_every_rule_about_effects_names_fields_and_values_that_exist(cls):
    hints = get_type_hints(cls)
    rules = [i for c in cls.__mro__ for i in vars(c).get("ONLY_WITH", {}).items()]
    assert rules
    for condition, names in rules:
        field, _, wanted = condition.partition("=")
        choices = STRATEGIES if field == "strategy" else get_args(hints[field])
        if field == "save_strategy":
            choices = [strategy.value for strategy in SaveStrategy]
        choices = [c for choice in choices for c in get_args(choice) or (choice,)]
        known = {*map(str, choices), "nano"} if choices else {"true", "nano"}
        assert set(wanted.split("/")) <= known | {""} and {field, *names} <= set(hints)


@pytest.mark.parametrize("name", ["nano/ppo.yaml", "configs/nano/ppo.yaml", "nano"])
def test_a_configuration_of_the_package_is_found_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = name.removeprefix("configs/")
    assert find_config(name) == config_files.CONFIGS / inside == ROOT / "configs" / inside


def test_the_current_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nano").mkdir()
    Path("nano/ppo.yaml").write_text("seed: 1\n")
    assert find_config("nano/ppo.yaml") == Path("nano/ppo.yaml")
    assert find_config("configs/nano/ppo.yaml") == config_files.CONFIGS / "nano/ppo.yaml"


def test_a_path_in_the_checkout_stays_short(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert find_config("nano/ppo.yaml") == Path("configs/nano/ppo.yaml")


@pytest.mark.parametrize("name", ["no/such.yaml", "../pyproject.toml", "nano/../../README.md"])
def test_nothing_outside_the_configurations_is_found(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == Path(name) and not find_config(name).exists()


# ---- the command `thinkhead` ----


def test_every_script_has_a_name_and_a_line(capsys):
    command.main([])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line[:2] == "  "]
    assert [name for name, *_ in lines] == list(command.COMMANDS)
    assert all(len(line) > 3 for line in lines)
    guard = 'if __name__ == "__main__":'
    scripts = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for folder in ("stages", "eval")
        for path in (ROOT / folder).rglob("*.py")
        if guard in path.read_text(encoding="utf-8")
    }
    # The others in eval/bench are the programs that a benchmark starts.
    started = {s for s in scripts if s.startswith("eval.bench.")}
    scripts -= started - {"eval.bench.kill_test", "eval.bench.tags"}
    assert scripts - {"stages"} == set(command.COMMANDS.values())


def test_a_mistyped_command_is_one_line_with_the_nearest_name(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["recipee"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: 'recipee' is no command; did you mean recipe?\n"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # imported by a test
def test_a_command_is_the_script_with_its_own_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["thinkhead"])
    with pytest.raises(SystemExit) as stopped:
        command.main(["merge", "--help"])
    said = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "python -m stages.merge" in said and "\n  --adapter" in said
