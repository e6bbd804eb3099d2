"""Effect of repairing rows on a classifier's score: `harness data` on rows with planted faults, then a comparison.

The rows get the faults of `data_check` (3 % exact and 5 % near duplicates, 8 % flipped labels, 1 % broken encoding).
`data check` names suspect labels; all of them are decided on in three ways, `data clean` applies the decisions, `data
dedup` drops duplicates, and `compare` trains the same classifier on each file and pairs its answers on the same test
items. Test items whose question occurs in the rows are removed first, so that no file gains by a leak.

`HARNESS_TEST_DATA=DIR PYTHONPATH=. python -m reports.studies.mended_rows` takes some minutes on one core and writes
`reports/mended_rows.json` and `.md`; a second call measures the missing sets.
"""

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

from typer.testing import CliRunner

import harness.experiment as experiment
from harness import formatting
from harness.cli import app
from harness.data.edit.changes import RowDecision, keep_decision
from harness.records import checksum, fold_text
from reports.studies.data_check import FAULTS, LABELLED, ROOT, SETS, Row, plant

FILE = ROOT / "reports" / "mended_rows.json"
N_VALIDATION = 100
FIELDS = ("candidate", "n_rows", "score", "low", "high", "change", "change_low", "change_high", "p_adjusted")
CANDIDATES = {
    "messy": "the rows with all faults",
    "unique": "`data dedup`",
    "relabelled": "every proposed label accepted unread",
    "dropped": "every suspect row dropped unread",
    "decided": "suspect rows relabelled or kept by a reader who knows the right label",
    "decided-unique": "the same, then `data dedup`",
    "as-it-was": "the rows before faults were planted",
}


class Suspect(NamedTuple):
    """A row with a suspect label: its line, the proposed label and the right one."""

    line: int
    proposed: str
    right: str


# The decision on a suspect row, whose label is the second argument.
DECISIONS: dict[str, Callable[[Suspect, str], RowDecision]] = {
    "relabelled": lambda suspect, label: RowDecision("relabel", suspect.proposed),
    "dropped": lambda suspect, label: RowDecision("drop"),
    "decided": lambda suspect, label: (
        RowDecision("keep") if label == suspect.right else RowDecision("relabel", suspect.right)
    ),
}


def measure(name: str) -> dict[str, Any]:
    """Plant faults, repair them in each way, and compare the trained classifiers."""
    rng = random.Random(f"mended rows/{name}/{FAULTS['flipped labels'].share}")
    clean, test = SETS[name](rng)
    planted = plant(clean, rng, labelled=True)
    training_questions = {fold_text(row["prompt"]) for row in (*clean, *planted.rows)}
    items = list({text: row for row in test if (text := fold_text(row["prompt"])) not in training_questions}.values())
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        write("messy.jsonl", planted.rows)
        write("as-it-was.jsonl", clean)
        write("validation.jsonl", items[:N_VALIDATION])
        write("test.jsonl", items[N_VALIDATION:])
        suspect_rows = suspects(clean, planted.rows)
        mend(suspect_rows, planted.rows)
        sets = compare_files(sorted({row["reference"] for row in clean}))
    wrong = {i + 1 for i, row in enumerate(clean) if row["reference"] != planted.rows[i]["reference"]}
    return {
        "rows": len(planted.rows),
        "test": len(items) - N_VALIDATION,
        "flipped": len(wrong),
        "suspects": len(suspect_rows),
        "suspects_flipped": sum(suspect.line in wrong for suspect in suspect_rows),
        "proposals_right": sum(s.proposed == s.right for s in suspect_rows if s.line in wrong),
        "sets": sets,
    }


def suspects(clean: Sequence[Row], messy: Sequence[Row]) -> list[Suspect]:
    """List the suspect labels of messy.jsonl, each with the row's original label."""
    # Copies come after the original rows and have the right label.
    right = [row["reference"] for row in (*clean, *messy[len(clean) :])]
    findings = json.loads(run("check", "messy.jsonl", "--json"))["findings"]
    marked = ((f["rows"], f["labels"]) for f in findings if f["check"] == "suspect_labels" and f["labels"])
    pairs = (
        (int(place.rpartition(":")[2]), to) for rows, to in marked for place, to in zip(rows, to, strict=True)
    )
    return [Suspect(line, proposed, right[line - 1]) for line, proposed in pairs]


def mend(suspect_rows: Sequence[Suspect], messy: Sequence[Row]) -> None:
    """Write the repaired files with the verbs of `harness data`."""
    run("dedup", "messy.jsonl", "--out", "unique.jsonl")
    digest, decisions_file = checksum(Path("messy.jsonl")), Path("messy.jsonl.decisions.json")
    for name, decide in DECISIONS.items():
        decisions_file.unlink(missing_ok=True)
        for suspect in suspect_rows:
            decision = decide(suspect, messy[suspect.line - 1]["reference"])
            keep_decision("messy.jsonl", suspect.line, decision, digest, "reference")
        decided = ("--decisions", str(decisions_file)) if suspect_rows else ()
        run("clean", "messy.jsonl", "--out", f"{name}.jsonl", *decided)
    run("dedup", "decided.jsonl", "--out", "decided-unique.jsonl")


def compare_files(labels: Sequence[str]) -> list[dict[str, Any]]:
    """Train the classifier on each file, and pair its answers with those of the one trained on messy.jsonl."""
    data = {"train": "messy.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}
    target = {"name": "rows", "data": data, "labels": labels, "metrics": ["exact_match"]}
    target["data"] = {**data, "contamination": "drop", "unknown_labels": "drop"}
    others = {
        name: {"method": "classifier", "train": f"{name}.jsonl"} for name in CANDIDATES if name != "messy"
    }
    config = {"name": "mended", "target": target, "candidates": {"messy": {"method": "classifier"}, **others}}
    Path("harness.yaml").write_text(json.dumps(config), encoding="utf-8")
    (table,) = experiment.compare(Path("harness.yaml").absolute()).training_sets
    rows = []
    for training_set in table.sets:
        name, score, change = training_set.candidate, training_set.estimate, training_set.difference
        ends = (*score[:3],) if score else (None,) * 3
        moved = (*change[:3],) if change else (None,) * 3
        rows.append(
            dict(
                zip(
                    FIELDS,
                    (name, n_lines(name), *ends, *moved, training_set.p_adjusted),
                    strict=True,
                )
            )
        )
    return rows


def n_lines(name: str) -> int:
    """Count the rows of a file."""
    return Path(f"{name}.jsonl").read_bytes().count(b"\n")


def run(*words: str) -> str:
    """Run a verb of `harness data` and return what it prints."""
    result = CliRunner().invoke(app, ["data", *words])
    if result.exit_code:
        raise RuntimeError(f"harness data {' '.join(words)}: {result.output}")
    return result.stdout


def write(name: str, rows: Sequence[Row]) -> None:
    """Write rows as JSON Lines."""
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


# ---- the page ----

_NOTE = (
    "A classifier of words, of the kind that is compared here, proposes the labels; accepted unread, they teach it its own"
    " guesses. The generator uses different wordings in training and test, so its scores are low."
)


def page(results: Mapping[str, Any]) -> str:
    """Lay out the page."""
    basis = (
        "The same classifier (TF-IDF and logistic regression, `bag`) on rows with planted faults: 3 % exact and 5 % near"
        " duplicates, 1 % broken encoding, 8 % flipped labels. `harness data check` names suspect labels, `data clean"
        " --decisions` and `data dedup` repair the rows, and `harness compare` pairs the answers on the same test items."
        " Scores are exact match in percent, changes in points against the messy rows, with 95 % intervals; p is corrected"
        " for the comparisons of a table. Made by `python -m reports.studies.mended_rows`."
    )
    lines = ["# How repairing rows changes the score", "", basis, ""]
    for name, figures in results.items():
        lines += _section(name, figures)
    return "\n".join([*lines, _NOTE, ""])


def _section(name: str, figures: Mapping[str, Any]) -> list[str]:
    n, n_flipped = figures["suspects"], figures["suspects_flipped"]
    counts = (
        f"{figures['rows']:,} rows, {figures['flipped']} of them with a flipped label; {figures['test']:,} test items. {n} labels"
        f" are suspect, {n_flipped} of them flipped; for {figures['proposals_right']} of those the proposed label is right."
    )
    table = ["| rows | n | score | change | p |", "| --- | --- | --- | --- | --- |"]
    for row in figures["sets"]:
        score = formatting.interval(row["score"], row["low"], row["high"])
        is_first = row["change"] is None
        ends = (row["change"], row["change_low"], row["change_high"])
        change = "(reference)" if is_first else formatting.change(formatting.RATE, *ends)
        p = formatting.p_value(row["p_adjusted"])
        title = f"{row['candidate']}: {CANDIDATES[row['candidate']]}"
        table.append(f"| {title} | {row['n_rows']:,} | {score} | {change} | {p} |")
    return [f"## {name}", "", counts, "", *table, ""]


def main() -> None:
    """Measure the sets that are missing and write the page."""
    os.environ.setdefault("HARNESS_IGNORE_LOAD", "1")
    results = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {}
    for name in LABELLED:
        if name not in results:
            sys.stderr.write(f"{name}\n")
            results[name] = measure(name)
            FILE.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    FILE.with_suffix(".md").write_text(page(results), "utf-8")


if __name__ == "__main__":
    main()
