"""Reading: a short passage made by rule, and questions whose answer stands in it.

Invariant: an answer is stated once, and at least one wrong choice is of the same type and
stands in the same passage, so that naming any word that occurred is not enough.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from generators.rows import Row, choice_row, place_gold, unique, words

NAMES = words("""
Anna Ben Clara David Emma Frank Grace Henry Ivan Julia Karl Lucy Maria Noah Olga Paul Rosa Sam Tina Victor
""")
THINGS = words("key book letter ring camera map wallet phone scarf ticket cup watch")
SPOTS = ["drawer", "bag", "box", "cupboard", "basket", "car", "pocket", "garage", "kitchen", "desk"]
COLOURS = ["red", "blue", "green", "yellow", "white", "black", "brown", "purple"]
CLOTHES = ["coat", "hat", "shirt", "jacket", "dress", "sweater"]
PETS = ["cat", "dog", "rabbit", "parrot", "hamster", "turtle", "pony", "goldfish"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
TOWNS = ["Rome", "Berlin", "London", "Boston", "Madrid", "Vienna", "Dublin", "Chicago", "Oslo", "Paris"]
FOODS = ["soup", "pizza", "salad", "rice", "fish", "cake", "bread", "noodles", "pancakes", "eggs"]
DRINKS = ["tea", "coffee", "milk", "juice", "water", "lemonade"]
RIDES = ["train", "bus", "car", "plane", "bicycle", "boat"]
JOBS = ["teacher", "doctor", "baker", "farmer", "lawyer", "painter", "nurse", "pilot", "cook", "driver"]
SUBJECTS = ["history", "music", "biology", "art", "chemistry", "geography", "maths", "law"]
NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


class Question(NamedTuple):
    """A question, its answer, and three wrong answers of the same type."""

    text: str
    answer: str
    wrong: list[str]


class Passage(NamedTuple):
    """A passage and what can be asked about it."""

    text: str
    questions: list[Question]


def question(r: random.Random, text: str, answer: str, kind: list[str], present: tuple[str, ...]) -> Question:
    """Take the rivals that stand in the passage first, then others of the kind."""
    absent = [word for word in kind if word != answer and word not in present]
    return Question(text, answer, [*present, *r.sample(absent, 2)][:2])


def hidden(r: random.Random) -> Passage:
    """Two people put two things away."""
    (a, b), (x, y), (p, q) = r.sample(NAMES, 2), r.sample(THINGS, 2), r.sample(SPOTS, 2)
    return Passage(f"{a} put the {x} in the {p}. {b} put the {y} in the {q}.", [
        question(r, f"Where is the {x}?", f"in the {p}", [f"in the {s}" for s in SPOTS], (f"in the {q}",)),
        question(r, f"Who put away the {y}?", b, NAMES, (a,)),
        question(r, f"What is in the {q}?", f"the {y}", [f"the {t}" for t in THINGS], (f"the {x}",)),
    ])  # fmt: skip


def dressed(r: random.Random) -> Passage:
    """Two people wear two things."""
    (a, b), (x, y), (c, d) = r.sample(NAMES, 2), r.sample(CLOTHES, 2), r.sample(COLOURS, 2)
    return Passage(f"{a} is wearing a {c} {x}. {b} is wearing a {d} {y}.", [
        question(r, f"What colour is the {x}?", c, COLOURS, (d,)),
        question(r, f"Who is wearing a {y}?", b, NAMES, (a,)),
        question(r, f"What is {b} wearing?", f"a {y}", [f"a {t}" for t in CLOTHES], (f"a {x}",)),
    ])  # fmt: skip


def pets(r: random.Random) -> Passage:
    """Two people have animals with names."""
    (a, b, m, n), (x, y) = r.sample(NAMES, 4), r.sample(PETS, 2)
    return Passage(f"{a} has a {x} called {m}. {b} has a {y} called {n}.", [
        question(r, f"What animal does {b} have?", f"a {y}", [f"a {p}" for p in PETS], (f"a {x}",)),
        question(r, f"What is the name of the {x}?", m, NAMES, (n,)),
        question(r, f"Who has a {x}?", a, NAMES, (b,)),
    ])  # fmt: skip


def trip(r: random.Random) -> Passage:
    """Somebody goes from one town to another."""
    a, (p, q), day, ride = r.choice(NAMES), r.sample(TOWNS, 2), r.choice(DAYS), r.choice(RIDES)
    back = r.choice([d for d in DAYS if d != day])
    text = f"On {day}, {a} took the {ride} from {p} to visit a friend in {q}, and came home on {back}."
    return Passage(text, [
        question(r, f"Where does {a}'s friend live?", f"in {q}", [f"in {t}" for t in TOWNS], (f"in {p}",)),
        question(r, f"When did {a} come home?", f"on {back}", [f"on {d}" for d in DAYS], (f"on {day}",)),
        question(r, f"How did {a} travel?", f"by {ride}", [f"by {t}" for t in RIDES], ()),
    ])  # fmt: skip


def meal(r: random.Random) -> Passage:
    """Two people order food and drink."""
    (a, b), (x, y), (t, u) = r.sample(NAMES, 2), r.sample(FOODS, 2), r.sample(DRINKS, 2)
    return Passage(f"At lunch {a} ate {x} and drank {t}. {b} ate {y} and drank {u}.", [
        question(r, f"What did {a} eat?", x, FOODS, (y,)),
        question(r, f"What did {b} drink?", u, DRINKS, (t,)),
        question(r, f"Who ate {y}?", b, NAMES, (a,)),
    ])  # fmt: skip


def work(r: random.Random) -> Passage:
    """Two people have jobs in towns."""
    (a, b), (x, y), (p, q) = r.sample(NAMES, 2), r.sample(JOBS, 2), r.sample(TOWNS, 2)
    return Passage(f"{a} is a {x} and lives in {p}. {b} is a {y} and lives in {q}.", [
        question(r, f"What is {a}'s job?", x, JOBS, (y,)),
        question(r, f"Where does {b} live?", f"in {q}", [f"in {t}" for t in TOWNS], (f"in {p}",)),
        question(r, f"Who lives in {p}?", a, NAMES, (b,)),
    ])  # fmt: skip


def school(r: random.Random) -> Passage:
    """A pupil likes one subject and not another."""
    (a, b), (x, y), day = r.sample(NAMES, 2), r.sample(SUBJECTS, 2), r.choice(DAYS[:5])
    return Passage(f"{a} likes {x} but finds {y} difficult. Every {day} {b} helps with the homework.", [
        question(r, f"What does {a} find difficult?", y, SUBJECTS, (x,)),
        question(r, f"Who helps {a}?", b, NAMES, ()),
        question(r, "When is homework done together?", f"every {day}", [f"every {d}" for d in DAYS], ()),
    ])  # fmt: skip


def shop(r: random.Random) -> Passage:
    """Somebody buys two kinds of things."""
    a, (m, n), (x, y), day = r.choice(NAMES), r.sample(NUMBERS, 2), r.sample(GOODS, 2), r.choice(DAYS)
    return Passage(f"On {day} {a} went to the market and bought {m} {x} and {n} {y}.", [
        question(r, f"How many {y} did {a} buy?", n, NUMBERS, (m,)),
        question(r, f"When did {a} go to the market?", f"on {day}", [f"on {d}" for d in DAYS], ()),
        question(r, f"What did {a} buy {m} of?", x, GOODS, (y,)),
    ])  # fmt: skip


GOODS = [
    "apples",
    "candles",
    "lemons",
    "plates",
    "onions",
    "flowers",
    "pencils",
    "melons",
    "potatoes",
    "spoons",
]


TEMPLATES: tuple[Callable[[random.Random], Passage], ...] = (
    hidden, dressed, pets, trip, meal, work, school, shop,
)  # fmt: skip
PER_TEMPLATE = 22


def items(seed: int) -> list[Row]:
    """Write the passages of every template and ask all their questions."""
    rng = random.Random(f"reading-{seed}")
    rows = [row for template in TEMPLATES for i in range(PER_TEMPLATE) for row in asked(template, i, rng)]
    return place_gold(unique(rows), rng)


def asked(template: Callable[[random.Random], Passage], i: int, rng: random.Random) -> list[Row]:
    """Ask the questions of one passage, which is their cluster."""
    passage, cluster = template(rng), f"{template.__name__}-{i:02d}"
    return [
        choice_row(
            f"{cluster}-{n}", f"{passage.text}\nQuestion: {q.text}\nAnswer:", q.answer, q.wrong, cluster
        )
        for n, q in enumerate(passage.questions)
    ]
