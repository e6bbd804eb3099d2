"""Retrieval-augmented answers: whether the passages held the answer, and whether the answer rests on them.

Invariant: every item with an answer falls into one class. An answer is found where a needed document is among
the passages, as far as the item names any, and a reference stands word for word in them, as far as one stands
in a document: a short answer stands in many a wrong passage. Where documents alone tell, as with `no`, all
that the item names are needed. Documents of one text are one document. Support is lexical: it tells a copied
statement from one that stands nowhere, and knows no paraphrase.
Source: precision, recall and reciprocal rank by Manning et al. 2008, ch. 8; failure points by Barnett et al.
2024, arXiv:2401.05856.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from harness.metrics import normalize
from harness.prompting import context_of
from harness.records import (
    WORD,
    Document,
    Example,
    SampleResult,
    fold_text,
    is_unspaced,
    split_into_grams,
    split_into_letters,
)

RIGHT = 0.5  # of a metric in [0, 1]: from here on an answer counts as right
_SUPPORTED = 0.75  # of a sentence's words have to stand in the passages, and all of its numbers
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？｡])|\n+")
_WORD = re.compile(WORD)
_SHORT = 3  # letters: shorter words hold no statement, but for pieces of a script without blanks


class RetrievalScores(NamedTuple):
    """Means over the items that name their documents: recall, precision and reciprocal rank in [0, 1]."""

    n: int
    recall: float
    precision: float
    reciprocal_rank: float


class RetrievalUse(NamedTuple):
    """Numbers of items by what became of their passages.

    `found` of `n` items had the answer in the passages: `used` are right and supported by them, `ungrounded`
    right with a sentence that they do not support, `unused` wrong. `missed` are wrong and `known` right
    without the answer in the passages. `errors` were not answered, `unclear` name neither documents nor a
    reference that stands in one; both are in none of the others. `grounded` is the share of answers that the
    passages support, of items whose reference stands in a document: a label stands in none. `retrieved` is
    None where no item names its documents. Where the mean over several answers to an item counts, each answer
    is one (`by_answer`).
    """

    n: int
    used: int
    ungrounded: int
    unused: int
    known: int
    missed: int
    errors: int
    unclear: int
    grounded: float | None
    retrieved: RetrievalScores | None
    by_answer: bool = False

    @property
    def found(self) -> int:
        """The number of items of which the passages held the answer."""
        return self.used + self.ungrounded + self.unused


def retrieval_use(
    rows: Sequence[SampleResult],
    scores: Mapping[str, float],
    examples: Mapping[str, Example],
    documents: Sequence[Document],
) -> RetrievalUse | None:
    """Sort a candidate's answers by what became of retrieval; None where nothing was retrieved.

    `scores` maps the ids of items to the primary metric in [0, 1], `examples` to the items as they are
    without their passages.
    """
    retrieved = [row for row in rows if row.passages]
    if not retrieved:
        return None
    texts = {document.id: _words(document.text) for document in documents}
    first: dict[str, str] = {}
    one_of = {document.id: first.setdefault(document.text, document.id) for document in documents}
    own = {row.example_id: examples[row.example_id] for row in retrieved}
    examples = {i: replace(e, documents=_firsts(e.documents, one_of)) for i, e in own.items()}
    retrieved = [replace(row, passages=_firsts(row.passages, one_of)) for row in retrieved]
    everything = " | ".join(texts.values())
    classes = dict.fromkeys(("used", "ungrounded", "unused", "known", "missed", "errors", "unclear"), 0)
    supported = []
    for row in retrieved:
        score = scores.get(row.example_id)
        if row.status == "error" or score is None:
            classes["errors"] += 1
            continue
        example = examples[row.example_id]
        context = context_of(row.prompt, example.prompt)
        references = _list_standing_references(example, texts, everything)
        grounded = is_supported(row.text, context)
        supported += [grounded] if references else []
        found = _is_found(references, _words(context), example, row)
        classes[_class(found, score >= RIGHT, grounded or not references)] += 1
    n = len(retrieved) - classes["errors"] - classes["unclear"]
    share = fmean(supported) if supported else None
    return RetrievalUse(
        n, **classes, grounded=share, retrieved=_score_retrieval(retrieved, examples), by_answer=False
    )


def is_supported(answer: str, context: str) -> bool:
    """Tell whether the passages hold the words and numbers of every sentence of an answer."""
    folded = fold_text(context)
    known = {*_WORD.findall(split_into_grams(folded)), *_WORD.findall(split_into_letters(folded))}
    for sentence in _SENTENCE.split(answer.strip()):
        words = _WORD.findall(split_into_grams(fold_text(sentence)))
        numbers = {word for word in words if any(sign.isdigit() for sign in word)}
        telling = [w for w in words if w not in numbers and (len(w) > _SHORT or is_unspaced([w]))]
        if not numbers <= known or sum(word in known for word in telling) < _SUPPORTED * len(telling):
            return False
    return bool(_WORD.search(answer))


def _class(found: bool | None, right: bool, supported: bool) -> str:
    if found is None:
        return "unclear"
    if not found:
        return "known" if right else "missed"
    if not right:
        return "unused"
    return "used" if supported else "ungrounded"


def _list_standing_references(example: Example, texts: Mapping[str, str], everything: str) -> list[str]:
    """List the words of the references, where one stands in a needed document; else none of them."""
    references = [words for reference in example.references if (words := _words(normalize(reference)))]
    needed = [texts[i] for i in example.documents if i in texts] or [everything]
    return references if any(one in text for one in references for text in needed) else []


def _is_found(references: Sequence[str], context: str, example: Example, row: SampleResult) -> bool | None:
    """Tell whether the passages held the answer; None where that cannot be told."""
    if not references and not example.documents:
        return None
    needed, shown = set(example.documents), set(row.passages)
    words = (word for reference in references for word in reference.split())
    # An answer such as `no` stands in any passage, and does not tell which one holds it.
    if needed and not any(len(word) > _SHORT or word.isdigit() or is_unspaced([word]) for word in words):
        return needed <= shown
    return (not needed or bool(needed & shown)) and any(one in context for one in references)


def _firsts(ids: Sequence[str], one_of: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one_of.get(i, i) for i in ids))


def _words(text: str) -> str:
    """Return the words of a text in lower case, with one blank between and around.

    Of a script without blanks each letter is one, so that a part of what stands together is found in it.
    """
    return f" {' '.join(_WORD.findall(split_into_letters(fold_text(text))))} " if text.strip() else ""


def _score_retrieval(rows: Sequence[SampleResult], examples: Mapping[str, Example]) -> RetrievalScores | None:
    named = [(row.passages, set(examples[row.example_id].documents)) for row in rows]
    judged = [(passages, needed) for passages, needed in named if needed]
    if not judged:
        return None
    hits = [[passage in needed for passage in passages] for passages, needed in judged]
    return RetrievalScores(
        n=len(judged),
        recall=fmean(sum(of) / len(needed) for of, (_, needed) in zip(hits, judged, strict=True)),
        precision=fmean(sum(of) / len(of) for of in hits),
        reciprocal_rank=fmean(1 / (of.index(True) + 1) if True in of else 0.0 for of in hits),
    )
