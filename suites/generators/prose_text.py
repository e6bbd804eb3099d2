"""Held-out English prose: short passages of many kinds, for bits per byte.

Invariant: a passage and its variants, which differ in names, places and numbers, are one cluster.
"""

import random

from generators.rows import Row, sections, variants

SLOTS = {
    "name": [
        "Marta",
        "Colin",
        "Ingrid",
        "Rafael",
        "Yusuf",
        "Noor",
        "Stefan",
        "Abigail",
        "Tomas",
        "Priya",
        "Elsie",
        "Hugo",
    ],
    "other": ["Edith", "Pavel", "Leona", "Oskar", "Fatima", "Graham", "Nadia", "Walter", "Mina", "Jonas"],
    "town": [
        "Hexham",
        "Ghent",
        "Tartu",
        "Kalamata",
        "Duluth",
        "Bergen",
        "Salta",
        "Galway",
        "Nelson",
        "Trieste",
    ],
    "season": ["spring", "summer", "autumn", "winter"],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "few": ["two", "three", "four", "five", "six"],
    "many": ["twelve", "thirty", "forty", "sixty", "ninety", "two hundred"],
    "dish": ["bean stew", "fish pie", "onion soup", "rice pudding", "lentil soup", "apple cake"],
    "animal": ["goat", "heron", "fox", "badger", "owl", "hedgehog", "crow"],
    "work": ["carpenter", "surveyor", "nurse", "librarian", "welder", "gardener", "clerk", "translator"],
}

PASSAGES = sections("""
ferry
The ferry to {town} left at a quarter past six, with {many} passengers and one lorry full of cabbages.
{name} stood at the rail and watched the harbour lights shrink. Nobody spoke much. The sea was calmer than
the forecast had promised, and by the time the coffee counter opened most people had already fallen asleep
on the benches.

yeast
Yeast is a living thing, and it dislikes being hurried. Warm water wakes it up; hot water kills it. After
the dough has doubled, press the air out gently and let it rise a second time. A slow rise in a cold
kitchen takes {few} hours but gives a loaf with more flavour, as any baker in {town} will tell you.

clock
When the old {work} died, he left his clock to {name}, who had never asked for it. It ran {few} minutes
fast every day, no matter how often it was set. In the end she stopped correcting it. She liked living
slightly ahead of everybody else, and she was never again late for the bus.

council
The town council of {town} voted on {day} to close the market square to cars. Shop owners had opposed the
plan, saying that customers would go elsewhere. A trial last {season} suggested the opposite: the number
of visitors rose by a tenth, and {few} of the empty shops found new tenants within months.

snow
Snow insulates. A thick layer of it keeps the ground from freezing hard, which is why gardeners worry more
about a dry, clear cold than about a white {season}. The air trapped between the flakes does the work,
just as it does in a wool sweater or between the two panes of a window.

letter
Dear {other}, thank you for the parcel, which arrived on {day} in good order, apart from one jar. The
children have already finished the biscuits. We are all well here, though {name} has had a cough for {few}
weeks and refuses to see a doctor. Write soon, and tell us whether the roof was mended in time.

lighthouse
For {many} years the lighthouse near {town} was kept by one family. The keeper trimmed the lamp, wound the
mechanism and noted the weather in a book. Since the light became automatic, the tower has stood empty,
except in {season}, when students count migrating birds from its gallery.

bicycle
Check the brakes before anything else. Squeeze each lever: if it touches the handlebar, the cable is too
loose. Then spin the wheels and look for a wobble. A chain that squeaks needs oil, but only a little,
since too much collects grit. {name}, a {work} from {town}, does this every {day} and has never had an
accident.

fox
The {animal} came back on {day}, just after midnight. It crossed the lawn without hurry, stopped beside
the compost heap and looked straight at the window where {name} was standing. Then it was gone. In the
morning there were {few} small prints in the mud, and one of the gloves she had left on the bench was
missing.

debt
A loan with a low monthly payment is not always a cheap loan. If the payments are stretched over {many}
months, the interest has more time to add up. Compare the total amount you will have paid at the end, and
ask whether you may repay early without a fee. {name} did not ask, and regretted it for years.

orchestra
The amateur orchestra of {town} rehearses in a former fire station. The acoustics are dreadful and the
heating works only in {season}, when nobody needs it. Yet {many} people come every {day} evening, among
them a {work}, {few} schoolchildren and a retired judge who plays the triangle with great seriousness.

tides
The tide follows the moon, but not exactly. Each day high water comes about fifty minutes later than the
day before, because the moon has moved on in its orbit while the earth was turning. Where a bay narrows,
the water piles up; at some coasts it rises by more than {few} metres between breakfast and lunch.

interview
I never planned to become a {work}, says {name}, and laughs. My father had a shop in {town}, and I was
supposed to take it over. Then one {season} I broke my leg, lay in bed for {few} weeks and read everything
in the house. After that, selling buttons no longer seemed quite enough.

stew
For a good {dish} you need patience rather than skill. Begin {few} hours before your guests arrive. Cut
everything small, use a heavy pot and keep the flame low. Taste it often. Most cooks add the salt too
early and the herbs too late; {name}, who learned from an aunt in {town}, does it the other way round.

bridge
Engineers inspected the bridge at {town} last {day} after a driver reported a crack. They found that the
crack was only in the paint. Even so, the lorries will be kept off it for {few} weeks, until the bearings
on the north side have been replaced. A temporary footpath leads past the old mill.

chess
In the end it was a pawn that decided the game. {name} had pushed it forward early, almost without
thinking, and {other} had ignored it for {many} moves. When the queens were gone, nothing could stop it.
The two players shook hands, walked out into the rain and did not mention the game again.

museum
The smallest room of the museum holds the oldest object: a wooden spoon, found in a bog near {town} by a
{work} who was looking for a lost dog. Its handle is carved in the shape of an {animal2}. Nobody knows who
made it, or why it was thrown away, but it would still serve perfectly well for stirring {dish}.

sleep
Most adults need between seven and eight hours of sleep, yet few keep a regular schedule. Going to bed at
the same time every night matters more than the exact length. A dark room helps, and so does leaving the
telephone in the kitchen. After {few} weeks the body learns the rhythm, and the alarm clock becomes
unnecessary.

strike
Train drivers in the region around {town} will stop work on {day} from four in the morning until noon.
Their union demands shorter shifts and {few} more days of leave. The company called the strike
disappointing, since talks were to continue this week. Buses will replace some of the trains, but
passengers should expect long delays.

grandmother
My grandmother measured everything in cups and nothing in money. If you asked her what a thing cost, she
said it cost an afternoon, or a night, or {few} jars of plums. She had grown up near {town}, in a house
with {many} apple trees, and she never understood why anyone would pay for fruit.

volcano
A volcano that has been quiet for centuries is not necessarily dead. Beneath it, molten rock may gather
slowly in a chamber, pushing the ground upwards by a few millimetres a year. Instruments near {town}
record such movements day and night. In the past {season} they registered {many} small earthquakes, none
of which anybody felt.

garden
Plant garlic in the autumn, a hand's width apart, with the pointed end up. It asks for sun, for soil that
drains well, and for almost no attention. By {season2} the leaves begin to yellow; then it is time to lift
the bulbs. Let them dry in the shade for {few} weeks, and they will keep until the next harvest.

taxi
The taxi driver asked {name} where she was from, and when she said {town}, he told her that his cousin had
once been a {work} there. It turned out not to be true, or at least the cousin had lived somewhere else.
But by then they had arrived, the rain had stopped, and he refused to take more than half the fare.

report
In the third quarter the company sold {many} thousand units, slightly fewer than a year ago. The decline
was mainly due to the late delivery of parts from {town}. Costs fell as well, so that profit remained
almost unchanged. For the coming {season} the board expects stable demand and plans to hire {few}
additional engineers.

school
On the first day of school the teacher asked everyone to draw the place they liked best. {name} drew a
kitchen, {other} drew a tree with a rope, and one boy handed in an empty sheet. It is fog, he explained,
over {town}, early in the morning. The teacher hung it up with the rest, right in the middle.

hiking
The path starts behind the church in {town} and climbs steadily through beech woods. After about {few}
kilometres it reaches a hut where water can be had, though no food. From there the ridge is in view. In
{season} the stones may be slippery, and inexperienced walkers should turn back if clouds come in from the
west.

whale
Whales breathe air, and yet they can stay under water for an hour or longer. Before a dive they do not
simply take a deep breath: they store oxygen in their blood and muscles, slow their hearts and let their
lungs collapse. A team from {town} followed {few} of them for a whole {season} and found that they hardly
ever rested.

theft
Police are looking for the person who stole {many} umbrellas from a hotel in {town} on {day} night.
Nothing else is missing. According to the porter, a friendly guest with a large suitcase had checked out
shortly before dawn, paid in coins and left a note of thanks. It has rained in the town ever since.

library
Before you ask for a book, look it up in the catalogue and write down its number. Books with a red label
stay in the reading room; all others may be borrowed for {few} weeks. If somebody else is waiting, {name}
at the desk will tell you. The library closes early on {day} and all day on public holidays.

winter
That {season} the river froze so hard that people crossed it on foot. {name} carried eggs to the other
side and came back with candles. At night they could hear the ice groan, {few} or more times, like a door
in an empty house. When it finally broke, the noise woke everyone in {town}, and nobody was sorry.
""")
N_VARIANTS = 3


def items(seed: int) -> list[Row]:
    """Fill the passages' open places in several ways."""
    rng = random.Random(f"prose_text-{seed}")
    return [
        row
        for name, text in sorted(PASSAGES.items())
        for row in variants(name, N_VARIANTS, lambda text=text: filled(text, rng))
    ]


def filled(text: str, rng: random.Random) -> str:
    """Draw a word for every open place."""
    drawn = {slot: rng.choice(words) for slot, words in SLOTS.items()}
    return text.format(
        **drawn, animal2=rng.choice(["owl", "eel", "otter", "eagle"]), season2=rng.choice(["June", "July"])
    )
