"""Who may import whom: one way down, held for every import statement, also inside functions.

Three of the walls are promises about results. Search never meets an expected answer, so it imports
neither data nor reward. A reshaped reward never moves a metric, so eval does not import reward. A
user's own reward works like ours, so train does not import reward.
"""

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("pipeline", "stages", "eval")

BASE = {
    "records",
    "tags",
    "prompts",
    "answers",
    "calculator",
    "sandbox",
    "verify",
    "config",
    "command",
    "runtime",
}
# What each room may import beside itself. A module whose name begins with _ belongs to answers.
MAY_IMPORT = {
    **{name: {"tags"} for name in BASE},
    "command": {"config"},
    "prompts": {"tags", "records"},
    "answers": {"tags", "records"},
    "sandbox": {"answers"},
    "verify": {"records", "answers", "sandbox"},
    "data": BASE,
    "model": BASE,
    "reward": BASE,
    "rollout": BASE | {"model"},
    "train": BASE | {"data", "model", "rollout"},
    "search": BASE | {"model", "rollout"},
    "serve": BASE | {"model", "search"},
    "hub": BASE | {"model"},
}
PIPELINE = set(MAY_IMPORT)
STAGES = PIPELINE | {"stages"}
EVAL = (PIPELINE - {"reward", "train"}) | {"eval"}


def imported(source: str) -> Iterator[str]:
    """Every module of ours that a source text imports, in full: `pipeline.train.ppo`.

    A module named in a call of import_module counts as well.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import in full, without dots"
            # `from pipeline import train` names a module in its second half.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in OURS)


def room(module: str) -> str:
    """The room a module stands in.

    >>> room("pipeline.train.ppo"), room("pipeline._parts"), room("stages.sft"), room("eval.run")
    ('train', 'answers', 'stages', 'eval')
    """
    first, *rest = module.split(".")
    if first != "pipeline" or not rest:
        return first
    return "answers" if rest[0].startswith("_") else rest[0]


def allowed(module: str) -> set[str]:
    """The rooms that a module may import."""
    here = room(module)
    if here in ("stages", "eval"):
        # The benchmark times the trainer itself.
        return {"stages": STAGES, "eval": EVAL}[here] | (
            {"train"} if module.startswith("eval.bench") else set()
        )
    assert here in MAY_IMPORT, f"{module} stands in no room of the plan: give {here} its line above"
    return MAY_IMPORT[here] | {here}


def forbidden(module: str, source: str) -> list[str]:
    """What a module imports and must not."""
    return [name for name in imported(source) if room(name) not in allowed(module)]


def _modules() -> dict[str, Path]:
    paths = [path for folder in OURS for path in sorted((ROOT / folder).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


MODULES = _modules()


@pytest.mark.parametrize("module", [name for name in MODULES if name != "pipeline"])
def test_a_module_imports_only_what_its_room_may(module):
    assert forbidden(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_the_package_itself_imports_nothing():
    body = ast.parse(MODULES["pipeline"].read_text(encoding="utf-8")).body
    assert [type(node) for node in body] == [ast.Expr]  # its docstring


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pipeline.search.mcts", "from pipeline.data import load_problems"),
        ("pipeline.search.mcts", "def f():\n    import pipeline.reward.rubric"),
        ("pipeline.train.ppo", "from pipeline import reward"),
        ("pipeline.train.ppo", "import_module('pipeline.reward')"),
        ("pipeline.records", "from pipeline.answers import same_answer"),
        ("pipeline.config", "from pipeline._parts import parts"),
        ("pipeline.model.policy", "if True:\n    from pipeline.rollout import Sampler"),
        ("pipeline.rollout.sampler", "from stages.common import parse"),
        ("eval.run", "from pipeline.reward import Rubric"),
        ("eval.run", "from pipeline.train.ppo import ReasoningPPOTrainer"),
        ("eval.run", "from stages import sft"),
        ("stages.story", "import json, eval.report"),
    ],
)
def test_the_wall_stops_what_it_is_there_for(module, source):
    assert len(forbidden(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pipeline.answers", "from pipeline._parts import parts"),
        ("pipeline.train.ppo", "from pipeline.train.losses import value_loss"),
        ("pipeline.search.mcts", "from pipeline.rollout import Sampler\nimport torch"),
        ("eval.bench.ours_ppo", "from pipeline.train.ppo import ReasoningPPOTrainer"),
        ("stages.ppo", "from pipeline.reward import Rubric\nfrom stages import sft"),
    ],
)
def test_the_wall_lets_through_what_flows_down(module, source):
    assert forbidden(module, source) == []


def test_a_relative_import_is_refused():
    with pytest.raises(AssertionError, match="in full"):
        list(imported("from . import losses"))


def test_a_module_outside_the_plan_is_refused():
    with pytest.raises(AssertionError, match="stands in no room"):
        allowed("pipeline.misc")


def test_no_script_bears_the_name_of_an_installed_package_or_a_standard_module():
    # The folder of a script comes first on the import path: eval/evaluate.py would be imported in
    # place of the package evaluate.
    taken = (set(packages_distributions()) | sys.stdlib_module_names) - set(OURS)
    scripts = [path for name, path in MODULES.items() if not name.startswith("pipeline")]
    assert [path for path in scripts if path.stem in taken] == []
    assert {"evaluate", "datasets", "statistics"} <= taken


def test_the_plan_has_no_way_up():
    """No room can be reached from itself through the rooms that it may import."""
    reached = {name: set(rooms) - {name} for name, rooms in MAY_IMPORT.items()}
    for _ in reached:
        reached = {
            name: rooms.union(*(reached[other] for other in rooms))
            for name, rooms in reached.items()
        }
    assert [name for name, rooms in reached.items() if name in rooms] == []
