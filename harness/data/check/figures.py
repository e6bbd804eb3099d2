"""Checks of a file as a whole: missing values, amount, lengths, traits, and labels.

A label in several spellings is one label here; the check of answers' formats lists its spellings.
Source: Lopez-Paz & Oquab 2017, Revisiting Classifier Two-Sample Tests; Friedman & Dieng 2023, Vendi Score;
Hill 1973; Gururangan et al. 2018, Annotation Artifacts in NLI Data; Gardner et al. 2021, Competency Problems;
Northcutt, Jiang & Chuang 2021, Confident Learning, https://arxiv.org/abs/1911.00068.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import comb, exp, log
from statistics import median
from typing import Any

import numpy as np

from harness.data.check import ALPHA, DECIDE, HELD, CheckContext, Finding, RowTable, Severity, TableEntry
from harness.data.check.personal_data import excerpt
from harness.data.edit.changes import unify_spellings
from harness.data.edit.row_files import manifest_of
from harness.data.formats import THUMB_DOWN
from harness.data.readers import file_of
from harness.data.row_traits import RULES, edge_tests, is_reported
from harness.data.unused import OFFER, THOUGHTS, name_columns, name_contexts, name_keys, name_media
from harness.errors import as_argument
from harness.formatting import pluralize
from harness.records import pieces

_MOST_COLUMNS = 8  # with a line of their own
_BARS = "▁▂▃▄▅▆▇█"
_BINS = 16
_FEWEST = 25  # rows; a fifth of fewer rows, set aside twice, is too small for a sign test
_MOST, _MOST_VARIED = 4_000, 1_000
_FEWEST_COMPARED = 20  # rows of each side


def check_missing_values(table: RowTable, context: CheckContext) -> Iterator[Finding]:
    """List unusable rows, repeated ids, empty cells, columns of texts and numbers, and what no prompt shows.

    False alarms: a long text that was written when the answer was known is listed as a possible context.
    """
    if thumb_down_places := tuple(problem.where for problem in table.unusable if problem.found == THUMB_DOWN):
        meaning = "no right answers, but for methods that learn from thumbs"
        yield Finding("note", "answers with a thumb down", meaning, thumb_down_places, of=table.n)
    if row_problems := [problem for problem in table.unusable if problem.found != THUMB_DOWN]:
        kinds = Counter(problem.found for problem in row_problems).most_common(3)
        title = "rows that cannot be used: " + ", ".join(f"{reason} ({n:,})" for reason, n in kinds)
        meaning = "compare stops at such a row, unless it is told to leave it out"
        places = tuple(problem.where for problem in row_problems)
        example = f"{row_problems[0].where}: {row_problems[0].found}"
        step = "harness data clean FILE --out OUT"
        yield Finding("error", title, meaning, places, example, step, of=table.n)
    entry_by_id: dict[tuple[str, str], TableEntry] = {}
    repeated_entries: list[tuple[TableEntry, TableEntry]] = []  # each with the earlier row of its id
    for entry in table.entries:
        earlier_entry = entry_by_id.setdefault((file_of(entry.where), entry.example.id), entry)
        if earlier_entry is not entry:
            repeated_entries.append((entry, earlier_entry))
    if repeated_entries:
        entry, earlier_entry = repeated_entries[0]
        title = "rows with the id of an earlier row"
        meaning = "compare stops at them, since it keeps answers by the id of their question"
        places = tuple(entry.where for entry, _ in repeated_entries)
        example = f"{entry.where} has the id {excerpt(entry.example.id, 40)!r} of {earlier_entry.where}"
        step = "harness data clean FILE --out OUT --new-ids"
        yield Finding("error", title, meaning, places, example, step)
    n_empty = {name: n for name, column in table.columns.items() if (n := table.n - column.n + column.empty)}
    meaning = "harmless where the column is optional or not read"
    for name in sorted(n_empty, key=lambda name: -n_empty[name])[:_MOST_COLUMNS]:
        places = tuple(table.columns[name].places)
        yield Finding("note", f"column {name!r} is empty", meaning, places, of=table.n, count=n_empty[name])
    if (n_more := len(n_empty) - _MOST_COLUMNS) > 0:
        yield Finding("note", f"{pluralize(n_more, 'more column')} with empty cells", meaning)
    for name, column in table.columns.items():
        if {"text", "number"} <= column.kinds.keys():
            rarest = min(("text", "number"), key=lambda kind: column.kinds[kind])
            title = f"column {name!r} holds texts and numbers"
            meaning = "1 and '1' become one text; a number among texts is often an error of an export"
            places = tuple(column.of_kind[rarest])
            example = f"the first {rarest}: {column.of_kind[rarest][0]}"
            step, n = "write the column as texts alone", column.kinds[rarest]
            yield Finding("warning", title, meaning, places, example, step, count=n, of=table.n)
    unused, check_command = table.unused, f"harness data check {' '.join(map(as_argument, table.files))}"
    if unused.contexts:
        command = f"{check_command} {unused.options()}"
        explains = any(column.explains for column in unused.contexts)
        severity: Severity = "error" if explains else "warning"
        meaning = f"without it a question may have no answer; {OFFER}, write {unused.line()} in the suite"
        steps = (command,) if explains else ()
        yield Finding(severity, name_contexts(unused), meaning, command=command, steps=steps)
    for others in unused.others:
        if getattr(table.reading, others.option) is None:
            command = f"{check_command} {others.options}"
            yield Finding("note", others.sentence, "where it does, name that column", command=command)
    severity = "warning" if THOUGHTS & unused.keys.keys() else "note"
    sentences: list[tuple[Severity, str, str]] = [
        ("warning", name_media(unused), "without it a question may have no answer"),
        ("note", name_columns(unused), "no prompt shows them, and nothing is trained on them"),
        (severity, name_keys(unused), "they are in the file, but in no prompt and no answer"),
    ]
    yield from (Finding(*sentence) for sentence in sentences if sentence[1])


def check_amount(table: RowTable, context: CheckContext) -> Iterator[Finding]:
    """Count rows, show how long they are, and list those beyond the model's context. False alarms: none.

    A text has at most as many tokens as bytes, so only rows with more bytes than that are counted in tokens.
    """
    files = ", ".join(f"{name} {n:,}" for name, n in table.per_file.items())
    memory = f"as many as {HELD / 1e9:g} GB of memory holds"
    note = f"; texts of {len(table.entries):,} sampled rows are looked at, {memory}" if table.is_drawn else ""
    if table.n < _FEWEST:
        meaning = "a fifth set aside for test holds fewer than 5 items: nothing can be shown on them"
        title = f"{pluralize(table.n, 'row')} in all ({files})"
        yield Finding("warning", title, meaning, command="collect more rows")
    else:
        yield Finding("note", f"{table.n:,} rows ({files}){note}", "how much there is to train on")
    entries = table.draw(context.most)
    if context.tokenizer:
        lengths = context.tokenizer.lengths([f"{entry.question}\n{entry.answer}" for entry in entries])
        unit = f"tokens a row by {context.tokenizer.name}"
    else:
        lengths = [len(pieces(entry.question)) + len(pieces(entry.answer)) for entry in entries]
        unit = "words a row (no model named: --base counts tokens)"
    in_order = sorted(lengths)
    median_length, high_length = (in_order[int(q * (len(in_order) - 1))] for q in (0.5, 0.95))
    sample_note = f", of {len(in_order):,} sampled rows" if len(in_order) < len(table.digests) else ""
    # Draw a histogram as bars between the shortest and the longest row.
    low, high, counts = in_order[0], in_order[-1], [0] * _BINS
    for length in in_order:
        counts[min(_BINS - 1, (length - low) * _BINS // max(1, high - low))] += 1
    bars = "".join(_BARS[-(-7 * n // max(counts))] if n else " " for n in counts)
    title = f"{unit}: median {median_length:,}, 95 % up to {high_length:,}, longest {high:,}{sample_note}"
    drawing = f"all {low:,}" if low == high else f"{low:,} {bars} {high:,}"
    yield Finding("note", title, "how long rows are", example=drawing)
    if context.tokenizer is None or (limit := context.tokenizer.context) is None:
        return
    texts = ((entry, f"{entry.question}\n{entry.answer}") for entry in table.entries)
    long_entries = [(entry, text) for entry, text in texts if len(text.encode()) > limit]
    lengths = context.tokenizer.lengths([text for _, text in long_entries])
    if too_long := [entry for (entry, _), n in zip(long_entries, lengths, strict=True) if n > limit]:
        title = f"longer than the {limit:,} tokens of {context.tokenizer.name}'s context"
        meaning = "a training leaves such rows out or cuts them, and the model cannot read them"
        places = tuple(entry.where for entry in too_long)
        example = f"{max(lengths):,} tokens: {excerpt(too_long[0].question, 60)}"
        step = "shorten the rows, or take a base with a longer context"
        yield Finding("error", title, meaning, places, example, step)


def check_edge_cases(table: RowTable, context: CheckContext) -> Iterator[Finding]:
    """Count the rows of each edge case, and warn if test has one that no training row has.

    False alarms: none where a comparison reports the case, which is a count; of fewer test rows the warning
    is a hypergeometric test at `ALPHA` over all cases by Bonferroni.
    """
    test = context.test.entries if context.test else ()
    has_labels = bool(table.labels)
    examples = [[entry.example for entry in entries] for entries in (table.entries, test)]
    for case, is_case in edge_tests(*examples, has_labels=has_labels).items():
        in_train, in_test = (tuple(e.where for e in es if is_case(e.example)) for es in (table.entries, test))
        n, k = len(table.entries) + len(test), len(in_test)
        title = f"{case}: {RULES[case]}"
        is_unlikely = comb(len(test), k) / comb(n, k) < ALPHA / len(RULES)
        if in_test and not in_train and (is_unlikely or is_reported(k, len(test))):
            title = f"no training row is of a case that test has: {title}"
            meaning = "a fine-tune meets them for the first time in test"
            yield Finding("warning", title, meaning, in_test, command="add rows of them", of=len(test))
        elif in_train or in_test:
            report = "reported as a slice" if is_reported(k, len(test)) else "too few or many to report"
            test_note = f"and {k:,} of {len(test):,} test items, {report}" if test else ""
            meaning = "what training seldom shows may fail in use"
            yield Finding("note", title, meaning, in_train, test_note, of=len(table.entries))


def check_traits(table: RowTable, context: CheckContext) -> Iterator[Finding]:
    """Report each trait that the rows show; `check_suspect_labels` reports the fifth, label accuracy.

    False alarms: representativeness, by a Mann-Whitney test at `ALPHA` unless the split was by groups.
    """
    sample = table.draw(_MOST)
    if len(sample) >= _FEWEST_COMPARED:
        # The Vendi score: the exponential of the entropy of the eigenvalues of the similarities over n.
        (vectors,) = _vectors(random.Random(0).sample(list(sample), min(len(sample), _MOST_VARIED)))
        eigenvalues = np.linalg.eigvalsh((vectors @ vectors.T).toarray() / vectors.shape[0])
        eigenvalues = eigenvalues[eigenvalues > 1e-12]
        score = float(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))
        n = vectors.shape[0]
        title = f"diversity: {n:,} rows vary as much as {score:,.0f} rows without a word in common would"
        yield Finding("note", title, "few: many rows say the same in the same words")
    if dates := sorted(entry.date for entry in table.entries if entry.date):
        test_entries = context.test.entries if context.test else ()
        newest = max([dates[-1], *(entry.date for entry in test_entries if entry.date)])
        age = median((newest - date).days for date in dates)
        title = f"freshness: half of the rows are {age:,.0f} days or older at {newest:%Y-%m-%d}, the newest"
        yield Finding("note", title, f"from {dates[0]:%Y-%m-%d} on; old rows teach what has changed since")
    if context.test is None:
        return
    test = context.test.draw(_MOST)
    if min(len(sample), len(test)) >= _FEWEST_COMPARED:
        manifests = [manifest_of(file) or {} for file in (*table.files, *context.test.files)]
        is_split = all(manifest.get("command") == "harness data split" for manifest in manifests)
        groups = {(manifest.get("parameters") or {}).get("group") for manifest in manifests}
        yield from _compare_with_test(sample, test, groups.pop() if is_split and len(groups) == 1 else None)


def _vectors(*groups: Sequence[TableEntry]) -> list[Any]:
    """Return the TF-IDF of the words of groups of rows, each (n, words) with rows of length 1."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+")
    words.fit([entry.question for group in groups for entry in group])
    return [words.transform([entry.question for entry in group]) for group in groups]


def _compare_with_test(
    train: Sequence[TableEntry], test: Sequence[TableEntry], split_by: str | None
) -> Iterator[Finding]:
    """Report how similar test and training rows are; they have different values of the column `split_by`."""
    from scipy import stats
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression
    from sklearn.utils import shuffle

    x, y = _vectors(train, test)
    nearest_sum = sum(float((y[i : i + 500] @ x.T).max(axis=1).sum()) for i in range(0, y.shape[0], 500))
    mean_similarity = float((y @ x.mean(axis=0).T).mean())
    yield Finding(
        "note",
        f"relevance: a test item is {nearest_sum / y.shape[0]:.2f} similar to its nearest training row,"
        f" {mean_similarity:.2f} to an average one",
        "1: the same words, 0: none in common (cosine); near 0, training does not prepare for the test",
    )
    n = min(len(train), len(test))
    halves = [shuffle(rows, random_state=0)[:n] for rows in (x, y)]
    training_features = vstack([half[: n // 2] for half in halves])
    model = LogisticRegression().fit(training_features, [0] * (n // 2) + [1] * (n // 2))
    scores = [model.decision_function(half[n // 2 :]) for half in halves]
    u = stats.mannwhitneyu(scores[1], scores[0], alternative="greater")
    auc, p = float(u.statistic) / (len(scores[0]) * len(scores[1])), float(u.pvalue)
    title = f"representativeness: a classifier tells test from training, AUC {auc:.2f} (p = {p:.1g})"
    if split_by:
        yield Finding("note", title, f"0.5 is alike; test has other values of {split_by!r} than training")
    elif p < ALPHA:
        meaning = "0.5 is alike: test asks other questions than training, and shows less of what was learned"
        yield Finding("warning", title, meaning, command="harness data split FILE --out OUT")
    else:
        yield Finding("note", title, "0.5 is alike: test items look like training rows")


_FEWEST_OF_LABEL = 5  # rows of a class, one for each fold, or of a form that is tested
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


def check_class_balance(table: RowTable, context: CheckContext) -> Iterator[Finding]:
    """Show the balance; warn of one answer, of small classes, and of labels and slices that only test has.

    The effective number of classes is the exponential of Shannon's entropy (Hill 1973). False alarms: none.
    """
    answers = {entry.answer for entry in table.entries if entry.question}
    if len(answers) == 1 and answers != {""} and len(table.entries) >= _FEWEST_OF_LABEL:
        title = f"all rows have the same answer, {answers.pop()[:60]!r}"
        meaning = "always giving it is right, so no comparison can show that anything was learned"
        yield Finding("warning", title, meaning, command="add rows with other answers, or name their column")
    trained_slices = {entry.example.slice for entry in table.entries}
    if context.test and trained_slices != {""} and not table.is_drawn:
        in_test = Counter(entry.example.slice for entry in context.test.entries)
        if new_slices := {name: n for name, n in in_test.items() if name not in trained_slices}:
            title = "slices of test that no training row has: " + ", ".join(map(repr, [*new_slices][:5]))
            meaning, n = "a fine-tune meets them for the first time in test", sum(new_slices.values())
            yield Finding("warning", title, meaning, command="add rows of them", count=n, of=in_test.total())
    if not table.labels:
        return
    labels = unify_spellings([entry.answer for entry in table.entries])
    counts, n = Counter(labels), len(labels)
    effective = exp(-sum(k / n * log(k / n) for k in counts.values()))
    (commonest_label, k), (rarest_label, j) = counts.most_common(1)[0], counts.most_common()[-1]
    extremes = f"{commonest_label!r} {k:,} rows, {rarest_label!r} {j:,}"
    title = f"{len(counts):,} labels, worth {effective:.1f} of equal size: {extremes}"
    yield Finding("note", title, f"always answering {commonest_label!r} scores {100 * k / n:.1f} %")
    small_labels = {label for label, m in counts.items() if m < _FEWEST_OF_LABEL}
    if small_labels:
        rows = tuple(e.where for e, label in zip(table.entries, labels, strict=True) if label in small_labels)
        title = f"{len(small_labels):,} labels with fewer than {_FEWEST_OF_LABEL} rows"
        meaning = "validation or test may hold none of them, so nothing is known of them"
        example = ", ".join(f"{label!r} {counts[label]}" for label in sorted(small_labels)[:5])
        yield Finding("warning", title, meaning, rows, example, "collect more rows of them", of=n)
    if context.test:
        test_answers = Counter(entry.answer for entry in context.test.entries)
        if new_labels := [label for label in test_answers if label not in table.labels]:
            title = f"{len(new_labels):,} labels stand in test alone: " + ", ".join(map(repr, new_labels[:5]))
            meaning, n = "no training row shows them, so a fine-tune cannot answer them", test_answers.total()
            n_new = sum(test_answers[label] for label in new_labels)
            yield Finding("error", title, meaning, command="add rows of them", count=n_new, of=n)


def check_label_markers(table: RowTable, context: CheckContext) -> Iterator[Finding]:
    """List the forms that determine a label, the most frequent first: how a question begins and ends.

    A marker gives the label in nine of ten of its rows. False alarms: Fisher's exact test (one-sided) of each
    form and label, at `ALPHA` by Bonferroni.
    """
    from scipy import stats

    if not table.labels:
        return
    by_form: dict[str, list[TableEntry]] = defaultdict(list)
    word_counts: Counter[str] = Counter()
    for entry in table.entries:
        word_counts.update(set(map(_bare, entry.question.split())) | set(_SIGN.findall(entry.question)))
        for form in forms(entry.question):
            by_form[form].append(entry)
    labels = Counter(entry.answer for entry in table.entries)
    tested_forms = {form: entries for form, entries in by_form.items() if len(entries) >= _FEWEST_OF_LABEL}
    markers: list[tuple[str, str, float]] = []  # form, label and p
    for form, entries in tested_forms.items():
        label, n = Counter(entry.answer for entry in entries).most_common(1)[0]
        word = word_match[1] if (word_match := _NAMED.fullmatch(form)) else ""
        if n < _GIVES * len(entries) or (word and len(entries) < _AT_ONE_END * word_counts[word]):
            continue
        p = float(stats.hypergeom.sf(n - 1, len(table.entries), labels[label], len(entries)))
        if p < ALPHA / max(1, len(tested_forms) * len(labels)):
            markers.append((form, label, p))
    # Of several forms that mark the same rows, keep the first: a word comes before its sign.
    distinct = {tuple(entry.where for entry in by_form[marker[0]]): marker for marker in reversed(markers)}
    for form, label, p in sorted(distinct.values(), key=lambda f: -len(by_form[f[0]]))[:_SHOWN]:
        entries = by_form[form]
        n = sum(entry.answer == label for entry in entries)
        title = f"{form} gives the label {label!r} in {n:,} of {len(entries):,} rows (p = {p:.1g})"
        meaning = "a model may learn the mark in place of the meaning, and fail where it is absent"
        places = tuple(entry.where for entry in entries)
        example = repr(excerpt(entries[0].question, 80))
        step = "remove the mark from the rows, if it is none of the question"
        yield Finding("warning", title, meaning, places, example, step)


def forms(question: str) -> Iterator[str]:
    """Yield the forms of a question, each in words."""
    tokens = question.split()
    if not tokens:
        return
    yield f"first word {_bare(tokens[0])!r}"
    yield f"last word {_bare(tokens[-1])!r}"
    for position, sign in (("first", tokens[0][0]), ("last", tokens[-1][-1])):
        if _SIGN.fullmatch(sign) and len(tokens[0 if position == "first" else -1]) > 1:
            yield f"{position} sign {sign!r}"


def _bare(token: str) -> str:
    return re.sub(r"^\W+|\W+$", "", token.lower()) or token  # a sign is kept


def check_suspect_labels(table: RowTable, context: CheckContext) -> Iterator[Finding]:
    """List the suspect rows, the most suspect first, with the proposed label.

    No label is judged if the classifier predicts less than `_SKILL` of the labels that the majority class
    gets wrong. False alarms: a binomial test at `ALPHA` that more than the share `_EXPECTED` of the labels
    surely differ: the row's own has a probability below `_OWN`, another one above `_OTHER`. One of 202 draws
    with right labels raises an alarm (docs/howto/check_data.md).
    """
    entries = table.draw(context.most) if table.labels else []
    labels = unify_spellings([entry.answer for entry in entries])
    counts = Counter({label: n for label, n in Counter(labels).items() if n >= _FEWEST_OF_LABEL})
    unified = (entry._replace(answer=label) for entry, label in zip(entries, labels, strict=True))
    entries = [entry for entry in unified if entry.answer in counts]
    if len(counts) < 2:
        return
    from cleanlab.filter import find_label_issues
    from scipy import stats
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    # Each row is judged by a classifier that was trained on the other rows.
    names = sorted(counts)
    targets = np.array([names.index(entry.answer) for entry in entries])
    features = {"max_features": _FEATURES, "token_pattern": _TOKEN}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, **features)
    regression = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=20, tol=None, random_state=0)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    texts = [entry.question if entry.question.strip() else "-" for entry in entries]
    p = cross_val_predict(make_pipeline(words, regression), texts, targets, cv=folds, method="predict_proba")
    ranking = {"filter_by": "low_self_confidence", "return_indices_ranked_by": "self_confidence"}
    best = p.argmax(axis=1)
    suspects = [
        (entries[i], names[best[i]], float(p[i, targets[i]]), float(p[i, best[i]]))
        for i in find_label_issues(targets, p, n_jobs=1, **ranking)
        if best[i] != targets[i]
    ]
    accuracy = float((best == targets).mean())
    is_sure = (p[np.arange(len(targets)), targets] < _OWN) & (p.max(axis=1) > _OTHER)
    n_sure = int(((best != targets) & is_sure).sum())
    majority_label, n_majority = counts.most_common(1)[0]
    share = n_majority / len(entries)
    if accuracy - share < _SKILL * (1 - share):
        yield Finding(
            "note",
            f"labels are not judged: a classifier of words gives {100 * accuracy:.1f} % of them, "
            f"always answering {majority_label!r} {100 * share:.1f} %",
            "too weak to tell a wrong label from its own errors: few rows of a label, or no matter of words",
        )
        return
    n = len(entries)
    is_alarm = stats.binomtest(n_sure, n, _EXPECTED, alternative="greater").pvalue < ALPHA
    percent_suspect, hardly = 100 * len(suspects) / n, "hardly more than where all are right"
    sample_note = f", of {n:,} judged (sampled by class, of labels with {_FEWEST_OF_LABEL} rows or more)"
    sample_note = sample_note if n < len(table.digests) else ""
    title = f"label accuracy: about {100 - percent_suspect:.1f} %{sample_note}"
    if not is_alarm:
        title = f"label accuracy: {percent_suspect:.1f} % of the labels are suspect, {hardly}{sample_note}"
    meaning = (
        f"a classifier of words is sure of another label in {100 * n_sure / n:.1f} % of the rows, "
        f"where all labels are right in up to {100 * _EXPECTED:.1f} %"
    )
    yield Finding("note", title, meaning)
    if suspects:
        worst_entry, likelier_label, p_own, p_likelier = suspects[0]
        severity: Severity = "warning" if is_alarm else "note"
        title = f"suspect labels{sample_note}" + ("" if is_alarm else f", {hardly}")
        meaning = "a wrong label teaches a wrong answer, and in test it counts a right answer as wrong"
        places = tuple(entry.where for entry, *_ in suspects)
        example = (
            f"{worst_entry.where}: {excerpt(worst_entry.question, 70)!r} is {worst_entry.answer!r} "
            f"({100 * p_own:.0f} %), more likely {likelier_label!r} ({100 * p_likelier:.0f} %)"
        )
        proposed_labels = tuple(label for _, label, *_ in suspects)
        yield Finding(severity, title, meaning, places, example, DECIDE, proposed_labels, of=n)
