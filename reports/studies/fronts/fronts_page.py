"""The page of fronts: what each way reached and forgot, the choice, and what did not run with its hours."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from harness import formatting
from reports.studies.fronts.choice import KEPT, N_BEST, choose, share_of_gain
from reports.studies.fronts.plan import Step
from reports.studies.fronts.rows import Row
from reports.studies.fronts.ways import PLAIN, way_of
from reports.studies.general_suite import Change, rank

WAYS_TASK = "ways"
_ABOUT = f"""\
Which way to fine-tune gains as much as plain LoRA and forgets less? First every way at two strengths with one seed on the
quickstart's target, judged on validation rows and on general items that no gate asks. Then plain LoRA and the {N_BEST} best ways on
three tasks over three seeds: the quickstart's, Banking77 cut to twelve intents and 360 rows, and Dolly's instructions. The share of
plain LoRA's gain is over the prompt, on the same items and the same kind of machine; forgetting is the mean change of the
capability suite in points. Pictures are of the machine that measured most."""
_DRIFT = """\
- harness-drift: the base's stored answers, asked again beside this candidate, came out otherwise, so its gate says nothing"""
_COLUMNS = ("candidate", "target", "share of plain LoRA's gain", "forgetting", "public tasks", "gate")


def page(rows: Sequence[Row], missing: Sequence[Step], later_s: float, reports: Path) -> str:
    """Write the page; `later_s` is the expected time of the second stage as long as nothing is chosen for it.

    Pictures are those in the folder `reports`.
    """
    first = [row for row in rows if row.task == WAYS_TASK]
    lines = ["# Fronts of target against forgetting", "", _ABOUT, "", "## Every way, on validation", ""]
    lines += _tables(first) if first else ["Nothing of it has run."]
    if chosen := choose(first):
        lines += ["", f"The best of those that have run: {', '.join(chosen)}."]
    for task in dict.fromkeys(row.task for row in rows if row.task != WAYS_TASK):
        task_rows = [row for row in rows if row.task == task]
        lines += ["", f"## {task}", "", *_tables(task_rows), "", _verdict(task_rows)]
        if (reports / f"fronts.{task}.svg").exists():
            lines += ["", f"![Front of {task}](fronts.{task}.svg)"]
    lines += _compare_suites([row for row in rows if row.kept is not None and row.public_change is not None])
    lines += ["", "## Not run", "", *_list_missing_steps(missing, later_s)]
    again = "`python -m reports.studies.fronts --steps 1` makes the next step and writes this page again."
    return "\n".join([*lines, "", again, ""])


def _tables(rows: Sequence[Row]) -> list[str]:
    """Return a table for each kind of machine with measurements, the best score first."""
    lines: list[str] = []
    for machine in dict.fromkeys(row.machine for row in rows):
        measured = [row for row in rows if row.machine == machine]
        scored = sorted((row for row in measured if row.goal is not None), key=lambda row: -(row.goal or 0.0))
        notes = [f"- {row.label} failed: {row.error}" for row in measured if row.error]
        notes += [f"- {row.remark}" for row in measured if row.remark]
        head = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
        lines += ["", f"On {machine}:", "", *head, *(_cells(rows, row) for row in scored)]
        if any(row.gate == "harness-drift" for row in measured):
            notes.append(_DRIFT)
        lines += ["", *notes] if notes else []
    return lines[1:]


def _cells(rows: Sequence[Row], row: Row) -> str:
    share = share_of_gain(rows, row)
    gain = formatting.UNKNOWN if share is None else f"{formatting.percent(share)} %"
    return "| " + " | ".join([row.label, row.target, gain, row.forgetting, row.public, row.gate]) + " |"


def _compare_suites(rows: Sequence[Row]) -> list[str]:
    """Return the section that ranks recipes by forgetting and by public tasks, as means over their seeds."""
    recipes: dict[str, list[Row]] = {}
    for row in rows:
        recipes.setdefault(f"{row.task}, {row.candidate}, {row.machine}", []).append(row)
    changes = {
        name: {
            "suite": Change(fmean(row.kept or 0.0 for row in seeds), 0.0),
            "public": Change(fmean(row.public_change or 0.0 for row in seeds), 0.0),
        }
        for name, seeds in recipes.items()
    }
    if len(changes) < 4:
        return []
    rho, low, high, n = rank(changes, "suite", "public")
    fell = sum(change["suite"].delta < 0 for change in changes.values())
    fell_in_public = sum(change["public"].delta < 0 for change in changes.values())
    return [
        "",
        "## The general suite beside public tasks",
        "",
        f"Of the {n} recipes that also answered public tasks (each on one task and machine, the mean over its seeds), {fell} "
        f"fell on the capability suite and {fell_in_public} on the mean of the public tasks. Rank correlation of both changes: "
        f"{rho:.2f} [{low:.2f}, {high:.2f}]. The recipes share base and rows, so they say less than {n} independent ones.".replace("-", "−"),
    ]


def _verdict(rows: Sequence[Row]) -> str:
    """Return which fine-tunes keep nine tenths of plain LoRA's gain and pass the gate, or why none does."""
    shares = {row.candidate: share_of_gain(rows, row) for row in rows if row.trained}
    keeping = [name for name, share in shares.items() if (share or 0.0) >= KEPT]
    gates = {name: [row.gate for row in rows if row.candidate == name] for name in keeping}
    passing = [name for name, outcomes in gates.items() if "pass" in outcomes]
    if passing:
        text = "; ".join(f"{name}, whose gate {_count_gates(gates[name])}" for name in passing)
        return f"At least {KEPT:.0%} of plain LoRA's gain, and a gate that passes: {text}."
    if not any(way_of(row.candidate) == PLAIN for row in rows):
        return "Plain LoRA has not run here yet, so nobody knows its gain."
    if not any(shares.values()):
        return "Plain LoRA gains nothing over the prompt here, so there is no gain to keep."
    if not keeping:
        return f"None that has run keeps {KEPT:.0%} of plain LoRA's gain at its best over all seeds."
    held = {
        name: dict.fromkeys(rule for row in rows if row.candidate == name for rule in row.held_back)
        for name in keeping
    }
    failing = [f"{name} ({', '.join(rules)})" for name, rules in held.items()]
    return (
        f"None that has run keeps {KEPT:.0%} of plain LoRA's gain and passes; of those that keep it the gate holds back "
        f"{', '.join(failing)}."
    )


def _count_gates(gates: Sequence[str]) -> str:
    """Count the seeds for which a gate passes, and the other outcomes."""
    other_ends = [f"{gates.count(end)} {end}" for end in dict.fromkeys(gates) if end != "pass"]
    n, all_ = gates.count("pass"), formatting.pluralize(len(gates), "seed")
    return f"passes for {n} of {all_}" + (f" ({', '.join(other_ends)})" if other_ends else "")


def _list_missing_steps(missing: Sequence[Step], later_s: float) -> list[str]:
    if not missing and not later_s:
        return ["Everything has run."]
    ways: dict[tuple[str, str], list[Step]] = {}
    for step in missing:
        ways.setdefault((step.file.stem, way_of(step.candidate) or step.candidate), []).append(step)
    rows = [
        f"| {task} | {', '.join(step.candidate for step in way_steps)} | {_hours(step.expected_s for step in way_steps):.1f} |"
        for (task, _), way_steps in ways.items()
    ]
    rows += [f"| three tasks | plain LoRA and {N_BEST} ways | {_hours([later_s]):.1f} |"] if later_s else []
    total = _hours([*(step.expected_s for step in missing), later_s])
    estimate = f"About {total:.0f} hours on the machine that wrote this page, by the harness's own estimate."
    return ["| experiment | candidates | hours |", "|---|---|---|", *rows, "", estimate]


def _hours(seconds: Iterable[float]) -> float:
    return sum(seconds) / 3600
