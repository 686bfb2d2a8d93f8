"""A two-column research paper on an invented moss: equations, figures and tables. Letter, four pages."""

import math
import random
from pathlib import Path

from reportlab.graphics.shapes import Circle, Line, Rect
from reportlab.lib.colors import HexColor
from reportlab.lib.pagesizes import LETTER
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable

from .charts import BOTTOM, INK, LEFT, Plot, bars, lines
from .layout import fill, gap, label, open_canvas, place, story, style, table, text, together

WIDTH, HEIGHT = LETTER
COLUMN, GUTTER, MARGIN = 244.0, 20.0, 52.0
CAPTION = style("Times-Roman", 8.8, 10.6, "j", spaceBefore=3, spaceAfter=9)
LOOKS = {
    "p": style("Times-Roman", 10, 12.4, "j", spaceAfter=4, allowWidows=0, allowOrphans=0),
    "#": style("Times-Bold", 11.5, 14, spaceBefore=9, spaceAfter=3, keepWithNext=1),
    "##": style("Times-BoldItalic", 10.2, 12.5, spaceBefore=5, spaceAfter=2, keepWithNext=1),
    "$": style("Times-Italic", 11, 15, "c", spaceBefore=3, spaceAfter=6),
    "ref": style("Times-Roman", 8.8, 10.6, leftIndent=10, firstLineIndent=-10, spaceAfter=2.5),
}
GREEN, OLIVE, BROWN, BLUE = (HexColor(c) for c in ("#2f6b3c", "#9aa84f", "#8a5a33", "#3b6ea5"))
SCHEDULES = {"Continuous": BLUE, "6 h": GREEN, "12 h": OLIVE, "24 h": BROWN}

FRONT = """
T Intermittent misting outpaces continuous wetting in shelf-grown feather moss

A T. Arvelund<super>1</super>, P. Quillmoor<super>1,2</super>, N. Sashiwe<super>2</super> and
E. Brantigge<super>1</super>

I <super>1</super> Hesk Field Station, Isle of Hesk &nbsp; <super>2</super> School of Plant Sciences, University of
Dunmarrow

<b>Abstract.</b> Mosses grown on shelves for roofs and restoration are usually kept wet all the time. We asked whether
the Hesk feather moss, <i>Ptilora heskensis</i>, does better when it is allowed to dry between mistings. In 48 trays
over 84 days, moss misted every six hours covered 82 % of its tray, against 56 % under continuous wetting, and gave 66
% more green dry mass. Misting once a day was worse than either. A logistic model with one term for the hours spent
wet explains 91 % of the variance in cover. Continuous wetting also favoured a cyanobacterial film that the dry
intervals suppressed. Mats grown with dry intervals survived their first summer on a roof better. Growers can use a
third of the water and gain yield.
"""

PAPER = """
# 1 Introduction

Feather mosses have no roots and no waxy cuticle. They take up water over their whole surface and lose it the same way,
so that a shoot passes through full hydration and complete dryness many times in its life (Ostrander and Vell, 2009).
Photosynthesis stops in the dry state and, perhaps less obviously, is also slowed in the very wet one, because a film of
water hinders the diffusion of carbon dioxide into the leaf (Tasker-Oyle, 2016).

Commercial growers nevertheless keep their trays wet. The practice comes from propagation houses for ferns, where drying
is fatal, and has rarely been tested on moss. Lindqvarn (2014) compared two watering schedules but changed the light at
the same time; Hob and Marrisey (2018) reported better colour under a daily cycle and gave no measurements of growth.
Karsebom (2011) found that felt, which drains, gave thicker mats than straw, which does not, and suggested in passing
that the difference was one of water and not of support.

The question matters beyond the greenhouse. A square metre of moss roof needs about 1.3 m² of tray for fourteen months,
and the two growers on Tolm who supply the Skarrow Isles draw their water from the same reservoir as the town. In the
dry spring of 2020 both were asked to stop misting for nine days. Each reported afterwards, to their own surprise, that
the trays looked better for it.

We grew <i>P. heskensis</i>, the species most used for roofs in the islands, under four schedules that differed in
nothing but the interval between mistings. We asked three questions. Does an interval without water increase growth? Is
there an interval that is too long? And can one variable, the number of hours per day that the shoots are wet, account
for the difference? A fourth question was added later: do mats that have known drying survive better on a roof?

# 2 Materials and methods

## 2.1 Plant material

Moss was collected under permit from a north-facing bank at Sallow Point, 40 m above the sea, in February 2022. It was
cleaned by hand, chopped to fragments of 3--5 mm and sown on wool felt at 150 g of fresh mass per square metre. Each
tray measured 30 by 40 cm. Trays that held more than two stems of any other species after a week were discarded and sown
again; this happened to five of them.

## 2.2 Chambers

Four chambers were built from polycarbonate sheet, each with three slate shelves and twelve trays (Figure 1). Air was
kept at 14 ± 1 °C and exchanged six times an hour. Light-emitting lamps gave 70 µmol per square metre per second at the
middle shelf for fourteen hours a day. Trays changed shelf every week and treatments changed chamber every three weeks,
so that no treatment kept the best place.

@chamber

## 2.3 Misting treatments

Nozzles delivered rain water, filtered to 5 µm. Chambers were misted for 90 s every 6, 12 or 24 h, or for 25 s every
half hour (<i>continuous</i>). The water was slightly acid and soft; its composition is given in Table 1. A conductance
clip (Brantigge, 2019) on three shoots per tray recorded whether they were wet.

@water

## 2.4 Measurements

Each tray was photographed every 14 days under diffuse light. Cover was the share of pixels classed as green by a
threshold fixed in advance on trays that were not part of the experiment. On day 84 all moss was cut, sorted into green
and brown by two people who did not know the treatments, dried at 60 °C for 48 h and weighed. Elongation was measured on
ten marked shoots per tray with a travelling microscope. The cyanobacterial film was scored from 0 (none) to 4 (more
than half of the felt).

## 2.5 Growth model

Cover <i>C</i> was described by a logistic curve,

$ dC / dt = r(h) C (1 -- C / K) &nbsp; &nbsp; &nbsp; (1)

where <i>K</i> is the cover at which growth stops and the rate <i>r</i> depends on <i>h</i>, the hours per day during
which the shoots are wet. Growth should vanish when the moss is always dry and fall again when it is always wet. The
simplest curve with that shape is

$ r(h) = a h exp(-- h / b), &nbsp; &nbsp; &nbsp; (2)

whose maximum lies at <i>h</i> = <i>b</i>. We fitted <i>a</i>, <i>b</i> and one <i>K</i> per treatment by least squares
to the seven dates, with tray as a random effect on <i>K</i>:

$ K<sub>ij</sub> = K<sub>i</sub> + <greek>e</greek><sub>j</sub>, &nbsp; <greek>e</greek><sub>j</sub> ~ N(0,
<greek>s</greek><super>2</super>). &nbsp; &nbsp; &nbsp; (3)

Intervals in the text are 95 % confidence intervals from 2,000 bootstrap samples of trays.

## 2.6 Roof trial

Before the final harvest, two strips of 10 by 30 cm were cut from every tray of the continuous and six-hourly treatments
and pegged to test roofs behind the station, at pitches of 5, 15, 30 and 45 degrees, six strips per treatment and pitch.
They were watered for the first ten days and then left alone from 8 June to 30 September. A strip had survived if more
than half of it was green when wetted in October.

# 3 Results

Shoots were wet for 24, 11.2, 6.1 and 3.3 hours a day in the four treatments, in order of increasing interval. One tray
of the 12 h treatment dried out on day 31 when a nozzle clogged; it is left out of all that follows.

## 3.1 Cover

Cover rose fastest under six-hourly misting from the fourth week onwards (Figure 2) and reached 82 % on day 84.
Continuous wetting ended at 56 %, below the 12 h treatment. Moss misted once a day was still green but covered less than
a third of the felt. The order of the treatments was the same in all four chambers.

@cover

## 3.2 Dry mass and elongation

The six-hourly trays gave 19.6 g of green moss, 66 % more than the continuously wet ones (Figure 3), and the least brown
material. Once-daily misting gave almost as much brown as green. Elongation rose with light up to about 70 µmol per
square metre per second and not beyond (Figure 4); the slope under six-hourly misting was more than twice that under
daily misting.

@mass

@light

## 3.3 Model

Equations 1 and 2 explained 91 % of the variance in cover between trays and dates (Table 2). The rate was highest at
<i>b</i> = 10.4 h of wetness per day (9.1--11.9). Adding the number of wet--dry cycles per day to equation 2 did not
improve the fit (likelihood ratio 1.3, <i>p</i> = 0.25): what mattered was how long the shoots were wet, not how often
they dried.

@fit

## 3.4 Film

By day 56 a dark film of cyanobacteria had formed on ten of the twelve continuously wet trays. It was rare elsewhere.
Within the continuous treatment, trays with more film had less moss (rank correlation --0.71).

## 3.5 Survival on the roof

Of the strips from the six-hourly treatment 79 % survived the summer, of those kept wet 46 % (Figure 5). The difference
was largest on the steep roofs, which shed rain at once; at a pitch of 5 degrees, where water stands, there was
none. July 2022 had a run of nineteen days without rain.

@roof

# 4 Discussion

Dry intervals helped this moss. The effect is large, and it came with less water: the six-hourly chamber used 3.1 litres
per tray and week, the continuous one 9.8. Two mechanisms may be at work. A wet surface slows the supply of carbon
dioxide, and equation 2 absorbs this in the factor exp(--<i>h</i>/<i>b</i>). The film is the other: it shades young
shoots and seems to need more than half a day of water (compare Quillmoor and Sashiwe, 2020). We cannot separate the two
here, because they came together in the same chamber. An experiment with a biocide, or with air enriched in carbon
dioxide, would.

The loss under daily misting was expected. Every drying costs the moss some repair, and shoots that were wet for three
hours a day spent a large part of that time recovering. It is tempting to read the optimum of 10.4 h as a
recommendation, but it depends on our temperature. At 20 °C moss dries faster, the same interval gives fewer wet hours,
and growers will have to mist more often to reach the same value.

Lindqvarn (2014) found no benefit from intermittent watering. Her lamps gave 25 µmol per square metre per second, and
Figure 4 suggests that at that light the schedules differ by little more than the error of measurement. The two studies
do not, we think, disagree.

The roof trial was small, but its result is the one that matters to the buyer of a mat. Shoots that have dried many
times carry more of the sugars that protect membranes (Ostrander and Vell, 2009), and it would not be surprising if moss
from a wet shelf had to build them up in its first dry week outdoors, or die. Whether a grower could harden wet-grown
mats by leaving them dry for the last fortnight is an obvious next experiment.

## 4.1 Advice to growers

A chamber that is misted on a timer needs no new equipment. Clip three shoots, count the hours they are wet, and adjust
the interval until the count is near ten. Below 16 °C this will be about six hours. Trays on the top shelf dry first and
should be counted apart. Do not shorten the interval when trays look pale at the second week: ours did too, under every
treatment, and recovered.

## 4.2 Limitations

The experiment used one species from one bank. Chambers, not trays, received the treatments; moving treatments between
chambers every three weeks reduces the problem without removing it. Cover is a poor measure of thickness, which roofers
care about, and 84 days is short beside the fourteen months that a mat is grown before sale.

# 5 Conclusions

Feather moss on shelves should be wet for about ten hours a day and dry for the rest. At 14 °C, misting for 90 s every
six hours achieves this. It gives two thirds more green moss than continuous wetting with a third of the water, keeps
cyanobacteria away, and makes mats that live longer on a steep roof.

# Data and acknowledgements

Photographs, weights and the code of the model are kept at the Hesk Field Station under number HFS-2022-14. We thank
Runa Sveinhart for access to the bank at Sallow Point and the crew of <i>Oarn</i> for carrying slate. The work was paid
for by the Skarrow Roofing Guild, which had no part in the analysis.

# References

ref Brantigge, E. (2019). A conductance clip for single moss shoots. <i>Field Methods</i> 8, 112--119.

ref Hob, J. and Marrisey, L. (2018). Colour retention in roof moss under a daily cycle. <i>Green Roof Letters</i> 5,
20--27.

ref Karsebom, D. (2011). Felt, slate and straw as substrates for moss mats. <i>Northern Horticulture</i> 33, 301--315.

ref Lindqvarn, S. (2014). Light and water in shelf cultures of feather moss. <i>Bryological Notes</i> 41, 77--90.

ref Ostrander, W. and Vell, C. (2009). Living dry: hydration cycles of rootless plants. <i>Annals of Island Botany</i>
27, 1--24.

ref Quillmoor, P. and Sashiwe, N. (2020). Cyanobacterial films in propagation houses. <i>Northern Horticulture</i> 42,
8--19.

ref Tasker-Oyle, M. (2016). Carbon dioxide supply through surface water in mosses. <i>Bryological Notes</i> 43,
145--158.

# Appendix: water and power

Each chamber drew on its own tank, which was weighed on Mondays. What drained from the trays was returned to the tank
through a wool filter, so that Table 3 shows water lost to the air, to the moss and to spills. The continuous chamber
lost most in weeks 7 and 8, when a seal leaked for nine days; without those two weeks its mean would be 9.2 litres.

@tanks

Pumps used 0.4 kWh a week in the six-hourly chamber and 1.3 kWh in the continuous one. Lamps used 21 kWh in every
chamber, so that the saving in power is small beside the saving in water. At the price that the Tolm growers pay for
water, six-hourly misting saves about £3.10 per square metre of finished mat.
"""


def figure(drawing: Flowable, caption: str) -> list[Flowable]:
    return [together([gap(5), drawing, *text(caption, CAPTION)], COLUMN)]


def small_table(caption: str, rows: list[tuple], widths: tuple[float, ...], align: str) -> list[Flowable]:
    grid = table(rows, widths, align, size=9, font="Times-Roman", pad=1.6)
    return [together([*text(caption, CAPTION), grid, gap(8)], COLUMN)]


def chamber() -> Flowable:
    """A cross-section of a growth chamber with the names of its parts."""
    plot = Plot((COLUMN, 150), "", [0, 1], (0, 1), 7.5)
    drawing = plot.drawing
    drawing.contents.clear()
    drawing.add(Rect(LEFT + 20, BOTTOM - 10, 120, 120, fillColor=None, strokeColor=INK))
    for level, y in enumerate((BOTTOM + 2, BOTTOM + 36, BOTTOM + 70)):
        drawing.add(Rect(LEFT + 26, y, 108, 5, fillColor=HexColor("#c9bba0"), strokeColor=None))
        for tuft in range(12):
            size = 3 + (tuft + level) % 3
            drawing.add(Circle(LEFT + 32 + 8.7 * tuft, y + 7, size, fillColor=GREEN, strokeColor=None))
    drawing.add(Rect(LEFT + 38, BOTTOM + 96, 84, 5, fillColor=HexColor("#e3b23c"), strokeColor=None))
    for nozzle in (LEFT + 24, LEFT + 136):
        for y in (BOTTOM + 20, BOTTOM + 54, BOTTOM + 88):
            drawing.add(Circle(nozzle, y, 2.6, fillColor=BLUE, strokeColor=None))
    names = [("lamp", BOTTOM + 98, LEFT + 122), ("mist nozzle", BOTTOM + 54, LEFT + 138)]
    names += [("moss on felt", BOTTOM + 42, LEFT + 128), ("slate shelf", BOTTOM + 4, LEFT + 134)]
    for row, (name, y, x) in enumerate(names):
        end = BOTTOM + 98 - 28 * row
        drawing.add(Line(x, y, LEFT + 156, end, strokeColor=INK, strokeWidth=0.5))
        plot.words(LEFT + 159, end - 2.5, name, "start")
    return drawing


def cover_over_time() -> Flowable:
    def logistic(top: float, rate: float, middle: float) -> list[tuple[float, float]]:
        return [(day, top / (1 + math.exp(-rate * (day - middle)))) for day in range(0, 85, 14)]

    curves = [logistic(60, 0.060, 40), logistic(83, 0.095, 34), logistic(66, 0.085, 39), logistic(33, 0.060, 47)]
    days = [(day, str(day)) for day in range(0, 85, 14)]
    percent, colours = [0, 20, 40, 60, 80, 100], list(SCHEDULES.values())
    return lines((COLUMN, 170), "Cover (%)", days, curves, colours, percent, list(SCHEDULES), "Day", 7.5)


def elongation() -> Flowable:
    rng = random.Random(7)
    plot = Plot((COLUMN, 170), "Elongation (mm per week)", [0, 1, 2, 3, 4, 5], (0, 130), 7.5)
    for slope, colour in ((0.021, BROWN), (0.048, GREEN)):
        light = [rng.uniform(12, 120) for _ in range(26)]
        plot.dots([(x, max(0.1, 0.55 + slope * min(x, 70) + rng.uniform(-0.45, 0.45))) for x in light], colour, 1.7)
        plot.line([(x, 0.55 + slope * min(x, 70)) for x in (8, 70, 124)], colour)
    plot.x_labels([(x, str(x)) for x in range(0, 121, 20)])
    plot.x_title("Light (µmol per square metre per second)")
    plot.legend(["24 h", "6 h"], [BROWN, GREEN])
    return plot.drawing


WATER = [
    ("Quantity", "Mean", "Range"),
    ("pH", "5.9", "5.6--6.3"),
    ("Conductivity (µS/cm)", "41", "33--58"),
    ("Calcium (mg/l)", "2.8", "2.1--3.9"),
    ("Nitrate (mg/l)", "0.6", "0.2--1.1"),
    ("Sodium (mg/l)", "5.2", "3.7--9.4"),
]
TANKS = [
    ("Weeks", "Cont.", "6 h", "12 h", "24 h"),
    ("1--2", "8.9", "2.8", "1.7", "1.0"),
    ("3--4", "9.1", "3.0", "1.6", "0.9"),
    ("5--6", "9.2", "3.1", "1.8", "1.0"),
    ("7--8", "12.8", "3.2", "1.8", "1.1"),
    ("9--10", "9.4", "3.2", "1.9", "1.1"),
    ("11--12", "9.4", "3.3", "1.8", "1.1"),
    ("Mean", "9.8", "3.1", "1.8", "1.0"),
]
FIT = [
    ("Schedule", "h (h/day)", "r (per day)", "K (%)", "Film"),
    ("Continuous", "24.0", "0.060", "60 ± 4", "2.9"),
    ("6 h", "11.2", "0.095", "83 ± 3", "0.6"),
    ("12 h", "6.1", "0.085", "66 ± 4", "0.4"),
    ("24 h", "3.3", "0.060", "33 ± 6", "0.2"),
]


def inserts() -> dict[str, list[Flowable]]:
    """The figures and tables of the paper by the name of their place in the text."""
    dry = [[11.8, 19.6, 14.9, 6.2], [3.1, 2.2, 2.9, 5.4]]
    mass = bars(
        (COLUMN, 150),
        "Dry mass per tray (g)",
        list(SCHEDULES),
        dry,
        [GREEN, BROWN],
        [0, 5, 10, 15, 20, 25],
        ["green", "brown"],
    )
    alive, percent = [[67, 50, 50, 17], [67, 83, 83, 83]], [0, 20, 40, 60, 80, 100]
    names = ["grown wet", "grown with dry intervals"]
    pitch = [f"{degrees}°" for degrees in (5, 15, 30, 45)]
    roof = bars((COLUMN, 160), "Strips alive in October (%)", pitch, alive, [BLUE, GREEN], percent, names)
    return {
        "chamber": figure(
            chamber(),
            "<b>Figure 1.</b> Cross-section of a chamber, 90 cm wide. Each shelf carries four trays, seen here end on.",
        ),
        "water": small_table(
            "<b>Table 1.</b> Composition of the misting water (nine samples).", WATER, (COLUMN - 110, 50, 60), "lcc"
        ),
        "tanks": small_table(
            "<b>Table 3.</b> Water used, litres per tray and week.", TANKS, (COLUMN - 180,) + (45,) * 4, "lcccc"
        ),
        "cover": figure(
            cover_over_time(),
            """<b>Figure 2.</b> Mean cover under the four misting schedules, measured every 14 days. Twelve trays per
            treatment, eleven for 12 h.""",
        ),
        "mass": figure(mass, "<b>Figure 3.</b> Dry mass of green and brown moss per tray on day 84."),
        "light": figure(
            elongation(),
            """<b>Figure 4.</b> Elongation of marked shoots against the light each received, for the shortest and the
            longest interval. Lines are fitted with a break at 70.""",
        ),
        "fit": small_table(
            "<b>Table 2.</b> Hours wet, fitted growth rate and final cover, and mean score of cyanobacterial film.",
            FIT,
            (COLUMN - 190, 50, 54, 48, 38),
            "lcccc",
        ),
        "roof": figure(
            roof, "<b>Figure 5.</b> Survival of mats over one summer on test roofs of four pitches, six strips each."
        ),
    }


def decorate(canvas: Canvas) -> None:
    page = canvas.getPageNumber()
    label(canvas, WIDTH / 2, 30, str(200 + page), "Times-Roman", 9, align="c")
    if page == 1:
        label(canvas, MARGIN, HEIGHT - 36, "Bryological Notes 50 (2023), 201--204", "Times-Italic", 9)
    else:
        label(canvas, MARGIN, HEIGHT - 36, "Arvelund and others", "Times-Italic", 9)
        label(canvas, WIDTH - MARGIN, HEIGHT - 36, "Intermittent misting of feather moss", "Times-Italic", 9, align="r")


def build(path: Path) -> None:
    canvas = open_canvas(path, LETTER, "Intermittent misting of feather moss", "T. Arvelund and others")
    front = {
        "T": style("Times-Bold", 17, 21, "c", spaceAfter=6),
        "A": style("Times-Roman", 11, 14, "c", spaceAfter=2),
        "I": style("Times-Italic", 9, 12, "c", spaceAfter=7),
        "p": style("Times-Roman", 9.5, 12, "j", leftIndent=34, rightIndent=34),
    }
    rest = story(PAPER, LOOKS, inserts())
    while rest:
        decorate(canvas)
        top = HEIGHT - 52
        if canvas.getPageNumber() == 1:
            place(canvas, [(MARGIN, top - 190, WIDTH - 2 * MARGIN, 190)], story(FRONT, front))
            top -= 196
        rest = fill(canvas, [(MARGIN + side * (COLUMN + GUTTER), 50, COLUMN, top - 50) for side in (0, 1)], rest)
        canvas.showPage()
    canvas.save()
