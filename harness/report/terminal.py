"""Report on the terminal.

Invariant: the table has at most 100 columns, and different candidates have different names in it.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import starmap

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import formatting
from harness.analysis.candidate_facts import is_fine_tuned
from harness.report import wording
from harness.report.columns import result_headings, result_rows
from harness.report.document import STYLES, terminal_lines
from harness.report.escape import clean, shorten, shorten_all
from harness.report.experiment_report import ExperimentReport
from harness.report.first_page import find_judged, labels_note, next_steps, reasons
from harness.report.result_tables import collapse_sentence
from harness.report.sections import experiment_document, retrieval_text

WIDTH = 100
_NOTES = 5  # number of notes unless all are requested


def terminal(report: ExperimentReport, console: Console, *, verbose: bool = False) -> None:
    """Print the table of candidates, five notes (`verbose`: all, with tables), decision and next steps."""
    console.print(terminal_table(report))
    notes = _list_notes(report)
    console.print()
    bullets = Table.grid(padding=(0, 1, 0, 0))  # with hanging indents
    for note in notes if verbose else notes[:_NOTES]:
        bullets.add_row(Text(" -"), Text(clean(note)))
    console.print(bullets)
    if verbose:
        whole = experiment_document(report)
        brief = [s for s in whole.sections if not s.detail]
        for line in terminal_lines(replace(whole, title="", lead="", sections=brief, last_line=""), WIDTH):
            console.print(line)
    elif (more := len(notes) - _NOTES) > 0:
        text = f"{formatting.pluralize(more, 'more note')}: see the report, or --verbose"
        console.print(Text(f" - {text}", style="dim"))
    console.print()
    print_last(report, console)


def _list_notes(report: ExperimentReport) -> list[str]:
    judged, best = find_judged(report), wording.best_first(report)
    notes = [wording.failure_line(f) for f in best if f.state == "failed"]
    notes += [*wording.describe_unread(best, report.metric), labels_note(report)]
    if not report.smoke:
        notes += wording.describe_stopped(f for f in best if judged is None or f.run_id != judged.run_id)
        notes += (f"{reason.about.lower()}: {reason.sentence}" for reason in reasons(report))
        for f in filter(is_fine_tuned, best):
            if at := f.corrected or f.verdict:
                settle = f"; {report.settling(at).text}" if at.items_needed else ""
                notes.append(f"{f.label}: {wording.verdict_word(f)}: {at.sentence}{settle}")
        notes += report.decision.reasons if report.decision else ()
    notes += starmap(collapse_sentence, report.diversity.items())
    notes += (f"{f.label}: {text}" for f in best if (text := retrieval_text(f)))
    return list(dict.fromkeys(filter(None, [*notes, *report.notes])))


def print_last(report: ExperimentReport, console: Console) -> None:
    """Print the decision and next commands without breaking lines."""
    console.print(Text(clean(wording.last_line(report)), style="bold"), soft_wrap=True)
    for step in next_steps(report):
        console.print(Text(clean(f"next: {step.text}")), soft_wrap=True)


def terminal_table(report: ExperimentReport) -> Table:
    """Return the table of candidates in at most 100 columns, the best first."""
    # Use the widest layout that fits: then a narrower gap, shorter cells, the metric below, shorter names.
    for tight, gap, stacked in ((False, 2, False), (False, 1, False), (True, 1, False), (True, 1, True)):
        broken, rows = result_headings(report), result_rows(report, tight=tight)
        heads = {name: head.replace("\n", " ") for name, head in broken.items()}
        rows = [row | {"candidate": clean(row["candidate"])} for row in (heads, *rows)]
        min_width = cell_len(rows[0]["candidate"])
        if stacked and _count_free(rows, gap) < min_width:
            # The metric's name is cut to the width of the scores, so that no verdict is.
            word, _, metric = broken["target"].partition("\n")
            metric = shorten(metric, max(cell_len(row["target"]) for row in rows[1:]))
            rows[0] = broken | {"target": f"{word}\n{metric}"}
        free = _count_free(rows, gap)
        if free >= max(cell_len(row["candidate"]) for row in rows):
            break
    name_width = max(free, min_width)
    table = Table(
        box=None, pad_edge=False, padding=(0, gap, 0, 0), title_justify="left", caption_justify="left"
    )
    if report.smoke:
        table.title = Text(f"{clean(report.experiment)}: {wording.SMOKE}")
        table.caption = Text(wording.SMOKE)
    first, *other_heads = rows[0].values()
    # Without a minimal width, rich would shrink the wrapping column to nothing next to wide ones.
    table.add_column(Text(first), overflow="fold", min_width=cell_len(first), max_width=name_width)
    for heading in other_heads:
        table.add_column(Text(heading), no_wrap=True, overflow="ellipsis")
    names = [row["candidate"] for row in rows[1:]]
    short_names = shorten_all(names, name_width) or names  # those that would become equal are left to wrap
    for name, row in zip(short_names, rows[1:], strict=True):
        cells = (Text(cell, STYLES.get(cell, "") if at == "verdict" else "") for at, cell in row.items())
        table.add_row(Text(name), *list(cells)[1:])
    return table


def _count_free(rows: Sequence[dict[str, str]], gap: int) -> int:
    other_columns = list(zip(*(row.values() for row in rows), strict=True))[1:]
    lines = ([line for cell in column for line in cell.split("\n")] for column in other_columns)
    return WIDTH - sum(max(map(cell_len, column)) for column in lines) - gap * len(other_columns)
