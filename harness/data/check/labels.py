"""Checks of labels: balance, markers that reveal them, and labels that are likely wrong.

Invariant: a label in several spellings is one label here; the check of answers' formats lists its spellings.
Source: Hill 1973; Gururangan et al. 2018, Annotation Artifacts in NLI Data; Gardner et al. 2021, Competency
Problems; Northcutt, Jiang & Chuang 2021, Confident Learning, https://arxiv.org/abs/1911.00068.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import exp, log

from harness.data.check import ALPHA, DECIDE, CheckContext, Finding, RowTable, Severity, TableEntry
from harness.data.check.personal_data import excerpt
from harness.data.edit.changes import unify_spellings

_FEWEST = 5  # rows of a class, one for each fold, or of a form that is tested
_GIVES, _AT_ONE_END = 0.9, 0.9
_SHOWN = 5
_SIGN = re.compile(r"[^\w\s]")
_NAMED = re.compile(r"(?:first|last) (?:word|sign) ['\"](.*)['\"]")
_FOLDS = 5
_EXPECTED, _OWN, _OTHER = 0.025, 0.02, 0.6
_SKILL = 0.7
_FEATURES = 10_000
# Words, single letters of scripts without blanks (Thai, Kana, Han), and signs: "+" may be the point.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_TOKEN = rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]"


def check_class_balance(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """Show the balance; warn of one answer, of small classes, and of labels and slices that only test has.

    The effective number of classes is the exponential of Shannon's entropy (Hill 1973). False alarms: none.
    """
    answers = {entry.answer for entry in table.entries if entry.question}
    if len(answers) == 1 and answers != {""} and len(table.entries) >= _FEWEST:
        title = f"all rows have the same answer, {answers.pop()[:60]!r}"
        meaning = "always giving it is right, so no comparison can show that anything was learned"
        yield Finding("warning", title, meaning, command="add rows with other answers, or name their column")
    trained = {entry.example.slice for entry in table.entries}
    if given.test and trained != {""} and not table.is_drawn:
        tested = Counter(entry.example.slice for entry in given.test.entries)
        if untrained := {name: n for name, n in tested.items() if name not in trained}:
            title = "slices of test that no training row has: " + ", ".join(map(repr, [*untrained][:5]))
            meaning, n = "a fine-tune meets them for the first time in test", sum(untrained.values())
            yield Finding("warning", title, meaning, command="add rows of them", count=n, of=tested.total())
    if not table.labels:
        return
    labels = unify_spellings([entry.answer for entry in table.entries])
    counts, n = Counter(labels), len(labels)
    effective = exp(-sum(k / n * log(k / n) for k in counts.values()))
    (most, k), (least, j) = counts.most_common(1)[0], counts.most_common()[-1]
    extremes = f"{most!r} {k:,} rows, {least!r} {j:,}"
    title = f"{len(counts):,} labels, worth {effective:.1f} of equal size: {extremes}"
    yield Finding("note", title, f"always answering {most!r} scores {100 * k / n:.1f} %")
    small = {label for label, m in counts.items() if m < _FEWEST}
    if small:
        rows = tuple(e.where for e, label in zip(table.entries, labels, strict=True) if label in small)
        title = f"{len(small):,} labels with fewer than {_FEWEST} rows"
        meaning = "validation or test may hold none of them, so nothing is known of them"
        example = ", ".join(f"{label!r} {counts[label]}" for label in sorted(small)[:5])
        step = "collect more rows of them"
        yield Finding("warning", title, meaning, rows, example, step, of=n)
    if given.test:
        test = Counter(entry.answer for entry in given.test.entries)
        if unknown := [label for label in test if label not in table.labels]:
            title = f"{len(unknown):,} labels stand in test alone: " + ", ".join(map(repr, unknown[:5]))
            meaning, n = "no training row shows them, so a fine-tune cannot answer them", test.total()
            of_them = sum(test[label] for label in unknown)
            yield Finding("error", title, meaning, command="add rows of them", count=of_them, of=n)


def check_label_markers(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List the forms that determine a label, the most frequent first.

    A form is how a question begins and ends, and a word or sign that stands at one end
    in nine of ten of its rows. A marker gives the label in nine of ten of its rows. False alarms: Fisher's
    exact test (one-sided) of each form and label, at `ALPHA` by Bonferroni. A word that questions of one
    label truly begin with is found as well.
    """
    from scipy import stats

    if not table.labels:
        return
    rows: dict[str, list[TableEntry]] = defaultdict(list)
    words: Counter[str] = Counter()
    for entry in table.entries:
        words.update(set(map(_bare, entry.question.split())) | set(_SIGN.findall(entry.question)))
        for form in forms(entry.question):
            rows[form].append(entry)
    labels = Counter(entry.answer for entry in table.entries)
    tested = {form: marked for form, marked in rows.items() if len(marked) >= _FEWEST}
    found: list[tuple[str, str, float]] = []  # form, label and p
    for form, marked in tested.items():
        label, n = Counter(entry.answer for entry in marked).most_common(1)[0]
        word = named[1] if (named := _NAMED.fullmatch(form)) else ""
        if n < _GIVES * len(marked) or (word and len(marked) < _AT_ONE_END * words[word]):
            continue
        p = float(stats.hypergeom.sf(n - 1, len(table.entries), labels[label], len(marked)))
        if p < ALPHA / max(1, len(tested) * len(labels)):
            found.append((form, label, p))
    # Of forms of the same rows the first is kept, a word before its sign.
    once = {tuple(entry.where for entry in rows[marker[0]]): marker for marker in reversed(found)}
    for form, label, p in sorted(once.values(), key=lambda f: -len(rows[f[0]]))[:_SHOWN]:
        marked = rows[form]
        n = sum(entry.answer == label for entry in marked)
        title = f"{form} gives the label {label!r} in {n:,} of {len(marked):,} rows (p = {p:.1g})"
        meaning = "a model may learn the mark in place of the meaning, and fail where it is absent"
        places = tuple(entry.where for entry in marked)
        example = repr(excerpt(marked[0].question, 80))
        step = "remove the mark from the rows, if it is none of the question"
        yield Finding("warning", title, meaning, places, example, step)


def forms(question: str) -> Iterator[str]:
    """Yield the forms of a question, each in words."""
    tokens = question.split()
    if not tokens:
        return
    yield f"first word {_bare(tokens[0])!r}"
    yield f"last word {_bare(tokens[-1])!r}"
    for place, sign in (("first", tokens[0][0]), ("last", tokens[-1][-1])):
        if _SIGN.fullmatch(sign) and len(tokens[0 if place == "first" else -1]) > 1:
            yield f"{place} sign {sign!r}"


def _bare(token: str) -> str:
    """Return a word in lower case without the punctuation around it; a sign is kept."""
    return re.sub(r"^\W+|\W+$", "", token.lower()) or token


def check_suspect_labels(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List the suspect rows, the most suspect first, with the proposed label.

    Labels of fewer than five rows are left out. A classifier judges none if it predicts less than `_SKILL` of
    the labels that the majority class gets wrong. False alarms: a suspect is a row to read. The alarm is a
    binomial test at `ALPHA` that more than the share `_EXPECTED` of the labels surely differ: the row's own
    has a probability below `_OWN`, another one above `_OTHER`. They were chosen on 180 draws of Banking77 and
    the generator; of 202 others with right labels (2 to 40 labels of 8 to 100 rows) 1 raises an alarm, of 113
    of Banking77 with 8 % flipped labels 74 do, and 22 of the 22 of more than 400 rows.
    """
    from scipy import stats

    drawn = table.draw(given.most) if table.labels else []
    labels = unify_spellings([entry.answer for entry in drawn])
    counts = Counter({label: n for label, n in Counter(labels).items() if n >= _FEWEST})
    spelt = (entry._replace(answer=label) for entry, label in zip(drawn, labels, strict=True))
    drawn = [entry for entry in spelt if entry.answer in counts]
    if len(counts) < 2:
        return
    suspects, accuracy, n_sure = _judge_labels(drawn)
    common, most = counts.most_common(1)[0]
    share = most / len(drawn)
    if accuracy - share < _SKILL * (1 - share):
        yield Finding(
            "note",
            f"labels are not judged: a classifier of words gives {100 * accuracy:.1f} % of them, "
            f"always answering {common!r} {100 * share:.1f} %",
            "too weak to tell a wrong label from its own errors: few rows of a label, or no matter of words",
        )
        return
    n = len(drawn)
    is_alarm = stats.binomtest(n_sure, n, _EXPECTED, alternative="greater").pvalue < ALPHA
    percent_suspect, hardly = 100 * len(suspects) / n, "hardly more than where all are right"
    sampled = f", of {n:,} judged (sampled by class, of labels with {_FEWEST} rows or more)"
    sampled = sampled if n < len(table.digests) else ""
    title = (
        f"label accuracy: about {100 - percent_suspect:.1f} %{sampled}"
        if is_alarm
        else f"label accuracy: {percent_suspect:.1f} % of the labels are suspect, {hardly}{sampled}"
    )
    meaning = (
        f"a classifier of words is sure of another label in {100 * n_sure / n:.1f} % of the rows, "
        f"where all labels are right in up to {100 * _EXPECTED:.1f} %"
    )
    yield Finding("note", title, meaning)
    if suspects:
        worst, likelier, p_own, p_likelier = suspects[0]
        severity: Severity = "warning" if is_alarm else "note"
        title = f"suspect labels{sampled}" + ("" if is_alarm else f", {hardly}")
        meaning = "a wrong label teaches a wrong answer, and in test it counts a right answer as wrong"
        places = tuple(entry.where for entry, *_ in suspects)
        example = (
            f"{worst.where}: {excerpt(worst.question, 70)!r} is {worst.answer!r} "
            f"({100 * p_own:.0f} %), more likely {likelier!r} ({100 * p_likelier:.0f} %)"
        )
        proposed = tuple(label for _, label, *_ in suspects)
        yield Finding(severity, title, meaning, places, example, DECIDE, proposed, of=n)


def _judge_labels(
    entries: Sequence[TableEntry],
) -> tuple[list[tuple[TableEntry, str, float, float]], float, int]:
    """Judge each row by a classifier of the others.

    Returns the suspects, the most suspect first: a row, its proposed label, and the probabilities of its own
    and of that one; the share of labels that the classifier predicts, in [0, 1]; and the number of labels
    that surely differ from its prediction.
    """
    import numpy as np
    from cleanlab.filter import find_label_issues
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    names = sorted({entry.answer for entry in entries})
    own = np.array([names.index(entry.answer) for entry in entries])
    words = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, max_features=_FEATURES, token_pattern=_TOKEN
    )
    regression = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=20, tol=None, random_state=0)
    model = make_pipeline(words, regression)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    texts = [entry.question if entry.question.strip() else "-" for entry in entries]
    p = cross_val_predict(model, texts, own, cv=folds, method="predict_proba")
    how = {"filter_by": "low_self_confidence", "return_indices_ranked_by": "self_confidence"}
    ranked = find_label_issues(own, p, n_jobs=1, **how)
    best = p.argmax(axis=1)
    suspects = [
        (entries[i], names[best[i]], float(p[i, own[i]]), float(p[i, best[i]]))
        for i in ranked
        if best[i] != own[i]
    ]
    sure = (best != own) & (p[np.arange(len(own)), own] < _OWN) & (p.max(axis=1) > _OTHER)
    return suspects, float((best == own).mean()), int(sure.sum())
