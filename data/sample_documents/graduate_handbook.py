"""A university's handbook for graduate students: rules, dates, fees, a campus map. B5, twelve pages."""

from pathlib import Path

from reportlab.lib.colors import HexColor, white
from reportlab.lib.pagesizes import B5
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable

from . import handbook_text as words
from .charts import bars
from .layout import gap, label, open_canvas, panel, place, rows, story, style, table, write_pages

WIDTH, HEIGHT = B5
PLUM, GOLD, LEAF, SKY, PALE = (HexColor(c) for c in ("#5a2346", "#c49a3a", "#b9cfae", "#a9cbdc", "#f4eef2"))
COLUMN = WIDTH - 100
BOX = [(50, 54, COLUMN, HEIGHT - 112)]
LOOKS = {
    "p": style("Times-Roman", 11.5, 15.4, spaceAfter=6),
    "#": style("Times-Bold", 20, 25, textColor=PLUM, spaceAfter=8),
    "##": style("Times-Bold", 13, 17, textColor=PLUM, spaceBefore=6, spaceAfter=3),
}


def grid(source: str, widths: tuple[float, ...], align: str, size: float = 10.5) -> list[Flowable]:
    cells = rows(source)
    return [table(cells, widths, align, size, "Times-Roman", white, PLUM, PALE, pad=2.8), gap(9)]


def decorate(canvas: Canvas) -> None:
    canvas.setStrokeColor(GOLD)
    canvas.setLineWidth(1.2)
    canvas.line(50, HEIGHT - 44, WIDTH - 50, HEIGHT - 44)
    label(canvas, 50, HEIGHT - 39, "University of Dunmarrow", "Times-Italic", 9.5, PLUM)
    label(canvas, WIDTH - 50, HEIGHT - 39, "Graduate handbook 2025/26", "Times-Italic", 9.5, PLUM, "r")
    label(canvas, WIDTH / 2, 30, str(canvas.getPageNumber()), "Times-Roman", 9.5, PLUM, "c")


def cover(canvas: Canvas) -> None:
    panel(canvas, (0, 0, WIDTH, HEIGHT), PLUM)
    panel(canvas, (30, 30, WIDTH - 60, HEIGHT - 60), white)
    middle, foot = WIDTH / 2, 400
    shield = canvas.beginPath()
    shield.moveTo(middle - 70, foot + 170)
    shield.lineTo(middle + 70, foot + 170)
    shield.lineTo(middle + 70, foot + 80)
    shield.curveTo(middle + 70, foot + 30, middle + 30, foot + 8, middle, foot)
    shield.curveTo(middle - 30, foot + 8, middle - 70, foot + 30, middle - 70, foot + 80)
    shield.close()
    canvas.setFillColor(PLUM)
    canvas.drawPath(shield, stroke=0, fill=1)
    panel(canvas, (middle - 70, foot + 104, 140, 14), GOLD)
    panel(canvas, (middle - 6, foot + 44, 12, 52), white)  # a lighthouse
    panel(canvas, (middle - 10, foot + 38, 20, 7), white)
    panel(canvas, (middle - 9, foot + 88, 18, 9), GOLD, 2)
    for x in (middle - 56, middle + 12):  # two open books
        panel(canvas, (x, foot + 128, 44, 4), white)
        panel(canvas, (x, foot + 138, 44, 4), white)
    label(canvas, middle, 336, "University of Dunmarrow", "Times-Bold", 29, PLUM, "c")
    label(canvas, middle, 306, "The Graduate School", "Times-Roman", 19, PLUM, "c")
    label(canvas, middle, 210, "Handbook for graduate students", "Times-Italic", 19, PLUM, "c")
    label(canvas, middle, 184, "2025/26", "Times-Italic", 19, PLUM, "c")
    label(canvas, middle, 58, "Old Customs House, Dunmarrow", "Times-Roman", 11, PLUM, "c")


def campus(canvas: Canvas) -> None:
    """The page with the map: buildings with letters, the river, paths, trees. The map is 400 by 250 points."""
    decorate(canvas)
    inserts = {"map": [gap(266)], "rooms": grid(words.ROOM_ROWS, (66, COLUMN - 226, 80, 80), "clcc")}
    place(canvas, BOX, story(words.ROOMS, LOOKS, inserts))
    canvas.saveState()
    canvas.translate(50, HEIGHT - 346)
    frame = canvas.beginPath()
    frame.rect(0, 0, COLUMN, 250)
    canvas.clipPath(frame, stroke=0)
    panel(canvas, (0, 0, COLUMN, 250), LEAF)
    canvas.setStrokeColor(SKY)
    canvas.setLineWidth(26)
    canvas.bezier(-20, 20, 130, 58, 260, -10, COLUMN + 20, 36)
    canvas.setStrokeColor(white)
    canvas.setLineWidth(6)
    for x1, y1, x2, y2 in [(200, 250, 200, 62), (20, 148, COLUMN, 148), (300, 148, 300, 62), (98, 148, 98, 62)]:
        canvas.line(x1, y1, x2, y2)
    blocks = {"A": (112, 174, 72, 42), "B": (222, 164, 110, 62), "C": (30, 164, 62, 62), "D": (24, 74, 58, 54)}
    blocks |= {"E": (222, 74, 60, 54), "F": (336, 76, 42, 38), "G": (116, 76, 66, 50)}
    for letter, (x, y, width, height) in blocks.items():
        panel(canvas, (x, y, width, height), PLUM)
        if letter == "C":
            panel(canvas, (x + 14, y + 14, width - 28, height - 28), LEAF)
        ink = PLUM if letter == "C" else white
        label(canvas, x + width / 2, y + height / 2 - 6, letter, "Helvetica-Bold", 17, ink, "c")
    for x, y in [(12, 96), (14, 206), (104, 230), (186, 232), (356, 200), (372, 174), (312, 66), (382, 132), (152, 62)]:
        canvas.setFillColor(HexColor("#6f9a62"))
        canvas.circle(x, y, 7, stroke=0, fill=1)
    label(canvas, 208, 236, "North Gate", "Helvetica", 9, PLUM)
    label(canvas, 250, 12, "River Marrow", "Helvetica-Oblique", 9, PLUM)
    label(canvas, COLUMN - 4, 154, "to the ferry", "Helvetica", 9, PLUM, "r")
    canvas.restoreState()


def build(path: Path) -> None:
    years = ["2020", "2021", "2022", "2023", "2024"]
    outcomes = [[4, 6, 5, 7, 9], [21, 24, 26, 25, 31], [9, 7, 11, 8, 6], [3, 2, 4, 2, 1]]
    names = ["Pass", "Minor corrections", "Major corrections", "Hand in again"]
    colours = [LEAF, SKY, GOLD, PLUM]
    title, ticks = "Outcomes of doctoral vivas by year", [0, 10, 20, 30, 40, 50, 60]
    chart = bars((COLUMN, 170), title, years, outcomes, colours, ticks, names, stacked=True)
    third = COLUMN / 3
    inserts = {
        "contents": grid(words.CONTENTS, (COLUMN - 60, 60), "lr"),
        "dates": grid(words.DATES, (third, third + 10, third - 10), "lll"),
        "fees": grid(words.FEE_ROWS, (COLUMN - 180, 90, 90), "lrr"),
        "form": grid(words.FORM_ROWS, (75, 110, 100, COLUMN - 285), "lccc"),
        "deadlines": grid(words.DEADLINE_ROWS, (third, third - 20, third + 20), "lll"),
        "outcomes": [chart, gap(8)],
        "grants": grid(words.GRANTS, (COLUMN - 200, 100, 100), "lll"),
        "contacts": grid(words.CONTACTS, (100, 133, 105, COLUMN - 338), "lllr"),
    }
    before = [
        words.WELCOME,
        words.CALENDAR,
        words.FEES,
        words.SUPERVISION,
        words.FIELDWORK,
        words.FORM,
        words.DEADLINES,
        words.EXAMINATION,
    ]
    pages = [cover, *(story(page, LOOKS, inserts) for page in before), campus]
    pages += [story(page, LOOKS, inserts) for page in (words.MONEY, words.HELP)]
    write_pages(open_canvas(path, B5, "Graduate handbook 2025/26", "University of Dunmarrow"), pages, BOX, decorate)
