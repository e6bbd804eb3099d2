"""Table of retrieval: of how many items the passages held the answer, and what the answers rest on.

Invariant: the numbers of items in one row add up to its items.
"""

from collections.abc import Iterable

from harness.decision import CandidateFacts
from harness.formatting import UNKNOWN, count, percent
from harness.report.document import Section

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
_NOTE = (
    "Items by what became of retrieval. Found: a document that the item names is among the passages, and a "
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
    return Section("retrieval", "Retrieval", RETRIEVAL_COLUMNS, rows, _NOTE)


def retrieval_text(f: CandidateFacts) -> str:
    """Say what retrieval found for a candidate and what it made of it; empty where nothing was retrieved."""
    said = []
    if f.recall is not None:
        said.append(f"retrieval found {percent(f.recall)} % of the documents needed (recall@k)")
    if (use := f.retrieval) is not None and use.n:
        said.append(
            f"the passages held the answer to {count(use.found)} of {count(use.n)}"
            f" {'drawn answers' if use.by_answer else 'items'}, of which"
            f" {count(use.unused)} were answered wrongly and {count(use.ungrounded)} right but not from them"
        )
    return "; ".join(said)
