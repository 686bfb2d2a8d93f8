"""A travel brochure in landscape: coloured panels, large type, a map, a height profile, a climate chart. A4."""

from pathlib import Path

from reportlab.graphics.shapes import Polygon
from reportlab.lib.colors import Color, HexColor, white
from reportlab.lib.pagesizes import A4, landscape
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfgen.canvas import Canvas

from .charts import Plot
from .layout import Box, gap, label, open_canvas, panel, place, rows, story, style, table, write_pages

WIDTH, HEIGHT = landscape(A4)
SEA, DEEP, SUN, CORAL, MOSS, CREAM = (
    HexColor(c) for c in ("#2f8fa3", "#14495c", "#f2b53c", "#e2664a", "#5d8a4e", "#fbf5e6")
)


def text_styles(ink: Color, accent: Color, size: float = 14) -> dict[str, ParagraphStyle]:
    return {
        "p": style("Helvetica", size, 1.36 * size, textColor=ink, spaceAfter=0.55 * size),
        "#": style("Helvetica-Bold", 30, 34, textColor=accent, spaceAfter=10),
        "##": style("Helvetica-Bold", 1.25 * size, 1.6 * size, textColor=accent, spaceBefore=6, spaceAfter=5),
    }


def card(canvas: Canvas, box: Box, colour: Color, source: str, ink: Color, accent: Color) -> None:
    """A coloured panel with a story inside."""
    panel(canvas, box, colour, 10)
    left, bottom, width, height = box
    place(canvas, [(left + 18, bottom + 12, width - 36, height - 28)], story(source, text_styles(ink, accent)))


def banner(canvas: Canvas, words: str, colour: Color, tag: str) -> None:
    panel(canvas, (0, 0, WIDTH, HEIGHT), CREAM)
    panel(canvas, (0, HEIGHT - 110, WIDTH, 110), colour)
    label(canvas, 44, HEIGHT - 74, words, "Helvetica-Bold", 44, white)
    label(canvas, WIDTH - 44, HEIGHT - 70, tag, "Helvetica-Oblique", 16, white, "r")


def blob(canvas: Canvas, points: list[tuple[float, float]], colour: Color) -> None:
    """A closed smooth outline through the midpoints of the given corners."""
    path = canvas.beginPath()
    middles = [
        ((ax + bx) / 2, (ay + by) / 2) for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True)
    ]
    path.moveTo(*middles[-1])
    for corner, middle in zip(points, middles, strict=True):
        path.curveTo(*corner, *corner, *middle)
    path.close()
    canvas.setFillColor(colour)
    canvas.drawPath(path, stroke=0, fill=1)


def cover(canvas: Canvas) -> None:
    panel(canvas, (0, 0, WIDTH, HEIGHT), SUN)
    canvas.setFillColor(CREAM)
    canvas.circle(620, 330, 92, stroke=0, fill=1)
    hills = [(CORAL, 250, 90), (MOSS, 190, 60), (SEA, 120, 30), (DEEP, 64, 16)]
    for which, (colour, level, swell) in enumerate(hills):
        hill = canvas.beginPath()
        hill.moveTo(0, 0)
        hill.lineTo(0, level)
        shift = 38 * which
        hill.curveTo(150 + shift, level + swell, 260 + shift, level + swell, 400, level)
        hill.curveTo(540 - shift, level - swell, 680, level + 1.6 * swell, WIDTH, level + 10)
        hill.lineTo(WIDTH, 0)
        hill.close()
        canvas.setFillColor(colour)
        canvas.drawPath(hill, stroke=0, fill=1)
    label(canvas, 44, HEIGHT - 110, "The Skarrow Isles", "Helvetica-Bold", 62, DEEP)
    label(canvas, 48, HEIGHT - 150, "Four islands, one long light", "Helvetica", 26, DEEP)
    label(canvas, 44, 26, "Visitor guide 2025", "Helvetica-Bold", 15, white)
    label(canvas, WIDTH - 44, 26, "Free. Please pass it on.", "Helvetica", 13, white, "r")


GETTING_HERE = """
# Getting here

Ferries sail from Dunmarrow all year. The railway station is six minutes' walk from the pier, and the 11:52 from the
south waits if it is late. Foot passengers need not book. Cars should, from May to September.

The first boat of the day leaves at 06:45 and the last at 19:40. On Christmas Day there is none.

Bicycles travel free. Dogs travel free and are allowed in the forward lounge, where the window is low enough for them.

## Crossings

@table

There is no airport. There has been talk of one since 1961.
"""

CROSSINGS = """
Route | Minutes | A day | Adult | Car
Dunmarrow--Tolmhaven | 75 | 5 | £11.40 | £38.00
Dunmarrow--Kirkness | 110 | 2 | £14.20 | £44.50
Tolmhaven--Hesk | 40 | 4 | £6.10 | £19.00
Tolmhaven--Little Oarn | 55 | 2 | £7.30 | £21.00
"""


def getting_here(canvas: Canvas) -> None:
    panel(canvas, (0, 0, WIDTH, HEIGHT), SEA)
    mainland = [(0, -40), (0, 120), (60, 150), (110, 96), (190, 80), (230, 20), (240, -40)]
    blob(canvas, mainland, HexColor("#d8cfa8"))
    blob(canvas, [(210, 230), (290, 250), (330, 310), (290, 350), (220, 340), (180, 290)], MOSS)  # Tolm
    blob(canvas, [(30, 300), (120, 330), (150, 420), (110, 500), (40, 480), (0, 380)], MOSS)  # Great Skarrow
    blob(canvas, [(330, 400), (400, 400), (420, 460), (380, 510), (330, 480)], MOSS)  # Hesk
    blob(canvas, [(220, 470), (260, 476), (268, 510), (230, 520), (206, 494)], MOSS)  # Little Oarn
    canvas.setStrokeColor(white)
    canvas.setLineWidth(2)
    canvas.setDash(6, 4)
    ports = {"Dunmarrow": (150, 96), "Tolmhaven": (230, 248), "Kirkness": (110, 330), "Hesk": (362, 408)}
    ports |= {"Oarn": (236, 478)}
    routes = [("Dunmarrow", 150, 170, 220, 180, "Tolmhaven"), ("Dunmarrow", 130, 190, 100, 220, "Kirkness")]
    routes += [("Tolmhaven", 390, 170, 420, 330, "Hesk"), ("Tolmhaven", 120, 230, 140, 400, "Oarn")]
    for start, ax, ay, bx, by, end in routes:
        canvas.bezier(*ports[start], ax, ay, bx, by, *ports[end])
    canvas.setDash()
    for x, y in ports.values():
        canvas.setFillColor(CORAL)
        canvas.circle(x, y, 5, stroke=0, fill=1)
    names = [(256, 298, "TOLM"), (76, 420, "GREAT SKARROW"), (374, 452, "HESK"), (238, 498, "LITTLE OARN")]
    for x, y, name in names:
        label(canvas, x, y, name, "Helvetica-Bold", 10 if name != "LITTLE OARN" else 8, white, "c")
    for x, y, name in [(166, 92, "Dunmarrow"), (240, 254, "Tolmhaven"), (62, 336, "Kirkness"), (60, 40, "MAINLAND")]:
        label(canvas, x, y, name, "Helvetica", 10, DEEP if name == "MAINLAND" else white)
    label(canvas, 330, 518, "Sallow Point", "Helvetica-Oblique", 9.5, white)
    label(canvas, 300, 130, "10 km", "Helvetica", 9, white, "c")
    canvas.rect(270, 122, 60, 4, stroke=0, fill=1)
    box = (452, 34, WIDTH - 486, HEIGHT - 68)
    panel(canvas, box, CREAM, 10)
    grid = table(rows(CROSSINGS), (130, 46, 40, 50, 50), "lrrrr", 10, head=white, head_fill=DEEP, pad=5)
    place(
        canvas,
        [(472, 46, WIDTH - 526, HEIGHT - 96)],
        story(GETTING_HERE, text_styles(DEEP, CORAL, 13), {"table": [grid, gap(8)]}),
    )


TOLM = [
    """## The harbour

    Come down to the West Quay at half past five, when the boats land. The iron crane is from 1911 and still lifts
    three tons. Fish is sold from the steps until it is gone, which is usually by six.""",
    """
## Burgh Hall

The old net store in Capstan Street has been the town's hall since 1977. Dances on the last Saturday of the month,
fiddles from eight, soup at half time. Adults £7, children nothing.
""",
    """
## Lantern Museum

Forty-one ships' lanterns, lit every day at dusk by whoever asks first. Open from Easter to October, 10 to 17, closed on
Mondays. Adults £5.50.
""",
    """
## Eat

<b>The Slipway</b>: fish stew, £13, no bookings. <b>Marta's</b>: bread and cardamom buns from six in the morning.
<b>The Capstan</b>: a pub with a piano and a rule that anyone may play it once.
""",
    """
## With children

Rock pools at Shore Road at low tide; nets are lent by the harbour office against a shoe. The goat at the cemetery
gate is friendly but eats maps.
""",
    """
## If it rains

The library has a stove, the chapel has an organ, and the bath-house of 1908 has four copper tubs that you can hire by
the hour (£9, towels £1).
""",
]


def tolm(canvas: Canvas) -> None:
    banner(canvas, "Tolm", CORAL, "a harbour with a town around it")
    colours = [(DEEP, CREAM, SUN), (SUN, DEEP, DEEP), (MOSS, white, CREAM)]
    colours += [(white, DEEP, CORAL), (SEA, white, CREAM), (CORAL, white, CREAM)]
    for place_, (source, (colour, ink, accent)) in enumerate(zip(TOLM, colours, strict=True)):
        column, row = place_ % 3, place_ // 3
        card(canvas, (44 + column * 256, 254 - row * 220, 242, 206), colour, source, ink, accent)


HESK = """
## Round the bog: the Hesk Circuit

Eleven kilometres, four hours, boots. Start at the pier and go clockwise, with the wind behind you on the cliffs. The
boardwalk over the bog is narrow: whoever carries a child has the right of way.

The highest point is the Ward, 214 m, where there is a bench and, on clear evenings, the mainland. The path comes down
past the peat cutters' huts to Sallow Point, where the bird observatory opened in 2023.

## Birds

Terns from May, storm petrels on moonless nights in July, geese by the thousand in October. The hide at Sallow Point
seats twelve. The warden gives a talk at 15:00 every day but Sunday. No drones.

## Moss

Most roofs on Hesk are green. The moss is grown on the island and a house needs about ninety square metres of it. Please
do not pick any: it has taken fourteen months to get there.
"""


def hesk(canvas: Canvas) -> None:
    banner(canvas, "Hesk", MOSS, "moss, birds and a very good walk")
    place(canvas, [(44, 30, 350, HEIGHT - 160)], story(HESK, text_styles(DEEP, MOSS, 12.5)))
    heights = [(0, 4), (0.8, 22), (1.6, 60), (2.5, 74), (3.3, 70), (4.2, 88), (5.0, 150), (5.6, 214), (6.2, 170)]
    heights += [(7.1, 96), (8.0, 52), (8.8, 40), (9.6, 38), (10.4, 12), (11, 4)]
    plot = Plot((370, 210), "The Hesk Circuit: height in metres", [0, 50, 100, 150, 200, 250], (0, 11), 9)
    outline = [(0, 0), *heights, (11, 0)]
    land = Polygon([value for km, level in outline for value in (plot.x(km), plot.y(level))])
    land.fillColor, land.strokeColor = HexColor("#c9d8bd"), None
    plot.drawing.add(land)
    plot.line(heights, MOSS)
    for km, height, name in [(2.5, 74, "bog"), (5.6, 214, "the Ward"), (9.4, 46, "Sallow Point")]:
        plot.words(plot.x(km), plot.y(height) + 6, name, bold=True)
    plot.x_labels([(km, str(km)) for km in range(0, 12, 2)])
    plot.x_title("kilometres from the pier")
    panel(canvas, (420, 236, WIDTH - 464, 230), white, 10)
    plot.drawing.drawOn(canvas, 430, 244)
    short = """
## Three shorter walks

- Pier to the chapel of the Two Sisters: 2 km, flat, good for prams.

- Pier to the seal rocks and back: 4 km. Best two hours after high water.

- Up the Ward by the shepherd's path: 5 km, steep, not in fog.
"""
    card(canvas, (420, 34, WIDTH - 464, 188), SUN, short, DEEP, DEEP)


SKARROW = """
## Great Skarrow

The largest island, and the emptiest. A road runs from Kirkness to the lighthouse at Far Ness (23 km), and a bus runs
on the road twice a day. Between them lie eleven beaches, of which the best is the seventh. Ask for Sandvik.

The standing stones at Garth are older than the language they are named in. There are nineteen, or twenty; no two
visitors have counted the same.

The bus leaves the pier at 9:30 and 14:15. Eat at the Kirkness Inn, where the menu is whatever was landed that morning,
and is read out.

Swim in August, when the sea reaches 15 °C. Lifeguards watch Kirkness beach from 11 to 17 in July and August.
"""

OARN = """
## Little Oarn

Forty-four people, one shop, three cars. The ferry comes twice a day and on Sundays in the morning only. Walk round the
island in two hours, or sit on the wall of the pier and let it go round you.

The pottery of Pell Odgarth is open when the flag is up. Bowls from £18. He will post them.

Bring cash. The nearest bank machine is in Tolmhaven.
"""


def skarrow(canvas: Canvas) -> None:
    banner(canvas, "Great Skarrow and Little Oarn", DEEP, "room to be alone")
    card(canvas, (44, 34, 370, 430), SEA, SKARROW, white, SUN)
    card(canvas, (428, 234, WIDTH - 472, 230), white, OARN, DEEP, CORAL)
    panel(canvas, (428, 34, WIDTH - 472, 186), DEEP, 10)  # the lighthouse at night
    x, y = 640, 62
    beam = canvas.beginPath()
    beam.moveTo(x + 10, y + 112)
    beam.lineTo(446, y + 150)
    beam.lineTo(446, y + 92)
    beam.close()
    canvas.setFillColor(SUN)
    canvas.drawPath(beam, stroke=0, fill=1)
    panel(canvas, (x, y, 24, 104), white)
    for stripe in (18, 58):
        panel(canvas, (x, y + stripe, 24, 18), CORAL)
    panel(canvas, (x - 4, y + 104, 32, 16), SUN, 3)
    panel(canvas, (430, 36, WIDTH - 476, 28), MOSS, 8)
    label(canvas, 446, 45, "Far Ness, 1862: 31 metres, 148 steps, open on Wednesdays", "Helvetica-Bold", 11, white)


SEASON = """
## What is on

<b>April</b> &nbsp; Lamb Fair, Kirkness

<b>May</b> &nbsp; Tern Week, Hesk

<b>June</b> &nbsp; Midnight Row round Little Oarn

<b>July</b> &nbsp; Tolmhaven Regatta, 26 July

<b>August</b> &nbsp; Fiddle School, Burgh Hall

<b>October</b> &nbsp; Goose Supper, Hesk

<b>December</b> &nbsp; Lighting of the Lanterns

## What to bring

A coat that keeps out rain, whatever the month. From May to July something to cover your eyes at night: at midsummer the
light never quite goes.
"""


def season(canvas: Canvas) -> None:
    banner(canvas, "When to come", SEA, "there is no bad weather, only fog")
    months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
    rain = [112, 88, 81, 57, 46, 49, 55, 68, 84, 119, 126, 121]
    sun = [7.1, 9.2, 11.8, 14.6, 17.0, 18.6, 17.8, 15.5, 12.8, 10.3, 7.9, 6.6]
    panel(canvas, (44, 34, 470, 430), white, 10)
    plot = Plot((430, 185), "Rain at Tolmhaven (mm a month)", [0, 50, 100, 150], (0, 12), 9)
    for month, millimetres in enumerate(rain):
        plot.bar(month + 0.15, month + 0.85, 0, millimetres, SEA)
    plot.x_labels([(month + 0.5, name) for month, name in enumerate(months)])
    plot.drawing.drawOn(canvas, 62, 258)
    plot = Plot((430, 185), "Hours of daylight", [0, 5, 10, 15, 20], (0, 12), 9)
    points = [(month + 0.5, hours) for month, hours in enumerate(sun)]
    plot.line(points, CORAL)
    plot.dots(points, CORAL, 3)
    plot.x_labels([(month + 0.5, name) for month, name in enumerate(months)])
    plot.drawing.drawOn(canvas, 62, 52)
    card(canvas, (530, 34, WIDTH - 574, 430), SUN, SEASON, DEEP, DEEP)


STAY = """
House | Where | Beds | A night for two | Open
Hotel Merrow | Tolmhaven, West Quay | 46 | £128, with breakfast | all year
The Old Ropewalk | Tolmhaven, Net Lane | 14 | £92, with breakfast | March to November
Kirkness Inn | Great Skarrow | 18 | £84, with breakfast | all year
Far Ness keepers' cottages | Great Skarrow | 8 | £110, own kitchen | May to September
Ward Farm | Hesk | 6 | £70, with supper | April to October
Hesk hostel | Hesk, at the pier | 24 | £19 a bed | all year
Two rooms at the shop | Little Oarn | 4 | £58, own kitchen | all year
Camping | Sandvik, Kirkness, Hesk | -- | £9 a tent | May to September
"""

CONTACT = """
## Visitor office

West Quay, Tolmhaven. Open daily from 9 to 18, in winter from 10 to 15. Telephone 01632 960 212. We keep a list of who
has a bed free tonight and will ring round for you.
"""

LEAVE = """
## Leave it as it was

Shut gates. Keep dogs on a lead from April to July. Camp only where it says so. Take your rubbish back on the ferry:
everything that is left here has to go by sea.
"""


def stay(canvas: Canvas) -> None:
    banner(canvas, "Where to stay", SUN, "seven roofs, two of them moss, and a field")
    panel(canvas, (44, 222, WIDTH - 88, 242), white, 10)
    grid = table(rows(STAY), (176, 166, 60, 180, 140), "llrll", 12, head=white, head_fill=DEEP, stripe=CREAM, pad=5)
    place(canvas, [(60, 226, WIDTH - 120, 228)], [grid])
    card(canvas, (44, 34, 370, 172), SEA, CONTACT, white, CREAM)
    card(canvas, (428, 34, WIDTH - 472, 172), MOSS, LEAVE, white, CREAM)


def build(path: Path) -> None:
    pages = [cover, getting_here, tolm, hesk, skarrow, season, stay]
    canvas = open_canvas(path, (WIDTH, HEIGHT), "The Skarrow Isles: visitor guide 2025", "Skarrow Isles Visitor Office")
    write_pages(canvas, pages, [], lambda _: None)
