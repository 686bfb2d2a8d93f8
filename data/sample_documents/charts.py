"""Vector charts made of lines, rectangles and labels. The caller sets the ticks of every axis."""

from collections.abc import Sequence

from reportlab.graphics.shapes import Circle, Drawing, Line, PolyLine, Rect, String, Wedge
from reportlab.lib.colors import Color, HexColor

from .layout import typeset

INK = HexColor("#333b42")
GRID = HexColor("#d5dadd")
LEFT, BOTTOM, TOP = 34, 26, 22  # room for tick labels, category labels and the title


def _text(drawing: Drawing, x: float, y: float, words: str, size: float, anchor: str = "middle", bold: bool = False):
    """Add a text. Seven parameters: the place, the words and their three properties."""
    font = "Helvetica-Bold" if bold else "Helvetica"
    words = typeset(words)
    drawing.add(String(x, y, words, fontName=font, fontSize=size, fillColor=INK, textAnchor=anchor))


class Plot:
    """Axes on a drawing: `x` and `y` turn data values into points."""

    def __init__(
        self,
        size: tuple[float, float],
        title: str,
        y_ticks: Sequence[float],
        x_range: tuple[float, float],
        font_size: float = 8,
        y_format: str = "{:,g}",
    ):
        self.width, self.height = size
        self.drawing = Drawing(*size)
        self.font_size = font_size
        self.y_low, self.y_high = y_ticks[0], y_ticks[-1]
        self.x_low, self.x_high = x_range
        _text(self.drawing, 0, self.height - font_size - 2, title, font_size + 1, "start", bold=True)
        for tick in y_ticks:
            y = self.y(tick)
            self.drawing.add(Line(LEFT, y, self.width, y, strokeColor=GRID, strokeWidth=0.5))
            _text(self.drawing, LEFT - 4, y - font_size / 3, y_format.format(tick), font_size, "end")
        self.drawing.add(Line(LEFT, BOTTOM, self.width, BOTTOM, strokeColor=INK, strokeWidth=0.8))

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (self.width - LEFT)

    def y(self, value: float) -> float:
        room = self.height - BOTTOM - TOP - self.font_size
        return BOTTOM + (value - self.y_low) / (self.y_high - self.y_low) * room

    def words(self, x: float, y: float, words: str, anchor: str = "middle", bold: bool = False) -> None:
        _text(self.drawing, x, y, words, self.font_size, anchor, bold)

    def x_labels(self, labels: Sequence[tuple[float, str]]) -> None:
        for value, words in labels:
            self.words(self.x(value), BOTTOM - self.font_size - 3, words)

    def x_title(self, words: str) -> None:
        self.words((LEFT + self.width) / 2, 2, words)

    def legend(self, names: Sequence[str], colours: Sequence[Color]) -> None:
        x, y = LEFT, self.height - 2 * self.font_size - 9
        for name, colour in zip(names, colours, strict=True):
            self.drawing.add(Rect(x, y, 7, 7, fillColor=colour, strokeColor=None))
            self.words(x + 10, y + 0.5, name, "start")
            x += 22 + 0.52 * self.font_size * len(name)

    def bar(self, left: float, right: float, low: float, high: float, colour: Color) -> None:
        y = self.y(low)
        box = Rect(self.x(left), y, self.x(right) - self.x(left), self.y(high) - y)
        box.fillColor, box.strokeColor = colour, None
        self.drawing.add(box)

    def line(self, points: Sequence[tuple[float, float]], colour: Color, dash: Sequence[int] | None = None) -> None:
        flat = [value for px, py in points for value in (self.x(px), self.y(py))]
        self.drawing.add(PolyLine(flat, strokeColor=colour, strokeWidth=1.4, strokeDashArray=dash))

    def dots(self, points: Sequence[tuple[float, float]], colour: Color, radius: float = 2) -> None:
        for px, py in points:
            self.drawing.add(Circle(self.x(px), self.y(py), radius, fillColor=colour, strokeColor=None))


def bars(
    size: tuple[float, float],
    title: str,
    labels: Sequence[str],
    series: Sequence[Sequence[float]],
    colours: Sequence[Color],
    y_ticks: Sequence[float],
    names: Sequence[str] = (),
    stacked: bool = False,
    values: str | None = None,
    font_size: float = 8,
) -> Drawing:
    """Bars for each label, side by side or stacked. `values`: the format of the number above each bar, or None.

    Ten parameters, because each is one property of the chart; the last four have defaults.
    """
    plot = Plot(size, title, y_ticks, (0, len(labels)), font_size)
    slot = 0.7 if stacked else 0.7 / len(series)
    for place in range(len(labels)):
        base = 0.0
        for which, (numbers, colour) in enumerate(zip(series, colours, strict=True)):
            left = place + 0.15 + (0 if stacked else which * slot)
            plot.bar(left, left + 0.94 * slot, base, base + numbers[place], colour)
            top = base + numbers[place]
            if values and not stacked:
                plot.words(plot.x(left + 0.47 * slot), plot.y(top) + 2.5, values.format(numbers[place]))
            base = top if stacked else 0.0
        if values and stacked:
            plot.words(plot.x(place + 0.47), plot.y(base) + 2.5, values.format(base))
    plot.x_labels([(place + 0.48, words) for place, words in enumerate(labels)])
    if names:
        plot.legend(names, colours)
    return plot.drawing


def lines(
    size: tuple[float, float],
    title: str,
    x_ticks: Sequence[tuple[float, str]],
    series: Sequence[Sequence[tuple[float, float]]],
    colours: Sequence[Color],
    y_ticks: Sequence[float],
    names: Sequence[str] = (),
    x_title: str = "",
    font_size: float = 8,
    y_format: str = "{:,g}",
) -> Drawing:
    """Lines through (x, y) points with a dot at each point.

    Ten parameters, because each is one property of the chart; the last four have defaults.
    """
    spread = x_ticks[-1][0] - x_ticks[0][0]
    limits = (x_ticks[0][0] - 0.04 * spread, x_ticks[-1][0] + 0.04 * spread)
    plot = Plot(size, title, y_ticks, limits, font_size, y_format)
    for points, colour in zip(series, colours, strict=True):
        plot.line(points, colour)
        plot.dots(points, colour)
    plot.x_labels(x_ticks)
    if x_title:
        plot.x_title(x_title)
    if names:
        plot.legend(names, colours)
    return plot.drawing


def pie(
    size: tuple[float, float],
    title: str,
    parts: Sequence[tuple[str, float]],
    colours: Sequence[Color],
    font_size: float = 8,
) -> Drawing:
    """A pie chart, clockwise from the top, with a legend on its right that gives the share of each part."""
    width, height = size
    drawing = Drawing(width, height)
    _text(drawing, 0, height - font_size - 2, title, font_size + 1, "start", bold=True)
    radius = (height - 2 * font_size - 8) / 2
    total, angle = sum(value for _, value in parts), 90.0
    for row, ((name, value), colour) in enumerate(zip(parts, colours, strict=True)):
        end = angle - 360 * value / total
        slice_ = Wedge(radius + 2, radius + 2, radius, end, angle, strokeColor=HexColor("#ffffff"), strokeWidth=0.8)
        slice_.fillColor = colour
        drawing.add(slice_)
        angle = end
        y = 2 * radius - 6 - row * (font_size + 6)
        drawing.add(Rect(2 * radius + 18, y, 8, 8, fillColor=colour, strokeColor=None))
        _text(drawing, 2 * radius + 31, y + 1, f"{name}  {100 * value / total:.0f} %", font_size, "start")
    return drawing
