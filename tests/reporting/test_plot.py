"""The plots of a report: points at their places on a logarithmic axis, bars in order."""

from __future__ import annotations

import pytest

from mmrr.reporting.plot import HEIGHT, WIDTH, Point, amount, gains, scatter


def test_points_are_at_their_places() -> None:
    costs = [10_000.0, 100_000.0, 1_000_000.0, None]
    points = [Point(i, f"run {i}", 0.5 + i / 10, 0.45 + i / 10, 0.55 + i / 10, cost) for i, cost in enumerate(costs)]
    plot = scatter("title", "axis", "nDCG@5", points, "bytes")
    assert plot
    x = [mark.x for mark in plot.marks]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert {text: place for place, text in plot.x_ticks}["100 kB"] == x[1]
    for mark in (*plot.marks, *plot.lines):
        assert 0 < mark.high < mark.y < mark.low < HEIGHT
        assert mark.x < WIDTH
    assert [line.number for line in plot.lines] == [3]
    ticks = {float(text): place for place, text in plot.y_ticks}
    assert ticks[0.6] == plot.marks[1].y


@pytest.mark.parametrize("values", [(0.0, 0.0), (1.0, 1.0), (0.004, 0.005), (12.0, 900.0)])
def test_one_run_of_any_size_has_axes(values: tuple[float, float]) -> None:
    low, high = values
    plot = scatter("t", "a", "m", [Point(1, "a", low, low, high, 3.0)], "ms")
    assert plot
    assert 2 <= len(plot.y_ticks) <= 10
    assert plot.x_ticks
    assert plot.top <= plot.marks[0].high <= plot.marks[0].low <= plot.bottom


def test_without_a_cost_there_is_no_plot() -> None:
    assert scatter("t", "a", "m", [Point(1, "a", 0.5, 0.4, 0.6, None)], "ms") is None


def test_bars_of_gains_and_losses() -> None:
    found = gains([("q1", 0.5), ("q2", 0.0), ("q3", -0.25)])
    assert found
    gain, tie, loss = found.bars
    assert (gain.gain, tie.height, loss.gain) == (True, 0, False)
    assert gain.y + gain.height == pytest.approx(found.zero)
    assert loss.y == found.zero
    assert gain.height == pytest.approx(2 * loss.height)
    assert gain.x < tie.x < loss.x
    assert gains([("q1", 0.0)]) is None


def test_amounts_for_people() -> None:
    shown = [amount(133_489, "bytes"), amount(999_600, "bytes"), amount(160.7, "ms"), amount(2345.0, "ms")]
    assert shown == ["133 kB", "1 MB", "161 ms", "2.35 s"]
    assert amount(None, "ms") == ""
