"""Descriptions of answers: use of retrieved passages, several answers per item, and diversity.

Invariant: every answered item falls into one class of passage use. The answer counts as found if a needed
document is among the passages and a reference occurs in them word for word; if only documents can tell, as
for `no`, all documents of the item are needed. Support is lexical. An item counts once, however many answers
were sampled. Source: Manning et al. 2008, ch. 8, for precision, recall and reciprocal rank; Barnett et al.
2024, arXiv:2401.05856, for failure points; Chen et al. 2021, arXiv:2107.03374, for pass@k; Berger & Parker
1970 for the share; the threshold of a collapse (twice the share, or half of its complement) is ours.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import NamedTuple

import numpy as np

from harness import stats
from harness.analysis.alignment import align
from harness.analysis.comparison import compare_rows
from harness.analysis.estimators import Comparison, Estimate, identical_difference, tango_ends
from harness.metrics import Metric, mean_metric, normalize
from harness.prompting import context_of
from harness.records import (
    WORD,
    Document,
    Example,
    Sample,
    SampleResult,
    fold_text,
    is_unspaced,
    split_into_grams,
    split_into_letters,
)
from harness.stats import Interval

RIGHT = 0.5  # an answer counts as right from this score on, for metrics in [0, 1]
_SUPPORTED = 0.75  # share of a sentence's words that the passages must contain, plus all of its numbers
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？｡])|\n+")
_WORD = re.compile(WORD)
_SHORT = 3  # letters; words this short are not evidence, except in scripts without spaces
_VALUE = mean_metric("value", lambda output, example: None)
ALPHA = 0.05
COMMONEST = mean_metric("commonest answer", lambda output, example: None, higher_is_better=False)
_GENERATED = ("stop", "length")
_LONGEST = 200  # characters kept of a text


class RetrievalScores(NamedTuple):
    """Recall, precision and reciprocal rank in [0, 1], as means over items that name their documents."""

    n: int
    recall: float
    precision: float
    reciprocal_rank: float


class RetrievalUse(NamedTuple):
    """Counts of items by the use of their passages.

    `found` of `n` items had the answer in the passages: `used` are right and supported by them, `ungrounded`
    right with an unsupported sentence, `unused` wrong. Without it, `missed` are wrong and `known` right.
    `errors` (not answered) and `unclear` (without documents or references that tell) are excluded from the
    others. `grounded` is the share of supported answers among items whose reference occurs in a document.
    `by_answer` says that each of several answers to an item counts on its own.
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
        """Number of items whose passages contain the answer."""
        return self.used + self.ungrounded + self.unused


def retrieval_use(
    rows: Sequence[SampleResult],
    scores: Mapping[str, float],
    examples: Mapping[str, Example],
    documents: Sequence[Document],
) -> RetrievalUse | None:
    """Classify answers by their use of passages; `scores` in [0, 1] by item. None without passages."""
    retrieved = [row for row in rows if row.passages]
    if not retrieved:
        return None
    texts = {document.id: _words(document.text) for document in documents}
    id_by_text: dict[str, str] = {}
    first_ids = {document.id: id_by_text.setdefault(document.text, document.id) for document in documents}
    by_item = {row.example_id: examples[row.example_id] for row in retrieved}
    examples = {i: replace(e, documents=_firsts(e.documents, first_ids)) for i, e in by_item.items()}
    retrieved = [replace(row, passages=_firsts(row.passages, first_ids)) for row in retrieved]
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
        references = [words for text in example.references if (words := _words(normalize(text)))]
        needed = [texts[i] for i in example.documents if i in texts] or [everything]
        if not any(reference in text for reference in references for text in needed):
            references = []  # none of them occurs in a document
        grounded = is_supported(row.text, context)
        supported += [grounded] if references else []
        ids, passages = set(example.documents), _words(context)
        is_found = not ids or bool(ids & set(row.passages))
        is_found = is_found and any(text in passages for text in references)
        # An answer such as `no` occurs in any passage and does not identify the right one.
        all_words = " ".join(references).split()
        if ids and not any(len(word) > _SHORT or word.isdigit() or is_unspaced([word]) for word in all_words):
            is_found = ids <= set(row.passages)
        if not references and not ids:
            classes["unclear"] += 1
        elif score < RIGHT:
            classes["unused" if is_found else "missed"] += 1
        elif is_found:
            classes["used" if grounded or not references else "ungrounded"] += 1
        else:
            classes["known"] += 1
    n = len(retrieved) - classes["errors"] - classes["unclear"]
    pairs = [(row.passages, set(examples[row.example_id].documents)) for row in retrieved]
    hits = [([p in ids for p in passages], len(ids)) for passages, ids in pairs if ids]
    retrieved_scores = (
        RetrievalScores(
            n=len(hits),
            recall=fmean(sum(flags) / n_needed for flags, n_needed in hits),
            precision=fmean(sum(flags) / len(flags) for flags, _ in hits),
            reciprocal_rank=fmean(1 / (flags.index(True) + 1) if True in flags else 0.0 for flags, _ in hits),
        )
        if hits
        else None
    )
    share = fmean(supported) if supported else None
    return RetrievalUse(n, **classes, grounded=share, retrieved=retrieved_scores, by_answer=False)


def is_supported(answer: str, context: str) -> bool:
    """Tell whether the passages contain the words and numbers of every sentence of an answer."""
    folded = fold_text(context)
    vocab = {*_WORD.findall(split_into_grams(folded)), *_WORD.findall(split_into_letters(folded))}
    for sentence in _SENTENCE.split(answer.strip()):
        words = _WORD.findall(split_into_grams(fold_text(sentence)))
        numbers = {word for word in words if any(sign.isdigit() for sign in word)}
        telling = [w for w in words if w not in numbers and (len(w) > _SHORT or is_unspaced([w]))]
        if not numbers <= vocab or sum(word in vocab for word in telling) < _SUPPORTED * len(telling):
            return False
    return bool(_WORD.search(answer))


def _firsts(ids: Sequence[str], first_ids: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(first_ids.get(i, i) for i in ids))


def _words(text: str) -> str:
    """Return a text's words, or letters of scripts without spaces, in lower case between single spaces."""
    return f" {' '.join(_WORD.findall(split_into_letters(fold_text(text))))} " if text.strip() else ""


class PassAtK(NamedTuple):
    """Probability that at least one of k answers to an item is right, with its 95 % interval over items."""

    k: int
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class SeveralAnswers:
    """Statistics of the `n_samples` answers that were sampled for each item.

    `distinct` is the share of an item's answers that are distinct, `commonest` the share of the most frequent
    one, both as means over items. `passes` holds pass@k if the metric of every answer is 0 or 1.
    """

    n_samples: int
    distinct: Estimate
    commonest: Estimate
    passes: tuple[PassAtK, ...] = ()


def several_answers(
    metric: Metric, rows: Sequence[SampleResult], by_item: Mapping[str, Sequence[Sample]]
) -> SeveralAnswers | None:
    """Describe the answers sampled per item; None if no item has several."""
    sampled = [(row, by_item[row.example_id]) for row in rows if len(by_item.get(row.example_id, ())) > 1]
    if not sampled:
        return None
    kept_rows, samples = [row for row, _ in sampled], [answers for _, answers in sampled]
    texts = [[sample.text for sample in answers] for answers in samples]
    shares = [(stats.unique_share(t) or 0.0, (stats.commonest(t) or ("", 0.0))[1]) for t in texts]
    distinct, common = zip(*shares, strict=True)
    n_samples = min(map(len, samples))
    # Pass@k for each power of two up to the number of answers, and for that number.
    scores = [[sample.parts.get(metric.name) for sample in answers] for answers in samples]
    known_parts = [parts for item_parts in scores for parts in item_parts if parts is not None]
    is_rate = metric.bounds == (0.0, 1.0) and len(metric.parts) == 1 and metric.higher_is_better
    passes: tuple[PassAtK, ...] = ()
    if known_parts and is_rate and np.isin(np.array(known_parts), (0.0, 1.0)).all():
        counts = [(len(item_parts), item_parts.count((1.0,))) for item_parts in scores]
        ks = sorted({n_samples, *(2**power for power in range(n_samples.bit_length()))})
        passes = tuple(
            PassAtK(k, _mean(kept_rows, [stats.pass_at_k(n, n_right, k) for n, n_right in counts]))
            for k in ks
        )
    return SeveralAnswers(n_samples, _mean(kept_rows, distinct), _mean(kept_rows, common), passes)


def _mean(rows: Sequence[SampleResult], values: Sequence[float]) -> Estimate:
    scored = [
        replace(row, parts={_VALUE.name: (float(value),)}) for row, value in zip(rows, values, strict=True)
    ]
    return identical_difference(_VALUE, align(_VALUE, scored, scored)).base


def add_samples(rows: list[SampleResult], by_item: Mapping[str, Sequence[Sample]]) -> list[SampleResult]:
    """Return rows with all answers that were sampled per item; unchanged if there are none."""
    return [replace(row, samples=tuple(by_item.get(row.example_id, ()))) for row in rows] if by_item else rows


def list_each_answer(
    rows: Sequence[SampleResult], by_item: Mapping[str, Sequence[Sample]]
) -> list[SampleResult]:
    """Return one row per sampled answer, with the answers to an item as one cluster."""
    return [
        replace(
            row,
            example_id=f"{row.example_id}#{sample.index}",
            cluster=row.cluster or row.example_id,
            text=sample.text,
            status=sample.status,
            parts=sample.parts,
            finish_reason=sample.finish_reason,
        )
        for row in rows
        for sample in by_item.get(row.example_id, ())
    ]


class AnswerCounts(NamedTuple):
    """Counts of one arm: its commonest answer (truncated) and distinct answers, with their shares."""

    commonest: str
    share: float
    n_distinct: int
    distinct_share: float


@dataclass(frozen=True, slots=True)
class AnswerDiversity:
    """Diversity of the generated answers to n items of a task; shares are of these items.

    `base` is None if the base did not answer, `reference_share` if an item has no reference. `low` and `high`
    bound the 95 % interval of the new share minus the base's.
    """

    task: str
    n: int
    new: AnswerCounts
    base: AnswerCounts | None = None
    low: float | None = None
    high: float | None = None
    reference_share: float | None = None
    collapsed: bool = False


def answer_diversity(
    new: Sequence[SampleResult], base: Sequence[SampleResult] | None = None
) -> AnswerDiversity | None:
    """Describe the generated answers of a task and the base's to the same items; None if there are none."""
    after, before = _select_generated_rows(new), None if base is None else _select_generated_rows(base)
    ids = [i for i in after if before is None or i in before]
    if not ids:
        return None
    rows = [after[i] for i in ids]
    task, n, texts = rows[0].task, len(ids), [row.text.strip() for row in rows]
    new_counts, reference_texts = _answers(texts), _references(rows)
    reference_share = _answers(reference_texts).share if reference_texts else None
    if before is None:
        return AnswerDiversity(task, n, new_counts, reference_share=reference_share)
    base_texts = [before[i].text.strip() for i in ids]
    clusters = [row.cluster or row.example_id for row in rows]
    low, high = _change(base_texts, texts, clusters)
    collapsed = True  # the share doubled, or its complement halved, and the interval is above 0
    for other_texts in [base_texts, reference_texts] if reference_texts else [base_texts]:
        share = _answers(other_texts).share
        is_far = new_counts.share >= 2 * share or 1 - new_counts.share <= (1 - share) / 2
        collapsed = collapsed and is_far and _change(other_texts, texts, clusters).low > 0
    return AnswerDiversity(task, n, new_counts, _answers(base_texts), low, high, reference_share, collapsed)


def compare_commonest_answers(
    base: Sequence[SampleResult] | None, new: Sequence[SampleResult], *, alpha: float = 0.05
) -> tuple[Comparison, ...]:
    """Compare the share of each arm's commonest answer with the base's and the references'.

    The base counts if it generated answers, the references if every item has one. A failed answer has no
    part. Empty if the new arm generated nothing.
    """
    before = {row.example_id: row for row in base or ()}
    after = [row for row in new if base is None or row.example_id in before]
    if not _select_generated_rows(after):
        return ()
    old, references = [before[row.example_id] for row in after if before], _references(after)
    other_arms = [old] if _select_generated_rows(old) else []
    if references:
        answered = zip(after, references, strict=True)
        other_arms.append(
            [replace(row, text=text, status="ok", finish_reason=_GENERATED[0]) for row, text in answered]
        )
    new_rows = _mark_commonest(after)
    return tuple(
        compare_rows(COMMONEST, _mark_commonest(rows), new_rows, alpha=alpha, base_errors="bounds")
        for rows in other_arms
    )


def _mark_commonest(rows: Sequence[SampleResult]) -> list[SampleResult]:
    texts = {i: row.text.strip() for i, row in _select_generated_rows(rows).items()}
    marks = dict(zip(texts, _is_commonest([*texts.values()]).tolist(), strict=True))
    return [
        replace(row, parts={COMMONEST.name: (marks[row.example_id],) if row.example_id in marks else None})
        for row in rows
    ]


def _answers(texts: Sequence[str]) -> AnswerCounts:
    commonest, distinct_share = stats.commonest(texts), stats.unique_share(texts)
    assert commonest is not None
    assert distinct_share is not None
    legible = commonest[0][:_LONGEST].encode("utf-8", "replace").decode("utf-8")
    return AnswerCounts(legible, commonest[1], len(set(texts)), distinct_share)


def _references(rows: Sequence[SampleResult]) -> list[str]:
    return [row.references[0].strip() for row in rows] if all(row.references for row in rows) else []


def _change(old: Sequence[str], new: Sequence[str], clusters: Sequence[str]) -> Interval:
    """Return the paired interval of the commonest text's share in the new arm minus that in the old arm."""
    return tango_ends(_is_commonest(new) - _is_commonest(old), clusters)(ALPHA)


def _is_commonest(texts: Sequence[str]) -> stats.Array:
    """Return a mask (n,) of the items whose text is the commonest."""
    commonest = stats.commonest(texts)
    return np.array([commonest is not None and text == commonest[0] for text in texts], float)


def _select_generated_rows(rows: Sequence[SampleResult]) -> Mapping[str, SampleResult]:
    """Select the generated answers by item: no ranked choices, no scored texts, no errors."""
    return {row.example_id: row for row in rows if row.status != "error" and row.finish_reason in _GENERATED}
