"""Files of rows and of edits: what is read, what is refused at its line, and that nothing is written over."""

import gzip
import json
import random
import re
import signal
import subprocess
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pandas
import pytest
from checked_rows import list_cases
from edited_rows import (
    ASKED,
    jsonl,
    make_distinct_rows,
    manifest,
    read,
    read_refusal,
    rows_of,
    run_data,
    write_parquet,
)
from forking import terminal_signals

from harness.data import load_task, readers
from harness.data.edit.changes import EditedRow
from harness.data.edit.clean import clean
from harness.data.edit.save import Edit, save
from harness.errors import UserError
from harness.experiment.check_rows import RowCheck, examine_rows
from harness.spec import Task


@pytest.mark.parametrize(
    ("card", "licenses"),
    [
        ("---\nlicense: cc-by-nc-4.0\n---\nRows.\n", ["cc-by-nc-4.0"]),
        ("---\nlicense: [mit, other]\nlicense_name: house-rules\n---\n", ["mit", "house-rules"]),
        ("---\nlanguage: en\n---\n", []),
        ("Rows without a head.\n", []),
    ],
)
def test_the_licence_that_the_card_of_a_data_set_states_is_kept(data, monkeypatch, card, licenses):
    folder = Path("copies/me/set").absolute()
    folder.mkdir(parents=True)
    monkeypatch.setenv("HARNESS_DATASETS_DIR", str(folder.parent.parent))
    jsonl(folder / "train.jsonl", [{"prompt": f"Is it {i}?", "reference": "yes"} for i in range(5)])
    (folder / "README.md").write_text(card)
    run_data(data, "sample", "hub:me/set", "--rows", "3", "--out", "s.jsonl", "--license", "CC0")
    run_data(data, "sample", "s.jsonl", "--rows", "2", "--out", "t.jsonl")
    assert manifest("s.jsonl")["licenses"] == manifest("t.jsonl")["licenses"] == [*licenses, "CC0"]


def test_a_data_set_that_is_malformed_or_a_folder_in_the_place_of_rows_is_refused(data, monkeypatch):
    folder = Path("copies/me/set").absolute()
    folder.mkdir(parents=True)
    monkeypatch.setenv("HARNESS_DATASETS_DIR", str(folder.parent.parent))
    jsonl(folder / "train.jsonl", [{"prompt": "Is it?", "reference": "yes"}])
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    said = read_refusal(data, "sample", "hub:me/set", "--rows", "1", "--out", "s.jsonl")
    assert "no train rows to be had" in said

    Path("mine/old").mkdir(parents=True)
    assert "next: name a file of rows; this folder holds none" in read_refusal(data, "check", "mine")
    jsonl(Path("mine/test.jsonl"), [{"prompt": "a", "reference": "x"}])
    Path("mine/old/my rows.csv").write_text("text,label\na,x\n")
    said = read_refusal(data, "check", "mine")
    assert said.startswith("error: mine: found no train rows to be had (")
    assert said.endswith("next: name a file: 'mine/old/my rows.csv', mine/test.jsonl")


def test_licence_and_notes_are_carried_along(data):
    jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x"}])
    run_data(data, "clean", "r.jsonl", "--out", "a.jsonl", "--license", "CC0")
    run_data(data, "clean", "a.jsonl", "--out", "b.jsonl", "--note", "no names")
    assert (manifest("b.jsonl")["licenses"], manifest("b.jsonl")["notes"]) == (["CC0"], ["no names"])


@pytest.mark.parametrize("name", ["n.jsonl", "n.json", "n.jsonl.gz", "n.parquet"])
def test_types_columns_and_order_stay(data, name):
    rows = [{"prompt": "b", "reference": "x", "n": 2, "w": 0.5, "tags": ["u"], "ok": True}] * 2
    rows.append({"prompt": "a", "reference": "y", "n": None, "w": 1.0, "tags": [], "ok": False})
    jsonl(Path("r.jsonl"), rows)
    run_data(data, "clean", "r.jsonl", "--out", name)
    assert read(name) == rows
    run_data(data, "clean", name, "--out", "again.jsonl")
    assert read("again.jsonl") == rows


def test_parquet_keeps_its_types_and_is_refused_with_two_columns_of_one_name(data):
    import pyarrow
    import pyarrow.parquet

    types = {"prompt": pyarrow.large_string(), "reference": "string", "n": "int8", "t": "date32"}
    schema = pyarrow.schema(types.items())
    write_parquet("r.parquet", [{"prompt": "a ", "reference": "x", "n": 1, "t": None}] * 3, schema)
    run_data(data, "clean", "r.parquet", "--out", "n.parquet")
    assert pyarrow.parquet.read_schema("n.parquet") == schema

    columns = [pyarrow.array(of) for of in (["a"], ["x"], ["1"], ["2"])]
    made = pyarrow.Table.from_arrays(columns, names=["prompt", "reference", "n", "n"])
    pyarrow.parquet.write_table(made, "r.parquet")
    assert "two columns named 'n'" in read_refusal(data, "clean", "r.parquet", "--out", "n.jsonl")


def test_nothing_is_written_over_a_file_or_folder_that_is_read_there_or_in_the_way(data):
    Path("rows").mkdir()
    jsonl(Path("rows/train.jsonl"), [{"prompt": "a", "reference": "x"}])
    assert "the folder that is read" in read_refusal(data, "clean", "rows", "--out", "rows/test.jsonl")
    assert "the working folder" in read_refusal(data, "split", "rows/train.jsonl", "--out", ".")

    jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x"}])
    jsonl(Path("n.jsonl"), [{"mine": 1}])
    assert "there already" in read_refusal(data, "clean", "r.jsonl", "--out", "n.jsonl")
    Path("m.jsonl.manifest.json").write_text("{}")
    assert "m.jsonl.manifest.json" in read_refusal(data, "clean", "r.jsonl", "--out", "m.jsonl")


@pytest.mark.parametrize("out", ["r.jsonl", "./r.jsonl", "soft.jsonl", "hard.jsonl"])
def test_rows_are_never_changed_in_place(data, out):
    jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x"}])
    Path("soft.jsonl").symlink_to("r.jsonl")
    Path("hard.jsonl").hardlink_to("r.jsonl")
    assert "never changed in place" in read_refusal(data, "clean", "r.jsonl", "--out", out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--out FILE"),
        (("--out", "n.xlsx"), "ends with .jsonl"),
        (("--out", "x.jsonl.manifest.json"), "kept for the files next to rows"),
        (("--out", "r.jsonl/x.csv"), "a file, r.jsonl"),
        (("--out", "gone/n.jsonl"), "mkdir -p gone"),
        (("--out", "n.jsonl", "--prompt", "promt"), "did you mean 'prompt'?"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_with_the_next_step(data, words, said):
    jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x"}])
    assert said in read_refusal(data, "clean", "r.jsonl", *words)


@pytest.mark.parametrize(("file", "said"), list_cases("refused_rows.txt", "files"))
def test_a_file_that_cannot_be_used_is_refused_at_its_line_and_leaves_nothing(data, file, said):
    name, _, content = file.partition(" ")
    Path(name).write_bytes(json.loads(content).encode("latin-1"))
    assert said in read_refusal(data, "clean", name, "--out", "n.jsonl")


def pack_rows(kind):
    """Pack 5,000 rows that hardly get smaller, so that a half of the bytes holds half of the rows."""
    rng = random.Random(7)
    rows = [{"prompt": f"q{rng.getrandbits(200):x}", "reference": "x"} for _ in range(5000)]
    if kind == "json":
        text = json.dumps(rows, indent=0)
    elif kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        between = "," if kind == "csv" else "\t"
        text = "".join(between.join(row) + "\n" for row in (rows[0], *(r.values() for r in rows)))
    return gzip.compress(text.encode(), mtime=0), text.count("\n")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_a_gzip_file_that_breaks_off_is_refused_at_the_line_in_which_it_does(data, kind):
    packed, n_lines = pack_rows(kind)
    name = f"r.{kind}.gz"
    Path(name).write_bytes(packed[: len(packed) // 2])
    said = read_refusal(data, "clean", name, "--out", "n.jsonl")
    line, n_read = re.search(rf"r\.{kind}\.gz:(\d+): found a broken gzip file .*\); ([\d,]+)", said).groups()
    of = int(n_read.replace(",", ""))
    assert int(line) == of + 1
    assert 0.4 * n_lines < of < 0.6 * n_lines
    assert f"gzip -cd {name}" in said


@pytest.mark.parametrize(("behind", "why"), [(-8, "CRC check failed"), (-4, "Incorrect length")])
def test_a_gzip_file_of_which_only_the_checksum_is_wrong_is_refused_at_its_last_line(data, behind, why):
    packed, n_lines = pack_rows("jsonl")
    packed = bytearray(packed)
    packed[behind] ^= 1
    Path("r.jsonl.gz").write_bytes(packed)
    said = read_refusal(data, "clean", "r.jsonl.gz", "--out", "n.jsonl")
    assert f"r.jsonl.gz:{n_lines}: found a broken gzip file ({why}" in said
    assert "; 5,000 lines can be read, and any of them may be damaged; expected a whole file" in said
    assert "gzip -cd r.jsonl.gz gives what is left of it" in said


def test_the_manifest_counts_the_rows_that_hold_personal_data(data):
    mail, call = "ann@example.org", "call +49 30 901820"
    texts = (f"write to {mail}", call, f"{mail}, or {call}", "none")
    jsonl(Path("r.jsonl"), [{"prompt": text, "reference": "ab"[i % 2]} for i, text in enumerate(texts)])
    said = run_data(data, "clean", "r.jsonl", "--out", "n.jsonl")
    assert "2 rows with e-mail addresses, by their form" in said
    assert manifest("n.jsonl")["personal_data"] == {"e-mail addresses": 2, "phone numbers": 2}
    jsonl(Path("few.jsonl"), [{"prompt": "none", "reference": "a"}])
    run_data(data, "clean", "few.jsonl", "--out", "m.jsonl")
    assert "personal_data" not in manifest("m.jsonl")


def test_mixed_types_and_numbers_too_large_are_refused_where_a_column_has_one_type(data):
    jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x", "n": n} for n in (1, "one")])
    assert "r.jsonl:2: found a str in 'n'" in read_refusal(data, "clean", "r.jsonl", "--out", "n.parquet")
    jsonl(Path("i.jsonl"), [{"prompt": "a", "reference": "x", "n": n} for n in (1, 2**70)])
    said = read_refusal(data, "clean", "i.jsonl", "--out", "n.parquet")
    assert "i.jsonl:2: found an integer of more than 64 bits in 'n'" in said
    jsonl(Path("l.jsonl"), [{"prompt": "a", "reference": "x", "n": [1]}])
    assert "l.jsonl:1: found a list in 'n'" in read_refusal(data, "clean", "l.jsonl", "--out", "n.csv")
    run_data(data, "clean", "r.jsonl", "--out", "n.jsonl")
    assert [row["n"] for row in read("n.jsonl")] == [1, "one"]

    rows = [{"text": f"row {i}", "label": ["a"] if i == 3 else "ab"[i % 2], "day": i} for i in range(9)]
    jsonl(Path("m.jsonl"), rows)
    said = read_refusal(data, "clean", "m.jsonl", "--out", "o.jsonl")
    assert "m.jsonl:4: found 'label' of mixed types: text (8 rows) and list (1 row)" in said


def test_a_first_line_that_is_probably_a_row_is_refused_unless_columns_are_named(data):
    lines = [f"q{i},{('card', 'pin')[i % 2]}\n" for i in range(9)]
    Path("r.csv").write_text("I lost my card,card\n" + "".join(lines))
    for verb in ("clean", "dedup", "split"):
        said = read_refusal(data, verb, "r.csv", "--out", "n.csv" if verb != "split" else "n")
        assert "'card', which 5 rows hold" in said
    run_data(data, "clean", "r.csv", "--prompt", "I lost my card", "--out", "n.csv")
    code, _, err = data("sample", "r.csv", "--rows", "3", "--out", "s.csv")
    assert (code, "warning: r.csv:1" in err) == (0, True)


def test_a_file_that_comes_while_another_is_made_is_not_replaced(data):
    rows = list(clean(rows_of({"text": "a", "label": "x"}), ASKED))

    def yield_slowly():
        yield from rows
        Path("n.jsonl").write_text("mine")

    jsonl(Path("r.jsonl"), [{"text": "a", "label": "x"}])
    with pytest.raises(UserError, match="a file that came while this one was made"):
        save(Edit("clean", {}, ["r.jsonl"]), yield_slowly(), Path("n.jsonl"))
    assert sorted(p.name for p in Path().iterdir()) == ["n.jsonl", "r.jsonl"]
    assert Path("n.jsonl").read_text() == "mine"


def test_a_file_named_in_capitals_is_read_and_a_quote_that_is_open_stands_at_its_line(data):
    Path("R.CSV").write_text('text,label\na,x\n"b,y\nc,x\n')
    assert "R.CSV:3: found" in read_refusal(data, "clean", "R.CSV", "--out", "n.csv")
    Path("R.CSV").write_text("text,label\na,x\n")
    run_data(data, "clean", "R.CSV", "--out", "N.CSV")
    assert read("N.CSV") == [{"text": "a", "label": "x"}]


def test_a_folder_of_rows_that_do_not_fit_together_is_refused_with_the_reason(data):
    Path("rows").mkdir()
    jsonl(Path("rows/train.jsonl"), [{"prompt": "a", "reference": "x"}])
    jsonl(Path("rows/train-2.jsonl"), [{"other": [1]}])
    assert "prompt: string" in read_refusal(data, "clean", "rows", "--out", "n.jsonl")


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGHUP])
@terminal_signals()
def test_an_edit_that_is_ended_by_a_signal_leaves_nothing(data, ended_by):
    def outcomes():
        yield EditedRow(make_distinct_rows(1)[0])
        signal.raise_signal(ended_by)

    with pytest.raises(SystemExit) as ended:
        save(Edit("clean", {}, ()), outcomes(), Path("n.jsonl"))
    assert ended.value.code == 128 + ended_by
    assert list(Path().iterdir()) == []
    assert signal.getsignal(ended_by) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("where", "file"),
    [
        ("rows.jsonl:3", "rows.jsonl"), ("a row 2.csv:3", "a row 2.csv"), ("rows.json row 3", "rows.json"),
        ("my rows.parquet row 12", "my rows.parquet"), ("rows.JSON.gz row 0", "rows.JSON.gz"),
        ("hub:owner/name train row 3", "hub:owner/name"),
        ("hub:owner/name:config:test row 3", "hub:owner/name:config:test"),
        ("my folder train[:100] row 3", "my folder"), ("test row arc/7", ""), ("", ""),
    ],
)  # fmt: skip
def test_the_file_is_read_out_of_the_place_of_a_row(where, file):
    assert readers.file_of(where) == file


def test_nan_in_parquet_is_a_cell_without_a_value(data):
    labels = [float("nan") if i % 5 == 0 else float(i % 2) for i in range(20)]
    texts = [f"{i * i} q{i}w v{i}u" for i in range(20)]
    write_parquet("n.parquet", {"text": texts, "label": labels})
    assert "4 dropped: an empty answer" in run_data(data, "clean", "n.parquet", "--out", "n.jsonl")
    assert {row["label"] for row in read("n.jsonl")} == {0.0, 1.0}


ROWS = [{"question": f"Who {i}?", "answer": f"Me {i}"} for i in range(3)]
FRAME = pandas.DataFrame(ROWS)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"data": ROWS}),
        json.dumps({"version": "1.0", "data": ROWS}),
        json.dumps({"rows": ROWS}),
        json.dumps({"question": [r["question"] for r in ROWS], "answer": [r["answer"] for r in ROWS]}),
        *(FRAME.to_json(orient=form) for form in ("records", "columns", "index", "split", "table")),
    ],
)
def test_a_table_in_json_is_read_as_its_rows(tmp_path, text):
    (tmp_path / "rows.json").write_text(text)
    read = readers.read(str(tmp_path / "rows.json"), "train").rows
    assert [{k: v for k, v in row.fields.items() if k != "index"} for row in read] == ROWS


def test_a_table_in_json_by_names_or_of_squad_is_read_question_by_question(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps({f"q{i}": row for i, row in enumerate(ROWS)}))
    read = readers.read(str(tmp_path / "rows.json"), "train").rows
    assert read[1].fields == {"id": "q1", **ROWS[1]}

    answers = [{"text": "the sea", "answer_start": 3}]
    question = {"id": "7", "question": "Where?", "answers": answers, "is_impossible": False}
    article = {"title": "Ships", "paragraphs": [{"context": "In the sea.", "qas": [question]}]}
    (tmp_path / "squad.json").write_text(json.dumps({"version": "v2.0", "data": [article]}))
    task = Task.model_validate({"name": "t", "data": {"test": str(tmp_path / "squad.json")}})
    (item,) = load_task(task, 0).test
    assert (item.id, item.prompt, item.references) == ("7", "Context:\nIn the sea.\n\nWhere?", ("the sea",))


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("content", "written"),
    [
        ({"train": ROWS, "test": ROWS[:1]}, ["rows.json.train.jsonl", "rows.json.test.jsonl"]),
        ([["Who 0?", "Me 0"], ["Who 1?", "Me 1"]], ["rows.json.jsonl"]),
    ],
)
def test_what_leaves_more_than_one_reading_is_refused_with_the_command_that_converts_it(
    tmp_path, monkeypatch, content, written
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as refusal:
        readers.read("rows.json", "train")
    command = refusal.value.problems[0].next_step.removeprefix("name them: ")
    subprocess.run(command, shell=True, check=True)
    assert {readers.read(name, "train").rows[0].fields.popitem()[1] for name in written} == {"Me 0"}


def test_decimals_dates_and_nan_of_parquet_are_texts_and_json(tmp_path):
    cells = {"price": Decimal("12.50"), "day": date(2026, 3, 1), "rate": float("nan")}
    cells["at"] = datetime(2026, 3, 1, 9, tzinfo=UTC)
    frame = pandas.DataFrame({"prompt": [Decimal("3.10")], "reference": [cells], "day": [date(2026, 1, 2)]})
    frame.to_parquet(tmp_path / "rows.parquet")
    fields = {"prompt": "{prompt} on {day}"}
    data = {"test": str(tmp_path / "rows.parquet")}
    (item,) = load_task(Task.model_validate({"name": "t", "data": data, "fields": fields}), 0).test
    assert item.prompt == "3.10 on 2026-01-02"
    expected = {"price": 12.5, "day": "2026-03-01", "rate": None, "at": "2026-03-01T09:00:00+00:00"}
    assert json.loads(item.references[0]) == expected


def test_pictures_in_a_column_are_named_and_refused_where_the_text_refers_to_them(tmp_path):
    frame = pandas.DataFrame([{**row, "image": {"bytes": b"x", "path": "a.png"}} for row in ROWS])
    frame.to_parquet(tmp_path / "rows.parquet")
    found = examine_rows(RowCheck([str(tmp_path / "rows.parquet")])).findings
    assert [f.severity for f in found if f.title.startswith("'image' may hold")] == ["warning"]
    turns = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns, "images": ["a.png"]}))
    with pytest.raises(UserError, match="images in a column, which the text refers to"):
        load_task(Task.model_validate({"name": "t", "data": {"test": str(tmp_path / "rows.jsonl")}}), 0)
