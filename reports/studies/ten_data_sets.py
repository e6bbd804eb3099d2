"""Ten data sets of ten kinds from `harness init` to a decision: a study, run by hand and outside CI.

Each kind of `tests/ten_kinds.py` is written, `init` proposes an experiment for it on this machine, and
`compare` runs that without an edit. Where the truth is known the decision is held to it.

`PYTHONPATH=. python -m reports.studies.ten_data_sets FOLDER` takes some ten minutes a kind on the embedded
model; `--only "labels"` takes one, `--base-model` another model. A second call goes on where the first one
stopped. What is finished is kept in `reports/ten_data_sets.json`, so that a kind that was finished on any machine
is not begun again, and `reports/ten_data_sets.md` is written from it.
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
from harness.models.embedded_model import NAMES
from harness.models.hardware import probe
from tests import ten_kinds
from tests.ten_kinds import KINDS, Kind

KEPT = Path(__file__).parents[2] / "reports" / "ten_data_sets.json"

Finished = dict[str, Any]  # of one kind: how long it took and where, what init said, and what was decided


def main() -> None:
    """Run the kinds that are not finished, and write the page after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where rows, experiments and runs lie")
    parser.add_argument(
        "--only", action="append", choices=list(KINDS), help="a kind; more than once for more"
    )
    parser.add_argument("--base-model", default=NAMES[0], help="the embedded model where none is named")
    parser.add_argument(
        "--kept", type=Path, default=KEPT, help="the file of results; the page lies beside it"
    )
    given = parser.parse_args()
    for name in given.only or KINDS:
        found = read(given.kept)
        if any(one["name"] == name for one in found):
            continue
        found.append(finish(name, given.folder / name.replace(" ", "-"), given.base_model))
        found.sort(key=lambda one: list(KINDS).index(one["name"]))
        given.kept.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
        given.kept.with_suffix(".md").write_text(page(found), "utf-8")


def read(kept: Path) -> list[Finished]:
    """Read the kinds that are finished, in the order of the list; none where there is no file."""
    return json.loads(kept.read_text("utf-8")) if kept.exists() else []


def finish(name: str, folder: Path, base_model: str) -> Finished:
    """Go from rows to a decision; the time of calls that were ended counts as well."""
    spent = folder / "spent_s.json"
    folder.mkdir(parents=True, exist_ok=True)
    start, before = time.monotonic(), json.loads(spent.read_text()) if spent.exists() else 0.0
    try:
        result = run_proposal(KINDS[name], folder, base_model)
    finally:
        spent.write_text(json.dumps(before + time.monotonic() - start))
    machine = probe()
    where = f"{machine.name}, {machine.precision}, {machine.gflops:,.0f} GFLOP/s"
    return {"name": name, "wall_s": json.loads(spent.read_text()), "machine": where, **result}


def run_proposal(kind: Kind, folder: Path, base_model: str) -> dict[str, Any]:
    """Propose an experiment where there is none yet, and run it as it was written."""
    log, experiment = folder / "init.json", folder / "new"
    if not log.exists():
        rows = ten_kinds.write(kind, folder)
        proposal = scaffold.propose(scaffold.Request(experiment, str(rows), base_model, minutes=5.0))
        scaffold.write(proposal)
        said = [line.replace(f"{folder}/", "") for line in (*proposal.said, *proposal.warnings)]
        log.write_text(json.dumps(said, ensure_ascii=False))
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
    """Hold a decision to the truth; None where that is not known."""
    if kind.truth:
        return candidate == kind.truth
    return action not in ("fine-tune", "hybrid") if kind.never else None


def page(found: Sequence[Finished]) -> str:
    """Write the kinds that are finished: a table, and of each what init said and what was decided."""
    table = [
        f"| {one['name']} | {seconds(one['wall_s'])} | {one['action']} | {one['candidate'] or '–'} | {_truth(one)} |"
        for one in found
    ]
    left = [name for name in KINDS if name not in {one["name"] for one in found}]
    return "\n".join(
        [
            "# Ten data sets, from `init` to a decision",
            "",
            "Rows of `tests/ten_kinds.py`, no edit between `harness init` and `harness compare`.",
            f"{len(found)} of {len(KINDS)} kinds are finished"
            + (f"; left: {', '.join(left)}." if left else "."),
            "",
            "| kind | time | decision | candidate | right |",
            "|---|---|---|---|---|",
            *table,
            *(line for one in found for line in _log(one)),
            "",
        ]
    )


def _truth(one: Mapping[str, Any]) -> str:
    return {True: "yes", False: "**no**", None: "the truth is not known"}[one["right"]]


def _log(one: Mapping[str, Any]) -> list[str]:
    states = ", ".join(f"{name} {state}" for name, state in one["states"].items())
    told = [f"- {line}" for line in [*one["log"], f"on {one['machine']}: {states}", one["sentence"]]]
    return ["", f"## {one['name']}", "", *told]


if __name__ == "__main__":
    main()
