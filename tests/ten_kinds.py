"""Ten data sets of ten kinds, as users bring them: generated here, without rows of others.

Invariant: the rows depend only on the seed. If `truth` is given, it is the only right result: the candidate
to ship, or that no fine-tune may be shipped.
"""

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

THINGS = ("drill", "ladder", "tent", "projector", "kettle", "wheelbarrow", "sewing machine", "lamp")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
NAMES = ("Ann", "Bela", "Chike", "Dana", "Eiko", "Farid")
ASKS = {  # each form has a word that belongs to its label alone, so a bag of words suffices
    "borrow": ("May I borrow the {thing} on {day}?", "Please let {who} borrow the {thing} from {day}."),
    "return": ("Where do I return the {thing} on {day}?", "{who} wants to return the {thing} by {day}."),
    "repair": (
        "The {thing} needs repair before {day}.",
        "Since {day} the {thing} of {who} is waiting for repair.",
    ),
}
FILLER = (
    "The hall was swept, the windows were closed, and the list on the door was copied once more.",
    "Nobody had moved the boxes in the cellar, so the count of shelves was the same as before.",
    "It rained in the afternoon, and the bicycle stand by the gate stood empty until six.",
)


class Kind(NamedTuple):
    """A kind of data: its file name, its generator, and the right decision.

    `truth` is the candidate to ship; with `never` no fine-tune may be recommended.
    """

    file: str
    write: Callable[[random.Random], bytes]
    task: str
    truth: str = ""
    never: bool = False


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def request(rng: random.Random) -> tuple[str, str]:
    label = rng.choice(sorted(ASKS))
    names = {"thing": rng.choice(THINGS), "day": rng.choice(DAYS), "who": rng.choice(NAMES)}
    return f"{rng.choice(ASKS[label]).format(**names)} No. {rng.randrange(10**6)}", label


def labels(rng: random.Random, n: int = 200) -> bytes:
    return lines([dict(zip(("text", "label"), request(rng), strict=True)) for _ in range(n)])


def make_random_labels(rng: random.Random) -> bytes:
    return lines([{"text": request(rng)[0], "label": rng.choice("ab")} for _ in range(20_000)])


def make_free_text(rng: random.Random) -> bytes:
    rows = []
    for i in range(120):
        thing, day = rng.choice(THINGS), rng.choice(DAYS)
        text = (
            f"Dear {rng.choice(NAMES)}, the {thing} is ready from {day} on at desk {i}. {rng.choice(FILLER)}"
        )
        rows.append({"instruction": f"Say that the {thing} is ready on {day} at desk {i}.", "output": text})
    return lines(rows)


def questions(rng: random.Random) -> bytes:
    rows = []
    for i in range(120):
        thing, name = rng.choice(THINGS), f"{rng.choice(NAMES)} {i}"
        context = f"Shelf {i} holds the {thing}. It was brought by {name}."
        answers = {"text": [name], "answer_start": [context.index(name)]}
        rows.append(
            {"context": context, "question": f"Who brought the {thing} of shelf {i}?", "answers": answers}
        )
    return lines(rows)


def preferences(rng: random.Random) -> bytes:
    rows = []
    for i in range(120):
        thing = rng.choice(THINGS)
        text = f"Yes, the {thing} is free on {rng.choice(DAYS)}."
        rows.append({"prompt": f"Is the {thing} of box {i} free?", "chosen": text, "rejected": "No idea."})
    return lines(rows)


def json_answers(rng: random.Random) -> bytes:
    rows = []
    for i in range(120):
        thing, day = rng.choice(THINGS), rng.choice(DAYS)
        answer = json.dumps({"thing": thing, "day": day, "box": i})
        rows.append({"prompt": f"The {thing} of box {i} leaves on {day}.", "reference": answer})
    return lines(rows)


def make_long_documents(rng: random.Random) -> bytes:
    """Make reports of some fifteen hundred letters, in which one word decides."""
    rows = []
    for i in range(60):
        label = ("flood", "fire")[i % 2]
        parts = [rng.choice(FILLER) for _ in range(16)]
        parts[rng.randrange(16)] = f"The keeper wrote of a {label} in room {i}."
        rows.append({"document": " ".join(parts), "label": label})
    return lines(rows)


def japanese(rng: random.Random) -> bytes:
    things, days = ("はしご", "ランプ", "テント", "やかん"), ("月曜日", "火曜日", "水曜日")
    rows = []
    for i in range(120):
        thing, day = rng.choice(things), rng.choice(days)
        rows.append(
            {"question": f"{thing}{i}はいつ戻りますか。", "answer": f"{thing}{i}は{day}に戻る予定です。"}
        )
    return lines(rows)


def spreadsheet(rng: random.Random) -> bytes:
    """Make an export: BOM, semicolons, odd headers, empty cells and lines, and repeated rows."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=";", lineterminator="\r\n")
    writer.writerow(["Nr.", " Customer Text (as sent)", "", "Final Label ", "Remark", "Remark"])
    rows = [[i, *request(rng)] for i in range(200)]
    for i, text, label in [*rows, *rows[:20]]:
        writer.writerow([i, text, "", "" if i % 50 == 7 else label, "" if i % 3 else "seen; by phone", ""])
        if i % 40 == 0:
            writer.writerow([""] * 6)
    return b"\xef\xbb\xbf" + buffer.getvalue().encode()


KINDS = {
    "labels": Kind("labels.jsonl", labels, "labels", truth="classifier"),
    "free text": Kind("letters.jsonl", make_free_text, "text"),
    "question with context": Kind("shelves.jsonl", questions, "text"),
    "preference pairs": Kind("pairs.jsonl", preferences, "preference"),
    "JSON output": Kind("boxes.jsonl", json_answers, "text"),
    "long documents": Kind("reports.jsonl", make_long_documents, "labels", truth="classifier"),
    "another language": Kind("japanese.jsonl", japanese, "text"),
    "40 rows": Kind("few.jsonl", lambda rng: labels(rng, 40), "labels", never=True),
    "20,000 rows": Kind("many.jsonl", make_random_labels, "labels", never=True),
    "messy spreadsheet": Kind("Export 2026 (final).csv", spreadsheet, "labels", truth="classifier"),
}


def write(kind: Kind, folder: Path) -> Path:
    path = folder / kind.file
    path.write_bytes(kind.write(random.Random(0)))
    return path
