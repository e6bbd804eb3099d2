"""Documents of an experiment and of a gate's verdict, the HTML page, and the report on the terminal.

Invariant: the terminal's table has at most 100 columns, and different candidates have different names in it.
Texts from models and files are never read as markup.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness import formatting, plugins
from harness.analysis import gating
from harness.analysis.candidate_facts import CandidateFacts, is_fine_tuned
from harness.analysis.decision import Decision
from harness.analysis.estimators import is_judge
from harness.analysis.gating import GateResult
from harness.analysis.significance import bound_passing_chance
from harness.analysis.verdict import WORDS, is_in_macro
from harness.data.row_traits import RULES
from harness.formatting import UNKNOWN
from harness.records import TrainingRecord
from harness.report import answer_tables, pictures, result_tables, training_tables, wording
from harness.report.columns import FORGETTING_TABLE, GATE_TABLE, print_table, result_headings, result_rows
from harness.report.document import CAPTION, CLASSES, STYLES, ResultDocument, Section, terminal_lines
from harness.report.escape import (
    clean,
    clean_lines,
    page_environment,
    shorten,
    shorten_for_picture,
    shorten_for_table,
)
from harness.report.experiment_report import RIGHT, WRONG, ExperimentReport, describe_prompt
from harness.report.first_page import find_judged, first_page, labels_note, nearest_miss, next_steps, reasons
from harness.report.interchange import junit, to_plain

_LOST_LISTED = 10
_EVIDENCE = 10  # sentences before the appendix
# What the terminal shows beside the first page.
_AS_GRADED = "These are the judge's grades as they are: people's labels correct scores on test alone."
_BRIEF = ("seeds", "ablation", "training sets", "wins", "labels", "more targets")
HEAT_TITLE = "Capability suite, before and after"
_ESTIMAND = "95 % intervals, over items like these"
_LOST_SHOWN = 20
_HEADINGS = {"base": "baseline", "new": "candidate"}  # the baseline may be a champion


def experiment_document(report: ExperimentReport) -> ResultDocument:
    """Return all sections of an experiment; the terminal leaves the details out."""
    done = [f for f in wording.best_first(report) if f.state == "done"]
    shown = [replace(s, detail=s.kind not in _BRIEF) for s in _body(report, done)]
    shown += [replace(s, detail=True, appendix=True) for s in _appendix(report, done)]
    parts = [s for s in shown if s.rows or s.notes]
    header = (
        f"{training_tables.figure_title(name)} {wording.figure_text(name, value)}"
        for name, value in report.header.items()
    )
    lead = " · ".join(map(clean, [f"Base model {report.base_model}", *header, _ESTIMAND]))
    mark = wording.SMOKE if report.smoke else ""
    return ResultDocument(report.experiment, parts, wording.last_line(report), lead, mark, first_page(report))


def arithmetic_lines(decision: Decision, unit: formatting.Unit) -> list[str]:
    """List the numbers behind a decision for a terminal, the unknown ones on one line."""
    rows = [*result_tables.arithmetic_rows(decision, unit)]
    known = [f"  {name}: {value}" for name, value in rows if value != UNKNOWN]
    unknown = "; ".join(name for name, value in rows if value == UNKNOWN)
    return [*known, *([f"  not known: {unknown}"] if unknown else []), *_list_missing(decision)]


def _body(report: ExperimentReport, done: Sequence[CandidateFacts]) -> Iterator[Section]:
    yield Section("evidence", "Evidence", notes=_list_reasons(report)[:_EVIDENCE])
    yield result_tables.wins_section(done, report.declared)
    yield from answer_tables.label_sections(report.labels)
    found, rows = pictures.heat(report), []
    for task, cells in found.rows:
        rows.append([task, *(f"{cell.change} {cell.interval}" if cell else UNKNOWN for cell in cells)])
    yield Section("heat", HEAT_TITLE, ("change in points", *found.labels), rows)
    yield from (result_tables.ablation_section(a, report.unit) for a in report.ablations)
    yield from (training_tables.sets_section(of, report.unit) for of in report.training_sets)
    yield result_tables.seed_section(report.seeds, report.unit)
    if report.curve:
        section = result_tables.curve_section(report.curve)
        corrects_others = any(found.metric == report.metric for found in report.labels)
        marks = (_AS_GRADED,) if is_judge(report.metric) and corrects_others else ()
        yield replace(section, notes=(*section.notes, *marks))
    sizes = {name: estimate.n for f in done for name, estimate in f.slices.items() if name}
    columns = [f"{name} (n = {formatting.count(sizes[name])})" for name in sorted(sizes)]
    rows = []
    for f in done if columns else ():
        scores = (wording.answered_text(f.slices.get(name)) for name in sorted(sizes))
        rows += [[f.label, *scores]] if f.slices else []
    notes = [f"{case}: {RULES[case]}" for case in sorted(RULES.keys() & sizes)]
    yield Section("slices", "Slices", ["candidate", *columns], rows, notes=notes)
    yield answer_tables.retrieval_section(done)
    yield from (
        result_tables.targets_section(done),
        answer_tables.several_section(done),
        result_tables.parity_section(done),
    )


def _appendix(report: ExperimentReport, done: Sequence[CandidateFacts]) -> Iterator[Section]:
    tuned = [f for f in done if is_fine_tuned(f)]
    notes = [
        *_list_reasons(report)[_EVIDENCE:],
        *filter(None, (answer_tables.collapse_sentence(label, of) for label, of in report.diversity.items())),
        *(f"{f.label}: {text}" for f in report.facts if (text := answer_tables.retrieval_text(f))),
        *report.notes,
    ]
    yield Section("notes", "More evidence, and notes", notes=notes)
    yield from (_show_forgetting(report, f) for f in tuned)
    yield from (answer_tables.diversity_section(f.label, report.diversity.get(f.label, ())) for f in tuned)
    yield from (result_tables.steps_section(f.label, report.steps.get(f.label, ())) for f in tuned)
    yield from (_gate(report, f) for f in tuned)
    swept = [f for f in done if f.training.sweep]
    yield from (_sweep(report, f) for f in swept if f in tuned)
    yield from map(_scan, tuned)
    yield from (_sweep(report, f) for f in swept if f not in tuned)
    made = (f for f in done if not plugins.find_method(f.method).is_remote)
    yield from (result_tables.speed_section(done), result_tables.load_section(done))
    yield training_tables.show_trainings([f for f in made if f.training.to_plain() or f.training_cost_usd])
    if report.decision:
        rows, missing = (
            result_tables.arithmetic_rows(report.decision, report.unit),
            _list_missing(report.decision),
        )
        yield Section("arithmetic", "Arithmetic of the decision", ("input", "value"), rows, notes=missing)
    yield from (Section("provenance", *table) for table in result_tables.provenance_tables(report.origins))


def _show_forgetting(report: ExperimentReport, f: CandidateFacts) -> Section:
    comparisons = report.comparisons.get(f.label, ())
    primary = report.task_comparisons(f.label)
    columns, rows = print_table(FORGETTING_TABLE, comparisons)
    columns.append("counts in the gate")
    for row, c in zip(rows, comparisons, strict=True):
        why_not = report.not_admitted.get(c.task, "")
        counts = f"no: {why_not}" if why_not else "yes"
        if c is not primary[c.task] or not c.unit.higher_is_better:
            counts = "no: reported only"
        elif c.task in report.one_half:
            counts = f"one half: {report.one_half[c.task]}"
        row.append(counts)
    lost = [wording.name_lost_items(c, _LOST_LISTED) for c in primary.values() if c.lost and c.unit.is_rate]
    title = f"What {f.label} kept and lost"
    return Section("forgetting", title, columns, rows, notes=lost, label=f.label)


def _sweep(report: ExperimentReport, f: CandidateFacts) -> Section:
    of = f.training
    return training_tables.trials_section(of.sweep, of.searched_by, report.metric, report.unit, f.label)


def _scan(f: CandidateFacts) -> Section:
    columns = ("type of matrix", "trained", "of", "least ratio of a trained one", "largest of the others")
    rows = []
    for one in f.training.scan:
        ratios = map(formatting.figure, (one.least_trained, one.most_frozen))
        rows.append([one.type, *map(formatting.count, (one.n_trained, one.n)), *ratios])
    return Section("scan", f"Signal-to-noise of the base's matrices: {f.label}", columns, rows, label=f.label)


def _gate(report: ExperimentReport, f: CandidateFacts) -> Section:
    title, columns = f"Gate: {f.label}", ("rule", "outcome", "evidence")
    if f.verdict is None:
        return Section("gate", title, columns, ())
    rows = [[rule.name, WORDS[rule.outcome], rule.sentence] for rule in f.verdict.rules]
    notes = [*map(wording.miss_text, f.verdict.missed)]
    notes += filter(None, [wording.family_text(report.family.size, report.family.alpha)])
    if f.corrected is not None and f.standing is not None:
        level, outcome = formatting.percent(f.standing.level), WORDS[f.corrected.outcome]
        parts = [f"as one of {f.standing.n} fine-tunes, at {level} %: {outcome}"]
        parts += [report.settling(f.corrected).text] if f.corrected.items_needed else []
        notes.append("; ".join([*parts, *filter(None, [nearest_miss(f)])]))
    return Section("gate", title, columns, rows, wording.miss_basis(f.verdict), notes, f.label)


def _list_missing(decision: Decision) -> list[str]:
    return [f"Missing from the comparison: {what}" for what in decision.missing]


def _list_reasons(report: ExperimentReport) -> list[str]:
    """List what failed and what the decision rests on, the strongest first; a smoke run has no decision."""
    reasons = report.decision.reasons if report.decision and not report.smoke else ()
    return [*(wording.failure_line(f) for f in report.facts if f.state == "failed"), *reasons]


def gate_document(judged: GateResult) -> ResultDocument:
    """Return a verdict's tasks, rules, missed losses and lost items."""
    v = judged.verdict
    tasks = [t for t in judged.tasks if t.comparison.metric == t.task.primary_metric]
    rates = [t.comparison for t in tasks if t.comparison.base_passed is not None]
    lost = [wording.name_lost_items(c, _LOST_SHOWN) for c in rates if c.lost]
    among = wording.family_text(judged.n_members, judged.policy.alpha)
    heads, rows = print_table(GATE_TABLE, [t.comparison for t in tasks], tight=True)
    heads = [*(_HEADINGS.get(head, head) for head in heads), "in the macro"]
    for row, t in zip(rows, tasks, strict=True):
        row.append(("one half" if t.half else "yes") if is_in_macro(t) else "no")
    sections = [
        Section("tasks", columns=heads, rows=rows),
        Section(
            "rules",
            columns=("rule", "outcome", "evidence"),
            rows=[[r.name, WORDS[r.outcome], r.sentence] for r in v.rules],
        ),
        Section(
            "missed",
            lead=wording.miss_basis(v),
            notes=[*map(wording.miss_text, v.missed), *filter(None, [among])],
        ),
        Section("lost", notes=lost, detail=True),
        Section("notes", notes=judged.notes),
    ]
    title = f"{WORDS[v.outcome]}: {judged.candidate} against {judged.baseline}"
    return ResultDocument(title, sections, f"{judged.candidate}: {v.sentence}")


def gate_junit(judged: Sequence[GateResult], name: str) -> str:
    """Write one test case a rule; what is inconclusive fails where the policy says so."""
    stops = [(j.candidate, j.verdict, gating.exit_code(j.verdict, j.policy) != 0) for j in judged]
    return junit(stops, name)


def gate_json(judged: GateResult) -> dict[str, Any]:
    """Turn a verdict into plain types, with every metric of every task and its exit code."""
    plain: dict[str, Any] = to_plain(asdict(judged.verdict))
    return {
        "candidate": judged.candidate,
        "baseline": judged.baseline,
        "exit_code": gating.combine_exit_codes([judged]),
        **plain,
        "comparisons": to_plain([t.comparison for t in judged.tasks]),
        "family": {
            "members": judged.n_members,
            "chance": bound_passing_chance(judged.policy.alpha, judged.n_members),
        },
        "policy": judged.policy.model_dump(mode="json"),
        "notes": list(judged.notes),
    }


_FOLDER = Path(__file__).parent
_BRIEF_ANSWER = 60  # characters of an answer that is not opened


def html(report: ExperimentReport) -> str:
    """Render the report as one HTML file that needs nothing else; its own policy forbids scripts."""
    from markupsafe import Markup, escape

    environment = page_environment(_FOLDER)
    environment.filters |= {"lines": lambda text: escape(clean_lines(text)), "drawn": Markup}
    environment.filters["brief"] = lambda text: shorten(clean(" ".join(text[:400].split())), _BRIEF_ANSWER)
    shown = experiment_document(report)
    chapters: list[dict[str, Any]] = [
        {"id": f"s{i}", "section": section} for i, section in enumerate(shown.sections)
    ]
    return environment.get_template("page.html").render(
        report=report,
        document=shown,
        body=[c for c in chapters if not c["section"].appendix],
        appendix=[c for c in chapters if c["section"].appendix],
        caption=CAPTION,
        curves=list(filter(None, _curves(wording.best_first(report)))),
        heat=pictures.heat(report),
        answers=[(task, list(of)) for task, of in groupby(report.answers, key=lambda item: item.task)],
        marks={RIGHT: "right", WRONG: "wrong"},
        describe_prompt=describe_prompt,
        verdict_classes=CLASSES,
        verdict_words=WORDS,
        colours=Markup((_FOLDER / "page.css").read_text(encoding="utf-8") + pictures.rules()),
    )


def _curves(facts: Iterable[CandidateFacts]) -> list[str]:
    trainings: list[TrainingRecord] = []
    labels: list[str] = []
    for f in facts:
        if f.training in trainings:
            labels[trainings.index(f.training)] += f", {f.label}"
        else:
            trainings.append(f.training)
            labels.append(f.label)
    titles = shorten_for_picture(labels, training_tables.LONGEST)
    return list(map(training_tables.curves, labels, trainings, titles))


WIDTH = 100
_NOTES = 5  # number of notes unless all are requested


def terminal(report: ExperimentReport, console: Console, *, verbose: bool = False) -> None:
    """Print the table of candidates, five notes (all, with tables, if `verbose`), and the decision last."""
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
    notes += (answer_tables.collapse_sentence(label, found) for label, found in report.diversity.items())
    notes += (f"{f.label}: {text}" for f in best if (text := answer_tables.retrieval_text(f)))
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
