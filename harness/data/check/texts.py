"""Checks of texts: personal data, quality, damage, formats of answers, and rows that repeat another one.

Invariant: examples are masked. Exact duplicates are counted among all rows by digests of 64 bits, near ones
among those whose texts are held.
Source: Speer 2019, ftfy, https://doi.org/10.5281/zenodo.2591652
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

import numpy as np

from harness.data.check import DECIDE, DECIDE_BY_SENSE, CheckContext, Finding, RowTable, Severity, TableEntry
from harness.data.check.personal_data import excerpt, find_personal_data, mask_text, mask_value
from harness.data.contamination import EMBEDDINGS, Overlap, find_contaminated_rows, overlaps, repeats_by_sense
from harness.data.edit.changes import commonest_spellings, several_spellings
from harness.data.edit.clean import mend_encoding, mend_signs
from harness.data.edit.dedup import NormalizedRow, fold_row, near_repeats, stand_on_same
from harness.data.examples import SourcedExample
from harness.data.near_duplicates import THRESHOLD
from harness.data.row_traits import THRESHOLDS
from harness.data.text_files import find_special
from harness.errors import as_argument
from harness.formatting import pluralize

_FEWEST_SCORED = 20  # answers, by which the usual one is known


def check_personal_data(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """Count the rows with personal data, by kind.

    False alarms: one random number in ten of a card's length, one in ninety-seven of an IBAN's.
    """
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for entry in table.entries:
        for kind, value in find_personal_data(f"{entry.question}\n{entry.answer}"):
            by_kind.setdefault(kind, []).append((entry.where, mask_value(value)))
    for kind, placed in by_kind.items():
        rows = tuple(dict.fromkeys(place for place, _ in placed))
        title = f"{kind}: {len(placed):,} found"
        meaning = "a model may repeat them to anybody; they may need a legal basis to be trained on"
        example = f"{placed[0][0]}: {placed[0][1]}"
        yield Finding("warning", title, meaning, rows, example, DECIDE)


_MOST_FAULTS = 0.05  # share of answers above which low scores are an alarm


def check_quality(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """Score answers that are no labels, and propose the score below which `data clean` drops them.

    False alarms: below the proposed score were 44 of 7,306 answers of four sets; over 5 % are an alarm.
    """
    drawn = [entry for entry in table.draw(given.most) if entry.qa.answers]
    if table.labels or len(drawn) < _FEWEST_SCORED or given.score is None:
        return
    scores = given.score([entry.qa for entry in drawn])
    # The proposed score is where a tenth more or less drops the fewest others, of several the middle one.
    near = {t: sum(t - 0.1 <= quality.score < t + 0.1 for quality in scores) for t in THRESHOLDS[1:-1]}
    flattest = [t for t, n in near.items() if n == min(near.values())]
    least = flattest[len(flattest) // 2]
    kept = {score: sum(quality.score >= score for quality in scores) for score in THRESHOLDS}
    low = [(entry, q.trait) for entry, q in zip(drawn, scores, strict=True) if q.score < least]
    traits = ", ".join(f"{trait} {n:,}" for trait, n in Counter(trait for _, trait in low).most_common())
    curve = ", ".join(f"{score:g} {100 * n / len(drawn):.1f} %" for score, n in kept.items())
    title = f"answers that score below {least:g} of 1 in quality" + (f" ({traits})" if low else "")
    severity: Severity = "warning" if len(low) > _MOST_FAULTS * len(drawn) else "note"
    meaning = "a fine-tune learns to answer so; read some, and measure a training without them"
    places = tuple(entry.where for entry, _ in low)
    example = f"kept from each score on: {curve}"
    step = f"harness data clean FILE --out OUT --min-quality {least:g}{given.score_options}"
    yield Finding(severity, title, meaning, places, example, step, of=len(drawn))


_LOST = "\ufffd"


def _cut_question(entry: TableEntry) -> str:
    text = excerpt(" ".join(entry.qa.question.split()), 61)
    return repr(text if len(text) <= 60 else f"{text[:59]}…")


def check_encoding_damage(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List the rows with damaged text, with its repair, and those that cannot be repaired.

    False alarms: none in 14,189 rows of Banking77, Dolly and XQuAD; texts about chat templates.
    """
    tests: tuple[Callable[[str], bool], ...] = (
        lambda text: mend_encoding(text) != text,
        lambda text: mend_signs(text) != text,
        lambda text: _LOST in text,
    )
    damaged, control, lost = found = dict[str, str](), dict[str, str](), dict[str, str]()  # texts by place
    for entry in table.entries:
        qa = entry.qa
        for text in (qa.question, qa.context, qa.system, *qa.answers):
            for texts, is_damaged in zip(found, tests, strict=True):
                if is_damaged(text):
                    texts.setdefault(entry.where, text)
    clean = "harness data clean FILE --out OUT"

    def cut_around(text: str) -> str:  # its first sign beyond ASCII, masked
        at = next((i for i, sign in enumerate(text) if not sign.isascii()), 0)
        return mask_text(text)[max(0, at - 20) : at + 20].strip()

    if damaged:
        before = next(iter(damaged.values()))
        meaning = "the model learns to write such signs, and the same word in two spellings"
        example = f"{cut_around(before)} → {cut_around(mend_encoding(before))}"
        yield Finding("error", "damaged encoding", meaning, tuple(damaged), example, clean)
    if control:
        first = next(iter(control.values()))
        sign = next(i for i, (a, b) in enumerate(zip_longest(first, mend_signs(first))) if a != b)
        title = "control characters, or line ends other than a line feed"
        meaning = "they are invisible, and the tokenizer turns them into tokens that other rows do not have"
        example = repr(mask_text(first)[max(0, sign - 20) : sign + 20])
        yield Finding("warning", title, meaning, tuple(control), example, clean)
    if lost:
        title = "signs that are lost (U+FFFD)"
        meaning = "nothing brings them back but the file they came from, read in its own encoding"
        example = cut_around(next(iter(lost.values())))
        yield Finding("error", title, meaning, tuple(lost), example, f"{clean} --drop-lost")
    own_tokens = given.tokenizer.special if given.tokenizer else ()
    answers, prompts = dict[str, str](), dict[str, str]()  # the first token of each row, by its place
    for entry in table.entries:
        qa = entry.qa
        if token := find_special([*qa.answers, entry.answer], own_tokens):
            answers[entry.where] = token
        elif token := find_special((qa.question, qa.context, qa.system), own_tokens):
            prompts[entry.where] = token
    learned = "they are read as text: no right answer says so, and a model would learn to write it"
    shown = "they are read as text, and end no turn: often what a template wrote before"
    for rows, part, meaning in ((answers, "answers", learned), (prompts, "prompts", shown)):
        if rows:
            tokens = sorted(set(rows.values()))
            command = f"{clean} --special-tokens"
            if given.tokenizer and not all(find_special([token]) for token in tokens):
                command += f" --base {as_argument(given.tokenizer.name)}"
            severity: Severity = "error" if rows is answers else "warning"
            title = f"special tokens in {part}: {', '.join(tokens[:5])}"
            yield Finding(severity, title, meaning, tuple(rows), command=command)


def check_answer_formats(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List answers with outer white space, and labels in several spellings. False alarms: none."""
    clean = "harness data clean FILE --out OUT"
    cut = f"{clean} --leading-spaces  # unless it is the indentation of code"
    for where, strip, command in (("behind", str.rstrip, clean), ("in front of", str.lstrip, cut)):
        first_of = ((e, next((t for t in e.spaced if t != strip(t)), "")) for e in table.entries)
        if spaced := [(entry, text) for entry, text in first_of if text]:
            masked = mask_text(spaced[0][1])
            title = f"answers with white space {where} them"
            meaning = "a trainer that reads the file teaches it, and exact match counts it as wrong"
            example = repr(masked[-60:] if where == "behind" else masked[:60])
            yield Finding("warning", title, meaning, tuple(e.where for e, _ in spaced), example, command)
    answered = [entry for entry in table.entries if entry.answer and table.labels]
    several = several_spellings(entry.answer for entry in answered)
    if commonest := commonest_spellings(several):
        rare = [entry for entry in answered if entry.answer in commonest]
        title = f"{pluralize(len(several), 'label')} in several spellings"
        meaning = "each spelling is a label of its own to a metric and to a classifier"
        places = tuple(entry.where for entry in rare)
        example = ", ".join(f"{spelt!r} {n:,}" for spelt, n in several[0])
        labels = tuple(commonest[entry.answer] for entry in rare)
        step = f"{clean} --spellings"
        yield Finding("error", title, meaning, places, example, step, labels, of=len(answered))


def check_repeated_rows(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List rows that repeat an earlier one, exactly or nearly.

    False alarms: none of exact ones; reports/data_check.md counts those of near ones.
    """
    _, first, inverse = np.unique(table.digests, axis=0, return_index=True, return_inverse=True)
    earlier = first[inverse.ravel()]
    again = np.flatnonzero(earlier != np.arange(len(table.digests)))
    if len(again):
        title = "exact duplicates of an earlier row"
        meaning = "repeated rows count twice in training, and set aside for test they contaminate it"
        places = tuple(table.places[int(i)] for i in again)
        example = f"{table.places[int(again[0])]} repeats {table.places[int(earlier[again[0]])]}"
        step = "harness data dedup FILE --out OUT"
        beside = tuple(table.places[int(earlier[i])] for i in again)
        yield Finding("warning", title, meaning, places, example, step, beside=beside, of=len(table.digests))
    distinct: dict[NormalizedRow, TableEntry] = {}
    for entry in table.entries:
        distinct.setdefault(fold_row(entry.qa), entry)
    entries = list(distinct.values())
    groups = near_repeats([entry.qa for entry in entries])  # as `data dedup` drops them
    numbers = sorted((i, group.kept, alike) for group in groups for i, alike in group.others)
    if near := [(entries[i], entries[kept], alike) for i, kept, alike in numbers]:
        row, kept, alike = max(near, key=lambda pair: pair[2])
        title = f"near duplicates of an earlier row (Jaccard index of {THRESHOLD:g} or more)"
        meaning = "they add little to learn from, and set aside for test they contaminate it"
        places = tuple(row.where for row, _, _ in near)
        both = f"{_cut_question(row)} / {_cut_question(kept)}"
        example = f"{row.where} is {100 * alike:.0f} % {kept.where}: {both}"
        step = "harness data dedup FILE --out OUT"
        beside = tuple(f"{k.where} ({100 * a:.0f} %): {_cut_question(k)}" for _, k, a in near)
        yield Finding("warning", title, meaning, places, example, step, beside=beside)
    if given.encode:
        named = {row.where for row, _, _ in near}
        others = [entry for entry in entries if entry.where not in named]
        chosen = sorted(random.Random("sense").sample(range(len(others)), min(given.most, len(others))))
        left = [others[i] for i in chosen]

        def may_repeat(i: int, j: int) -> bool:
            has_same_label = not table.labels or left[i].answer == left[j].answer
            return has_same_label and stand_on_same(left[i].qa, left[j].qa)

        repeats = repeats_by_sense([entry.qa.question for entry in left], given.encode, may_repeat)
        if pairs := [(left[i], left[j], cosine) for i, j, cosine in repeats]:
            row, kept, cosine = max(pairs, key=lambda pair: pair[2])
            drawn = f", of {len(left):,} sampled" if len(left) < len(others) else ""
            title = f"rows that may repeat an earlier question, by sense (cosine from {EMBEDDINGS:g}{drawn})"
            meaning = "read some: they add little to learn from, and set aside for test they contaminate it"
            places = tuple(row.where for row, _, _ in pairs)
            both = f"{_cut_question(row)} / {_cut_question(kept)}"
            example = f"{row.where} and {kept.where} ({cosine:.2f}): {both}"
            beside = tuple(f"{e.where} (embeddings {c:.2f}): {_cut_question(e)}" for _, e, c in pairs)
            step, n = DECIDE_BY_SENSE, len(left)
            yield Finding("warning", title, meaning, places, example, step, beside=beside, of=n)


def check_conflicting_answers(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List the rows whose question has another answer elsewhere.

    False alarms: none for labels; a question with two texts as answers may have two right ones: a note.
    """
    questions, answers = table.digests[:, 0], table.digests[:, 1]
    _, first, inverse = np.unique(questions, return_index=True, return_inverse=True)
    differs = answers != answers[first[inverse]]
    groups = np.unique(inverse[differs])
    rows = np.flatnonzero(np.isin(inverse, groups))
    if not len(rows) or not any(entry.answer for entry in table.entries):
        return
    by_place = {entry.where: entry for entry in table.entries}
    other = {inverse[i]: i for i in reversed(np.flatnonzero(differs))}
    pairs = [(int(i), int(first[inverse[i]] if differs[i] else other[inverse[i]])) for i in rows]
    beside = [
        f"{where}, which answers {excerpt(by_place[where].answer, 40)!r}" if where in by_place else where
        for where in (table.places[i] for _, i in pairs)
    ]
    example, place = "", table.places[pairs[0][0]]
    if place in by_place:
        question = excerpt(" ".join(by_place[place].question.split()), 60)
        example = f"{question!r}: {place} answers {excerpt(by_place[place].answer, 40)!r} and {beside[0]}"
    command = "harness data dedup FILE --conflicts drop --out OUT  # all; the Data page decides one by one"
    severity: Severity = "error" if table.labels else "note"
    title = f"{pluralize(len(groups), 'question')} with different answers"
    meaning = "several answers may be right; a metric that compares with one reference takes others for wrong"
    if table.labels:
        meaning = "one of them is wrong, or the question does not hold what decides"
    places = tuple(table.places[i] for i, _ in pairs)
    step, n = command if table.labels else "", len(table.digests)
    yield Finding(severity, title, meaning, places, example, step, beside=tuple(beside), of=n)


def check_test_leaks(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List training rows that a test row repeats, exactly or in other words, and augmented test rows.

    False alarms: of exact ones none, of the others 5 % of look-alikes (reports/data_check.md).
    """
    if given.test is None:
        return
    if augmented := tuple(entry.where for entry in given.test.entries if entry.is_augmented):
        title = "augmented rows in the test, which a comparison refuses"
        meaning = "a row made from another one is no evidence of its own, and it may repeat a training row"
        step = "test on the rows without a text in augmented_from, and train on the others"
        n_test = len(given.test.entries)
        yield Finding("error", title, meaning, augmented, augmented[0], step, of=n_test)
    rows = [SourcedExample(entry.example, entry.where) for entry in table.entries]
    items = [SourcedExample(entry.example, entry.where) for entry in given.test.entries]
    exact = find_contaminated_rows(rows, items)
    exact_places = {row.training.where for row in exact}
    left = [entry for entry in table.entries if entry.where not in exact_places]
    overlapping = overlaps(
        list(map(_bare_question, left)),
        list(map(_bare_question, given.test.entries)),
        answers=[entry.answer for entry in left],
        encode=given.encode,
    )
    alike = [(left[o.training].where, given.test.entries[o.evaluated], o) for o in overlapping]
    # Dedup compares words, so matches of embeddings alone are decided row by row.
    by_sense = [pair for pair in alike if pair[2].measure == "embeddings"]
    in_words = [pair for pair in alike if pair[2].measure != "embeddings"]
    against = " ".join(f"--against {as_argument(file)}" for file in given.test.files)
    command = f"harness data dedup FILE {against} --out OUT"
    if exact:
        first = exact[0]
        question = excerpt(" ".join(first.training.example.prompt.split()), 60)
        title = "training rows that a test row repeats"
        meaning = "the score on test counts what was learned by heart"
        places = tuple(row.training.where for row in exact)
        example = f"{first.training.where} has the question of {first.evaluated.where}: {question!r}"
        beside = tuple(f"{row.evaluated.where}, with the same question" for row in exact)
        yield Finding("error", title, meaning, places, example, command, beside=beside)
    if in_words:
        yield _report_similar(in_words, "in other words", command)
    if by_sense:
        decided = f"page, where the target's `test:` is {', '.join(given.test.files)},"
        yield _report_similar(by_sense, "by sense", DECIDE_BY_SENSE.replace("page,", decided))


def _report_similar(pairs: Sequence[tuple[str, TableEntry, Overlap]], how: str, command: str) -> Finding:
    """List training rows by their places, each with its similar test row."""
    places = [f"{item.where} ({o.measure} {o.similarity:.2f})" for _, item, o in pairs]
    questions = [excerpt(" ".join(_bare_question(item).split()), 80) for _, item, _ in pairs]
    rows = tuple(where for where, *_ in pairs)
    title = f"training rows whose question may be that of a test row, {how}"
    meaning = "read the closest pairs: a contaminated row counts what was learned by heart, others do not"
    example = "; ".join(f"{row} and {place}" for row, place in zip(rows[:3], places, strict=False))
    beside = tuple(f"{place}: {asked!r}" for place, asked in zip(places, questions, strict=True))
    return Finding("warning", title, meaning, rows, example, command, beside=beside)


def _bare_question(entry: TableEntry) -> str:
    """Return the question without its context, which rows may share."""
    alone = entry.qa.question
    return alone if entry.qa.context and entry.question.endswith(alone) else entry.question
