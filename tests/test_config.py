"""Wrong values and unknown names are refused on construction, each in one line."""

import random
import sys
from dataclasses import dataclass
from typing import Literal

import pytest
from transformers.hf_argparser import HfArg

from pipeline.cli import CommandParser
from pipeline.config import (
    DataConfig,
    ModelConfig,
    RewardConfig,
    check_divides,
    check_types,
)


@dataclass
class Sample:
    """One field of every kind."""

    rate: float = HfArg(default=0.1)
    limit: float | None = HfArg(default=None)
    steps: int = HfArg(default=1)
    size: int | None = HfArg(default=None)
    muon: bool = HfArg(default=False)
    name: str = HfArg(default="nano")
    kind: Literal["linear", "cosine"] = HfArg(default="linear")
    others: list[str] | None = HfArg(default=None)  # not a simple type: not checked

    def __post_init__(self):
        check_types(self)


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("rate", 0.5, 0.5),
        ("rate", 1, 1),
        ("rate", "1e-5", 1e-5),  # as YAML reads it
        ("rate", "4E-3", 4e-3),
        ("limit", None, None),
        ("limit", "2e0", 2.0),
        ("steps", 3, 3),
        ("size", None, None),
        ("muon", True, True),
        ("name", "gsm8k", "gsm8k"),
        ("kind", "cosine", "cosine"),
        ("others", [1, 2], [1, 2]),
    ],
)
def test_a_fitting_value_is_kept(field, value, kept):
    got = getattr(Sample(**{field: value}), field)
    assert got == kept and type(got) is type(kept)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rate", "abc", "rate='abc' must be a number; the default is 0.1"),
        ("rate", True, "rate=True must be a number; the default is 0.1"),
        ("rate", None, "rate=None must be a number; the default is 0.1"),
        ("limit", "no", "limit='no' must be a number or null"),
        ("steps", 2.7, "steps=2.7 must be a whole number; the default is 1"),
        ("steps", 2.0, "steps=2.0 must be a whole number; the default is 1"),
        ("steps", True, "steps=True must be a whole number; the default is 1"),
        ("steps", "3", "steps='3' must be a whole number; the default is 1"),
        ("size", "all", "size='all' must be a whole number or null"),
        ("muon", "yes", "muon='yes' must be true or false; the default is False"),
        ("muon", 1, "muon=1 must be true or false; the default is False"),
        ("name", 5, "name=5 must be text; the default is nano"),
        ("kind", "zzz", "kind='zzz' must be one of 'linear', 'cosine'; the default is linear"),
    ],
)
def test_a_wrong_type_is_refused(field, value, message):
    with pytest.raises(ValueError) as caught:
        Sample(**{field: value})
    assert str(caught.value) == message


def test_a_part_that_does_not_divide_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"^micro=3 must divide 8; 8 / 3 = 2.67$"):
        check_divides(3, 8, "micro=3 must divide 8")
    with pytest.raises(ValueError, match=r"^micro=0 must divide 8$"):
        check_divides(0, 8, "micro=0 must divide 8")
    check_divides(4, 8, "never said")


# ---- the configurations of the stages ----


def test_shares_are_kinds_and_numbers():
    assert DataConfig(shares="wording=1, story1=0.5").parsed_shares() == {
        "wording": 1.0,
        "story1": 0.5,
    }
    assert DataConfig().parsed_shares() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": "wording"}, "shares='wording' must look like .*; 'wording' does not"),
        ({"shares": "wording=much"}, "'wording=much' does not"),
        ({"shares": "wording=1,"}, "'' does not"),
        (
            {"shares": "wording=1", "dataset": "gsm8k"},
            "shares of nano, which is not in dataset=gsm8k",
        ),
        (
            {"decomposed_share": 1.5, "shares": "wording=1"},
            r"decomposed_share=1.5 must lie in \[0, 1\]",
        ),
        ({"decomposed_share": 0.5}, "decomposed_share=0.5 does nothing without shares"),
        ({"size": 0}, "size=0 must be at least 1"),
        ({"shares": "wording=nan"}, "shares='wording=nan': wording=nan is no finite number"),
        ({"shares": "wording=1,wording=2"}, "names wording twice; name it once"),
        ({"dataset": "gsm8k=1,gsm8k=3"}, "dataset='gsm8k=1,gsm8k=3' names gsm8k twice"),
        ({"dataset": "gsm8k,gsm8k"}, "names gsm8k twice; name it once"),
        ({"dataset": "nano,"}, "dataset='nano,' has an empty name"),
        ({"dataset": "=2"}, "has an empty name"),
        ({"think": "no"}, "think='no' must be true or false"),
    ],
)
def test_a_wrong_choice_of_data_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


def test_rewards_are_names_and_weights():
    weights = RewardConfig(rewards="correctness=1, my.module:reward=-0.5").weights()
    assert weights == {"correctness": 1.0, "my.module:reward": -0.5}


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ("correctness=1,correctness=5", "names correctness twice; name it once"),
        ("correctness=inf", "correctness=inf is no finite number; give one"),
    ],
)
def test_a_reward_has_one_finite_weight(rewards, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(rewards=rewards)


@pytest.mark.parametrize("rewards", ["correctness", "correctness=high", "correctness=1,,", ""])
def test_rewards_without_weights_are_refused(rewards):
    with pytest.raises(ValueError, match=r"must look like 'correctness=1,steps=0\.1'"):
        RewardConfig(rewards=rewards)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nano_heads": 3}, "nano_heads=3 must divide nano_hidden_size=128; 128 / 3 = 42.67"),
        ({"nano_heads": 0}, "nano_heads=0 must be at least 1"),
        ({"nano_layers": 0}, "nano_layers=0 must be at least 1"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**options)


# ---- the command line ----


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


def parse(*arguments: str) -> Sample:
    (sample,) = CommandParser([Sample]).parse_args_and_config(arguments)
    return sample


def test_flags_replace_the_file_and_the_file_replaces_the_defaults(yaml_file):
    path = yaml_file("steps: 5\nrate: 1e-5\n")
    sample = parse("--config", path, "--steps", "7")
    assert (sample.steps, sample.rate, sample.name) == (7, 1e-5, "nano")


def test_without_arguments_those_of_the_process_are_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ppo", "--steps", "9"])
    (sample,) = CommandParser([Sample]).parse_args_and_config()
    assert sample.steps == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepps: 3", r"^'stepps' in the --config is no argument here; did you mean 'steps'\?$"),
        ("zzzzz: 3", "^'zzzzz' in the --config is no argument here; --help lists them all$"),
        ("steps: 2.7", "steps=2.7 must be a whole number"),
        ("rate: abc", "argument --rate: invalid float value: 'abc'"),
        ("steps: [1", "config.yaml is no YAML"),
        ("steps: 3\nrate: 1\nsteps: 4", "line 3: the key 'steps' stands twice"),
        ("name: &a x\nkind: *a", "line 2: an alias is not allowed here"),
        ("steps: 012", "line 1: 012 would be read as another number; quote it"),
        ("steps: 12:30", "line 1: 12:30 would be read as another number; quote it"),
        ("steps: " + "[" * 1000, "config.yaml is no YAML"),
        ("steps: !!python/object/apply:os.getcwd []", "config.yaml is no YAML"),
        ("- steps", "config.yaml holds no arguments; write one a line"),
        ("", "config.yaml holds no arguments; write one a line"),
    ],
)
def test_a_mistake_in_the_file_is_refused(yaml_file, text, message):
    with pytest.raises(ValueError, match=message):
        parse("--config", yaml_file(text))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "many"), "argument --steps: invalid int value: 'many': --help lists"),
        (("--steps",), "argument --steps: expected one argument: --help lists"),
        (("--kind", "zzz"), "argument --kind: invalid choice: 'zzz'"),
        (("--stepps", "3"), "^--stepps is no argument here; did you mean --steps"),
        (("--zzzzz=3",), "^--zzzzz is no argument here; --help lists them all$"),
        (("nonsense",), "^nonsense is no argument here; --help lists them all$"),
        (("--config",), "--config needs the path of a YAML file"),
    ],
)
def test_a_mistake_in_a_flag_is_refused_without_the_usage(capsys, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""


GOOD_LINES = ("steps: 3", "rate: 1e-5", "name: nano", "kind: cosine", "muon: true", "limit: 2.5")
DAMAGE = (
    lambda rng, lines: [*lines, rng.choice(lines)],  # the same key twice
    lambda rng, lines: [line.replace(": ", ":\t- [", 1) for line in lines],
    lambda rng, lines: [*lines, f"{rng.choice('abcdexyz')}{rng.randrange(10**6)}: 1"],
    lambda rng, lines: [*lines[:-1], lines[-1].split(":")[0] + ": {a: [1, {b: " + "]" * 3],
    lambda rng, lines: ["steps: " + rng.choice(["2.7", "many", "[1]", "{a: 1}", "true", "1e3x"])],
    lambda rng, lines: ["rate: " + rng.choice(["abc", "[1]", "yes", "{}", "1e-5e", "--"])],
    lambda rng, lines: ["muon: " + rng.choice(["maybe", "2", "[true]", "1e5", "truee"])],
    lambda rng, lines: ["kind: " + rng.choice(["zzz", "3", "[linear]", "linearr", "null"])],
    lambda rng, lines: ["- " + line for line in lines],
    lambda rng, lines: [f"steps: {'[' * rng.randrange(400, 600)}"],
    lambda rng, lines: ["a: &x [1]", "name: *x"],
    lambda rng, lines: ["name: !!python/name:os.system", *lines[1:]],
    lambda rng, lines: ["\x00" + lines[0]],
    lambda rng, lines: ['name: "open', *lines],
)


@pytest.mark.parametrize("seed", range(200))
def test_a_malformed_file_is_one_line_and_never_a_silent_change(seed, yaml_file):
    rng = random.Random(seed)
    lines = rng.sample(GOOD_LINES, rng.randrange(1, len(GOOD_LINES) + 1))
    text = "\n".join(DAMAGE[seed % len(DAMAGE)](rng, lines))
    with pytest.raises(ValueError) as caught:
        parse("--config", yaml_file(text))
    assert "\n" not in str(caught.value) and str(caught.value)


def test_the_undamaged_lines_are_read_and_a_small_number_is_a_float(yaml_file):
    sample = parse("--config", yaml_file("\n".join(GOOD_LINES)))
    assert (sample.steps, sample.rate, sample.kind, sample.limit) == (3, 1e-5, "cosine", 2.5)
    assert type(sample.rate) is float


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"--config no/such.yaml does not exist; see the"):
        parse("--config", "no/such.yaml")
