"""The page of trainings on the embedded model, with a row for each training that was run.

Invariant: a run replaces only its own row.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEAD = """\
# Trainings on the embedded model

Each trains SmolLM2-135M-Instruct for a few steps on a few rows of the quickstart's help desk, is opened again from
its folder, and answers {n_test} test messages. So few rows and steps show that a training runs on a real model as it
should, and say nothing of how good its method is. `pytest -m weekly tests/slow/test_real_trainings.py` writes a row
for each training that it runs, if TensorBoard, MLflow and an offline W&B hold its losses and rates, score, verdict
and files under one id ([trackers](../docs/howto/reports.md#trackers)). Losses are of each method's own objective, and not to be compared with each other; seconds were
often measured next to other work.

| training | rows | steps | trained | loss, first to last | validation loss, first to last | training, s | all, s | {score} | of the base | date, machine |
|---|--:|--:|--:|---|---|--:|--:|--:|--:|---|
"""


def keep(name: str, row: Mapping[str, Any], path: Path) -> None:
    """Store a row in the page's JSON file, and rewrite the page."""
    rows = json.loads(path.read_text("utf-8")) if path.exists() else {}
    rows[name] = dict(row)
    path.write_text(json.dumps(dict(sorted(rows.items())), indent=2) + "\n", "utf-8")
    path.with_suffix(".md").write_text(page(rows), "utf-8")


def page(rows: Mapping[str, Mapping[str, Any]]) -> str:
    first = next(iter(rows.values()))
    head = HEAD.format(n_test=first["n_test"], score=first["metric"])
    return head + "".join(f"| {' | '.join(_cells(name, row))} |\n" for name, row in sorted(rows.items()))


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    return [
        f"`{name}`", f"{row['n_rows']}", _format_number(row["n_steps"]), _format_number(row["n_trainable"]),
        _ends(row["loss"]), _ends(row["validation_loss"]), f"{row['training_s']:.0f}", f"{row['all_s']:.0f}",
        f"{row['score']:.2f}", f"{row['base_score']:.2f}", f"{row['date']}, {row['machine']}",
    ]  # fmt: skip


def _format_number(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def _ends(curve: list[float]) -> str:
    if not curve:
        return "–"
    return f"{curve[0]:.3f}" if len(curve) == 1 else f"{curve[0]:.3f} to {curve[-1]:.3f}"
