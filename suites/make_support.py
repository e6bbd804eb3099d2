"""Write the quickstart's support-desk task: `python suites/make_support.py [OUTDIR]`.

Invariant: the output is a function of this file alone (every choice is ordered by sha256, none
drawn from a generator whose algorithm could change), no wording is shared between splits, and
each fact's value stands in exactly one document.

The shop, its people and every sentence are made up here. Two slices:

- `behaviour`: a customer names two matters of which one is settled; the reply names the queue
  of the other one and the customer's tone. Each wording is used with the matters exchanged, so
  the words of a message alone do not give the queue.
- `knowledge`: a question about one fact of the shop. In test and validation half of the facts
  stand in documents that training never asks about or quotes.

Some training rows carry pasted passages in the layout retrieval uses, as messages at a help
desk do; such passages come from documents of the training part only.
"""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]

# ---- behaviour: {a} is still open, {b} is settled; {A} and {B} begin a sentence ----

QUEUES = ("returns", "delivery", "billing", "repairs")
TONES = ("calm", "upset")
EXCHANGES = ((1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0))  # settled queue by open queue: swaps only

MATTERS = {
    "returns": (
        "my return label",
        "the size exchange",
        "the jacket I sent back",
        "my returned rucksack",
        "the swap for a bigger size",
        "my return form",
        "the coat I handed back",
        "the exchange voucher",
    ),
    "delivery": (
        "my missing parcel",
        "the delivery slot",
        "the late courier",
        "my shipment",
        "the tracking number",
        "the order in transit",
        "the lost package",
        "the wrong shipping address",
    ),
    "billing": (
        "the double charge",
        "my invoice",
        "the wrong total",
        "the card payment",
        "the VAT receipt",
        "the direct debit",
        "the unpaid bill",
        "the overcharged amount",
    ),
    "repairs": (
        "the broken zip",
        "the torn strap",
        "my leaking stove",
        "the snapped tent pole",
        "the cracked lens",
        "the repair quote",
        "the bent buckle",
        "my faulty lantern",
    ),
}
N_TRAINING_MATTERS = 6  # the last two of each queue are first met in validation and test

MESSAGES = {
    "train": {
        "calm": (
            "Thanks, {b} is sorted. Could someone look at {a} next?",
            "Hi, {a} is still open on my side. {B} is done, so no need to check that.",
            "Please skip {b}, I fixed that myself. I'd like help with {a}.",
            "Could you check on {a}? {B} has already been taken care of.",
            "It's not {b} I'm writing about today, it's {a}.",
            "I'm asking about {a}, not {b}. Whenever it suits you.",
            "Your colleague Mia settled {b} yesterday, very kind. {A} is all that is left.",
            "{A} is still pending, I believe. {B} was solved on Friday, thank you.",
            "Good morning. {B}: all good now. {A}: not yet. Thanks for your help.",
            "No hurry, but {a} has not moved yet. {B} has.",
            "I mentioned {b} before; you can close that one. Today I need a hand with {a}.",
            "Just a friendly reminder about {a}. You already dealt with {b}.",
            "Great job with {b}! May I now ask for the same with {a}?",
            "Nothing has happened with {a} so far. {B} went smoothly. Kind regards.",
            "My wife called about {b} and that is settled. I have a question about {a}.",
            "I would still like {a} looked into. {B} no longer matters.",
            "I was worried about {b}, but it worked out. Only {a} remains, take your time.",
            "Please reopen {a}, it came back. {B} can stay closed.",
            "Of the two things I reported, {b} is finished and {a} is not. Cheers.",
            "Is there any news on {a}? I ask because {b} was handled so quickly.",
        ),
        "upset": (
            "{B} is finally done. But {a}? Three weeks and not one word!",
            "I am sick of asking about {a}. {B} you managed, so why not this?",
            "Stop writing to me about {b}, that is over. Fix {a} already!",
            "Why is nobody dealing with {a}? I only hear about {b}, which was solved ages ago.",
            "Don't tell me about {b} again. It's {a} that you keep ignoring.",
            "This is the fifth time I report {a}. And no, {b} is not the problem, that works.",
            "You closed {b}, fine. You also closed {a}, and that one is NOT solved. Unbelievable.",
            "{A} is a disgrace. {B} at least got done.",
            "I had to fix {b} on my own. Do I have to do {a} as well?",
            "Nobody has lifted a finger over {a}. Even {b} was quicker, and that took a month.",
            "Fine, {b} is settled. Now explain to me why {a} still isn't!",
            "I want {a} solved today or I cancel everything. Forget {b}, that is done.",
            "You thanked me for my patience with {b}. It's used up. {A}, now.",
            "Still nothing on {a}! Last week you sorted {b} in an hour, so don't tell me it's hard.",
            "After all that fuss {b} got fixed. How long must I beg for {a}?",
            "{A}: ignored. {B}: done after two complaints. What a service.",
            "I didn't ask about {b}, that's long finished. I asked about {a}. Do you even read this?",
            "What on earth is going on with {a}? {B} is fixed, no thanks to you.",
            "Three people answered me on {b}, which is solved. Zero on {a}. Ridiculous.",
            "I refuse to wait any longer for {a}. {B} has been put right, that's not enough.",
        ),
    },
    "validation": {
        "calm": (
            "Hello, {b} has been resolved, many thanks. {A} still needs some attention.",
            "May I bring up {a} again? There is nothing left to do about {b}.",
            "You can tick off {b}. Please put {a} back on the list.",
            "I'm still curious about {a}. {B} turned out fine.",
            "First of all, thanks for finishing {b}. How are things with {a}?",
            "{A} is the one I need. We already closed {b} together.",
            "Never mind {b}, my neighbour helped me. {A} is what I can't solve.",
        ),
        "upset": (
            "Wonderful, {b} is solved. And who looks after {a}? Nobody, as usual.",
            "I have had enough. {A} is still a mess, and you answer me about {b}, which is finished.",
            "Yes, {b} is over and done with. That doesn't excuse the chaos over {a}!",
            "How often do I have to write about {a}? {B} is fixed, leave that alone.",
            "You promised me both. {B} you delivered. {A} you forgot. Pathetic.",
            "{A} is driving me mad! {B} was nothing compared to it, and that got solved.",
        ),
    },
    "test": {
        "calm": (
            "{B} is off my list, thank you so much. The remaining point is {a}.",
            "Would you mind helping me with {a}? I no longer need anything for {b}.",
            "Everything is in order with {b}. I haven't had an answer on {a} yet.",
            "I'm getting in touch because of {a}. The matter of {b} is behind us.",
            "Tom from your team kindly solved {b}. Could he do {a} too?",
            "About {a}: it hasn't been fixed so far. About {b}: it has. All the best.",
            "I had two requests. You have completed {b}. I'm waiting for {a}, no rush.",
            "{A} has yet to be done, if I'm not mistaken. I've ticked off {b}.",
            "Scrap my note on {b}, it resolved itself. My question is about {a}.",
            "When you get round to it, please see to {a}. {B} was cleared up on Monday.",
            "I was cross about {b}, but you made up for it. One last wish: {a}.",
            "There seems to be an open point, {a}. I'm happy with how {b} ended.",
            "Not {b}, please, that's fine now. {A} is the topic of this mail.",
        ),
        "upset": (
            "Congratulations, you got {b} done. Shame about {a}, which nobody touches!",
            "{A} is still not fixed and I'm losing my temper. {B} is, before you ask.",
            "Do not send me another mail on {b}. That's solved. What about {a}?!",
            "How dare you mark {a} as solved? Only {b} was.",
            "I've heard enough excuses. {B} worked out in the end, {a} never did.",
            "Is {a} a joke to you? Don't point at {b}, we finished that in spring.",
            "So you can do it: {b} is settled. Then get {a} done, for heaven's sake!",
            "{A}, for the last time! I couldn't care less about {b}, that's history.",
            "First {b} took forever, and now that it's done you let {a} rot.",
            "Worst shop ever. Nobody cares about {a}. {B} I had to solve myself.",
            "Everyone hides behind {b}, although it's closed. I demand an answer on {a}.",
            "I'm fed up waiting for {a}. The only thing you ever completed is {b}.",
            "Seriously? {B} gets done the same day, and for {a} I'm told to wait until autumn?",
        ),
    },
}

# ---- knowledge: four kinds of document, three facts each ----

SERIES = ("Larkfell", "Ostrava", "Brindle", "Quillon", "Tamsin", "Harrow", "Velmont", "Corrie")
NOUNS = {
    "backpack": "rucksack",
    "stove": "cooker",
    "lantern": "lamp",
    "jacket": "coat",
    "tent": "shelter",
    "flask": "thermos",
    "mat": "mattress",
    "axe": "hatchet",
}  # the shop's word: a customer's word
COLOURS = ("moss green", "slate grey", "rust red", "sand", "navy", "charcoal")
TOWNS = (
    "Ostwick",
    "Penmarsh",
    "Dunley",
    "Harbeck",
    "Wexcombe",
    "Torrin",
    "Ambleby",
    "Fenholt",
    "Kirkvale",
    "Mossford",
    "Rannoth",
    "Selby Cross",
    "Thornquay",
    "Ullerton",
    "Yarrowby",
    "Graythwaite",
)
SERVICES = {
    "gift wrapping": "packing up a present",
    "boot resoling": "new soles for my shoes",
    "tent rental": "borrowing a tent",
    "name engraving": "having my initials cut in",
    "backpack fitting": "getting a rucksack adjusted",
    "jacket reproofing": "making a coat waterproof again",
    "stove servicing": "a check-up of my cooker",
    "zip replacement": "a new zip",
    "price matching": "getting a rival's lower price",
    "trade-in": "handing in old gear for credit",
    "parcel insurance": "insuring what you send me",
    "group orders": "buying for a whole club",
    "rope inspection": "having a climbing rope checked",
    "sleeping bag cleaning": "washing a down bag",
    "axe sharpening": "a fresh edge on my hatchet",
    "ski storage": "keeping skis over the summer",
}  # the shop's words: a customer's words
COURSES = (
    "map reading",
    "knot tying",
    "fire lighting",
    "wild cooking",
    "river crossing",
    "snow camping",
    "bird spotting",
    "first aid",
    "bike packing",
    "star gazing",
    "foraging",
    "whittling",
    "canoe handling",
    "night hiking",
    "rope climbing",
    "weather reading",
)
STREETS = (
    "Tallow Lane",
    "Mill Row",
    "Anchor Street",
    "Cooper Yard",
    "Lantern Hill",
    "Dyers Walk",
    "Salt Quay",
    "Bell Passage",
    "Orchard Rise",
    "Chapel Steps",
    "Ferry Road",
    "Market Bow",
    "Granary Court",
    "Ropers Alley",
    "Weir Terrace",
    "Fountain Bank",
)
ROOMS = (
    "Copper Room",
    "Willow Room",
    "Attic Room",
    "Cellar Room",
    "Garden Room",
    "Amber Room",
    "Beacon Room",
    "Stone Room",
    "Harbour Room",
    "Maple Room",
    "Tower Room",
    "Falcon Room",
    "Linen Room",
    "Ivory Room",
    "Bridge Room",
    "Meadow Room",
)
FORENAMES = (
    "Petra",
    "Oskar",
    "Maeve",
    "Tobias",
    "Ingrid",
    "Rafael",
    "Noor",
    "Callum",
    "Hanna",
    "Dmitri",
    "Yusuf",
    "Greta",
    "Silvio",
    "Amara",
    "Lucian",
    "Freya",
)
MANAGERS = (
    "Holloway",
    "Brandt",
    "Okafor",
    "Lindqvist",
    "Marsh",
    "Teller",
    "Novak",
    "Pryce",
    "Castell",
    "Winter",
    "Abara",
    "Dahl",
    "Finch",
    "Moreau",
    "Kettle",
    "Stroud",
)
TEACHERS = (
    "Vance",
    "Ibarra",
    "Sorensen",
    "Quayle",
    "Ashdown",
    "Bellamy",
    "Radek",
    "Thorne",
    "Umber",
    "Hale",
    "Lomax",
    "Eriksen",
    "Cordell",
    "Pavlov",
    "Wren",
    "Jessop",
)

TEXTS = {
    "product": (
        "Our {name} in {colour} sells for {price}, weighs {weight} and has a guarantee of {guarantee}.",
        "The {name} in {colour}: price {price}, weight {weight}, guaranteed for {guarantee}.",
    ),
    "branch": (
        "You find our {name} branch at {street}. It opens at {opening}. Manager: {manager}.",
        "The {name} branch is run by {manager}, stands at {street} and opens at {opening} every day.",
    ),
    "service": (
        "We offer {name} in every branch. It costs {fee}, takes {duration} and is booked on {extension}.",
        "For {name} call {extension}. The fee is {fee} and the work is ready after {duration}.",
    ),
    "course": (
        "Our {name} course is taught by {teacher}. It starts at {start} in the {room}.",
        "Learn {name} in the {room}: the course begins at {start}, and {teacher} teaches it.",
    ),
}
TITLES = {"product": "{name}", "branch": "{name} branch", "service": "{name}", "course": "{name} course"}

# {e} is the shop's name of the thing, {alias} a customer's own words for it.
QUESTIONS = {
    "price": {
        "train": (
            "How much is the {e}?",
            "What do I pay for the {e}?",
            "Price of the {e}, please?",
            "What does the {e} cost?",
        ),
        "validation": ("Tell me what you charge for the {e}.",),
        "test": ("How much money should I bring for the {e}?", "What would the {alias} set me back?"),
    },
    "weight": {
        "train": (
            "How heavy is the {e}?",
            "What does the {e} weigh?",
            "I need the weight of the {e}.",
            "How many grams is the {e}?",
        ),
        "validation": ("What do the scales say for the {e}?",),
        "test": ("If I carry the {e}, how much weight is that?", "Is the {alias} light? Give me the grams."),
    },
    "guarantee": {
        "train": (
            "How long is the guarantee on the {e}?",
            "What guarantee does the {e} have?",
            "For how many months is the {e} guaranteed?",
            "The {e}: guarantee until when?",
        ),
        "validation": ("How long are you liable for faults of the {e}?",),
        "test": (
            "How long am I covered if I buy the {e}?",
            "How many months of cover does the {alias} have?",
        ),
    },
    "street": {
        "train": (
            "Where is the {e} branch?",
            "What is the address of the {e} branch?",
            "Which street is your {e} shop in?",
            "How do I find the {e} branch?",
        ),
        "validation": ("I want to walk to the {e} shop. Where do I go?",),
        "test": ("What address do I give the taxi for your {e} shop?", "Where in {e} are you?"),
    },
    "opening": {
        "train": (
            "When does the {e} branch open?",
            "What time do you open in {e}?",
            "From what time can I visit the {e} branch?",
            "Opening time of the {e} branch?",
        ),
        "validation": ("How early can I come to the {e} shop?",),
        "test": (
            "At what hour do the doors open in {e}?",
            "I'm in {e} tomorrow morning. From when are you there?",
        ),
    },
    "manager": {
        "train": (
            "Who runs the {e} branch?",
            "Who is the manager in {e}?",
            "Name of the {e} branch manager?",
            "Who is in charge of the {e} branch?",
        ),
        "validation": ("Who is the boss of the {e} shop?",),
        "test": ("Who leads your team in {e}?", "To whom do I address a letter to the head of the {e} shop?"),
    },
    "fee": {
        "train": (
            "What is the fee for {e}?",
            "How much do you charge for {e}?",
            "What does {e} cost?",
            "{E}: what do I pay?",
        ),
        "validation": ("What will {e} come to?",),
        "test": ("How expensive is {e}?", "What do you ask for {alias}?"),
    },
    "duration": {
        "train": (
            "How long does {e} take?",
            "How many days do you need for {e}?",
            "When is {e} ready?",
            "{E}: how many days?",
        ),
        "validation": ("How many days must I wait for {e}?",),
        "test": ("I ordered {e} today. In how many days is it finished?", "How much time does {alias} need?"),
    },
    "extension": {
        "train": (
            "Which extension do I call for {e}?",
            "Where do I book {e}?",
            "What number is {e} on?",
            "Extension for {e}, please?",
        ),
        "validation": ("I'd like to phone someone about {e}. Which extension?",),
        "test": ("What do I dial for {e}?", "Which line is right for {alias}?"),
    },
    "teacher": {
        "train": (
            "Who teaches the {e} course?",
            "Who is the teacher of {e}?",
            "Name of the {e} teacher?",
            "Who gives the {e} course?",
        ),
        "validation": ("Who would instruct me in {e}?",),
        "test": ("Who stands in front of the {e} class?", "With whom would I learn {e}?"),
    },
    "start": {
        "train": (
            "When does the {e} course start?",
            "What time does {e} begin?",
            "Start of the {e} course?",
            "At what time is {e}?",
        ),
        "validation": ("When do I have to be there for {e}?",),
        "test": ("What time should I turn up for the {e} class?", "By when must I arrive for {e}?"),
    },
    "room": {
        "train": (
            "Which room is the {e} course in?",
            "Where is the {e} course?",
            "Room for {e}, please?",
            "Where does {e} take place?",
        ),
        "validation": ("Which door do I look for when I come for {e}?",),
        "test": ("I'm at the desk for {e}. Where now?", "Where do the {e} people meet?"),
    },
}
FACTS = {
    "product": ("price", "weight", "guarantee"),
    "branch": ("street", "opening", "manager"),
    "service": ("fee", "duration", "extension"),
    "course": ("teacher", "start", "room"),
}
# Documents of each kind by part: asked about in training, quoted in training, new in validation, new in test.
PARTS = {
    "product": (6, 6, 4, 8),
    "branch": (4, 4, 2, 6),
    "service": (4, 4, 2, 6),
    "course": (4, 4, 2, 6),
}
N_QUOTED = {"knowledge": 52, "behaviour": 24}  # training rows with pasted passages


class Thing(NamedTuple):
    """One document of the shop and the facts it states; `part` says which split may use it."""

    id: str
    kind: str
    name: str
    alias: str
    part: str
    values: dict[str, str]

    @property
    def document(self) -> Row:
        """The thing as a row of documents.jsonl."""
        text = _pick(TEXTS[self.kind], self.id)
        return {
            "id": self.id,
            "title": _capital(TITLES[self.kind].format(name=self.name)),
            "text": text.format(name=self.name, colour=_pick(COLOURS, self.id), **self.values),
        }


class Fact(NamedTuple):
    """One value of one thing."""

    thing: Thing
    attribute: str

    @property
    def value(self) -> str:
        """The answer."""
        return self.thing.values[self.attribute]


def _order(items: Iterable[Any], salt: str) -> list[Any]:
    """Shuffle by the sha256 of salt and item."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{salt}/{item}".encode()).digest())


def _pick(items: Sequence[Any], salt: str) -> Any:
    return _order(items, salt)[0]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# ---- the shop ----


def _clock(first_h: int, last_h: int) -> list[str]:
    return [f"{h}:{m:02d}" for h in range(first_h, last_h) for m in range(5, 60, 10)]


def _people(surnames: Sequence[str], salt: str) -> list[str]:
    return [f"{a} {b}" for a, b in zip(_order(FORENAMES, salt), surnames, strict=True)]


def _values() -> dict[str, list[str]]:
    """Return for every attribute more distinct values than things; none contains another."""
    pools = {
        "price": [f"{n} euros" for n in range(27, 189) if n % 5],
        "weight": [f"{n} grams" for n in range(230, 1990, 10) if n % 100],
        "guarantee": [f"{n} months" for n in range(13, 59)],
        "street": [f"{n} {s}" for n, s in zip(_order(range(11, 99), "houses"), STREETS, strict=False)],
        "opening": _clock(7, 11),
        "manager": _people(MANAGERS, "managers"),
        "fee": [f"{n / 10:.2f} euros" for n in range(32, 198) if n % 10],
        "duration": [f"{n} days" for n in range(3, 48)],
        "extension": [f"extension {n}" for n in range(203, 899)],
        "teacher": _people(TEACHERS, "teachers"),
        "start": _clock(16, 21),
        "room": list(ROOMS),
    }
    return {attribute: _order(pool, attribute) for attribute, pool in pools.items()}


def _names() -> dict[str, list[tuple[str, str]]]:
    """Return (shop's name, customer's name) by kind; each series of products has three kinds of thing."""
    nouns = list(NOUNS)
    products = [(s, nouns[(i + j * j) % 8]) for i, s in enumerate(SERIES) for j in range(3)]
    return {
        "product": [(f"{s} {n}", f"{s} {NOUNS[n]}") for s, n in products],
        "branch": [(town, town) for town in TOWNS],
        "service": list(SERVICES.items()),
        "course": [(course, course) for course in COURSES],
    }


def shop() -> list[Thing]:
    """Return every thing of the shop with its facts and its part."""
    pools, things = _values(), []
    for kind, names in _names().items():
        parts = [
            p
            for p, n in zip(("asked", "quoted", "validation", "test"), PARTS[kind], strict=True)
            for _ in range(n)
        ]
        for i, ((name, alias), part) in enumerate(zip(names, _order_parts(parts, kind), strict=True)):
            values = {a: pools[a][i] for a in FACTS[kind]}
            things.append(Thing(f"{kind}-{i + 1:02d}", kind, name, alias, part, values))
    return things


def _order_parts(parts: list[str], kind: str) -> list[str]:
    return [part for _, part in _order(enumerate(parts), kind)]


# ---- rows ----


def _message(split: str, tone: str, family: int, open_queue: int, salt: str) -> tuple[str, str]:
    """Return one message and the queue of its settled matter."""
    settled = EXCHANGES[family % 3][open_queue]
    n = N_TRAINING_MATTERS if split == "train" else len(MATTERS["returns"])
    a = _pick(MATTERS[QUEUES[open_queue]][:n], f"{salt}/a")
    b = _pick(MATTERS[QUEUES[settled]][:n], f"{salt}/b")
    wording = MESSAGES[split][tone][family]
    return _capital(wording.format(a=a, b=b, A=_capital(a), B=_capital(b))), QUEUES[settled]


def _reply(queue: str, tone: str) -> str:
    return f"queue: {queue} | tone: {tone}"


CHOICES = [_reply(queue, tone) for queue in QUEUES for tone in TONES]


def _behaviour(split: str, salt: str, open_queues: Sequence[int] = range(4)) -> Iterator[tuple[Row, str]]:
    """Yield rows of all message families of a split, each with the queue of its settled matter."""
    for tone in TONES:
        for family in range(len(MESSAGES[split][tone])):
            cluster = f"{split}-b-{tone}-{family + 1:02d}"
            for queue in open_queues:
                prompt, settled = _message(split, tone, family, queue, f"{salt}/{cluster}/{queue}")
                yield (
                    {
                        "prompt": prompt,
                        "reference": _reply(QUEUES[queue], tone),
                        "choices": CHOICES,
                        "cluster": cluster,
                        "slice": "behaviour",
                    },
                    settled,
                )


def _question(split: str, fact: Fact, wording: int) -> Row:
    thing = fact.thing
    words = {"e": thing.name, "E": _capital(thing.name), "alias": thing.alias}
    return {
        "prompt": QUESTIONS[fact.attribute][split][wording].format(**words),
        "reference": fact.value,
        "cluster": f"{split}-k-{fact.attribute}-{wording + 1}",
        "slice": "knowledge",
        "documents": [thing.id],
    }


def _facts(things: Iterable[Thing], part: str) -> list[Fact]:
    return [Fact(t, a) for t in things if t.part == part for a in FACTS[t.kind]]


def _asked_facts(things: Sequence[Thing]) -> list[Fact]:
    """Return two facts of each thing that training asks about."""
    asked = [t for t in things if t.part == "asked"]
    return [Fact(t, FACTS[t.kind][(i + j) % 3]) for i, t in enumerate(asked) for j in range(2)]


def _training_questions(facts: Iterable[Fact], n_wordings: int, first: int = 0) -> Iterator[tuple[Fact, Row]]:
    """Yield each fact in several training wordings; an attribute's wordings take turns."""
    turns: Counter[str] = Counter()
    for fact in facts:
        for _ in range(n_wordings):
            yield fact, _question("train", fact, (first + turns[fact.attribute]) % 4)
            turns[fact.attribute] += 1


def _paste(row: Row, passages: Sequence[Thing]) -> Row:
    """Put passages before the prompt in the layout of retrieval."""
    lines = [f"{d['title']}: {d['text']}" for d in (t.document for t in _order(passages, row["prompt"]))]
    return row | {"prompt": "Context:\n" + "\n".join(lines) + "\n\n" + row["prompt"]}


def _quoted_questions(things: Sequence[Thing]) -> list[Row]:
    """Return training questions with the right document and one of the same kind pasted in."""
    quoted = [t for t in things if t.part == "quoted"]
    facts = _order(_facts(things, "quoted"), "quoted questions")[: N_QUOTED["knowledge"]]
    rows = []
    for fact, row in _training_questions(facts, 1, first=2):
        others = [t for t in quoted if t.kind == fact.thing.kind and t != fact.thing]
        rows.append(_paste(row, [fact.thing, _pick(others, row["prompt"])]))
    return rows


def _training(things: Sequence[Thing]) -> list[Row]:
    quotable = [t for t in things if t.part in ("asked", "quoted")]
    messages = _order((row for row, _ in _behaviour("train", "train")), "which messages quote")
    n = N_QUOTED["behaviour"]
    pasted = [_paste(row, _order(quotable, row["prompt"])[:2]) for row in messages[:n]]
    closed = [row for _, row in _training_questions(_asked_facts(things), 3)]
    return _numbered("train", [*pasted, *messages[n:], *closed, *_quoted_questions(things)])


def _held_out(things: Sequence[Thing], split: str, per_wording: int) -> list[Row]:
    """Return a split whose questions are half on facts known from training, half on new ones."""
    known, new = _asked_facts(things), _facts(things, split)
    rows = [row for row, _ in _behaviour(split, split)]
    for attribute, wordings in QUESTIONS.items():
        pools = [
            cycle(_order([f for f in fs if f.attribute == attribute], f"{split}/{attribute}"))
            for fs in (known, new)
        ]
        for wording in range(len(wordings[split])):
            for pool in pools:
                rows += [_question(split, f, wording) for f in islice(pool, per_wording // 2)]
    return _numbered(split, rows)


def _numbered(split: str, rows: Iterable[Row]) -> list[Row]:
    """Give ids, and put the rows into an order that mixes the slices."""
    numbers = count(1)
    return [{"id": f"{split}-{next(numbers):03d}", **row} for row in _order(rows, f"{split} order")]


def _pairs(things: Sequence[Thing]) -> list[Row]:
    """Return preferences in training wordings; the settled queue or another thing's fact is rejected."""
    rows = [
        (row, _reply(settled, row["reference"].rsplit(" ", 1)[1]))
        for row, settled in _behaviour("train", "pairs", (1, 2))
    ]
    facts = _asked_facts(things)
    for fact, row in _training_questions(facts, 2):
        others = [f.value for f in facts if f.attribute == fact.attribute and f != fact]
        rows.append((row, _pick(others, row["prompt"])))
    return _numbered("pair", (_preference(row, rejected) for row, rejected in rows))


def _preference(row: Row, rejected: str) -> Row:
    return {
        "prompt": row["prompt"],
        "chosen": row["reference"],
        "rejected": rejected,
        "cluster": row["cluster"],
    }


def files() -> dict[str, list[Row]]:
    """Return the rows of every file by its name."""
    things = shop()
    return {
        "train": _training(things),
        "validation": _held_out(things, "validation", 4),
        "test": _held_out(things, "test", 4),
        "pairs": _pairs(things),
        "documents": [t.document for t in things],
    }


def write(folder: Path) -> None:
    """Write all files as JSON Lines into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files().items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "support")
