"""Tables about answers: diversity, several answers per item, retrieval, and people's labels.

Invariant: a corrected number is printed with the uncorrected one; a metric that is not shown to agree with
people better than chance is marked.
"""

from collections.abc import Iterable, Iterator, Sequence

from harness.analysis.answers import AnswerCounts, AnswerDiversity
from harness.analysis.candidate_facts import CandidateFacts
from harness.analysis.estimators import Estimate
from harness.analysis.judge_correction import MIN_LABELS, LengthFavour
from harness.analysis.labelled_answers import ArmCalibration, MetricCalibration, PairCalibration
from harness.formatting import UNKNOWN, change, count, figure, percent, plain, pluralize, points, quote, score
from harness.report.document import Section
from harness.report.wording import change_text, score_text

_DIVERSITY_COLUMNS = (
    "task", "n", "commonest answer, base", "new", "change", "commonest reference",
    "distinct answers, base", "new", "the commonest new answer",
)  # fmt: skip
_DIVERSITY_NOTE = (
    "Generated answers: the share in % of the commonest one, and how many are distinct. "
    "Mode collapse is a share far above both the base's and the commonest reference's: at least twice as "
    "large, or leaving at most half as much, with a paired 95 % interval (Tango's) that excludes 0."
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


def diversity_section(label: str, found: Sequence[AnswerDiversity]) -> Section:
    """Return the diversity table of generated answers, base and new, one row per task."""
    rows = []
    for d in found:
        base, change, distinct = UNKNOWN, UNKNOWN, UNKNOWN
        if d.base:
            base, distinct = percent(d.base.share), _distinct(d.base)
            change = points(d.new.share - d.base.share, d.low, d.high)
        shares = (base, percent(d.new.share), change, percent(d.reference_share))
        rows.append([d.task, count(d.n), *shares, distinct, _distinct(d.new), quote(d.new.commonest)])
    title = f"How varied the answers of {label} are"
    return Section("diversity", title, _DIVERSITY_COLUMNS, rows, _DIVERSITY_NOTE, label=label)


def collapse_sentence(label: str, found: Sequence[AnswerDiversity]) -> str:
    """Name the tasks on which the answers have collapsed; empty if none."""
    parts = [
        f"on {d.task} {quote(d.new.commonest)} is the answer to {percent(d.new.share)} % of the "
        f"{count(d.n)} items, the base's commonest to {percent(d.base.share)} %"
        for d in found
        if d.collapsed and d.base
    ]
    return f"{label}: mode collapse, {'; '.join(parts)}" if parts else ""


def _distinct(answers: AnswerCounts) -> str:
    return f"{count(answers.n_distinct)} ({percent(answers.distinct_share)} %)"


def several_section(facts: Sequence[CandidateFacts]) -> Section:
    """Return a table with a row per candidate with several answers per item, and a column per pass@k."""
    known = [(f.label, f.several) for f in facts if f.several]
    ks = sorted({one.k for _, of in known for one in of.passes})
    columns = [*_SEVERAL_COLUMNS, *(f"pass@{k}" for k in ks)]
    rows = []
    for label, of in known:
        passes = {one.k: one.estimate for one in of.passes}
        shares = (of.distinct, of.commonest, *map(passes.get, ks))
        rows.append([label, count(of.distinct.n), count(of.n_samples), *map(_share, shares)])
    return Section("samples", "Several answers to an item", columns, rows, _SEVERAL_NOTE)


def _share(e: Estimate | None) -> str:
    return f"{percent(e.score)} [{percent(e.low)}, {percent(e.high)}]" if e else UNKNOWN


def retrieval_section(facts: Iterable[CandidateFacts]) -> Section:
    """Return a table with a row per candidate with retrieval."""
    rows = []
    for f in facts:
        if (use := f.retrieval) is None:
            continue
        numbers = (use.n, use.used, use.ungrounded, use.unused, use.known, use.missed)
        ranks = [UNKNOWN] * 3
        if found := use.retrieved:
            ranks = [percent(found.recall), percent(found.precision), f"{found.reciprocal_rank:.2f}"]
        unjudged = count(use.errors + use.unclear)
        rows.append([f.label, *map(count, numbers), unjudged, percent(use.grounded), *ranks])
    return Section("retrieval", "Retrieval", RETRIEVAL_COLUMNS, rows, _RETRIEVAL_NOTE)


def retrieval_text(f: CandidateFacts) -> str:
    """Describe what a candidate retrieved and how it used that; empty without retrieval."""
    parts = []
    if f.recall is not None:
        parts.append(f"retrieval found {percent(f.recall)} % of the documents needed (recall@k)")
    if (use := f.retrieval) is not None and use.n:
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
            named = f"{pair.new} − {pair.base}"
            rows.append([named, count(pair.n_labels), *map(change_text, changes)])
        if rows:
            columns = (c.metric, *_PAIR_COLUMNS)
            yield Section("labels", f"Differences by {c.metric}", columns, rows, notes=notes)


def label_sentences(c: MetricCalibration) -> Iterator[str]:
    """Describe a metric's agreement with people, its errors, and the use of more labels."""
    who = f"labels of {', '.join(c.raters)} count for"
    each = "; ".join(f"{count(arm.n_labels)} answers of {arm.name}" for arm in c.arms)
    kappa = f"; kappa of {c.metric} with people {plain(*c.kappa[:3])}" if c.kappa else ""
    alpha = f"; of the raters with each other {plain(c.raters_alpha)} (alpha)"
    yield f"{who} {each}{kappa}{'' if c.raters_alpha is None else alpha}"
    if c.raters_alpha is not None and c.raters_alpha < _LEAST_ALPHA:
        yield (
            f"the raters agree too little with each other (alpha < {_LEAST_ALPHA:g}, Krippendorff 2004) to"
            " say what a good answer is; next: sharpen the criteria, and let them label again"
        )
    if all(arm.corrected is None for arm in c.arms):
        yield f"{c.metric} is corrected once {MIN_LABELS} answers of a candidate have a label"
        return
    yield from (_confusion(c.metric, arm) for arm in c.arms if arm.confusion)
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
        told = []
        for pair in c.pairs:
            if pair.favour is not None and (pair.new in c.own) != (pair.base in c.own):
                sign = 1 if pair.new in c.own else -1
                liked, other = (pair.new, pair.base)[::sign]
                low, high = sorted((sign * pair.favour.low, sign * pair.favour.high))
                by = change(pair.favour.unit, sign * pair.favour.score, low, high)
                told.append(f"it overrates {liked} against {other} by {by} points")
        found = "; ".join(told) or "no pair with another model shows whether it prefers that"
        yield f"{c.metric} is graded by the model that {', '.join(c.own)} is made from: {found}"
    for pair in c.pairs:
        if pair.favour and not pair.favour.low <= 0 <= pair.favour.high:
            liked, other = (pair.new, pair.base) if pair.favour.score > 0 else (pair.base, pair.new)
            by = percent(abs(pair.favour.score))
            yield f"{c.metric} favours {liked} over {other} by {by} points more than people do"
        if pair.longer:
            yield _length_between(c.metric, pair, pair.longer)
        if pair.corrected is not None:
            yield _say_better(pair, pair.corrected)


def _length_between(metric: str, pair: PairCalibration, of: LengthFavour) -> str:
    share = f"{pair.new}'s are {figure(of.ratio)} times as long as {pair.base}'s"
    share += f", the longer ones on {percent(of.new_longer)} % of items"
    if of.favour.low <= 0 <= of.favour.high:
        by = f"{change_text(of.favour)} points for the longer one, compared with people"
        return f"of two answers to an item {metric} is not shown to favour a length: {by} ({share})"
    which = "longer" if of.favour.score > 0 else "shorter"
    ends = sorted((abs(of.favour.low), abs(of.favour.high)))
    by = score(of.favour.unit, abs(of.favour.score), *ends)
    text = f"of two answers to an item {metric} favours the {which} one by {by} points more than people do"
    also = "" if of.is_length else "; what else sets the two candidates apart may be the cause as well"
    return f"{text} ({share}){also}"


def _confusion(metric: str, arm: ArmCalibration) -> str:
    assert arm.confusion is not None
    both, judge_alone, people_alone, neither = map(count, arm.confusion)
    errors = f"sensitivity {score_text(arm.sensitivity)}, specificity {score_text(arm.specificity)}"
    rate = f", by Rogan–Gladen {score_text(arm.rogan_gladen)}" if arm.rogan_gladen else ""
    left_out = "is left out" if arm.n_split == 1 else "are left out"
    split = f"; {pluralize(arm.n_split, 'answer')} on which as many raters said yes as no {left_out}"
    return (
        f"{arm.name}: passed by both {both}, by {metric} alone {judge_alone}, by people alone {people_alone},"
        f" by neither {neither} ({errors}{rate}){split if arm.n_split else ''}"
    )


def _say_better(pair: PairCalibration, corrected: Estimate) -> str:
    found = f"{pair.new} − {pair.base}: corrected {change_text(corrected)} points"
    if pair.more_labels == 0:
        return f"{found}, which people's labels show"
    if pair.more_labels is None:
        return f"{found}; no number of labels would settle that on {count(pair.n)} items"
    more = pluralize(pair.more_labels, "more item")
    return f"{found}; labels of both answers to about {more} would probably settle it"
