"""Typewritten council minutes of 1974, drawn and then scanned: page images only, no text layer. A4, six pages."""

import io
import random
from pathlib import Path

import pypdfium2
from PIL import Image, ImageChops, ImageFilter
from reportlab.lib.pagesizes import A4
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from .layout import open_canvas

WIDTH, HEIGHT = A4
DPI = 120
LEFT, TOP, SIZE, LEADING = 68, HEIGHT - 72, 11, 16.4

PAGES = [
    """
                         BURGH  OF  TOLMHAVEN

          MINUTES of the ORDINARY MEETING of the TOWN COUNCIL
       held in the Court Room on Tuesday, 12th March, 1974, at 7 p.m.


  PRESENT:    Provost Aldous Merrikan, in the Chair.
              Bailies E. Tarrow and Mrs. J. Pengarth.
              Councillors Cleave, Dunsettle, Hoskarth, Miss Ibley,
              Lorne-Ashe and Wrayburn.

  ATTENDING:  H. Dunwardie, Town Clerk.
              S. Collop, Burgh Surveyor.
              Captain R. Fennick, Harbour Master (items 3 and 4).

  APOLOGIES:  Councillor Thrale, who is in hospital.  The Clerk was
              asked to send flowers.


  1.  MINUTES.
      The Minutes of the meeting of 12th February were taken as read
      and signed, after the word "herring" in item 6 had been changed
      to "hearing".

  2.  MATTERS ARISING.
      (a) Bus shelter at the Cross.  The Surveyor reported that the
          glass had arrived but did not fit.  It would be exchanged
          at no cost to the Burgh.
      (b) Town clock.  Mr. Abel Quince had repaired the strike and
          declined to send a bill.  The Council recorded its thanks.
      (c) Lost keys of the Mortuary.  Found.
      (d) Twinning.  No answer had come from the Mayor of Saltvik.
          Bailie Tarrow thought that the letter should be sent again
          with a stamp on it.
""",
    """
  3.  HARBOUR DUES.
      The Harbour Master submitted that dues had not been raised since
      1969, that the dredger had cost twice what was foreseen, and that
      the Burgh was now cheaper than any port on the mainland.  He
      proposed the following, to run from 1st May, 1974:

         ------------------------------------------------------
                                             Present   Proposed
         ------------------------------------------------------
         Fishing boats under 40 ft., year    £ 6.00    £ 8.50
         Fishing boats over 40 ft., year     £11.00    £15.00
         Cargo, each ton landed                 12p       16p
         Yachts, each night                     50p       90p
         Yachts, each week                   £ 2.50    £ 4.50
         Passenger steamers, each call       £ 3.00    £ 3.00
         Use of crane, each hour             £ 1.20    £ 2.00
         Fresh water, 100 gallons                8p       10p
         ------------------------------------------------------

      Councillor Cleave said that fishermen had had two poor winters.
      He moved that boats under 40 ft. pay £7.00.  Miss Ibley seconded.
      For the amendment 5, against 4.  The rest was agreed without a
      vote.

  4.  HARBOUR CRANE.
      The crane on the West Quay failed its test on 20th February: the
      jib is cracked at the second rivet.  It may lift one ton until
      it is repaired, and three tons after.  Two prices had been asked.
      Messrs. Garrick & Voe offered £640 in nine weeks, the Dunmarrow
      Ironworks £585 in sixteen.  The Council accepted Garrick & Voe,
      because the season begins in June.
""",
    """
  5.  PROPOSED BURGH HALL.
      The Surveyor laid on the table the sketch plan that follows this
      page.  The site is the old net store in Capstan Street, which the
      Burgh has owned since 1951.  The walls are sound.  The roof and
      all the floors must come out.

      The plan has a main hall for 220 persons seated, a stage, a small
      committee room, a kitchen and a room for the library van to
      unload.  It has been drawn so that the hall can be used while the
      library is shut and the other way about.

      Estimate:      Roof, slated                       £ 7,400
                     Floors and stage                     4,150
                     Heating by oil                       2,900
                     Kitchen and lavatories               2,250
                     Wiring and lamps                     1,300
                     Chairs, 220                          1,100
                     Fees and sundries                    1,400
                                                        -------
                                                        £20,500
                                                        =======

      The Clerk said that a grant of one half could be expected if the
      application reached the Ministry before 30th June.

      Bailie Mrs. Pengarth asked why the stage was on the north side,
      where the draught is.  The Surveyor replied that the van could
      not turn in the lane to the south.  Councillor Wrayburn wished it
      noted that the burgh had managed without a hall since the fire of
      1938 and had been none the worse.

      Moved by Councillor Lorne-Ashe, seconded by Councillor Hoskarth,
      that the Council apply for the grant.  For 7, against 1 (Wrayburn),
      not voting 1.  CARRIED.
""",
    """
            BURGH HALL, CAPSTAN STREET  -  SKETCH PLAN, GROUND FLOOR
                   Scale 1 inch to 11 feet.     S. Collop, 2/3/74
""",
    """
  6.  FINANCE.
      The Treasurer's statement for the month of February, 1974:

         ------------------------------------------------------
         RECEIPTS                             Month      1973-74
         ------------------------------------------------------
         Rates                               £2,918      £31,406
         Harbour dues                           411        6,872
         Rents of houses                      1,276       13,940
         Baths and wash-house                    58          702
         Interest                                37          395
                                             ------      -------
                                             £4,700      £53,315
         ------------------------------------------------------
         PAYMENTS
         ------------------------------------------------------
         Wages                               £2,104      £22,870
         Harbour and dredging                   960       12,415
         Roads                                  388        6,030
         Lighting                               214        2,127
         Houses, repairs                        571        5,488
         Loans                                  650        7,150
                                             ------      -------
                                             £4,887      £56,080
         ------------------------------------------------------

      The excess of payments is due to the dredger, which will not be
      needed again for six years.  The rate for 1974-75 was fixed at
      41 pence in the pound (last year 37 pence).

  7.  WATER.
      The reservoir stands at eleven feet, two feet below the sill.  No
      restriction is needed before June.  Chlorine has been complained
      of in Shore Road; the dose will be halved for a fortnight.
""",
    """
  8.  ROADS AND LIGHTING.
      (a) Six new lamps will be put up in Shore Road between the chapel
          and the slip, at £31 each.
      (b) The Surveyor will ask Mr. Oddie to cut back his fuchsia, which
          hides the stop sign at Kirk Brae.
      (c) Parking on the West Quay is forbidden on sailing days from
          one hour before the steamer until she has left.

  9.  COMPLAINTS.
      (a) Smell of the meal factory: 14 letters.  The manager will shut
          the south doors when the wind is in the north.
      (b) A goat in the cemetery.  The owner is known to the Council and
          has been spoken to.
      (c) Noise of the youth club: 2 letters.  The club will close its
          windows at nine and its doors at ten.

 10.  REGATTA.
      The regatta will be held on Saturday, 27th July.  A sum of £75 was
      voted for prizes and for the hire of a loudspeaker.

 11.  NEXT MEETING.
      Tuesday, 9th April, 1974, at 7 p.m.

      The meeting closed at 9.40 p.m.



      Signed ............................  Provost

             ............................  Town Clerk
""",
]


def type_page(canvas: Canvas, words: str, rng: random.Random) -> None:
    """Type with a worn machine: each letter is a little off its line and unevenly black."""
    canvas.setFont("Courier", SIZE)
    advance = 0.6 * SIZE
    for row, line in enumerate(words.strip("\n").split("\n")):
        for column, letter in enumerate(line):
            if letter != " ":
                canvas.setFillGray(rng.uniform(0.0, 0.22))
                canvas.drawString(LEFT + column * advance, TOP - row * LEADING + rng.uniform(-0.45, 0.45), letter)


def draw_plan(canvas: Canvas) -> None:
    """The floor plan of page 4: walls, doors and handwritten room names."""
    left, bottom, unit = 92.0, 190.0, 6.6  # points per foot
    canvas.setStrokeGray(0.15)

    def room(x: float, y: float, w: float, h: float, *names: str) -> None:
        canvas.setLineWidth(2.6)
        canvas.rect(left + x * unit, bottom + y * unit, w * unit, h * unit)
        canvas.setFillGray(0.15)
        canvas.setFont("Courier-Oblique", 10)
        for row, name in enumerate(names):
            middle = bottom + (y + h / 2) * unit + 12 * (len(names) / 2 - row) - 9
            canvas.drawCentredString(left + (x + w / 2) * unit, middle, name)

    room(0, 20, 42, 48, "MAIN HALL", "42 ft. x 48 ft.", "220 seats")
    room(0, 68, 42, 14, "STAGE", "2 ft. 6 in. above floor")
    room(42, 52, 20, 30, "LIBRARY", "STORE AND", "VAN BAY")
    room(42, 36, 20, 16, "COMMITTEE", "ROOM")
    room(42, 20, 20, 16, "KITCHEN")
    room(0, 4, 14, 16, "CLOAKS")
    room(14, 4, 28, 16, "ENTRANCE", "HALL")
    room(42, 12, 20, 8, "MEN")
    room(42, 4, 20, 8, "WOMEN")
    doors = [
        (25, 4, 6, 0),
        (25, 20, 6, 0),
        (14, 9, 0, 4),
        (42, 26, 0, 5),
        (42, 42, 0, 4),
        (62, 62, 0, 11),
        (42, 14, 0, 4),
        (42, 5, 0, 4),
    ]
    for x, y, w, h in doors:  # a gap in the wall and the swing of the leaf
        x, y = left + x * unit, bottom + y * unit
        canvas.setStrokeGray(1)
        canvas.setLineWidth(4)
        canvas.line(x, y, x + w * unit, y + h * unit)
        canvas.setStrokeGray(0.15)
        canvas.setLineWidth(0.8)
        canvas.line(x, y, x + (w * 0.7 + h * 0.7) * unit, y + (h * 0.7 + w * 0.7) * unit)
    canvas.setLineWidth(0.7)
    for y in range(24, 66, 4):  # rows of chairs
        canvas.setDash(3, 4)
        for x in (4, 24):
            if not 38 < y < 52:
                canvas.line(left + x * unit, bottom + y * unit, left + (x + 14) * unit, bottom + y * unit)
    canvas.setDash()
    north = left + 66 * unit, bottom + 72 * unit
    canvas.line(north[0], north[1], north[0], north[1] + 48)
    canvas.line(north[0] - 5, north[1] + 36, north[0], north[1] + 48)
    canvas.line(north[0] + 5, north[1] + 36, north[0], north[1] + 48)
    canvas.drawCentredString(north[0], north[1] + 52, "N")
    canvas.drawCentredString(left + 31 * unit, bottom - 4, "C A P S T A N    S T R E E T")
    canvas.drawCentredString(left + 31 * unit, bottom - 40, "Van bay to be entered from Net Lane (east side).")


def draw_stamp(canvas: Canvas) -> None:
    canvas.saveState()
    canvas.translate(430, 200)
    canvas.rotate(14)
    canvas.setStrokeGray(0.45)
    canvas.setFillGray(0.45)
    canvas.setLineWidth(2)
    canvas.circle(0, 0, 46)
    canvas.circle(0, 0, 34)
    canvas.setFont("Helvetica-Bold", 9)
    for row, words in enumerate(("RECEIVED", "10 APR 1974", "ARCHIVE")):
        canvas.drawCentredString(0, 10 - 13 * row, words)
    canvas.restoreState()


def scan(page: Image.Image, rng: random.Random) -> Image.Image:
    """Scan a clean page on an old flatbed scanner: skew, grey paper, speckle, soft edges, holes."""
    width, height = page.size
    page = page.filter(ImageFilter.GaussianBlur(0.5))
    page = page.rotate(rng.uniform(-1.3, 1.3), resample=Image.Resampling.BICUBIC, fillcolor=255)
    page = page.point(lambda level: 32 + level * 192 // 255)
    grain = Image.frombytes("L", (width // 2, height // 2), rng.randbytes((width // 2) * (height // 2)))
    grain = grain.resize(page.size, Image.Resampling.BILINEAR).point(lambda level: level // 16)
    shade = Image.linear_gradient("L").rotate(90).resize(page.size).point(lambda level: level // 14)
    page = ImageChops.subtract(ImageChops.add(page, grain), shade)
    for hole in (0.28, 0.72):
        spot = Image.new("L", (26, 26), 70).filter(ImageFilter.GaussianBlur(1))
        mask = Image.radial_gradient("L").resize((26, 26)).point(lambda level: 255 if level < 170 else 0)
        page.paste(spot, (24, int(height * hole)), mask)
    return page


def build(path: Path) -> None:
    rng = random.Random(1974)
    clean = io.BytesIO()
    canvas = open_canvas(clean, A4, "Minutes", "Town Clerk")
    for number, words in enumerate(PAGES, 1):
        type_page(canvas, words, rng)
        if number == 4:
            draw_plan(canvas)
        else:
            canvas.setFillGray(0.2)
            canvas.drawCentredString(WIDTH / 2, 44, f"- {number} -")
        if number == len(PAGES):
            draw_stamp(canvas)
        canvas.showPage()
    canvas.save()

    scanned = open_canvas(path, A4, "Scanned minutes", "Tolmhaven archive")
    with pypdfium2.PdfDocument(clean.getvalue()) as source:
        for page in source:
            image = scan(page.render(scale=DPI / 72, grayscale=True).to_pil().convert("L"), rng)
            jpeg = io.BytesIO()
            image.save(jpeg, "JPEG", quality=32, optimize=True)
            scanned.drawImage(ImageReader(io.BytesIO(jpeg.getvalue())), 0, 0, WIDTH, HEIGHT)
            scanned.showPage()
    scanned.save()
