"""Cleaning of rows, and decisions on them: what is mended, dropped and why, and that nothing is invented."""

import json
from pathlib import Path

import pytest
from checked_rows import LABELS, alarms, fill_layout, make_clean_rows, run_command, write
from edited_rows import (
    ASKED,
    draw_rows,
    jsonl,
    list_written_rows,
    manifest,
    read,
    read_refusal,
    rows_of,
    run_data,
)
from hypothesis import given
from hypothesis import strategies as st
from test_formats import ROWS as LAYOUT_ROWS
from typer.testing import CliRunner

from harness.cli import app
from harness.data import readers
from harness.data.columns import find_roles
from harness.data.edit.changes import RowDecision, keep_decision, read_decisions
from harness.data.edit.clean import clean, clean_text
from harness.data.text_files import Rows
from harness.errors import UserError
from harness.records import checksum


@pytest.mark.parametrize(
    ("damaged", "mended"),
    [
        ("RÃ¼ckerstattung â€“ ja", "Rückerstattung – ja"),
        ("caf" + "e\u0301", "café"),
        ("ends  \n", "ends"),
        ("one\r\ntwo\x07", "one\ntwo"),
    ],
)
def test_a_damaged_text_is_mended(damaged, mended):
    assert clean_text(damaged)[0] == mended


@pytest.mark.parametrize("text", ["“x” &amp; <b>", "ﬁne ＡＢ", "  indented\n  code", "Ａ 1 ² ³"])
def test_typography_html_and_indents_stay(text):
    assert clean_text(text) == (text, [])


@given(st.text())
def test_cleaning_a_clean_text_changes_nothing(text):
    once = clean_text(text)[0]
    assert clean_text(once) == (once, [])


@given(draw_rows("text", "label", "other"))
def test_every_row_is_written_or_dropped_once_and_in_order(rows):
    outcomes = list(clean(rows, ASKED))
    assert [(o.row or o.change).where for o in outcomes] == [row.where for row in rows]
    for row, (new, change) in zip(rows, outcomes, strict=True):
        assert (new is None) == (bool(change) and change.kind == "dropped")
        assert new is None or new.fields.keys() == row.fields.keys()
        assert new is None or change or new == row


def test_rows_that_ask_or_answer_nothing_are_dropped_with_the_reason():
    rows = rows_of({"text": "a", "label": "x"}, {"text": " ", "label": "x"}, {"text": "b", "label": None})
    outcomes = list(clean(rows, ASKED))
    assert [o.row is None for o in outcomes] == [False, True, True]
    expected = ["r.jsonl:2: dropped, an empty question", "r.jsonl:3: dropped, an empty answer"]
    assert [str(o.change) for o in outcomes[1:]] == expected
    rows = rows_of({"text": "Ann is here.", "entities": [{"text": "Ann"}]}, {"text": "Rain.", "entities": []})
    outcomes = clean(rows, find_roles(Rows("r.jsonl", "r", rows)))
    assert [outcome.row for outcome in outcomes] == rows

    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "  "}]
    rows = rows_of({"messages": turns}, {"messages": [turns[0], {"role": "assistant", "content": "Yes "}]})
    outcomes = list(clean(rows, find_roles(Rows("r.jsonl", "r", rows))))
    assert outcomes[0].change.reason == "an empty answer"
    assert outcomes[1].row.fields["messages"][1]["content"] == "Yes"

    pairs = rows_of(
        {"prompt": "a", "chosen": "x", "rejected": ""}, {"prompt": "a", "chosen": "x", "rejected": "y"}
    )
    assert list_written_rows(clean(pairs, find_roles(Rows("r", "r", pairs)))) == pairs[1:]
    asked = rows_of({"question": "a", "answers": ["", "x"]}, {"question": "a", "answers": []})
    assert list_written_rows(clean(asked, find_roles(Rows("r", "r", asked)))) == asked[:1]

    pairs = rows_of(
        {"prompt": "a", "chosen": "x  y", "rejected": "x y"}, {"prompt": "a", "chosen": "x", "rejected": "y"}
    )
    outcomes = list(clean(pairs, find_roles(Rows("r", "r", pairs))))
    assert (outcomes[0].change.reason, outcomes[1].row) == ("two equal answers", pairs[1])


def test_rows_with_lost_signs_are_dropped_where_that_is_asked_for(data):
    jsonl(Path("r.jsonl"), [{"text": "caf\ufffd", "label": "a"}, {"text": "tea", "label": "b"}])
    assert run_data(data, "clean", "r.jsonl", "--out", "kept.jsonl").startswith("2 read, 2 written\n")
    said = run_data(data, "clean", "r.jsonl", "--drop-lost", "--out", "new.jsonl")
    assert "1 dropped: lost signs (U+FFFD)" in said
    assert read("new.jsonl") == [{"text": "tea", "label": "b"}]


def test_clean_writes_a_new_file_beside_its_manifest_twice_the_same(data):
    Path("t.csv").write_text("text;label;no\nRÃ¼ck;refund;1\n;refund;2\nHi ;card;3\n", encoding="utf-8")
    said = run_data(data, "clean", "t.csv", "--out", "a.csv", "--license", "CC0", "--note", "no names")
    run_data(data, "clean", "t.csv", "--out", "b.csv", "--license", "CC0", "--note", "no names")
    assert said.startswith("3 read, 2 written, 1 dropped, 2 changed\n")
    expected = [{"text": "Rück", "label": "refund", "no": "1"}, {"text": "Hi", "label": "card", "no": "3"}]
    assert read("a.csv") == expected
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()
    told = Path("a.csv.manifest.json").read_text()
    assert told.replace("a.csv", "b.csv") == Path("b.csv.manifest.json").read_text()
    found = manifest("a.csv")
    assert found["inputs"] == [{"file": "t.csv", "sha256": checksum(Path("t.csv"))}]
    assert found["outputs"] == [{"file": "a.csv", "rows": 2, "sha256": checksum(Path("a.csv"))}]
    assert [row["row"] for row in found["rows"]] == ["t.csv:2", "t.csv:3", "t.csv:4"]
    assert (found["licenses"], found["notes"]) == (["CC0"], ["no names"])


def test_a_dry_run_writes_nothing_and_prints_nothing_that_a_terminal_would_obey(data):
    jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x"}, {"prompt": "b", "reference": ""}])
    said = run_data(data, "clean", "r.jsonl", "--dry-run")
    assert "r.jsonl:2: dropped, an empty answer" in said
    assert sorted(p.name for p in Path().iterdir()) == ["r.jsonl"]

    jsonl(Path("r\x1b[31m.jsonl"), [{"text": "a", "label": "b"}])
    code, _, err = data("clean", "r\x1b[31m.jsonl", "--out", "x.jsonl")
    assert (code, "\x1b" in err, "r.jsonl" in err) == (0, False, True)
    assert "\x1b" not in read_refusal(data, "clean", "r\x1b[31m.jsonl", "--out", "r\x1b[31m.jsonl")


def test_decisions_drop_keep_and_relabel(data):
    file = jsonl(Path("r.jsonl"), [{"text": t, "label": "x"} for t in "abc"])
    rows = {"1": {"decision": "drop"}, "2": {"decision": "relabel", "label": "y"}, "3": {"decision": "keep"}}
    Path("d.json").write_text(
        json.dumps({"file": "r.jsonl", "digest": checksum(file), "column": "label", "rows": rows})
    )
    run_data(data, "clean", "r.jsonl", "--decisions", "d.json", "--out", "n.jsonl")
    assert read("n.jsonl") == [{"text": "b", "label": "y"}, {"text": "c", "label": "x"}]
    assert [row["reason"] for row in manifest("n.jsonl")["rows"]] == ["decided", "relabelled in 'label'"]
    expected = [{"file": "d.json", "sha256": checksum(Path("d.json"))}]
    assert manifest("n.jsonl")["parameters"]["decisions"] == expected


@pytest.mark.parametrize(
    ("decisions", "found"),
    [
        ({"digest": "0" * 64, "rows": {}}, "decisions on another content"),
        ({"rows": {"9": {"decision": "drop"}}}, "no row in that line"),
        ({"rows": {"1": {"decision": "mend"}}}, "drop, keep or relabel"),
        ({"rows": {"1": {"decision": "relabel"}}}, "relabel without a label"),
        ({"rows": {"1": {"decision": "relabel", "label": "y"}}}, 'add "column": "label"'),
        ({"rows": 3}, "no decisions"),
    ],
)
def test_decisions_that_do_not_fit_are_refused(data, decisions, found):
    file = jsonl(Path("r.jsonl"), [{"text": "a", "label": "x"}])
    Path("d.json").write_text(json.dumps({"file": "r.jsonl", "digest": checksum(file), **decisions}))
    assert found in read_refusal(data, "clean", "r.jsonl", "--decisions", "d.json", "--out", "n.jsonl")


def write_two_columns(answers="category"):
    """Write three rows with two columns that might answer, and a decision on one of them."""
    rows = [{"text": t, "label": "open", "category": "x"} for t in "abc"]
    digest = checksum(jsonl(Path("r.jsonl"), rows))
    keep_decision("r.jsonl", 2, RowDecision("relabel", "y"), digest, answers)
    return digest


def test_a_label_goes_into_the_column_that_was_looked_at(data):
    write_two_columns()
    words = ("clean", "r.jsonl", "--decisions", "r.jsonl.decisions.json", "--out", "n.jsonl")
    said = read_refusal(data, *words, "--reference", "label")
    assert "labels of the column 'category', where 'label' answers" in said
    run_data(data, *words)
    expected = [("open", "x"), ("open", "y"), ("open", "x")]
    assert [(row["label"], row["category"]) for row in read("n.jsonl")] == expected


def test_lists_in_cells_are_written_as_lists_again(data):
    cells = ("[0, 2]", "['red', \"it's\"]", "[]")
    lines = [f'"text {i} ","{cell}"\n'.replace('"it\'s"', '""it\'s""') for i, cell in enumerate(cells * 5)]
    Path("t.csv").write_text("text,labels\n" + "".join(lines))
    run_data(data, "clean", "t.csv", "--out", "a.csv")
    rows = [row.fields for row in readers.read("a.csv", "train").rows]
    kinds = ([0, 2], ["red", "it's"], [])
    assert rows == [{"text": f"text {i}", "labels": kinds[i % 3]} for i in range(15)]


def write_template_rows(label):
    """Write rows whose label a template makes of two columns, and a decision that relabels one of them."""
    rows = [{"text": f"q{i}", "team": team, "rank": rank} for i, (team, rank) in enumerate(TEAMS)]
    digest = checksum(jsonl(Path("r.jsonl"), rows))
    keep_decision("r.jsonl", 2, RowDecision("relabel", label), digest, "{team}-{rank}")
    return rows


TEAMS = [("card", 1), ("card", 1), ("fee", 2), ("fee", 2)]
OF_TWO = ("clean", "r.jsonl", "--decisions", "r.jsonl.decisions.json", "--out", "n.jsonl", "--prompt", "text")


def test_a_label_of_several_columns_goes_into_all_of_them(data):
    rows = write_template_rows("fee-2")
    run_data(data, *OF_TWO)
    assert read("n.jsonl") == [rows[0], {**rows[1], "team": "fee", "rank": 2}, *rows[2:]]
    (changed,) = manifest("n.jsonl")["rows"]
    assert changed["reason"] == "relabelled in 'team'; relabelled in 'rank'"


def test_a_label_that_does_not_fit_the_columns_that_answer_is_refused(data):
    write_template_rows("fee-3")
    assert "row 2: found the label 'fee-3', which no row has" in read_refusal(data, *OF_TWO)

    write_template_rows("fee-2")
    said = read_refusal(data, *OF_TWO, "--reference", "{rank} of {team}")
    assert "where 'rank', 'team' answer" in said
    assert 'such as "column": "{rank} {team}"' in said


def test_decisions_of_two_columns_or_of_another_making_are_not_kept_in_one_file(data):
    digest = write_two_columns()
    with pytest.raises(
        UserError, match="decisions on the column 'category'; expected those on the column 'label'"
    ):
        keep_decision("r.jsonl", 1, RowDecision("keep"), digest, "label")

    file = jsonl(Path("r.jsonl"), [{"text": "a", "label": "x"}])
    for own in ("my notes", '{"digest": "0", "rows": 3}'):
        Path("r.jsonl.decisions.json").write_text(own)
        with pytest.raises(UserError, match="a file of another making"):
            keep_decision("r.jsonl", 1, RowDecision("keep"), checksum(file))
        assert Path("r.jsonl.decisions.json").read_text() == own


def test_a_template_names_the_columns_that_ask(data):
    rows = [{"subject": "Card", "body": body, "queue": "x"} for body in ("lost", "lost", " ")]
    jsonl(
        Path("r.jsonl"), [*rows, {**rows[0], "subject": "Other"}, {"subject": "", "body": "", "queue": "x"}]
    )
    words = ("--prompt", "{subject}: {body}", "--reference", "queue")
    assert run_data(data, "clean", "r.jsonl", *words, "--out", "c.jsonl").startswith("5 read, 4 written")
    assert run_data(data, "dedup", "c.jsonl", *words, "--out", "n.jsonl").startswith("4 read, 3 written")
    said = read_refusal(data, "clean", "r.jsonl", "--prompt", "{topic}: {body}", "--out", "m.jsonl")
    assert "no column 'topic'" in said


def test_a_relabelled_number_stays_a_number_and_a_label_that_is_none_is_refused(data):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b", "c"], "label": [1, 2, None]}), "r.parquet")
    for line, label, said in (("1", "2", ""), ("1", "two", "'two'"), ("2", "2", "another type")):
        decisions = {"column": "label", "rows": {line: {"decision": "relabel", "label": label}}}
        Path("d.json").write_text(json.dumps({"digest": checksum(Path("r.parquet")), **decisions}))
        words = ("clean", "r.parquet", "--decisions", "d.json", "--out")
        if said:
            assert said in read_refusal(data, *words, "m.parquet")
        else:
            run_data(data, *words, "n.parquet")
            assert [row["label"] for row in read("n.parquet")] == [1, 2]


def test_decisions_on_changed_rows_are_kept_beside_the_new_ones(data):
    file = jsonl(Path("r.jsonl"), [{"text": t, "label": "x"} for t in "abc"])
    before = checksum(file)
    for line in (1, 2):
        keep_decision("r.jsonl", line, RowDecision("drop"), before)
    rows = file.read_text()
    file.write_text(rows + '{"text": "d", "label": "x"}\n')
    with pytest.raises(UserError, match="changed since it was looked at"):
        keep_decision("r.jsonl", 3, RowDecision("keep"), before)
    keep_decision("r.jsonl", 3, RowDecision("keep"), checksum(file))
    assert read_decisions("r.jsonl") == {3: RowDecision("keep")}
    file.write_text(rows)
    assert read_decisions("r.jsonl") == dict.fromkeys((1, 2), RowDecision("drop"))


def test_rows_that_their_layout_cannot_read_are_dropped_with_the_reason(data):
    of = {"instruction": "Who?", "completions": [{"response": "a", "overall_score": 3}]}
    odd = {**of, "completions": [{"response": "a", "overall_score": "N/A"}]}
    jsonl(Path("r.jsonl"), [of, odd, of])
    assert "1 dropped: the rating 'N/A'" in run_data(data, "clean", "r.jsonl", "--out", "n.jsonl")
    thumbs = [{"prompt": "Who?", "completion": "Me", "label": up} for up in (True, False)]
    jsonl(Path("t.jsonl"), thumbs)
    run_data(data, "clean", "t.jsonl", "--out", "m.jsonl")
    assert read("m.jsonl") == thumbs


@pytest.mark.parametrize(
    ("column", "before", "after"),
    [
        ("references", ["x"], ["y"]),
        (
            "messages",
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}],
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "y"}],
        ),
    ],
)
def test_a_decision_relabels_the_one_answer_of_a_list_or_a_conversation(data, column, before, after):
    asks = {} if column == "messages" else {"prompt": "a"}
    digest = checksum(jsonl(Path("r.jsonl"), [{**asks, column: before}]))
    keep_decision("r.jsonl", 1, RowDecision("relabel", "y"), digest, column)
    run_data(data, "clean", "r.jsonl", "--decisions", "r.jsonl.decisions.json", "--out", "n.jsonl")
    assert read("n.jsonl") == [{**asks, column: after}]


TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Refund"}]
ASKS, SAYS = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}
RATED = {
    "instruction": "Who?",
    "completions": [{"response": "Me.", "overall_score": 5}, {"response": "none", "overall_score": 1}],
}
REPLY = {"text": "Me.", "role": "assistant", "replies": []}
SPELT = LAYOUT_ROWS | {
    "UltraFeedback": RATED,
    "OASST": {"message_tree_id": "1", "prompt": {"text": "Who?", "role": "prompter", "replies": [REPLY]}},
    "chat of several turns": {"messages": [*TALK, ASKS, SAYS]},
    "chat of parts": {"messages": [ASKS, {**SAYS, "content": [{"type": "text", "text": "Me."}]}]},
    "references": {"prompt": "Who?", "references": ["Me."]},
    "two columns": {"prompt": "Who?", "reference": "Me.", "references": ["Me."]},
}


@pytest.mark.parametrize("layout", sorted(SPELT.keys() - {"transcript"}))
def test_labels_in_several_spellings_are_mended_in_every_layout(find, tmp_path, layout):
    rows = make_clean_rows(40)
    for i in (0, 4, 8):
        rows[i]["label"] = ("Refund", "REFUND", "refund.")[i // 4]
    found = find([fill_layout(SPELT[layout], *row.values()) for row in rows], "answer_formats")
    (found,) = (f for f in alarms(found) if "spellings" in f.title)
    assert (found.count, found.command.endswith("rows.clean.jsonl --spellings")) == (3, True)
    run_command(found.command)
    mended = [json.loads(line) for line in (tmp_path / "rows.clean.jsonl").read_text().splitlines()]
    assert mended == [fill_layout(SPELT[layout], row["text"], LABELS[i % 4]) for i, row in enumerate(rows)]


def test_a_decision_relabels_no_rated_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digest = checksum(Path(write(tmp_path / "r.jsonl", [SPELT["UltraFeedback"]])))
    keep_decision("r.jsonl", 1, RowDecision("relabel", "refund"), digest, "completions")
    words = "data clean r.jsonl --decisions r.jsonl.decisions.json --out n.jsonl"
    with pytest.raises(
        UserError, match="relabel, where a row has several rated answers; expected drop or keep"
    ):
        CliRunner().invoke(app, words.split(), catch_exceptions=False)
