"""Checks of a file as a whole: missing values, amount and lengths of rows, and traits.

Source: Lopez-Paz & Oquab 2017, Revisiting Classifier Two-Sample Tests; Friedman & Dieng 2023, Vendi Score.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from math import comb
from statistics import median
from typing import Any

import numpy as np

from harness.data.check import ALPHA, HELD, CheckContext, Finding, RowTable, Severity, TableEntry
from harness.data.check.personal_data import excerpt
from harness.data.edit.row_files import find_grouping_column
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
_FEWEST = 25  # rows of which a fifth, set aside twice, is too few for a sign test
_MOST, _MOST_VARIED = 4_000, 1_000
_FEWEST_COMPARED = 20  # rows of each side


def check_missing_values(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List rows that no comparison can use, repeated ids, empty cells, and columns of texts and numbers.

    False alarms: a long text that was written when the answer was known is listed as a possible context; all
    else are counts.
    """
    if down := tuple(row.where for row in table.unusable if row.why == THUMB_DOWN):
        meaning = "no right answers, but for methods that learn from thumbs"
        yield Finding("note", "answers with a thumb down", meaning, down, of=table.n)
    if unusable := [row for row in table.unusable if row.why != THUMB_DOWN]:
        kinds = Counter(row.why for row in unusable).most_common(3)
        title = "rows that cannot be used: " + ", ".join(f"{why} ({n:,})" for why, n in kinds)
        meaning = "compare stops at such a row, unless it is told to leave it out"
        places = tuple(row.where for row in unusable)
        example = f"{unusable[0].where}: {unusable[0].why}"
        step = "harness data clean FILE --out OUT"
        yield Finding("error", title, meaning, places, example, step, of=table.n)
    first: dict[tuple[str, str], TableEntry] = {}
    repeated: list[tuple[TableEntry, TableEntry]] = []  # each with the earlier row of its id
    for entry in table.entries:
        earlier = first.setdefault((file_of(entry.where), entry.example.id), entry)
        if earlier is not entry:
            repeated.append((entry, earlier))
    if repeated:
        entry, earlier = repeated[0]
        title = "rows with the id of an earlier row"
        meaning = "compare stops at them, since it keeps answers by the id of their question"
        places = tuple(entry.where for entry, _ in repeated)
        example = f"{entry.where} has the id {excerpt(entry.example.id, 40)!r} of {earlier.where}"
        step = "harness data clean FILE --out OUT --new-ids"
        yield Finding("error", title, meaning, places, example, step)
    empty = {name: n for name, column in table.columns.items() if (n := table.n - column.n + column.empty)}
    meaning = "harmless where the column is optional or not read"
    for name in sorted(empty, key=lambda name: -empty[name])[:_MOST_COLUMNS]:
        places = tuple(table.columns[name].places)
        yield Finding("note", f"column {name!r} is empty", meaning, places, of=table.n, count=empty[name])
    if (n_more := len(empty) - _MOST_COLUMNS) > 0:
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
    yield from _list_unused(table)


def _list_unused(table: RowTable) -> Iterator[Finding]:
    unused = table.unused
    if unused.contexts:
        command = f"harness data check {' '.join(map(as_argument, table.files))} {unused.options()}"
        explains = any(context.explains for context in unused.contexts)
        severity: Severity = "error" if explains else "warning"
        meaning = f"without it a question may have no answer; {OFFER}, write {unused.line()} in the suite"
        steps = (command,) if explains else ()
        yield Finding(severity, name_contexts(unused), meaning, command=command, steps=steps)
    for other in unused.others:
        if getattr(table.reading, other.option) is None:
            command = f"harness data check {' '.join(map(as_argument, table.files))} {other.options}"
            yield Finding("note", other.sentence, "where it does, name that column", command=command)
    if media := name_media(unused):
        yield Finding("warning", media, "without it a question may have no answer")
    if rest := name_columns(unused):
        yield Finding("note", rest, "no prompt shows them, and nothing is trained on them")
    if keys := name_keys(unused):
        severity = "warning" if THOUGHTS & unused.keys.keys() else "note"
        yield Finding(severity, keys, "they are in the file, but in no prompt and no answer")


def check_amount(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """Count rows, show how long they are, and list those beyond the model's context.

    A text has at most as many tokens as bytes, so only rows with more bytes than the context has tokens are
    counted in tokens; the histogram is of a draw. False alarms: none; every figure is a count.
    """
    files = ", ".join(f"{name} {n:,}" for name, n in table.per_file.items())
    memory = f"as many as {HELD / 1e9:g} GB of memory holds"
    held = f"; texts of {len(table.entries):,} sampled rows are looked at, {memory}" if table.is_drawn else ""
    if table.n < _FEWEST:
        meaning = "a fifth set aside for test holds fewer than 5 items: nothing can be shown on them"
        title = f"{pluralize(table.n, 'row')} in all ({files})"
        yield Finding("warning", title, meaning, command="collect more rows")
    else:
        yield Finding("note", f"{table.n:,} rows ({files}){held}", "how much there is to train on")
    drawn = table.draw(given.most)
    if given.tokenizer:
        lengths = given.tokenizer.lengths([f"{entry.question}\n{entry.answer}" for entry in drawn])
        yield _show_lengths(lengths, f"tokens a row by {given.tokenizer.name}", table, len(drawn))
    else:
        words = [len(pieces(entry.question)) + len(pieces(entry.answer)) for entry in drawn]
        yield _show_lengths(words, "words a row (no model named: --base counts tokens)", table, len(drawn))
    if given.tokenizer is None or (context := given.tokenizer.context) is None:
        return
    texts = ((entry, f"{entry.question}\n{entry.answer}") for entry in table.entries)
    long = [(entry, text) for entry, text in texts if len(text.encode()) > context]
    counts = given.tokenizer.lengths([text for _, text in long])
    if beyond := [entry for (entry, _), n in zip(long, counts, strict=True) if n > context]:
        title = f"longer than the {context:,} tokens of {given.tokenizer.name}'s context"
        meaning = "a training leaves such rows out or cuts them, and the model cannot read them"
        places = tuple(entry.where for entry in beyond)
        example = f"{max(counts):,} tokens: {excerpt(beyond[0].question, 60)}"
        step = "shorten the rows, or take a base with a longer context"
        yield Finding("error", title, meaning, places, example, step)


def _show_lengths(lengths: Sequence[int], what: str, table: RowTable, n: int) -> Finding:
    ordered = sorted(lengths)
    at = {q: ordered[int(q * (n - 1))] for q in (0.5, 0.95, 1.0)}
    drawn = f", of {n:,} sampled rows" if n < len(table.digests) else ""
    title = f"{what}: median {at[0.5]:,}, 95 % up to {at[0.95]:,}, longest {at[1.0]:,}{drawn}"
    # A histogram, as bars between the shortest and the longest.
    low, high, counts = ordered[0], ordered[-1], [0] * _BINS
    for length in ordered:
        counts[min(_BINS - 1, (length - low) * _BINS // max(1, high - low))] += 1
    bars = "".join(_BARS[-(-7 * n // max(counts))] if n else " " for n in counts)
    drawing = f"all {low:,}" if low == high else f"{low:,} {bars} {high:,}"
    return Finding("note", title, "how long rows are", example=drawing)


def check_edge_cases(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """Count the rows of each edge case, and warn if test has one that no training row has.

    False alarms: counts; the warning is a hypergeometric test at `ALPHA` over all cases by Bonferroni.
    """
    tested = given.test.entries if given.test else ()
    has_labels = bool(table.labels)
    examples = [[entry.example for entry in entries] for entries in (table.entries, tested)]
    for case, is_case in edge_tests(*examples, has_labels=has_labels).items():
        rows, asked = (tuple(e.where for e in es if is_case(e.example)) for es in (table.entries, tested))
        n, k = len(table.entries) + len(tested), len(asked)
        title = f"{case}: {RULES[case]}"
        if asked and not rows and comb(len(tested), k) / comb(n, k) < ALPHA / len(RULES):
            title = f"no training row is of a case that test has: {title}"
            meaning = "a fine-tune meets them for the first time in test"
            yield Finding("warning", title, meaning, asked, command="add rows of them", of=len(tested))
        elif rows or asked:
            how = "reported as a slice" if is_reported(k, len(tested)) else "too few or many to report"
            of_test = f"and {k:,} of {len(tested):,} test items, {how}" if tested else ""
            meaning = "what training seldom shows may fail in use"
            yield Finding("note", title, meaning, rows, of_test, of=len(table.entries))


def check_traits(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """Report each trait that the rows allow; label accuracy, the fifth, is among the suspect labels.

    False alarms: only representativeness raises an alarm, by a Mann-Whitney test at `ALPHA`; not if training
    and test have no group in common, because rows of a group are not independent.
    """
    drawn = table.draw(_MOST)
    if len(drawn) >= _FEWEST_COMPARED:
        # The Vendi score: the exponential of the entropy of the eigenvalues of the similarities over n.
        (vectors,) = _vectors(random.Random(0).sample(list(drawn), min(len(drawn), _MOST_VARIED)))
        eigenvalues = np.linalg.eigvalsh((vectors @ vectors.T).toarray() / vectors.shape[0])
        eigenvalues = eigenvalues[eigenvalues > 1e-12]
        score = float(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))
        n = vectors.shape[0]
        title = f"diversity: {n:,} rows vary as much as {score:,.0f} rows without a word in common would"
        yield Finding("note", title, "few: many rows say the same in the same words")
    if dates := sorted(entry.date for entry in table.entries if entry.date):
        tested = given.test.entries if given.test else ()
        newest = max([dates[-1], *(entry.date for entry in tested if entry.date)])
        age = median((newest - date).days for date in dates)
        title = f"freshness: half of the rows are {age:,.0f} days or older at {newest:%Y-%m-%d}, the newest"
        yield Finding("note", title, f"from {dates[0]:%Y-%m-%d} on; old rows teach what has changed since")
    if given.test is None:
        return
    test = given.test.draw(_MOST)
    if min(len(drawn), len(test)) >= _FEWEST_COMPARED:
        columns = {find_grouping_column(file) for file in (*table.files, *given.test.files)}
        yield from _compare_with_test(drawn, test, columns.pop() if len(columns) == 1 else None)


def _vectors(*groups: Sequence[TableEntry]) -> list[Any]:
    """Return the TF-IDF of the words of groups of rows, each (n, words) with rows of length 1."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+")
    words.fit([entry.question for group in groups for entry in group])
    return [words.transform([entry.question for entry in group]) for group in groups]


def _compare_with_test(
    train: Sequence[TableEntry], test: Sequence[TableEntry], split_by: str | None
) -> Iterator[Finding]:
    """Report the similarity of test items to training rows, and whether a classifier distinguishes them.

    It is trained on half of both and tested on the other half. `split_by` is the column whose values training
    and test do not share.
    """
    from scipy import stats
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression
    from sklearn.utils import shuffle

    x, y = _vectors(train, test)
    near = sum(float((y[i : i + 500] @ x.T).max(axis=1).sum()) for i in range(0, y.shape[0], 500))
    far = float((y @ x.mean(axis=0).T).mean())
    yield Finding(
        "note",
        f"relevance: a test item is {near / y.shape[0]:.2f} similar to its nearest training row,"
        f" {far:.2f} to an average one",
        "1: the same words, 0: none in common (cosine); near 0, training does not prepare for the test",
    )
    n = min(len(train), len(test))
    halves = [shuffle(rows, random_state=0)[:n] for rows in (x, y)]
    seen = vstack([half[: n // 2] for half in halves])
    model = LogisticRegression().fit(seen, [0] * (n // 2) + [1] * (n // 2))
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
