"""Edits of rows: what is written, what is dropped and why, and that nothing is invented or half-written."""

import gzip
import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_formats import ROWS as LAYOUT_ROWS

from harness.cli import main
from harness.data import readers
from harness.data.columns import Roles, asked, find_roles
from harness.data.contamination import fold_text
from harness.data.edit.change import written
from harness.data.edit.clean import clean, clean_text
from harness.data.edit.decisions import Decision, keep_decision, kept_decisions
from harness.data.edit.dedup import dedup
from harness.data.edit.mix import Mixture, mix, shares
from harness.data.edit.sample import sample
from harness.data.edit.split import Way, split
from harness.data.formats import every_turn
from harness.data.readers import Row, Rows
from harness.errors import UserError
from harness.records import checksum

ASKED = Roles(("text",), ("label",))
WORDS = st.text(st.sampled_from("ab é\u0301Ã¼\x07“ "), max_size=5)


def rows_of(*fields):
    return [Row(f"r.jsonl:{i}", of) for i, of in enumerate(fields, start=1)]


def some_rows(*columns):
    return st.lists(st.fixed_dictionaries(dict.fromkeys(columns, WORDS)), max_size=8).map(
        lambda f: rows_of(*f)
    )


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path, monkeypatch, capsys):
    """Return `harness data` in a folder; it gives the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["harness", "data", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    return command


def done(data, *words):
    code, out, err = data(*words)
    assert code == 0, err
    return out


def refused(data, *words):
    """Return the error of a command that is refused, and assert that it wrote nothing."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    code, _, err = data(*words)
    assert code == 2, err
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    return err.splitlines()[-1]


def read(path):
    return [row.fields for row in readers.read(str(path), "train").rows]


def manifest(path):
    return json.loads(Path(f"{path}.manifest.json").read_text())


# Clean


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


@given(some_rows("text", "label", "other"))
def test_every_row_is_written_or_dropped_once_and_in_order(rows):
    outcomes = list(clean(rows, ASKED))
    assert [(o.row or o.change).where for o in outcomes] == [row.where for row in rows]
    for row, (new, change) in zip(rows, outcomes, strict=True):
        assert (new is None) == (bool(change) and change.kind == "dropped")
        assert new is None or new.fields.keys() == row.fields.keys()
        assert new is None or change or new == row


def test_rows_without_question_or_answer_are_dropped_and_named():
    rows = rows_of({"text": "a", "label": "x"}, {"text": " ", "label": "x"}, {"text": "b", "label": None})
    outcomes = list(clean(rows, ASKED))
    assert [o.row is None for o in outcomes] == [False, True, True]
    assert [str(o.change) for o in outcomes[1:]] == [
        "r.jsonl:2: dropped, an empty question",
        "r.jsonl:3: dropped, an empty answer",
    ]


def test_a_conversation_ends_with_its_answer():
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "  "}]
    rows = rows_of({"messages": turns}, {"messages": [turns[0], {"role": "assistant", "content": "Yes "}]})
    outcomes = list(clean(rows, find_roles(Rows("r.jsonl", "r", rows))))
    assert outcomes[0].change.reason == "an empty answer"
    assert outcomes[1].row.fields["messages"][1]["content"] == "Yes"


def test_a_pair_needs_both_answers_and_a_question_one():
    pairs = rows_of(
        {"prompt": "a", "chosen": "x", "rejected": ""}, {"prompt": "a", "chosen": "x", "rejected": "y"}
    )
    assert written(clean(pairs, find_roles(Rows("r", "r", pairs)))) == pairs[1:]
    asked = rows_of({"question": "a", "answers": ["", "x"]}, {"question": "a", "answers": []})
    assert written(clean(asked, find_roles(Rows("r", "r", asked)))) == asked[:1]


def test_a_pair_of_equal_answers_is_dropped_as_it_says_nothing():
    pairs = rows_of(
        {"prompt": "a", "chosen": "x  y", "rejected": "x y"}, {"prompt": "a", "chosen": "x", "rejected": "y"}
    )
    outcomes = list(clean(pairs, find_roles(Rows("r", "r", pairs))))
    assert (outcomes[0].change.reason, outcomes[1].row) == ("two equal answers", pairs[1])


def test_rows_with_lost_signs_are_dropped_where_that_is_asked_for(data):
    jsonl(Path("r.jsonl"), [{"text": "caf\ufffd", "label": "a"}, {"text": "tea", "label": "b"}])
    assert done(data, "clean", "r.jsonl", "--out", "kept.jsonl").startswith("2 read, 2 written\n")
    assert "1 dropped: lost signs (U+FFFD)" in done(
        data, "clean", "r.jsonl", "--drop-lost", "--out", "new.jsonl"
    )
    assert read("new.jsonl") == [{"text": "tea", "label": "b"}]


def test_what_a_terminal_would_obey_is_not_printed(data):
    jsonl(Path("r\x1b[31m.jsonl"), [{"text": "a", "label": "b"}])
    code, _, err = data("clean", "r\x1b[31m.jsonl", "--out", "x.jsonl")
    assert (code, "\x1b" in err, "r.jsonl" in err) == (0, False, True)
    assert "\x1b" not in refused(data, "clean", "r\x1b[31m.jsonl", "--out", "r\x1b[31m.jsonl")


def test_clean_writes_a_new_file_beside_its_manifest_twice_the_same(data):
    Path("t.csv").write_text("text;label;no\nRÃ¼ck;refund;1\n;refund;2\nHi ;card;3\n", encoding="utf-8")
    said = done(data, "clean", "t.csv", "--out", "a.csv", "--license", "CC0", "--note", "no names")
    done(data, "clean", "t.csv", "--out", "b.csv", "--license", "CC0", "--note", "no names")
    assert said.startswith("3 read, 2 written, 1 dropped, 2 changed\n")
    assert read("a.csv") == [
        {"text": "Rück", "label": "refund", "no": "1"},
        {"text": "Hi", "label": "card", "no": "3"},
    ]
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()
    told = Path("a.csv.manifest.json").read_text()
    assert told.replace("a.csv", "b.csv") == Path("b.csv.manifest.json").read_text()
    found = manifest("a.csv")
    assert found["inputs"] == [{"file": "t.csv", "sha256": checksum(Path("t.csv"))}]
    assert found["outputs"] == [{"file": "a.csv", "rows": 2, "sha256": checksum(Path("a.csv"))}]
    assert [row["row"] for row in found["rows"]] == ["t.csv:2", "t.csv:3", "t.csv:4"]
    assert (found["licenses"], found["notes"]) == (["CC0"], ["no names"])


def test_licence_and_notes_are_carried_along(data):
    jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x"}])
    done(data, "clean", "r.jsonl", "--out", "a.jsonl", "--license", "CC0")
    done(data, "clean", "a.jsonl", "--out", "b.jsonl", "--note", "no names")
    assert (manifest("b.jsonl")["licenses"], manifest("b.jsonl")["notes"]) == (["CC0"], ["no names"])


def test_a_dry_run_prints_the_changes_and_writes_nothing(data):
    jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x"}, {"prompt": "b", "reference": ""}])
    said = done(data, "clean", "r.jsonl", "--dry-run")
    assert "r.jsonl:2: dropped, an empty answer" in said
    assert sorted(p.name for p in Path().iterdir()) == ["r.jsonl"]


@pytest.mark.parametrize("name", ["n.jsonl", "n.json", "n.jsonl.gz", "n.parquet"])
def test_types_columns_and_order_stay(data, name):
    rows = [{"prompt": "b", "reference": "x", "n": 2, "w": 0.5, "tags": ["u"], "ok": True}] * 2
    rows.append({"prompt": "a", "reference": "y", "n": None, "w": 1.0, "tags": [], "ok": False})
    jsonl(Path("r.jsonl"), rows)
    done(data, "clean", "r.jsonl", "--out", name)
    assert read(name) == rows
    done(data, "clean", name, "--out", "again.jsonl")
    assert read("again.jsonl") == rows


def test_types_of_parquet_stay(data):
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(
        [
            ("prompt", pyarrow.large_string()),
            ("reference", pyarrow.string()),
            ("n", pyarrow.int8()),
            ("t", "date32"),
        ]
    )
    made = pyarrow.Table.from_pylist([{"prompt": "a ", "reference": "x", "n": 1, "t": None}] * 3, schema)
    pyarrow.parquet.write_table(made, "r.parquet")
    done(data, "clean", "r.parquet", "--out", "n.parquet")
    assert pyarrow.parquet.read_schema("n.parquet") == schema


def test_decisions_drop_keep_and_relabel(data):
    file = jsonl(Path("r.jsonl"), [{"text": t, "label": "x"} for t in "abc"])
    rows = {"1": {"decision": "drop"}, "2": {"decision": "relabel", "label": "y"}, "3": {"decision": "keep"}}
    Path("d.json").write_text(
        json.dumps({"file": "r.jsonl", "digest": checksum(file), "column": "label", "rows": rows})
    )
    done(data, "clean", "r.jsonl", "--decisions", "d.json", "--out", "n.jsonl")
    assert read("n.jsonl") == [{"text": "b", "label": "y"}, {"text": "c", "label": "x"}]
    assert [row["reason"] for row in manifest("n.jsonl")["rows"]] == ["decided", "relabelled in 'label'"]
    assert manifest("n.jsonl")["parameters"]["decisions"] == [
        {"file": "d.json", "sha256": checksum(Path("d.json"))}
    ]


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
    assert found in refused(data, "clean", "r.jsonl", "--decisions", "d.json", "--out", "n.jsonl")


def two_columns(answers="category"):
    """Write three rows with two columns that might answer, and a decision on one of them."""
    rows = [{"text": t, "label": "open", "category": "x"} for t in "abc"]
    digest = checksum(jsonl(Path("r.jsonl"), rows))
    keep_decision("r.jsonl", 2, Decision("relabel", "y"), digest, answers)
    return digest


def test_a_label_goes_into_the_column_that_was_looked_at(data):
    two_columns()
    words = ("clean", "r.jsonl", "--decisions", "r.jsonl.decisions.json", "--out", "n.jsonl")
    assert "labels of the column 'category', where 'label' answers" in refused(
        data, *words, "--reference", "label"
    )
    done(data, *words)
    assert [(row["label"], row["category"]) for row in read("n.jsonl")] == [
        ("open", "x"),
        ("open", "y"),
        ("open", "x"),
    ]


def test_labels_of_two_columns_are_not_kept_in_one_file(data):
    digest = two_columns()
    with pytest.raises(
        UserError, match="decisions on the column 'category'; expected those on the column 'label'"
    ):
        keep_decision("r.jsonl", 1, Decision("keep"), digest, "label")


def test_a_template_names_the_columns_that_ask(data):
    rows = [{"subject": "Card", "body": body, "queue": "x"} for body in ("lost", "lost", " ")]
    jsonl(
        Path("r.jsonl"), [*rows, {**rows[0], "subject": "Other"}, {"subject": "", "body": "", "queue": "x"}]
    )
    words = ("--prompt", "{subject}: {body}", "--reference", "queue")
    assert done(data, "clean", "r.jsonl", *words, "--out", "c.jsonl").startswith("5 read, 4 written")
    assert done(data, "dedup", "c.jsonl", *words, "--out", "n.jsonl").startswith("4 read, 3 written")
    assert "no column 'topic'" in refused(
        data, "clean", "r.jsonl", "--prompt", "{topic}: {body}", "--out", "m.jsonl"
    )


def test_a_number_is_not_relabelled(data):
    file = jsonl(Path("r.jsonl"), [{"text": "a", "label": 3}])
    rows = {"1": {"decision": "relabel", "label": "y"}}
    Path("d.json").write_text(json.dumps({"digest": checksum(file), "column": "label", "rows": rows}))
    said = refused(data, "clean", "r.jsonl", "--decisions", "d.json", "--out", "n.jsonl")
    assert "r.jsonl:1: found a int in 'label', to be relabelled" in said


def test_a_relabelled_number_stays_a_number_and_a_label_that_is_none_is_refused(data):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b", "c"], "label": [1, 2, None]}), "r.parquet")
    for line, label, said in (("1", "2", ""), ("1", "two", "'two'"), ("2", "2", "another type")):
        decisions = {"column": "label", "rows": {line: {"decision": "relabel", "label": label}}}
        Path("d.json").write_text(json.dumps({"digest": checksum(Path("r.parquet")), **decisions}))
        words = ("clean", "r.parquet", "--decisions", "d.json", "--out")
        if said:
            assert said in refused(data, *words, "m.parquet")
        else:
            done(data, *words, "n.parquet")
            assert [row["label"] for row in read("n.parquet")] == [1, 2]


def test_a_file_that_is_no_decisions_is_not_printed(data):
    jsonl(Path("r.jsonl"), [{"text": "a", "label": "x"}])
    Path("d.json").write_bytes(b"\xff secret" * 99)
    assert "secret" not in refused(data, "clean", "r.jsonl", "--decisions", "d.json", "--out", "n.jsonl")


# Files that cannot be read or written


def test_a_first_line_that_is_a_row_is_refused(data):
    rows = "".join(f"I lost my card {i} today.,{('card', 'pin')[i % 2]}\n" for i in range(12))
    Path("r.csv").write_text(rows)
    assert "r.csv:1" in refused(data, "clean", "r.csv", "--out", "n.csv")
    assert "r.csv:1" in refused(data, "dedup", "r.csv", "--out", "n.csv")


def test_nothing_is_written_into_a_folder_that_is_read_or_in_place_of_the_working_folder(data):
    Path("rows").mkdir()
    jsonl(Path("rows/train.jsonl"), [{"prompt": "a", "reference": "x"}])
    assert "the folder that is read" in refused(data, "clean", "rows", "--out", "rows/test.jsonl")
    assert "the working folder" in refused(data, "split", "rows/train.jsonl", "--out", ".")


def test_two_parquet_columns_of_one_name_are_refused(data):
    import pyarrow
    import pyarrow.parquet

    columns = [pyarrow.array(of) for of in (["a"], ["x"], ["1"], ["2"])]
    made = pyarrow.Table.from_arrays(columns, names=["prompt", "reference", "n", "n"])
    pyarrow.parquet.write_table(made, "r.parquet")
    assert "two columns named 'n'" in refused(data, "clean", "r.parquet", "--out", "n.jsonl")


def links(file):
    Path("soft.jsonl").symlink_to(file)
    Path("hard.jsonl").hardlink_to(file)


@pytest.mark.parametrize("out", ["r.jsonl", "./r.jsonl", "soft.jsonl", "hard.jsonl"])
def test_rows_are_never_changed_in_place(data, out):
    links(jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x"}]))
    assert "never changed in place" in refused(data, "clean", "r.jsonl", "--out", out)


def test_an_output_that_is_there_is_refused(data):
    jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x"}])
    jsonl(Path("n.jsonl"), [{"mine": 1}])
    assert "there already" in refused(data, "clean", "r.jsonl", "--out", "n.jsonl")
    Path("m.jsonl.manifest.json").write_text("{}")
    assert "m.jsonl.manifest.json" in refused(data, "clean", "r.jsonl", "--out", "m.jsonl")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--out FILE"),
        (("--out", "n.xlsx"), "ends with .jsonl"),
        (("--out", "gone/n.jsonl"), "mkdir -p gone"),
        (("--out", "n.jsonl", "--prompt", "promt"), "did you mean 'prompt'?"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_with_the_next_step(data, words, said):
    jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x"}])
    assert said in refused(data, "clean", "r.jsonl", *words)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.jsonl", b"", "an empty file"),
        ("r.csv", b"text,label\n", "an empty file"),
        ("r.jsonl", b'{"prompt": "a", "reference": "x"}\n{"prompt": \n', "r.jsonl:2: found malformed JSON"),
        ("r.csv", b"text,label\na,x\nb\n", "r.csv:3: found another number of fields"),
        (
            "r.jsonl.gz",
            gzip.compress(b'{"prompt": "a", "reference": "x"}\n' * 99, mtime=0)[:-9],
            "a broken gzip file",
        ),
        ("r.csv", b"text,label\na,\xff\n", "r.csv:2: found byte 0xff"),
        ("r.xlsx", b"PK", "soffice --headless --convert-to csv r.xlsx"),
        ("r.jsonl", b'{"a": 1, "b": 2, "c": 3}\n', "--prompt COLUMN --reference COLUMN"),
        ("r.jsonl", b'{"prompt": "a", "reference": ""}\n', "all of them dropped"),
        ("r.jsonl", b'{"prompt": "a", "reference": "x", "n": 1e999}\n', "JSON cannot hold"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_at_its_line_and_leaves_nothing(data, name, content, said):
    Path(name).write_bytes(content)
    assert said in refused(data, "clean", name, "--out", "n.jsonl")


def test_mixed_types_are_refused_where_a_column_has_one_type(data):
    jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x", "n": n} for n in (1, "one")])
    assert "r.jsonl:2: found a str in 'n'" in refused(data, "clean", "r.jsonl", "--out", "n.parquet")
    jsonl(Path("l.jsonl"), [{"prompt": "a", "reference": "x", "n": [1]}])
    assert "l.jsonl:1: found a list in 'n'" in refused(data, "clean", "l.jsonl", "--out", "n.csv")
    done(data, "clean", "r.jsonl", "--out", "n.jsonl")
    assert [row["n"] for row in read("n.jsonl")] == [1, "one"]


# Split

TOPICS = ("card", "refund", "pin", "fee")


def asked_rows(n, label=lambda i: TOPICS[i % 4]):
    """Return rows whose questions have nothing in common."""
    return rows_of(*({"text": f"{i * i} q{i}w v{i}u", "label": label(i), "n": i} for i in range(n)))


def parts_of(rows, **way):
    found = split(Rows("r.jsonl", "r", rows), ASKED, Way(**way))
    return {name: [row.fields["n"] for row in part] for name, part in found.parts.items()}


@settings(max_examples=25)
@given(some_rows("text", "label"), st.integers(0, 3))
def test_a_split_keeps_every_row_once_and_what_asks_alike_in_one_part(rows, seed):
    try:
        found = split(Rows("r.jsonl", "r", rows), ASKED, Way((0.5, 0.0, 0.5), seed=seed))
    except UserError:
        return
    assert sorted(row.where for part in found.parts.values() for row in part) == sorted(r.where for r in rows)
    train, test = ({fold_text(row.fields["text"]) for row in found.parts[name]} for name in ("train", "test"))
    assert not train & test


def test_a_split_has_its_shares_and_keeps_the_order_of_the_file():
    parts = parts_of(asked_rows(100), shares=(0.7, 0.1, 0.2))
    assert {name: len(part) for name, part in parts.items()} == {"test": 20, "validation": 10, "train": 70}
    assert all(part == sorted(part) for part in parts.values())
    assert parts != parts_of(asked_rows(100), shares=(0.7, 0.1, 0.2), seed=1)


def test_a_stratified_split_has_every_class_by_its_share_in_every_part():
    rows = asked_rows(100, lambda i: "rare" if i % 10 == 0 else "often")
    found = split(Rows("r.jsonl", "r", rows), ASKED, Way((0.6, 0.2, 0.2), stratify="label"))
    counts = {name: sum(r.fields["label"] == "rare" for r in part) for name, part in found.parts.items()}
    assert counts == {"train": 6, "validation": 2, "test": 2}


def test_a_class_too_small_for_a_part_is_named():
    rows = asked_rows(40, lambda i: "rare" if i == 7 else "often")
    with pytest.raises(UserError, match="1 row of the class 'rare', none of them in"):
        parts_of(rows, stratify="label")


def test_rows_of_one_group_stay_together():
    parts = parts_of(asked_rows(60, lambda i: f"customer {i // 5}"), group="label")
    groups = [{n // 5 for n in part} for part in parts.values()]
    assert sum(map(len, groups)) == 12


def test_questions_that_are_alike_by_a_chain_of_others_stay_together():
    words = [f"{a}{b}{a}" for a in "bcdfghjk" for b in "aeiou"]
    chain = [{"text": " ".join(words[i : i + 20]), "label": "x", "n": i} for i in range(0, 20, 2)]
    rows = rows_of(*chain, *(row.fields | {"n": row.fields["n"] + 100} for row in asked_rows(20)))
    for seed in range(5):
        parts = parts_of(rows, shares=(0.5, 0.0, 0.5), seed=seed)
        assert sum(any(n < 100 for n in part) for part in parts.values()) == 1


def test_a_split_by_time_trains_on_the_past_and_drops_what_it_knows():
    rows = asked_rows(20)
    dated = [
        row._replace(fields={**row.fields, "day": f"2024-05-{20 - i:02}", "who": f"c{min(i, 18)}"})
        for i, row in enumerate(rows)
    ]
    dated[0].fields["text"] = dated[19].fields["text"]
    found = split(Rows("r", "r", dated), ASKED, Way((0.5, 0.25, 0.25), time="day", group="who"))
    assert {name: [r.fields["n"] for r in part] for name, part in found.parts.items()} == {
        "train": list(range(10, 20)),
        "validation": list(range(5, 10)),
        "test": [1, 2, 3, 4],
    }
    assert [str(change) for change in found.changes] == [
        "r.jsonl:1: dropped, alike to a question of an earlier part of r.jsonl:20"
    ]


@pytest.mark.parametrize("day", ["31/05/2024", "soon", "", None, "2024-13-01"])
def test_a_time_that_cannot_be_read_is_refused_at_its_line(data, day):
    rows = [{"text": f"q{i}", "label": "x", "day": "2024-05-01"} for i in range(9)]
    jsonl(Path("r.jsonl"), [*rows, {**rows[0], "day": day}])
    assert f"r.jsonl:10: found {day!r} in 'day'" in refused(
        data, "split", "r.jsonl", "--time", "day", "--out", "p"
    )


def test_numbers_beside_dates_are_refused(data):
    jsonl(Path("r.jsonl"), [{"text": "a", "label": "x", "day": day} for day in ("2024-05-01", 17)])
    assert "r.jsonl:2: found a number in 'day'" in refused(
        data, "split", "r.jsonl", "--time", "day", "--out", "p"
    )


def test_the_parts_of_a_split_are_files_that_compare_reads_and_twice_the_same(data):
    jsonl(Path("r.jsonl"), [row.fields for row in asked_rows(50)])
    done(data, "split", "r.jsonl", "--stratify", "label", "--out", "a", "--license", "CC0")
    done(data, "split", "r.jsonl", "--stratify", "label", "--out", "b", "--license", "CC0")
    written = {path.name: path.read_bytes() for path in Path("a").iterdir()}
    assert written == {path.name: path.read_bytes() for path in Path("b").iterdir()}
    assert sorted(written) == ["split.manifest.json", "test.jsonl", "train.jsonl", "validation.jsonl"]
    assert [len(read(f"a/{part}.jsonl")) for part in ("train", "validation", "test")] == [32, 8, 10]
    done(data, "clean", "a/train.jsonl", "--out", "c.jsonl")
    assert manifest("c.jsonl")["licenses"] == ["CC0"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shares", "0.8,0.1,0.2"), "add up to 1.1"),
        (("--shares", "0.8,0.2"), "0.8,0.1,0.1"),
        (("--shares", "most"), "numbers between commas"),
        (("--stratify", "lable"), "did you mean 'label'?"),
        (("--alike", "2"), "at most 1"),
        (("--group", "label"), "1 group of rows"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(data, words, said):
    jsonl(Path("r.jsonl"), [{"text": f"{i * i} q{i}w v{i}u", "label": "x"} for i in range(9)])
    assert said in refused(data, "split", "r.jsonl", "--out", "parts", *words)
    assert not Path("parts").exists()


def test_a_folder_that_is_not_empty_is_refused(data):
    file = jsonl(Path("r.jsonl"), [row.fields for row in asked_rows(20)])
    Path("full").mkdir()
    jsonl(Path("full", "mine.jsonl"), [{}])
    assert "not empty" in refused(data, "split", "r.jsonl", "--out", "full")
    assert "never changed in place" in refused(data, "split", "r.jsonl", "--out", file)
    Path("empty").mkdir()
    done(data, "split", "r.jsonl", "--out", "empty")


def test_only_equal_questions_stay_together_where_they_are_to_be_equal():
    texts = [" ".join(f"{c}{c}" for c in "abcdefghijkl") + " end" * n for n in range(1, 6)]
    rows = rows_of(*({"text": text, "label": "x", "n": 0} for text in (*texts, texts[0].upper())))
    with pytest.raises(UserError, match="1 group"):
        parts_of(rows, shares=(0.5, 0.0, 0.5), alike=0.2)
    found = split(Rows("r", "r", rows), ASKED, Way((0.5, 0.0, 0.5), alike=1))
    assert all(len({row.where in ("r.jsonl:1", "r.jsonl:6") for row in p}) for p in found.parts.values())
    train, test = ({fold_text(row.fields["text"]) for row in found.parts[n]} for n in ("train", "test"))
    assert not train & test


def test_a_file_of_one_row_cannot_be_split(data):
    jsonl(Path("r.jsonl"), [{"text": "a", "label": "x"}])
    assert "at least 3, one a part" in refused(data, "split", "r.jsonl", "--out", "p")


def test_a_time_that_is_no_number_is_refused():
    rows = rows_of(
        *(row.fields | {"t": float(i) if i % 5 else math.nan} for i, row in enumerate(asked_rows(20)))
    )
    with pytest.raises(UserError, match="nan in 't', which is no time"):
        parts_of(rows, time="t")


def test_answers_of_conversations_keep_their_cluster_also_the_one_named_0():
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me"}]
    rows = rows_of({"messages": said, "cluster": 0}, {"messages": said})
    made = every_turn(Rows("r.jsonl", "r", rows)).rows
    assert [row.fields["cluster"] for row in made] == [0, "r-1"]


# Mix


def files_of(*sizes):
    names = [f"{chr(97 + i)}.jsonl" for i in range(len(sizes))]
    return [
        Rows(name, name, [Row(f"{name}:{i}", {"n": i, "id": f"{i}"}) for i in range(n)])
        for name, n in zip(names, sizes, strict=True)
    ]


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        (Mixture(), [0.1, 0.9]),
        (Mixture(temperature=2), [0.25, 0.75]),  # √100 : √900 = 1 : 3
        (Mixture(temperature=1e6), [0.5, 0.5]),
        (Mixture(weights=(0.3, 0.7)), [0.3, 0.7]),
    ],
)
def test_shares_are_the_weights_or_sizes_at_a_temperature(mixture, expected):
    assert shares([100, 900], mixture) == pytest.approx(expected, abs=1e-4)


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.1, 100), st.integers(0, 3))
def test_a_mixture_invents_no_row_and_drops_what_it_does_not_draw(a, b, temperature, seed):
    files = files_of(a, b)
    outcomes = list(mix(files, Mixture(temperature=temperature, seed=seed)))
    assert [(o.row or o.change).where for o in outcomes] == [row.where for f in files for row in f.rows]
    assert outcomes == list(mix(files, Mixture(temperature=temperature, seed=seed)))


def test_a_mixture_has_its_number_of_rows_and_names_their_files():
    drawn = written(mix(files_of(50, 100), Mixture(weights=(0.25, 0.75), n_rows=81)))
    assert [row.fields["source"] for row in drawn] == ["a.jsonl"] * 20 + ["b.jsonl"] * 61
    assert all(row.where.startswith(row.fields["source"]) for row in drawn)


def test_without_a_number_no_file_is_too_small():
    assert len(written(mix(files_of(30, 100), Mixture(weights=(0.5, 0.5))))) == 60


def test_with_replacement_rows_come_again_under_ids_of_their_own():
    drawn = written(mix(files_of(3, 3), Mixture(n_rows=40, replacement=True)))
    assert len(drawn) == 40
    assert len({row.fields["id"] for row in drawn}) == 40


def with_ids(name, *idents):
    return Rows(name, name, [Row(f"{name}:{i}", {"id": ident}) for i, ident in enumerate(idents)])


@pytest.mark.parametrize(("first", "second"), [((0, 1, 2), (0, 1, 2)), (("a", "b"), ("a", "a-2"))])
def test_equal_ids_of_two_files_become_ids_of_their_type_that_no_row_has(first, second):
    files = [with_ids("a.jsonl", *first), with_ids("b.jsonl", *second)]
    outcomes = list(mix(files, Mixture(weights=(0.5, 0.5))))
    idents = [row.fields["id"] for row in written(outcomes)]
    assert len(set(idents)) == len(idents) == len(first) + len(second)
    assert {type(ident) for ident in idents} == {type(first[0])}
    assert len({change.reason for _, change in outcomes if change}) == 1


def test_rows_are_drawn_whatever_the_spelling_of_the_path():
    short, long = ([with_ids(f"{at}{n}", *range(20)) for n in "ab"] for at in ("", "/data/"))
    drawn = [[row.fields["id"] for row in written(mix(of, Mixture(n_rows=10)))] for of in (short, long)]
    assert drawn[0] == drawn[1]


def test_one_file_by_two_spellings_is_no_mixture(data):
    jsonl(Path("a.jsonl"), [{"prompt": "a", "reference": "x"}])
    assert "two different files" in refused(data, "mix", "a.jsonl", "./a.jsonl", "--out", "n.jsonl")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--weights=nan,1",), "2 for 2 files, one nan"),
        (("--weights=",), "numbers between commas"),
        (("--weights", "0.7,0.7"), "weights that add up to 1.4"),
        (("--weights", "1"), "1 for 2 files"),
        (("--temperature", "0"), "a number above 0"),
        (
            ("--rows", "90", "--weights", "0.5,0.5"),
            "b.jsonl: found 9 rows; expected 45 for its share; next: --rows 18",
        ),
        (("--replacement",), "--rows N"),
        (("--rows", "0"), "at least 1"),
        (("--column", "label"), "a.jsonl:1: found the column 'label'"),
    ],
)
def test_a_mixture_that_cannot_be_made_is_refused(data, words, said):
    for name in ("a.jsonl", "b.jsonl"):
        jsonl(Path(name), [row.fields for row in asked_rows(9)])
    assert said in refused(data, "mix", "a.jsonl", "b.jsonl", "--out", "n.jsonl", *words)


def test_rows_drawn_again_are_read_once(data):
    for name in ("a.jsonl", "b.jsonl"):
        jsonl(Path(name), [{"prompt": "a", "reference": "x"}])
    said = done(data, "mix", "a.jsonl", "b.jsonl", "--rows", "6", "--replacement", "--out", "n.jsonl")
    assert said.startswith("2 read, 6 written\n")


def test_mixed_files_of_other_columns_and_kinds_are_one_file(data):
    jsonl(Path("a.jsonl"), [{"prompt": "a", "reference": "x"}])
    Path("b.csv").write_text("prompt,reference,topic\nb,y,cards\n")
    done(data, "mix", "a.jsonl", "b.csv", "--out", "n.csv")
    assert Path("n.csv").read_text().splitlines() == [
        "prompt,reference,source,topic",
        "a,x,a.jsonl,",
        "b,y,b.csv,cards",
    ]


def test_an_id_of_its_own_is_a_number_where_ids_are(data):
    for name in ("a", "b"):
        jsonl(Path(f"{name}.jsonl"), [{"id": i, "prompt": name, "reference": "x"} for i in range(2)])
        done(data, "clean", f"{name}.jsonl", "--out", f"{name}.parquet")
    done(data, "mix", "a.parquet", "b.parquet", "--out", "n.parquet")
    assert [row["id"] for row in read("n.parquet")] == [0, 1, 2, 3]


# Sample


@given(st.integers(1, 30), st.integers(0, 3))
def test_a_smaller_sample_is_part_of_a_larger_one_in_the_order_of_the_file(n, seed):
    content = Rows("r", "r", asked_rows(31))
    small, large = (written(sample(content, size, None, seed)) for size in (n, n + 1))
    assert len(small) == n
    assert [row for row in large if row in small] == small
    assert large == sorted(large, key=lambda row: row.fields["n"])


def test_a_balanced_sample_has_equally_many_of_every_value():
    rows = asked_rows(60, lambda i: "rare" if i % 10 == 0 else "often")
    drawn = written(sample(Rows("r", "r", rows), 10, "label", 0))
    assert sorted(row.fields["label"] for row in drawn) == ["often"] * 5 + ["rare"] * 5
    with pytest.raises(
        UserError, match=r"6 rows of the class 'rare'; expected at least 10 .* --rows 12 at most"
    ):
        sample(Rows("r", "r", rows), 20, "label", 0)


def test_what_is_not_drawn_stands_in_the_manifest(data):
    jsonl(Path("r.jsonl"), [row.fields for row in asked_rows(9)])
    assert done(data, "sample", "r.jsonl", "--rows", "4", "--out", "n.jsonl").startswith("9 read, 4 written")
    assert len(read("n.jsonl")) == 4
    assert {row["reason"] for row in manifest("n.jsonl")["rows"]} == {"not drawn"}
    assert "expected at least 10" in refused(data, "sample", "r.jsonl", "--rows", "10", "--out", "m.jsonl")


# Dedup


def test_the_named_columns_are_those_of_the_test_file_too(data):
    Path("r.csv").write_text("frage,antwort,n\nwhere is it,here,1\nwho is it,me,2\n")
    Path("t.csv").write_text("frage,antwort,n\nWho is it,me,9\n")
    words = ("--prompt", "frage", "--reference", "antwort")
    said = done(data, "dedup", "r.csv", "--against", "t.csv", "--out", "n.csv", *words)
    assert said.startswith("2 read, 1 written, 1 dropped")


def test_the_manifest_names_a_row_that_stays():
    rows = (LONG, "x"), (f"{LONG} now", "x"), (f"{LONG} NOW", "x")
    kept, changes = deduped(*rows)
    assert kept == [1]
    assert all("of r.jsonl:1 (0.9" in change for change in changes)


LONG = "my parcel was sent to the old address although I gave you the new one two weeks ago on the phone"


def deduped(*rows, **options):
    """Return what is written, by number, and the changes."""
    made = rows_of(*({"text": text, "label": label} for text, label in rows))
    outcomes = dedup(made, ASKED, **options)
    return [int(row.where[8:]) for row in written(outcomes)], [str(o.change) for o in outcomes if o.change]


def test_equal_rows_are_dropped_and_name_the_one_that_stays():
    assert deduped(("Hi there", "x"), ("other", "x"), ("hi  THERE", "X")) == (
        [1, 2],
        ["r.jsonl:3: dropped, a duplicate of r.jsonl:1"],
    )


def test_nearly_equal_rows_are_dropped_with_their_likeness():
    kept, changes = deduped((LONG, "x"), (LONG + " now", "x"), ("Where is my card?", "x"))
    assert kept == [1, 3]
    assert changes[0].startswith("r.jsonl:2: dropped, a near duplicate of r.jsonl:1 (0.9")


def test_alike_questions_with_other_answers_are_no_duplicates():
    rows = (LONG, "parcel"), (f"{LONG} now", "address"), (f"{LONG} ok", "address")
    kept, changes = deduped(*rows)
    assert kept == [1, 2]
    assert "r.jsonl:3: dropped, a near duplicate of r.jsonl:2" in changes[0]
    assert deduped(*rows, alike=1)[0] == [1, 2, 3]


def test_a_near_duplicate_is_found_behind_a_row_of_another_answer():
    answer = " ".join(f"{c}word" for c in "abcdefghijklmnop")
    rows = (LONG, "quite another one"), (f"{LONG} now", answer), (f"{LONG} ok", f"{answer} too")
    assert deduped(*rows)[0] == [1, 2]


def test_one_question_under_two_system_prompts_or_with_other_choices_is_no_duplicate():
    said = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me"}]
    for name in ("French", "German"):
        system = {"role": "system", "content": f"Answer politely and in {name}"}
        chats = rows_of({"messages": [system, *said]}, {"messages": said})
        assert len(written(dedup(chats, find_roles(Rows("r", "r", chats))))) == 2
    choices = rows_of(
        *({"prompt": "Which is larger?", "choices": [a, b], "reference": b} for a, b in ("ab", "cb", "ab"))
    )
    assert written(dedup(choices, find_roles(Rows("r", "r", choices)), conflicts="drop")) == choices[:2]


def test_an_answer_with_two_thumbs_is_a_contradiction_and_no_duplicate():
    rows = rows_of(*({"prompt": "Who?", "completion": "Me", "label": up} for up in (True, False, True)))
    outcomes = dedup(rows, find_roles(Rows("r", "r", rows)))
    assert [o.change.kind for o in outcomes] == ["reported", "reported", "dropped"]


def test_conflicting_answers_are_reported_and_stay_unless_they_are_to_be_dropped():
    rows = ("Where?", "here"), ("other", "x"), ("where?", "there")
    assert deduped(*rows) == (
        [1, 2, 3],
        [
            "r.jsonl:1: reported, another answer to the question of r.jsonl:3",
            "r.jsonl:3: reported, another answer to the question of r.jsonl:1",
        ],
    )
    assert deduped(*rows, conflicts="drop")[0] == [2]


def test_one_question_on_two_contexts_is_no_duplicate():
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


@settings(max_examples=50)
@given(some_rows("text", "label"), st.sampled_from(["keep", "drop"]))
def test_dedup_keeps_a_row_of_every_kind_and_invents_none(rows, conflicts):
    outcomes = dedup(rows, ASKED, conflicts=conflicts)
    assert [(o.row or o.change).where for o in outcomes] == [row.where for row in rows]
    kept = written(outcomes)
    assert [row for row in rows if row in kept] == kept
    places = {row.where for row in kept}
    assert all(o.change.of in places for o in outcomes if o.change and "duplicate" in o.change.reason)
    assert written(dedup(kept, ASKED, conflicts=conflicts)) == kept


def test_rows_too_like_a_test_file_are_dropped(data):
    asked = [
        {"text": LONG, "label": "x"},
        {"text": "Where is my card?", "label": "x"},
        {"text": "Fees", "label": "x"},
    ]
    jsonl(Path("r.jsonl"), asked)
    Path("t.csv").write_text(f"prompt,reference\nwhere is my card?,card\n{LONG} now,parcel\n")
    said = done(data, "dedup", "r.jsonl", "--against", "t.csv", "--out", "n.jsonl")
    assert said.startswith("3 read, 1 written, 2 dropped")
    assert [(row["reason"], row["of"]) for row in manifest("n.jsonl")["rows"]] == [
        ("in the test file by words in common", "t.csv:3"),
        ("asked in the test file", "t.csv:2"),
    ]
    done(data, "dedup", "r.jsonl", "--against", "t.csv", "--out", "m.jsonl")
    assert Path("m.jsonl").read_bytes() == Path("n.jsonl").read_bytes()
    assert "never changed in place" in refused(
        data, "dedup", "r.jsonl", "--against", "t.csv", "--out", "t.csv"
    )


@pytest.mark.parametrize("name", LAYOUT_ROWS)
def test_rows_of_every_layout_are_cleaned_and_deduplicated(name):
    rows = rows_of(LAYOUT_ROWS[name], LAYOUT_ROWS[name])
    roles = find_roles(Rows("r.jsonl", "r", rows))
    assert written(clean(rows, roles)) == rows
    assert [outcome.row is None for outcome in dedup(rows, roles)] == [False, True]
    assert asked(rows[0], roles).whole == "Who?"


def test_decisions_on_changed_rows_are_kept_beside_the_new_ones(data):
    file = jsonl(Path("r.jsonl"), [{"text": t, "label": "x"} for t in "abc"])
    before = checksum(file)
    for line in (1, 2):
        keep_decision("r.jsonl", line, Decision("drop"), before)
    rows = file.read_text()
    file.write_text(rows + '{"text": "d", "label": "x"}\n')
    with pytest.raises(UserError, match="changed since it was looked at"):
        keep_decision("r.jsonl", 3, Decision("keep"), before)
    keep_decision("r.jsonl", 3, Decision("keep"), checksum(file))
    assert kept_decisions("r.jsonl") == {3: Decision("keep")}
    file.write_text(rows)
    assert kept_decisions("r.jsonl") == dict.fromkeys((1, 2), Decision("drop"))


def test_a_file_of_another_making_is_not_overwritten_by_decisions(data):
    file = jsonl(Path("r.jsonl"), [{"text": "a", "label": "x"}])
    for own in ("my notes", '{"digest": "0", "rows": 3}'):
        Path("r.jsonl.decisions.json").write_text(own)
        with pytest.raises(UserError, match="a file of another making"):
            keep_decision("r.jsonl", 1, Decision("keep"), checksum(file))
        assert Path("r.jsonl.decisions.json").read_text() == own


def test_two_trees_that_go_on_otherwise_are_no_duplicates():
    def tree(end):
        said = {"role": "prompter", "text": "And?", "replies": [{"role": "assistant", "text": end}]}
        first = {"role": "assistant", "text": "Me", "replies": [said]}
        return {"message_tree_id": "a", "prompt": {"role": "prompter", "text": "Who?", "replies": [first]}}

    rows = rows_of(tree("yes"), tree("no"), tree("yes"))
    assert written(dedup(rows, find_roles(Rows("r", "r", rows)))) == rows[:2]


def test_accepted_answers_in_another_order_are_the_same():
    rows = rows_of({"question": "Who?", "answers": ["a", "b"]}, {"question": "Who?", "answers": ["b", "a"]})
    assert written(dedup(rows, find_roles(Rows("r", "r", rows)))) == rows[:1]


def test_ids_in_front_do_not_hide_equal_texts(data):
    said = [
        f"{text} {text[::-1]} q{i}w" for i, text in enumerate(("one two", "my card", "a fee", "old pin") * 3)
    ]
    rows = [{"text": f"Ticket {100 + i * 7}: {text}", "label": "x"} for i, text in enumerate((*said, *said))]
    jsonl(Path("r.jsonl"), rows)
    assert done(data, "dedup", "r.jsonl", "--out", "n.jsonl").startswith("24 read, 12 written")
    done(data, "split", "r.jsonl", "--shares", "0.5,0,0.5", "--out", "parts")
    train, test = (
        {row["text"].partition(": ")[2] for row in read(f"parts/{n}.jsonl")} for n in ("train", "test")
    )
    assert not train & test


def test_an_instruction_of_few_test_rows_is_no_leak(data):
    """With the instruction in front of three test rows, training rows that have it too ask something else."""
    rule = " ".join(f"{a}{b}le" for a in "bcdfgh" for b in "aeiou")
    own = [" ".join(f"{c}{i}{c}" for c in "pqrstu") for i in range(40)]
    jsonl(Path("r.jsonl"), [{"text": f"{rule} {text}", "label": "x"} for text in own[3:]])
    jsonl(Path("t.jsonl"), [{"text": f"{rule} {text}", "label": "x"} for text in (*own[:3], own[7])])
    said = done(data, "dedup", "r.jsonl", "--against", "t.jsonl", "--out", "n.jsonl")
    assert said.startswith("37 read, 36 written, 1 dropped")


def test_half_of_the_labels_may_be_missing(data):
    rows = [{"text": f"{i} q{i}w", "label": "x" if i % 2 else None} for i in range(20)]
    jsonl(Path("r.jsonl"), rows)
    assert done(data, "clean", "r.jsonl", "--out", "n.jsonl").startswith("20 read, 10 written")


def test_a_first_line_that_is_probably_a_row_is_refused_unless_columns_are_named(data):
    Path("r.csv").write_text(
        "I lost my card,card\n" + "".join(f"q{i},{('card', 'pin')[i % 2]}\n" for i in range(9))
    )
    for verb in ("clean", "dedup", "split"):
        assert "'card', which 5 rows hold" in refused(
            data, verb, "r.csv", "--out", "n.csv" if verb != "split" else "n"
        )
    done(data, "clean", "r.csv", "--prompt", "I lost my card", "--out", "n.csv")
    code, _, err = data("sample", "r.csv", "--rows", "3", "--out", "s.csv")
    assert (code, "warning: r.csv:1" in err) == (0, True)


def test_a_file_that_comes_while_another_is_made_is_not_replaced(data):
    from harness.data.edit.save import Edit, save

    rows = list(clean(rows_of({"text": "a", "label": "x"}), ASKED))

    def slow():
        yield from rows
        Path("n.jsonl").write_text("mine")

    jsonl(Path("r.jsonl"), [{"text": "a", "label": "x"}])
    with pytest.raises(UserError, match="a file that came while this one was made"):
        save(Edit("clean", {}, ["r.jsonl"]), slow(), Path("n.jsonl"))
    assert sorted(p.name for p in Path().iterdir()) == ["n.jsonl", "r.jsonl"]
    assert Path("n.jsonl").read_text() == "mine"


@pytest.mark.parametrize("moved", ["c.csv", "b.csv.gz"])
def test_the_licence_goes_with_a_manifest_that_is_renamed_and_a_file_that_is_packed(data, moved):
    Path("a.csv").write_text("text,label\na,x\n")
    done(data, "clean", "a.csv", "--out", "b.csv", "--license", "CC0")
    content = Path("b.csv").read_bytes()
    Path(moved).write_bytes(gzip.compress(content) if moved.endswith(".gz") else content)
    if not moved.endswith(".gz"):
        Path("b.csv.manifest.json").rename(f"{moved}.manifest.json")
    done(data, "dedup", moved, "--out", "d.csv")
    assert manifest("d.csv")["licenses"] == ["CC0"]


@pytest.mark.parametrize(
    ("out", "said"), [("x.jsonl.manifest.json", "kept beside rows"), ("r.csv/x.csv", "a file, r.csv")]
)
def test_an_output_that_would_stand_in_the_way_is_refused(data, out, said):
    Path("r.csv").write_text("text,label\na,x\n")
    assert said in refused(data, "clean", "r.csv", "--out", out)


@pytest.mark.parametrize(
    "times", [["12345678", "99999990"], ["-3", "7"], ["2024-01", "2024-02-03"], ["20240131", "20240201"]]
)
def test_times_are_numbers_months_and_days(times):
    rows = asked_rows(20)
    for i, row in enumerate(rows):
        row.fields["t"] = times[i // 10]
    assert parts_of(rows, time="t", shares=(0.5, 0.0, 0.5))["train"] == list(range(10))


def test_a_group_may_be_a_list():
    rows = asked_rows(20)
    for i, row in enumerate(rows):
        row.fields.update(t=i, g=[i // 4])
    parts = parts_of(rows, time="t", group="g", shares=(0.5, 0.0, 0.5))
    assert {n // 4 for n in parts["train"]}.isdisjoint({n // 4 for n in parts["test"]})


def test_a_file_named_in_capitals_is_read_and_a_quote_that_is_open_stands_at_its_line(data):
    Path("R.CSV").write_text('text,label\na,x\n"b,y\nc,x\n')
    assert "R.CSV:3: found" in refused(data, "clean", "R.CSV", "--out", "n.csv")
    Path("R.CSV").write_text("text,label\na,x\n")
    done(data, "clean", "R.CSV", "--out", "N.CSV")
    assert read("N.CSV") == [{"text": "a", "label": "x"}]


def test_a_folder_of_rows_that_do_not_fit_together_is_refused_with_the_reason(data):
    Path("rows").mkdir()
    jsonl(Path("rows/train.jsonl"), [{"prompt": "a", "reference": "x"}])
    jsonl(Path("rows/train-2.jsonl"), [{"other": [1]}])
    assert "prompt: string" in refused(data, "clean", "rows", "--out", "n.jsonl")


def test_rows_that_their_layout_cannot_read_are_dropped_with_the_reason(data):
    of = {"instruction": "Who?", "completions": [{"response": "a", "overall_score": 3}]}
    odd = {**of, "completions": [{"response": "a", "overall_score": "N/A"}]}
    jsonl(Path("r.jsonl"), [of, odd, of])
    assert "1 dropped: the rating 'N/A'" in done(data, "clean", "r.jsonl", "--out", "n.jsonl")
    thumbs = [{"prompt": "Who?", "completion": "Me", "label": up} for up in (True, False)]
    jsonl(Path("t.jsonl"), thumbs)
    done(data, "clean", "t.jsonl", "--out", "m.jsonl")
    assert read("m.jsonl") == thumbs


def test_parts_that_are_far_from_their_shares_are_said(data):
    rows = [{"text": f"{i * i} q{i}w v{i}u", "label": "x", "g": i // 10} for i in range(30)]
    jsonl(Path("r.jsonl"), rows)
    code, _, err = data("split", "r.jsonl", "--group", "g", "--out", "parts")
    assert (code, "train has 33 % of the rows, not 64 %" in err) == (0, True)


def test_a_field_that_stands_twice_is_refused(data):
    Path("r.jsonl").write_text('{"prompt": "a", "reference": "x", "prompt": "b"}\n')
    assert "r.jsonl:1: found malformed JSON (the field 'prompt' twice)" in refused(
        data, "clean", "r.jsonl", "--out", "n.jsonl"
    )


def test_an_integer_that_parquet_cannot_hold_is_refused_at_its_line(data):
    jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x", "n": n} for n in (1, 2**70)])
    assert "r.jsonl:2: found an integer of more than 64 bits in 'n'" in refused(
        data, "clean", "r.jsonl", "--out", "n.parquet"
    )
