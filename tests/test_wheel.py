"""The wheel, installed in a folder of its own and used outside the checkout."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distributions

import pytest

from tests.conftest import KEPT, ROOT
from tests.forked import run_forked

SOURCES = ("pipeline", "stages", "eval", "configs", "pyproject.toml", "README.md", "LICENSE")
# All in one forked process that forgets this checkout: the imports of torch take most of the time
# of a command. Prints where the imports end.
FORGET = """
import sys, pathlib

ROOT = pathlib.Path(ROOT)
for name, module in list(sys.modules.items()):
    if name.partition(".")[0] in ("pipeline", "stages", "eval", "configs", "tests"):
        del sys.modules[name]
here = [path for path in sys.path if pathlib.Path(path or ".").resolve() == ROOT]
sys.path[:] = [SITE, *(path for path in sys.path if path not in here)]
sys.path_importer_cache.clear()
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
"""
USE = """
import pipeline, evaluate
from pathlib import Path
from eval import metrics
from eval.harness.__main__ import HERE
import eval.report_page.page as page
CSS = Path(page.__file__).parent / 'assets' / 'page.css'
from pipeline.config_files import CONFIGS
from pipeline.hub.upload import GENERATE
from stages.__main__ import main

def run(*arguments):
    try:
        main(arguments)
    except SystemExit as end:
        print("exit code", end.code)

run("sft", "--config", "nano/sft.yaml", "--size", "64", "--dry_run", "true")
run("ppo", "--config", "configs/nano/ppo.yaml", "--preset", "vapo", "--lam", "2")
run("eval", "--help")
script = Path(metrics.__file__).parent / "accuracy"
print(evaluate.load(str(script)).compute(predictions=["4", "5"], references=["4", "6"]))
print(all(path.is_file() for path in (GENERATE, HERE / "task.yaml", CSS)))
print(Path(pipeline.__file__).parents[1], CONFIGS)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Callable[..., subprocess.CompletedProcess]:
    """`run("bin/thinkhead")`: a program in an empty folder, where the wheel is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    source, site, elsewhere = (folder / name for name in ("source", "site", "elsewhere"))
    elsewhere.mkdir()
    for name in SOURCES:  # setuptools writes build/ beside what it builds
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    variables = {name: os.environ[name] for name in KEPT if name in os.environ} | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(site),
    }

    def program(*command: str) -> subprocess.CompletedProcess:
        first = str(site / command[0]) if command[0].startswith("bin/") else command[0]
        return subprocess.run(
            [first, *command[1:]], cwd=elsewhere, env=variables, capture_output=True, text=True
        )

    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index")
    built = program(
        *pip, "wheel", str(source), "--no-build-isolation", "--wheel-dir", str(folder), *offline
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    installed = program(*pip, "install", "--target", str(site), *offline, str(wheel))
    assert installed.returncode == 0, installed.stderr
    program.variables = variables
    return program


def test_the_installed_command_lists_the_scripts(run):
    ended = run("bin/thinkhead")
    assert ended.returncode == 0, ended.stderr
    names = [line.split()[0] for line in ended.stdout.splitlines() if line.startswith("  ")]
    assert {"sft", "ppo", "recipe", "eval", "chat", "bench"} <= set(names)


def test_the_wheel_can_be_used_outside_the_checkout(run, tmp_path):
    ended = run_forked(
        lambda: exec(FORGET + USE, {"ROOT": str(ROOT), "SITE": run.variables["PYTHONPATH"]}),
        folder=tmp_path,
        variables=run.variables,
    )
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()
    assert any("nothing was trained or written" in line for line in said)
    assert "error: lam=2.0 must lie in [0, 1]; the default is 0.95" in ended.stderr.splitlines()
    assert any(line.startswith("  --strategy ") for line in said)
    *_, metric, files, places = said
    assert "'accuracy': 0.5" in metric
    assert files == "True"
    site, configs = places.split()
    assert not site.startswith(str(ROOT)) and configs == f"{site}/configs"


def test_the_wheel_has_four_packages_and_no_tests(run):
    (found,) = distributions(name="thinkhead", path=[run.variables["PYTHONPATH"]])
    names = {file.parts[0] for file in found.files if file.parts[0].isidentifier()}
    assert sorted(names) == ["configs", "eval", "pipeline", "stages"]
