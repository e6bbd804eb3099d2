"""What is a small model that runs here worth as a judge? By hand.

LLMBar's pairs of answers have people's choice: the second of each pair stands as the reference, the first is what
a candidate answers, and SmolLM2-135M-Instruct says which is better, in both orders. People's choices of 60 items,
drawn as `harness rate export` draws them, then correct the share of wins; those of all items are the truth.

`HARNESS_TEST_DATA=DIR PYTHONPATH=.:tests python -m tests.studies.local_judge` takes some five minutes on one core
and writes `reports/local_judge.md` and `.json`, in which every grade is kept.
"""

import csv
import gzip
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from openai_server import Rule, serving
from tiny_experiment import rows as write_rows

from harness import formatting, stats, store
from harness.comparison import ArmCalibration, MetricCalibration
from harness.experiment import compare
from harness.release.rating_file import export_answers, import_labels
from harness.report import ExperimentReport
from harness.report.people_labels import sentences
from harness.store import Store

ROOT = Path(__file__).parents[2]
JUDGE = "smollm2-135m"
N_PAIRS, N_LABELS = 120, 60
PAIRS = """\
name: llmbar
base_model: smollm2-135m
target:
  name: pairs
  data: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  metrics: [judge:./better.yaml]
candidates:
  first: {{method: endpoint, params: {{base_url: {url}, model: tiny, protocol: chat}}}}
"""
BETTER = """\
criteria: The better answer does what the instruction asks, exactly and truthfully.
mode: pairwise
judge: {judge}
"""


class Agreement(NamedTuple):
    """How often a judge chose as people did of `n` pairs, with its 95 % interval; `first_won` of its answers."""

    n: int
    share: float
    low: float
    high: float
    first_won: float
    people: float


def read_pairs(data: Path, n: int) -> list[dict[str, Any]]:
    """Draw pairs of LLMBar whose instruction stands there once."""
    with gzip.open(data / "rows" / "llmbar" / "llmbar.jsonl.gz", "rt") as lines:
        found = {row["input"]: row for row in map(json.loads, lines)}
    rows = [row for row in found.values() if row["output_1"].strip() and row["output_2"].strip()]
    pick = np.random.default_rng(0).permutation(len(rows))[:n]
    return [rows[i] for i in sorted(pick)]


def judge_pairs(folder: Path, pairs: Sequence[dict[str, Any]], n_labels: int) -> ExperimentReport:
    """Let the model judge the pairs, and correct it by people's choices of some of them."""
    answers = {row["input"]: row["output_1"] for row in pairs}
    for name in ("train", "validation"):
        few = [{"prompt": f"Say {i} for {name}.", "reference": f"{i}"} for i in range(2)]
        write_rows(folder / f"{name}.jsonl", few)
    write_rows(
        folder / "test.jsonl",
        [{"id": pair_id(row), "prompt": row["input"], "reference": row["output_2"]} for row in pairs],
    )
    (folder / "better.yaml").write_text(BETTER.format(judge=JUDGE))
    path = folder / "harness.yaml"
    with serving(Rule(lambda messages: answers.get(messages[-1]["content"], "0"))) as server:
        path.write_text(PAIRS.format(url=server.url))
        compare(path)
        _label(path, folder / "labels.csv", {row["input"]: 2 - row["label"] for row in pairs}, n_labels)
        return compare(path)


def _label(path: Path, file: Path, wins: dict[str, int], n: int) -> None:
    """Label as a person would: in the file that is exported, which is then imported."""
    export_answers(path, file, n_items=n, candidates=["first"])
    with file.open(newline="") as lines:
        head, *rows = list(csv.reader(lines))
    question, label = head.index("question"), head.index("label")
    for row in rows:
        row[label] = str(wins[row[question]])
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([head, *rows])
    import_labels(path, file, rater="llmbar")


def kept_grades(folder: Path, pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """List every grade with people's choice: 1 where the first answer of the pair is better."""
    at, wins = Store(folder / "runs"), {pair_id(row): 2 - row["label"] for row in pairs}
    found = [grade for book in store.read_identities(at) for grade in store.list_grades(at, book)]
    return [
        {
            "item": g.example_id,
            "order": g.order,
            "value": g.value,
            "said": g.said,
            "people": wins[g.example_id],
        }
        for g in found
        if g.example_id in wins
    ]


def agreement(grades: Sequence[dict[str, Any]]) -> Agreement:
    """Count the pairs of which the judge, by both orders together, chose as people did."""
    values: dict[str, list[float]] = {}
    for grade in grades:
        values.setdefault(grade["item"], []).append(grade["value"])
    people = {grade["item"]: grade["people"] for grade in grades}
    hits = [float((np.mean(of) > 0.5) == people[item]) for item, of in values.items()]
    low, high = stats.wilson(sum(hits), len(hits), 0.05)
    first = [g["value"] if g["order"] == "first" else 1 - g["value"] for g in grades]
    share = float(np.mean(list(people.values())))
    return Agreement(len(hits), float(np.mean(hits)), low, high, float(np.mean(first)), share)


def markdown(found: Agreement, labels: MetricCalibration) -> str:
    """Write the page."""
    percent, arm = formatting.percent, labels.arms[0]
    about = (__doc__ or "").partition("\n\n")[2].split("`HARNESS")[0].strip()
    chance = (
        "is not told from chance, 50 %" if found.low <= 0.5 <= found.high else "is told from chance, 50 %"
    )
    share = f"{percent(found.share)} % [{percent(found.low)}, {percent(found.high)}]"
    chosen = f"Of {found.n} pairs it chose as people did in {share}, which {chance}."
    lines = [
        "# A small model on this machine as a judge",
        "",
        about,
        "",
        "## LLMBar",
        "",
        f"{chosen} The answer shown first won {percent(found.first_won)} % of its comparisons.",
        "",
        "| share of wins of the first answers | % [95 % interval] |",
        "|---|---|",
        f"| people, all {found.n} items | {percent(found.people)} |",
        *_arm_lines(arm),
        "",
        "What `harness report` says of it:",
        "",
        *(f"- {one}" for one in sentences(labels)),
        "",
    ]
    return "\n".join(lines)


def _arm_lines(arm: ArmCalibration) -> list[str]:
    rows = {"the judge, uncorrected": arm.score, "corrected by labels": arm.corrected}
    rows |= {"the same labels alone": arm.labels_alone}
    return [f"| {name} | {formatting.score(e.unit, *e[:3])} |" for name, e in rows.items() if e]


def pair_id(row: dict[str, Any]) -> str:
    return f"{row['subset'].replace('/', '-')}-{row['idx']}"


def main() -> None:
    """Run the study and write its page."""
    data = Path(os.environ["HARNESS_TEST_DATA"])
    pairs = read_pairs(data, N_PAIRS)
    with tempfile.TemporaryDirectory() as name:
        (labels,) = judge_pairs(Path(name), pairs, N_LABELS).labels
        grades = kept_grades(Path(name), pairs)
    write_page(labels, grades)


def write_page(labels: MetricCalibration, grades: Sequence[dict[str, Any]]) -> None:
    """Write the page and its numbers, with every grade."""
    found = agreement(grades)
    arm = labels.arms[0]
    scores = {"uncorrected": arm.score, "corrected": arm.corrected, "labels_alone": arm.labels_alone}
    content = {
        "judge": JUDGE,
        "agreement": found._asdict(),
        "kappa": list(labels.kappa[:3]) if labels.kappa else None,
        "near_chance": labels.is_near_chance,
        "scores": {key: list(e[:3]) if e else None for key, e in scores.items()},
        "grades": grades,
    }
    at = ROOT / "reports" / "local_judge"
    at.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    at.with_suffix(".md").write_text(markdown(found, labels))


if __name__ == "__main__":
    main()
