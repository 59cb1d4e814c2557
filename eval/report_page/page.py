"""One page for a run: tables, curves, coloured thoughts, search trees, cost. One file, no network.

python -m eval.report_page.page --runs SFT=runs/nano/eval/sft,PPO=runs/nano/eval/ppo --output page.html \
    [--checkpoint runs/nano/ppo] [--log_history runs/nano/ppo/trainer_state.json] \
    [--samples PPO=runs/nano/samples] [--ablation runs/nano/ablation] [--trees runs/nano/trees]

What is not given is left out of the page.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArg

from eval.ablation_table import grid as ablation_grid
from eval.compare import Variants, accuracy_grid, gain_grid, parse_folders, read_variant
from eval.report_page.curves import reward_curves, running_mean
from eval.report_page.parts import (
    answer,
    calibration_figure,
    learning_figure,
    scaling_figure,
    table,
    tree,
)
from eval.run_folder import read_run
from eval.scaling import scaling, sentence
from eval.value_trace import value_traces
from pipeline.cli import CommandParser
from pipeline.config import check_types, require
from pipeline.runtime import one_line_errors
from pipeline.stats.scaling_law import LogLaw

ASSETS = Path(__file__).parent / "assets"
# Nothing but what stands in the file is ever loaded.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


@dataclass(kw_only=True)
class PageArguments:
    """What the page shows."""

    runs: str = HfArg(default="", help="NAME=DIR of every variant's evaluations, in order")
    output: str = HfArg(default="", help="HTML file to write")
    title: str = HfArg(default="What the model learned", help="headline")
    checkpoint: str = HfArg(default="", help="policy whose thoughts are coloured by their values")
    answers: int = HfArg(default=6, help="thoughts shown, of the first run of the last variant")
    log_history: str = HfArg(default="", help="trainer_state.json of a training run")
    samples: str = HfArg(default="", help="NAME=DIR of eval.samples: scaling and calibration")
    ablation: str = HfArg(default="", help="folder of eval.ablate")
    trees: str = HfArg(default="", help="folder of search trees as JSON")
    max_trees: int = HfArg(default=4, help="trees shown")

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("runs", "output"):
            require(bool(getattr(self, name)), f"--{name} is missing: pass --{name}")
        require(self.answers >= 1, f"answers={self.answers} must be at least 1")
        parse_folders("runs", self.runs)
        if self.samples:
            parse_folders("samples", self.samples)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Read everything, then write the page: what cannot be read leaves nothing behind."""
    (args,) = CommandParser(PageArguments).parse_args_and_config(argv)
    folders = parse_folders("runs", args.runs)
    variants = {name: read_variant(folder) for name, folder in folders.items()}
    sections = {
        "Accuracy": accuracy_section(variants),
        "Ablation": ablation_section(args.ablation),
        "Curves": curve_section(args.log_history, args.samples),
        "Thoughts": thought_section(args.checkpoint, variants, args.answers),
        "Search": tree_section(args.trees, args.max_trees),
        "Cost": table(cost_grid(variants)),
    }
    text = page(args.title, {name: html for name, html in sections.items() if html})
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print("->", output)


def page(title: str, sections: Mapping[str, str]) -> str:
    """The whole file."""
    links = "".join(f'<a href="#{name.lower()}">{escape(name)}</a>' for name in sections)
    body = "".join(
        f'<section id="{name.lower()}"><h2>{escape(name)}</h2>{html}</section>'
        for name, html in sections.items()
    )
    style, script = (
        (ASSETS / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
        f"<style>{style}</style></head>"
        f'<body><header><h1>{escape(title)}</h1><button id="theme">dark or light</button></header>'
        f"<nav>{links}</nav><main>{body}</main><script>{script}</script></body></html>\n"
    )


def accuracy_section(variants: Variants) -> str:
    about = (
        '<p class="soft">Accuracy in % with its 95% interval · completion tokens a question, '
        "thoughts and all samples of a vote included.</p>"
    )
    parts = [about, table(accuracy_grid(variants))]
    if len(variants) > 1:
        parts.append('<p class="soft">Points gained over the row above, on the same problems.</p>')
        parts.append(table(gain_grid(variants)))
    return "".join(parts)


def ablation_section(folder: str) -> str:
    if not folder:
        return ""
    stored = json.loads((Path(folder) / "ablation.json").read_text(encoding="utf-8"))
    asked = stored["arguments"]
    about = (
        f"{asked['suite']}, at most {asked['votes']} samples a vote; differences to the first row "
        "are paired over the same problems."
    )
    return f'<p class="soft">{escape(about)}</p>' + table(ablation_grid(stored["rows"]))


def curve_section(log_history: str, samples: str) -> str:
    figures = []
    if log_history:
        state = json.loads(Path(log_history).read_text(encoding="utf-8"))
        if found := reward_curves(state["log_history"]):
            figures.append(learning_figure(found, running_mean))
    if samples:
        runs = {name: read_run(f) for name, f in parse_folders("samples", samples).items()}
        laws = {name: scaling(rows) for name, (_metrics, rows) in runs.items()}
        figures.append(scaling_figure(laws, lambda law, tokens: LogLaw(**law)(tokens), sentence))
        values = {name: m["value"] for name, (m, _rows) in runs.items() if m["value"]}
        figures += [calibration_figure(values)] if values else []
    return f'<div class="plots">{"".join(figures)}</div>' if figures else ""


def thought_section(checkpoint: str, variants: Variants, count: int) -> str:
    """The problems of the last variant answered anew, token by token with their values."""
    if not checkpoint:
        return ""
    metrics, rows = next(iter(list(variants.values())[-1].values()))
    shown = value_traces(checkpoint, choose(rows, count), metrics["options"])
    values = [token["value"] for record in shown for token in record["tokens"]]
    low, high = min(values), max(values)
    about = (
        '<p class="soft">Greedy answers; every token stands on the colour of the value before it, '
        f'<br>V {low:.2f}<span class="scale"></span>{high:.2f}. The visible answer is framed, the '
        "rest is hidden from a user.</p>"
    )
    return about + "".join(answer(r, low, high, open_=i == 0) for i, r in enumerate(shown))


def choose(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Right and wrong ones in turn, as long as there are both, evenly spread over the rows."""
    right = [row for row in rows if row["correct"]]
    wrong = [row for row in rows if not row["correct"]]
    half = min(count // 2, len(wrong))
    picked = [_spread(right, count - half), _spread(wrong, half)]
    longest = max(map(len, picked))
    return [side[i] for i in range(longest) for side in picked if i < len(side)]


def tree_section(folder: str, most: int) -> str:
    if not folder:
        return ""
    paths = sorted(Path(folder).glob("*.json"))[:most]
    require(bool(paths), f"trees={folder} holds no JSON file: save a search's trees there first")
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    for path, content in zip(paths, contents, strict=True):
        known = isinstance(content, dict) and {"question", "nodes"} <= content.keys()
        require(known, f"{path} is no search tree: it needs a question and nodes")
    return "".join(tree(content, i) for i, content in enumerate(contents))


def cost_grid(variants: Variants) -> list[list[str]]:
    """What every evaluation spent."""
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


def _spread(rows: Sequence[Any], count: int) -> list[Any]:
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


if __name__ == "__main__":
    main()
