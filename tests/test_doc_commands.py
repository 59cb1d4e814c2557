"""Every command in README and docs is one that its program accepts; some are run as written."""

import argparse
import importlib
import json
import os
import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pipeline.cli import CommandParser
from pipeline.search import STRATEGIES
from pipeline.serve.plan import STRATEGY_OPTIONS
from stages.__main__ import COMMANDS
from tests.conftest import ROOT
from tests.doc_commands import ALL, commands

# What needs more than a CPU and local files is marked beside the command.
NEEDS = {
    "Hub": ("user/", "Qwen/", "--push_to_hub", "configs/small/sft.yaml"),
    "GPU": ("configs/small/", "--device cuda", "fsdp2.yaml", "zero2.yaml", "zero3.yaml"),
    "network": ("pip install", "pre-commit"),
}
ABSENT_HERE = ("is not installed here", "needs a GPU that torch sees", "needs CUDA")
NOT_PARSED = ("python - ", "pip install ", "pre-commit ")
OTHER_MODULES = ("pytest", "pip", "venv", "build", "mypy", "ruff")


class Accepted(BaseException):
    """The parser has read the arguments; nothing else of the command is run."""


def words_of(command: str) -> list[str]:
    """The words of a command, optional parts included, with values for its placeholders."""
    command = command.partition("\n")[0]
    command = re.sub(r"[\[\]]", "", command).replace("--names ...", "--names gsm8k")
    command = command.replace(",...", "").replace(" ...", "")
    command = command.replace("FILE.yaml", "configs/nano/ppo.yaml").replace("--field value", "")
    command = command.replace("--suite NAME", "--suite nano").replace("--preset NAME", "")
    return shlex.split(command.replace("DIR+DIR+DIR", "a+b+c"))


def module_of(words: list[str]) -> tuple[str, list[str]]:
    """(module, arguments) of `python -m`, `thinkhead` or `accelerate launch`."""
    if words[0] == "python":
        return words[2], words[3:]
    if words[0] == "thinkhead":
        return COMMANDS[words[1]], words[2:]
    if "-m" in words:
        module = words.index("-m") + 1
        return words[module], words[module + 1 :]
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return words[script].removesuffix(".py").replace("/", "."), words[script + 1 :]


def is_accepted(module: str, arguments: list[str], monkeypatch) -> None:
    """Run the command up to the point where its arguments are read and checked."""
    for parser, name in (
        (CommandParser, "parse_args_and_config"),
        (argparse.ArgumentParser, "parse_args"),
    ):
        read = getattr(parser, name)

        def stop(self, *args, _read=read, **options):
            _read(self, *args, **options)
            raise Accepted

        monkeypatch.setattr(parser, name, stop)
    package = (ROOT / module.replace(".", "/")).is_dir()
    script = importlib.import_module(f"{module}.__main__" if package else module)
    threads = torch.get_num_threads()
    with pytest.raises(Accepted):
        (script.command if module == "stages.data" else script.main)(arguments)
    torch.set_num_threads(threads)


def test_there_are_commands_to_check():
    assert len(ALL) > 80
    assert {command.document for command in ALL} >= {"README.md", "docs/ppo.md"}


@pytest.mark.parametrize(
    ("document", "command"),
    dict.fromkeys((c.document, c.text) for c in ALL if not c.text.startswith(NOT_PARSED)),
)
def test_a_command_of_the_docs_is_accepted_by_its_program(document, command, monkeypatch, capsys):
    words = words_of(command)
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M)
        assert words[1] in targets
        return
    monkeypatch.chdir(ROOT)
    module, arguments = module_of(words)
    if module.partition(".")[0] in OTHER_MODULES:
        return
    if module.startswith("tests."):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        return
    if not arguments:  # named in a sentence
        assert find_spec(module) is not None
        return
    try:
        is_accepted(module, arguments, monkeypatch)
    except SystemExit:
        said = capsys.readouterr().err
        assert any(text in said for text in ABSENT_HERE), f"{command}: {said}"


def test_a_command_that_needs_the_hub_or_a_gpu_says_so():
    silent = [
        (command.document, command.text, need)
        for command in ALL
        for need, signs in NEEDS.items()
        if any(sign in command.text for sign in signs) and need not in command.marks
    ]
    assert silent == []


def test_a_mark_is_read_in_a_block_and_in_a_sentence():
    text = (
        "    make a    # GPU, Hub: more\n    python -m b \\\n        --c 1  # not a mark\n"
        "    python - <<'E'\n    x = 1\n    E\n\nSee `make d` (Hub) and `make e`.\n"
        "```bash\nmake f  # network\n```\n"
    )
    found = {c.text: (c.marks, c.in_block) for c in commands("x.md", text)}
    assert found == {
        "make a": (("GPU", "Hub"), True),
        "python -m b --c 1": ((), True),
        "python - <<'E'\nx = 1\nE": ((), True),
        "make f": (("network",), True),
        "make d": (("Hub",), False),
        "make e": ((), False),
    }


def test_the_environment_is_activated_before_the_first_python_command():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 0 < text.index("source .venv/bin/activate") < text.index("    python -m ")


@pytest.mark.skipif(not (ROOT / ".venv/bin/activate").exists(), reason="`make venv` was not run")
def test_a_command_runs_in_a_bare_shell_after_the_activation():
    done = subprocess.run(
        ["bash", "-c", "source .venv/bin/activate && python -m stages && thinkhead"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.count("\n  recipe ") == 2


def test_nano_is_asked_in_the_wordings_that_it_is_trained_on():
    texts = [c.text for c in ALL if re.search("runs/(nano|tour)/", c.text)]
    asked = [question for text in texts for question in re.findall('--question "([^".]+)"', text)]
    known = r"Calculate the (sum|product|quotient) of \d+ and \d+|Compute .+"
    known += r"|Calculate the difference between \d+ and \d+"
    assert len(asked) > 4 and [q for q in asked if not re.fullmatch(known, q)] == []


def test_the_options_of_a_search_request_are_those_of_the_server():
    text = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    table = text.partition("| option | strategies | most |")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    for first, strategies, most in re.findall(r"^\| (`.+) \| (.+) \| (.+) \|$", table, flags=re.M):
        assert set(strategies.split(", ")) <= set(STRATEGIES)
        names = re.findall(r"`(\w+)`", first.partition(":")[0])
        limits = most.split(", ")
        found.update(zip(names, limits * len(names) if len(limits) == 1 else limits, strict=False))
    assert found == {
        n: "-" if most is None else f"{most:g}" for n, most in STRATEGY_OPTIONS.items()
    }


def test_the_readme_s_own_data_are_trained_on_and_measured(tmp_path, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.search(r"```json\n(.*?)```", text, flags=re.S)[1]
    assert len([json.loads(line) for line in rows.splitlines()]) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("THINKHEAD_DATA", raising=False)  # else 40,000 questions are indexed first
    Path("mine.jsonl").write_text(rows)
    tiny = "--nano_hidden_size 16 --nano_layers 1 --nano_heads 2 --nano_vocab_size 300"
    short = {
        "stages.sft": f"{tiny} --max_steps 1 --disable_tqdm true",
        "stages.ppo": "--num_rollouts 1 --max_completion_length 8 --disable_tqdm true "
        "--completions_per_question 2 --num_minibatches 1 --ppo_epochs 1",
        "eval.run": "--max_completion_tokens 8",
        "stages.infer": "--max_completion_tokens 8",
    }
    threads = torch.get_num_threads()
    for command in re.findall(r"^    (python -m .*mine.jsonl.*)$", text, flags=re.M):
        module, arguments = module_of(shlex.split(command))
        importlib.import_module(module).main([*arguments, *shlex.split(short.pop(module))])
    torch.set_num_threads(threads)
    assert short == {}
    said = capsys.readouterr().out
    assert "next: " in said and "--suite" in said
    assert json.loads(Path("runs/mine/eval/metrics.json").read_text())["n"] == 3
    assert len(Path("runs/mine/answers/records.jsonl").read_text().splitlines()) == 3
