"""The tables of a report with what is said beside each, in the order in which a document shows them.

Invariant: Markdown and HTML print these same sections; a section without rows shows no table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness import formatting, plugins
from harness.comparison import Comparison, is_judge
from harness.decision import CandidateFacts, Decision, is_fine_tuned
from harness.formatting import UNKNOWN
from harness.report.columns import COMPARISON_COLUMNS, print_table
from harness.report.document import ResultDocument, Section
from harness.report.escape import clean
from harness.report.experiment_report import ExperimentReport
from harness.report.first_page import first_page, nearest_miss
from harness.report.labels import WORDS
from harness.report.plots.heat_map import heat
from harness.report.tables.answer_tables import (
    collapse_sentence,
    diversity_section,
    retrieval_section,
    retrieval_text,
    several_section,
    several_text,
)
from harness.report.tables.decision_tables import (
    ablation_section,
    arithmetic_rows,
    curve_section,
    load_section,
    seed_section,
    seed_sentences,
    speed_section,
)
from harness.report.tables.origin_tables import attribution_sentence, provenance_tables, steps_section
from harness.report.tables.people_labels import label_sections
from harness.report.tables.target_tables import targets_section, wins_section
from harness.report.tables.training_tables import figure_title, sets_section, show_trainings, trials_section
from harness.report.wording import (
    SMOKE,
    best_first,
    failure_line,
    family_text,
    figure_text,
    last_line,
    miss_basis,
    miss_text,
    name_lost_items,
)

_LOST_LISTED = 10
_CHANGES = ("task", "metric", "base", "score", "delta", "lost_gained")
_EVIDENCE = 10  # sentences before the appendix
# What the terminal shows beside the first page.
_AS_GRADED = "These are the judge's grades as they are: people's labels correct scores on test alone."
_BRIEF = ("ablation", "training sets", "wins", "labels", "more targets")
HEAT_TITLE = "Capability suite, before and after"
_ESTIMAND = "95 % intervals, over items like these"


def experiment_document(report: ExperimentReport) -> ResultDocument:
    """Lay out everything that is said of an experiment; the terminal leaves its details out."""
    done = [f for f in best_first(report) if f.state == "done"]
    shown = [replace(s, detail=s.kind not in _BRIEF) for s in _body(report, done)]
    shown += [replace(s, detail=True, appendix=True) for s in _appendix(report, done)]
    said = [s for s in shown if s.rows or s.notes]
    header = (f"{figure_title(name)} {figure_text(name, value)}" for name, value in report.header.items())
    lead = " · ".join(map(clean, [f"Base model {report.base_model}", *header, _ESTIMAND]))
    mark = SMOKE if report.smoke else ""
    return ResultDocument(report.experiment, said, last_line(report), lead, mark, first_page(report))


def arithmetic_lines(decision: Decision, unit: formatting.Unit) -> list[str]:
    """List the numbers behind a decision for a terminal, and in one line those that are not known."""
    rows = [*arithmetic_rows(decision, unit)]
    known = [f"  {name}: {value}" for name, value in rows if value != UNKNOWN]
    unknown = "; ".join(name for name, value in rows if value == UNKNOWN)
    return [*known, *([f"  not known: {unknown}"] if unknown else []), *_list_missing(decision)]


def _body(report: ExperimentReport, done: Sequence[CandidateFacts]) -> Iterator[Section]:
    """Lay out what is read before the appendix."""
    yield Section("evidence", "Evidence", notes=_list_reasons(report)[:_EVIDENCE])
    yield wins_section(done, report.declared)
    yield from label_sections(report.labels)
    found = heat(report)
    rows = [
        [task, *(f"{cell.change} {cell.interval}" if cell else UNKNOWN for cell in cells)]
        for task, cells in found.rows
    ]
    yield Section("heat", HEAT_TITLE, ("change in points", *found.labels), rows)
    yield from (ablation_section(a, report.unit) for a in report.ablations)
    yield from (sets_section(of, report.unit) for of in report.training_sets)
    yield seed_section(report.seeds, report.unit)
    yield from [_mark_grades(report, curve_section(report.curve))] if report.curve else []
    yield _slices(report, done)
    yield retrieval_section(done)
    yield from (targets_section(done), several_section(done))


def _appendix(report: ExperimentReport, done: Sequence[CandidateFacts]) -> Iterator[Section]:
    tuned = [f for f in done if is_fine_tuned(f)]
    yield Section(
        "notes", "More evidence, and notes", notes=[*_list_reasons(report)[_EVIDENCE:], *_notes(report)]
    )
    for make in (_show_forgetting, _diversity, _steps, _gate, _sweep, _scan):
        yield from (make(report, f) for f in tuned)
    yield from (_sweep(report, f) for f in done if f.training.sweep and f not in tuned)
    made = (f for f in done if not plugins.find_method(f.method).is_remote)
    yield from (speed_section(done), load_section(done))
    yield show_trainings([f for f in made if f.training.to_plain() or f.training_cost_usd])
    if report.decision:
        rows, missing = arithmetic_rows(report.decision, report.unit), _list_missing(report.decision)
        yield Section("arithmetic", "Arithmetic of the decision", ("input", "value"), rows, notes=missing)
    yield from (Section("provenance", *table) for table in provenance_tables(report.origins))


def _mark_grades(report: ExperimentReport, section: Section) -> Section:
    """Say where numbers are a judge's grades as they are, if people's labels correct others of the report."""
    if not is_judge(report.metric) or all(found.metric != report.metric for found in report.labels):
        return section
    return replace(section, notes=(*section.notes, _AS_GRADED))


def _slices(report: ExperimentReport, done: Sequence[CandidateFacts]) -> Section:
    """Show every candidate on every slice, each with its interval."""
    sizes = {name: estimate.n for f in done for name, estimate in f.slices.items() if name}
    rows = [
        [f.label, *(_slice_score(report.unit, f, name) for name in sorted(sizes))] for f in done if f.slices
    ]
    columns = [f"{name} (n = {formatting.count(sizes[name])})" for name in sorted(sizes)]
    return Section("slices", "Slices", ["candidate", *columns], rows if columns else [])


def _slice_score(unit: formatting.Unit, f: CandidateFacts, name: str) -> str:
    if name not in f.slices:
        return formatting.UNKNOWN
    return formatting.score(unit, *f.slices[name][:3]) + formatting.errors(f.slices[name].n_errors)


def _show_forgetting(report: ExperimentReport, f: CandidateFacts) -> Section:
    """Show base → new on every capability task and metric, then the lost items by name."""
    comparisons = [c for c in report.comparisons.get(f.label, ()) if not c.slice]
    primary = report.task_comparisons(f.label)
    shown = (COMPARISON_COLUMNS[name] for name in _CHANGES)
    columns, rows = print_table(shown, comparisons)
    rows = [
        [*row, _counts(report, c, c is primary[c.task])] for row, c in zip(rows, comparisons, strict=True)
    ]
    columns.append("counts in the gate")
    lost = [name_lost_items(c, _LOST_LISTED) for c in primary.values() if c.lost and c.unit.is_rate]
    title = f"What {f.label} kept and lost"
    return Section("forgetting", title, columns, rows, notes=lost, label=f.label)


def _counts(report: ExperimentReport, c: Comparison, is_primary: bool) -> str:
    if not is_primary or not c.unit.higher_is_better:
        return "no: reported only"
    why_not = report.not_admitted.get(c.task, "")
    if c.task in report.one_half:
        return f"one half: {report.one_half[c.task]}"
    return f"no: {why_not}" if why_not else "yes"


def _diversity(report: ExperimentReport, f: CandidateFacts) -> Section:
    return diversity_section(f.label, report.diversity.get(f.label, ()))


def _steps(report: ExperimentReport, f: CandidateFacts) -> Section:
    return steps_section(f.label, report.steps.get(f.label, ()))


def _sweep(report: ExperimentReport, f: CandidateFacts) -> Section:
    of = f.training
    return trials_section(of.sweep, of.searched_by, report.metric, report.unit, f.label)


def _scan(_: ExperimentReport, f: CandidateFacts) -> Section:
    """Show by type which matrices a scan of their signal and noise chose to be trained."""
    columns = ("type of matrix", "trained", "of", "least ratio of a trained one", "largest of the others")
    rows = [
        [
            one.type,
            formatting.count(one.n_trained),
            formatting.count(one.n),
            formatting.figure(one.least_trained),
            formatting.figure(one.most_frozen),
        ]
        for one in f.training.scan
    ]
    return Section("scan", f"Signal-to-noise of the base's matrices: {f.label}", columns, rows, label=f.label)


def _gate(report: ExperimentReport, f: CandidateFacts) -> Section:
    """Show each rule with its sentence, and what the gate would have missed."""
    title, columns = f"Gate: {f.label}", ("rule", "outcome", "evidence")
    if f.verdict is None:
        return Section("gate", title, columns, ())
    rows = [[rule.name, WORDS[rule.outcome], rule.sentence] for rule in f.verdict.rules]
    among = family_text(report.family.size, report.family.alpha)
    corrected = _corrected_line(report, f)
    notes = [*map(miss_text, f.verdict.missed), *filter(None, [among, corrected])]
    return Section("gate", title, columns, rows, miss_basis(f.verdict), notes, f.label)


def _list_missing(decision: Decision) -> list[str]:
    return [f"Missing from the comparison: {what}" for what in decision.missing]


def _list_reasons(report: ExperimentReport) -> list[str]:
    """List what failed and what the decision rests on, the strongest first; a smoke run has no decision."""
    reasons = report.decision.reasons if report.decision and not report.smoke else ()
    return [*(failure_line(f) for f in report.facts if f.state == "failed"), *reasons]


def _notes(report: ExperimentReport) -> list[str]:
    """List what is to be known beside the reasons."""
    return [
        *filter(None, (attribution_sentence(label, of) for label, of in report.steps.items())),
        *filter(None, (collapse_sentence(label, of) for label, of in report.diversity.items())),
        *seed_sentences(report.seeds, report.unit),
        *(f"{f.label}: {text}" for f in report.facts if (text := retrieval_text(f))),
        *(f"{f.label}: {text}" for f in report.facts if (text := several_text(f))),
        *report.notes,
    ]


def _corrected_line(report: ExperimentReport, f: CandidateFacts) -> str:
    """Say what the verdict is among the other fine-tunes, and what would settle it; empty of a single one."""
    if f.corrected is None or f.standing is None:
        return ""
    level, missed = formatting.percent(f.standing.level), nearest_miss(f)
    said = [f"as one of {f.standing.n} fine-tunes, at {level} %: {WORDS[f.corrected.outcome]}"]
    said += [report.settling(f.corrected).text] if f.corrected.items_needed else []
    return "; ".join([*said, *filter(None, [missed])])
