"""Private names of TRL, transformers and accelerate: in two files only, listed, and checked."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from transformers import Trainer
from trl import GRPOTrainer, SFTTrainer

from pipeline.ppo import trl_trainer
from pipeline.ppo.trl_trainer import ReasoningPPOTrainer
from pipeline.sft.trainer import ReasoningSFTTrainer
from pipeline.training import trainer_shell
from pipeline.training.library_checks import SUPPORTED_TRL, check_private_names
from pipeline.training.trainer_shell import AtomicCheckpoints
from tests.sources import tree_of

ROOT = Path(__file__).parents[1]
LIBRARIES = {"trl", "transformers", "accelerate"}
SHELLS = {Path(module.__file__): module for module in (trl_trainer, trainer_shell)}
# Of another class than a trainer: transformers has no public way to replace a tokenizer's backend.
ALLOWED = {"pipeline/model/vocab.py": ["_tokenizer"]}
PRIVATE_IMPORT = r"import (\([^)]*|.*)\b_[a-z]|\._\w.* import"
SOURCES = [
    path
    for folder in ("pipeline", "stages", "eval", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names_of(*classes: type) -> set[str]:
    """Private methods, class attributes and attributes of self of the classes and their bases."""
    found: set[str] = set()
    for cls in {base for made in classes for base in made.__mro__ if base is not object}:
        found |= set(vars(cls))
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found |= {node.attr} if node.value.id == "self" else set()
    return set(filter(is_private, found))


@cache
def private() -> set[str]:
    """The private names of the libraries."""
    return private_names_of(GRPOTrainer, SFTTrainer, Trainer, Accelerator)


def imported_from_libraries(tree: ast.AST) -> Iterator[str]:
    """Every name that is imported from one of the libraries, with its module: `trl.models._x`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (name for name in names if name.split(".")[0] in LIBRARIES)


def trainer_classes(trees: list[ast.AST]) -> set[str]:
    """Names of our classes that inherit from a class of the libraries, or stand before one."""
    bases = {
        node.name: [ast.unparse(base).rpartition(".")[2] for base in node.bases]
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {"GRPOTrainer", "SFTTrainer", "Trainer", "Accelerator", "AtomicCheckpoints"}
    found |= {"ValueHeadFiles", "ShardedCheckpoints", "PPOTrainer"}
    while new := {name for name, parents in bases.items() if found & {*parents}} - found:
        found |= new
    return found


def private_uses(source: str, trainers: set[str]) -> list[str]:
    """Private names of the libraries that a source text uses.

    Attributes of `self` count in classes that inherit from the libraries: in others they are the
    class's own.
    """
    words = set(re.findall(r"\b_\w+", source))
    if not words & private() and not re.search(PRIVATE_IMPORT, source):
        return []  # most files, without a look at their trees
    tree = tree_of(source)
    own = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name not in trainers
    ]
    of_own_class = {id(x) for cls in own for x in ast.walk(cls)}
    found = [name for name in imported_from_libraries(tree) if "._" in name]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in private():
            on_self = ast.unparse(node.value) in ("self", "cls", "super()")
            found += [node.attr] if not (on_self and id(node) in of_own_class) else []
        elif isinstance(node, ast.ClassDef) and node.name in trainers:
            found += [name for name in _defined(node) if name in private()]
        elif isinstance(node, ast.Call) and _name(node.func).endswith("attr"):
            strings = [a.value for a in node.args if isinstance(a, ast.Constant)]
            found += [text for text in strings if text in private()]
    return found


def _name(function: ast.expr) -> str:
    return getattr(function, "id", getattr(function, "attr", ""))


def _defined(node: ast.ClassDef) -> Iterator[str]:
    """Methods and attributes in the body of a class."""
    for item in node.body:
        if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield item.name
        targets = getattr(item, "targets", [getattr(item, "target", None)])
        yield from (target.id for target in targets if isinstance(target, ast.Name))


TEXTS = {path: path.read_text(encoding="utf-8") for path in SOURCES}


@cache
def trainers() -> set[str]:
    """The names of all trainer classes of this project and of the libraries."""
    return trainer_classes([tree_of(text) for text in TEXTS.values()])


def tables_of(module: Any) -> dict[str, str]:
    names = ("PRIVATE_METHODS", "PRIVATE_ATTRIBUTES", "PRIVATE_TRAINING_STATE")
    return {k: v for name in names for k, v in getattr(module, name, {}).items()}


# ---- where ----


def test_no_other_file_uses_a_private_name_of_the_libraries():
    found = {
        str(path.relative_to(ROOT)): uses
        for path, text in TEXTS.items()
        if path not in SHELLS and (uses := private_uses(text, trainers()))
    }
    assert found == ALLOWED


@pytest.mark.parametrize("path", SHELLS, ids=lambda path: path.stem)
def test_the_tables_of_a_shell_have_every_private_name_that_it_uses_and_no_other(path):
    table = tables_of(SHELLS[path])
    assert set(private_uses(TEXTS[path], trainers())) == set(table)
    assert all(len(use) > 20 and use.partition(": ")[2] for use in table.values())


@pytest.mark.parametrize(
    "source",
    [
        "trainer._metrics['train'] = {}",
        "def f(trainer):\n    return trainer.model._save",
        "class Mine(GRPOTrainer):\n    def _prepare_inputs(self, batch): ...",
        "class Mine(ReasoningSFTTrainer):\n    def f(self):\n        self._step = 0",
        "class Mine(Trainer):\n    _tag_names = ['mine']",
        "class Mine(SFTTrainer):\n    _name: str = 'mine'",
        "from trl.trainer.utils import _pad",
        "import transformers._private",
        "getattr(trainer, '_tr_loss')",
    ],
)
def test_a_use_of_a_private_name_is_found(source):
    assert len(private_uses(source, trainers() | {"Mine"})) == 1


def test_an_attribute_of_a_class_of_ones_own_may_have_any_name():
    source = "class Counter:\n    def _save(self):\n        self._step += 1"
    assert private_uses(source, trainers()) == []


def test_the_names_include_attributes_that_only_instances_have():
    assert {"_metrics", "_tr_loss", "_step", "_save_checkpoint", "_tag_names"} <= private()


# ---- checked at start ----


@pytest.mark.parametrize(
    ("module", "attribute", "name"),
    [(trl_trainer, "GRPOTrainer", name) for name in trl_trainer.PRIVATE_METHODS]
    + [
        (trainer_shell, "Trainer", name)
        for name in trainer_shell.PRIVATE_METHODS
        if name != "_tag_names"
    ],
)
def test_a_library_without_a_method_is_refused_by_its_name(
    make_ppo, tiny_policy, monkeypatch, module, attribute, name
):
    lacking = type(attribute, (), {other: None for other in private() if other != name})
    monkeypatch.setattr(module, attribute, lacking)
    message = (
        f"{attribute}.{name}, which {module.__name__} uses, does not exist in trl "
        f"{version('trl')} with transformers {version('transformers')}; install trl{SUPPORTED_TRL}"
    )
    with pytest.raises(ImportError, match=re.escape(message)):
        make_ppo(tiny_policy, lambda completions, **columns: [0.0] * len(completions))


@pytest.mark.parametrize("name", [*trl_trainer.PRIVATE_ATTRIBUTES])
def test_a_trainer_that_sets_no_such_attribute_is_refused_before_training(
    make_ppo, tiny_policy, monkeypatch, name
):
    built = GRPOTrainer.__init__

    def without(self: Any, *args: Any, **kwargs: Any) -> None:
        built(self, *args, **kwargs)
        delattr(self, name)

    monkeypatch.setattr(GRPOTrainer, "__init__", without)
    with pytest.raises(ImportError, match=rf"ReasoningPPOTrainer\.{name}, which pipeline\."):
        make_ppo(tiny_policy, lambda completions, **columns: [0.0] * len(completions))


@pytest.mark.parametrize("name", trainer_shell.PRIVATE_TRAINING_STATE)
def test_state_of_training_is_checked_before_the_first_step(
    make_ppo, tiny_policy, monkeypatch, name
):
    trainer = make_ppo(tiny_policy, lambda completions, **columns: [0.0] * len(completions))
    monkeypatch.setattr(trainer_shell, "PRIVATE_TRAINING_STATE", {f"{name}_of_old": ""})
    with pytest.raises(ImportError, match=f"{name}_of_old, which pipeline.training.trainer_shell"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_what_is_there_is_accepted():
    check_private_names(SimpleNamespace(_a=None), ["_a"], "me")


def test_every_private_method_is_one_of_the_library_that_ours_replaces_or_calls():
    for name, use in trainer_shell.PRIVATE_METHODS.items():
        if use.startswith("overridden"):
            for ours in (ReasoningSFTTrainer, ReasoningPPOTrainer):
                assert getattr(ours, name) is not getattr(Trainer, name), name
    for name, use in trl_trainer.PRIVATE_METHODS.items():
        ours, theirs = getattr(ReasoningPPOTrainer, name), getattr(GRPOTrainer, name)
        assert (ours is theirs) == use.startswith("called"), name
    assert "_save_checkpoint" in vars(AtomicCheckpoints)


def test_the_supported_range_is_that_of_the_package():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"trl{SUPPORTED_TRL}"' in project


# ---- the core ----


CORE = [path for path in SOURCES if path.parent == ROOT / "pipeline" / "ppo"]


@pytest.mark.parametrize(
    "path",
    [path for path in CORE if path.stem not in ("trl_trainer", "config")],
    ids=lambda path: path.stem,
)
def test_a_module_of_the_core_needs_neither_trl_nor_a_trainer(path):
    tree = tree_of(TEXTS[path])
    names = list(imported_from_libraries(tree))
    assert [name for name in names if name.startswith("trl") or "Trainer" in name] == []
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not modules & {"pipeline.ppo.config", "pipeline.ppo.trl_trainer"}
    assert "pipeline.training.trainer_shell" not in modules
    arguments = [node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)]
    assert "trainer" not in arguments
