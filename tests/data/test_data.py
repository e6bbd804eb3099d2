"""Rows become examples; splits keep apart what has to be apart."""

import csv
import gzip
import json
import random
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from checked_rows import write
from conftest import refused
from hypothesis import given
from hypothesis import strategies as st

from harness.data import load_task, readers, task_version, version_of_test
from harness.data.contamination import find_contaminated_rows, key
from harness.data.examples import SourcedExample
from harness.data.splits import draw, set_aside
from harness.errors import UserError
from harness.records import Document, Example
from harness.spec import Task


def row(name, **fields):
    return {"prompt": f"What is {name}?", "reference": str(name), **fields}


def make_rows(begin, n, **fields):
    return [row(f"{begin} {i}", **fields) for i in range(n)]


@pytest.fixture
def task(tmp_path):
    """Return a factory of tasks, from rows by split and settings of the data and of the task."""

    def make(test, train=None, pairs=None, documents=None, validation=None, data=None, **fields):
        rows_by_part = {"test": test, "train": train, "pairs": pairs, "documents": documents}
        rows_by_part["validation"] = validation
        present = {split: rows for split, rows in rows_by_part.items() if rows is not None}
        files = {split: write(tmp_path / f"{split}.jsonl", rows) for split, rows in present.items()}
        return Task.model_validate({"name": "tiny", "data": {**files, **(data or {})}, **fields})

    return make


def list_problems(task):
    caught = refused(load_task, task, 0)
    return [(Path(p.where).name, p.found) for p in caught.problems]


def ids(examples):
    return [example.id for example in examples]


def test_all_fields_of_a_row_arrive_and_what_is_missing_is_its_files_name_and_index(task):
    listed = {"references": ["A", "a"], "choices": ["A", "a", "b"], "constraints": [{"kind": "upper"}]}
    example = load_task(task([row("a", id="i", slice="s", **listed)]), 0).test[0]
    turns = ({"role": "user", "content": "What is a?"},)
    answers, choices, checks = ("A", "a"), ("A", "a", "b"), ({"kind": "upper"},)
    assert example == Example("i", turns, answers, choices, "i", "s", constraints=checks)
    assert ids(load_task(task(make_rows("item", 2)), 0).test) == ["test-0", "test-1"]
    examples = load_task(task([row("a", id="x"), row("b", cluster="family")]), 0).test
    assert [e.cluster for e in examples] == ["x", "family"]

    dialogue = (("user", "Hi"), ("assistant", "Yes?"), ("user", "Who?"))
    turns = [{"role": role, "content": text} for role, text in dialogue]
    assert load_task(task([{"messages": turns, "reference": "me"}]), 0).test[0].messages == tuple(turns)
    example = load_task(task([{"id": "t", "text": "The sea."}], kind="bits_per_byte"), 0).test[0]
    assert (example.messages, example.references) == ((), ("The sea.",))

    constrained_row = {"prompt": "Shout.", "constraints": [{"kind": "upper"}]}
    assert load_task(task([constrained_row]), 0).test[0].references == ()


def test_templates_build_an_item_from_the_fields_of_any_row(task):
    rows = [{"Best Answer": 4, "q": "2+2", "n": 7, "kind": "sum"}]
    fields = {"prompt": 'Reply as {"a": 1}: {q}', "reference": "{Best Answer}"}
    fields |= {"id": "q{n}", "slice": "{kind}", "cluster": "c{n}"}
    example = load_task(task(rows, fields=fields), 0).test[0]
    assert (example.prompt, example.references) == ('Reply as {"a": 1}: 2+2', ("4",))
    assert (example.id, example.slice, example.cluster) == ("q7", "sum", "c7")
    rows = [{"prompt": "Who?", "answers": ["me", "I"]}]
    assert load_task(task(rows, fields={"reference": "{answers}"}), 0).test[0].references == ("me", "I")

    rows = [row("a", reference="yes"), row("b", reference="x", choices=["x", "y"])]
    expected = [("yes", "no"), ("x", "y")]
    assert [e.choices for e in load_task(task(rows, labels=["yes", "no"]), 0).test] == expected


def test_a_column_that_is_named_without_braces_is_refused(task):
    rows = [{"prompt": "a", "reference": "b", "text": "c"}, {"prompt": "d", "reference": "e", "text": "f"}]
    wrong = task(rows, fields={"cluster": "text"})
    assert list_problems(wrong) == [("test.jsonl, fields: {cluster: text}", "the column 'text' by its name")]


def test_pairs_keep_both_answers_and_documents_their_order(task):
    pairs = [{"prompt": "Q", "chosen": "good", "rejected": "bad"}]
    pair = load_task(task(make_rows("t", 1), pairs=pairs), 0).pairs[0]
    assert (pair.id, pair.references, pair.rejected) == ("pairs-0", ("good",), "bad")
    documents = [{"id": "b", "title": "B", "text": "bee"}, {"id": "a", "text": "ay"}]
    loaded = load_task(task(make_rows("t", 1), documents=documents), 0).documents
    assert loaded == (Document("b", "B", "bee"), Document("a", "", "ay"))


def test_rows_are_the_same_from_every_kind_of_file(tmp_path):
    import pandas as pd

    rows = [row("a, b"), row('say "c"'), row("d\ne")]
    with (tmp_path / "test.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "reference"])
        writer.writeheader()
        writer.writerows(rows)
    pd.DataFrame(rows).to_parquet(tmp_path / "test.parquet")
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (tmp_path / "test.json.gz").write_bytes(gzip.compress(json.dumps(rows, indent=1).encode()))
    (tmp_path / "test.json").write_text(json.dumps(rows, indent=1))
    write(tmp_path / "test.jsonl", rows)
    files = [str(tmp_path / f"test.{kind}") for kind in "jsonl csv parquet jsonl.gz json.gz json".split()]
    first, *rest = (load_task(Task(name="t", data={"test": file}), 0).test for file in files)
    assert [items == first for items in rest] == [True] * 5

    (tmp_path / "test.jsonl").write_text('{"prompt": "a\u2028b", "reference": "c"}\n', encoding="utf-8")
    (item,) = load_task(Task(name="t", data={"test": str(tmp_path / "test.jsonl")}), 0).test
    assert item.prompt == "a\u2028b"


def test_folders_are_read_by_split_and_a_hub_id_without_a_network_says_how_to_go_on(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", make_rows("train", 5))
    write(folder / "test.jsonl", make_rows("test", 2))
    items = load_task(Task(name="t", data={"train": str(folder), "test": str(folder)}), 0)
    assert (len(items.train) + len(items.validation), len(items.test)) == (5, 2)

    monkeypatch.delenv("HARNESS_DATASETS_DIR", raising=False)
    caught = refused(load_task, Task(name="t", data={"test": "hub:nobody/nothing"}), 0)
    assert "HARNESS_DATASETS_DIR" in caught.problems[0].next_step


def test_hub_sets_stream_by_slice_and_a_damaged_or_empty_one_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "own" / "name"
    folder.mkdir(parents=True)
    write(folder / "train-0.jsonl", make_rows("train", 3))
    (folder / "train-1.jsonl").write_text("{oops\n")
    monkeypatch.setenv("HARNESS_DATASETS_DIR", str(tmp_path))
    rows = readers.stream("hub:own/name", "train")
    assert next(rows).where == "hub:own/name train row 0"
    with pytest.raises(UserError, match="hub:own/name: found 3 rows of train and then one that cannot"):
        list(rows)

    for name, n in (("whole", 5), ("empty", 0)):
        (tmp_path / "own" / name).mkdir(parents=True)
        write(tmp_path / "own" / name / "train.jsonl", make_rows("train", n))
    rows = list(readers.stream("hub:own/whole:default:train[1:3]", "test"))
    assert [row.where for row in rows] == [f"hub:own/whole:default:train[1:3] row {i}" for i in (0, 1)]
    with pytest.raises(UserError, match="hub:own/empty: found a file without rows"):
        readers.read("hub:own/empty", "train")


def test_a_fifth_is_set_aside_without_a_validation_file_and_a_draw_covers_the_whole_file(task):
    items = load_task(task(make_rows("test", 3), train=make_rows("train", 50)), 0)
    assert (len(items.train), len(items.validation)) == (40, 10)

    splits = {"train": make_rows("train", 50), "validation": make_rows("v", 4)}
    items = load_task(task(make_rows("test", 3), **splits), 0)
    assert (len(items.train), len(items.validation)) == (50, 4)

    items = load_task(task(make_rows("test", 30), data={"limits": {"test": 9}}, limit=20), 0)
    assert len(items.test) == 9

    drawn_ids = ids(load_task(task(make_rows("test", 100), limit=20), 0).test)
    places = [int(name.split("-")[1]) for name in drawn_ids]
    assert places == sorted(places)
    assert places[-1] > 50


def test_rows_that_are_evaluated_or_share_an_id_are_refused_with_both_places(task):
    train = [*make_rows("train", 3), row("sea", prompt="  What IS\n the sea? ")]
    problems = list_problems(task([row("a"), row("sea", prompt="what is the sea?")], train=train))
    assert [where for where, _ in problems] == ["train.jsonl:4"]
    assert problems[0][1].endswith("test.jsonl:2 too")

    where, message = list_problems(task([row("a", id="x"), row("b"), row("c", id="x")]))[0]
    assert where == "test.jsonl:3"
    assert message.startswith("id 'x'")
    assert message.endswith("test.jsonl:1")

    pairs = [{"prompt": "What is s 0?", "chosen": "a", "rejected": "b"}]
    splits = {"train": make_rows("train", 3), "test": make_rows("s", 1)}
    assert [where for where, _ in list_problems(task(**splits, pairs=pairs))] == ["pairs.jsonl:1"]


def test_leaks_are_removed_from_training_with_a_message_unless_nothing_is_left(task):
    train = [*make_rows("own", 6), row("t 1"), row("t 0")]
    drop = {"data": {"contamination": "drop"}}
    items = load_task(task(make_rows("t", 3), train=train, validation=make_rows("v", 2), **drop), 0)
    assert ids(items.train) == [f"train-{i}" for i in range(6)]
    assert len(items.test) == 3
    assert [m.split("train.jsonl")[1] for m in items.removed] == [": 2 rows dropped, evaluated too (7, 8)"]

    assert len(list_problems(task(make_rows("t", 3), train=make_rows("t", 3), **drop))) == 1


def test_rows_of_unknown_labels_are_removed_or_refused_and_no_label_is_silently_lost(task):
    rows = [row("a", reference="yes"), row("b", reference="maybe"), row("c", reference="no")]
    items = load_task(task(rows, labels=["yes", "no"], data={"unknown_labels": "drop"}), 0)
    assert ids(items.test) == ["test-0", "test-2"]
    assert items.removed[0].endswith("test.jsonl: 1 of 3 rows dropped, label not among the 2")
    caught = refused(load_task, task([row("a", reference="refnd")], labels=["refund", "repair"]), 0)
    assert caught.problems[0].next_step == "did you mean 'refund'?"


def test_documents_that_are_missing_or_empty_are_refused(task):
    documents = [{"id": "opening-hours", "text": "Nine to five."}]
    problems = list_problems(task([row("a", documents=["opening-hour"])], documents=documents))
    assert problems == [("test.jsonl:1", "unknown document 'opening-hour'")]
    blank = {"id": "b", "text": " \u3000\n"}
    problems = list_problems(task([row("a")], documents=[{"id": "a", "text": "ay"}, blank]))
    assert problems == [("documents.jsonl:2", "an empty document")]


@pytest.mark.parametrize(("codec", "name", "packed"), [("utf-16", "UTF-16", True)])
def test_utf16_is_refused_with_the_command_that_converts_it(tmp_path, monkeypatch, codec, name, packed):
    monkeypatch.chdir(tmp_path)
    text = "prompt,reference\n" + "".join(f"What is {i}?,größer {i}\n" for i in range(500))
    file = Path("my rows.csv.gz" if packed else "my rows.csv")
    file.write_bytes(gzip.compress(text.encode(codec)) if packed else text.encode(codec))
    (problem,) = refused(readers.read, str(file), "test").problems
    assert (problem.found, problem.expected) == (f"text in {name}", "text in UTF-8")
    subprocess.run(problem.next_step, shell=True, check=True)
    assert len(readers.read("my rows.utf8.csv", "test").rows) == 500


@pytest.fixture
def read_text(tmp_path):
    """Return a function that writes a file and reads its rows."""

    def read(content, name="test.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return readers.read(str(tmp_path / name), "test").rows

    return read


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfprompt;reference\r\na;b, c\r\n",
        b"sep=;\r\nprompt;reference\r\na;b, c\r\n;\r\n",
        b"prompt\treference\na\tb, c\n\n",
        b'prompt ; reference\na;"b, c"\n',
        b'prompt,reference\na,"b, c"\n,\n',
    ],
)
def test_separated_values_are_read_as_spreadsheets_export_them(read_text, content):
    (row,) = read_text(content)
    assert row.fields == {"prompt": "a", "reference": "b, c"}


def test_a_csv_is_read_whatever_its_columns_are_called(read_text, tmp_path):
    (row,) = read_text("a,,a,a\n1,2,3,4\n")
    assert row.fields == {"a": "1", "column 2": "2", "a 2": "3", "a 3": "4"}
    (row,) = read_text("prompt, long\treference\na, b\tc\n", "test.tsv")
    assert row.fields == {"prompt, long": "a, b", "reference": "c"}
    (row,) = read_text(f"prompt,reference\n{'a ' * 100_000},b\n")
    assert len(row.fields["prompt"]) == 200_000

    read_text("te{x}t,reference\na,b\nc,d\n")
    data = {"test": str(tmp_path / "test.csv")}
    task = Task(name="t", data=data, fields={"prompt": "Q: {te{x}t}"})
    assert [text for _, text in list_problems(task)] == ["the column 'te{x}t', which no template can name"]
    second = Task(name="t", data=data, fields={"prompt": "Q: {reference}"})
    assert load_task(second, 0).test[0].prompt == "Q: b"


def test_of_many_malformed_lines_three_are_shown_and_all_are_counted(tmp_path):
    (tmp_path / "test.jsonl").write_text("{\n" * 1200)
    problems = list_problems(Task(name="t", data={"test": str(tmp_path / "test.jsonl")}))
    assert len(problems) == 4
    assert problems[-1][1].startswith("1,200 malformed lines")


# Families that overlap in cluster and in question, so that groups chain.
family = st.tuples(st.integers(0, 12), st.integers(0, 12), st.sampled_from("xyz"))
families = st.lists(family, min_size=2, max_size=60)


def source_examples(rows):
    def source(i, cluster, question, label):
        turns = ({"role": "user", "content": f"Q{question}"},)
        return SourcedExample(Example(f"e{i}", turns, (label,), tuple("xyz"), f"c{cluster}"), f"f:{i}")

    return [source(i, *row) for i, row in enumerate(rows)]


@given(families, st.integers(0, 5))
def test_a_split_keeps_every_row_empties_no_side_and_parts_no_cluster_and_no_question(rows, seed):
    whole = source_examples(rows)
    try:
        train, validation = set_aside(whole, random.Random(seed))
    except UserError:
        return
    assert sorted(map(str, train + validation)) == sorted(map(str, whole))
    assert train
    assert validation
    for trait in (lambda row: row.example.cluster, lambda row: key(row.example)):
        assert not {trait(row) for row in train} & {trait(row) for row in validation}


def test_rows_that_all_ask_the_same_or_are_of_one_cluster_cannot_be_split(task):
    rows = [{**row, "prompt": "Which?", "text": f"A text of {i}."} for i, row in enumerate(make_rows("r", 9))]
    (problem,) = refused(load_task, task(make_rows("t", 2), train=rows), 0).problems
    assert problem.found == "training rows of one cluster or question only"
    problems = list_problems(task(make_rows("t", 2), train=make_rows("r", 5, cluster="one")))
    assert problems == [("train.jsonl:1", problem.found)]


@given(families, st.integers(0, 70), st.integers(0, 70), st.integers(0, 5))
def test_a_draw_has_its_size_every_label_by_its_share_and_each_smaller_draw(rows, one, other, seed):
    whole, limits = source_examples(rows), sorted((one, other))
    small, large = (draw(whole, limit, random.Random(seed)) for limit in limits)
    assert [len(small), len(large)] == [min(limit, len(rows)) for limit in limits]
    assert set(ids(small)) <= set(ids(large))
    counts = Counter(e.references[0] for e in large)
    for label, n in Counter(label for *_, label in rows).items():
        # Three labels, each rounded by less than 1.
        assert abs(counts[label] - len(large) / len(rows) * n) < 2


@given(families, families)
def test_a_leak_is_found_exactly_where_a_question_is_shared(train, test):
    questions = {q for _, q, _ in test}
    leaks = find_contaminated_rows(source_examples(train), source_examples(test))
    assert len(leaks) == sum(q in questions for _, q, _ in train)


def test_a_version_that_is_remembered_follows_every_change_and_an_unusable_file_is_refused(task, own_cache):
    def versions(spec, seed=0):
        version = task_version(spec, load_task(spec, seed), "test")
        assert [version_of_test(spec, seed) for _ in range(2)] == [version, version]
        return version

    rows, few_rows, many_rows = make_rows("first", 5), make_rows("train", 30), make_rows("train", 40)
    first = versions(task(rows, train=few_rows))
    assert versions(task(rows, train=many_rows)) == first
    changed_versions = [
        versions(task([{**fields, "reference": "edited"} for fields in rows], train=few_rows)),
        versions(task(rows[:4], train=few_rows)),
        *(versions(task(rows, train=few_rows, **changes)) for changes in (
            {"max_new_tokens": 3}, {"num_fewshot": 2}, {"system": "Be brief."}, {"limit": 2},
        )),
        versions(task(rows, train=many_rows, num_fewshot=2)),
    ]  # fmt: skip
    assert len({first, *changed_versions}) == 8
    loaded = [(spec := task(rows, train=train), load_task(spec, 0)) for train in (few_rows, many_rows)]
    for split in ("validation", None):
        assert len({task_version(*pair, *filter(None, [split])) for pair in loaded}) == 2, split

    spec = task(rows)
    version_of_test(spec, 0)
    Path(spec.data.test).write_text("{")
    with pytest.raises(UserError):
        version_of_test(spec, 0)


def list_clusters(rows):
    return [example.cluster for example in rows]


def test_evaluated_rows_that_ask_the_same_are_one_cluster_whatever_their_answers(task):
    rows = [row("a"), {**row("b"), "reference": "x"}, {"prompt": "what is  A?", "reference": "other"}]
    items = load_task(task(rows, validation=[row("v"), row("w"), row("v")]), 0)
    first, second, again = list_clusters(items.test)
    assert first == again != second
    assert len(set(list_clusters(items.validation))) == 2
    note = "1 repeat of questions in {}; each question counts as one item"
    assert [n.rpartition(": ")[2] for n in items.notes] == [note.format(n) for n in ("validation", "test")]


def test_clusters_and_questions_that_are_shared_are_one_and_others_none(task):
    pairs = (("a", "one"), ("b", "one"), ("a", "two"), ("c", "two"))
    rows = [row(name, cluster=cluster) for name, cluster in pairs]
    items = load_task(task([*rows, row("d")]), 0)
    assert list_clusters(items.test)[:4] == ["one"] * 4
    assert list_clusters(items.test)[4] not in ("one", "two")

    turn, systems = {"role": "user", "content": "Who?"}, ("Ann speaks.", "Bob speaks.")
    rows = [{"messages": [{"role": "system", "content": s}, turn], "reference": "I"} for s in systems]
    assert len(set(list_clusters(load_task(task(rows), 0).test))) == 2
    chosen = [{"prompt": "Which?", "reference": hue, "choices": [hue, "none"]} for hue in ("red", "blue")]
    assert len(set(list_clusters(load_task(task(chosen, kind="choice"), 0).test))) == 2
