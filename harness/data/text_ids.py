"""Ids in texts: numbers that stand in front of many texts, another one in each, and say nothing of them.

Invariant: a number is an id where more than `MOST` different texts begin with the same words up to it and
more than half of their numbers differ, as in `Ticket 4821: ...` or a time stamp. A text of which more than
`MOST` others differ in numbers alone, such as a sum, has none: there the numbers are what is asked.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import islice

from harness.data.boilerplate import MOST

_FRONT = 8  # words in which an id stands
_WORD, _NUMBER = re.compile(r"\w+"), re.compile(r"\w*\d\w*")
_LONGEST = 200  # characters in which those words are looked for

_Front = tuple[str, ...]


def drop_ids(texts: Sequence[str]) -> list[str]:
    """Return the texts, each without the id in front of it and the words before that."""
    fronts = {text: of for text in dict.fromkeys(texts) if (of := _fronts(text))}
    forms = Counter(_form(text) for text in fronts)
    numbers: dict[_Front, list[_Front]] = defaultdict(list)
    for of in fronts.values():
        for front, (given, _) in of.items():
            numbers[front].append(given)
    ids = {front for front, given in numbers.items() if MOST < len(given) < 2 * len(set(given))}
    ends = {
        text: max((end for front, (_, end) in of.items() if front in ids), default=0)
        for text, of in fronts.items()
        if forms[_form(text)] <= MOST
    }
    return [text[ends.get(text, 0) :] for text in texts]


def _fronts(text: str) -> dict[_Front, tuple[_Front, int]]:
    """Map each beginning that ends with a number, its numbers as `#`, to those numbers and where it ends."""
    beginning = text[:_LONGEST]
    if not any(map(str.isdigit, beginning)):
        return {}
    words = list(islice(_WORD.finditer(beginning), _FRONT + 1))
    shown = ["#" if _is_number(word[0]) else word[0].casefold() for word in words]
    found = {}
    for n, word in enumerate(words[:-1], start=1):  # a word at least is left
        if shown[n - 1] == "#":
            given = tuple(w[0] for w in words[:n] if _is_number(w[0]))
            found[tuple(shown[:n])] = given, word.end()
    return found


def _is_number(word: str) -> bool:
    return any(map(str.isdigit, word))


def _form(text: str) -> str:
    return _NUMBER.sub("#", text.casefold())
