"""Ten data sets of ten kinds from `harness init` to a decision: a study, run by hand and outside CI.

For each kind of `tests/ten_kinds.py` the study writes rows, `init` proposes an experiment on this machine, and
`compare` runs it unedited. If the truth is known, the decision is checked against it.

`PYTHONPATH=. python -m reports.studies.ten_data_sets FOLDER` takes some ten minutes per kind on the embedded
model; `--only "labels"` runs one kind, `--base-model` uses another model. A second call resumes the first one.
Finished kinds are kept in `reports/ten_data_sets.json` and not repeated, also on other machines;
`reports/ten_data_sets.md` is written from it.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import harness
from harness.cli.progress_bar import TerminalProgress
from harness.experiment import scaffold
from harness.formatting import seconds
from harness.models.hub import NAMES
from harness.models.hardware import probe
from tests import ten_kinds
from tests.ten_kinds import KINDS, Kind

KEPT = Path(__file__).parents[2] / "reports" / "ten_data_sets.json"

Finished = dict[str, Any]  # results of one kind: time, machine, init's messages and the decision


def main() -> None:
    """Run the unfinished kinds, and write the page after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of rows, experiments and runs")
    parser.add_argument(
        "--only", action="append", choices=list(KINDS), help="one kind; may be repeated"
    )
    parser.add_argument("--base-model", default=NAMES[0], help="by default the embedded model")
    parser.add_argument(
        "--kept", type=Path, default=KEPT, help="the file of results; the page is next to it"
    )
    options = parser.parse_args()
    for name in options.only or KINDS:
        finished = read(options.kept)
        if any(each["name"] == name for each in finished):
            continue
        finished.append(finish(name, options.folder / name.replace(" ", "-"), options.base_model))
        finished.sort(key=lambda each: list(KINDS).index(each["name"]))
        options.kept.write_text(json.dumps(finished, indent=1, ensure_ascii=False) + "\n", "utf-8")
        options.kept.with_suffix(".md").write_text(page(finished), "utf-8")


def read(file: Path) -> list[Finished]:
    """Read the finished kinds, in the order of the list; empty without a file."""
    return json.loads(file.read_text("utf-8")) if file.exists() else []


def finish(name: str, folder: Path, base_model: str) -> Finished:
    """Go from rows to a decision; the time of interrupted calls counts too."""
    spent = folder / "spent_s.json"
    folder.mkdir(parents=True, exist_ok=True)
    start, before = time.monotonic(), json.loads(spent.read_text()) if spent.exists() else 0.0
    try:
        result = run_proposal(KINDS[name], folder, base_model)
    finally:
        spent.write_text(json.dumps(before + time.monotonic() - start))
    machine = probe()
    described = f"{machine.name}, {machine.precision}, {machine.gflops:,.0f} GFLOP/s"
    return {"name": name, "wall_s": json.loads(spent.read_text()), "machine": described, **result}


def run_proposal(kind: Kind, folder: Path, base_model: str) -> dict[str, Any]:
    """Propose an experiment if there is none yet, and run it unedited."""
    log, experiment = folder / "init.json", folder / "new"
    if not log.exists():
        rows = ten_kinds.write(kind, folder)
        proposal = scaffold.propose(scaffold.Request(experiment, str(rows), base_model, minutes=5.0))
        scaffold.write(proposal)
        messages = [line.replace(f"{folder}/", "") for line in (*proposal.lines, *proposal.warnings)]
        log.write_text(json.dumps(messages, ensure_ascii=False))
    report = harness.compare(experiment / "harness.yaml", progress=TerminalProgress())
    decision = report.decision
    return {
        "log": json.loads(log.read_text()),
        "states": {fact.name: fact.state for fact in report.facts},
        "action": decision.action,
        "candidate": decision.candidate,
        "sentence": decision.sentence,
        "right": is_right(kind, decision.action, decision.candidate),
    }


def is_right(kind: Kind, action: str, candidate: str | None) -> bool | None:
    """Tell whether a decision agrees with the truth; None if that is unknown."""
    if kind.truth:
        return candidate == kind.truth
    return action not in ("fine-tune", "hybrid") if kind.never else None


def page(finished: Sequence[Finished]) -> str:
    """Write the page: a table of the finished kinds, and the messages and decision of each."""
    table = [
        f"| {kind['name']} | {seconds(kind['wall_s'])} | {kind['action']} | {kind['candidate'] or '–'} | {_truth(kind)} |"
        for kind in finished
    ]
    unfinished = [name for name in KINDS if name not in {kind["name"] for kind in finished}]
    return "\n".join(
        [
            "# Ten data sets, from `init` to a decision",
            "",
            "Rows of `tests/ten_kinds.py`, no edit between `harness init` and `harness compare`.",
            f"{len(finished)} of {len(KINDS)} kinds are finished"
            + (f"; left: {', '.join(unfinished)}." if unfinished else "."),
            "",
            "| kind | time | decision | candidate | right |",
            "|---|---|---|---|---|",
            *table,
            *(line for kind in finished for line in _log(kind)),
            "",
        ]
    )


def _truth(kind: Mapping[str, Any]) -> str:
    return {True: "yes", False: "**no**", None: "unknown"}[kind["right"]]


def _log(kind: Mapping[str, Any]) -> list[str]:
    states = ", ".join(f"{name} {state}" for name, state in kind["states"].items())
    lines = [f"- {line}" for line in [*kind["log"], f"on {kind['machine']}: {states}", kind["sentence"]]]
    return ["", f"## {kind['name']}", "", *lines]


if __name__ == "__main__":
    main()
