"""Checks of texts: personal data, damaged encoding and special tokens, and formats of answers.

Invariant: an example is masked; no personal data that was found is shown or kept in full.
Source: Speer 2019, ftfy, https://doi.org/10.5281/zenodo.2591652
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import zip_longest

from harness.data.cells import find_special
from harness.data.check import DECIDE, CheckContext, Finding, RowTable, Severity
from harness.data.check.personal_data import find_personal_data, mask_text, mask_value
from harness.data.edit.changes import commonest_spellings, several_spellings
from harness.data.edit.clean import mend_encoding, mend_signs
from harness.data.quality import THRESHOLDS, choose_threshold
from harness.errors import as_argument
from harness.formatting import pluralize

_FEWEST_SCORED = 20  # answers, by which the usual one is known


def check_personal_data(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """Count the rows that hold personal data, by kind.

    False alarms: of random digits, one number in ten of the length of a credit card has its check digit, and
    one IBAN-like text in ninety-seven its own; a version of four numbers looks like an IP address; phone
    numbers are those that libphonenumber finds possible in text. Names are not looked for.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in table.entries:
        text = f"{entry.question}\n{entry.answer}"
        for kind, value in find_personal_data(text):
            found.setdefault(kind, []).append((entry.where, mask_value(value)))
    for kind, where in found.items():
        rows = tuple(dict.fromkeys(place for place, _ in where))
        title = f"{kind}: {len(where):,} found"
        meaning = "a model may repeat them to anybody; they may need a legal basis to be trained on"
        example = f"{where[0][0]}: {where[0][1]}"
        yield Finding("warning", title, meaning, rows, example, DECIDE)


_MOST_FAULTS = 0.05  # share of answers, from which low scores are an alarm


def check_quality(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """Score answers that are no labels, and propose the score below which `data clean` drops them.

    False alarms: answers below the proposed score were 12 of 2,996 of Dolly, none of 1,190 of XQuAD and 2,303
    of HH-RLHF, and 32 of 817 of TruthfulQA, of one word each; more than one in twenty are an alarm.
    """
    drawn = [entry for entry in table.draw(given.most) if entry.qa.answers]
    if table.labels or len(drawn) < _FEWEST_SCORED or given.score is None:
        return
    scores = given.score([entry.qa for entry in drawn])
    least = choose_threshold(scores)
    kept = {score: sum(of.score >= score for of in scores) for score in THRESHOLDS}
    low = [(entry, of) for entry, of in zip(drawn, scores, strict=True) if of.score < least]
    traits = ", ".join(f"{trait} {n:,}" for trait, n in Counter(of.trait for _, of in low).most_common())
    curve = ", ".join(f"{score:g} {100 * n / len(drawn):.1f} %" for score, n in kept.items())
    base = as_argument(given.tokenizer.name) if given.tokenizer else ""
    model = f" --perplexity --base {base}" if given.perplexity else ""
    title = f"answers that score below {least:g} of 1 in quality" + (f" ({traits})" if low else "")
    severity: Severity = "warning" if len(low) > _MOST_FAULTS * len(drawn) else "note"
    meaning = (
        "a fine-tune learns to answer so; read some, and measure whether a training without them is better"
    )
    places = tuple(entry.where for entry, _ in low)
    example = f"kept from each score on: {curve}"
    step = f"harness data clean FILE --out OUT --min-quality {least:g}{model}"
    yield Finding(severity, title, meaning, places, example, step, of=len(drawn))


_LOST = "\ufffd"


def check_encoding_damage(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List the rows whose text is damaged, with how it would be fixed, and those that cannot be.

    False alarms: none in 10,003 rows of Banking77, 2,996 of Dolly and 1,190 of XQuAD, where a text counts as
    damaged only if decoding it again gives a shorter one that ftfy finds less odd. A text about chat
    templates holds special tokens on purpose.
    """
    # Only what was encoded wrongly: quotes and widths are left as they are.
    damaged = _find(table, lambda text: mend_encoding(text) != text)
    control = _find(table, lambda text: mend_signs(text) != text)
    lost = _find(table, lambda text: _LOST in text)
    if damaged:
        before = next(iter(damaged.values()))
        meaning = "the model learns to write such signs, and the same word in two spellings"
        example = f"{_cut_around(before)} → {_cut_around(mend_encoding(before))}"
        step = "harness data clean FILE --out OUT"
        yield Finding("error", "damaged encoding", meaning, tuple(damaged), example, step)
    if control:
        first = next(iter(control.values()))
        sign = next(i for i, (a, b) in enumerate(zip_longest(first, mend_signs(first))) if a != b)
        title = "control characters, or line ends other than a line feed"
        meaning = "they are invisible, and the tokenizer turns them into tokens that other rows do not have"
        example = repr(mask_text(first)[max(0, sign - 20) : sign + 20])
        step = "harness data clean FILE --out OUT"
        yield Finding("warning", title, meaning, tuple(control), example, step)
    if lost:
        title = "signs that are lost (U+FFFD)"
        meaning = "nothing brings them back but the file they came from, read in its own encoding"
        example = _cut_around(next(iter(lost.values())))
        step = "harness data clean FILE --out OUT --drop-lost"
        yield Finding("error", title, meaning, tuple(lost), example, step)
    yield from _find_special_tokens(table, given)


def _find_special_tokens(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    own = given.tokenizer.special if given.tokenizer else ()
    answers, prompts = dict[str, str](), dict[str, str]()
    for entry in table.entries:
        of = entry.qa
        if token := find_special([*of.answers, entry.answer], own):
            answers[entry.where] = token
        elif token := find_special((of.question, of.context, of.system), own):
            prompts[entry.where] = token
    learned = "they are read as text: no right answer says so, and a model would learn to write it"
    shown = "they are read as text, and end no turn: often what a template wrote before"
    for rows, what, meaning in ((answers, "answers", learned), (prompts, "prompts", shown)):
        if rows:
            named = sorted(set(rows.values()))
            command = "harness data clean FILE --out OUT --special-tokens"
            if given.tokenizer and not all(find_special([token]) for token in named):
                command += f" --base {as_argument(given.tokenizer.name)}"
            severity: Severity = "error" if rows is answers else "warning"
            title = f"special tokens in {what}: {', '.join(named[:5])}"
            yield Finding(severity, title, meaning, tuple(rows), command=command)


def _find(table: RowTable, is_damaged: Callable[[str], bool]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in table.entries:
        of = entry.qa
        for text in (of.question, of.context, of.system, *of.answers):
            if is_damaged(text):
                found.setdefault(entry.where, text)
    return found


def _cut_around(text: str) -> str:
    """Cut a text to what stands around its first sign beyond ASCII, masked."""
    at = next((i for i, sign in enumerate(text) if not sign.isascii()), 0)
    return mask_text(text)[max(0, at - 20) : at + 20].strip()


def check_answer_formats(table: RowTable, given: CheckContext) -> Iterator[Finding]:
    """List answers with outer white space, and labels in several spellings.

    False alarms: none; both are counts.
    """
    clean = "harness data clean FILE --out OUT"
    cut = f"{clean} --leading-spaces  # unless it is the indentation of code"
    # As the file has them: known layouts are read without white space at an end.
    for where, strip, command in (("behind", str.rstrip, clean), ("in front of", str.lstrip, cut)):
        first_of = ((e, next((t for t in e.spaced if t != strip(t)), "")) for e in table.entries)
        if spaced := [(entry, text) for entry, text in first_of if text]:
            masked = mask_text(spaced[0][1])
            title = f"answers with white space {where} them"
            meaning = "a trainer that reads the file teaches it, and exact match counts it as wrong"
            example = repr(masked[-60:] if where == "behind" else masked[:60])
            yield Finding(
                "warning", title, meaning, tuple(entry.where for entry, _ in spaced), example, command
            )
    answered = [entry for entry in table.entries if entry.answer and table.labels]
    several = several_spellings(entry.answer for entry in answered)
    if commonest := commonest_spellings(several):
        rare = [entry for entry in answered if entry.answer in commonest]
        title = f"{pluralize(len(several), 'label')} in several spellings"
        meaning = "each spelling is a label of its own to a metric and to a classifier"
        places = tuple(entry.where for entry in rare)
        example = ", ".join(f"{spelt!r} {n:,}" for spelt, n in several[0])
        step = (
            f"{clean} --spellings"
            if table.labels_in_rows
            else "no command: labels stand within longer texts; write each in one spelling by hand"
        )
        labels = tuple(commonest[entry.answer] for entry in rare)
        yield Finding("error", title, meaning, places, example, step, labels, of=len(answered))
