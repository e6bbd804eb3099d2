"""How much of a fine-tune's gain remains if the prompt gets as many tries? Run by hand, one task at a time.

SmolLM2-135M-Instruct sorts messages into eight intents of Banking77, and answers questions about short passages of
XQuAD (800 characters with the question, no article in two splits). The same validation rows choose among four prompts
(with and without a system text, with and without two nearest shots) and among four LoRAs (two learning rates, one and
two epochs). The gain over the plain prompt is what a comparison with a single prompt would report; the gain over the
chosen prompt is what remains of it. Rows are few, so that a task takes minutes on two cores; an interval that contains
0 leaves open what more rows would show. With one seed, one draw of the rows and one small base, the result says nothing
about other sizes.

`HARNESS_TEST_DATA=DIR PYTHONPATH=.:tests python -m reports.studies.equal_budgets [banking] [xquad]` resumes an
interrupted run, and writes `reports/equal_budgets.md` and `.json`.
"""

import argparse
import gzip
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from tiny_experiment import rows as write_rows

from harness import formatting
from harness.cli.progress_bar import TerminalProgress
from harness.analysis.candidate_facts import best_untrained
from harness.experiment import compare
from harness.report import ExperimentReport

ROOT = Path(__file__).parents[2]
N_INTENTS = 8
LONGEST = 800  # characters of a passage with its question
SIZES = {"train": 80, "validation": 30, "test": 80}
SHOTS = {"few_shot": {"select": "knn", "shots": 2}}
SYSTEMS = {
    "banking": "Sort the customer's message. Reply with one of the labels alone: {labels}.",
    "xquad": "Answer the question with a few words that stand in the passage, and nothing else.",
}
METRICS = {"banking": "exact_match", "xquad": "token_f1"}
RATES = [2e-4, 1e-3]
EPOCHS = [1, 2]
CHOSEN = "the chosen prompt"


def banking(data: Path) -> dict[str, list[dict[str, Any]]]:
    """Draw rows of the alphabetically first intents; test rows come from the published test split."""
    folder = data / "rows" / "banking77"
    splits = {"train": _lines(folder / "train.jsonl.gz"), "test": _lines(folder / "test.jsonl")}
    intents = sorted({row["label"] for row in splits["train"]})[:N_INTENTS]
    selected = {
        part: [{"prompt": r["text"], "reference": r["label"]} for r in rows if r["label"] in intents]
        for part, rows in splits.items()
    }
    sample = _draw(selected["train"], SIZES["train"] + SIZES["validation"])
    train, validation = sample[: SIZES["train"]], sample[SIZES["train"] :]
    return {"train": train, "validation": validation, "test": _draw(selected["test"], SIZES["test"])}


def xquad(data: Path) -> dict[str, list[dict[str, Any]]]:
    """Draw questions with their passage, so that no article is in two splits."""
    all_rows = _lines(data / "rows" / "squad_xquad_en" / "all.jsonl.gz")
    rows = [row for row in all_rows if len(row["context"]) + len(row["question"]) <= LONGEST]
    articles = _draw(sorted({row["article"] for row in rows}), len(rows))
    ends = (0, len(articles) // 2, 2 * len(articles) // 3, len(articles))
    splits = {}
    for part, start, end in zip(SIZES, ends, ends[1:], strict=False):
        rows_of_part = [row for row in rows if row["article"] in articles[start:end]]
        splits[part] = [
            {
                "id": row["id"],
                "prompt": f"Passage: {row['context']}\n\nQuestion: {row['question']}",
                "reference": row["answers"][0],
                "cluster": row["article"],
            }
            for row in _draw(rows_of_part, SIZES[part])
        ]
    return splits


READERS = {"banking": banking, "xquad": xquad}


def _lines(path: Path) -> list[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        return list(map(json.loads, lines))


def _draw(rows: list[Any], n: int) -> list[Any]:
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:n]]


def prepare(folder: Path, task: str, data: Path, base: str = "smollm2-135m") -> Path:
    """Write the rows and the experiment of a task; return the path of harness.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = READERS[task](data)
    for part, content in rows.items():
        write_rows(folder / f"{part}.jsonl", content)
    labels = sorted({row["reference"] for row in rows["train"]}) if task == "banking" else []
    system = SYSTEMS[task].format(labels=", ".join(labels))
    experiment = {
        "name": task,
        "base_model": base,
        "target": {
            "name": task,
            "data": {part: f"{part}.jsonl" for part in rows},
            "metrics": [METRICS[task]],
            "max_new_tokens": 16,
            **({"labels": labels} if labels else {}),
        },
        "candidates": {
            "prompt": {"method": "base"},
            "system": {"system": system},
            "shots": {"system": [None, system], "prompting": SHOTS},
            "lora": {
                "method": "lora",
                "system": system,
                "params": {"r": 16},
                "sweep": {"learning_rate": RATES, "num_train_epochs": EPOCHS},
            },
        },
    }
    path = folder / "harness.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(experiment, file)
    return path


def facts_of(report: ExperimentReport) -> dict[str, Any]:
    """Return the page's figures of a task."""
    facts = {each.name: each for each in report.facts}
    lora = facts["lora"]
    prompts = [each for name, each in facts.items() if name != "lora"]
    gains = {"the plain prompt": lora.vs_prompt, CHOSEN: lora.vs_untrained}
    return {
        "chosen": best_untrained(report.facts),
        "scores": {
            each.label: {"validation": 100 * each.validation, "test": _percent(each.target)}
            for each in [*prompts, lora]
            if each.target and each.validation is not None
        },
        "failed": {each.label: each.error for each in report.facts if each.error},
        "tries": {"prompts": len(prompts), "fine-tunes": len(lora.training.sweep)},
        "gains": {name: _percent(g, "delta") for name, g in gains.items() if g},
        "decision": report.decision.sentence if report.decision else "",
    }


def _percent(estimate: Any, name: str = "score") -> list[float]:
    return [100 * getattr(estimate, key) for key in (name, "low", "high")]


def markdown(results: Mapping[str, Any]) -> str:
    """Write the page from the stored figures of each task."""
    about = (__doc__ or "").partition("\n\n")[2].split("`HARNESS")[0].strip()
    lines = ["# Prompt search and fine-tune at equal budgets", "", about]
    for task in READERS:
        lines += ["", f"## {task}", "", *(_task_lines(results[task]) if task in results else ["Not run."])]
    return "\n".join([*lines, ""])


def _task_lines(result: Mapping[str, Any]) -> Iterable[str]:
    tries, rows = result["tries"], result["rows"]
    tried = f"{tries['prompts']} prompts and {tries['fine-tunes']} fine-tunes were tried on validation"
    yield f"{tried}; {rows['train']} training, {rows['validation']} validation and {rows['test']} test rows."
    yield from ("", "| gain of the fine-tune over | points on test |", "|---|---|")
    for name, gain in result["gains"].items():
        prompt = f"{name}, {result['chosen']}" if name == CHOSEN else name
        yield f"| {prompt} | {formatting.points(*(x / 100 for x in gain))} |"
    yield from ("", f"| candidate | validation, {result['metric']} in % | test |", "|---|---|---|")
    for name, scores in result["scores"].items():
        test = formatting.interval(*(x / 100 for x in scores["test"]))
        yield f"| {name} | {scores['validation']:.1f} | {test} |"
    yield from (f"\n{name} failed: {why}" for name, why in result["failed"].items())
    yield from ("", result["decision"])


def main() -> None:
    """Run the tasks of the study, and write its page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="banking, xquad; by default both")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "studies" / "equal_budgets")
    options = parser.parse_args()
    file = ROOT / "reports" / "equal_budgets.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for task in options.tasks or READERS:
        path = prepare(options.folder / task, task, Path(os.environ["HARNESS_TEST_DATA"]))
        facts = facts_of(compare(path, progress=TerminalProgress()))
        rows = {part: len((path.parent / f"{part}.jsonl").read_text().splitlines()) for part in SIZES}
        results[task] = {"metric": METRICS[task], "rows": rows, **facts}
        file.write_text(json.dumps(results, indent=1) + "\n")
        file.with_suffix(".md").write_text(markdown(results))


if __name__ == "__main__":
    main()
