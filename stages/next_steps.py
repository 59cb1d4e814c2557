"""The commands that a stage proposes next, with the data, the folders and the suite of its run."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from pipeline.config import DataConfig, ModelConfig, parse_mixture
from pipeline.config_files import CONFIGS, packaged_config, read_arguments
from pipeline.data import is_own_data
from pipeline.data.problems import GENERATED
from pipeline.data.registry import SOURCES
from pipeline.data.row_files import file_format
from pipeline.ppo.options import PPOOptions

_WITHOUT_SUITE = ("apps", "apps_sample", "codeforces")


def command(module: str, **arguments: object) -> str:
    """A command line of this Python that can be pasted into a shell.

    >>> command("eval.run", suite="nano", output_dir="runs/a b").partition(" ")[2]
    "-m eval.run --suite nano --output_dir 'runs/a b'"
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return f"{shlex.quote(_python())} -m {shlex.join([module, *flags])}"


def sft_after(folder: Path, data: DataConfig) -> str:
    """The SFT command for a pretrained checkpoint, on the same data where these are registered."""
    registered = all(name in (*GENERATED, *SOURCES) for name in parse_mixture(data.dataset))
    return command(
        "stages.sft",
        model=folder,
        dataset=data.dataset if registered and data.dataset != "nano" else None,
        shares=data.shares,
        data_root=data.data_root,
        output_dir=folder.with_name("sft" if folder.name == "pretrain" else f"{folder.name}-sft"),
    )


def ppo_after(
    folder: Path, model: ModelConfig, data: DataConfig, problems: int | None = None
) -> str:
    """The PPO command for the checkpoint of an SFT run, on the same data.

    Args:
        problems: how many there are; fewer than a rollout asks are all asked.
    """
    output_dir = folder.with_name("ppo" if folder.name == "sft" else f"{folder.name}-ppo")
    config = _ppo_config(model, data)
    if config is not None:
        return command("stages.ppo", config=config, model=folder, output_dir=output_dir)
    default = PPOOptions.questions_per_rollout
    few = problems if problems is not None and problems < default else None
    return command(
        "stages.ppo",
        model=folder,
        dataset=None if data.shares and data.dataset == "nano" else data.dataset,
        shares=data.shares,
        **_own_data(data),
        dataset_split=data.dataset_split,
        data_root=data.data_root,
        questions_per_rollout=few,
        output_dir=output_dir,
    )


def evaluation_after(folder: Path, data: DataConfig) -> str:
    """The evaluation of a trained policy on the suites of its training data."""
    suites = suites_of(data.dataset)
    if not suites:
        held_out = "measure on a file that was not trained on: eval.run --suite FILE"
        return f"{command('eval.suites')}  # or {held_out}"
    return command(
        "eval.run",
        checkpoint=folder,
        suite=",".join(suites),
        **_own_data(data),
        data_root=data.data_root,
        output_dir=folder / "eval",
    )


def suites_of(dataset: str) -> list[str]:
    """The suites with held-out questions of the data that a run trains on; a Hub id is its own.

    >>> suites_of("nano"), suites_of("gsm8k_equations=2,math=1"), suites_of("apps")
    (['nano'], ['gsm8k', 'math'], [])
    >>> suites_of("rows.jsonl=1,user/name=2")
    ['user/name']
    """
    return list(dict.fromkeys(s for name in parse_mixture(dataset) if (s := _suite_of(name))))


def _suite_of(name: str) -> str:
    on_hub = is_own_data(name) and file_format(name) is None and not Path(name).exists()
    if name in GENERATED or on_hub:
        return name
    if name in _WITHOUT_SUITE or name not in SOURCES:
        return ""
    if SOURCES[name].divided_by:
        return f"{name}_test"
    return next(other for other, s in SOURCES.items() if s.folder == SOURCES[name].folder)


def _own_data(data: DataConfig) -> dict[str, object]:
    """The fields that tell how to read data without a registered name."""
    return {
        "columns": data.columns,
        "dataset_config": data.dataset_config,
        "dataset_revision": data.dataset_revision,
    }


def _ppo_config(model: ModelConfig, data: DataConfig) -> Path | None:
    """The ppo.yaml beside the packaged sft.yaml that has this model and these data."""
    for path in sorted(CONFIGS.glob("*/sft.yaml")):
        ppo = path.with_name("ppo.yaml")
        settings = read_arguments(path)
        same = settings.get("shares") == data.shares
        same &= settings.get("dataset", "nano") == data.dataset
        if ppo.is_file() and same and settings.get("model") == model.model:
            return packaged_config(ppo.relative_to(CONFIGS))
    return None


def _python() -> str:
    """How to call this Python: `python` where that is it, else its path."""
    found = shutil.which("python")
    if found and Path(found).absolute().parents[1].resolve() == Path(sys.prefix).resolve():
        return "python"
    here = Path(sys.executable)
    return os.path.relpath(here) if here.is_relative_to(Path.cwd()) else str(here)
