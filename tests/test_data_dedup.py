"""Removal of duplicates: which rows are equal or alike, which one stays, and what is only reported."""

from pathlib import Path

import pytest
from checked_rows import WORDS, alarms, fill_layout, lines, make_clean_rows
from edited_rows import (
    ASKED,
    LONG,
    draw_rows,
    jsonl,
    list_written_rows,
    manifest,
    read,
    read_refusal,
    rows_of,
    run_data,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats import ROWS as LAYOUT_ROWS

from harness.data import readers
from harness.data.columns import find_roles
from harness.data.edit.dedup import dedup
from harness.data.multiple_choice import has_choices
from harness.data.text_files import Rows


def dedup_texts(*rows, **options):
    """Return what is written, by number, and the changes."""
    made = rows_of(*({"text": text, "label": label} for text, label in rows))
    outcomes = dedup(made, ASKED, **options)
    return [int(row.where[8:]) for row in list_written_rows(outcomes)], [
        str(o.change) for o in outcomes if o.change
    ]


def test_equal_and_nearly_equal_rows_are_dropped_and_name_the_one_that_stays():
    expected = ([1, 2], ["r.jsonl:3: dropped, a duplicate of r.jsonl:1"])
    assert dedup_texts(("Hi there", "x"), ("other", "x"), ("hi  THERE", "X")) == expected
    kept, changes = dedup_texts((LONG, "x"), (LONG + " now", "x"), ("Where is my card?", "x"))
    assert kept == [1, 3]
    assert changes[0].startswith("r.jsonl:2: dropped, a near duplicate of r.jsonl:1 (0.9")

    rows = (LONG, "x"), (f"{LONG} now", "x"), (f"{LONG} NOW", "x")
    kept, changes = dedup_texts(*rows)
    assert kept == [1]
    assert all("of r.jsonl:1 (0.9" in change for change in changes)

    rows = (LONG, "parcel"), (f"{LONG} now", "address"), (f"{LONG} ok", "address")
    kept, changes = dedup_texts(*rows)
    assert kept == [1, 2]
    assert "r.jsonl:3: dropped, a near duplicate of r.jsonl:2" in changes[0]
    assert dedup_texts(*rows, alike=1)[0] == [1, 2, 3]


def test_questions_in_another_context_or_beside_other_tools_are_no_duplicates():
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me"}]
    for name in ("French", "German"):
        system = {"role": "system", "content": f"Answer politely and in {name}"}
        chats = rows_of({"messages": [system, *said]}, {"messages": said})
        assert len(list_written_rows(dedup(chats, find_roles(Rows("r", "r", chats))))) == 2
    choices = rows_of(
        *({"prompt": "Which is larger?", "choices": [a, b], "reference": b} for a, b in ("ab", "cb", "ab"))
    )
    assert (
        list_written_rows(dedup(choices, find_roles(Rows("r", "r", choices)), conflicts="drop"))
        == choices[:2]
    )

    asked = {"role": "user", "content": "What is the weather in Paris?"}
    weather, refund = ({"name": name, "parameters": {}} for name in ("weather", "refund"))
    chats = rows_of(
        *(
            {"messages": [asked, {"role": "assistant", "content": answer}], "tools": tools}
            for answer, tools in (("Rain", [weather]), ("Rain", [weather, refund]), ("Unknown", [refund]))
        )
    )
    roles = find_roles(Rows("r", "r", chats))
    assert list_written_rows(dedup(chats, roles, conflicts="drop")) == chats

    passages = " ".join(f"a{i}" for i in range(30)), " ".join(f"b{i}" for i in range(30))
    rows = rows_of(
        *({"question": "When was it built?", "context": passage, "answer": "1912"} for passage in passages),
        *(
            {"question": q, "context": passages[0], "answer": "1912"}
            for q in ("Who built it?", "when was it built")
        ),
    )
    outcomes = dedup(rows, find_roles(Rows("r", "r", rows)))
    assert [outcome.row is None for outcome in outcomes] == [False, False, False, True]


def test_an_answer_with_two_thumbs_is_a_contradiction_and_no_duplicate():
    rows = rows_of(*({"prompt": "Who?", "completion": "Me", "label": up} for up in (True, False, True)))
    outcomes = dedup(rows, find_roles(Rows("r", "r", rows)))
    assert [o.change.kind for o in outcomes] == ["reported", "reported", "dropped"]


def test_conflicting_answers_are_reported_and_stay_unless_they_are_to_be_dropped():
    rows = ("Where?", "here"), ("other", "x"), ("where?", "there")
    assert dedup_texts(*rows) == (
        [1, 2, 3],
        [
            "r.jsonl:1: reported, another answer to the question of r.jsonl:3",
            "r.jsonl:3: reported, another answer to the question of r.jsonl:1",
        ],
    )
    assert dedup_texts(*rows, conflicts="drop")[0] == [2]


@settings(max_examples=50)
@given(draw_rows("text", "label"), st.sampled_from(["keep", "drop"]))
def test_dedup_keeps_a_row_of_every_kind_and_invents_none(rows, conflicts):
    outcomes = dedup(rows, ASKED, conflicts=conflicts)
    assert [(o.row or o.change).where for o in outcomes] == [row.where for row in rows]
    kept = list_written_rows(outcomes)
    assert [row for row in rows if row in kept] == kept
    places = {row.where for row in kept}
    assert all(o.change.of in places for o in outcomes if o.change and "duplicate" in o.change.reason)
    assert list_written_rows(dedup(kept, ASKED, conflicts=conflicts)) == kept


def test_rows_too_like_a_test_file_are_dropped(data):
    asked = [
        {"text": LONG, "label": "x"},
        {"text": "Where is my card?", "label": "x"},
        {"text": "Fees", "label": "x"},
    ]
    jsonl(Path("r.jsonl"), asked)
    Path("t.csv").write_text(f"prompt,reference\nwhere is my card?,card\n{LONG} now,parcel\n")
    said = run_data(data, "dedup", "r.jsonl", "--against", "t.csv", "--out", "n.jsonl")
    assert said.startswith("3 read, 1 written, 2 dropped")
    assert [(row["reason"], row["of"]) for row in manifest("n.jsonl")["rows"]] == [
        ("in the test file by words in common", "t.csv:3"),
        ("a question of the test file", "t.csv:2"),
    ]
    run_data(data, "dedup", "r.jsonl", "--against", "t.csv", "--out", "m.jsonl")
    assert Path("m.jsonl").read_bytes() == Path("n.jsonl").read_bytes()
    shown = read_refusal(data, "dedup", "r.jsonl", "--against", "t.csv", "--out", "t.csv")
    assert "never changed in place" in shown


def test_trees_that_go_on_otherwise_are_no_duplicates_and_answers_in_another_order_are():
    def tree(end):
        said = {"role": "prompter", "text": "And?", "replies": [{"role": "assistant", "text": end}]}
        first = {"role": "assistant", "text": "Me", "replies": [said]}
        return {"message_tree_id": "a", "prompt": {"role": "prompter", "text": "Who?", "replies": [first]}}

    rows = rows_of(tree("yes"), tree("no"), tree("yes"))
    assert list_written_rows(dedup(rows, find_roles(Rows("r", "r", rows)))) == rows[:2]
    rows = rows_of({"question": "Who?", "answers": ["a", "b"]}, {"question": "Who?", "answers": ["b", "a"]})
    assert list_written_rows(dedup(rows, find_roles(Rows("r", "r", rows)))) == rows[:1]


def test_ids_in_front_do_not_hide_equal_texts(data):
    said = [
        f"{text} {text[::-1]} q{i}w" for i, text in enumerate(("one two", "my card", "a fee", "old pin") * 3)
    ]
    rows = [{"text": f"Ticket {100 + i * 7}: {text}", "label": "x"} for i, text in enumerate((*said, *said))]
    jsonl(Path("r.jsonl"), rows)
    assert run_data(data, "dedup", "r.jsonl", "--out", "n.jsonl").startswith("24 read, 12 written")
    run_data(data, "split", "r.jsonl", "--shares", "0.5,0,0.5", "--out", "parts")
    train, test = (
        {row["text"].partition(": ")[2] for row in read(f"parts/{n}.jsonl")} for n in ("train", "test")
    )
    assert not train & test


def test_templates_and_names_with_braces_say_which_columns_ask(data):
    rows = [{"subject": f"s{i} q{i * i}w", "body": f"b{i} v{i}u", "label": "ab"[i % 2]} for i in range(20)]
    jsonl(Path("train.jsonl"), rows)
    jsonl(Path("test.jsonl"), rows[:6])
    named = ("--prompt", "{subject}: {body}", "--reference", "label")
    said = run_data(data, "dedup", "train.jsonl", *named, "--against", "test.jsonl", "--out", "n.jsonl")
    assert said.startswith("20 read, 14 written")
    rows = [{"{{ticket}}": f"{i * i} q{i}w v{i}u", "label": "ab"[i % 2]} for i in range(20)]
    jsonl(Path("r.jsonl"), [*rows, rows[3]])
    assert run_data(data, "dedup", "r.jsonl", "--out", "m.jsonl").startswith("21 read, 20 written")


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
