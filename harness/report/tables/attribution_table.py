"""Attribution of a change to steps: to the quantised base, to the run it starts from, to the training."""

from collections.abc import Sequence

from harness import formatting
from harness.comparison import Comparison
from harness.report.escape import clean
from harness.report.experiment_report import Step


def attribution_sentence(label: str, steps: Sequence[Step]) -> str:
    """Say where a candidate's change comes from; empty where there is nothing to split."""
    parts = [f"{formatting.points(*s.macro[:3])} by {s.what}" for s in steps if s.macro and s.target is None]
    said = [f"capability suite {' and '.join(parts)}, in points"] if len(parts) > 1 else []
    for s in (s for s in steps if s.target is not None):
        assert s.target is not None
        c = s.target
        change = formatting.change(c.unit, c.delta, c.low, c.high)
        general = f", capability suite {formatting.points(*s.macro[:3])} points" if s.macro else ""
        said.append(f"against {s.base}, which it starts from, {c.metric} {change}{general}")
    return f"{label}: {'; '.join(said)}" if said else ""


def attribution_table(steps: Sequence[Step]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of a table: a row a task, a column a step."""
    columns = ["task", *(clean(f"{s.what}: {s.new} − {s.base}") for s in steps)]
    tasks = list(dict.fromkeys(c.task for s in steps for c in s.tasks))
    table = [
        [task, *(_step_change(next((c for c in s.tasks if c.task == task), None)) for s in steps)]
        for task in tasks
    ]
    if any(s.target for s in steps):
        table.insert(0, ["target", *(_step_change(s.target) for s in steps)])
    if any(s.macro for s in steps):
        shown = [formatting.points(*s.macro[:3]) if s.macro else formatting.UNKNOWN for s in steps]
        table.append(["mean of the tasks that count", *shown])
    return columns, table


def _step_change(c: Comparison | None) -> str:
    return formatting.change(c.unit, c.delta, c.low, c.high) if c else formatting.UNKNOWN
