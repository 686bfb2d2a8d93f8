"""The annual report of a ferry company: tables, bar charts, line charts and accounts that add up. A4, ten pages."""

from pathlib import Path

from reportlab.lib.colors import HexColor, white
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable

from .charts import bars, lines, pie
from .layout import bullets, gap, label, open_canvas, panel, style, table, text, write_pages

NAVY, TEAL, SAND, RUST, PALE = (HexColor(c) for c in ("#12304d", "#2d7f8f", "#d9a441", "#b4512f", "#eaf1f4"))
WIDTH, HEIGHT = A4
BODY = style("Helvetica", 10.5, 15.5, spaceAfter=8)
NOTE = style("Helvetica", 8.5, 11.5, spaceAfter=4)
H1 = style("Helvetica-Bold", 20, 26, textColor=NAVY, spaceAfter=12)
H2 = style("Helvetica-Bold", 12, 16, textColor=TEAL, spaceBefore=8, spaceAfter=4)
BOX = [(56, 62, WIDTH - 112, HEIGHT - 132)]
COLUMN = WIDTH - 112

ROUTES = ["Dunmarrow--Tolmhaven", "Dunmarrow--Kirkness", "Tolmhaven--Hesk", "Tolmhaven--Little Oarn"]
PASSENGERS = [
    (171_240, 203_880, 214_310),
    (88_450, 104_720, 109_060),
    (41_930, 52_610, 57_480),
    (27_310, 30_140, 28_750),
]
MONTHS = ["Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb", "Mar"]
BY_MONTH = [28.4, 37.9, 46.2, 61.7, 66.3, 43.8, 31.5, 17.2, 21.6, 13.1, 15.4, 26.5]
CANCELLED = {"Weather": (12, 6, 51, 64), "Technical": (14, 21, 9, 11), "Crew": (3, 11, 4, 5), "Pier": (2, 3, 6, 10)}


def finance(rows: list[tuple], bold: tuple[int, ...]) -> Flowable:
    """Rows of (name, this year, last year) in thousands; a negative number is shown in brackets."""

    def money(value: object) -> object:
        if not isinstance(value, int):
            return value
        return f"({-value:,})" if value < 0 else f"{value:,}"

    cells = [[money(value) for value in row] for row in rows]
    return table(cells, (COLUMN - 150, 75, 75), "lrr", bold_rows=bold, head=NAVY, pad=2.6)


def decorate(canvas: Canvas) -> None:
    panel(canvas, (0, HEIGHT - 34, WIDTH, 34), NAVY)
    label(canvas, 56, HEIGHT - 22, "Skarrow Line", "Helvetica-Bold", 10, white)
    label(canvas, WIDTH - 56, HEIGHT - 22, "Annual report and accounts 2023/24", "Helvetica", 9, white, "r")
    label(canvas, WIDTH / 2, 34, str(canvas.getPageNumber()), "Helvetica", 9, NAVY, "c")


def cover(canvas: Canvas) -> None:
    panel(canvas, (0, 0, WIDTH, HEIGHT), NAVY)
    panel(canvas, (0, 0, WIDTH, 250), TEAL)
    canvas.setFillColor(white)  # the ferry: hull, deckhouse, bridge, funnel
    hull = canvas.beginPath()
    for step, (x, y) in enumerate([(110, 292), (92, 330), (470, 330), (512, 342), (486, 292)]):
        (hull.moveTo if step == 0 else hull.lineTo)(x, y)
    hull.close()
    canvas.drawPath(hull, stroke=0, fill=1)
    canvas.rect(130, 334, 300, 24, stroke=0, fill=1)
    canvas.rect(160, 361, 210, 20, stroke=0, fill=1)
    canvas.rect(330, 384, 52, 18, stroke=0, fill=1)
    panel(canvas, (208, 384, 34, 40), SAND)
    for x in range(142, 420, 22):
        panel(canvas, (x, 341, 11, 9), NAVY, 2)
    canvas.setLineWidth(5)
    for row, y in enumerate((280, 252, 216, 172)):
        canvas.setStrokeColor((white, PALE, SAND, PALE)[row])
        wave = canvas.beginPath()
        wave.moveTo(-20 - 24 * row, y)
        for x in range(-20 - 24 * row, 640, 80):
            wave.curveTo(x + 20, y + 13, x + 20, y + 13, x + 40, y)
            wave.curveTo(x + 60, y - 13, x + 60, y - 13, x + 80, y)
        canvas.drawPath(wave, stroke=1, fill=0)
    label(canvas, 56, 700, "Skarrow Line", "Helvetica-Bold", 44, white)
    label(canvas, 56, 658, "Annual report and accounts", "Helvetica", 24, white)
    label(canvas, 56, 628, "Year ended 31 March 2024", "Helvetica", 15, SAND)
    label(canvas, 56, 60, "Skarrow Line Ltd, Pier Road, Tolmhaven, Isle of Tolm", "Helvetica", 10, white)


def glance() -> list[Flowable]:
    tiles = [("409,600", "passengers"), ("94,102", "vehicles"), ("96.9 %", "of sailings operated")]
    tiles += [("£18.85m", "revenue"), ("168", "staff"), ("4,395 t", "of fuel burned")]
    big, small = style("Helvetica-Bold", 21, 26, "c", textColor=NAVY), style("Helvetica", 9.5, 13, "c")
    cells = [[text(number, big) + text(words, small) for number, words in tiles[row : row + 3]] for row in (0, 3)]
    third = COLUMN / 3
    block = table(
        cells,
        (third,) * 3,
        "ccc",
        pad=9,
        rule=white,
        extra=[("BACKGROUND", (0, 0), (-1, -1), PALE), ("GRID", (0, 0), (-1, -1), 5, white)],
    )
    contents = [("Chair's statement", 3), ("Traffic", 4), ("Reliability and punctuality", 5), ("The fleet", 6)]
    contents += [("Income statement", 7), ("Balance sheet", 8), ("Environment", 9), ("People and governance", 10)]
    listing = table([("Contents", "Page"), *contents], (COLUMN - 60, 60), "lr", size=10, head=NAVY, pad=3.5)
    about = text(
        """Skarrow Line runs the lifeline ferries of the Skarrow Isles: four routes, five ships and seven piers,
        between the mainland port of Dunmarrow and the islands of Tolm, Great Skarrow, Hesk and Little Oarn. The
        company was founded in 1963 and has belonged since 1991 to the four island community trusts. Any surplus that
        is not needed for ships and piers is paid to them.""",
        BODY,
    )
    diary = [("Dates for the diary", "2024"), ("General meeting, Burgh Hall, Tolmhaven, 11:00", "21 September")]
    diary += [("Dividend paid to the trusts", "4 October"), ("Winter timetable begins", "28 October")]
    diary += [("Half-year figures published", "29 November")]
    dates = table(diary, (COLUMN - 100, 100), "lr", size=10, head=NAVY, pad=3.5)
    return [*text("The year at a glance", H1), block, gap(12), *about, gap(8), listing, gap(24), dates]


def chair() -> list[Flowable]:
    statement = """The year to 31 March 2024 was the busiest in our history. We carried 409,600 passengers, 4.7 per
    cent more than the year before, and for the first time our summer traffic was limited by the seats we could offer
    and not by the number of people who wanted one.

    Two decisions shaped the year. In May the board agreed to keep the 07:10 sailing from Hesk running through the
    winter, at a cost of about £64,000, because eleven secondary pupils and the island's only pharmacist depend on it.
    In September we withdrew the Sunday evening sailing to Little Oarn, after counting four passengers on an average
    crossing. Both were argued over in public meetings and in our own boardroom, and I thank everyone who came. The
    fall in Little Oarn traffic that you will see later in this report is, in part, the price of the second one.

    The arrival of <i>Hesk Maiden</i> on 9 February closed a project that has occupied us since 2019. She came eleven
    weeks late. The builder, Norvik Bay Yard, paid £310,000 in damages for the delay, which we have set against her
    cost. In her first seven weeks she missed three sailings, all of them on the same day, and her passengers have
    told us that the thing they notice most is the quiet.

    Winter was hard on us. Storm Idony, in the second week of January, tore two fenders from the Kirkness linkspan and
    closed it for six days. Crews and pier staff carried 340 people round by Tolmhaven in that week, some of them in
    their own cars, and I want to record the board's gratitude to them here.

    Fuel cost us less than we feared and maintenance cost us more. The profit of £652,000 after tax is a good result
    for a company of our kind, though it rests on a grant that ends in March 2026. Talks on what will follow it began
    in April. We have asked for an agreement of eight years, because nobody can order a ship on the strength of two.

    The board proposes a dividend of £140,000, unchanged, shared among the four island trusts.

    Two directors leave us. Osric Pellandine has chaired the safety committee for nine years and has never once let a
    meeting end early. Maud Treskelly joined us from the harbour office in 2015 and taught most of us how a tide table
    works. Their successors will be chosen by the trusts at the general meeting in Tolmhaven on 21 September."""
    signature = text("Ingrid Maclourie<br/>Chair, 18 June 2024", style("Helvetica-Oblique", 10, 14))
    return [*text("Chair's statement", H1), *text(statement, BODY), gap(8), *signature]


def traffic() -> list[Flowable]:
    totals = [sum(year) for year in zip(*PASSENGERS, strict=True)]
    change = [f"{100 * (now / before - 1):+.1f} %".replace("-", "--") for _, before, now in [*PASSENGERS, totals]]
    rows = [["Passengers", "2021/22", "2022/23", "2023/24", "Change on year"]]
    for name, numbers, percent in zip([*ROUTES, "All routes"], [*PASSENGERS, totals], change, strict=True):
        rows.append([name, *(f"{n:,}" for n in numbers), percent])
    wheels = [
        ("Vehicles", "2022/23", "2023/24"),
        ("Cars", "75,930", "78,410"),
        ("Vans and lorries", "11,702", "11,930"),
    ]
    wheels += [("Coaches", "588", "642"), ("Motorcycles", "2,964", "3,120"), ("Total vehicles", "91,184", "94,102")]
    wheels += [("Bicycles (not counted above)", "21,350", "26,480")]
    prose = """Traffic grew on three routes of four. The main crossing to Tolmhaven passed 200,000 passengers for the
    second year running, and Hesk grew fastest, helped by the opening of the bird observatory at Sallow Point in May.

    August was again the busiest month. We turned away vehicles on 19 sailings in July and August, against 7 the
    summer before; no foot passenger was refused. Bicycles, which travel free, rose by nearly a quarter, and from next
    spring the two larger ships will have racks for sixty each."""
    chart = bars(
        (COLUMN, 225), "Passengers by month, 2023/24 (thousands)", MONTHS, [BY_MONTH], [TEAL], [0, 20, 40, 60, 80]
    )
    return [
        *text("Traffic", H1),
        *text(prose, BODY),
        gap(4),
        table(rows, (COLUMN - 300, 70, 70, 70, 90), "lrrrr", bold_rows=(-1,), head=NAVY),
        gap(14),
        chart,
        gap(12),
        table(wheels, (COLUMN - 180, 90, 90), "lrr", bold_rows=(5,), head=NAVY),
    ]


def reliability() -> list[Flowable]:
    lost = sum(map(sum, CANCELLED.values()))
    prose = f"""We planned 7,430 sailings and operated {7430 - lost:,}, or 96.9 per cent. Of the {lost} cancelled,
    {sum(CANCELLED["Weather"])} were lost to weather, nearly all of them between October and March. Technical failures
    cost 55 sailings; 21 fell in the summer quarter, when <i>Grey Tern</i> spent twelve days at Dunmarrow waiting for
    a gearbox bearing.

    A sailing counts as punctual if it arrives within ten minutes of the published time. Punctuality fell on the
    Kirkness route, where loading was slower while the linkspan was under repair, and rose on the other three."""
    chart = bars(
        (COLUMN, 240),
        "Cancelled sailings by quarter and cause, 2023/24",
        ["Apr--Jun", "Jul--Sep", "Oct--Dec", "Jan--Mar"],
        list(CANCELLED.values()),
        [NAVY, RUST, SAND, TEAL],
        [0, 20, 40, 60, 80, 100],
        names=list(CANCELLED),
        stacked=True,
        values="{:g}",
    )
    rows = [["Arrivals within ten minutes", "2021/22", "2022/23", "2023/24", "Target"]]
    rows += [[ROUTES[0], "91.8 %", "92.6 %", "94.1 %", "93 %"], [ROUTES[1], "93.0 %", "92.2 %", "88.7 %", "93 %"]]
    rows += [[ROUTES[2], "95.4 %", "95.9 %", "97.2 %", "95 %"], [ROUTES[3], "94.1 %", "95.0 %", "95.3 %", "95 %"]]
    refunds = """Passengers whose sailing is cancelled, or arrives more than an hour late, may claim half the fare
    back. We paid 1,916 claims worth £41,300 (2022/23: 1,204 claims, £24,800). The median claim was paid in six
    working days. Island residents are repaid without having to apply if they travel on a registered card."""
    return [
        *text("Reliability and punctuality", H1),
        *text(prose, BODY),
        gap(6),
        chart,
        gap(12),
        table(rows, (COLUMN - 270, 70, 70, 70, 60), "lrrrr", head=NAVY),
        *text("Refunds", H2),
        *text(refunds, BODY),
    ]


def fleet() -> list[Flowable]:
    rows = [["Ship", "Built", "Length", "Passengers", "Cars", "Speed", "Usual route"]]
    rows += [["Tolmhaven Pride", "1998", "72.4 m", "420", "62", "14.5 kn", ROUTES[0]]]
    rows += [["Kirkness", "2007", "61.0 m", "340", "48", "14.0 kn", ROUTES[1]]]
    rows += [["Hesk Maiden", "2024", "49.8 m", "250", "24", "12.0 kn", ROUTES[2]]]
    rows += [["Oarn", "1986", "34.2 m", "120", "8", "10.5 kn", ROUTES[3]]]
    rows += [["Grey Tern", "1991", "46.5 m", "200", "20", "12.0 kn", "Relief ship"]]
    new = """Our first new ship for seventeen years entered service on 9 February. <i>Hesk Maiden</i> is a
    diesel-electric hybrid: two 620 kW generators, and a battery of 1,150 kWh that takes her in and out of harbour
    without an engine running. She charges overnight at Tolmhaven in about five hours. A full day on the Hesk route
    uses 1,480 litres of diesel; <i>Grey Tern</i>, on the same timetable, used 2,310.

    She was ordered for £9.2m and cost £8.9m after damages for late delivery. A loan of £7.5m over fifteen years and
    our own funds paid for her."""
    dock = """<i>Tolmhaven Pride</i> was in dry dock at Dunmarrow from 6 to 24 November for her five-year survey.
    Steel under the car deck was thinner than expected, and 4.2 tonnes were replaced. <i>Kirkness</i> had a routine
    week in October. <i>Oarn</i> turns thirty-eight this year. Her surveyors are content with the hull, but spare
    parts for her engine are now made to order, and we expect to ask the trusts in 2025 to approve a replacement."""
    plans = ["A lift between decks on <i>Kirkness</i>, January 2025.", "New fenders at Little Oarn, by Easter 2025."]
    plans += ["A decision on replacing <i>Oarn</i>, autumn 2025.", "Sale of <i>Grey Tern</i>, not before winter 2026."]
    return [
        *text("The fleet", H1),
        table(rows, (92, 38, 52, 62, 38, 52, COLUMN - 334), "lcrrrrl", head=NAVY, stripe=PALE),
        gap(8),
        *text("A new ship for Hesk", H2),
        *text(new, BODY),
        *text("Dry dock", H2),
        *text(dock, BODY),
        *text("What comes next", H2),
        *bullets(plans, BODY),
    ]


def income() -> list[Flowable]:
    earned = [("Passenger fares", 6942, 6488), ("Vehicle fares", 5318, 5027), ("Freight", 2207, 2143)]
    earned += [("Catering and shops", 1164, 1021), ("Island service grant", 3050, 2900), ("Other", 169, 141)]
    spent = [("Crew and staff", -7214, -6820), ("Fuel", -3486, -3911), ("Maintenance and dry dock", -2377, -1905)]
    spent += [("Harbour dues", -1298, -1244), ("Depreciation", -1642, -1518), ("Insurance", -588, -541)]
    spent += [("Administration", -1003, -968)]
    revenue = [sum(row[year] for row in earned) for year in (1, 2)]
    operating = [revenue[year - 1] + sum(row[year] for row in spent) for year in (1, 2)]
    before_tax = [operating[0] - 412, operating[1] - 298]
    rows: list[tuple] = [("£ thousand", "2023/24", "2022/23"), *earned, ("Revenue", *revenue), *spent]
    rows += [("Operating profit", *operating), ("Interest on loans", -412, -298), ("Profit before tax", *before_tax)]
    rows += [("Corporation tax", -178, -104), ("Profit for the year", before_tax[0] - 178, before_tax[1] - 104)]
    chart = pie(
        (COLUMN, 165),
        "Where the revenue came from, 2023/24",
        [(name, now) for name, now, _ in earned[:5]] + [("Other", 169)],
        [NAVY, TEAL, SAND, RUST, HexColor("#7a9e7e"), HexColor("#b9c0c6")],
    )
    prose = """Fares rose by 3.5 per cent in April 2023; islanders' multi-trip tickets were frozen. Fuel cost less
    mainly because we burned less of it, and a little because of its price: an average of £793 a tonne, against £811.
    Maintenance rose by a quarter, most of it the steel renewed on <i>Tolmhaven Pride</i>."""
    return [
        *text("Income statement", H1),
        finance(rows, (7, 15, 17, 19)),
        gap(10),
        *text(prose, BODY),
        gap(4),
        chart,
    ]


def balance() -> list[Flowable]:
    assets = [("Ships", 27480, 19960), ("Ship under construction", 0, 5640), ("Piers and buildings", 4115, 4290)]
    assets += [("Equipment", 1020, 964), ("Fuel and spares in stock", 538, 502), ("Owed by customers", 1376, 1290)]
    assets += [("Cash at bank", 2904, 3611)]
    owed = [("Owed to suppliers and staff", -3188, -3021), ("Bank loans", -9500, -8750)]
    owed += [("Grants received for future years", -4210, -4463)]
    total = [sum(row[year] for row in assets) for year in (1, 2)]
    net = [total[year - 1] + sum(row[year] for row in owed) for year in (1, 2)]
    rows: list[tuple] = [
        ("£ thousand", "31 March 2024", "31 March 2023"),
        *assets,
        ("Total assets", *total),
        *owed,
    ]
    rows += [("Net assets", *net), ("Share capital", 6000, 6000), ("Reserves", net[0] - 6000, net[1] - 6000)]
    rows += [("Trusts' funds", *net)]
    notes = """1. <b>Ships</b> are written off over 25 years from delivery, generators and batteries over 12. A full
    year of depreciation on <i>Hesk Maiden</i> will add about £410,000 to next year's costs.

    2. <b>Bank loans.</b> The loan for <i>Hesk Maiden</i> bears interest at 4.35 per cent, fixed until 2031, and is
    secured on the ship. Repayments of £500,000 a year begin in August 2024.

    3. <b>Grants</b> given to build piers are released to income over the life of the pier.

    4. <b>Commitments.</b> At 31 March 2024 we had signed contracts for £486,000 of work not yet done, most of it the
    fenders at Little Oarn.

    5. <b>Pensions.</b> The company pays 9 per cent of salary into staff members' own plans (£521,000 in the year) and
    has no other pension obligation."""
    auditor = """In our opinion the accounts on pages 7 and 8 give a true and fair view of the company's affairs at 31
    March 2024 and of its profit for the year then ended. We have nothing to report on going concern.

    <i>Fennimore Stroud &amp; Partners, auditors, Dunmarrow, 14 June 2024</i>"""
    return [
        *text("Balance sheet", H1),
        finance(rows, (8, 12, -1)),
        *text("Notes", H2),
        *text(notes, BODY),
        *text("Auditors' report", H2),
        *text(auditor, BODY),
    ]


def environment() -> list[Flowable]:
    years = ["18/19", "19/20", "20/21", "21/22", "22/23", "23/24"]
    burned = [5.41, 5.38, 3.29, 4.61, 4.82, 4.395]
    prose = """We burned 4,395 tonnes of marine diesel, 9 per cent less than the year before, while sailing slightly
    further. About a third of the saving came from slower passages: since June the evening crossings to Dunmarrow have
    been timed for 12.5 knots, which adds eleven minutes. The rest came from shore power, which <i>Tolmhaven Pride</i>
    and <i>Hesk Maiden</i> have used at Tolmhaven since October, and from clean hulls."""
    chart = lines(
        (COLUMN, 190),
        "Marine diesel burned (thousand tonnes)",
        list(enumerate(years)),
        [list(enumerate(burned))],
        [RUST],
        [0, 1, 2, 3, 4, 5, 6],
    )
    per_head = bars(
        (COLUMN, 165),
        "Carbon dioxide per passenger crossing, 2023/24 (kg)",
        ROUTES,
        [[11.9, 14.2, 7.6, 16.8]],
        [NAVY],
        [0, 5, 10, 15, 20],
        values="{:.1f}",
    )
    more = """<b>Waste.</b> We landed 61 tonnes of waste, of which 58 per cent was recycled. Disposable cups were
    withdrawn from all ships in July; 9,300 reusable ones have been lent and about 700 kept as souvenirs.

    <b>Wildlife.</b> Crews reported 214 sightings of whales and dolphins to the Hesk Field Station. From May to July
    ships keep 300 metres off the tern colony on the Skerry of Oarn.

    <b>Target.</b> By 2030 we intend to burn no more than 3,000 tonnes a year."""
    return [
        *text("Environment", H1),
        *text(prose, BODY),
        chart,
        gap(12),
        per_head,
        *text("The share of a ship's fuel that falls to vehicles and freight is left out.", NOTE),
        gap(8),
        *text(more, BODY),
    ]


def people() -> list[Flowable]:
    staff = [("Staff at 31 March", "2022", "2023", "2024"), ("Crew", "104", "107", "112"), ("Piers", "30", "31", "31")]
    staff += [
        ("Offices", "27", "26", "25"),
        ("Total", "161", "164", "168"),
        ("Apprentices, included above", "5", "7", "9"),
    ]
    board = [("Director", "Nominated by", "Joined", "Board (8)", "Safety (4)", "Audit (3)")]
    board += [
        ("Ingrid Maclourie, chair", "Tolm", "2017", "8", "4", "--"),
        ("Osric Pellandine", "Tolm", "2014", "7", "4", "--"),
    ]
    board += [
        ("Maud Treskelly", "Great Skarrow", "2015", "8", "--", "3"),
        ("Callum Aldersyke", "Great Skarrow", "2020", "8", "3", "3"),
    ]
    board += [
        ("Runa Sveinhart", "Hesk", "2021", "6", "4", "--"),
        ("Pell Odgarth", "Little Oarn", "2022", "8", "--", "2"),
    ]
    board += [("Bettina Crewe-Lowther", "Staff", "2023", "8", "4", "--")]
    prose = """Nine apprentices are now working towards deck and engine-room certificates, the most we have ever had.
    Twelve people joined from outside the islands and four of them have bought houses, which we count as a success.

    Lost-time injuries fell from seven to four. The most serious was a crushed hand at Kirkness on 3 August, when a
    mooring line was taken in during a surge. Lines at that pier are now handled from behind a rail, and the drill has
    been rewritten for every pier. We held 96 abandon-ship exercises and two full evacuations with volunteers; the
    second, on <i>Tolmhaven Pride</i>, cleared 390 people in 21 minutes against a limit of 30."""
    pay = """The managing director, Torben Ashgrove, was paid £118,000. The highest salary is 4.6 times the lowest.
    Directors receive £4,500 a year and the chair £9,000; all give up the fee if they miss a third of the meetings.
    Women held 31 per cent of posts and 22 per cent of posts at sea."""
    return [
        *text("People and governance", H1),
        *text(prose, BODY),
        table(staff, (COLUMN - 180, 60, 60, 60), "lrrr", bold_rows=(4,), head=NAVY),
        *text("Pay", H2),
        *text(pay, BODY),
        *text("Meetings attended by directors", H2),
        table(board, (COLUMN - 325, 90, 50, 60, 65, 60), "llcccc", head=NAVY, stripe=PALE),
        gap(4),
        *text(
            "The number of meetings held is in brackets. A dash means that the director is not on the committee.", NOTE
        ),
    ]


def build(path: Path) -> None:
    canvas = open_canvas(path, A4, "Annual report and accounts 2023/24", "Skarrow Line")
    pages = [cover, glance(), chair(), traffic(), reliability(), fleet(), income(), balance(), environment(), people()]
    write_pages(canvas, pages, BOX, decorate)
