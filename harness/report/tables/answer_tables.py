"""Tables of answers: how varied they are, several to an item, and what became of what was retrieved.

Invariant: shares are printed in percent, answers on one line, cut where they are long; the numbers of
items in one row of retrieval add up to its items.
"""

from collections.abc import Iterable, Sequence

from harness.comparison import AnswerCounts, AnswerDiversity, Estimate
from harness.decision import CandidateFacts
from harness.formatting import UNKNOWN, count, percent, points, quote
from harness.report.document import Section

_DIVERSITY_COLUMNS = (
    "task",
    "n",
    "commonest answer, base",
    "new",
    "change",
    "commonest reference",
    "distinct answers, base",
    "new",
    "the commonest new answer",
)
_DIVERSITY_NOTE = (
    "Generated answers: the share in % of the commonest one, and how many are distinct. "
    "Mode collapse is a share far above both the base's and the commonest reference's: at least twice as "
    "large, or leaving at most half as much, with a paired 95 % interval (Tango's) that excludes 0."
)


def diversity_section(label: str, found: Sequence[AnswerDiversity]) -> Section:
    """Lay out how varied the generated answers are, base beside new, one row a task."""
    rows = [
        [
            d.task,
            count(d.n),
            percent(d.base.share) if d.base else UNKNOWN,
            percent(d.new.share),
            points(d.new.share - d.base.share, d.low, d.high) if d.base else UNKNOWN,
            percent(d.reference_share),
            _distinct(d.base) if d.base else UNKNOWN,
            _distinct(d.new),
            quote(d.new.commonest),
        ]
        for d in found
    ]
    return Section(
        "diversity",
        f"How varied the answers of {label} are",
        _DIVERSITY_COLUMNS,
        rows,
        _DIVERSITY_NOTE,
        label=label,
    )


def collapse_sentence(label: str, found: Sequence[AnswerDiversity]) -> str:
    """Name the tasks on which the answers have collapsed; empty where there is none."""
    said = [
        f"on {d.task} {quote(d.new.commonest)} is the answer to {percent(d.new.share)} % of the "
        f"{count(d.n)} items, the base's commonest to {percent(d.base.share)} %"
        for d in found
        if d.collapsed and d.base
    ]
    return f"{label}: mode collapse, {'; '.join(said)}" if said else ""


def diversity_text(label: str, found: Sequence[AnswerDiversity]) -> str:
    """Say how varied the answers to the target are, beside the base's; empty where none were generated."""
    if not found:
        return ""
    d = found[0]
    beside = f"; of the base {_variety_text(d.base)}" if d.base else ""
    return f"{label}: answers to {d.task}: {_variety_text(d.new)}{beside}"


def _variety_text(answers: AnswerCounts) -> str:
    return f"{_distinct(answers)} are distinct, the commonest is {percent(answers.share)} %"


def _distinct(answers: AnswerCounts) -> str:
    return f"{count(answers.n_distinct)} ({percent(answers.distinct_share)} %)"


_SEVERAL_NOTE = (
    "Several answers were sampled for each item. Distinct: the share of an item's answers that differ from"
    " one another, commonest: that of the one given most often, each averaged over items; a collapsed model"
    " says one thing however often it is prompted. pass@k: the chance that at least one of k answers is"
    " right, estimated without bias from all of them (Chen et al. 2021), where the metric is 0 or 1."
)


def several_section(facts: Sequence[CandidateFacts]) -> Section:
    """Lay out one row a candidate of which several answers were drawn, with a pass@k for each k of any."""
    known = [(f.label, f.several) for f in facts if f.several]
    ks = sorted({one.k for _, of in known for one in of.passes})
    columns = [
        "candidate",
        "items",
        "answers to an item",
        "distinct",
        "commonest",
        *(f"pass@{k}" for k in ks),
    ]
    rows = []
    for label, of in known:
        passes = {one.k: one.estimate for one in of.passes}
        shares = (of.distinct, of.commonest, *map(passes.get, ks))
        rows.append([label, count(of.distinct.n), count(of.n_samples), *map(_share, shares)])
    return Section("samples", "Several answers to an item", columns, rows, _SEVERAL_NOTE)


def several_text(f: CandidateFacts) -> str:
    """Say how varied the answers to an item are, and of one and all of them how often one is right."""
    if (of := f.several) is None:
        return ""
    ends = [of.passes[0], of.passes[-1]] if of.passes else []
    passes = "".join(f", pass@{one.k} {_share(one.estimate)} %" for one in ends)
    return f"of {count(of.n_samples)} answers to an item {_share(of.distinct)} % are distinct{passes}"


def _share(e: Estimate | None) -> str:
    return f"{percent(e.score)} [{percent(e.low)}, {percent(e.high)}]" if e else UNKNOWN


RETRIEVAL_COLUMNS = (
    "candidate",
    "items",
    "used",
    "used, not grounded",
    "found, not used",
    "not found, yet right",
    "not found, wrong",
    "not judged",
    "answers grounded",
    "recall@k",
    "precision@k",
    "MRR",
)
_RETRIEVAL_NOTE = (
    "Items by the outcome of retrieval. Found: a document that the item names is among the passages, and a "
    "reference stands word for word in them if it stands in a document. Used: the answer is right. "
    "Grounded: the passages hold three quarters of the words, and all numbers, of each sentence; a "
    "paraphrase is taken for ungrounded, and labels are not judged so. Not found: more or other passages "
    "would help. Found, not used: another prompt or model. Where the mean over several answers to an item is "
    "its score, each answer is counted."
)


def retrieval_section(facts: Iterable[CandidateFacts]) -> Section:
    """Lay out one row a candidate that retrieves."""
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
    """Say what retrieval found for a candidate and what it made of it; empty where nothing was retrieved."""
    said = []
    if f.recall is not None:
        said.append(f"retrieval found {percent(f.recall)} % of the documents needed (recall@k)")
    if (use := f.retrieval) is not None and use.n:
        said.append(
            f"the passages held the answer to {count(use.found)} of {count(use.n)}"
            f" {'sampled answers' if use.by_answer else 'items'};"
            f" {count(use.unused)} were answered wrongly and {count(use.ungrounded)} right but not from them"
        )
    return "; ".join(said)
