"""Instructions: short requests about form that a program can check, asked in chat.

Invariant: every item holds a reference that keeps its own constraints, and no single label or
copied phrase does: each asks for content (given words, or at least three words) besides form.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

from generators.rows import Row, slug, table, unique

Constraint = dict[str, Any]
Item = tuple[str, str, list[Constraint]]  # prompt, reference, constraints

KINDS_OF = table("""
fruits | apple, pear, plum, banana, peach
colours | red, blue, green, yellow, white
animals | dog, cat, horse, lion, rabbit
vegetables | carrot, onion, potato, cabbage, pea
countries | France, Japan, Brazil, Kenya, Canada
drinks | tea, coffee, milk, water, juice
sports | tennis, football, swimming, rowing, boxing
tools | hammer, saw, drill, wrench, chisel
jobs | teacher, doctor, baker, farmer, nurse
cities | Paris, Rome, Tokyo, Cairo, Lima
birds | owl, robin, eagle, swan, parrot
instruments | piano, violin, flute, drum, guitar
months | May, June, July, March, April
clothes | shirt, coat, hat, sock, skirt
""")

# topic | one sentence about it, used as the reference of several forms
TOPICS = table("""
the sea | The sea is wide and blue.
winter | The snow makes winter quiet.
a cat | The cat sleeps in the sun.
the moon | The moon shines at night.
a train | The train leaves in the morning.
music | The music made everybody dance.
bread | The bread is fresh and warm.
a garden | The garden is full of roses.
a river | The river runs to the sea.
books | The books stand on the shelf.
rain | The rain falls on the roof.
a school | The school opens at eight.
coffee | The coffee smells good today.
a dog | The dog runs after the ball.
summer | The summer was long and hot.
a city | The city never sleeps at night.
""")

WORD_PAIRS = table("""
river | boat | The boat goes down the river.
cat | milk | The cat drinks its milk.
teacher | book | The teacher opens the book.
snow | house | The snow covers the house.
king | horse | The king rides a horse.
tree | bird | The bird sits in the tree.
doctor | child | The doctor helps the child.
bread | cheese | We ate bread and cheese.
train | city | The train goes to the city.
garden | flower | A flower grows in the garden.
dog | ball | The dog chases the ball.
sun | beach | The sun warms the beach.
letter | friend | I sent a letter to my friend.
rain | window | The rain hits the window.
farmer | cow | The farmer feeds the cow.
moon | night | The moon lights up the night.
""")

PERSONS = table("""
Anna | 30 | Rome
Ben | 25 | Oslo
Clara | 41 | Paris
David | 19 | London
Emma | 52 | Berlin
Frank | 36 | Madrid
Grace | 28 | Dublin
Henry | 63 | Vienna
Julia | 22 | Boston
Karl | 47 | Lisbon
Lucy | 33 | Athens
Maria | 58 | Prague
""")

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
SENTENCE: Constraint = {"kind": "n_words", "min": 3}


def comma_list(r: random.Random) -> Iterator[Item]:
    """Exactly n things, separated by commas."""
    for kind, members in KINDS_OF:
        for n in (3, 4):
            given = members.split(", ")[:n]
            yield (f"Name exactly {NUMBERS[n]} {kind}. Write only the names, separated by commas.", ", ".join(given),
                   [{"kind": "comma_items", "n": n}])  # fmt: skip


def numbered_list(r: random.Random) -> Iterator[Item]:
    """Exactly n things, each on a numbered line."""
    for kind, members in KINDS_OF:
        n = r.choice([2, 3])
        lines = [f"{i}. {name}" for i, name in enumerate(members.split(", ")[:n], 1)]
        yield f"List {NUMBERS[n]} {kind} as a numbered list.", "\n".join(lines), [{"kind": "line_items", "n": n}]


def capitals(r: random.Random) -> Iterator[Item]:
    """A sentence in capital letters."""
    for topic, sentence in TOPICS:
        yield (f"Write one short sentence about {topic}. Write it in capital letters.", sentence.upper(),
               [{"kind": "upper"}, SENTENCE])  # fmt: skip


def repeat_capitals(r: random.Random) -> Iterator[Item]:
    """A given sentence, in capital letters."""
    for _, sentence in TOPICS:
        yield (f'Write this sentence in capital letters: "{sentence}"', sentence.upper(),
               [{"kind": "includes_exactly", "words": [sentence.upper().rstrip(".")]}])  # fmt: skip


def repeat(r: random.Random) -> Iterator[Item]:
    """A given sentence, word for word."""
    for _, sentence in TOPICS:
        yield (f'Repeat this sentence word for word: "{sentence}"', sentence,
               [{"kind": "includes", "words": [sentence.rstrip(".")]}])  # fmt: skip


def start(r: random.Random) -> Iterator[Item]:
    """A sentence that starts with a given word."""
    for topic, sentence in TOPICS:
        word = r.choice(["Today", "Sometimes", "Often", "Every"])
        body = sentence[4:] if word == "Every" else "the " + sentence[4:]
        yield (f'Write one short sentence about {topic}. Start with the word "{word}".', f"{word} {body}",
               [{"kind": "starts_with", "text": word}, SENTENCE])  # fmt: skip


def end(r: random.Random) -> Iterator[Item]:
    """A sentence that ends with a given phrase."""
    for topic, sentence in TOPICS:
        phrase = r.choice(["Thank you!", "Goodbye!", "Have a nice day!"])
        yield (f'Write one short sentence about {topic}. End with "{phrase}"', f"{sentence} {phrase}",
               [{"kind": "ends_with", "text": phrase}, SENTENCE])  # fmt: skip


def two_words(r: random.Random) -> Iterator[Item]:
    """A sentence that holds two given words."""
    for first, second, sentence in WORD_PAIRS:
        yield (f'Write one short sentence with the words "{first}" and "{second}".', sentence,
               [{"kind": "includes", "words": [first, second]}, {"kind": "n_words", "min": 4}])  # fmt: skip


def json_object(r: random.Random) -> Iterator[Item]:
    """A JSON object with given keys."""
    for name, age, town in PERSONS:
        for key, value, text in (("age", age, f"{age} years old"), ("city", f'"{town}"', f"from {town}")):
            yield (f'{name} is {text}. Write this as JSON with the keys "name" and "{key}".',
                   f'{{"name": "{name}", "{key}": {value}}}', [{"kind": "json_keys", "keys": ["name", key]}])  # fmt: skip


def question(r: random.Random) -> Iterator[Item]:
    """A question about something."""
    for topic, _ in TOPICS:
        yield (f"Write one short question about {topic}.", f"What do you think about {topic}?",
               [{"kind": "ends_with_mark", "text": "?"}, SENTENCE])  # fmt: skip


def yes_no(r: random.Random) -> Iterator[Item]:
    """A question to be answered by yes or no."""
    for topic, asked in (("a lion", "an animal"), ("a rose", "a flower"), ("a hammer", "a fruit"), ("Paris", "a city"),
                         ("an apple", "a fruit"), ("a car", "a vehicle"), ("tea", "a drink"), ("a chair", "an animal"),
                         ("a violin", "a musical instrument"), ("July", "a month"), ("Japan", "a country"),
                         ("a potato", "a vegetable"), ("a shirt", "a drink"), ("a dog", "an animal")):  # fmt: skip
        yield (f"Is {topic} {asked}? Start your answer with yes or no.", "Yes.",
               [{"kind": "includes_any", "words": ["yes", "no"]}])  # fmt: skip


def one_word(r: random.Random) -> Iterator[Item]:
    """A thing of a kind, in one word."""
    for kind, members in KINDS_OF:
        known = members.split(", ")
        yield (f"Which of these two is the name of one of the {kind}: {known[0]} or yesterday? Answer in one word.", known[0],
               [{"kind": "includes", "words": [known[0]]}, {"kind": "n_words", "max": 1}])  # fmt: skip


def three_times(r: random.Random) -> Iterator[Item]:
    """A word, written n times."""
    for first, second, _ in WORD_PAIRS:
        word, n = r.choice([first, second]), r.choice([2, 3])
        yield (f'Write the word "{word}" {NUMBERS[n]} times, separated by commas.', ", ".join([word] * n),
               [{"kind": "times", "text": word, "n": n}])  # fmt: skip


def at_most(r: random.Random) -> Iterator[Item]:
    """A description with few words."""
    for topic, sentence in TOPICS:
        yield (f"Describe {topic} in one sentence of at most ten words.", sentence,
               [{"kind": "n_words", "min": 3, "max": 10}])  # fmt: skip


FORMS: tuple[Callable[[random.Random], Iterator[Item]], ...] = (
    comma_list, numbered_list, capitals, repeat_capitals, repeat, start, end, two_words, json_object, question, yes_no,
    one_word, three_times, at_most,
)  # fmt: skip


def items(seed: int) -> list[Row]:
    """Ask every form; a form and a third of its subjects make a cluster."""
    rng = random.Random(f"instructions-{seed}")
    return unique(row for form in FORMS for row in of_form(form, rng))


def of_form(form: Callable[[random.Random], Iterator[Item]], rng: random.Random) -> Iterator[Row]:
    """Turn the items of one form into rows."""
    name = slug(form.__name__)
    for i, (prompt, reference, constraints) in enumerate(form(rng)):
        yield {"id": f"{name}-{i:02d}", "prompt": prompt, "reference": reference,
               "cluster": f"{name}-{i // 4}", "constraints": constraints}  # fmt: skip
