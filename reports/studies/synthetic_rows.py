"""Do rows written by the embedded model help to train it? Run by hand, in about an hour on a slow core.

From 40 messages of the quickstart's help desk SmolLM2-135M-Instruct writes up to 80 new messages with labels, and as
many paraphrases. LoRAs with equal numbers of steps train on the messages alone, with the new and with the reworded ones;
all answer the same 80 test messages. `python -m reports.studies.synthetic_rows FOLDER` runs the parts missing in FOLDER,
and writes `reports/synthetic_rows.md`.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness import formatting
from harness.experiment import compare
from harness.report import ExperimentReport

ROOT = Path(__file__).parents[2]
SIZES = {"train": 40, "validation": 16, "test": 80}
WRITTEN = {"new": "new-questions", "reworded": "paraphrase"}
CONFIG = """\
name: synthetic-rows
base_model: smollm2-135m
target:
  name: support
  data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl}
  metrics: [exact_match, token_f1]
  system: "Sort messages by what is unsolved: 'queue: returns, delivery, billing or repairs | tone: calm or upset'."
  max_new_tokens: 16
suites: []
candidates:
  prompt:   {method: base, prompting: zero_shot}
"""
STEPS = 32
TRAINED = f"""\
  own:      {{method: lora, params: &lora {{r: 16, target_modules: [q_proj, v_proj], learning_rate: 2.0e-3,
             max_steps: {STEPS}, per_device_train_batch_size: 4}}}}
  new:      {{method: lora, train: new.jsonl, params: *lora}}
  reworded: {{method: lora, train: reworded.jsonl, params: *lora}}
"""


ABOUT = """\
From the first 40 messages of the quickstart's help desk SmolLM2-135M-Instruct wrote new messages with
labels, and paraphrases. LoRAs with equal numbers of steps train on the messages alone, with the new and with the reworded
ones; all answer the first 80 messages of the test file. `python -m reports.studies.synthetic_rows FOLDER` made this page."""


def prepare(folder: Path) -> None:
    """Write the first messages of each part, without factual questions, and harness.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in SIZES.items():
        lines = (ROOT / "suites" / "support" / f"{part}.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if row["slice"] == "behaviour"]
        rows = [row for row in rows if not row["prompt"].startswith("Context:")][:n]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "harness.yaml").write_text(CONFIG)


def run(folder: Path) -> ExperimentReport:
    """Run the missing parts, and record the minutes of each."""
    os.chdir(folder)
    file = Path("minutes.json")
    minutes = json.loads(file.read_text()) if file.exists() else {}
    for name, by in WRITTEN.items():
        command = f"harness data augment train.jsonl --with prompt --by {by} --variants 2 --out {name}.jsonl"
        if not Path(f"{name}.jsonl").exists():
            before = time.monotonic()
            subprocess.run([sys.executable, "-m", *command.split()], check=True)
            minutes[command] = round((time.monotonic() - before) / 60, 1)
            file.write_text(json.dumps(minutes))
    Path("harness.yaml").write_text(CONFIG + TRAINED)
    before = time.monotonic()
    report = compare(Path("harness.yaml"))
    minutes.setdefault("harness compare", round((time.monotonic() - before) / 60, 1))
    file.write_text(json.dumps(minutes))
    return report


def page(report: ExperimentReport) -> str:
    """Write the page: counts and reasons, the first kept rows, and the scores with their paired difference."""
    minutes = json.loads(Path("minutes.json").read_text())
    facts = {fact.name: fact for fact in report.facts}
    (comparison,) = report.training_sets
    lines = ["# Do rows written by the embedded model help to train it?", "", ABOUT, "", "## What was kept", ""]
    for name in WRITTEN:
        command = next(each for each in minutes if each.endswith(f"{name}.jsonl"))
        took, name = minutes[command], f"{name}.jsonl"
        manifest = json.loads(Path(f"{name}.manifest.json").read_text())
        lines += [f"`{command}`, {took} minutes, {manifest['cost_usd']:.4f} USD:", ""]
        lines += [f"- {n} {reason}" for reason, n in manifest["reasons"].items()]
        lines += ["", "The first ten kept rows:", ""]
        rows = [json.loads(line) for line in Path(name).read_text().splitlines()]
        kept_rows = [row for row in rows if row.get("augmented_from")]
        lines += [f"- {as_shown(row, name)} → {row['reference']}" for row in kept_rows[:10]] + [""]
        counts = Counter(row["reference"] for row in kept_rows).most_common()
        lines += [f"Their {len(counts)} of 8 labels: {', '.join(f'{label} {n}' for label, n in counts)}.", ""]
    lines += ["## With and without the new rows", ""]
    lines += [
        "| candidate | rows | steps | exact_match [95 % interval] | training, minutes |",
        "|---|--:|--:|---|--:|",
    ]
    for training_set in comparison.sets:
        fact = facts[training_set.candidate]
        assert fact.target is not None
        score = formatting.interval(fact.target.score, fact.target.low, fact.target.high)
        took = f"{(fact.training.wall_s or 0) / 60:.1f}" if fact.training else "–"
        lines.append(f"| {training_set.candidate} | {training_set.n_rows} | {STEPS} | {score} | {took} |")
    target = facts["prompt"].target
    assert target is not None
    lines += ["", f"The model without training: {formatting.interval(*target[:3])}."]
    for training_set in comparison.sets:
        if training_set.difference is not None:
            change, p = formatting.points(*training_set.difference[:3]), formatting.p_value(training_set.p)
            lines += [f"Paired on {target.n} messages, {training_set.candidate}: {change} points, p = {p}."]
    lines += [""]
    for name in (training_set.candidate for training_set in comparison.sets):
        (answers,) = report.diversity[name]
        variety = f"{answers.new.n_distinct} distinct answers, the commonest in {formatting.percent(answers.new.share)} %"
        lines += [f"- {name}: {variety} of the messages ({answers.new.commonest})"]
    machine = ", ".join(
        f"{value} s in all" if key == "wall_s" else str(value) for key, value in report.header.items()
    )
    took = f"`harness compare` took {minutes['harness compare']} minutes"
    return "\n".join([*lines, "", f"{took}. Machine: {machine}; other work ran at the same time. One seed.", ""])


def as_shown(row: dict[str, Any], name: str) -> str:
    """Return a row's text on one line; a paraphrase after its original."""
    text = " ".join(row["prompt"].split())
    return text if name.startswith("new") else f"*{row['augmented_from']}* {text}"


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
    (ROOT / "reports" / "synthetic_rows.md").write_text(page(run(Path(sys.argv[1]))))
