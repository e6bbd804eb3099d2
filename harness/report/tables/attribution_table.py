"""Attribution of a change to steps: to the quantised base, to the run it starts from, to the training."""

from collections.abc import Sequence

from harness import formatting
from harness.report.document import Section
from harness.report.escape import clean
from harness.report.experiment_report import Step, change_text


def attribution_sentence(label: str, steps: Sequence[Step]) -> str:
    """Say where a candidate's change comes from; empty where there is nothing to split."""
    parts = [f"{formatting.points(*s.macro[:3])} by {s.what}" for s in steps if s.macro and s.target is None]
    said = [f"capability suite {' and '.join(parts)}, in points"] if len(parts) > 1 else []
    for s in (s for s in steps if s.target is not None):
        assert s.target is not None
        c = s.target
        general = f", capability suite {formatting.points(*s.macro[:3])} points" if s.macro else ""
        said.append(f"against {s.base}, which it starts from, {c.metric} {change_text(c)}{general}")
    return f"{label}: {'; '.join(said)}" if said else ""


def steps_section(label: str, steps: Sequence[Step]) -> Section:
    """Lay out the change of each task from one step to the next: a row a task, a column a step."""
    columns = ["task", *(clean(f"{s.what}: {s.new} − {s.base}") for s in steps)]
    changes = [{c.task: c for c in reversed(s.tasks)} for s in steps]
    tasks = dict.fromkeys(c.task for s in steps for c in s.tasks)
    rows = [[task, *(change_text(of.get(task)) for of in changes)] for task in tasks]
    if any(s.target for s in steps):
        rows.insert(0, ["target", *(change_text(s.target) for s in steps)])
    if any(s.macro for s in steps):
        shown = [formatting.points(*s.macro[:3]) if s.macro else formatting.UNKNOWN for s in steps]
        rows.append(["mean of the tasks that count", *shown])
    return Section("steps", f"Where the change of {label} comes from", columns, rows, label=label)
