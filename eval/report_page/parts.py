"""Pieces of the report page as HTML text. Whatever a model or a question says is escaped.

A tree is what a search saved as JSON: {"question", "nodes": [{"id", "parent", "text", "value",
"prior", "visits", "total", "children", "ended", "answer"}]}, node 0 the prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from eval.report_page.svg import Series, key, plot

Grid = Sequence[Sequence[str]]  # rows of cells, the header first


def table(grid: Grid) -> str:
    """A table that scrolls sideways where the screen is narrow."""
    header, *below = grid
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in below
    )
    rows = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table>{rows}</table></div>'


def figure(title: str, drawing: str, names: Sequence[str], caption: str = "") -> str:
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{escape(title)}</h3>{key(names)}{drawing}{said}</figure>"


def learning_figure(curves: Mapping[str, tuple[list[int], list[float]]], running: Callable) -> str:
    """Rewards and accuracies against the step, a running mean over the raw curve."""
    series = [Series(name, steps, list(running(y)), raw=y) for name, (steps, y) in curves.items()]
    drawing = plot(series, x_label="step", y_label="reward and accuracy")
    return figure("Training", drawing, list(curves))


def scaling_figure(
    figures: Mapping[str, Mapping[str, Any]], law: Callable, sentence: Callable
) -> str:
    """Points of a vote of 1, 2, 4, ... samples, and the law through them."""
    series = []
    for i, (name, found) in enumerate(figures.items()):
        tokens = [p["tokens"] for p in found["points"]]
        ends = {found["law"]["saturates_at"]} - {None}
        at = sorted({*tokens, *ends})
        fitted = [100 * law(found["law"], t) for t in at]
        dots = [100 * p["accuracy"] for p in found["points"]]
        series.append(Series(name, at, fitted, colour=i))
        series.append(Series(name, tokens, dots, colour=i, points=True, line=False))
    drawing = plot(
        series, x_label="completion tokens a question", y_label="accuracy in %", log_x=True
    )
    caption = "; ".join(f"{name}: {sentence(found)}" for name, found in figures.items())
    return figure("A vote's accuracy against its tokens", drawing, list(figures), caption)


def calibration_figure(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """What the value head says against what comes true, bins of a tenth."""
    series = [
        Series(
            name,
            [b["confidence"] for b in found["bins"]],
            [b["right"]["mean"] for b in found["bins"]],
            points=True,
            low=[b["right"]["low"] for b in found["bins"]],
            high=[b["right"]["high"] for b in found["bins"]],
        )
        for name, found in figures.items()
    ]
    drawing = plot(
        [*series, Series("", [0, 1], [0, 1], line=False)],
        x_label="what the value head says",
        y_label="share right",
        y_range=(0, 1),
        diagonal=True,
    )
    caption = "; ".join(f"{name}: {_calibration(found)}" for name, found in figures.items())
    return figure("Calibration of the value head", drawing, list(figures), caption)


def answer(record: Mapping[str, Any], low: float, high: float, open_: bool = False) -> str:
    """A question, its thought and answer, every token on the colour of its value.

    `record` has question, expected, answer, correct, and tokens: [{"text", "value", "visible"}].
    """
    verdict = "right" if record["correct"] else "wrong"
    first = " ".join(record["question"].split())
    short = first if len(first) <= 110 else first[:109] + "…"
    spans = "".join(_token(token, low, high) for token in record["tokens"])
    missed = "" if record["correct"] else f", expected <b>{escape(record['expected'])}</b>"
    count = len(record["tokens"])
    return (
        f'<details class="answer"{" open" if open_ else ""}>'
        f'<summary><span class="{verdict}">{escape(short)}</span></summary>'
        f'<p class="question">{escape(record["question"])}</p>'
        f'<div class="thought">{spans}</div>'
        f"<p>Answer: <b>{escape(record['answer'] or 'none')}</b>{missed} "
        f'<span class="soft">{count} tokens, {verdict}</span></p></details>'
    )


def tree(content: Mapping[str, Any], number: int) -> str:
    """A search tree that folds: the most visited way is open."""
    nodes = content["nodes"]
    low = min(_mean(node) for node in nodes)
    high = max(_mean(node) for node in nodes)
    children = sorted(nodes[0]["children"], key=lambda i: -nodes[i]["visits"])
    inside = "".join(
        _node(nodes, child, low, high, open_=i == 0) for i, child in enumerate(children)
    )
    name, question = f"tree{number}", " ".join(content["question"].split())
    return (
        f'<figure class="tree" id="{name}"><h3>{escape(question)}</h3>'
        f'<p class="soft">{len(nodes)} states, {nodes[0]["visits"]} simulations; visits, mean '
        "value and prior before every step. "
        f'<button data-fold="{name}">fold or unfold all</button></p>'
        f"{inside}</figure>"
    )


def _node(nodes: Sequence[Mapping[str, Any]], at: int, low: float, high: float, open_: bool) -> str:
    node = nodes[at]
    share = 0.5 if high <= low else (_mean(node) - low) / (high - low)
    end = f' <span class="end">→ {escape(node["answer"] or "?")}</span>' if node["ended"] else ""
    head = (
        f'<span class="bar" style="--v:{share:.3f}"><i></i></span> <b>{node["visits"]}x</b> '
        f'{_mean(node):.2f} <span class="soft">p={node["prior"]:.2f}</span> '
        f"<code>{escape(node['text'].strip()) or '·'}</code>{end}"
    )
    children = sorted(node["children"], key=lambda i: -nodes[i]["visits"])
    if not children:
        return f'<div class="leaf">{head}</div>'
    inside = "".join(
        _node(nodes, child, low, high, open_=open_ and i == 0) for i, child in enumerate(children)
    )
    return f"<details{' open' if open_ else ''}><summary>{head}</summary>{inside}</details>"


def _mean(node: Mapping[str, Any]) -> float:
    return (node["value"] + node["total"]) / (1 + node["visits"])


def _token(token: Mapping[str, Any], low: float, high: float) -> str:
    share = 0.5 if high <= low else (token["value"] - low) / (high - low)
    share = min(1.0, max(0.0, share))
    visible = ' class="visible"' if token["visible"] else ""
    return (
        f'<span{visible} style="--v:{share:.3f}" title="V {token["value"]:.3f}">'
        f"{escape(token['text'])}</span>"
    )


def _calibration(found: Mapping[str, Any]) -> str:
    def said(x: float | None) -> str:
        return "none" if x is None else f"{x:.2f}"

    return (
        f"calibration error {found['ece']:.3f}, AUROC {said(found['auroc'])}, "
        f"within a question {said(found['within_question_auroc'])}"
    )
