"""The commands of README, docs and examples run in a fresh clone, in a bare shell (slow).

tests/doc_rules.py says in which order and what makes them short; commands that the docs mark with
GPU, Hub or network are left out. `DOCS_CLONE=DIR pytest -m slow tests/test_docs_as_written.py`
keeps the clone in DIR, where `-k` then runs single commands again.
"""

import os
import re
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.doc_clone import make_clone, run_in, shorten, write_data
from tests.doc_commands import ALL, ROOT, DocCommand
from tests.doc_rules import RULES, Rule, rule_of


def inherited_marks(command: DocCommand) -> tuple[str, ...]:
    """The marks of a command; one named in a sentence has those of the block that shows it."""
    if command.marks or command.in_block:
        return command.marks
    return next((c.marks for c in ALL if c.text == command.text and c.marks), ())


def to_run() -> list[tuple[str, Rule]]:
    """(command, rule) of every command that is neither marked nor a mere name, in their order."""
    texts = dict.fromkeys(c.text for c in ALL if not inherited_marks(c) and not c.is_name)
    found = [(rule_of(text), text) for text in texts]
    ordered = sorted(((at[0], at[1], text) for at, text in found if at), key=lambda row: row[0])
    return [(text, rule) for _, rule, text in ordered]


def test_every_command_is_run_or_marked():
    silent = [
        (command.document, command.text)
        for command in ALL
        if not inherited_marks(command) and not command.is_name and rule_of(command.text) is None
    ]
    assert silent == [], "add a rule to tests/doc_rules.py, or mark it with # GPU or # Hub"


def test_every_rule_has_a_command():
    used = {rule.pattern for _, rule in to_run()}
    assert [rule.pattern for rule in RULES if rule.pattern not in used] == []


def test_a_test_that_runs_a_command_in_place_of_this_one_exists():
    held = [rule.held_by.partition("::") for rule in RULES if rule.held_by]
    for file, _, name in held:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_a_command_keeps_its_words_and_its_input_when_it_is_shortened():
    rule = Rule("x", "--limit 2", {"DIR": "data"})
    assert rule.shortened("python -m a --root DIR") == "python -m a --root data --limit 2"
    assert rule.shortened("make a") == 'make a ARGS="--limit 2"'
    assert rule.shortened('make a ARGS="--b 1"') == 'make a ARGS="--limit 2 --b 1"'
    assert rule.shortened("python - DIR <<'E'\nDIR\nE") == "python - data <<'E' --limit 2\nDIR\nE"


def test_the_small_configurations_and_data_are_accepted(tmp_path):
    import yaml

    from pipeline.data import load_problems

    path = tmp_path / "nano" / "sft.yaml"
    path.parent.mkdir()
    path.write_text("model: nano\nsize: 16000\nlearning_rate: 1.0\n")
    shorten(path)
    config = yaml.safe_load(path.read_text())
    assert (config["size"], config["learning_rate"], config["nano_layers"]) == (32, 1.0, 1)
    write_data(tmp_path / "data")
    for name, split in (
        ("gsm8k", "train"),
        ("math", "test"),
        ("asdiv", "train"),
        ("asdiv", "test"),
    ):
        assert load_problems(name, split, tmp_path / "data")


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("DOCS_CLONE") or tmp_path_factory.mktemp("docs") / "thinkhead")
    if not folder.exists():
        make_clone(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("command", "rule"), to_run(), ids=[text for text, _ in to_run()])
def test_a_command_of_the_docs_runs_as_it_is_written(clone, command, rule):
    if rule.held_by:
        pytest.skip(f"run by {rule.held_by}")
    if rule.suites and not os.environ.get("THINKHEAD_DATA"):
        pytest.skip("needs the data sets: set THINKHEAD_DATA")
    if rule.needs and find_spec(rule.needs) is None:
        pytest.skip(f"needs {rule.needs}, which is not installed")
    if rule.removes:
        shutil.rmtree(clone / rule.removes, ignore_errors=True)
    line = rule.shortened(command)
    begin = time.perf_counter()
    status, output = run_in(clone, line, rule)
    print(f"{time.perf_counter() - begin:.0f} s: {line}")
    assert status == 0, f"{line}\n{output[-4000:]}"
    assert "Traceback" not in output


@pytest.mark.slow
def test_the_readme_s_python_runs_after_its_commands(clone):
    text = (clone / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, flags=re.S)[-1]
    (clone / "from_python.py").write_text(code)
    status, output = run_in(clone, "python from_python.py", Rule(""))
    assert status == 0 and output.strip(), output
