"""What the output folder of stages.rft holds: its settings, and the figures of finished rounds."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from pipeline.config import DataConfig, ModelConfig, require
from pipeline.records import Problem
from pipeline.rft.config import RFTConfig
from pipeline.rft.selection import SampleRow
from pipeline.runtime import naming_damage, write_json
from pipeline.sft.trainer import ReasoningSFTConfig
from pipeline.training.output_folder import REMEDY, clear_output
from pipeline.training.run_settings import deciding, difference, differing

STATE = "rft.json"


class RoundFigures(TypedDict):
    """Figures of one round."""

    round: int
    samples: int
    right: float  # share of the samples with a verdict
    solved: float  # share of the questions with a right sample
    kept: int  # distinct right completions of this round, at most max_kept of a question
    trained_on: int  # with those of earlier rounds


def begin(
    folder: Path,
    model: ModelConfig,
    data: DataConfig,
    config: RFTConfig,
    args: ReasoningSFTConfig,
    *,
    weights: str,
    problems: str,
    overwrite: bool,
) -> None:
    """Begin a run in the folder, or continue the one it holds.

    Stored samples are of the starting weights, and name a problem by its index.

    Args:
        weights: fingerprint of the starting weights.
        problems: fingerprint of the problems, in their order.

    Raises:
        ValueError: it holds a run with other settings, or a damaged one.
    """
    # `rounds` is left out: a run may be continued by more of them.
    own = {name: value for name, value in asdict(config).items() if name != "rounds"}
    settings = deciding(args, 1, None, {**own, **asdict(model), **asdict(data)})
    settings.pop("output_dir", None)
    settings |= {"starting weights": weights, "problems": problems}
    if overwrite:
        clear_output(folder)
        for path in folder.glob("round-*"):
            shutil.rmtree(path)
        (folder / STATE).unlink(missing_ok=True)
    path = folder / STATE
    if not path.is_file():
        write_json(path, {"settings": settings, "rounds": []})
        return
    with naming_damage(path, REMEDY):
        then = json.loads(path.read_text(encoding="utf-8"))["settings"]
    names, _ = differing(then, settings)
    require(
        not names,
        f"{folder} holds rounds with {difference(then, settings, names)}; {REMEDY}",
    )
    print(f"{folder} holds an unfinished run, which is continued")


def finished_rounds(folder: Path) -> list[RoundFigures]:
    """The figures of the rounds that are finished."""
    path = folder / STATE
    with naming_damage(path, REMEDY):
        rounds: list[RoundFigures] = json.loads(path.read_text(encoding="utf-8"))["rounds"]
    return rounds


def store_round(
    folder: Path,
    before: Sequence[RoundFigures],
    rows: Sequence[SampleRow],
    kept: Sequence[Problem],
    trained_on: Sequence[Problem],
) -> RoundFigures:
    """Add a finished round to the folder's state; return its figures."""
    graded = [row for row in rows if row["right"] is not None]
    questions = {row["question"] for row in rows}
    solved = {row["question"] for row in graded if row["right"]}
    figures: RoundFigures = {
        "round": len(before) + 1,
        "samples": len(rows),
        "right": sum(bool(row["right"]) for row in graded) / max(len(graded), 1),
        "solved": len(solved) / max(len(questions), 1),
        "kept": len(kept),
        "trained_on": len(trained_on),
    }
    path = folder / STATE
    state = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {"settings": state["settings"], "rounds": [*before, figures]})
    return figures
