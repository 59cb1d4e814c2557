"""Which package may import which: one way down, for every import statement, also inside functions.

Three of the rules protect results. `search` imports neither `data` nor `rewards`, so a search never
sees an expected answer. `eval` does not import `rewards`, so a changed reward never changes a
metric. `ppo` does not import `rewards`, so a user's own reward works like the built-in ones.
"""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.sources import tree_of

ROOT = Path(__file__).parents[1]
OURS = ("pipeline", "stages", "eval")

BASE = {
    "records",
    "config",
    "config_files",
    "cli",
    "device",
    "runtime",
    "energy",
    "folder_lock",
    "hosts",
    "module_process",
    "progress",
    "stats",
    "chat",
    "sandbox",
}
# What each package may import beside itself.
MAY_IMPORT = {
    "records": set(),
    "config": set(),
    "device": set(),
    "runtime": set(),
    "energy": {"runtime"},
    "folder_lock": {"runtime"},
    "hosts": set(),
    "module_process": set(),
    "progress": set(),
    "stats": set(),
    "config_files": {"config"},
    "cli": {"config", "config_files"},
    "chat": {"records"},
    "sandbox": set(),
    "grading": BASE,
    "data": BASE | {"grading"},
    "model": BASE | {"grading"},
    "scoring": BASE | {"model"},
    "generation": BASE | {"model", "scoring"},
    "rewards": BASE | {"grading", "data"},
    "training": BASE | {"model"},
    "verifier": BASE | {"grading", "data", "model", "generation", "training"},
    "pretrain": BASE | {"grading", "model", "training", "data"},
    "sft": BASE | {"grading", "model", "generation", "scoring", "training", "data"},
    "rft": BASE | {"grading", "model", "generation", "training"},
    "ppo": BASE | {"grading", "model", "generation", "scoring", "training", "verifier", "data"},
    "search": BASE | {"grading", "model", "generation", "scoring"},
    "answers": BASE | {"model", "search"},
    "planning": BASE | {"model"},
    "serve": BASE | {"model", "generation", "search"},
    "distill": BASE | {"grading", "data", "model", "generation", "scoring", "search"},
    "hub": BASE | {"model"},
}
PIPELINE = set(MAY_IMPORT)
STAGES = PIPELINE | {"stages"}
TRAINS = {"rewards", "training", "ppo", "sft", "rft", "pretrain", "verifier", "distill"}
EVAL = (PIPELINE - TRAINS) | {"eval"}


def imported(source: str) -> Iterator[str]:
    """Every module of ours that a source text imports, in full: `pipeline.ppo.trl_trainer`.

    A module named in a call of import_module counts as well.
    """
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import in full, without dots"
            # `from pipeline import ppo` names a module after `import`.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and "import_module" in vars(node.func).values():
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in OURS)


def package_of(module: str) -> str:
    """The package of `pipeline` that a module belongs to, or `stages` or `eval`.

    >>> package_of("pipeline.ppo.trl_trainer"), package_of("pipeline.config"), package_of("stages.sft"), package_of("eval.run")
    ('ppo', 'config', 'stages', 'eval')
    """  # noqa: E501
    first, *rest = module.split(".")
    return first if first != "pipeline" or not rest else rest[0]


def allowed(module: str) -> set[str]:
    """The packages that a module may import."""
    here = package_of(module)
    if here in ("stages", "eval"):
        # The benchmarks time the trainers, and `signal` measures what PPO makes of rewards.
        benchmark = {"ppo", "sft", "pretrain"} if module.startswith("eval.bench") else set()
        if module == "eval.bench.estimators":
            benchmark |= {"rewards", "training"}
        return {"stages": STAGES, "eval": EVAL}[here] | benchmark
    assert here in MAY_IMPORT, f"{module} is in no package of the plan: add {here} to MAY_IMPORT"
    return MAY_IMPORT[here] | {here}


def forbidden(module: str, source: str) -> list[str]:
    """What a module imports and must not."""
    return [name for name in imported(source) if package_of(name) not in allowed(module)]


def test_the_layout_page_has_the_rules():
    page = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    base = page.partition("*base* is ")[2].partition(".")[0]
    assert set(re.findall(r"`(\w+)`", base)) == BASE
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", page, flags=re.M)
    named = {name: set(re.findall(r"\w+", cell)) for name, cell in rows}
    told = {n: cell - {"base"} | (BASE if "base" in cell else set()) for n, cell in named.items()}
    assert told == MAY_IMPORT


def _modules() -> dict[str, Path]:
    paths = [path for folder in OURS for path in sorted((ROOT / folder).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


MODULES = _modules()
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}


def test_every_module_imports_only_what_its_room_may():
    found = {name: forbidden(name, text) for name, text in TEXTS.items() if name != "pipeline"}
    assert {name: imports for name, imports in found.items() if imports} == {}
    assert len(found) > 300


def test_the_package_itself_imports_nothing():
    body = tree_of(TEXTS["pipeline"]).body
    assert [type(node) for node in body] == [ast.Expr]  # its docstring


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pipeline.search.mcts", "from pipeline.data import load_problems"),
        ("pipeline.search.mcts", "def f():\n    import pipeline.rewards.rubric"),
        ("pipeline.ppo.trl_trainer", "from pipeline import rewards"),
        ("pipeline.ppo.trl_trainer", "import_module('pipeline.rewards')"),
        ("pipeline.records", "from pipeline.grading.equivalence import same_answer"),
        ("pipeline.config", "from pipeline.grading.structure import parts"),
        ("pipeline.model.policy", "if True:\n    from pipeline.generation import Sampler"),
        ("pipeline.generation.sampler", "from stages.common import parse"),
        ("eval.run", "from pipeline.rewards import Rubric"),
        ("eval.run", "from pipeline.ppo.trl_trainer import ReasoningPPOTrainer"),
        ("eval.run", "from stages import sft"),
        ("eval.run", "from pipeline.pretrain.perplexity import perplexity"),
        ("pipeline.pretrain.trainer", "from pipeline.sft.trainer import token_cross_entropy"),
        ("stages.recipe", "import json, eval.compare"),
    ],
)
def test_the_wall_stops_what_it_is_there_for(module, source):
    assert len(forbidden(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pipeline.grading.equivalence", "from pipeline.grading.structure import parts"),
        ("pipeline.ppo.trl_trainer", "from pipeline.ppo.losses import value_loss"),
        ("pipeline.search.mcts", "from pipeline.generation import Sampler\nimport torch"),
        ("eval.bench.ours", "from pipeline.ppo.trl_trainer import ReasoningPPOTrainer"),
        ("stages.ppo", "from pipeline.rewards import Rubric\nfrom stages import sft"),
    ],
)
def test_the_wall_lets_through_what_flows_down(module, source):
    assert forbidden(module, source) == []


def definitions_after_main(source: str) -> bool:
    """Whether anything stands behind the call of main in a module."""
    *body, _ = tree_of(source).body or [None]
    return any(isinstance(n, ast.If) and "__main__" in ast.unparse(n.test) for n in body)


def test_nothing_is_defined_after_the_call_of_main():
    # `python -m module` calls main at that line, before the names below it exist.
    assert [name for name, text in TEXTS.items() if definitions_after_main(text)] == []
    assert definitions_after_main("if __name__ == '__main__':\n    f()\ndef f(): ...")


def test_a_relative_import_is_refused():
    with pytest.raises(AssertionError, match="in full"):
        list(imported("from . import losses"))


def test_a_module_outside_the_plan_is_refused():
    with pytest.raises(AssertionError, match="in no package"):
        allowed("pipeline.misc")


def test_no_script_bears_the_name_of_an_installed_package_or_a_standard_module():
    # The folder of a script comes first on the import path: eval/evaluate.py would be imported in
    # place of the package evaluate.
    taken = (set(packages_distributions()) | sys.stdlib_module_names) - set(OURS)
    scripts = [path for name, path in MODULES.items() if not name.startswith("pipeline")]
    assert [path for path in scripts if path.stem in taken] == []
    assert {"evaluate", "datasets", "statistics"} <= taken


def test_the_plan_has_no_way_up():
    """No package can be reached from itself through the packages that it may import."""
    reached = {name: set(packages) - {name} for name, packages in MAY_IMPORT.items()}
    for _ in reached:
        reached = {
            name: packages.union(*(reached[other] for other in packages))
            for name, packages in reached.items()
        }
    assert [name for name, packages in reached.items() if name in packages] == []
