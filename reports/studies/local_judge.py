"""How good is a small local model as a judge? Run by hand, one part at a time.

LLMBar's pairs of answers come with people's choices: the second answer of each pair is the reference, the first is the
candidate's answer, and SmolLM2-135M-Instruct says which is better, in both orders. People's choices on half of the
items, sampled as by `harness rate export`, then correct the share of wins; those on all items are the truth.
Instructions of Dolly, and separately its summaries, are compared from a short harness.yaml, with the same judge, a
rubric and no labels, as a user would try it first: two files next to rows with `prompt` and `reference`, and one
`harness compare`.

`HARNESS_TEST_DATA=DIR PYTHONPATH=.:tests python -m reports.studies.local_judge [llmbar] [dolly] [summaries]` takes
some ten minutes per part on one quiet core, resumes an interrupted run, and writes `reports/local_judge.md` and
`.json`, which keeps every grade of LLMBar. With `--so-far` the judge gets no more pairs, and the page covers those
that it has judged in both orders.
"""

import argparse
import csv
import gzip
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from openai_server import Rule, serve_model
from tiny_experiment import rows as write_rows

from harness import formatting, stats, store
from harness.experiment import compare
from harness.lifecycle.label_file import export_answers, import_labels
from harness.report import ExperimentReport
from harness.report.sections import label_sentences
from harness.store import Store

ROOT = Path(__file__).parents[2]
JUDGE = "smollm2-135m"
N_PAIRS = 120
SIZES = {"dolly": (20, 6, 16), "summaries": (12, 4, 8)}  # test, validation and training rows
LONGEST = 2000  # characters of a row
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

COMPARISON = """\
name: {name}
base_model: smollm2-135m
target:
  name: {name}
  data: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  metrics: [judge:./helpful.yaml, rouge]
  max_new_tokens: 48
  truncated_scores: true
candidates:
  prompt: prompt
  shots: {{prompting: {{few_shot: {{select: fixed, shots: 2}}}}}}
  lora: {{method: lora, params: {{max_steps: 8, learning_rate: 2.0e-4}}}}
"""
HELPFUL = """\
criteria: The answer does what the instruction asks, truthfully and in few words.
scale: {min: 1, max: 5}
judge: smollm2-135m
"""


class Agreement(NamedTuple):
    """Share of `n` pairs on which a judge chose as people did, with its 95 % interval; shares of wins of the first."""

    n: int
    share: float
    low: float
    high: float
    first_won: float
    people: float


def read_pairs(data: Path, n: int) -> list[dict[str, Any]]:
    """Draw pairs of LLMBar with distinct instructions."""
    with gzip.open(data / "rows" / "llmbar" / "llmbar.jsonl.gz", "rt") as lines:
        by_instruction = {row["input"]: row for row in map(json.loads, lines)}
    rows = [row for row in by_instruction.values() if row["output_1"].strip() and row["output_2"].strip()]
    pick = np.random.default_rng(0).permutation(len(rows))[:n]
    return [rows[i] for i in sorted(pick)]


def judge_pairs(folder: Path, pairs: Sequence[dict[str, Any]], n_labels: int) -> ExperimentReport:
    """Let the model judge the pairs, and correct it with people's choices on some of them."""
    answers = {row["input"]: row["output_1"] for row in pairs}
    for name in ("train", "validation"):
        fillers = [{"prompt": f"Say {i} for {name}.", "reference": f"{i}"} for i in range(2)]
        write_rows(folder / f"{name}.jsonl", fillers)
    write_rows(
        folder / "test.jsonl",
        [{"id": pair_id(row), "prompt": row["input"], "reference": row["output_2"]} for row in pairs],
    )
    (folder / "better.yaml").write_text(BETTER.format(judge=JUDGE))
    path = folder / "harness.yaml"
    with serve_model(Rule(lambda messages: answers.get(messages[-1]["content"], "0"))) as server:
        path.write_text(PAIRS.format(url=server.url))
        compare(path)
        labels = {row["input"]: 2 - row["label"] for row in pairs}
        label(path, folder / "labels.csv", "first", labels, n_labels)
        return compare(path)


def label(path: Path, file: Path, candidate: str, labels: Mapping[str, int], n: int) -> None:
    """Label a candidate's answers by their questions as a person would: fill in the exported file and import it."""
    file.unlink(missing_ok=True)
    export_answers(path, file, n_items=n, candidates=[candidate])
    with file.open(newline="") as lines:
        head, *rows = list(csv.reader(lines))
    question, given = head.index("question"), head.index("label")
    for row in rows:
        row[given] = str(labels[row[question]])
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows([head, *rows])
    import_labels(path, file, rater="llmbar")


def list_stored_grades(folder: Path, pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """List every grade with people's choice: 1 if the first answer of the pair is better."""
    runs_store, wins = Store(folder / "runs"), {pair_id(row): 2 - row["label"] for row in pairs}
    books = store.read_identities(runs_store)
    grades = [grade for book in books for grade in store.list_grades(runs_store, book)]
    return [
        {
            "item": g.example_id,
            "order": g.order,
            "value": g.value,
            "said": g.said,
            "people": wins[g.example_id],
        }
        for g in grades
        if g.example_id in wins
    ]


def grade_seconds(folder: Path) -> list[float]:
    """Return the minimum, median and maximum of the seconds per grade."""
    runs_store = Store(folder / "runs")
    books = store.read_identities(runs_store)
    took = [g.compute_s for book in books for g in store.list_grades(runs_store, book)]
    return [round(float(x), 1) for x in np.quantile(took, (0, 0.5, 1))]


def agreement(grades: Sequence[dict[str, Any]]) -> Agreement:
    """Return the share of pairs on which the judge, averaged over both orders, chose as people did."""
    values: dict[str, list[float]] = {}
    for grade in grades:
        values.setdefault(grade["item"], []).append(grade["value"])
    people = {grade["item"]: grade["people"] for grade in grades}
    hits = [float((np.mean(item_grades) > 0.5) == people[item]) for item, item_grades in values.items()]
    low, high = stats.wilson(sum(hits), len(hits), 0.05)
    first = [g["value"] if g["order"] == "first" else 1 - g["value"] for g in grades]
    share = float(np.mean(list(people.values())))
    return Agreement(len(hits), float(np.mean(hits)), low, high, float(np.mean(first)), share)


def select_judged_pairs(folder: Path, pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the pairs that were judged in both orders."""
    times = Counter(grade["item"] for grade in list_stored_grades(folder, pairs))
    return [row for row in pairs if times[pair_id(row)] == 2]


def study_pairs(data: Path, folder: Path, *, so_far: bool) -> dict[str, Any]:
    """Run the part on LLMBar, and return its figures."""
    sample = read_pairs(data, N_PAIRS)
    pairs = select_judged_pairs(folder, sample) if so_far else sample
    (labels,) = judge_pairs(folder, pairs, len(pairs) // 2).labels
    grades, arm = list_stored_grades(folder, pairs), labels.arms[0]
    scores = {"the judge, uncorrected": arm.score, "corrected by labels": arm.corrected}
    scores |= {"the same labels alone": arm.labels_alone}
    return {
        "judge": JUDGE,
        "agreement": agreement(grades)._asdict(),
        "n_drawn": len(sample),
        "grade_s": grade_seconds(folder),
        "n_labels": arm.n_labels,
        "kappa": list(labels.kappa[:3]) if labels.kappa else None,
        "near_chance": labels.is_near_chance,
        "scores": {key: [e.unit.scale * x for x in e[:3]] if e else None for key, e in scores.items()},
        "said": list(label_sentences(labels)),
        "grades": grades,
    }


def read_instructions(data: Path, n: int, *, summaries: bool) -> list[dict[str, Any]]:
    """Draw rows of Dolly: its summaries, or all others."""
    with gzip.open(data / "rows" / "dolly_3k" / "train.jsonl.gz", "rt") as lines:
        by_prompt = {row["instruction"] + row["input"]: row for row in map(json.loads, lines)}
    rows = [
        {"prompt": "\n\n".join(filter(None, (row["instruction"], row["input"]))), "reference": row["output"]}
        for row in by_prompt.values()
        if (row["category"] == "summarization") == summaries and row["output"].strip()
    ]
    rows = [row for row in rows if sum(map(len, row.values())) <= LONGEST]
    pick = np.random.default_rng(0).permutation(len(rows))[:n]
    return [rows[i] for i in pick]


def study_comparison(data: Path, folder: Path, name: str) -> dict[str, Any]:
    """Run a comparison with an unchecked judge, and return its figures."""
    n_test, n_validation, n_train = SIZES[name]
    rows = read_instructions(data, n_test + n_validation + n_train, summaries=name == "summaries")
    ends = (0, n_test, n_test + n_validation, len(rows))
    for part, start, end in zip(("test", "validation", "train"), ends, ends[1:], strict=False):
        write_rows(folder / f"{part}.jsonl", rows[start:end])
    (folder / "helpful.yaml").write_text(HELPFUL)
    path = folder / "harness.yaml"
    path.write_text(COMPARISON.format(name=name))
    report = compare(path)
    scores = {
        each.label: [each.target.unit.scale * x for x in each.target[:3]] if each.target else None
        for each in report.facts
    }
    return {
        "harness_yaml": path.read_text(),
        "rubric": HELPFUL,
        "n": n_test,
        "scores": scores,
        "failed": {each.label: each.error for each in report.facts if each.error},
        "decision": report.decision.sentence if report.decision else "",
        "notes": [note for note in report.notes if "judge:" in note],
    }


def markdown(results: Mapping[str, Any]) -> str:
    """Write the page from the stored figures of each part."""
    about = (__doc__ or "").partition("\n\n")[2].split("`HARNESS")[0].strip()
    parts = {"llmbar": _pairs_lines, "dolly": _comparison_lines, "summaries": _comparison_lines}
    titles = {"llmbar": "LLMBar", "dolly": "Instructions of Dolly", "summaries": "Summaries of Dolly"}
    lines = ["# A small model on this machine as a judge", "", about]
    for part, write in parts.items():
        lines += ["", f"## {titles[part]}", "", *(write(results[part]) if part in results else ["Not run."])]
    return "\n".join([*lines, ""])


def _pairs_lines(figures: Mapping[str, Any]) -> list[str]:
    result, percent = Agreement(**figures["agreement"]), formatting.percent
    differs = "is not shown to differ from" if result.low <= 0.5 <= result.high else "differs from"
    share = f"{percent(result.share)} % [{percent(result.low)}, {percent(result.high)}]"
    drawn = f", of {figures['n_drawn']} sampled," if figures["n_drawn"] > result.n else ""
    scores = [
        f"| {name} | {s[0]:.1f} [{s[1]:.1f}, {s[2]:.1f}] |" for name, s in figures["scores"].items() if s
    ]
    finding = f"On {result.n} pairs{drawn} it chose as people did in {share}, which {differs} chance (50 %)."
    return [
        f"{finding} The answer shown first won {percent(result.first_won)} % of its comparisons.",
        "",
        "| share of wins of the first answers | % [95 % interval] |",
        "|---|---|",
        f"| people, all {result.n} items | {percent(result.people)} |",
        *scores,
        "",
        *_worth(figures["scores"], figures["n_labels"]),
        *_time_left(figures["grade_s"], figures["n_drawn"] - result.n),
        "",
        "What `harness report` says about it:",
        "",
        *(f"- {sentence}" for sentence in figures["said"]),
    ]


def _time_left(grade_s: Sequence[float], n_open: int) -> list[str]:
    """Estimate the time for the sampled pairs that are not judged yet, two grades each."""
    if not n_open:
        return []
    low, median, high = (2 * n_open * seconds / 60 for seconds in grade_s)
    took = f"A grade took {grade_s[0]:g} to {grade_s[2]:g} s (median {grade_s[1]:g}) next to other work"
    return [
        "",
        f"{took}: the other {n_open} pairs would take {low:.0f} to {high:.0f} minutes, {median:.0f} at the median.",
    ]


def _worth(scores: Mapping[str, Sequence[float] | None], n_labels: int) -> list[str]:
    """Compare the interval of the correction with that of the labels alone."""
    estimates = scores["corrected by labels"], scores["the same labels alone"]
    if not (estimates[0] and estimates[1]):
        return []
    corrected, alone = (s[2] - s[1] for s in estimates if s)
    effect = "adds nothing to the labels" if corrected >= 0.95 * alone else "narrows the interval"
    widths = f"{corrected:.1f} points wide, that of the labels alone {alone:.1f}"
    return [f"With {n_labels} labels the corrected interval is {widths}: the correction {effect}."]


def _comparison_lines(figures: Mapping[str, Any]) -> list[str]:
    scores = [
        f"| {name} | {s[0]:.1f} [{s[1]:.1f}, {s[2]:.1f}] |" for name, s in figures["scores"].items() if s
    ]
    files = {"harness.yaml": figures["harness_yaml"], "helpful.yaml": figures["rubric"]}
    written = [
        line
        for name, text in files.items()
        for line in ("```yaml", f"# {name}", *text.splitlines(), "```", "")
    ]
    sentences = [f"- {sentence}" for sentence in (figures["decision"], *figures["notes"]) if sentence]
    table = [
        f"| candidate | mean grade of {figures['n']} items, % of the scale [95 % interval] |",
        "|---|---|",
        *scores,
    ]
    estimates = [s for s in figures["scores"].values() if s]
    are_apart = max(s[1] for s in estimates) > min(s[2] for s in estimates)
    finding = "Some of these intervals do not overlap" if are_apart else "All of these intervals overlap"
    reading = (
        f"{finding}. Nobody labelled these answers, and the section on LLMBar says how often this judge is right: "
        "its grades are a hint and decide nothing."
    )
    return [*written, *table, "", reading, "", "What `harness report` says about it:", "", *sentences]


def pair_id(row: dict[str, Any]) -> str:
    return f"{row['subset'].replace('/', '-')}-{row['idx']}"


def main() -> None:
    """Run parts of the study, and write its page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="llmbar, dolly, summaries; by default all")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "studies" / "local_judge")
    parser.add_argument(
        "--so-far", action="store_true", help="only the pairs of LLMBar that are already judged"
    )
    options = parser.parse_args()
    data, file = Path(os.environ["HARNESS_TEST_DATA"]), ROOT / "reports" / "local_judge.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for part in options.parts or ("llmbar", "dolly", "summaries"):
        folder = options.folder / part
        folder.mkdir(parents=True, exist_ok=True)
        if part == "llmbar":
            results[part] = study_pairs(data, folder, so_far=options.so_far)
        else:
            results[part] = study_comparison(data, folder, part)
        file.write_text(json.dumps(results, indent=1) + "\n")
        file.with_suffix(".md").write_text(markdown(results))


if __name__ == "__main__":
    main()
