"""The text of the graduate handbook. `graduate_handbook` has the layout."""

WELCOME = """
# Welcome

This handbook is for everyone who is studying for a master's degree or a doctorate at the University of Dunmarrow in the
academic year 2025/26. It tells you what the university expects of you, what you may expect of it, and when. Where it
differs from what a friend remembers of last year, the handbook is right.

The Graduate School has 1,140 students in eleven departments. Two thirds of you are studying for a master's degree.
About one in four is part-time, and ninety live on the islands and come to Dunmarrow by ferry. Our office is on the
ground floor of the Old Customs House and is open from ten to four on every weekday. You do not need an appointment.

If you read only two pages, read those on supervision and on where to find help. Most of what goes wrong in a
degree goes wrong slowly, and most of it could have been put right by one early conversation.

Odile Farransby, Dean of the Graduate School

## Contents

@contents
"""

CALENDAR = """
# The academic year 2025/26

Teaching and laboratory work take place in three terms. Research students work through the year and have 30 days of
holiday, which they agree with their supervisor and record in the student portal.

@dates

## When the university is closed

The library keeps its night hours (until 02:00) in the first three weeks of May and closes at 18:00 on public
holidays. All other buildings are locked from noon on 24 December until 2 January. During that time you may enter a
laboratory only with a letter from its safety officer.

The last ferry to Tolmhaven leaves Dunmarrow at 19:40. Seminars that begin after 16:30 are recorded, so that nobody
has to choose between a question and a bed.
"""

FEES = """
# Registration and fees

You must register in the first fortnight of every academic year, also when you are writing up. Registration is done in
the student portal and takes ten minutes if you have your student number, an address and a photograph. If you have not
registered by 6 October your library card stops working.

@fees

## Paying

Fees may be paid at once or in three parts, on 15 October, 15 January and 15 April. A student whose employer pays should
bring a letter in September. Whoever leaves before the end of November gets two thirds back; after that nothing is
returned, except in case of illness.

## Bench fees

Students of chemistry, plant sciences and marine engineering pay a bench fee of £640 a year for materials. It is not
charged in a writing-up year. Projects that need boat time pay £95 for each day at sea.

## Interruption

You may interrupt your studies for up to a year for illness, the birth of a child, military service or the care of a
relative. No fee is due while you are away, and the time does not count.
"""

SUPERVISION = """
# Supervision

Every research student has two supervisors; every master's student has one, who is named by the end of the autumn term.
The first supervisor is responsible for your training and reads what you write. The second sees you at least once a
term and is the person to ask when you do not agree with the first.

## Meetings

Full-time students meet their supervisor at least every second week during term, part-time students once a month.
Write three lines after every meeting: what was decided, who does it, when you meet again. Both of you keep them. Ten
such notes a year are required for the annual review.

Supervisors return written work within three weeks. A chapter sent in the last week of June or in August may take
longer, and you should ask before you send it.

## The annual review

Doctoral students are reviewed in May by two members of the department who are not their supervisors. By 4 May you
hand in a report of 3,000 words, a plan for the coming year, and one finished piece of writing. The panel sees you for
forty minutes. It may let you proceed, ask for a second report within eight weeks, or advise you to move to the degree
of MPhil.

## Changing supervisor

It happens every year and nobody minds. Speak with the director of graduate studies in your department. The change takes
effect within a month, and you do not have to give a reason.
"""

FIELDWORK = """
# Fieldwork and laboratories

Nobody works alone in a laboratory after 19:00, on a boat, on a cliff or on the mud flats north of the causeway. Each
department has a safety officer, who has to sign your plan before you begin. A plan is one page: where, when, with whom,
what could go wrong, and whom to ring.

## Hesk Field Station

The station on the Isle of Hesk has fourteen beds, a wet laboratory, four growth chambers and a boat, the <i>Limpet</i>.
Write to the warden at least three weeks before you want to come. A bed costs £14 a night and a chamber £22 a week. The
station is shut from 20 December to 12 January. Bring a torch and your own tea.

## Driving and boats

You may drive a university van if you are over 21 and have held a licence for two years. To take out the <i>Limpet</i>
you need the certificate of the sailing club and one other person aboard. She does not leave the harbour if more than
force 4 is forecast.

## Ethics

Research with people, with animals that have a backbone, or on graves needs the approval of the ethics committee. It
meets on the first Thursday of every month and needs your form ten days earlier. Approval cannot be given afterwards.

## Data

Keep raw data for ten years. Each project has 2 TB on the university's disks, which are copied every night to the
islands. Memory sticks are not a copy.
"""

FORM = """
# The thesis: form

A thesis is written in English, or in another language if both supervisors and the board agree in the first year.
It may contain papers that you have published, provided that you wrote most of them and that an introduction and a
discussion hold them together.

@form

Footnotes and captions count as words; references, tables and appendices do not. A thesis that is more than a tenth too
long is returned unread.

## Layout

Use A4, with a margin of 35 mm on the left and 25 mm elsewhere, type of at least 11 points and a line spacing of 1.4.
Number the pages from the title page on. The title page gives the title, your name, the degree, the department, and
the month and year. It is followed by a summary of one page and a statement, signed by you, that the work is your own
and that says how you used any software that writes text.

## Binding

The library keeps one bound copy of each doctoral thesis: dark red cloth, gold letters on the spine, made after the
corrections have been accepted. The Print Room in Net Street binds for £38 and takes four days. Master's theses
are kept as files only.
"""

DEADLINES = """
# The thesis: dates

Theses are handed in through the student portal as one PDF file. The portal closes at 12:00 noon on the day given and
does not open again. You will receive a receipt by e-mail; without one, nothing has been handed in.

@deadlines

Where a day in the table is not the right one for you, because you interrupted your studies or began in January, your
own date stands in the portal under "My degree".

## Notice

Tell the Graduate School that you intend to hand in, and propose examiners, three months ahead for a doctorate and one
month ahead for any other degree. The form is GS7.

## More time

An extension of up to four weeks is given by your department for illness or for the failure of equipment. Ask before the
date, with form GS9. Longer extensions are given by the Dean, twice a year. Neither being busy nor a broken laptop is
a reason.

## Handing in late

A master's thesis loses five marks of a hundred for each working day. After five working days it is not marked, and
you may hand in once more the following year for a fee of £220. For a doctorate there is no penalty but a new term's
fee.
"""

EXAMINATION = """
# The examination

A master's thesis is marked by two readers, who do not know each other's mark. If the two differ by more than ten, a
third reader decides. Results are published on 23 October.

A doctoral thesis is examined by one examiner from the university and one from outside, in an oral examination (a
viva) within three months of the day it was handed in. The viva usually lasts two hours. Your supervisor may sit in
and may not speak. You may bring your thesis, notes and a glass of water.

@outcomes

## What the examiners may decide

- Pass.

- Pass with minor corrections, to be made within three months and checked by one examiner.

- Pass with major corrections, to be made within nine months and checked by both.

- Hand in again, with a second viva, within eighteen months.

- Award the degree of MPhil.

## Appeal

You may appeal within four weeks if the rules were not followed. You cannot appeal against the judgement of the
examiners on the work itself.
"""

MONEY = """
# Money for your work

The Graduate School gives small sums quickly. Applications are read on the first Monday of the month; you hear by the
Friday. Use form GS3 and say what you will do if the answer is no.

@grants

## Teaching

Research students may teach for up to six hours a week. The rate is £19.40 an hour and includes one hour of
preparation for each hour in class. You are paid at the end of the month after the one in which you taught. A course
for new teachers is held on 16 and 17 September.

## Conferences

Book through the travel desk, which has agreed fares with Skarrow Line and the railway. If you book on your own you
will be repaid only up to the desk's price. Keep boarding passes: the auditors ask for them about once in ten years,
and that year is always this one.

## Hardship

If you cannot pay your rent or your food, come to the office and say so. The hardship fund paid out £61,300 last year to
94 students, most of it within three days. You will not be asked to write an essay about it.
"""

HELP = """
# Where to find help

@contacts

## If you are ill

Register with a doctor in your first week. The surgery in Net Street keeps places for students. If you are ill for
more than a week, tell your department; illness that nobody knew of cannot be counted later.

## If you are being treated badly

Bullying, harassment and discrimination are dealt with by Perpetua Lisgard, who does not belong to any department and
whose files are closed to them. You may speak with her without giving a name.

## If you want to stop

Talk first, with anybody on this page. Of the students who came to us last year wanting to leave, just over half
finished the year, and most of the others left with a lesser degree in their hand and not with nothing.
"""

ROOMS = """
# Campus map and study rooms

@map

@rooms

Rooms are booked in the portal for up to four hours. Lockers stand in the Library and in Chapel Court and cost £10 for
the year, of which you get £5 back with the key. The path along the river is lit until midnight. Bicycles may not be
left in the North Gate.
"""

CONTENTS = """
Section | Page
The academic year | 3
Registration and fees | 4
Supervision | 5
Fieldwork and laboratories | 6
The thesis: form | 7
The thesis: dates | 8
The examination | 9
Campus map and study rooms | 10
Money for your work | 11
Where to find help | 12
"""

DATES = """
What | From | To
Welcome week | Mon 15 September 2025 | Fri 19 September
Autumn term | Mon 22 September 2025 | Fri 12 December
Reading week | Mon 3 November | Fri 7 November
January examinations | Mon 5 January 2026 | Fri 9 January
Spring term | Mon 12 January | Fri 27 March
Summer term | Mon 20 April | Fri 26 June
Summer examinations | Mon 18 May | Fri 5 June
Degree ceremony, spring | Sat 28 March |
Degree ceremony, autumn | Sat 14 November 2026 |
"""

FEE_ROWS = """
Fee for the year 2025/26 | Full-time | Part-time
MA, humanities and law | £7,450 | £3,725
MSc, sciences and engineering | £9,280 | £4,640
MRes | £6,300 | £3,150
MPhil and PhD, years 1 to 3 | £4,980 | £2,490
PhD, writing up | £560 | £280
Second writing-up year | £1,120 | £560
"""

FORM_ROWS = """
Degree | Words, at most | Summary | Weight
MA | 18,000 | 300 words | 60 credits
MSc | 15,000 | 300 words | 60 credits
MRes | 25,000 | 300 words | 120 credits
MPhil | 50,000 | 500 words | whole degree
PhD | 80,000 | 500 words | whole degree
"""

DEADLINE_ROWS = """
Degree | Began in | Last day
MA and MSc, full-time | September 2025 | Tuesday 1 September 2026
MA and MSc, part-time | September 2024 | Tuesday 12 January 2027
MRes | September 2025 | Friday 25 September 2026
MPhil | September 2024 | Wednesday 30 September 2026
PhD, full-time | September 2022 | Wednesday 30 September 2026
PhD, part-time | September 2019 | Wednesday 30 September 2026
"""

GRANTS = """
For | At most | How often
Conference, with a paper | £450 | once a year
Conference, without | £150 | once
Fieldwork on the islands | £300 | twice a year
Printing and binding | £60 | once
Childcare while teaching | £90 a month | any month
Learning a language | £200 | once
"""

CONTACTS = """
For | Whom to ask | Where | Telephone
Forms, letters, cards | Graduate School office | Customs House 0.04 | 4100
Fees | Bram Tolliver | Customs House 1.12 | 4117
Health and worry | Counselling, Ines Okafield | Garden House | 4300
Disability | Wendel Prye | Library 2.20 | 4322
Visas | Suda Merrin | Customs House 1.15 | 4119
Complaints | Perpetua Lisgard | Chapel Court 3 | 4444
Computers | Help desk | Library 0.01 | 4500
At night | Porters | North Gate | 4999
"""

ROOM_ROWS = """
On the map | Building | Study rooms | Open
A | Old Customs House | 2 | 8--18
B | Library | 14 | 8--24
C | Chapel Court | 5 | 7--22
D | Plant Sciences and glasshouses | 1 | 8--19
E | Marine Engineering | 3 | 8--19
F | Garden House (counselling) | -- | 9--17
G | Refectory and bicycle store | -- | 7--21
"""
