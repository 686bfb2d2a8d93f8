"""The text of the manual of the espresso machine. `espresso_manual` has the layout."""

SAFETY = """
# Safety

The machine makes water and steam at up to 128 °C and at a pressure of up to 15 bar. Most injuries at home happen when a
filter holder is removed too soon or when a steam wand is touched.

! <b>Never turn the filter holder out while the pump is running</b> or while the display shows a moving bar. Wait until
the bar has gone and the spout no longer drips.

- Connect the machine to an earthed socket only. Do not use an extension lead.

- Children from 8 years may make coffee with an adult beside them. They may not use the steam wand.

- Keep the cable away from the cup warmer, which reaches 55 °C.

- Fill the tank with cold drinking water, never with milk, mineral water with gas, or distilled water.

- Do not run the machine with an empty tank. The pump is cooled by the water that it moves.

- Pull the plug before you clean the outside. Do not put any part in a dishwasher, except the drip tray.

- Do not leave the machine in a room that may freeze. Water left in the boiler will split it.

## If something goes wrong

Switch off at the switch, pull the plug and let the machine cool for an hour. Cool a burn under running water for twenty
minutes. Do not open the service panel: there are no parts behind it that you can repair, and the warranty ends when
its seal is broken.
"""

FIRST = """
# Before the first cup

The machine was tested with water at the factory and some drops may remain in it. Allow half an hour for what follows.

@steps

## Standing and room

Leave 10 cm free behind the machine, so that the tank can be lifted out, and 20 cm above it for the cups. The feet can
be turned to level it; a machine that leans gives one cup more than the other.

! After a fortnight without use, repeat steps 4 to 7 before you make coffee.
"""

FIRST_STEPS = """
Remove the red plug from the base of the tank. If it stays in, the pump will run dry and the display
will show E03.

Put the filter cartridge F-20 in cold water for five minutes, shake it, and press it on the valve in the tank.

Fill the tank to the MAX line and push it in until it clicks.

Switch on. The display counts down while the machine heats, which takes six minutes.

Put a bowl of at least half a litre under the spout and press the two-cup key, without coffee. Do this three times.

Turn the steam wand over the bowl, press the steam key, wait for the second tone, and let it blow for twenty seconds.

Empty the bowl and the drip tray. Measure the hardness of your water (page 8) and enter it in the menu.
"""

BREW = """
# Making espresso

@steps

@table

## If the taste is not right

@taste
"""

BREW_STEPS = """
Put the basket you want in the filter holder, and lock the holder into the group while the machine
heats.

Take it out, dry the basket and fill it: 9 g of ground coffee for one cup, 18 g for two.

Tap once to level, and press with the tamper until the coffee gives no more. Wipe the rim.

Lock the holder in again, turning it to the right until the handle points at you.

Put the warm cup under the spout and press the one-cup or the two-cup key. Press again to stop early.

When the bar on the display has gone, take the holder out and knock out the coffee.
"""

MILK = """
# Steaming milk

Steam needs more heat than coffee. Make the coffee first: it takes a minute and a half to go from brewing to steam, and
about four minutes to come back.

@steps

! Milk that has boiled cannot be saved. Stop when the jug is just too hot to hold, at about 62 °C.

## How much air

@table

Drinks made from oats foam best if the carton says "barista". Milk from the freezer does not foam at all.
"""

MILK_STEPS = """
Press the steam key. The display counts to the first tone, then to the second: now there is steam.

Point the wand at the drip tray and press once, to blow out the water that has collected. Press again to stop.

Fill a cold jug to a third with cold milk and hold the tip of the wand just under the surface. Press the steam key.

Lower the jug slowly while you hear a soft tearing sound. When the milk has grown by half, sink the tip and turn the jug
so that the milk spins.

Press to stop, wipe the wand at once with a damp cloth, and blow it through for two seconds.
"""

MENU = """
# Settings

Hold the one-cup and the two-cup keys together for three seconds. The display shows P1. The one-cup key goes to the next
setting, the two-cup key changes its value, and the steam key stores it. After twenty seconds without a key the menu
closes and forgets what was not stored.

@table

To return to the factory values, switch off, hold all three keys, and switch on again. The counters of cups and of
water are kept.
"""

WATER = """
# Water and filter

Lime is the most common cause of repairs. How fast it forms depends on your water, which you measure once with the test
strip: dip it for one second, shake it, wait a minute, and count the squares that have turned pink.

@table

Enter the letter as setting P6. The machine then counts the water it has used and tells you in good time to change the
cartridge (a drop on the display) or to descale (the letters CAL).

## Changing the cartridge

A cartridge F-20 lasts for 50 litres or two months, whichever comes first. Soak the new one in cold water for five
minutes, press it on the valve, and run half a litre through the group without coffee. Then hold the one-cup key for
five seconds to clear the drop.

In water of hardness A no cartridge is needed. It does no harm, but it does no good either.

! Water from a household softener contains salt, which attacks the boiler. Fill from a tap before the softener.
"""

CLEAN = """
# Cleaning

@table

## Rinsing the group with the blind basket

Coffee oil collects behind the screen of the group and turns bitter. Cleaning powder dissolves it.

@steps
"""

CLEAN_STEPS = """
Put the blind basket (the one without holes) in the filter holder with 3 g of cleaning powder.

Lock the holder in. Hold the two-cup key until the display shows CLE, then let go.

The machine now pumps for ten seconds and rests for ten seconds, five times. Do not leave the room.

Rinse the holder and the blind basket under the tap, lock them in without powder, and start CLE again.

Make one espresso and pour it away.
"""

DESCALE = """
# Descaling

When CAL is shown you can make about thirty more cups; then the machine refuses. Descaling takes forty minutes, and you
should not interrupt it. Use Torvella Descaler or citric acid, never vinegar, which attacks the seals of the pump.

@steps

! If the power fails during descaling, the display shows E09 when it returns. Press the steam key: the machine rinses
for eight minutes and is safe to use again.

The display now counts from zero. It is normal for the first cup after descaling to taste flat.
"""

DESCALE_STEPS = """
Switch off and let the machine cool. Take the cartridge out of the tank.

Dissolve one sachet of descaler, or 35 g of citric acid, in 0.8 litres of warm water and pour it into the tank.

Put a bowl of one litre under the group and turn the steam wand into it as well.

Hold the steam key and switch on. The display shows CAL and counts down from 25 minutes.

When it shows RIN, empty the bowl, rinse the tank, and fill it to the MAX line with fresh water.

Press the two-cup key. The machine rinses the boiler, the group and the wand in turn, in about twelve minutes.

When END is shown, switch off, put the cartridge back and wipe the drip tray dry.
"""

ERRORS = """
# Error codes

When something is wrong the display shows a letter E and two figures, and the machine stops heating. Do what the table
says, then switch off and on.

@table

If the same code returns three times, write down the number under the drip tray and telephone the service line given on
page 12.
"""

SPECS = """
# Technical data and service

@table

## Warranty

Torvella repairs or replaces the machine free of charge for three years from the day of purchase, and the pump for five.
Damage by lime is not covered if the counter shows that CAL was ignored for more than thirty cups. Seals, screens and
cartridges wear and are not covered. Keep the receipt.

## Service

Torvella Service, 14 Lantern Yard, Brackwater. Telephone 0900 555 0142, Monday to Friday from 8 to 17. Have the number
under the drip tray at hand. A machine may be sent in its own box; empty the tank first, please.

Do not throw the machine in the bin. Your dealer takes it back, also if you do not buy a new one.
"""

PARTS = """
1 | Cup warmer | 8 | One-cup key
2 | Display | 9 | Two-cup key
3 | Brew group | 10 | Steam key
4 | Filter holder | 11 | Power switch
5 | Spout | 12 | Steam wand
6 | Drip tray, 0.7 l | 13 | Service panel
7 | Water tank, 1.9 l (rear) | |
"""

IN_THE_BOX = """
In the box: filter holder, baskets for one and two cups, tamper, blind basket, measuring spoon, brush, test strip for
water, filter cartridge F-20.
"""

DOSES = """
 | One cup | Two cups
Ground coffee | 9 g | 18 g
In the cup | 25--30 ml | 2 x 25--30 ml
Time | 22--28 s | 24--30 s
"""

TASTE = """
Taste | What to change
Sour, thin | Grind finer, or raise the temperature (P2).
Bitter, dry | Grind coarser, or lower the temperature.
Weak, fast | Tamp harder; check the dose.
Only drips | Grind coarser; rinse the screen (page 9).
"""

FOAM = """
Drink | Milk | Grow by | Foam
Flat white | 120 ml | a quarter | fine, 5 mm
Cappuccino | 130 ml | a half | fine, 15 mm
Latte | 200 ml | a third | fine, 10 mm
Cocoa | 180 ml | nothing | none
"""

SETTINGS = """
Setting | Meaning | Range | Factory
P1 | Language of the display | 1--9 | 1
P2 | Brewing temperature | 88--96 °C | 93 °C
P3 | Wetting time before brewing | 0--8 s | 3 s
P4 | Water for one cup | 20--60 ml | 28 ml
P5 | Water for two cups | 40--120 ml | 56 ml
P6 | Hardness of the water | A--D | C
P7 | Switches off after | 10--120 min | 30 min
P8 | Cup warmer | on, off | on
P9 | Sound of keys and tones | 0--3 | 2
P10 | Shows number of cups made | |
P11 | Shows litres since CAL | |
"""

HARDNESS = """
Squares | Hardness | Letter | Descale every
0--1 | under 7 °dH, soft | A | 8 months
2 | 7--14 °dH, medium | B | 5 months
3 | 14--21 °dH, hard | C | 3 months
4 | over 21 °dH, very hard | D | 6 weeks
"""

CARE = """
How often | What
After each use | Wipe the steam wand. Rinse the filter holder without soap.
Every day | Empty and rinse the drip tray and the tank.
Every week | Brush the screen and the seal of the group. Clean the tip of the wand with the pin.
Every 100 cups | Rinse the group with the blind basket, as described below.
Every year | Have the seal of the group replaced.
"""

CODES = """
Code | What it means | What to do
E01 | Tank is missing | Push the tank in until it clicks.
E02 | Tank is empty | Fill it, then press any key.
E03 | Pump draws air | Remove the red plug. Press the tank down. Run water through the wand.
E04 | Flow is blocked | Grind coarser. Rinse the group (page 9).
E05 | Drip tray is full | Empty and dry it, the contacts too.
E06 | Boiler too hot | Run 0.2 litres through the wand, wait five minutes.
E07 | Boiler does not heat | Let the machine cool for an hour. If E07 returns, call service.
E08 | Temperature probe | Call service.
E09 | Descaling interrupted | Press the steam key to rinse (page 10).
E10 | Mains voltage too low | Use another socket, without an extension lead.
E11 | Key held or stuck | Dry the keys with a cloth.
E12 | Fault in the memory | Restore the factory values (page 7).
"""

DATA = """
Property | Value
Mains | 220--240 V, 50 Hz, 1,350 W
Standby | 0.4 W
Pump | 15 bar, limited to 9 bar while brewing
Boiler | Steel, 0.45 l
Tank, drip tray | 1.9 l, 0.7 l
Height, width, depth | 38 x 28 x 36 cm
Weight, empty | 9.4 kg
Cable | 1.2 m
Noise | 61 dB(A) while brewing
"""
