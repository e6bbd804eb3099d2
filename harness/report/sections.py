"""Documents of an experiment and of a gate's verdict, and their tables about answers.

Invariant: a corrected number is printed with the uncorrected one; a metric that is not shown to agree with
people better than chance is marked, as are disturbed figures of speed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import starmap
from typing import Any

from harness import formatting
from harness.analysis import gate_verdict
from harness.analysis.candidate_facts import CandidateFacts, is_fine_tuned
from harness.analysis.decision import Decision
from harness.analysis.estimators import Estimate, is_judge
from harness.analysis.gate_verdict import GateResult
from harness.analysis.judge_correction import MIN_LABELS
from harness.analysis.people_labels import MetricCalibration, PairCalibration
from harness.analysis.seeds import VARIANCE_UNKNOWN
from harness.analysis.significance import bound_passing_chance
from harness.analysis.verdict import WORDS, is_in_macro
from harness.data.row_traits import RULES
from harness.formatting import UNKNOWN, change, count, figure, percent, plain, pluralize, score, seconds
from harness.records import PARITY
from harness.report import pictures, result_tables, training_tables, wording
from harness.report.columns import FORGETTING_TABLE, GATE_TABLE, SPEED_TABLE, Result, print_table
from harness.report.document import ResultDocument, Section
from harness.report.escape import clean
from harness.report.experiment_report import ExperimentReport
from harness.report.first_page import find_nearest_miss, first_page
from harness.report.interchange import to_plain
from harness.report.wording import change_text, score_text

_SEED_COLUMNS = ("candidate", "seeds", "score of each", "over seeds", "SD between seeds", "vs best untrained")
_CURVE_COLUMNS = ("training rows", "score", "over all rows", "training cost USD")
_SPEED_LEAD = (
    "p50 and p95: half and 95 % of single requests take no longer, each from the question to the answer with"
    " its retrieval. Requests a second: answered in batches. Tokens: the mean of a request on test."
)
_PARITY_NOTE = "Flipped answers say nothing by themselves: the run against itself in fp32 is their floor."
_LOAD_COLUMNS = (
    "candidate", "at once", "requests a second", "first token p50", "first token p95", "first token alone",
)  # fmt: skip
_LOAD_NOTE = (
    "Requests sent at once (concurrency), how many of them are answered a second, and the time after which"
    " half and 95 % of them have their first token, retrieval included; next to it the first token of a"
    " request that is sent alone. A model in the harness's own process answers them in one batch, so"
    " their first tokens come together. At a server they are requests for one token."
)
_SEVERAL_COLUMNS = ("candidate", "items", "answers to an item", "distinct", "commonest")
_SEVERAL_NOTE = (
    "Several answers were sampled for each item. Distinct: the share of an item's answers that differ from"
    " one another, commonest: that of the one given most often, each averaged over items; a collapsed model"
    " says one thing however often it is prompted. pass@k: the chance that at least one of k answers is"
    " right, estimated without bias from all of them (Chen et al. 2021), where the metric is 0 or 1."
)
RETRIEVAL_COLUMNS = (
    "candidate", "items", "used", "used, not grounded", "found, not used", "not found, yet right",
    "not found, wrong", "not judged", "answers grounded", "recall@k", "precision@k", "MRR",
)  # fmt: skip
_RETRIEVAL_NOTE = (
    "Items by the outcome of retrieval. Found: a document that the item names is among the passages, and a "
    "reference stands word for word in them if it stands in a document. Used: the answer is right. "
    "Grounded: the passages hold three quarters of the words, and all numbers, of each sentence; a "
    "paraphrase is taken for ungrounded, and labels are not judged so. Not found: more or other passages "
    "would help. Found, not used: another prompt or model. Where the mean over several answers to an item is "
    "its score, each answer is counted."
)
_LEAST_ALPHA = 0.667  # Krippendorff's limit for tentative conclusions
_ARM_COLUMNS = ("labels", "uncorrected", "corrected", "labels alone", "agree, %", "error")
_PAIR_COLUMNS = (
    "labels", "uncorrected", "corrected", "labels alone", "overrates it by", "favours the longer by",
)  # fmt: skip
_LOST_LISTED = 10
_EVIDENCE = 10  # sentences before the appendix
# The terminal shows sections of the kinds in `_BRIEF` besides the first page.
_AS_GRADED = "These are the judge's grades as they are: people's labels correct scores on test alone."
_BRIEF = ("seeds", "ablation", "training sets", "wins", "labels", "more targets")
HEAT_TITLE = "Capability suite, before and after"
_LOST_SHOWN = 20
_HEADINGS = {"base": "baseline", "new": "candidate"}  # the baseline may be a champion


def experiment_document(report: ExperimentReport) -> ResultDocument:
    """Return all sections of an experiment; the terminal omits the details."""
    finished = [f for f in wording.best_first(report) if f.state == "done"]
    sections = [replace(s, detail=s.kind not in _BRIEF) for s in _body(report, finished)]
    sections += [replace(s, detail=True, appendix=True) for s in _appendix(report, finished)]
    parts = [s for s in sections if s.rows or s.notes]
    header = (
        f"{training_tables.figure_title(name)} {wording.figure_text(name, value)}"
        for name, value in report.header.items()
    )
    estimand = f"{wording.describe_intervals(report)}, over items like these"
    lead = " · ".join(map(clean, [f"Base model {report.base_model}", *header, estimand]))
    mark = wording.SMOKE if report.smoke else ""
    return ResultDocument(report.experiment, parts, wording.last_line(report), lead, mark, first_page(report))


def arithmetic_lines(decision: Decision, unit: formatting.Unit) -> list[str]:
    """List the numbers behind a decision for a terminal, the unknown ones on one line."""
    rows = [*result_tables.arithmetic_rows(decision, unit)]
    known_lines = [f"  {name}: {value}" for name, value in rows if value != UNKNOWN]
    unknown = "; ".join(name for name, value in rows if value == UNKNOWN)
    return [*known_lines, *([f"  not known: {unknown}"] if unknown else []), *_list_missing(decision)]


def _body(report: ExperimentReport, finished: Sequence[CandidateFacts]) -> Iterator[Section]:
    yield Section("evidence", "Evidence", notes=_list_reasons(report)[:_EVIDENCE])
    yield result_tables.wins_section(finished, report.declared)
    yield from label_sections(report.labels)
    heat, rows = pictures.heat(report), []
    for task, cells in heat.rows:
        rows.append([task, *(f"{cell.change} {cell.interval}" if cell else UNKNOWN for cell in cells)])
    yield Section("heat", HEAT_TITLE, ("change in points", *heat.labels), rows)
    yield from (result_tables.ablation_section(a, report.unit) for a in report.ablations)
    yield from (training_tables.sets_section(sets, report.unit) for sets in report.training_sets)
    rows = []
    for s in (s for s in report.seeds if len(s.seeds) > 1):
        each = ", ".join(score(report.unit, x) for x in s.scores)
        over = score_text(s.score) if s.score else VARIANCE_UNKNOWN
        pooled = f" (pooled over recipes, {count(s.seed_df)} df)" if s.is_pooled else ""
        deviation = score(report.unit, s.seed_sd) + pooled
        rows.append([s.candidate, ", ".join(map(str, s.seeds)), each, over, deviation, change_text(s.gain)])
    yield Section("seeds", "Seeds", _SEED_COLUMNS, rows)
    if curve := report.curve:  # the trained sizes, then the expected gains of more rows
        sizes = ((count(p.n_train), score_text(p.score), p.training_cost_usd) for p in curve.points)
        rows = [[n_rows, reached, "", formatting.usd(cost)] for n_rows, reached, cost in sizes]
        rows[-1][2] = "(all)"
        rows += [[count(a.n_train), "expected", change_text(a.gain), UNKNOWN] for a in curve.ahead]
        corrects_others = any(c.metric == report.metric for c in report.labels)
        notes = [_AS_GRADED] if is_judge(report.metric) and corrects_others else []
        yield Section("curve", f"Learning curve: {curve.candidate}", _CURVE_COLUMNS, rows, notes=notes)
    slice_sizes = {name: estimate.n for f in finished for name, estimate in f.slices.items() if name}
    columns = [f"{name} (n = {formatting.count(slice_sizes[name])})" for name in sorted(slice_sizes)]
    rows = []
    for f in finished if columns else ():
        scores = (wording.answered_text(f.slices.get(name)) for name in sorted(slice_sizes))
        rows += [[f.label, *scores]] if f.slices else []
    notes = [f"{case}: {RULES[case]}" for case in sorted(RULES.keys() & slice_sizes)]
    yield Section("slices", "Slices", ["candidate", *columns], rows, notes=notes)
    yield retrieval_section(finished)
    yield result_tables.targets_section(finished)
    pairs = [(f.label, f.answers.several) for f in finished if f.answers.several]
    ks = sorted({p.k for _, several in pairs for p in several.passes})
    rows = []
    for label, several in pairs:
        passes = {p.k: p.estimate for p in several.passes}
        shares = (several.distinct, several.commonest, *map(passes.get, ks))
        rows.append([label, count(several.distinct.n), count(several.n_samples), *map(_share, shares)])
    columns = [*_SEVERAL_COLUMNS, *(f"pass@{k}" for k in ks)]
    yield Section("samples", "Several answers to an item", columns, rows, _SEVERAL_NOTE)
    served = [f for f in finished if f.parity]
    figures = [p for p in PARITY if any(p.name in f.parity for f in served)]
    rows = [[f.label, *(wording.figure_text(p.name, f.parity.get(p.name)) for p in figures)] for f in served]
    columns, notes = ["artefact", *(p.heading for p in figures)], [_PARITY_NOTE] if rows else []
    yield Section("parity", "Parity of artefacts", columns, rows, notes=notes)


def _appendix(report: ExperimentReport, finished: Sequence[CandidateFacts]) -> Iterator[Section]:
    tuned = [f for f in finished if is_fine_tuned(f)]
    notes = [
        *_list_reasons(report)[_EVIDENCE:],
        *filter(None, starmap(result_tables.collapse_sentence, report.diversity.items())),
        *(f"{f.label}: {text}" for f in report.facts if (text := retrieval_text(f))),
        *report.notes,
    ]
    yield Section("notes", "More evidence, and notes", notes=notes)
    yield from (_show_forgetting(report, f) for f in tuned)
    yield from (result_tables.diversity_section(f.label, report.diversity.get(f.label, ())) for f in tuned)
    for f in tuned:
        steps = report.steps.get(f.label, ())
        changes = [{c.task: c for c in reversed(s.tasks)} for s in steps]
        tasks = dict.fromkeys(c.task for s in steps for c in s.tasks)
        rows = [[task, *(change_text(by_task.get(task)) for by_task in changes)] for task in tasks]
        if any(s.target for s in steps):
            rows.insert(0, ["target", *(change_text(s.target) for s in steps)])
        if any(s.macro for s in steps):
            rows.append(["mean of the tasks that count", *(change_text(s.macro) for s in steps)])
        columns = ["task", *(clean(f"{s.what}: {s.new} − {s.base}") for s in steps)]
        yield Section("steps", f"Where the change of {f.label} comes from", columns, rows, label=f.label)
    yield from (_gate(report, f) for f in tuned)
    swept = [f for f in finished if f.training.sweep]
    yield from (_sweep(report, f) for f in swept if f in tuned)
    yield from map(_scan, tuned)
    yield from (_sweep(report, f) for f in swept if f not in tuned)
    local = (f for f in finished if not f.is_remote)
    notes = list(filter(None, [wording.describe_disturbed(finished)]))
    columns, rows = print_table(SPEED_TABLE, [Result(facts=f) for f in finished])
    yield Section("speed", "Speed and tokens", columns, rows, _SPEED_LEAD, notes)
    rows = []
    for f, load in ((f, f.speed.under_load) for f in finished if f.speed.under_load):
        times = (load.first_token_p50_s, load.first_token_p95_s, load.first_token_alone_s)
        time_texts = (UNKNOWN if time is None else seconds(time) for time in times)
        rows.append([f.label, count(load.n), figure(load.requests_per_s), *time_texts])
    yield Section("load", "Under load", _LOAD_COLUMNS, rows, _LOAD_NOTE)
    yield training_tables.show_trainings([f for f in local if f.training.to_plain() or f.training_cost_usd])
    if report.decision:
        numbers = result_tables.arithmetic_rows(report.decision, report.unit)
        notes = _list_missing(report.decision)
        yield Section("arithmetic", "Arithmetic of the decision", ("input", "value"), numbers, notes=notes)
    own = result_tables.OWN_ORIGINS
    rows = []  # what the runs share, then each run's own
    for name in dict.fromkeys(name for run in report.origins.values() for name in run if name not in own):
        by_value: dict[str, list[str]] = {}
        for label, run in report.origins.items():
            by_value.setdefault(run.get(name, UNKNOWN), []).append(label)
        value_texts = (f"{value} ({', '.join(labels)})" for value, labels in by_value.items())
        rows.append([name.replace("_", " "), "; ".join(by_value if len(by_value) == 1 else value_texts)])
    yield Section("provenance", "Provenance", ("what", "value"), rows)
    rows = [[label, *(run.get(name, UNKNOWN) for name in own)] for label, run in report.origins.items()]
    yield Section("provenance", "Runs", ("candidate", *own), rows)


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
    return training_tables.trials_section(f.training, report.metric, report.unit, f.label)


def _scan(f: CandidateFacts) -> Section:
    columns = ("type of matrix", "trained", "of", "least ratio of a trained one", "largest of the others")
    rows = []
    for matrix in f.training.scan:
        ratios = map(formatting.figure, (matrix.least_trained, matrix.most_frozen))
        rows.append([matrix.type, *map(formatting.count, (matrix.n_trained, matrix.n)), *ratios])
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
        parts += [wording.miss_text(miss)] if (miss := find_nearest_miss(f)) else []
        notes.append("; ".join(parts))
    return Section("gate", title, columns, rows, wording.miss_basis(f.verdict), notes, f.label)


def _list_missing(decision: Decision) -> list[str]:
    return [f"Missing from the comparison: {item}" for item in decision.missing]


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


def gate_json(judged: GateResult) -> dict[str, Any]:
    """Convert a verdict to plain types, with every metric of every task and its exit code."""
    plain: dict[str, Any] = to_plain(asdict(judged.verdict))
    return {
        "candidate": judged.candidate,
        "baseline": judged.baseline,
        "exit_code": gate_verdict.combine_exit_codes([judged]),
        **plain,
        "comparisons": to_plain([t.comparison for t in judged.tasks]),
        "family": {
            "members": judged.n_members,
            "chance": bound_passing_chance(judged.policy.alpha, judged.n_members),
        },
        "policy": judged.policy.model_dump(mode="json"),
        "notes": list(judged.notes),
    }


def _share(e: Estimate | None) -> str:
    return f"{percent(e.score)} [{percent(e.low)}, {percent(e.high)}]" if e else UNKNOWN


def retrieval_section(facts: Iterable[CandidateFacts]) -> Section:
    """Return a table with a row per candidate with retrieval."""
    rows = []
    for f in facts:
        if (use := f.answers.retrieval) is None:
            continue
        numbers = (use.n, use.used, use.ungrounded, use.unused, use.known, use.missed)
        ranks = [UNKNOWN] * 3
        if scores := use.retrieved:
            ranks = [percent(scores.recall), percent(scores.precision), f"{scores.reciprocal_rank:.2f}"]
        unjudged = count(use.errors + use.unclear)
        rows.append([f.label, *map(count, numbers), unjudged, percent(use.grounded), *ranks])
    return Section("retrieval", "Retrieval", RETRIEVAL_COLUMNS, rows, _RETRIEVAL_NOTE)


def retrieval_text(f: CandidateFacts) -> str:
    """Describe what a candidate retrieved and how it used that; empty without retrieval."""
    parts = []
    if f.answers.recall is not None:
        parts.append(f"retrieval found {percent(f.answers.recall)} % of the documents needed (recall@k)")
    if (use := f.answers.retrieval) is not None and use.n:
        parts.append(
            f"the passages held the answer to {count(use.found)} of {count(use.n)}"
            f" {'sampled answers' if use.by_answer else 'items'};"
            f" {count(use.unused)} were answered wrongly and {count(use.ungrounded)} right but not from them"
        )
    return "; ".join(parts)


def label_sections(calibrations: Sequence[MetricCalibration]) -> Iterator[Section]:
    """Return each metric's scores and paired differences with remarks."""
    for c in calibrations:
        title, notes = f"People's labels and {c.metric}", list(label_sentences(c))
        rows = []
        for arm in c.arms:
            scores = map(score_text, (arm.score, arm.corrected, arm.labels_alone, arm.agreement))
            rows.append([arm.name, count(arm.n_labels), *scores, change_text(arm.error)])
        yield Section("labels", title, (c.metric, *_ARM_COLUMNS), rows, notes=() if c.pairs else notes)
        rows = []
        for pair in c.pairs:
            longer = pair.longer.favour if pair.longer else None
            changes = (pair.delta, pair.corrected, pair.labels_alone, pair.favour, longer)
            pair_name = f"{pair.new} − {pair.base}"
            rows.append([pair_name, count(pair.n_labels), *map(change_text, changes)])
        if rows:
            columns = (c.metric, *_PAIR_COLUMNS)
            yield Section("labels", f"Differences by {c.metric}", columns, rows, notes=notes)


def label_sentences(c: MetricCalibration) -> Iterator[str]:
    """Describe a metric's agreement with people, its errors, and the use of more labels."""
    raters = f"labels of {', '.join(c.raters)} count for"
    each = "; ".join(f"{count(arm.n_labels)} answers of {arm.name}" for arm in c.arms)
    kappa = f"; kappa of {c.metric} with people {plain(*c.kappa[:3])}" if c.kappa else ""
    alpha = f"; of the raters with each other {plain(c.raters_alpha)} (alpha)"
    yield f"{raters} {each}{kappa}{'' if c.raters_alpha is None else alpha}"
    if c.raters_alpha is not None and c.raters_alpha < _LEAST_ALPHA:
        yield (
            f"the raters agree too little with each other (alpha < {_LEAST_ALPHA:g}, Krippendorff 2004) to"
            " say what a good answer is; next: sharpen the criteria, and let them label again"
        )
    if all(arm.corrected is None for arm in c.arms):
        yield f"{c.metric} is corrected once {MIN_LABELS} answers of a candidate have a label"
        return
    for arm, confusion in ((arm, arm.confusion) for arm in c.arms if arm.confusion):
        n_both, judge_alone, people_alone, neither = map(count, confusion)
        errors = f"sensitivity {score_text(arm.sensitivity)}, specificity {score_text(arm.specificity)}"
        rate = f", by Rogan–Gladen {score_text(arm.rogan_gladen)}" if arm.rogan_gladen else ""
        left_out = "is left out" if arm.n_split == 1 else "are left out"
        split = f"; {pluralize(arm.n_split, 'answer')} with equally many yes and no {left_out}"
        yield (
            f"{arm.name}: passed by both {n_both}, by {c.metric} alone {judge_alone}, by people alone"
            f" {people_alone}, by neither {neither} ({errors}{rate}){split if arm.n_split else ''}"
        )
    if c.is_near_chance:
        yield (
            f"{c.metric} is not shown to agree with people better than chance does: the corrected scores rest"
            " on the labels, and are as uncertain as these alone"
        )
    if c.length:
        by = f"{change_text(c.length)} points with each doubling of an answer's length"
        if c.length.low <= 0 <= c.length.high:
            yield f"among one candidate's answers {c.metric} is not shown to prefer long or short ones: {by}"
        else:
            bias = "overrates longer answers" if c.length.score > 0 else "underrates longer answers"
            yield f"{c.metric} {bias} of one candidate, as its errors against people show: {by}"
    if c.own:
        favours = []
        for pair in c.pairs:
            if pair.favour is not None and (pair.new in c.own) != (pair.base in c.own):
                sign = 1 if pair.new in c.own else -1
                liked, rival = (pair.new, pair.base)[::sign]
                low, high = sorted((sign * pair.favour.low, sign * pair.favour.high))
                by = change(pair.favour.unit, sign * pair.favour.score, low, high)
                favours.append(f"it overrates {liked} against {rival} by {by} points")
        evidence = "; ".join(favours) or "no pair with another model shows whether it prefers that"
        yield f"{c.metric} is graded by the model that {', '.join(c.own)} is made from: {evidence}"
    for pair in c.pairs:
        yield from _pair_sentences(c.metric, pair)


def _pair_sentences(metric: str, pair: PairCalibration) -> Iterator[str]:
    if pair.favour and not pair.favour.low <= 0 <= pair.favour.high:
        liked, rival = (pair.new, pair.base) if pair.favour.score > 0 else (pair.base, pair.new)
        by = percent(abs(pair.favour.score))
        yield f"{metric} favours {liked} over {rival} by {by} points more than people do"
    if pair.longer:
        favour, ratio = pair.longer.favour, figure(pair.longer.ratio)
        longer_ones = f"the longer ones on {percent(pair.longer.new_longer)} % of items"
        share = f"{pair.new}'s are {ratio} times as long as {pair.base}'s, {longer_ones}"
        text = f"of two answers to an item {metric}"
        if favour.low <= 0 <= favour.high:
            by = f"{change_text(favour)} points for the longer one, compared with people"
            yield f"{text} is not shown to favour a length: {by} ({share})"
        else:
            which = "longer" if favour.score > 0 else "shorter"
            by = score(favour.unit, abs(favour.score), *sorted((abs(favour.low), abs(favour.high))))
            also = "; what else sets the two candidates apart may be the cause as well"
            also = "" if pair.longer.is_length else also
            yield f"{text} favours the {which} one by {by} points more than people do ({share}){also}"
    if pair.corrected is not None:
        difference = f"{pair.new} − {pair.base}: corrected {change_text(pair.corrected)} points"
        more = pluralize(pair.more_labels or 0, "more item")
        outcome = f"; labels of both answers to about {more} would probably settle it"
        if pair.more_labels is None:
            outcome = f"; no number of labels would settle that on {count(pair.n)} items"
        elif pair.more_labels == 0:
            outcome = ", which people's labels show"
        yield f"{difference}{outcome}"
