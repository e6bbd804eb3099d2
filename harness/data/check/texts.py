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
from harness.data.edit.clean import fix_encoding, fix_signs
from harness.data.edit.dedup import NormalizedRow, fold_row, near_repeats, stand_on_same
from harness.data.examples import SourcedExample
from harness.data.near_duplicates import THRESHOLD
from harness.data.row_traits import THRESHOLDS
from harness.data.text_files import find_special
from harness.errors import as_argument
from harness.formatting import pluralize

_FEWEST_SCORED = 20  # answers; fewer do not show the usual answer


def check_personal_data(table: RowTable, context: CheckContext) -> Iterator[Finding]:
    """Count the rows with personal data, by kind.

    False alarms: one random number in ten of a card's length, one in ninety-seven of an IBAN's.
    """
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for entry in table.entries:
        for kind, value in find_personal_data(f"{entry.question}\n{entry.answer}"):
            by_kind.setdefault(kind, []).append((entry.where, mask_value(value)))
    for kind, placed_values in by_kind.items():
        rows = tuple(dict.fromkeys(place for place, _ in placed_values))
        title = f"{kind}: {len(placed_values):,} found"
        meaning = "a model may repeat them to anybody; they may need a legal basis to be trained on"
        example = f"{placed_values[0][0]}: {placed_values[0][1]}"
        yield Finding("warning", title, meaning, rows, example, DECIDE)


_MOST_FAULTS = 0.05  # share of answers above which low scores are an alarm


def check_quality(table: RowTable, context: CheckContext) -> Iterator[Finding]:
    """Score answers that are not labels, and propose the score below which `data clean` drops them.

    False alarms: 44 of 7,306 answers of four sets were below the proposed score; over 5 % is an alarm.
    """
    entries = [entry for entry in table.draw(context.most) if entry.qa.answers]
    if table.labels or len(entries) < _FEWEST_SCORED or context.score is None:
        return
    scores = context.score([entry.qa for entry in entries])
    # Propose the score at which a tenth more or less drops the fewest other answers; of ties, the middle.
    n_near = {t: sum(t - 0.1 <= quality.score < t + 0.1 for quality in scores) for t in THRESHOLDS[1:-1]}
    flattest = [t for t, n in n_near.items() if n == min(n_near.values())]
    min_score = flattest[len(flattest) // 2]
    n_kept = {score: sum(quality.score >= score for quality in scores) for score in THRESHOLDS}
    low_rows = [(entry, q.trait) for entry, q in zip(entries, scores, strict=True) if q.score < min_score]
    traits = ", ".join(f"{trait} {n:,}" for trait, n in Counter(trait for _, trait in low_rows).most_common())
    curve = ", ".join(f"{score:g} {100 * n / len(entries):.1f} %" for score, n in n_kept.items())
    title = f"answers that score below {min_score:g} of 1 in quality" + (f" ({traits})" if low_rows else "")
    severity: Severity = "warning" if len(low_rows) > _MOST_FAULTS * len(entries) else "note"
    meaning = "a fine-tune learns to answer so; read some, and measure a training without them"
    places = tuple(entry.where for entry, _ in low_rows)
    example = f"kept from each score on: {curve}"
    step = f"harness data clean FILE --out OUT --min-quality {min_score:g}{context.score_options}"
    yield Finding(severity, title, meaning, places, example, step, of=len(entries))


_LOST = "\ufffd"


def _cut_question(entry: TableEntry) -> str:
    text = excerpt(" ".join(entry.qa.question.split()), 61)
    return repr(text if len(text) <= 60 else f"{text[:59]}…")


def check_encoding_damage(table: RowTable, context: CheckContext) -> Iterator[Finding]:
    """List the rows with damaged text, with its repair, and those that cannot be repaired.

    False alarms: none in 14,189 rows of Banking77, Dolly and XQuAD, but texts about chat templates.
    """
    tests: tuple[Callable[[str], bool], ...] = (
        lambda text: fix_encoding(text) != text,
        lambda text: fix_signs(text) != text,
        lambda text: _LOST in text,
    )
    damage, controls, losses = groups = dict[str, str](), dict[str, str](), dict[str, str]()  # texts by place
    for entry in table.entries:
        qa = entry.qa
        for text in (qa.question, qa.context, qa.system, *qa.answers):
            for texts, is_damaged in zip(groups, tests, strict=True):
                if is_damaged(text):
                    texts.setdefault(entry.where, text)
    clean_command = "harness data clean FILE --out OUT"

    def cut_around(text: str) -> str:  # its first sign beyond ASCII, masked
        index = next((i for i, sign in enumerate(text) if not sign.isascii()), 0)
        return mask_text(text)[max(0, index - 20) : index + 20].strip()

    if damage:
        damaged_text = next(iter(damage.values()))
        meaning = "the model learns to write such signs, and the same word in two spellings"
        example = f"{cut_around(damaged_text)} → {cut_around(fix_encoding(damaged_text))}"
        yield Finding("error", "damaged encoding", meaning, tuple(damage), example, clean_command)
    if controls:
        sample = next(iter(controls.values()))
        sign = next(i for i, (a, b) in enumerate(zip_longest(sample, fix_signs(sample))) if a != b)
        title = "control characters, or line ends other than a line feed"
        meaning = "they are invisible, and the tokenizer turns them into tokens that other rows do not have"
        example = repr(mask_text(sample)[max(0, sign - 20) : sign + 20])
        yield Finding("warning", title, meaning, tuple(controls), example, clean_command)
    if losses:
        title = "signs that are lost (U+FFFD)"
        meaning = "nothing brings them back but the file they came from, read in its own encoding"
        example = cut_around(next(iter(losses.values())))
        yield Finding("error", title, meaning, tuple(losses), example, f"{clean_command} --drop-lost")
    own_tokens = context.tokenizer.special if context.tokenizer else ()
    answers, prompts = dict[str, str](), dict[str, str]()  # the first token of each row, by its place
    for entry in table.entries:
        qa = entry.qa
        if token := find_special([*qa.answers, entry.answer], own_tokens):
            answers[entry.where] = token
        elif token := find_special((qa.question, qa.context, qa.system), own_tokens):
            prompts[entry.where] = token
    answer_meaning = "they are read as text: no right answer says so, and a model would learn to write it"
    prompt_meaning = "they are read as text, and end no turn: often what a template wrote before"
    for rows, part, meaning in ((answers, "answers", answer_meaning), (prompts, "prompts", prompt_meaning)):
        if rows:
            tokens = sorted(set(rows.values()))
            command = f"{clean_command} --special-tokens"
            if context.tokenizer and not all(find_special([token]) for token in tokens):
                command += f" --base {as_argument(context.tokenizer.name)}"
            severity: Severity = "error" if rows is answers else "warning"
            title = f"special tokens in {part}: {', '.join(tokens[:5])}"
            yield Finding(severity, title, meaning, tuple(rows), command=command)


def check_answer_formats(table: RowTable, context: CheckContext) -> Iterator[Finding]:
    """List answers with outer white space, and labels in several spellings. False alarms: none."""
    clean_command = "harness data clean FILE --out OUT"
    leading = f"{clean_command} --leading-spaces  # unless it is the indentation of code"
    for side, strip, command in (("behind", str.rstrip, clean_command), ("in front of", str.lstrip, leading)):
        spaced_texts = ((e, next((t for t in e.spaced if t != strip(t)), "")) for e in table.entries)
        if spaced_rows := [(entry, text) for entry, text in spaced_texts if text]:
            masked_text = mask_text(spaced_rows[0][1])
            title = f"answers with white space {side} them"
            meaning = "a trainer that reads the file teaches it, and exact match counts it as wrong"
            example = repr(masked_text[-60:] if side == "behind" else masked_text[:60])
            yield Finding("warning", title, meaning, tuple(e.where for e, _ in spaced_rows), example, command)
    labelled_entries = [entry for entry in table.entries if entry.answer and table.labels]
    spellings = several_spellings(entry.answer for entry in labelled_entries)
    if commonest := commonest_spellings(spellings):
        rare_entries = [entry for entry in labelled_entries if entry.answer in commonest]
        title = f"{pluralize(len(spellings), 'label')} in several spellings"
        meaning = "each spelling is a label of its own to a metric and to a classifier"
        places = tuple(entry.where for entry in rare_entries)
        example = ", ".join(f"{spelling!r} {n:,}" for spelling, n in spellings[0])
        labels = tuple(commonest[entry.answer] for entry in rare_entries)
        step = f"{clean_command} --spellings"
        yield Finding("error", title, meaning, places, example, step, labels, of=len(labelled_entries))


def check_repeated_rows(table: RowTable, context: CheckContext) -> Iterator[Finding]:
    """List rows that repeat an earlier one, exactly or nearly.

    False alarms: none of exact ones; reports/data_check.md counts those of near ones.
    """
    _, first_rows, inverse = np.unique(table.digests, axis=0, return_index=True, return_inverse=True)
    earlier_rows = first_rows[inverse.ravel()]
    copies = np.flatnonzero(earlier_rows != np.arange(len(table.digests)))
    if len(copies):
        title = "exact duplicates of an earlier row"
        meaning = "repeated rows count twice in training, and set aside for test they contaminate it"
        places = tuple(table.places[int(i)] for i in copies)
        example = f"{table.places[int(copies[0])]} repeats {table.places[int(earlier_rows[copies[0]])]}"
        step = "harness data dedup FILE --out OUT"
        related = tuple(table.places[int(earlier_rows[i])] for i in copies)
        yield Finding(
            "warning", title, meaning, places, example, step, related=related, of=len(table.digests)
        )
    entry_by_row: dict[NormalizedRow, TableEntry] = {}
    for entry in table.entries:
        entry_by_row.setdefault(fold_row(entry.qa), entry)
    entries = list(entry_by_row.values())
    groups = near_repeats([entry.qa for entry in entries])  # as `data dedup` drops them
    numbers = sorted((i, group.kept, jaccard) for group in groups for i, jaccard in group.others)
    if near_pairs := [(entries[i], entries[earlier_entry], jaccard) for i, earlier_entry, jaccard in numbers]:
        row, earlier_entry, jaccard = max(near_pairs, key=lambda pair: pair[2])
        title = f"near duplicates of an earlier row (Jaccard index of {THRESHOLD:g} or more)"
        meaning = "they add little to learn from, and set aside for test they contaminate it"
        places = tuple(row.where for row, _, _ in near_pairs)
        questions = f"{_cut_question(row)} / {_cut_question(earlier_entry)}"
        example = f"{row.where} is {100 * jaccard:.0f} % {earlier_entry.where}: {questions}"
        step = "harness data dedup FILE --out OUT"
        related = tuple(f"{k.where} ({100 * a:.0f} %): {_cut_question(k)}" for _, k, a in near_pairs)
        yield Finding("warning", title, meaning, places, example, step, related=related)
    if context.encode:
        near_places = {row.where for row, _, _ in near_pairs}
        singles = [entry for entry in entries if entry.where not in near_places]
        chosen = sorted(random.Random("sense").sample(range(len(singles)), min(context.most, len(singles))))
        sample = [singles[i] for i in chosen]

        def may_repeat(i: int, j: int) -> bool:
            has_same_label = not table.labels or sample[i].answer == sample[j].answer
            return has_same_label and stand_on_same(sample[i].qa, sample[j].qa)

        repeats = repeats_by_sense([entry.qa.question for entry in sample], context.encode, may_repeat)
        if pairs := [(sample[i], sample[j], cosine) for i, j, cosine in repeats]:
            row, earlier_entry, cosine = max(pairs, key=lambda pair: pair[2])
            note = f", of {len(sample):,} sampled" if len(sample) < len(singles) else ""
            title = f"rows that may repeat an earlier question, by sense (cosine from {EMBEDDINGS:g}{note})"
            meaning = "read some: they add little to learn from, and set aside for test they contaminate it"
            places = tuple(row.where for row, _, _ in pairs)
            questions = f"{_cut_question(row)} / {_cut_question(earlier_entry)}"
            example = f"{row.where} and {earlier_entry.where} ({cosine:.2f}): {questions}"
            related = tuple(f"{e.where} (embeddings {c:.2f}): {_cut_question(e)}" for _, e, c in pairs)
            step, n = DECIDE_BY_SENSE, len(sample)
            yield Finding("warning", title, meaning, places, example, step, related=related, of=n)


def check_conflicting_answers(table: RowTable, context: CheckContext) -> Iterator[Finding]:
    """List the rows whose question has another answer elsewhere.

    False alarms: none for labels; a question with two texts as answers may have two right ones: a note.
    """
    questions, answers = table.digests[:, 0], table.digests[:, 1]
    _, first_rows, inverse = np.unique(questions, return_index=True, return_inverse=True)
    differs = answers != answers[first_rows[inverse]]
    groups = np.unique(inverse[differs])
    rows = np.flatnonzero(np.isin(inverse, groups))
    if not len(rows) or not any(entry.answer for entry in table.entries):
        return
    by_place = {entry.where: entry for entry in table.entries}
    other_row = {inverse[i]: i for i in reversed(np.flatnonzero(differs))}
    pairs = [(int(i), int(first_rows[inverse[i]] if differs[i] else other_row[inverse[i]])) for i in rows]
    related = [
        f"{where}, which answers {excerpt(by_place[where].answer, 40)!r}" if where in by_place else where
        for where in (table.places[i] for _, i in pairs)
    ]
    example, place = "", table.places[pairs[0][0]]
    if place in by_place:
        question = excerpt(" ".join(by_place[place].question.split()), 60)
        example = f"{question!r}: {place} answers {excerpt(by_place[place].answer, 40)!r} and {related[0]}"
    command = "harness data dedup FILE --conflicts drop --out OUT  # all; the Data page decides one by one"
    severity: Severity = "error" if table.labels else "note"
    title = f"{pluralize(len(groups), 'question')} with different answers"
    meaning = "several answers may be right; a metric that compares with one reference takes others for wrong"
    if table.labels:
        meaning = "one of them is wrong, or the question does not hold what decides"
    places = tuple(table.places[i] for i, _ in pairs)
    step, n = command if table.labels else "", len(table.digests)
    yield Finding(severity, title, meaning, places, example, step, related=tuple(related), of=n)


def check_test_leaks(table: RowTable, context: CheckContext) -> Iterator[Finding]:
    """List training rows that a test row repeats, exactly or in other words, and augmented test rows.

    False alarms: of exact ones none, of the others 5 % of look-alikes (reports/data_check.md).
    """
    if context.test is None:
        return
    if augmented_places := tuple(entry.where for entry in context.test.entries if entry.is_augmented):
        title = "augmented rows in the test, which a comparison refuses"
        meaning = "a row made from another one is not evidence of its own, and it may repeat a training row"
        step = "test on the rows without a text in augmented_from, and train on the others"
        n_test = len(context.test.entries)
        yield Finding("error", title, meaning, augmented_places, augmented_places[0], step, of=n_test)
    rows = [SourcedExample(entry.example, entry.where) for entry in table.entries]
    items = [SourcedExample(entry.example, entry.where) for entry in context.test.entries]
    exact_rows = find_contaminated_rows(rows, items)
    exact_places = {row.training.where for row in exact_rows}
    entries = [entry for entry in table.entries if entry.where not in exact_places]
    overlapping = overlaps(
        list(map(_bare_question, entries)),
        list(map(_bare_question, context.test.entries)),
        answers=[entry.answer for entry in entries],
        encode=context.encode,
    )
    matches = [(entries[o.training].where, context.test.entries[o.evaluated], o) for o in overlapping]
    # Dedup compares words, so matches of embeddings alone are decided row by row.
    sense_matches = [pair for pair in matches if pair[2].measure == "embeddings"]
    word_matches = [pair for pair in matches if pair[2].measure != "embeddings"]
    against = " ".join(f"--against {as_argument(file)}" for file in context.test.files)
    command = f"harness data dedup FILE {against} --out OUT"
    if exact_rows:
        first = exact_rows[0]
        question = excerpt(" ".join(first.training.example.prompt.split()), 60)
        title = "training rows that a test row repeats"
        meaning = "the score on test counts what was learned by heart"
        places = tuple(row.training.where for row in exact_rows)
        example = f"{first.training.where} has the question of {first.evaluated.where}: {question!r}"
        related = tuple(f"{row.evaluated.where}, with the same question" for row in exact_rows)
        yield Finding("error", title, meaning, places, example, command, related=related)
    if word_matches:
        yield _report_similar(word_matches, "in other words", command)
    if sense_matches:
        page_note = f"page, where the target's `test:` is {', '.join(context.test.files)},"
        yield _report_similar(sense_matches, "by sense", DECIDE_BY_SENSE.replace("page,", page_note))


def _report_similar(pairs: Sequence[tuple[str, TableEntry, Overlap]], manner: str, command: str) -> Finding:
    """List training rows by their places, each with its similar test row."""
    places = [f"{item.where} ({o.measure} {o.similarity:.2f})" for _, item, o in pairs]
    questions = [excerpt(" ".join(_bare_question(item).split()), 80) for _, item, _ in pairs]
    rows = tuple(where for where, *_ in pairs)
    title = f"training rows whose question may be that of a test row, {manner}"
    meaning = "read the closest pairs: a contaminated row counts what was learned by heart, others do not"
    example = "; ".join(f"{row} and {place}" for row, place in zip(rows[:3], places, strict=False))
    related = tuple(f"{place}: {question!r}" for place, question in zip(places, questions, strict=True))
    return Finding("warning", title, meaning, rows, example, command, related=related)


def _bare_question(entry: TableEntry) -> str:
    """Return the question without its context, which rows may share."""
    question = entry.qa.question
    return question if entry.qa.context and entry.question.endswith(question) else entry.question
