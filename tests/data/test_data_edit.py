"""Edits of rows: splits, mixtures and samples; which files are refused at which line; none is overwritten."""

import json
import signal
from pathlib import Path

import edited_rows
import pytest
from checked_rows import list_cases
from edited_rows import jsonl, list_rows, make_distinct_rows, manifest, read, read_refusal, rows_of, run_data
from forking import terminal_signals
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import load_task, readers
from harness.data.edit.changes import EditedRow
from harness.data.edit.clean import clean
from harness.data.edit.mix import RowMixture, mix, sample, shares
from harness.data.edit.save import Edit, save
from harness.data.text_files import Row, Rows
from harness.errors import UserError
from harness.records import fold_text
from harness.spec import Task


def parts_of(rows, **options):
    split = edited_rows.split_rows(rows, **options)
    return {name: [row.fields["n"] for row in part] for name, part in split.parts.items()}


@settings(max_examples=25)
@given(edited_rows.draw_rows("text", "label"), st.integers(0, 3))
def test_a_split_keeps_every_row_once_and_what_asks_alike_in_one_part(rows, seed):
    try:
        split = edited_rows.split_rows(rows, (0.5, 0.0, 0.5), seed=seed)
    except UserError:
        return
    assert sorted(row.where for part in split.parts.values() for row in part) == sorted(r.where for r in rows)
    train, test = ({fold_text(row.fields["text"]) for row in split.parts[name]} for name in ("train", "test"))
    assert not (train & test) - {""}  # an empty question asks nothing


def test_a_split_has_its_shares_by_class_and_group_and_keeps_the_order_of_the_file():
    parts = parts_of(make_distinct_rows(100), shares=(0.7, 0.1, 0.2))
    assert {name: len(part) for name, part in parts.items()} == {"test": 20, "validation": 10, "train": 70}
    assert all(part == sorted(part) for part in parts.values())
    assert parts != parts_of(make_distinct_rows(100), shares=(0.7, 0.1, 0.2), seed=1)

    rows = make_distinct_rows(100, lambda i: "rare" if i % 10 == 0 else "often")
    split = edited_rows.split_rows(rows, (0.6, 0.2, 0.2), stratify="label")
    counts = {name: sum(r.fields["label"] == "rare" for r in part) for name, part in split.parts.items()}
    assert counts == {"train": 6, "validation": 2, "test": 2}
    parts = parts_of(make_distinct_rows(60, lambda i: f"customer {i // 5}"), group="label")
    groups = [{n // 5 for n in part} for part in parts.values()]
    assert sum(map(len, groups)) == 12


def test_rows_of_one_cluster_stay_together_unless_another_group_is_named(data):
    rows = [
        {"text": f"{i * i} q{i}w v{i}u", "label": "x", "cluster": i // 5, "who": f"w{i % 8}"}
        for i in range(40)
    ]
    jsonl(Path("r.jsonl"), rows)
    _, _, err = data("split", "r.jsonl", "--shares", "0.5,0.25,0.25", "--out", "own")
    assert "rows of one 'cluster' stay together; --group names another column" in err
    assert manifest("own/split")["parameters"]["group"] == "cluster"
    run_data(data, "split", "r.jsonl", "--folds", "4", "--group", "who", "--out", "named")

    def n_parts_a_value(folder, column):
        parts = [{row[column] for row in read(str(file))} for file in Path(folder).glob("*.jsonl")]
        return {sum(value in part for part in parts) for value in {row[column] for row in rows}}

    assert (n_parts_a_value("own", "cluster"), n_parts_a_value("named", "who")) == ({1}, {1})
    assert n_parts_a_value("named", "cluster") != {1}


def test_questions_that_are_alike_by_a_chain_of_others_stay_together():
    words = [f"{a}{b}{a}" for a in "bcdfghjk" for b in "aeiou"]
    chain = [{"text": " ".join(words[i : i + 20]), "label": "x", "n": i} for i in range(0, 20, 2)]
    rows = rows_of(*chain, *(row.fields | {"n": row.fields["n"] + 100} for row in make_distinct_rows(20)))
    for seed in range(5):
        parts = parts_of(rows, shares=(0.5, 0.0, 0.5), seed=seed)
        assert sum(any(n < 100 for n in part) for part in parts.values()) == 1


def test_a_split_by_time_trains_on_the_past_and_drops_what_it_knows():
    rows = make_distinct_rows(20)
    dated_rows = [
        row._replace(fields={**row.fields, "day": f"2024-05-{20 - i:02}", "who": f"c{min(i, 18)}"})
        for i, row in enumerate(rows)
    ]
    dated_rows[0].fields["text"] = dated_rows[19].fields["text"]
    split = edited_rows.split_rows(dated_rows, (0.5, 0.25, 0.25), time="day", group="who")
    expected = {"train": list(range(10, 20)), "validation": list(range(5, 10)), "test": [1, 2, 3, 4]}
    assert {name: [r.fields["n"] for r in part] for name, part in split.parts.items()} == expected
    expected = ["r.jsonl:1: dropped, alike to a question of an earlier part of r.jsonl:20"]
    assert [str(change) for change in split.changes] == expected


@pytest.mark.parametrize("day", ["31/05/2024", None])
def test_a_time_that_cannot_be_read_is_refused_at_its_line(data, day):
    rows = [{"text": f"q{i}", "label": "x", "day": "2024-05-01"} for i in range(9)]
    jsonl(Path("r.jsonl"), [*rows, {**rows[0], "day": day}])
    found = f"{day!r} in 'day', which is not a time" if day else "no time in 'day'"
    error = read_refusal(data, "split", "r.jsonl", "--time", "day", "--out", "p")
    assert f"r.jsonl:10: found {found}; expected" in error


def test_the_parts_of_a_split_are_files_that_compare_reads_and_twice_the_same(data):
    jsonl(Path("r.jsonl"), [row.fields for row in make_distinct_rows(50)])
    run_data(data, "split", "r.jsonl", "--stratify", "label", "--out", "a", "--license", "CC0")
    run_data(data, "split", "r.jsonl", "--stratify", "label", "--out", "b", "--license", "CC0")
    written = {path.name: path.read_bytes() for path in Path("a").iterdir()}
    assert written == {path.name: path.read_bytes() for path in Path("b").iterdir()}
    assert sorted(written) == ["split.manifest.json", "test.jsonl", "train.jsonl", "validation.jsonl"]
    assert [len(read(f"a/{part}.jsonl")) for part in ("train", "validation", "test")] == [32, 8, 10]
    run_data(data, "clean", "a/train.jsonl", "--out", "c.jsonl", "--note", "no names")
    assert (manifest("c.jsonl")["licenses"], manifest("c.jsonl")["notes"]) == (["CC0"], ["no names"])


@pytest.mark.parametrize(("words", "said"), list_cases("refused_rows.txt", "split"))
def test_a_split_that_cannot_be_made_is_refused(data, words, said):
    labels = ["rare" if i == 3 else "often" for i in range(20)]
    rows = [{"text": f"{i * i} q{i}w v{i}u", "label": label, "all": "x"} for i, label in enumerate(labels)]
    jsonl(Path("r.jsonl"), rows)
    assert said in read_refusal(data, "split", "r.jsonl", "--out", "parts", *words.split())
    assert not Path("parts").exists()


def test_a_folder_that_is_not_empty_is_refused_and_parts_far_from_their_shares_are_said(data):
    file = jsonl(Path("r.jsonl"), [row.fields for row in make_distinct_rows(20)])
    Path("full").mkdir()
    jsonl(Path("full", "mine.jsonl"), [{}])
    assert "a folder in use" in read_refusal(data, "split", "r.jsonl", "--out", "full")
    assert "never changed in place" in read_refusal(data, "split", "r.jsonl", "--out", file)
    Path("empty").mkdir()
    run_data(data, "split", "r.jsonl", "--out", "empty")

    rows = [{"text": f"{i * i} q{i}w v{i}u", "label": "x", "g": i // 10} for i in range(30)]
    jsonl(Path("r.jsonl"), rows)
    code, _, err = data("split", "r.jsonl", "--group", "g", "--out", "parts")
    assert (code, "train has 33 % of the rows, not 64 %" in err) == (0, True)


@pytest.mark.parametrize("times", [["-3", "7"], ["2024-01", "2024-02-03"], ["20240131", "20240201"]])
def test_times_are_numbers_months_and_days(times):
    rows = make_distinct_rows(20)
    for i, row in enumerate(rows):
        row.fields["t"] = times[i // 10]
    assert parts_of(rows, time="t", shares=(0.5, 0.0, 0.5))["train"] == list(range(10))


def test_folds_have_every_row_once_by_class_and_group_and_say_so(data):
    rows = [{"text": f"{i * i} q{i}w v{i}u", "label": f"l{i % 2}", "who": f"w{i // 4}"} for i in range(60)]
    jsonl(Path("r.jsonl"), rows)
    for folder in ("a", "b"):
        words = ("--folds", "5", "--stratify", "label", "--group", "who")
        run_data(data, "split", "r.jsonl", *words, "--out", folder)
    parts = [read(f"a/fold-{i}.jsonl") for i in range(1, 6)]
    assert sorted(row["text"] for part in parts for row in part) == sorted(row["text"] for row in rows)
    assert [sum(row["label"] == "l0" for row in part) for part in parts] == [6] * 5
    assert len({row["who"] for row in rows}) == sum(len({row["who"] for row in part}) for part in parts)
    assert manifest("a/split")["parameters"]["folds"] == 5
    first, second = ({file.name: file.read_bytes() for file in Path(folder).iterdir()} for folder in "ab")
    assert first == second


def files_of(*sizes):
    names = [f"{chr(97 + i)}.jsonl" for i in range(len(sizes))]
    return [
        Rows(name, name, [Row(f"{name}:{i}", {"n": i, "id": f"{i}"}) for i in range(n)])
        for name, n in zip(names, sizes, strict=True)
    ]


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        (RowMixture(), [0.1, 0.9]),
        (RowMixture(temperature=2), [0.25, 0.75]),  # √100 : √900 = 1 : 3
        (RowMixture(temperature=1e6), [0.5, 0.5]),
        (RowMixture(weights=(0.3, 0.7)), [0.3, 0.7]),
    ],
)
def test_shares_are_the_weights_or_sizes_at_a_temperature(mixture, expected):
    assert shares([100, 900], mixture) == pytest.approx(expected, abs=1e-4)


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.1, 100), st.integers(0, 3))
def test_a_mixture_invents_no_row_and_drops_what_it_does_not_draw(a, b, temperature, seed):
    files = files_of(a, b)
    outcomes = list(mix(files, RowMixture(temperature=temperature, seed=seed)))
    assert [(o.row or o.change).where for o in outcomes] == [row.where for f in files for row in f.rows]
    assert outcomes == list(mix(files, RowMixture(temperature=temperature, seed=seed)))


def test_a_mixture_has_its_number_of_rows_and_ids_of_their_own(data):
    mixed = list_rows(mix(files_of(50, 100), RowMixture(weights=(0.25, 0.75), n_rows=81)))
    assert [row.fields["source"] for row in mixed] == ["a.jsonl"] * 20 + ["b.jsonl"] * 61
    assert all(row.where.startswith(row.fields["source"]) for row in mixed)
    mixed = list_rows(mix(files_of(3, 3), RowMixture(n_rows=40, replacement=True)))
    assert len(mixed) == 40
    assert len({row.fields["id"] for row in mixed}) == 40

    files = [make_rows_with_ids("a.jsonl", 1, 2, 3), make_rows_with_ids("b.csv", "1", "2", "4")]
    idents = [row.fields["id"] for row in list_rows(mix(files, RowMixture(weights=(0.5, 0.5))))]
    assert idents == [1, 2, 3, "1-2", "2-2", "4"]
    expected = ["1", "2", "4", 5, 6, 3]
    assert [row.fields["id"] for row in list_rows(mix(files[::-1], RowMixture()))] == expected


def make_rows_with_ids(name, *idents):
    return Rows(name, name, [Row(f"{name}:{i}", {"id": ident}) for i, ident in enumerate(idents)])


def test_a_mixture_needs_two_different_files_of_whatever_columns_and_kinds(data):
    jsonl(Path("a.jsonl"), [{"prompt": "a", "reference": "x"}])
    error = read_refusal(data, "mix", "a.jsonl", "./a.jsonl", "--out", "n.jsonl")
    assert "found a.jsonl, ./a.jsonl; expected two different files or more; next: " in error
    error = read_refusal(data, "mix", "a.jsonl", "--out", "n.jsonl")
    assert "found a.jsonl; expected two different files or more; next: name each once" in error

    Path("b.csv").write_text("prompt,reference,topic\nb,y,cards\n")
    run_data(data, "mix", "a.jsonl", "b.csv", "--out", "n.csv")
    expected = ["prompt,reference,source,topic", "a,x,a.jsonl,", "b,y,b.csv,cards"]
    assert Path("n.csv").read_text().splitlines() == expected


@pytest.mark.parametrize(("words", "said"), list_cases("refused_rows.txt", "mix"))
def test_a_mixture_that_cannot_be_made_is_refused(data, words, said):
    for name in ("a.jsonl", "b.jsonl"):
        jsonl(Path(name), [row.fields for row in make_distinct_rows(9)])
    assert said in read_refusal(data, "mix", "a.jsonl", "b.jsonl", "--out", "n.jsonl", *words.split())


@given(st.integers(1, 30), st.integers(0, 3))
def test_a_smaller_sample_is_part_of_a_larger_one_in_the_order_of_the_file(n, seed):
    content = Rows("r", "r", make_distinct_rows(31))
    small, large = (list_rows(sample(content, size, None, seed)) for size in (n, n + 1))
    assert len(small) == n
    assert [row for row in large if row in small] == small
    assert large == sorted(large, key=lambda row: row.fields["n"])


def test_a_balanced_sample_has_equally_many_of_every_value_or_is_refused():
    rows = make_distinct_rows(60, lambda i: "rare" if i % 10 == 0 else "often")
    sampled = list_rows(sample(Rows("r", "r", rows), 10, "label", 0))
    assert sorted(row.fields["label"] for row in sampled) == ["often"] * 5 + ["rare"] * 5
    message = r"6 rows of the class 'rare'; expected at least 10 .* --rows 12 at most"
    with pytest.raises(UserError, match=message):
        sample(Rows("r", "r", rows), 20, "label", 0)
    rows = make_distinct_rows(60, lambda i: f"label {i % 4}")
    with pytest.raises(UserError, match=r"--rows: found 3 for 4 values of 'label'; .* next: --rows 4"):
        sample(Rows("r", "r", rows), 3, "label", 0)


def test_what_is_not_drawn_stands_in_the_manifest(data):
    jsonl(Path("r.jsonl"), [row.fields for row in make_distinct_rows(9)])
    output = run_data(data, "sample", "r.jsonl", "--rows", "4", "--out", "n.jsonl")
    assert output.startswith("9 read, 4 written")
    assert len(read("n.jsonl")) == 4
    assert {row["reason"] for row in manifest("n.jsonl")["rows"]} == {"not drawn"}
    output = read_refusal(data, "sample", "r.jsonl", "--rows", "10", "--out", "m.jsonl")
    assert "expected at least 10" in output


@pytest.mark.parametrize(
    ("card", "licenses"),
    [
        ("---\nlicense: [mit, other]\nlicense_name: house-rules\n---\n", ["mit", "house-rules"]),
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


@pytest.mark.parametrize("name", ["n.jsonl", "n.json", "n.jsonl.gz", "n.parquet"])
def test_types_columns_and_order_stay(data, name):
    rows = [{"prompt": "b", "reference": "x", "n": 2, "w": 0.5, "tags": ["u"], "ok": True}] * 2
    rows.append({"prompt": "a", "reference": "y", "n": None, "w": 1.0, "tags": [], "ok": False})
    jsonl(Path("r.jsonl"), rows)
    run_data(data, "clean", "r.jsonl", "--out", name)
    assert read(name) == rows
    run_data(data, "clean", name, "--out", "again.jsonl")
    assert read("again.jsonl") == rows


def test_nothing_is_written_over_a_file_or_folder_that_is_read_there_or_in_the_way(data):
    Path("rows").mkdir()
    jsonl(Path("rows/train.jsonl"), [{"prompt": "a", "reference": "x"}])
    assert "the folder that is read" in read_refusal(data, "clean", "rows", "--out", "rows/test.jsonl")
    assert "a folder in use" in read_refusal(data, "split", "rows/train.jsonl", "--out", ".")

    jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x"}])
    jsonl(Path("n.jsonl"), [{"mine": 1}])
    assert "there already" in read_refusal(data, "clean", "r.jsonl", "--out", "n.jsonl")
    Path("m.jsonl.manifest.json").write_text("{}")
    assert "m.jsonl.manifest.json" in read_refusal(data, "clean", "r.jsonl", "--out", "m.jsonl")
    Path("soft.jsonl").symlink_to("r.jsonl")
    Path("hard.jsonl").hardlink_to("r.jsonl")
    for path in ("./r.jsonl", "soft.jsonl", "hard.jsonl"):
        assert "never changed in place" in read_refusal(data, "clean", "r.jsonl", "--out", path)


@pytest.mark.parametrize(("words", "said"), list_cases("refused_rows.txt", "clean"))
def test_an_option_that_cannot_be_used_is_refused_with_the_next_step(data, words, said):
    jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x"}])
    assert said in read_refusal(data, "clean", "r.jsonl", *words.split())


@pytest.mark.parametrize(("file", "said"), list_cases("refused_rows.txt", "files"))
def test_a_file_that_cannot_be_used_is_refused_at_its_line_and_leaves_nothing(data, file, said):
    name, _, content = file.partition(" ")
    Path(name).write_bytes(json.loads(content).encode("latin-1"))
    assert said in read_refusal(data, "clean", name, "--out", "n.jsonl")


def test_the_manifest_counts_the_rows_that_hold_personal_data(data):
    mail, call = "ann@example.org", "call +49 30 901820"
    texts = (f"write to {mail}", call, f"{mail}, or {call}", "none")
    jsonl(Path("r.jsonl"), [{"prompt": text, "reference": "ab"[i % 2]} for i, text in enumerate(texts)])
    output = run_data(data, "clean", "r.jsonl", "--out", "n.jsonl")
    assert "2 rows with e-mail addresses, by their form" in output
    assert manifest("n.jsonl")["personal_data"] == {"e-mail addresses": 2, "phone numbers": 2}
    jsonl(Path("few.jsonl"), [{"prompt": "none", "reference": "a"}])
    run_data(data, "clean", "few.jsonl", "--out", "m.jsonl")
    assert "personal_data" not in manifest("m.jsonl")


def test_a_first_line_that_is_probably_a_row_is_refused_unless_columns_are_named(data):
    lines = [f"q{i},{('card', 'pin')[i % 2]}\n" for i in range(9)]
    Path("r.csv").write_text("I lost my card,card\n" + "".join(lines))
    for verb in ("clean", "dedup", "split"):
        error = read_refusal(data, verb, "r.csv", "--out", "n.csv" if verb != "split" else "n")
        assert "'card', which 5 rows hold" in error
    run_data(data, "clean", "r.csv", "--prompt", "I lost my card", "--out", "n.csv")
    code, _, err = data("sample", "r.csv", "--rows", "3", "--out", "s.csv")
    assert (code, "warning: r.csv:1" in err) == (0, True)


def test_a_file_that_comes_while_another_is_made_is_not_replaced(data):
    rows = list(clean(rows_of({"text": "a", "label": "x"}), edited_rows.ASKED))

    def yield_slowly():
        yield from rows
        Path("n.jsonl").write_text("mine")

    jsonl(Path("r.jsonl"), [{"text": "a", "label": "x"}])
    with pytest.raises(UserError, match="a file that came while this one was made"):
        save(Edit("clean", {}, ["r.jsonl"]), yield_slowly(), Path("n.jsonl"))
    assert sorted(p.name for p in Path().iterdir()) == ["n.jsonl", "r.jsonl"]
    assert Path("n.jsonl").read_text() == "mine"


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


ROWS = [{"question": f"Who {i}?", "answer": f"Me {i}"} for i in range(3)]


@pytest.mark.parametrize("content", [ROWS, {"version": "1.0", "data": ROWS}, {"rows": ROWS}])
def test_a_list_in_json_is_read_as_its_rows(tmp_path, content):
    (tmp_path / "rows.json").write_text(json.dumps(content))
    assert [row.fields for row in readers.read(str(tmp_path / "rows.json"), "train").rows] == ROWS


def test_squad_in_json_is_read_question_by_question(tmp_path):
    answers = [{"text": "the sea", "answer_start": 3}]
    question = {"id": "7", "question": "Where?", "answers": answers, "is_impossible": False}
    article = {"title": "Ships", "paragraphs": [{"context": "In the sea.", "qas": [question]}]}
    (tmp_path / "squad.json").write_text(json.dumps({"version": "v2.0", "data": [article]}))
    task = Task.model_validate({"name": "t", "data": {"test": str(tmp_path / "squad.json")}})
    (item,) = load_task(task, 0).test
    assert (item.id, item.prompt, item.references) == ("7", "Context:\nIn the sea.\n\nWhere?", ("the sea",))
