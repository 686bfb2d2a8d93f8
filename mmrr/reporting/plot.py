"""The geometry of a report's plots: points over a logarithmic axis, and bars of gains and losses. Numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Size of a plot and its margins in SVG units.
WIDTH, HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 16, 14, 44
_BARS_HEIGHT = 150


@dataclass(frozen=True)
class Point:
    """A run: its number in the report, its value with the interval, and what it costs."""

    number: int
    label: str
    value: float
    low: float
    high: float
    cost: float | None  # None: not recorded, or none


@dataclass(frozen=True)
class Mark:
    """A run in a plot, in SVG units."""

    number: int
    label: str
    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Plot:
    """A plot in SVG units. Runs without a cost are lines across it."""

    title: str
    axis: str
    measure: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[Mark]
    lines: list[Mark]
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class Bar:
    """The gain or loss of a query."""

    x: float
    y: float
    width: float
    height: float
    gain: bool
    text: str


@dataclass(frozen=True)
class Bars:
    """Gains and losses of all queries, in order."""

    bars: list[Bar]
    zero: float
    y_ticks: list[tuple[float, str]]
    left: float = _LEFT
    right: float = 2 * WIDTH - _RIGHT
    width: int = 2 * WIDTH
    height: int = _BARS_HEIGHT


def scatter(title: str, axis: str, measure: str, points: Sequence[Point], unit: str) -> Plot | None:
    """Quality over a cost, ``unit`` "bytes" or "ms"; None if no run has that cost."""
    costs = [point.cost for point in points if point.cost]
    if not costs:
        return None
    low, high = math.log10(min(costs)), math.log10(max(costs))
    middle, half = (low + high) / 2, max((high - low) / 2 * 1.15, 0.4)
    low, high = middle - half, middle + half
    bottom, top, step = _span([end for point in points for end in (point.low, point.high)])

    def x_of(cost: float) -> float:
        return round(_LEFT + (math.log10(cost) - low) / (high - low) * (WIDTH - _LEFT - _RIGHT), 1)

    def y_of(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (value - bottom) / (top - bottom) * (HEIGHT - _BOTTOM - _TOP), 1)

    def mark(point: Point) -> Mark:
        cost = f"{amount(point.cost, unit)}, " if point.cost else ""
        text = f"{point.number} {point.label}: {cost}{measure} {point.value:.3f}"
        x = x_of(point.cost) if point.cost else 0.0
        return Mark(point.number, point.label, x, y_of(point.value), y_of(point.low), y_of(point.high), text)

    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    if len(ticks) > 7:
        ticks = [tick for tick in ticks if str(tick * 10**9).startswith("1")]
    values = [bottom + step * i for i in range(round((top - bottom) / step) + 1)]
    return Plot(
        title,
        axis,
        measure,
        [(x_of(tick), amount(tick, unit)) for tick in ticks],
        [(y_of(value), f"{value:.2f}") for value in values],
        [mark(point) for point in points if point.cost],
        [mark(point) for point in points if not point.cost],
    )


def gains(rows: Sequence[tuple[str, float]]) -> Bars | None:
    """A bar a query, {name: difference} in the order given; None where no query differs."""
    largest = max((abs(value) for _, value in rows), default=0.0)
    if not largest:
        return None
    left, right, zero = _LEFT, 2 * WIDTH - _RIGHT, _BARS_HEIGHT / 2
    step, scale = (right - left) / len(rows), (_BARS_HEIGHT / 2 - 12) / largest
    bars = []
    for i, (name, value) in enumerate(rows):
        height = round(abs(value) * scale, 1)
        y = zero - height if value > 0 else zero
        width = max(round(step * 0.8, 2), 0.5)
        bars.append(Bar(round(left + i * step, 2), round(y, 1), width, height, value > 0, f"{name}: {value:+.3f}"))
    ticks = [(zero + sign * largest * scale, f"{-sign * largest:+.2f}") for sign in (-1, 1)]
    return Bars(bars, zero, [(ticks[0][0], ticks[0][1]), (zero, "0"), (ticks[1][0], ticks[1][1])])


def amount(value: float | None, unit: str) -> str:
    """Bytes or milliseconds for people, in decimal units."""
    if value is None:
        return ""
    if unit == "ms":
        return f"{value / 1000:,.3g} s" if value >= 1000 else f"{value:.3g} ms"
    for name in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {name}"
        value /= 1000
    return f"{value:.3g} TB"


def _span(values: Sequence[float]) -> tuple[float, float, float]:
    """The ends of an axis and the step of its ticks, so that all values are inside."""
    lowest, highest = min(values), max(values)
    width = max(highest - lowest, 0.02)
    step = next(
        (step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if width / step <= 6),
        10.0 ** math.ceil(math.log10(width / 6)),
    )
    bottom, top = math.floor(lowest / step + 1e-9) * step, math.ceil(highest / step - 1e-9) * step
    return bottom, max(top, bottom + step), step
