"""Rows to check, which are clean by construction, and helpers that read findings."""

import csv
import json
import random
import shlex
from pathlib import Path

from typer.testing import CliRunner

from harness.cli import app
from harness.experiment.check_rows import recognise

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]

LABELS = ("refund", "delivery", "account", "invoice")


def make_clean_rows(n=400, seed=0):
    """Rows of four labels, each with its own and some common words; no two rows are alike."""
    rng = random.Random(seed)
    label_words = {label: WORDS[40 * i : 40 * i + 40] for i, label in enumerate(LABELS)}
    common = WORDS[160:]
    rows = []
    for i in range(n):
        label = LABELS[i % len(LABELS)]
        text = rng.sample(common, rng.randint(5, 9)) + rng.sample(label_words[label], 3)
        rng.shuffle(text)
        rows.append({"text": " ".join(text), "label": label})
    return rows


def damage_rows(rows):
    """Damage rows: encoding, an empty answer, a label in another spelling, and repeated rows."""
    rows[3]["text"] += " cafÃ©"
    rows[8]["label"] = rows[8]["label"].upper()
    rows[11]["label"] = ""
    return [*rows, *rows[20:24]]


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_csv(path: Path, rows, delimiter=",") -> str:
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def list_cases(file: str, section: str) -> list[list[str]]:
    """List the cases in a section of a table next to the tests, each split into its parts."""
    written = Path(__file__).with_name(file).read_text("utf-8")
    lines = written.partition(f"## {section}\n")[2].partition("\n## ")[0].split("\n")
    return [line.split(" => ") for line in lines if line]


def run_command(command: str) -> str:
    """Run the commands that a check printed, which must all succeed; return what they print."""
    printed = ""
    for single in command.partition("  #")[0].split(" && "):
        name, *words = shlex.split(single)
        result = CliRunner().invoke(app, words)
        assert (name, result.exit_code) == ("harness", 0), result.stderr
        printed += result.stdout
    return printed


def alarms(findings):
    return [f for f in findings if f.severity != "note"]


def lines(finding):
    return [int(place.rpartition(":")[2]) for place in finding.rows]


def detect_rows(check):
    from harness.experiment.check_rows import _read_first_rows

    return recognise(check, _read_first_rows(check.files))


def alarm(findings, name):
    return [f for f in alarms(findings) if f.check == name]


def texts(n, seed, mark=""):
    rng = random.Random(seed)
    return [
        {"prompt": " ".join(rng.sample(WORDS, 8)), "reference": mark + " ".join(rng.sample(WORDS, 15))}
        for _ in range(n)
    ]


def fill_layout(row, question, answer):
    """Put another question and another answer into a row of a layout."""
    filled = json.dumps(row).replace('"Who?"', json.dumps(question)).replace('"Me."', json.dumps(answer))
    transcript = filled.replace("Human: Who?", f"Human: {question}").replace(
        "Assistant: Me.", f"Assistant: {answer}"
    )
    return json.loads(transcript)
