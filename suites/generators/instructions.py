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
winter | The winter was cold and white.
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
a tree | The tree gives shade in summer.
a horse | The horse runs over the field.
a kitchen | The kitchen smells of soup.
a bridge | The bridge crosses the river.
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

WISHES = table("""
a birthday wish for | Happy birthday, {}, and all the best!
a welcome to | Welcome to our team, {}!
a compliment for | You are a good friend, {}.
a good-night wish for | Good night, {}, and sleep well.
""")

FUNCTIONS = table("""
add | a, b | returns the sum of two numbers | a + b
double | x | returns twice its argument | 2 * x
square | x | returns the square of a number | x * x
is_even | n | says whether a number is even | n % 2 == 0
largest | values | returns the largest element of a list | max(values)
reverse_text | text | returns a string backwards | text[::-1]
greet | name | returns a greeting with the name | "Hello " + name
area | width, height | returns the area of a rectangle | width * height
average | values | returns the average of a list | sum(values) / len(values)
count_words | text | counts the words of a text | len(text.split())
to_celsius | degrees | converts Fahrenheit to Celsius | (degrees - 32) / 1.8
first_letter | word | returns the first letter of a word | word[0]
""")

# sentence | word | its replacement
CHANGES = table("""
The big dog barks at night. | big | small
Anna bought a red car. | red | blue
We will meet on Monday. | Monday | Friday
The soup was too hot. | hot | cold
My brother lives in Rome. | Rome | Paris
He drinks tea every morning. | tea | coffee
The train leaves at nine. | nine | ten
She plays the piano well. | piano | violin
The shop is open today. | open | closed
They have two children. | two | three
I saw a bird in the tree. | bird | cat
The teacher wrote a letter. | letter | book
The window is very dirty. | dirty | clean
Paul works in a hospital. | hospital | school
Our garden is full of roses. | roses | trees
The film was long. | long | short
I need a new coat. | coat | lamp
She speaks French at home. | French | Spanish
The bus stops here. | bus | taxi
We ate fish for dinner. | fish | rice
""")

CLASSES = table("""
a lion | an animal
a rose | a flower
a hammer | a fruit
Paris | a city
an apple | a fruit
a car | a vehicle
tea | a drink
a chair | an animal
a violin | a musical instrument
July | a month
Japan | a country
a potato | a vegetable
a shirt | a drink
a dog | an animal
""")

NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
SENTENCE: Constraint = {"kind": "n_words", "min": 3}


def numbered_list(r: random.Random) -> Iterator[Item]:
    """Exactly n things, each on a numbered line."""
    for kind, members in KINDS_OF:
        n = r.choice([2, 3])
        lines = [f"{i}. {name}" for i, name in enumerate(members.split(", ")[:n], 1)]
        yield (
            f"List {NUMBERS[n]} {kind} as a numbered list.",
            "\n".join(lines),
            [{"kind": "line_items", "n": n}],
        )


def comma_list(r: random.Random) -> Iterator[Item]:
    """Exactly three things, separated by commas."""
    for kind, members in KINDS_OF[:8]:
        prompt = f"Name exactly three {kind}, separated by commas, and nothing else."
        yield prompt, ", ".join(members.split(", ")[:3]), [{"kind": "comma_items", "n": 3}]


def capitals(r: random.Random) -> Iterator[Item]:
    """A given phrase, in capital letters."""
    for topic, _ in TOPICS[:8]:
        prompt = f'Write these words in capital letters: "{topic}"'
        yield (
            prompt,
            topic.upper(),
            [{"kind": "upper"}, {"kind": "includes_exactly", "words": [topic.upper()]}],
        )


def repeat(r: random.Random) -> Iterator[Item]:
    """A given sentence, word for word."""
    for _, sentence in TOPICS:
        yield (f'Repeat this sentence word for word: "{sentence}"', sentence,
               [{"kind": "includes", "words": [sentence.rstrip(".")]}])  # fmt: skip


def start(r: random.Random) -> Iterator[Item]:
    """A sentence that starts with a given word."""
    for i, (topic, sentence) in enumerate(TOPICS):
        word, opening = (("Today", "Today"), ("Every", "Every day"))[i % 2]
        reference = f"{opening} {sentence[0].lower()}{sentence[1:]}"
        prompt = f'Write one short sentence about {topic}. Start with the word "{word}".'
        yield prompt, reference, [{"kind": "starts_with", "text": word}, SENTENCE]


def two_words(r: random.Random) -> Iterator[Item]:
    """A sentence that holds two given words."""
    for first, second, sentence in WORD_PAIRS:
        yield (f'Write one short sentence with the words "{first}" and "{second}".', sentence,
               [{"kind": "includes", "words": [first, second]}, {"kind": "n_words", "min": 4}])  # fmt: skip


def json_object(r: random.Random) -> Iterator[Item]:
    """A JSON object with given keys."""
    for name, age, town in PERSONS:
        for key, value, text in (("age", age, f"{age} years old"), ("city", f'"{town}"', f"from {town}")):
            prompt = f'{name} is {text}. Write this as JSON with the keys "name" and "{key}".'
            yield (
                prompt,
                f'{{"name": "{name}", "{key}": {value}}}',
                [{"kind": "json_keys", "keys": ["name", key]}],
            )


def question(r: random.Random) -> Iterator[Item]:
    """A question about something."""
    for topic, _ in TOPICS:
        constraints = [{"kind": "ends_with_mark", "text": "?"}, SENTENCE]
        yield f"Write one short question about {topic}.", f"What do you think about {topic}?", constraints


def yes_no(r: random.Random) -> Iterator[Item]:
    """A question to be answered by yes or no; which of them is right is not this task's matter."""
    for thing, kind in CLASSES:
        prompt = f"Is {thing} {kind}? Start your answer with yes or no."
        yield prompt, "Yes.", [{"kind": "starts_with_any", "words": ["yes", "no"]}]


def at_most(r: random.Random) -> Iterator[Item]:
    """A description with few words."""
    for topic, sentence in TOPICS:
        constraints = [
            {"kind": "includes", "words": [topic.split()[-1]]},
            {"kind": "n_words", "min": 3, "max": 10},
        ]
        yield f"Describe {topic} in one sentence of at most ten words.", sentence, constraints


def greeting(r: random.Random) -> Iterator[Item]:
    """A greeting or a wish that names its receiver."""
    for i, (name, *_) in enumerate(PERSONS):
        asked, reference = WISHES[i % len(WISHES)]
        constraints = [{"kind": "includes", "words": [name]}, {"kind": "n_words", "min": 4}]
        yield f"Write {asked} {name}, in one sentence.", reference.format(name), constraints


def letter(r: random.Random) -> Iterator[Item]:
    """The first line of a letter."""
    for name, *_ in PERSONS:
        prompt = f'Write one line of a letter to {name}. Start with "Dear {name},".'
        yield (
            prompt,
            f"Dear {name}, thank you for coming.",
            [{"kind": "starts_with", "text": f"Dear {name}"}],
        )


def function(r: random.Random) -> Iterator[Item]:
    """A Python function of a given name."""
    for name, arguments, task, body in FUNCTIONS:
        prompt = f"Write a Python function called {name} that {task}. Write only the code."
        yield (
            prompt,
            f"def {name}({arguments}):\n    return {body}",
            [{"kind": "includes_exactly", "words": [f"def {name}("]}],
        )


def changed(r: random.Random) -> Iterator[Item]:
    """A given sentence with one word replaced."""
    for sentence, old, new in CHANGES:
        result = sentence.replace(old, new)
        prompt = f'Replace the word "{old}" by "{new}" in this sentence: "{sentence}"'
        yield prompt, result, [{"kind": "includes", "words": [result.rstrip(".")]}]


def about(r: random.Random) -> Iterator[Item]:
    """A sentence that names its topic."""
    for topic, sentence in TOPICS:
        noun = topic.split()[-1]
        yield (
            f"Write one short sentence about {topic}.",
            sentence,
            [{"kind": "includes", "words": [noun]}, {"kind": "n_words", "min": 4}],
        )


FORMS: tuple[Callable[[random.Random], Iterator[Item]], ...] = (
    *(comma_list, numbered_list, capitals, repeat, start, two_words, json_object, question, yes_no, at_most),
    *(greeting, letter, function, changed, about),
)


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
