"""A laboratory's price list: dense tables of analyses, methods, limits and prices. A4, seven pages."""

from pathlib import Path

from reportlab.lib.colors import HexColor, white
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable

from .layout import gap, label, open_canvas, panel, rows, story, style, table, write_pages

WIDTH, HEIGHT = A4
TEAL, PALE, INK = HexColor("#0f5e63"), HexColor("#edf4f3"), HexColor("#1d2b2c")
COLUMN = WIDTH - 84
BOX = [(42, 52, COLUMN, HEIGHT - 118)]
LOOKS = {
    "p": style("Helvetica", 9.5, 12.8, textColor=INK, spaceAfter=5),
    "#": style("Helvetica-Bold", 17, 21, textColor=TEAL, spaceAfter=5),
    "##": style("Helvetica-Bold", 11, 14, textColor=TEAL, spaceBefore=7, spaceAfter=3),
}
HEAD = "Code | Analysis | Method | Reporting limit | Sample | Days | £"

FRONT = """
# Price list 2025

Valid from 1 February 2025 until further notice. Prices are in pounds for one sample, without value added tax.

## How to order

Order bottles first: most analyses can only be reported if the sample came in our bottle, with our label, at less than
8 °C. Fill in the order form with the codes from this list, keep the pink copy, and hand the box to the courier before
15:00 from Monday to Thursday. Samples that arrive on a Friday are registered on Monday unless you have ordered
weekend service.

You will receive a registration by e-mail on the day of arrival and the report when all analyses are finished. Reports
are kept for ten years. Samples are kept for four weeks after the report and then destroyed.

## Contents

@contents

## Turnaround

The number of days in the tables counts working days from registration. Faster service must be ordered before the sample
arrives, and is subject to the length of the queue.

@turnaround

## Discounts

@discounts

Discounts are not added together; the best one counts. Screening packages (codes that end in P) are already reduced and
are not discounted further.
"""

TURNAROUND = """
Service | Report after | Surcharge
Standard | as listed | none
Fast | half the days, rounded up | 40 %
Next day | one working day | 100 %
Weekend | Saturday or Sunday is worked | £180 an order
"""

DISCOUNTS = """
Samples in one order | Discount | Or orders in a year | Discount
10--24 | 5 % | over £5,000 | 8 %
25--99 | 12 % | over £20,000 | 15 %
100 and more | 18 % | schools and universities | 20 %
"""

CONTENTS = """
Section | Codes | Page | Section | Codes | Page
Water | W | 2 | Metals and elements | M | 5
Soil, compost and sediment | S | 3 | Microbiology | B | 6
Food and drink | F | 4 | Bottles, sampling, courier | X | 7
"""

WATER = """
W101 | pH | KM-001 | -- | 50 ml | 1 | 6.50
W102 | Conductivity at 25 °C | KM-001 | 5 µS/cm | 50 ml | 1 | 6.50
W103 | Turbidity | KM-003 | 0.1 NTU | 100 ml | 1 | 7.00
W104 | Colour | KM-004 | 2 mg/l Pt | 100 ml | 2 | 8.00
W105 | Total hardness | KM-011 | 0.1 °dH | 100 ml | 3 | 11.50
W106 | Alkalinity | KM-012 | 0.05 mmol/l | 100 ml | 3 | 10.00
W107 | Chloride | KM-021 | 0.5 mg/l | 50 ml | 3 | 12.00
W108 | Sulphate | KM-021 | 0.5 mg/l | 50 ml | 3 | 12.00
W109 | Nitrate | KM-021 | 0.2 mg/l | 50 ml | 3 | 12.00
W110 | Nitrite | KM-022 | 0.01 mg/l | 50 ml | 2 | 13.50
W111 | Ammonium | KM-023 | 0.02 mg/l | 50 ml | 2 | 13.50
W112 | Phosphate, dissolved | KM-024 | 0.01 mg/l | 50 ml | 3 | 14.00
W113 | Phosphorus, total | KM-025 | 0.02 mg/l | 100 ml | 5 | 19.00
W114 | Nitrogen, total | KM-026 | 0.1 mg/l | 100 ml | 5 | 19.50
W115 | Fluoride | KM-027 | 0.05 mg/l | 50 ml | 3 | 14.50
W116 | Cyanide, free | KM-031 | 0.005 mg/l | 250 ml, NaOH | 5 | 34.00
W117 | Chemical oxygen demand | KM-034 | 5 mg/l | 100 ml | 3 | 21.00
W118 | Biochemical oxygen demand, 5 days | KM-035 | 1 mg/l | 1 l | 8 | 29.00
W119 | Organic carbon, total | KM-036 | 0.3 mg/l | 100 ml | 4 | 24.00
W120 | Suspended solids | KM-037 | 1 mg/l | 1 l | 3 | 12.50
W121 | Oil index | KM-041 | 0.05 mg/l | 1 l, glass | 7 | 58.00
W122 | Phenol index | KM-042 | 0.01 mg/l | 500 ml, glass | 7 | 47.00
W123 | Chlorine, free and total | KM-043 | 0.03 mg/l | on site | 1 | 18.00
W124 | Pesticides, 84 substances | KM-051 | 0.02 µg/l | 2 x 1 l, glass | 10 | 196.00
W125 | Solvents, 31 substances | KM-052 | 0.1 µg/l | 2 x 40 ml | 7 | 88.00
W126 | Fluorinated compounds, 20 | KM-053 | 1 ng/l | 2 x 250 ml | 12 | 174.00
W130P | Private well, basic package | -- | -- | well set | 5 | 79.00
W131P | Private well, full package | -- | -- | well set | 10 | 248.00
W132P | Swimming pool package | -- | -- | pool set | 4 | 64.00
W133P | Aquarium and pond package | -- | -- | 500 ml | 4 | 42.00
"""

SOIL = """
S201 | Drying and sieving to 2 mm | KM-101 | -- | 500 g | 3 | 9.00
S202 | Dry matter | KM-102 | 0.1 % | 50 g | 2 | 7.00
S203 | pH in water | KM-103 | -- | 50 g | 2 | 8.00
S204 | pH in calcium chloride | KM-103 | -- | 50 g | 2 | 8.00
S205 | Conductivity, 1:5 extract | KM-104 | 10 µS/cm | 50 g | 2 | 8.50
S206 | Loss on ignition | KM-105 | 0.1 % | 50 g | 3 | 11.00
S207 | Organic carbon | KM-106 | 0.05 % | 20 g | 5 | 23.00
S208 | Carbonate | KM-107 | 0.1 % | 20 g | 5 | 17.50
S209 | Nitrogen, total | KM-108 | 0.02 % | 20 g | 5 | 22.00
S210 | Nitrate, fresh soil | KM-109 | 0.5 mg/kg | 200 g, frozen | 3 | 18.00
S211 | Phosphorus, available | KM-110 | 2 mg/kg | 50 g | 5 | 16.00
S212 | Potassium, available | KM-110 | 5 mg/kg | 50 g | 5 | 14.00
S213 | Magnesium, available | KM-110 | 5 mg/kg | 50 g | 5 | 14.00
S214 | Grain size, sieve | KM-121 | 0.063 mm | 1 kg | 7 | 46.00
S215 | Grain size, sieve and pipette | KM-122 | 0.002 mm | 1 kg | 12 | 82.00
S216 | Bulk density, core | KM-123 | -- | core ring | 4 | 15.00
S217 | Water held at three pressures | KM-124 | -- | core ring | 20 | 118.00
S218 | Cation exchange capacity | KM-125 | 0.5 cmol/kg | 50 g | 10 | 49.00
S219 | Hydrocarbons C10--C40 | KM-131 | 20 mg/kg | 250 g, glass | 7 | 62.00
S220 | Aromatic hydrocarbons, 16 | KM-132 | 0.02 mg/kg | 250 g, glass | 8 | 97.00
S221 | Chlorinated biphenyls, 7 | KM-133 | 0.005 mg/kg | 250 g, glass | 10 | 112.00
S222 | Respiration, 4 days | KM-141 | 0.2 mg/g | 2 kg, fresh | 8 | 74.00
S223 | Cress test for compost | KM-142 | -- | 2 l | 10 | 38.00
S224 | Foreign matter in compost | KM-143 | 0.01 % | 10 l | 5 | 44.00
S225 | Weed seeds in compost | KM-144 | 0.1 per l | 3 l | 25 | 52.00
S230P | Garden soil package | -- | -- | 500 g | 7 | 45.00
S231P | Farm soil package | -- | -- | 500 g | 7 | 58.00
S232P | Compost package | -- | -- | 20 l | 25 | 215.00
S233P | Playground package | -- | -- | 1 kg, glass | 10 | 186.00
"""

FOOD = """
F301 | Water content | KM-201 | 0.1 % | 50 g | 2 | 12.00
F302 | Ash | KM-202 | 0.05 % | 50 g | 3 | 13.00
F303 | Fat | KM-203 | 0.1 % | 100 g | 4 | 26.00
F304 | Fatty acids, profile | KM-204 | 0.1 % | 100 g | 7 | 69.00
F305 | Protein | KM-205 | 0.1 % | 50 g | 4 | 25.00
F306 | Sugars, five | KM-206 | 0.1 % | 50 g | 5 | 48.00
F307 | Starch | KM-207 | 0.5 % | 50 g | 6 | 44.00
F308 | Dietary fibre | KM-208 | 0.5 % | 100 g | 10 | 92.00
F309 | Salt, from sodium | KM-209 | 0.01 % | 50 g | 4 | 19.00
F310 | Energy, calculated | -- | -- | -- | -- | 4.00
F311 | Acidity | KM-211 | 0.02 % | 50 g | 2 | 12.50
F312 | Water activity | KM-212 | 0.03 | 30 g | 2 | 17.00
F313 | Peroxide value of oil | KM-213 | 0.1 meq/kg | 50 g, dark | 3 | 24.00
F314 | Alcohol | KM-221 | 0.05 % | 200 ml | 3 | 22.00
F315 | Extract and original gravity | KM-222 | 0.05 % | 200 ml | 3 | 24.00
F316 | Bitterness of beer | KM-223 | 1 unit | 200 ml | 3 | 21.00
F317 | Sulphite | KM-224 | 5 mg/kg | 100 g | 4 | 31.00
F318 | Caffeine | KM-231 | 5 mg/kg | 50 g | 5 | 46.00
F319 | Histamine in fish | KM-232 | 5 mg/kg | 200 g, frozen | 4 | 55.00
F320 | Volatile nitrogen in fish | KM-233 | 2 mg/100 g | 200 g, frozen | 2 | 33.00
F321 | Gluten | KM-241 | 5 mg/kg | 100 g | 5 | 76.00
F322 | Milk protein | KM-242 | 1 mg/kg | 100 g | 5 | 76.00
F323 | Peanut | KM-243 | 1 mg/kg | 100 g | 5 | 76.00
F324 | Mustard, sesame, lupin, each | KM-244 | 2 mg/kg | 100 g | 7 | 84.00
F325 | Moulds' toxins, eleven | KM-251 | 0.5 µg/kg | 500 g | 8 | 158.00
F326 | Acrylamide | KM-252 | 20 µg/kg | 200 g | 10 | 134.00
F330P | Nutrition label, short | -- | -- | 500 g | 10 | 189.00
F331P | Nutrition label, long | -- | -- | 500 g | 12 | 286.00
F332P | Honey package | -- | -- | 250 g | 10 | 142.00
"""

METALS = """
M401 | Digestion, soil, aqua regia | KM-301 | -- | 5 g | 2 | 18.00
M402 | Digestion, food, microwave | KM-302 | -- | 5 g | 2 | 21.00
M403 | Filtration 0.45 µm | KM-303 | -- | 100 ml | 1 | 5.00
M411 | Aluminium | KM-311 | 5 µg/l | 50 ml, acid | 4 | 11.00
M412 | Antimony | KM-312 | 0.1 µg/l | 50 ml, acid | 4 | 13.00
M413 | Arsenic | KM-312 | 0.1 µg/l | 50 ml, acid | 4 | 13.00
M414 | Arsenic, by species | KM-313 | 0.5 µg/l | 100 ml | 12 | 128.00
M415 | Barium | KM-311 | 1 µg/l | 50 ml, acid | 4 | 11.00
M416 | Boron | KM-311 | 10 µg/l | 50 ml, acid | 4 | 11.00
M417 | Cadmium | KM-312 | 0.02 µg/l | 50 ml, acid | 4 | 13.00
M418 | Calcium | KM-311 | 50 µg/l | 50 ml, acid | 4 | 9.50
M419 | Chromium, total | KM-312 | 0.2 µg/l | 50 ml, acid | 4 | 13.00
M420 | Chromium, hexavalent | KM-314 | 1 µg/l | 100 ml | 3 | 36.00
M421 | Copper | KM-312 | 0.2 µg/l | 50 ml, acid | 4 | 13.00
M422 | Iron | KM-311 | 5 µg/l | 50 ml, acid | 4 | 9.50
M423 | Lead | KM-312 | 0.05 µg/l | 50 ml, acid | 4 | 13.00
M424 | Magnesium | KM-311 | 20 µg/l | 50 ml, acid | 4 | 9.50
M425 | Manganese | KM-311 | 1 µg/l | 50 ml, acid | 4 | 9.50
M426 | Mercury | KM-315 | 0.01 µg/l | 100 ml, glass | 5 | 27.00
M427 | Methyl mercury | KM-316 | 1 µg/kg | 50 g, frozen | 15 | 164.00
M428 | Nickel | KM-312 | 0.2 µg/l | 50 ml, acid | 4 | 13.00
M429 | Potassium | KM-311 | 50 µg/l | 50 ml, acid | 4 | 9.50
M430 | Selenium | KM-312 | 0.5 µg/l | 50 ml, acid | 4 | 14.50
M431 | Silver | KM-312 | 0.05 µg/l | 50 ml, acid | 4 | 14.50
M432 | Sodium | KM-311 | 50 µg/l | 50 ml, acid | 4 | 9.50
M433 | Tin | KM-312 | 0.1 µg/l | 50 ml, acid | 4 | 14.50
M434 | Uranium | KM-312 | 0.01 µg/l | 50 ml, acid | 4 | 16.00
M435 | Zinc | KM-311 | 5 µg/l | 50 ml, acid | 4 | 11.00
M440P | Heavy metals, eight | KM-312 | as above | 50 ml, acid | 5 | 59.00
M441P | All elements, thirty-two | KM-317 | as above | 100 ml, acid | 6 | 124.00
"""

MICRO = """
B501 | Colony count at 22 °C | KM-401 | 1 per ml | 250 ml, sterile | 4 | 12.00
B502 | Colony count at 36 °C | KM-401 | 1 per ml | 250 ml, sterile | 3 | 12.00
B503 | Coliform bacteria | KM-402 | 0 in 100 ml | 250 ml, sterile | 3 | 17.00
B504 | Escherichia coli | KM-402 | 0 in 100 ml | 250 ml, sterile | 3 | 17.00
B505 | Enterococci | KM-403 | 0 in 100 ml | 250 ml, sterile | 3 | 18.00
B506 | Clostridium perfringens | KM-404 | 0 in 100 ml | 250 ml, sterile | 3 | 24.00
B507 | Pseudomonas aeruginosa | KM-405 | 0 in 100 ml | 250 ml, sterile | 4 | 22.00
B508 | Legionella, culture | KM-406 | 100 in 1 l | 1 l, sterile | 12 | 58.00
B509 | Legionella, rapid | KM-407 | 200 in 1 l | 1 l, sterile | 2 | 86.00
B510 | Algae, microscope count | KM-411 | 10 per ml | 500 ml, dark | 5 | 73.00
B511 | Cyanobacteria, pigment | KM-412 | 0.5 µg/l | 1 l, dark | 3 | 39.00
B512 | Microcystins | KM-413 | 0.1 µg/l | 250 ml, glass | 6 | 98.00
B521 | Total count, food | KM-421 | 10 per g | 50 g | 4 | 15.00
B522 | Yeasts and moulds | KM-422 | 10 per g | 50 g | 6 | 19.00
B523 | Lactic acid bacteria | KM-423 | 10 per g | 50 g | 5 | 19.00
B524 | Enterobacteria | KM-424 | 10 per g | 50 g | 3 | 18.00
B525 | Staphylococcus aureus | KM-425 | 10 per g | 50 g | 4 | 23.00
B526 | Bacillus cereus | KM-426 | 10 per g | 50 g | 4 | 23.00
B527 | Salmonella | KM-427 | 0 in 25 g | 100 g | 5 | 29.00
B528 | Salmonella, rapid | KM-428 | 0 in 25 g | 100 g | 2 | 44.00
B529 | Listeria monocytogenes | KM-429 | 0 in 25 g | 100 g | 6 | 36.00
B530 | Campylobacter | KM-430 | 0 in 25 g | 100 g | 6 | 41.00
B531 | Vibrio in shellfish | KM-431 | 0 in 25 g | 200 g, chilled | 6 | 52.00
B532 | Norovirus in oysters | KM-432 | 50 copies per g | 12 oysters | 7 | 189.00
B541 | Surface swab, total count | KM-441 | 1 per cm² | swab | 4 | 13.00
B542 | Air, settle plate | KM-442 | 1 per plate | plate | 5 | 14.50
B543 | Mould, name of the species | KM-443 | -- | culture or tape | 14 | 68.00
B550P | Drinking water package | -- | -- | 500 ml, sterile | 4 | 61.00
B551P | Kitchen hygiene package | -- | -- | 10 swabs | 5 | 119.00
"""

SUPPLIES = """
X601 | Bottle, plastic, 500 ml | each | 1.20
X602 | Bottle, glass, brown, 1 l | each | 3.40
X603 | Bottle, sterile, with thiosulphate, 250 ml | each | 2.10
X604 | Tube with nitric acid, 50 ml | each | 1.60
X605 | Well set (six bottles, box, cool pack) | set | 14.00
X606 | Pool set | set | 11.00
X607 | Core ring, steel, 100 ml, returned | loan, a month | 4.00
X608 | Swabs, ten, with neutraliser | pack | 18.50
X609 | Cool box, 24 l, with packs | loan, a week | 6.00
X610 | Order forms, pad of 50 | pad | free
"""

SAMPLING = """
X621 | Sampler, first hour on site | hour | 74.00
X622 | Sampler, each further half hour | half hour | 33.00
X623 | Travel by van | km | 0.85
X624 | Travel to the islands, ferry at cost | day | 120.00
X625 | Boat with crew, sheltered water | half day | 390.00
X626 | Groundwater pump | day | 65.00
X627 | Automatic sampler, 24 bottles | week | 210.00
X628 | Measurement of flow | point | 48.00
"""

DELIVERY = """
X641 | Courier, mainland, before 10:00 | box | 16.00
X642 | Courier, mainland, by end of day | box | 9.50
X643 | Box by ferry, Tolmhaven or Kirkness office | box | 7.00
X644 | Report on paper | copy | 5.00
X645 | Report in another language | page | 28.00
X646 | Opinion on the results, signed | hour | 112.00
X647 | Smallest order | order | 35.00
X648 | Change of an order after registration | order | 15.00
"""

LAST = """
# Bottles, sampling and courier

Bottles are free for the analyses ordered with them if they come back within two months.

## Bottles and boxes

@supplies

## Sampling by our staff

@sampling

## Courier, reports and other charges

@delivery

Box offices: Dunmarrow, Ironworks Lane 7; Tolmhaven, harbour office, West Quay; Kirkness, at the pier. Boxes left on the
islands by noon are in the laboratory at seven the next morning, if the boat sails.
"""

INTROS = {
    "Water": """Ground, surface, drinking, pool and waste water. Salt water and brine on request: most reporting
    limits are then five times higher. For metals see page 5, for bacteria page 6.""",
    "Soil, compost and sediment": """Prices include drying at 40 °C where the method needs it. Sediments are charged
    like soils; add S201 if the sample contains stones. Metals in soil need the digestion M401 on page 5.""",
    "Food and drink": """Prices include grinding of up to 500 g. Frozen samples must arrive frozen. Please tell us about
    nuts, fish and shellfish on the order form, so that they can be opened in the right room.""",
    "Metals and elements": """Reporting limits are for clear water. For solids add a digestion and multiply the limit by
    0.5 to have µg per kg. Dissolved metals must be filtered on site or on the day of arrival (M403).""",
    "Microbiology": """Samples must arrive within 24 hours, at 2 to 8 °C, in sterile bottles with thiosulphate. They are
    accepted until Thursday noon. Fast and next-day service is not possible where bacteria have to grow.""",
}


def section(title: str, body: str) -> list[Flowable]:
    cells = rows(HEAD) + rows(body)
    widths = (44, 166, 50, 78, COLUMN - 412, 30, 44)
    grid = table(cells, widths, "llllllr", 9, head=white, head_fill=TEAL, stripe=PALE, pad=3.8)
    return [*story(f"# {title}\n\n{INTROS[title]}", LOOKS), gap(3), grid]


def charges(body: str) -> list[Flowable]:
    cells = rows("Code | Article or service | Unit | £") + rows(body)
    return [
        table(cells, (50, COLUMN - 230, 110, 70), "lllr", 9, head=white, head_fill=TEAL, stripe=PALE, pad=2.3),
        gap(5),
    ]


def decorate(canvas: Canvas) -> None:
    panel(canvas, (0, HEIGHT - 8, WIDTH, 8), TEAL)
    label(canvas, 42, HEIGHT - 38, "Keldmoor Analytical", "Helvetica-Bold", 12, TEAL)
    label(
        canvas, WIDTH - 42, HEIGHT - 38, "Ironworks Lane 7, Dunmarrow   tel. 01632 960 616", "Helvetica", 8.5, INK, "r"
    )
    label(canvas, 42, 30, "Price list 2025, without value added tax", "Helvetica", 8, INK)
    label(canvas, WIDTH - 42, 30, f"Page {canvas.getPageNumber()} of 7", "Helvetica", 8, INK, "r")


def build(path: Path) -> None:
    def small(body: str, widths: tuple[float, ...], align: str) -> list[Flowable]:
        return [table(rows(body), widths, align, 9.5, head=white, head_fill=TEAL, stripe=PALE, pad=3), gap(6)]

    quarter, half = COLUMN / 4, COLUMN / 2
    front = {
        "contents": small(CONTENTS, (half - 90, 45, 45) * 2, "lcclcc"),
        "turnaround": small(TURNAROUND, (120, COLUMN - 240, 120), "llr"),
        "discounts": small(DISCOUNTS, (quarter,) * 4, "lclc"),
    }
    last = {"supplies": charges(SUPPLIES), "sampling": charges(SAMPLING), "delivery": charges(DELIVERY)}
    bodies = zip(INTROS, (WATER, SOIL, FOOD, METALS, MICRO), strict=True)
    pages = [story(FRONT, LOOKS, front), *(section(title, body) for title, body in bodies), story(LAST, LOOKS, last)]
    write_pages(open_canvas(path, A4, "Price list 2025", "Keldmoor Analytical"), pages, BOX, decorate)
