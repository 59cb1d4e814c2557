"""Plots as SVG text: they take their colours from the page and need nothing else.

Small on purpose: lines, points, a diagonal, two axes. The drawing is 420 wide, so that its letters
can be read on a narrow screen, and grows with the page.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

Place = Callable[[float], float]  # from a number to its place in the drawing

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 42


@dataclass(frozen=True)
class Series:
    """One curve; `raw` is a thin line behind it, `low` and `high` are the ends of its intervals."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int | None = None  # of --c0, --c1, ...; None: by position
    points: bool = False
    line: bool = True
    raw: Sequence[float] = field(default=())
    low: Sequence[float] = field(default=())
    high: Sequence[float] = field(default=())


def plot(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> str:
    """An <svg> with the series in the colours --c0, --c1, ... of the page."""
    scale = math.log2 if log_x else float
    xs = [scale(x) for s in series for x in s.x]
    ys = [y for s in series for y in (*s.y, *s.low, *s.high)]
    x_low, x_high = _spread(min(xs), max(xs))
    y_low, y_high = y_range or _spread(min(ys), max(ys))

    def px(x: float) -> float:
        return LEFT + (scale(x) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}">']
    parts += [_y_tick(tick, py(tick)) for tick in ticks(y_low, y_high)]
    x_ticks = _powers(x_low, x_high) if log_x else ticks(x_low, x_high)
    parts += [_x_tick(tick, px(tick)) for tick in x_ticks]
    if diagonal:
        ends = f"M{px(x_low):.1f},{py(x_low):.1f}L{px(x_high):.1f},{py(x_high):.1f}"
        parts.append(f'<path class="axis" stroke-dasharray="4 4" d="{ends}"/>')
    for i, s in enumerate(series):
        colour = i if s.colour is None else s.colour
        parts += _curve(s, f"var(--c{colour % 6})", px, py)
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within [low, high], at most `most` of them.

    >>> ticks(0, 1), ticks(3, 47)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [10.0, 20.0, 30.0, 40.0])
    """
    rough = (high - low) / (most - 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def key(names: Sequence[str]) -> str:
    """The legend, as HTML beside the plot: text in an SVG cannot wrap."""
    return (
        '<div class="key">'
        + "".join(
            f'<span><i style="background:var(--c{i % 6})"></i>{escape(name)}</span>'
            for i, name in enumerate(names)
        )
        + "</div>"
    )


def _curve(s: Series, colour: str, px: Place, py: Place) -> list[str]:
    parts = []
    if s.raw:
        parts.append(_path(s.x, s.raw, f'class="curve raw" stroke="{colour}"', px, py))
    if s.line:
        parts.append(_path(s.x, s.y, f'class="curve" stroke="{colour}"', px, py))
    for x, low, high in zip(s.x, s.low, s.high, strict=False):
        ends = f'y1="{py(low):.1f}" y2="{py(high):.1f}"'
        parts.append(f'<line x1="{px(x):.1f}" x2="{px(x):.1f}" {ends} stroke="{colour}"/>')
    if s.points:
        for x, y in zip(s.x, s.y, strict=True):
            said = f"<title>{escape(s.name)}: {x:.4g}, {y:.4g}</title>"
            where = f'cx="{px(x):.1f}" cy="{py(y):.1f}"'
            parts.append(f'<circle {where} r="3.5" fill="{colour}">{said}</circle>')
    return parts


def _path(x: Sequence[float], y: Sequence[float], how: str, px: Place, py: Place) -> str:
    points = "L".join(f"{px(a):.1f},{py(b):.1f}" for a, b in zip(x, y, strict=True))
    return f'<path {how} d="M{points}"/>'


def _y_tick(value: float, y: float) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>'
    )


def _x_tick(value: float, x: float) -> str:
    y = HEIGHT - BOTTOM
    return (
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}"/>'
        f'<text x="{x:.1f}" y="{y + 18}" text-anchor="middle">{_number(value)}</text>'
    )


def _powers(low: float, high: float) -> list[float]:
    """Powers of two in the range of logarithms, at most seven."""
    exponents = range(math.ceil(low), math.floor(high) + 1)
    stride = max(1, math.ceil(len(exponents) / 7))
    return [float(2**e) for e in exponents[::stride]]


def _spread(low: float, high: float) -> tuple[float, float]:
    """The range, with some room where it would be empty."""
    return (low, high) if high - low > 1e-9 else (low - 0.5, high + 0.5)


def _number(value: float) -> str:
    """
    >>> _number(2000.0), _number(0.25), _number(16384)
    ('2,000', '0.25', '16,384')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
