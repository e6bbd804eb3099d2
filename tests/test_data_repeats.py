"""Repeated rows by one rule: what `data check` names as repeated is what `data dedup` drops, in every layout."""

import pytest
from checked_rows import WORDS, alarms, fill_layout, lines, make_clean_rows
from edited_rows import LONG
from test_formats import ROWS as LAYOUT_ROWS

from harness.data import readers
from harness.data.columns import find_roles
from harness.data.edit.dedup import dedup
from harness.data.multiple_choice import has_choices

OTHERS = [f"{WORDS[i]} {WORDS[2 * i]} {WORDS[-i]} {WORDS[-2 * i]}?" for i in range(1, 30)]
PRIMARY = "Name a primary colour of light."


def list_dropped_rows(path, **named):
    content = readers.read(path, "train")
    outcomes = dedup(content.rows, find_roles(content, **named))
    return [i for i, outcome in enumerate(outcomes, start=1) if outcome.row is None]


def list_repeated_rows(find, rows, **named):
    return sorted(line for f in alarms(find(rows, "repeated_rows", **named)) for line in lines(f))


@pytest.mark.parametrize("layout", LAYOUT_ROWS)
def test_the_check_names_what_dedup_drops(find, tmp_path, layout):
    """An equal row and a near one repeat; the same question with another answer repeats nothing."""
    asked = [(question, f"It is {question[:9]}") for question in OTHERS]
    asked += [
        (LONG, "Blue."),
        (PRIMARY, "red"),
        (PRIMARY, "blue"),
        (LONG.upper(), "blue."),
        (f"{LONG} now", "Blue."),
    ]
    asked += [
        (f"{LONG} now", "Green."),
        (f"{LONG} ok", f"{LONG} {WORDS[3]}"),
        (f"{LONG} so", f"{LONG} {WORDS[4]}"),
    ]
    rows = [fill_layout(LAYOUT_ROWS[layout], *of) for of in asked]
    n = len(OTHERS)
    # Of questions with choices a rarer answer stands among others, which make another question of it.
    repeats = [n + 5] if has_choices({*LAYOUT_ROWS[layout]}) else [n + 4, n + 5, n + 8]
    assert list_repeated_rows(find, rows) == list_dropped_rows(str(tmp_path / "rows.jsonl")) == repeats


def test_pairs_with_another_rejected_answer_repeat_nothing(find, tmp_path):
    rows = [{"prompt": q, "chosen": "Yes, of course.", "rejected": "No."} for q in OTHERS]
    rows += [{**rows[0], "rejected": "Never."}, {**rows[1], "rejected": "no."}]
    assert list_repeated_rows(find, rows) == list_dropped_rows(str(tmp_path / "rows.jsonl")) == [len(rows)]


def test_labels_that_are_nearly_equal_are_two_answers(find, tmp_path):
    rows = [{**row, "label": f"card {row['label']} not received"} for row in make_clean_rows(60)]
    rows += [
        {"text": LONG, "label": "card refund not received"},
        {"text": f"{LONG} now", "label": "card refunds not received"},
    ]
    rows += [{"text": f"{LONG} ok", "label": "Card refund not received."}]
    assert list_repeated_rows(find, rows) == list_dropped_rows(str(tmp_path / "rows.jsonl")) == [63]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("for i in values:\n    print(i)", "for i in values:\nprint(i)"),
        ("if found:\n    stop()\n    tell(all_of_them)", "if found:\n    stop()\ntell(all_of_them)"),
        ("ls -L", "ls -l"),
        ("tar --create --file x.tar folder", "tar --Create --file x.tar folder"),
    ],
)
def test_code_that_differs_in_indentation_or_options_repeats_nothing(find, tmp_path, one, other):
    asked = [(question, "Yes") for question in OTHERS] + [(one, "Yes"), (other, "Yes")]
    for flipped in (False, True):
        rows = [
            dict(zip(("prompt", "completion"), of[::-1] if flipped else of, strict=True)) for of in asked[-2:]
        ]
        rows = [*({"prompt": question, "completion": question[:6]} for question in OTHERS), *rows]
        assert list_repeated_rows(find, rows) == list_dropped_rows(str(tmp_path / "rows.jsonl")) == []
