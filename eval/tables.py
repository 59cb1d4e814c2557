"""Result tables: cells with intervals and p-values, printed as Markdown or by rich."""

from collections.abc import Mapping, Sequence

from rich.table import Table as RichTable

from pipeline.stats.intervals import Estimate
from pipeline.stats.paired import mcnemar, paired_bootstrap

Table = Sequence[Sequence[str]]  # rows of cells, the header first


def markdown_table(table: Table) -> str:
    """The table in Markdown, first column left-aligned and the others right-aligned.

    >>> print(markdown_table([["variant", "nano"], ["sft", "41.0"]]))
    | variant | nano |
    | :-- | --: |
    | sft | 41.0 |
    """
    header, *rows = table
    rule = [":--", *["--:"] * (len(header) - 1)]
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in (header, rule, *rows))
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def rich_table(title: str, table: Table) -> RichTable:
    """The table for a rich console, aligned as in Markdown."""
    header, *rows = table
    shown = RichTable(title=title)
    for i, name in enumerate(header):
        shown.add_column(name, justify="right" if i else "left")
    for row in rows:
        # Rich reads brackets as markup.
        shown.add_row(*(cell.replace("[", r"\[") for cell in row))
    return shown


def format_percent(estimate: Estimate | Mapping[str, float], sign: str = "") -> str:
    """Mean and interval in percent; `sign="+"` shows the sign of each, for differences.

    >>> format_percent(Estimate(0.5, 0.25, 0.75)), format_percent(Estimate(0.1, 0.0, 0.2), "+")
    ('50.0 [25.0, 75.0]', '+10.0 [+0.0, +20.0]')
    """
    values = estimate if isinstance(estimate, Mapping) else vars(estimate)
    mean, low, high = (f"{100 * values[name]:{sign}.1f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def format_paired_gain(before_Q: Sequence[bool], after_Q: Sequence[bool]) -> str:
    """Paired difference in percentage points with bootstrap interval, and McNemar's p-value.

    >>> format_paired_gain([False, True], [False, True])
    '+0.0 [+0.0, +0.0], p = 1.000'
    """
    p = mcnemar(before_Q, after_Q)
    gain = format_percent(paired_bootstrap(before_Q, after_Q), "+")
    return f"{gain}, {'p < 0.001' if p < 0.001 else f'p = {p:.3f}'}"
