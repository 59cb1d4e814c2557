"""Report page of a run: one self-contained HTML file with tables, plots, thoughts and trees.

python -m eval.report_page.page --output page.html \\
    --runs SFT=runs/nano/eval/sft,PPO=runs/nano/eval/ppo \\
    [--checkpoint runs/nano/ppo] [--log_history runs/nano/ppo/trainer_state.json] \\
    [--samples PPO=runs/nano/samples] [--ablation runs/nano/ablation] [--trees runs/nano/trees]

A section without its files is left out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from transformers.hf_argparser import HfArg

from eval.ablation_table import ablation_table
from eval.compare import Variants, accuracy_table, gain_table, parse_folders, read_variant
from eval.report_page.curves import (
    plot_calibration,
    plot_learning_curve,
    plot_value_curves,
    read_log_history,
    reward_curves,
    svg_data_uri,
)
from eval.row_types import CalibrationFigures, Record, ScalingResult
from eval.run_folder import REMEDY, read_run
from eval.scaling import describe_law, plot_scaling, scaling_result
from eval.tables import Table, format_percent
from eval.value_trace import value_traces
from pipeline.cli import CommandParser
from pipeline.config import NonNegativeInt, PositiveInt, Required, check_types, require
from pipeline.runtime import one_line_errors, read_object, write_text
from pipeline.search.tree import TreeJson

# What the page shows of a state in a search tree.
NODE_FIELDS = frozenset(
    ("parent", "text", "value", "prior", "visits", "total", "children", "ended", "answer")
)
PLOT_SIZE = (4.2, 2.9)  # inches, at 96 pixels each: small enough that a phone shows it unscaled


def position(value: float, low: float, high: float) -> str:
    """Where a value lies between two others, 0 to 1; 0.5 where these are equal.

    Means of equal values differ by rounding, so a range below 1e-9 counts as empty.

    >>> position(0.6, 0.2, 1.0)
    '0.500'
    """
    share = 0.5 if high - low < 1e-9 else (value - low) / (high - low)
    return f"{min(1.0, max(0.0, share)):.3f}"


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "assets"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["position"] = position
MACROS: Any = TEMPLATES.get_template("macros.html.jinja").module


@dataclass(kw_only=True)
class PageArguments:
    """Inputs of the page."""

    runs: Required = HfArg(default="", help="NAME=DIR of every variant's evaluations, in order")
    output: Required = HfArg(default="", help="HTML file to write")
    title: str = HfArg(default="What the model learned", help="headline")
    checkpoint: str = HfArg(default="", help="policy whose thoughts are coloured by their values")
    answers: PositiveInt = HfArg(
        default=6, help="thoughts shown, of the first run of the last variant"
    )
    log_history: str = HfArg(default="", help="trainer_state.json or log.jsonl of a run")
    samples: str = HfArg(default="", help="NAME=DIR of eval.samples: scaling and calibration")
    ablation: str = HfArg(default="", help="folder of eval.ablate")
    trees: str = HfArg(default="", help="folder of search trees as JSON")
    max_trees: NonNegativeInt = HfArg(default=4, help="trees shown")

    def __post_init__(self) -> None:
        check_types(self)
        parse_folders("runs", self.runs)
        if self.samples:
            parse_folders("samples", self.samples)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Read every input, then write the page; nothing is written if an input cannot be read."""
    (args,) = CommandParser(PageArguments).parse_args_and_config(argv)
    folders = parse_folders("runs", args.runs)
    variants = {name: read_variant(folder) for name, folder in folders.items()}
    sections = {
        "Accuracy": accuracy_section(variants),
        "Ablation": ablation_section(args.ablation),
        "Curves": curve_section(args.log_history, args.samples),
        "Thoughts": thought_section(args.checkpoint, variants, args.answers),
        "Search": tree_section(args.trees, args.max_trees),
        "Cost": [MACROS.table(cost_table(variants))],
    }
    text = render_page(args.title, sections, describe_run(list(folders.values())[-1]))
    output = Path(args.output)
    write_text(output, text)
    print("->", output)


def render_page(title: str, sections: Mapping[str, Sequence[Markup]], about: str = "") -> str:
    """The HTML file. A section is a list of rendered parts; empty sections are left out."""
    present = {name: parts for name, parts in sections.items() if parts}
    page = TEMPLATES.get_template("page.html.jinja")
    return page.render(title=title, sections=present, about=about)


def describe_run(folder: Path) -> str:
    """Model, date, revision and versions of the first evaluation below a folder, in one line."""
    path = sorted(folder.rglob("metrics.json"))[0]
    metrics = json.loads(path.read_text(encoding="utf-8"))
    run = path.with_name("run.json")
    about = json.loads(run.read_text(encoding="utf-8")) if run.is_file() else {}
    date = datetime.fromtimestamp(path.stat().st_mtime, tz=UTC).date().isoformat()
    revision = f"revision {about['git'][:10]}" if about.get("git") else ""
    names = ("thinkhead", "torch", "transformers", "trl")
    versions = [f"{n} {v}" for n in names if (v := about.get("versions", {}).get(n))]
    return " · ".join(filter(None, [metrics.get("checkpoint"), date, revision, *versions]))


def accuracy_section(variants: Variants) -> list[Markup]:
    """Accuracy and tokens of the variants, and the gain of each over the one before."""
    note = (
        "Accuracy in % with its 95% interval · completion tokens per question, including thoughts "
        "and all samples of a vote."
    )
    parts = [MACROS.note(note), MACROS.table(accuracy_table(variants))]
    if len(variants) > 1:
        parts.append(MACROS.note("Points gained over the row above, on the same problems."))
        parts.append(MACROS.table(gain_table(variants)))
    return parts


def ablation_section(folder: str) -> list[Markup]:
    """The table of eval.ablate in a folder; empty for ""."""
    if not folder:
        return []
    path = Path(folder) / "ablation.json"
    stored: dict[str, Any] = read_object(path, REMEDY)
    require(
        {"arguments", "rows"} <= stored.keys(),
        f"{path} was not written by eval.ablate; give a folder that was",
    )
    arguments = stored["arguments"]
    note = (
        f"{arguments['suite']}, at most {arguments['votes']} samples per vote; differences to the "
        "first row are paired over the same problems."
    )
    return [MACROS.note(note), MACROS.table(ablation_table(stored["rows"]))]


def curve_section(log_history: str, samples: str) -> list[Markup]:
    """Plots of training, of accuracy against tokens and of calibration, as far as there are files
    for them."""
    figures = []
    if log_history:
        rows = read_log_history(log_history)
        if reward_curves(rows):
            plot = plot_learning_curve(rows, PLOT_SIZE)
            figures.append(MACROS.figure("Training", svg_data_uri(plot)))
        if critic := plot_value_curves(rows, PLOT_SIZE):
            caption = (
                "auroc_within: right above wrong completions of one question, 0.5 is chance; "
                "_steps: at the ends of steps"
            )
            figures.append(MACROS.figure("Value head", svg_data_uri(critic), caption))
    if samples:
        runs = {
            name: read_run(f, "samples") for name, f in parse_folders("samples", samples).items()
        }
        figures.append(scaling_figure({n: scaling_result(rows) for n, (_, rows) in runs.items()}))
        values = {name: metrics["value"] for name, (metrics, _) in runs.items()}
        if values := {name: value for name, value in values.items() if value}:
            figures.append(calibration_figure(values))
    return [MACROS.plots(figures)] if figures else []


def scaling_figure(results: Mapping[str, ScalingResult]) -> Markup:
    """Majority-vote accuracy against tokens with the fitted law, of eval.scaling's results."""
    caption = "; ".join(f"{name}: {describe_law(result)}" for name, result in results.items())
    values = [["variant", "samples", "tokens", "accuracy in %"]]
    for name, result in results.items():
        for p in result["points"]:
            values.append([name, f"{p['k']}", f"{p['tokens']:.1f}", f"{100 * p['accuracy']:.1f}"])
    image = svg_data_uri(plot_scaling(results, PLOT_SIZE))
    return MACROS.figure("Accuracy of a majority vote", image, caption, values)


def calibration_figure(calibrations: Mapping[str, CalibrationFigures]) -> Markup:
    """Reliability diagram of the "value" entries of eval.samples: of the verifier's score, or of V
    without a verifier."""
    captions = []
    values = [["variant", "answers", "mean value", "right in % [95% interval]"]]
    for name, found in calibrations.items():
        # The second name is of files written before the estimator had its full name.
        pooled = found.get("within_question_auroc_pooled", found.get("within_question_auroc"))
        areas = ("none" if area is None else f"{area:.2f}" for area in (found["auroc"], pooled))
        captions.append(
            "{}: calibration error {:.3f}, AUROC {}, within a question {}".format(
                name, found["ece"], *areas
            )
        )
        for b in found["bins"]:
            cells = [f"{b['n']}", f"{b['confidence']:.3f}", format_percent(b["right"])]
            values.append([name, *cells])
    image = svg_data_uri(plot_calibration(calibrations, PLOT_SIZE))
    return MACROS.figure("Calibration of the values", image, "; ".join(captions), values)


def thought_section(checkpoint: str, variants: Variants, count: int) -> list[Markup]:
    """Problems of the last variant answered again by a checkpoint, tokens coloured by value."""
    if not checkpoint:
        return []
    metrics, rows = next(iter(list(variants.values())[-1].values()))
    records = value_traces(checkpoint, select_answers(rows, count), metrics["options"])
    values = [token["value"] for record in records for token in record["tokens"]]
    low, high = min(values), max(values)
    answers = [MACROS.answer(r, low, high, open=i == 0) for i, r in enumerate(records)]
    return [MACROS.value_scale(low, high), *answers]


def select_answers(rows: Sequence[Record], count: int) -> list[Record]:
    """Right and wrong answers in turn, as far as there are both, evenly spread over the rows."""
    right = [row for row in rows if row["correct"]]
    wrong = [row for row in rows if not row["correct"]]
    # Half of them are wrong, more where there are fewer right ones.
    of_wrong = min(len(wrong), max(count // 2, count - len(right)))
    picked = [_spread(right, count - of_wrong), _spread(wrong, of_wrong)]
    longest = max(map(len, picked))
    return [side[i] for i in range(longest) for side in picked if i < len(side)]


def tree_section(folder: str, max_trees: int) -> list[Markup]:
    """Search trees saved as JSON: {"question", "nodes": [{"parent", "text", "value", "prior",
    "visits", "total", "children", "ended", "answer"}]}, node 0 the prompt."""
    if not folder:
        return []
    paths = sorted(Path(folder).glob("*.json"))
    require(bool(paths), f"trees={folder} holds no JSON file: save a search's trees there first")
    contents = [_read_tree(path) for path in paths[:max_trees]]
    return [search_tree(content, f"tree{i}") for i, content in enumerate(contents)]


def _read_tree(path: Path) -> TreeJson:
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError):
        content = None
    nodes = content.get("nodes") if isinstance(content, dict) and "question" in content else None
    known = isinstance(nodes, list) and all(
        isinstance(node, dict) and node.keys() >= NODE_FIELDS for node in nodes
    )
    require(
        bool(nodes) and known,
        f"{path} is no search tree: it needs a question, and nodes with "
        f"{', '.join(sorted(NODE_FIELDS))}",
    )
    return cast(TreeJson, content)


def search_tree(content: TreeJson, name: str) -> Markup:
    """A search tree whose nodes fold; `name` is its id in the page."""
    nodes = content["nodes"]
    means = list(map(_mean_value, nodes))
    root = _nested(nodes, 0)
    return MACROS.tree(name, content["question"], len(nodes), root, min(means), max(means))


def _nested(nodes: Sequence[dict], at: int) -> dict:
    """A node with its children inside, most visited first."""
    order = sorted(nodes[at]["children"], key=lambda i: -nodes[i]["visits"])
    children = [_nested(nodes, i) for i in order]
    return {**nodes[at], "mean": _mean_value(nodes[at]), "children": children}


def _mean_value(node: dict) -> float:
    return (node["value"] + node["total"]) / (1 + node["visits"])


def cost_table(variants: Variants) -> Table:
    """Tokens and seconds of every evaluation."""
    header = ["evaluation", "problems", "prompt", "thought", "visible", "all tokens", "seconds"]
    rows = []
    for name, runs in variants.items():
        for column, (metrics, _records) in runs.items():
            tokens = metrics["tokens"]
            kinds = (tokens[kind] for kind in ("prompt", "reasoning", "visible", "total"))
            counts = (f"{count:,}" for count in kinds)
            seconds = f"{metrics['seconds']:,.0f}"
            rows.append([f"{name}: {column}", f"{metrics['n']:,}", *counts, seconds])
    return [header, *rows]


def _spread(rows: Sequence[Record], count: int) -> list[Record]:
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


if __name__ == "__main__":
    main()
