"""The text of the newspaper. `newspaper` has the layout."""

FRONT = """
by By Effie Stannock

The crane on the West Quay will be mended and not replaced. The burgh council decided so on Tuesday by eight votes to
three, after an evening that filled the Burgh Hall to the back wall.

The crane was built in 1911. In May an inspector found that the bearing under the jib had worn through, and since then
it has lifted nothing. Boats have landed their boxes by hand or at Kirkness.

A new crane on rubber wheels would have cost £212,000. The repair will cost £147,500, of which a heritage fund pays
half. The rest comes from harbour dues, which rise by four per cent in January.

"It will lift three tons, as it always has," said the harbour master, Nuala Fennick, whose grandfather held the post.
"Nobody in this town lands more than three tons of anything at once."

Those against pointed out that the work takes until April. "That is a whole winter of carrying," said Rab Cleave, who
fishes from the <i>Provident</i>. Councillor Thrale asked what would happen if a second crack were found. The engineer
replied that he had looked.

The bearing will be cast in Dunmarrow. The jib leaves on the ferry on 18 August, late in the evening, and Capstan Street
will be shut to cars from 21:00 until it has passed.

# Early boat from Hesk to stay

Skarrow Line has confirmed that the 07:10 from Hesk will sail through a third winter. Twelve pupils now use it to reach
school in Tolmhaven.

The winter timetable begins on 27 October. The only other change is on Fridays, when the last boat from Dunmarrow leaves
at 20:10 and not at 19:40, so that people who work on the mainland can come home for the weekend.

Bookings opened yesterday. Islanders' tickets stay at the old price until the new year.

# Bell found in a garden

The bell of the old school on Little Oarn, missing since 1958, has been found under a rhubarb bed. Pell Odgarth was
digging clay for his pottery when his spade rang.

It weighs 31 kilograms and is cracked at the lip. It will hang in the shop, and be rung when the ferry is sighted.

# Who has a green roof?

by From our Hesk correspondent

The field station on Hesk is looking for thirty people with moss on the roof and a ladder. Once a month, from
September, each will photograph the same square metre and send in the picture.

"We know how moss grows on a shelf," said Tamsin Arvelund, who leads the work. "We know very little about how it grows
on a house with a chimney, a cat and a television aerial."

Volunteers get a frame of willow, to lay on the moss, and a pot of honey at Christmas. Roofs that face north are
wanted most. Names go to the station by 22 August.

# Water: please be sparing

The reservoir stood at 61 per cent on Monday, the lowest for the date since 2020. Hoses are not to be used until further
notice. The two moss growers have agreed to mist at night only.

@inside
"""

REGATTA = """
# Cup goes back to Kirkness

by By our man on the pier

For the first time in nine years the Lantern Cup has left Tolmhaven. The <i>Corncrake</i>, rowed by four sisters and
steered by their aunt, led Saturday's long race from the first buoy and crossed the line in 31 minutes and 40 seconds,
eleven seconds ahead of the <i>Bonny Ann</i>.

The wind was westerly, force 3, and rose to 5 after lunch. Two dinghies went over and were righted. The race for
home-made rafts was won by the library, on a raft of withdrawn atlases.

The committee thanks Skarrow Line, which held the 15:20 for six minutes so that the finish could be seen from the
deck. The collection for the lifeboat came to £3,864.

@results

# Four sisters and an aunt

They row at five in the morning, before the bread. Greta, Maren, Silje and Una Lorne-Ashe are the bakers of Kirkness,
and the <i>Corncrake</i> was their grandfather's. Aunt Thora steers because she is the only one they obey.

"We lost by a length last year and by a biscuit the year before," said Greta. What changed? "The oars. They are eleven
centimetres longer. Also, Thora stopped singing."

The cup will stand in the window of the shop, between the rye and the rolls.

# The net loft opens

by By Effie Stannock

The upper floor of number 4 Net Lane, empty since the last sailmaker left in 1996, will open in September as a
workshop that anyone may use. There are two looms, a lathe, a bench for oars and a stove.

The loft belongs to the burgh. Sixteen people have cleared it since March, at weekends, and have carried out four tons
of rope, a dinghy built without a thought for the stairs, and a piano. The piano now stands in the Capstan.

A key costs £6 a month, or an hour's teaching. "If you can do something with your hands, you can pay with that," said
Ines Dunsettle, who keeps the list. The first evening is for mending chairs: Thursday 4 September at 19:00. Bring the
chair.

# Prize for school garden

The garden of Tolmhaven School has won second prize in the county, for beans that climb on old oars. The judges praised
"drainage and wit". First prize went to a school with a gardener.

The money, £200, will be spent on a pond. The pupils voted for it by 41 to 12, against a goat.

# Letters

<b>Sir,</b> Your correspondent of last week asks why the clock of the Burgh Hall strikes four at three. It does not. It
strikes four at four; it is the three that is missing.

sig A. Quince, Net Lane

<b>Sir,</b> May I ask visitors, through you, not to feed maps to the goat? She was unwell on Sunday.

sig Owner of the goat

<b>Sir,</b> I am 84 and have swum at Shore Road every day since I was nine. The new steps are too steep. I should be
glad to show the engineer, at seven in the morning, in any month he likes.

sig Jessamy Ibley, Shore Road

<b>Sir,</b> Why must the library close at one on Wednesdays? It is the only day when the baths are shut as well.

sig Eleven signatures, Kirk Brae

# From our files

<b>Fifty years ago.</b> The Ministry has agreed to pay half the cost of a hall in Capstan Street. Work should begin in
the spring. Councillor Wrayburn has resigned.

<b>Twenty-five years ago.</b> Gales blew the roof off the ticket office. It was found at Sandvik in good order and has
been put back.

# Fish landed

@fish

The mackerel came three weeks early. Crabs were fewer than in any July since counting began in 2009, and the harbour
office asks boats to return those under 14 centimetres.

@engineers
"""

WEEK = """
# Tides at Tolmhaven

@tides

Heights are in metres above the datum on the harbour wall. Add 25 minutes for Hesk and 40 for Kirkness.

# Winter boats

@boats

From Dunmarrow, on weekdays from 27 October. On Fridays the last boat leaves half an hour later. Bookings by telephone
or at the pier.

# The weather

High pressure stays west of the islands. Saturday and Sunday dry, with fog until ten. A front crosses on Tuesday with 8
to 12 mm of rain and a south wind of force 6; Thursday will be fine again. Sea 13 °C at Shore Road.

# Number square

by Set by D. Hoskarth

@square

Each row, each column and each box of six squares holds the figures from 1 to 6. Solution next week. Last week's first
row was 4 1 6 2 5 3.

# Marta's plum cake

For a tin of 24 centimetres. Stone 800 g of plums and halve them. Beat 150 g of butter with 120 g of sugar, add three
eggs one after the other, then 200 g of flour, a spoonful of baking powder and the grated rind of a lemon.

Spread the dough in the tin and stand the plums in it, close together, cut side up. Strew with 40 g of chopped almonds
and two spoonfuls of sugar. Bake for 50 minutes at 180 °C. Do not open the door before 40.

Eat it the next day, if it lasts.

# In the Burgh Hall

n <b>Sat 2, 14:00.</b> Sale of plants and books for the lifeboat.

n <b>Mon 4, 19:30.</b> Choir. New voices wanted, basses above all.

n <b>Wed 6, 18:00.</b> How to read a chart: Captain Lowen Dray. £3.

n <b>Fri 8, 20:00.</b> Film: <i>The Lighthouse Keeper's Daughter</i>, with piano. £6, under 16 £3.

n <b>Sat 9, all day.</b> Fiddle School begins. 62 pupils, cotton wool at the door.

# Nature notes

The young terns at Sallow Point are flying: 118 from 74 nests, the best count for six years. Look for them on the
sandbar two hours after high water. Basking sharks have been seen off Far Ness on four days. Keep 100 metres away and
stop the engine if one comes closer by itself.

# Walk of the week

To the old mill and back by the reservoir, 5 km. From the Cross go up Net Lane to the wheel, then left along the lade.
The gate at the top is stiff; lift it. At the dam look for the mark of 1921, the driest year of all, which may be in
sight again before the month is out. Return by Kirk Brae, where there are brambles.

# Ask the harbour office

<b>May I fish from the quay?</b> Yes, on the north side, with one rod, except while the ferry is in.

<b>My mooring has moved.</b> It has not. Your rope has grown. Bring it in on Monday between eight and ten.

<b>Who owns the seal?</b> Nobody. Please do not pay those who say they do.

# Stars in August

The Perseids fall on the night of the 12th, but the moon is bright. Try the 18th, after two in the morning, from the
Ward or from the pier at Little Oarn, where the only lamp is switched off on request. Saturn rises in the east at ten.

# At the mart

@mart

Prices of Tuesday's sale at Kirkness, in pounds. Trade was brisk for lambs; buyers had come from three counties.

# Library

Open Monday to Friday 10 to 18, Wednesday 10 to 13, Saturday 10 to 16. New this week: eleven novels, a history of rope,
and the maps of 1878, which may be looked at with clean hands.
"""

BACK = """
# Quoits league

@quoits

Net Lane lost to the Capstan by a finger's breadth on Monday. Two rounds remain; the cup is played for on 30 August.

# For sale

n Clinker dinghy, 3.2 m, oak on larch, with oars and a trailer that has been to Sandvik twice. £650. Tel. 212 448.

n Torvella coffee machine, little used, shows E05 whatever one does. £40 to somebody patient. Tel. 212 306.

n Accordion, 72 bass, red. One key sings by itself. £180. Marta's, ask for Bo.

n Peat, dry, cut last year, £4 a sack, brought to the house in Tolmhaven on Saturdays. Tel. Hesk 31.

n Bicycle for a child of about seven, blue, new tyres. £25. Kirk Brae 9.

# Wanted

n A piano stool that goes up and stays up. The Capstan.

n Lodgings from September for a student of moss. Quiet, tidy, has own lamp. Write to box 17.

n Help with hay on Ward Farm, 9 to 16 August. £12.20 an hour, supper, and the view.

n Somebody to teach an old dog to like the ferry. Tel. 212 590.

# Lost and found

n <b>Lost:</b> grey cat, one ear, answers to Admiral. Last seen boarding the 11:30.

n <b>Lost:</b> silver whistle on a blue cord, at the regatta. Reward: a cake. Tel. 212 117.

n <b>Found:</b> false teeth, upper, on the steps at Shore Road. Harbour office.

n <b>Found:</b> a left oar. Would suit owner of a right oar.

# Births, weddings, deaths

n <b>Born</b> on 22 July, at home on Hesk, to Runa and Olaf Sveinhart, twins: Liv and Torsten. The midwife came by the
07:10.

n <b>Married</b> on 26 July, in the chapel, Ines Dunsettle and Matthew Oddie. They left by raft.

n <b>Died</b> on 24 July, aged 97, Hugh Collop, draughtsman, son of the burgh surveyor who drew the hall. The
funeral is on Saturday 2 August at 11:00. No black, he asked.

# Council in brief

n Parking on the West Quay will cost £1.50 an hour from 1 September. The first half hour stays free.

n The bath-house will be open until 21:00 on Thursdays for a trial of three months.

n The wheel of the mill in Net Lane will be turned by hand on the last Sunday of each month, to show that it can be.

n Next meeting: Tuesday 2 September, 19:00. Anybody may come and listen.

# Church and chapel

n Sunday 3 August: Kirk 11:00, chapel of the Two Sisters 15:00, weather permitting. The organ is being cleaned; bring a
voice.

# Numbers to keep

@numbers

@adverts

# This newspaper

n The Tolmhaven Lantern is written in Capstan Street and printed in Dunmarrow every Thursday night. Small
advertisements: £2.50 for 20 words, by Tuesday noon. Editor: Effie Stannock. Tel. 212 400.
"""

RESULTS = """
Race | First | Second
Cup, fours | Corncrake | Bonny Ann
Pairs, 1 mile | Hesk B | Net Lane
Dinghies | Plover | Whimbrel
Under 16 | Little Oarn | Kirkness
Yoles, sail | Ruby | Old Tom
Swim, 500 m | L. Dray | J. Ibley
Rafts | Library | Choir
"""

TIDES = """
August | High | m | High | m
Sat 2 | 00:41 | 3.1 | 13:22 | 2.9
Sun 3 | 01:48 | 2.9 | 14:31 | 2.8
Mon 4 | 03:02 | 2.9 | 15:44 | 2.9
Tue 5 | 04:09 | 3.0 | 16:43 | 3.1
Wed 6 | 05:03 | 3.2 | 17:30 | 3.4
Thu 7 | 05:48 | 3.5 | 18:12 | 3.7
Fri 8 | 06:29 | 3.7 | 18:52 | 4.0
"""

QUOITS = """
Club | P | W | D | L | Pts
The Capstan | 8 | 6 | 1 | 1 | 13
Net Lane | 8 | 5 | 1 | 2 | 11
Kirkness | 8 | 4 | 2 | 2 | 10
Hesk | 8 | 3 | 1 | 4 | 7
Harbour office | 8 | 2 | 1 | 5 | 5
Library | 8 | 1 | 0 | 7 | 2
"""

BOATS = """
To | 1st | 2nd | 3rd | 4th
Tolmhaven | 06:45 | 10:15 | 14:30 | 19:40
Kirkness | 07:30 | 15:10 | |
"""

MART = """
Class | Head | Low | High
Lambs | 412 | 71 | 96
Ewes | 138 | 54 | 88
Rams | 9 | 210 | 640
Calves | 57 | 260 | 415
"""

NUMBERS = """
Doctor, day and night | 212 999
Nurse, Hesk | Hesk 12
Harbour office | 212 210
Ferry, recorded news | 212 700
Water burst | 212 333
Goat | 212 031
"""

ENGINEERS = ("Garrick & Voe", "Engineers since 1889", "Winches, pumps, gates, bells. We come to you if the ferry does.")

INSIDE = """
Inside this week | Page
Regatta results | 2
Letters | 2
Tides and winter boats | 3
Number square | 3
Small advertisements | 4
"""

ADVERTS = [
    ("The Slipway", "Fish stew every day", "Closed on Mondays, like the fish. No bookings."),
    ("Hesk Moss Mats", "Roofs that drink", "£31 a square metre, laid. Ready in fourteen months; order now."),
    ("Marta's", "Bread from six", "Rye, wheat, cardamom buns. Plum cake from the 20th, if there are plums."),
    (
        "Prye & Daughter",
        "Joiners in Kirk Brae",
        "Stairs, doors, boats to six metres, coffins. Ask for the summer price of stairs.",
    ),
    ("Tolm Cycles", "Hire and repair", "£14 a day, £60 a week. Tandem for those who agree on everything."),
    ("Old Ropewalk", "Rooms by the harbour", "Eight rooms, one bath, no television. £92 for two."),
]
