"""The forms of an item, and the one writer of item files.

Invariant: rows leave in the order of their ids, ids and questions are unique, and the place
of the gold choice is balanced over the file.
"""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def slug(text: str) -> str:
    """Lower-case the text and join its words by hyphens, for ids and clusters."""
    kept = "".join(c if c.isalnum() else " " for c in text.lower())
    return "-".join(kept.split())


def table(text: str) -> list[list[str]]:
    """Split lines of cells separated by `|`; the form in which facts are written down."""
    return [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]


def words(text: str) -> list[str]:
    """Split words set apart by white space."""
    return text.split()


def sections(text: str) -> dict[str, str]:
    """Read blocks set apart by empty lines: a name on the first line, then its wrapped text."""
    blocks = (block.split("\n", 1) for block in text.strip().split("\n\n"))
    return {name: " ".join(body.split()) for name, body in blocks}


def variants(name: str, n: int, draw: Callable[[], str]) -> list[Row]:
    """Draw n different texts that make one cluster."""
    texts: dict[str, None] = {}
    while len(texts) < n:
        texts[draw()] = None
    return [{"id": f"{name}-{i}", "text": text, "cluster": name} for i, text in enumerate(texts)]


def choice_row(name: str, prompt: str, gold: str, wrong: list[str], cluster: str) -> Row:
    """Make a multiple-choice item; `place_gold` shuffles its choices."""
    return {"id": name, "prompt": prompt, "reference": gold, "choices": [gold, *wrong], "cluster": cluster}


def answer_row(name: str, prompt: str, references: list[str], cluster: str) -> Row:
    """Make an item whose generated answer is checked against one or more references."""
    return {"id": name, "prompt": prompt, "references": references, "cluster": cluster}


def place_gold(rows: list[Row], rng: random.Random) -> list[Row]:
    """Shuffle every item's choices so that each place holds the gold equally often."""
    by_size: dict[int, list[Row]] = {}
    for row in rows:
        by_size.setdefault(len(row["choices"]), []).append(row)
    for size, group in by_size.items():
        places = [i % size for i in range(len(group))]
        rng.shuffle(places)
        for row, place in zip(group, places, strict=True):
            wrong = [c for c in row["choices"] if c != row["reference"]]
            rng.shuffle(wrong)
            row["choices"] = [*wrong[:place], row["reference"], *wrong[place:]]
    return rows


def content(row: Row) -> str:
    """The question that two different items must not share."""
    asked = {key: row[key] for key in ("prompt", "messages", "text", "constraints") if row.get(key)}
    return json.dumps(asked or sorted(row["choices"]), sort_keys=True)


def unique(rows: Iterable[Row]) -> list[Row]:
    """Keep the first of rows that ask the same, in the order of their ids."""
    kept: dict[str, Row] = {}
    for row in rows:
        kept.setdefault(content(row), row)
    return sorted(kept.values(), key=lambda row: str(row["id"]))


def write(path: Path, rows: list[Row]) -> None:
    """Write one JSON object a line.

    Raises:
        ValueError: two rows share an id.
    """
    if len({row["id"] for row in rows}) < len(rows):
        raise ValueError(f"{path.name}: two rows share an id")
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
