"""Report on the terminal: one table, short notes, the decision, and next steps.

Invariant: the table has at most 100 columns, and different candidates have different names in it. Texts from
models and files are never read as markup.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import formatting
from harness.analysis.candidate_facts import CandidateFacts, best_untrained, is_fine_tuned, passes_alone
from harness.analysis.economics import forecast_text
from harness.formatting import UNKNOWN
from harness.report import first_page, wording
from harness.report.answer_tables import collapse_sentence, retrieval_text
from harness.report.columns import result_headings, result_rows
from harness.report.document import STYLES, terminal_lines
from harness.report.escape import clean, shorten, shorten_for_table
from harness.report.experiment_report import ExperimentReport
from harness.report.sections import experiment_document

WIDTH = 100
_NOTES = 5  # number of notes unless all are requested
_COUNTS_ITEMS = re.compile(r": [\d,]+ items? of [^:]+$")  # as in `lora: … tied …: 3 items of facts`


def terminal(report: ExperimentReport, console: Console, *, verbose: bool = False) -> None:
    """Print the table, the most important notes and the decision; with `verbose` all notes and tables."""
    console.print(terminal_table(report))
    if verbose:
        unread = wording.describe_unread(wording.best_first(report), report.metric)
        for note in [*unread, *filter(None, [first_page.labels_note(report)])]:
            console.print(Text(clean(note)))
        whole = experiment_document(report)
        brief = [s for s in whole.sections if not s.detail]
        for line in terminal_lines(replace(whole, title="", lead="", sections=brief, last_line=""), WIDTH):
            console.print(line)
        console.print()
        words = {f.label: wording.verdict_word(f) for f in wording.best_first(report)}
        groups = {
            f"{f.label}: {words[f.label]}": candidate_points(report, f) for f in wording.best_first(report)
        }
        for about, points in {**groups, "all candidates": list_other_notes(report)}.items():
            if points:
                console.print(Text(clean(about.removesuffix(f": {UNKNOWN}")), style="bold"))
                console.print(_bullets(points))
        if text := power_line(report):
            console.print(Text(clean(f"power: {text}")))
    else:
        notes = list_notes(report)
        console.print()
        console.print(_bullets(notes[:_NOTES]))
        if (more := len(notes) - _NOTES) > 0:
            text = f"{formatting.pluralize(more, 'more note')}: see the report, or --verbose"
            console.print(Text(f" - {text}", style="dim"))
    console.print()
    print_last(report, console)


def list_notes(report: ExperimentReport) -> list[str]:
    """List the notes on the table, one line each, the most important first."""
    run = first_page.find_judged(report)
    about = [f for f in wording.best_first(report) if run is None or f.run_id != run.run_id]
    text = {f.label: candidate_points(report, f) for f in report.facts}
    stopping = {f.label: _list_stopping(report, f) for f in report.facts}
    notes = [f"{f.label}: {point}" for f in about if f.state == "failed" for point in text[f.label]]
    notes += wording.describe_unread(wording.best_first(report), report.metric)
    if not report.smoke:
        notes += wording.describe_stopped(about)
        notes += first_page.list_unjudged_losses(report)
        if run:
            notes += [point if run.label in point else f"{run.label}: {point}" for point in text[run.label]]
        notes += [
            f"{f.label}: {wording.verdict_word(f)}: {point}" for f in about for point in stopping[f.label]
        ]
        notes += [power] if (power := power_line(report)) else []
    rest = [(f.label, point) for f in about for point in text[f.label] if point not in stopping[f.label]]
    notes += [f"{label}: {point}" for label, point in rest]
    return [
        *dict.fromkeys([*notes, *filter(None, [first_page.labels_note(report)]), *list_other_notes(report)])
    ]


def print_last(report: ExperimentReport, console: Console) -> None:
    """Print the decision and next commands without breaking lines."""
    console.print(Text(clean(wording.last_line(report)), style="bold"), soft_wrap=True)
    for step in first_page.next_steps(report):
        console.print(Text(clean(f"next: {step.text}")), soft_wrap=True)


def _bullets(points: Sequence[str]) -> Table:
    """Format points as a list with hanging indents."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    for point in points:
        grid.add_row(Text(" -"), Text(clean(point)))
    return grid


def candidate_points(report: ExperimentReport, f: CandidateFacts) -> list[str]:
    """List short notes on a candidate besides its row in the table."""
    if f.state == "failed":
        return [f"failed: {f.error or 'no reason was given'}"]
    run, stopping = first_page.find_judged(report), _list_stopping(report, f)
    points = []
    if run is not None and run.run_id == f.run_id:
        # The rules say what stops it.
        about = ("Gain",) if stopping else ("Gain", "Forgetting")
        points = [f"{r.about.lower()}: {r.sentence}" for r in first_page.reasons(report) if r.about in about]
    points += stopping
    if f.verdict and f.verdict.outcome == "harness-drift":
        points.append("the base no longer answers as stored, so nothing is said about the candidate")
    if passes_alone(f) and f.corrected and f.corrected.outcome != "pass" and f.standing:
        points.append(f"passes alone, but as one of {f.standing.n}: {f.corrected.sentence}")
    at = f.corrected or f.verdict
    if at and at.items_needed and "inconclusive" in (at.outcome, f.verdict.outcome if f.verdict else ""):
        among = f" as one of {f.standing.n}" if f.corrected and f.standing else ""
        points.append(f"undecided{among}: {report.settling(at).text}")
    return [*points, *_describe_measured(report, f)]


def _describe_measured(report: ExperimentReport, f: CandidateFacts) -> Iterator[str]:
    """List the measurements of a single candidate."""
    run, own = first_page.find_judged(report), f"{f.label}: "
    at = report.decision.arithmetic.get("break_even_requests") if report.decision else None
    if run is not None and run.run_id == f.run_id and isinstance(at, float | int) and report.policy:
        asked, other = forecast_text(report.policy), best_untrained(report.facts)
        yield f"pays for its training after {formatting.round_up(at)} requests, against {other}; {asked}"
    of = report.diversity.get(f.label, ())
    parts = [collapse_sentence(f.label, of), *_brief_notes(report)]
    yield from (text.removeprefix(own) for text in parts if text.startswith(own))


def _list_stopping(report: ExperimentReport, f: CandidateFacts) -> list[str]:
    """Name the rules that stop a candidate; the report has the whole sentences."""
    parts = []
    stopped = f.verdict and f.verdict.outcome in ("fail", "inconclusive")
    for rule in f.verdict.deciding if f.verdict and stopped else ():
        vetoed = rule.numbers.get("vetoed")
        if rule.name in ("each", "safety") and rule.outcome == "fail" and isinstance(vetoed, list | tuple):
            lost = ", ".join(first_page.worst_tasks(report, f, vetoed))
            parts.append(f"{rule.name}: more than a task's margin lost on {lost}")
        else:
            parts.append(rule.sentence)
    return parts


def list_other_notes(report: ExperimentReport) -> list[str]:
    """List notes that are not about a single candidate."""
    labels = {f.label for f in report.facts}
    shared = (note for note in _brief_notes(report) if note.partition(": ")[0] not in labels)
    recalls: dict[str, list[str]] = {}  # recall of retrieval, merged for equal values
    for f in report.facts:
        recalls.setdefault(retrieval_text(f), []).append(f.label)
    found = (f"{text}: {', '.join(names)}" for text, names in recalls.items() if text)
    return [*found, *shared]


def _brief_notes(report: ExperimentReport) -> Iterator[str]:
    """Drop notes that only count items by task, such as ties; the report has them."""
    return (note for note in report.notes if not _COUNTS_ITEMS.search(note))


def power_line(report: ExperimentReport) -> str:
    """Describe in one line what the gate could have missed over all fine-tunes; empty if unknown."""
    by_chance: dict[str, list[str]] = {}
    for f in wording.best_first(report):
        if is_fine_tuned(f) and (text := first_page.nearest_miss(f)):
            by_chance.setdefault(text, []).append(f.label)
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in by_chance.items())


def terminal_table(report: ExperimentReport) -> Table:
    """Return the table of candidates in at most 100 columns, the best first."""
    # Use the widest layout that fits: then a narrower gap, shorter cells, the metric below, shorter names.
    for tight, gap, stacked in ((False, 2, False), (False, 1, False), (True, 1, False), (True, 1, True)):
        broken, rows = result_headings(report), result_rows(report, tight=tight)
        heads = {name: head.replace("\n", " ") for name, head in broken.items()}
        rows = [row | {"candidate": clean(row["candidate"])} for row in (heads, *rows)]
        least = cell_len(rows[0]["candidate"])
        if stacked and _count_free(rows, gap) < least:
            # The metric's name is cut to the width of the scores, so that no verdict is.
            word, _, metric = broken["target"].partition("\n")
            metric = shorten(metric, max(cell_len(row["target"]) for row in rows[1:]))
            rows[0] = broken | {"target": f"{word}\n{metric}"}
        free = _count_free(rows, gap)
        if free >= max(cell_len(row["candidate"]) for row in rows):
            break
    name_width = max(free, least)
    table = Table(
        box=None, pad_edge=False, padding=(0, gap, 0, 0), title_justify="left", caption_justify="left"
    )
    if report.smoke:
        table.title = Text(f"{clean(report.experiment)}: {wording.SMOKE}")
        table.caption = Text(wording.SMOKE)
    first, *others = rows[0].values()
    # Without a minimal width, rich would shrink the wrapping column to nothing next to wide ones.
    table.add_column(Text(first), overflow="fold", min_width=cell_len(first), max_width=name_width)
    for heading in others:
        table.add_column(Text(heading), no_wrap=True, overflow="ellipsis")
    shown = shorten_for_table([row["candidate"] for row in rows[1:]], name_width)
    for name, row in zip(shown, rows[1:], strict=True):
        cells = (Text(cell, STYLES.get(cell, "") if at == "verdict" else "") for at, cell in row.items())
        table.add_row(Text(name), *list(cells)[1:])
    return table


def _count_free(rows: Sequence[dict[str, str]], gap: int) -> int:
    others = list(zip(*(row.values() for row in rows), strict=True))[1:]
    lines = ([line for cell in column for line in cell.split("\n")] for column in others)
    return WIDTH - sum(max(map(cell_len, of)) for of in lines) - gap * len(others)
