"""YAML of a proposal: harness.yaml and the suite of the target, with comments for who edits them.

Invariant: what is written loads as what was proposed, whatever signs a label holds.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.experiment.scaffold.margins import ProposedGate
from harness.experiment.scaffold.recognition import Request
from harness.spec import HUB, Task

SCHEMA = "harness.schema.json"
SUITES = ("general", "safety")


def experiment_text(
    request: Request,
    name: str,
    candidates: Mapping[str, Any],
    gate: ProposedGate | None = None,
    remarks: Sequence[str] = (),
) -> str:
    """Write harness.yaml; each remark becomes a comment above the candidates."""
    base = (
        str(Path(request.base_model).resolve()) if Path(request.base_model).is_dir() else request.base_model
    )
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
        *(_write_gate(gate) if gate else []),
        "# Your volume: cost and break-even depend on it.",
        "decide: {requests_per_month: 100000, horizon_months: 6}",
    ]
    return "\n".join(lines) + "\n"


def suite_text(request: Request, task: Task, folder: Path) -> str:
    """Write the suite; files near the folder are named relative to it."""
    written = task.model_dump(exclude_defaults=True, mode="json")
    data = {
        k: _relative_path(v, request, folder) if isinstance(v, str) and k in _FILES else v
        for k, v in written["data"].items()
    }
    lines = [f"name: {_flow(task.name)}", "role: target", "tasks:"]
    for i, (key, value) in enumerate({**written, "data": data}.items()):
        lines.append(f"{'  - ' if i == 0 else '    '}{key}: {_flow(value, width=100)}")
    return "\n".join(lines) + "\n"


_FILES = ("all", "pairs", "documents")


def _relative_path(path: str, request: Request, folder: Path) -> str:
    around = request.folder.resolve()
    is_near = not path.startswith(HUB) and Path(path).is_relative_to(around.parent)
    return os.path.relpath(path, folder.resolve()) if is_near else path


def _write_gate(gate: ProposedGate) -> list[str]:
    margins = gate.policy.model_dump(include={"macro", "each", "safety"})
    return [f"# {gate.said}", f"gate: {_flow(margins)}"]


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
        entries = [_flow(entry) for entry in value]
        lines = _lines(entries, width) if width else [", ".join(entries)]
        return "[" + ",\n             ".join(lines) + "]"
    if isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _MEANS_SOMETHING:
        return value
    return json.dumps(value, ensure_ascii=False)


def _lines(entries: Sequence[str], width: int) -> list[str]:
    lines: list[str] = []
    for entry in entries:
        if lines and len(lines[-1]) + len(entry) + 2 <= width:
            lines[-1] += f", {entry}"
        else:
            lines.append(entry)
    return lines
