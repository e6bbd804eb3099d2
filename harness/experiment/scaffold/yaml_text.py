"""YAML of a proposal: harness.yaml with the gate's margins, and the suite of the target, with comments.

Invariant: what is written loads as what was proposed, whatever signs a label holds. With these margins
nothing is warned of before a run; a model that lost nothing passes the mean in 90 % of cases as one of the
fine-tunes, so that the other rules, which stop it in 5 % each, leave it 80 %.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from harness import gating
from harness.data import load_task
from harness.decision import family_of
from harness.experiment.scaffold.recognition import Request
from harness.spec import HUB, Experiment, GatePolicy, Task

_PASSES = 0.9
_MEANS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1)
_TASKS = (0.05, 0.1, 0.15, 0.2, 0.3)


@cache
def _count_items(task: str) -> int:
    return len(load_task(Task.model_validate_json(task), 0).test)


def propose_gate(experiment: Experiment) -> tuple[GatePolicy, str]:
    """Choose the margins of the mean, of each task and of each safety task; return what they let pass too."""
    gate, members = GatePolicy(), max(family_of(experiment).size, 1)
    n = {task.name: _count_items(task.model_dump_json()) for s in experiment.suites for task in s.tasks}
    capability = [suite for suite in experiment.suites if suite.role == "capability"]
    chance: float | None = None
    for macro in _MEANS:
        gate = gate.model_copy(update={"macro": macro})
        chance = gating.chance_of_an_equal_model(capability, n, gate, members)
        if chance is None or chance >= _PASSES:
            break
    for key, suites in (("each", capability), ("safety", experiment.suites)):
        for margin in _TASKS:
            gate = gate.model_copy(update={key: margin})
            if not gating.power_warnings(suites, n, gate, n_members=members):
                break
    points = [f"{100 * float(margin or 0):g}" for margin in (gate.macro, gate.each, gate.safety)]
    if chance is None:
        return (gate, "margins: nothing is judged of forgetting: no suite has a task that counts")
    among = f", as one of {members}," if members > 1 else ""
    passes = (
        f"; one that lost nothing{among} passes the average in {100 * chance:.0f} % of cases, if the"
        " base is above chance on all of their tasks (others do not count)"
    )
    lost = (
        "margins: a fine-tune may lose {} points on average over the suites, {} on one task and {} on one of"
    )
    return (gate, f"{lost.format(*points)} safety, the smallest that their items can show{passes}")


SCHEMA = "harness.schema.json"
SUITES = ("general", "safety")


def experiment_text(
    request: Request,
    name: str,
    candidates: Mapping[str, Any],
    gate: tuple[GatePolicy, str] | None = None,
    remarks: Sequence[str] = (),
) -> str:
    """Write harness.yaml; each remark becomes a comment above the candidates."""
    base = (
        str(Path(request.base_model).resolve()) if Path(request.base_model).is_dir() else request.base_model
    )
    margins = gate[0].model_dump(include={"macro", "each", "safety"}) if gate else {}
    lines = [
        f"# yaml-language-server: $schema={SCHEMA}",
        f"# Proposed by harness init for {Path(request.data).name}; change what you know better.",
        f"name: {_flow(name)}",
        f"base_model: {_flow(base)}",
        f"target: {_flow(f'suites/{name}.yaml')}",
        f"suites: {_flow(list(SUITES))}            # what a fine-tune might forget",
        *(f"# {remark}" for remark in remarks),
        "candidates:                          # what is compared; `harness ls methods` lists more",
        *(line for key, recipe in candidates.items() for line in _write_entry(key, recipe, "  ")),
        *((f"# {gate[1]}", f"gate: {_flow(margins)}") if gate else ()),
        "# Your volume: cost and break-even depend on it.",
        "decide: {requests_per_month: 100000, horizon_months: 6}",
    ]
    return "\n".join(lines) + "\n"


def suite_text(request: Request, task: Task, folder: Path) -> str:
    """Write the suite; files near the folder are named relative to it."""
    written = task.model_dump(exclude_defaults=True, mode="json")
    data = {
        key: os.path.relpath(value, folder.resolve())
        if key in _FILES
        and isinstance(value, str)
        and not value.startswith(HUB)
        and Path(value).is_relative_to(request.folder.resolve().parent)
        else value
        for key, value in written["data"].items()
    }
    lines = [f"name: {_flow(task.name)}", "role: target", "tasks:"]
    for i, (key, value) in enumerate({**written, "data": data}.items()):
        lines.append(f"{'  - ' if i == 0 else '    '}{key}: {_flow(value, width=100)}")
    return "\n".join(lines) + "\n"


_FILES = ("all", "pairs", "documents")


def _write_entry(key: str, value: Any, indent: str) -> list[str]:
    """Write an entry in one line where it fits, else a part below the other."""
    if len(line := f"{indent}{key}: {_flow(value)}") <= _WIDTH or not isinstance(value, dict | list):
        return [line]
    if isinstance(value, list):
        return [f"{indent}{key}:", *(f"{indent}  - {_flow(entry)}" for entry in value)]
    inner = (_write_entry(name, part, f"{indent}  ") for name, part in value.items())
    return [f"{indent}{key}:", *(line for lines in inner for line in lines)]


_WIDTH = 200  # of a line; longer are lists of texts
_BARE = re.compile(r"[A-Za-z][\w./-]*(?: [\w./-]+)*")
_MEANS_SOMETHING = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def _flow(value: Any, width: int = 0) -> str:
    """Write a value as YAML in one line; a long list is broken between its entries."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        lines: list[str] = []
        for entry in map(_flow, value):
            if lines and (not width or len(lines[-1]) + len(entry) + 2 <= width):
                lines[-1] += f", {entry}"
            else:
                lines.append(entry)
        return "[" + ",\n             ".join(lines) + "]"
    if isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _MEANS_SOMETHING:
        return value
    return json.dumps(value, ensure_ascii=False)
