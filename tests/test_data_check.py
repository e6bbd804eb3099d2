"""The check of rows: its page, its commands, repeated rows, and that clean rows are quiet."""

import csv
import gzip
import json
import random
import shlex
from importlib import import_module
from itertools import product
from pathlib import Path

import pytest
from checked_rows import (
    LABELS,
    WORDS,
    alarms,
    damage_rows,
    lines,
    make_clean_rows,
    recognise_rows,
    run_command,
    write,
    write_csv,
)
from conftest import find_shared_data, refused
from typer.testing import CliRunner

from harness.cli import app
from harness.data import check
from harness.data.check import read_table
from harness.data.row_traits import RULES
from harness.experiment.check_rows import RowCheck, examine_rows
from harness.records import has_negation
from harness.report.findings import order_commands
from harness.spec import Task


def test_every_check_states_its_false_alarms():
    assert len(check.MODULES) >= 12
    for name, module in check.MODULES.items():
        function = getattr(import_module(f"harness.data.check.{module}"), f"check_{name}")
        assert "False alarms:" in function.__doc__, name


def test_clean_rows_raise_no_alarm(find):
    assert alarms(find(make_clean_rows())) == []


def test_texts_alone_are_checked_the_worst_stands_first_and_many_empty_columns_are_one_note(find):
    rows = make_clean_rows(60)
    found = find([*rows, rows[0], {"text": "", "label": "refund"}])
    assert [f.severity for f in found] == sorted((f.severity for f in found), key=check.SEVERITIES.index)
    assert found[0].check == "missing_values"
    texts = [{"text": row["text"]} for row in rows]
    (found,) = alarms(find([*texts, texts[0]]))
    assert (found.check, lines(found)) == ("repeated_rows", [61])

    rows = make_clean_rows(40)
    for n, row in enumerate(rows):
        row |= {f"c{i}": "x" for i in range(20) if n % 7 or i < 5}
    titles = [f.title for f in find(rows, "missing_values") if "empty" in f.title]
    assert (len(titles), titles[0], titles[-1]) == (
        9,
        "column 'c5' is empty",
        "7 more columns with empty cells",
    )


def plant_edge_cases(rows):
    """Make a tenth of test rows of each case that training rows seldom are."""
    planted = [dict(row) for row in rows]
    for i, row in enumerate(planted):
        if i % 10 < 4:
            text = row["text"]
            row["text"] = (f"xq{i} zv{i} wk{i}", f"{text} {text}", f"{text} not", f"{text} crashed")[i % 10]
    return planted


def test_edge_cases_are_counted_in_training_and_test_and_warned_of_where_training_has_none(find, tmp_path):
    clean, tested = (
        [r for r in make_clean_rows(500, seed) if not has_negation(r["text"])][:n]
        for seed, n in ((0, 400), (9, 200))
    )
    test = write(tmp_path / "test.jsonl", plant_edge_cases(tested))
    warned = alarms(find(clean, "edge_cases", test=[test]))
    assert [(f.count, f.of) for f in warned] == [(20, 200)] * 4
    assert {case for case in RULES for f in warned if f"that test has: {case}: " in f.title} == set(RULES)
    assert {place.partition(":")[0] for f in warned for place in f.rows} == {test}

    both = find(plant_edge_cases(clean), "edge_cases", test=[test])
    assert [(f.severity, f.count, f.of) for f in both] == [("note", 40, 400)] * 4
    assert {f.example for f in both} == {"and 20 of 200 test items, reported as a slice"}


@pytest.mark.weekly
def test_a_random_test_set_of_real_rows_has_no_case_that_training_lacks(find, tmp_path):
    packed = find_shared_data("rows/dolly_3k/train.jsonl.gz").read_bytes()
    written = gzip.decompress(packed).decode().splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if k != "id"} for line in written]
    random.Random(0).shuffle(rows)
    n = len(rows) // 5
    found = find(rows[n:], "edge_cases", test=[write(tmp_path / "test.jsonl", rows[:n])])
    assert found
    assert alarms(found) == []


def run(*arguments):
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


@pytest.fixture(scope="module")
def duplicate_file(tmp_path_factory):
    rows = make_clean_rows()
    return write(tmp_path_factory.mktemp("rows") / "rows.jsonl", [*rows, rows[0]])


@pytest.mark.e2e
def test_the_page_json_and_html_show_the_rows_their_meaning_and_the_command(duplicate_file, tmp_path):
    shown = run(duplicate_file, "--fail-on", "error")
    assert shown.exit_code == 0
    for part in ("warning", "rows: ", "e.g.: ", "means: ", "next: harness data dedup "):
        assert part in shown.stdout
    done = run(duplicate_file, "--json", "--html", tmp_path / "page.html", "--fail-on", "warning")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    (alarm,) = [f for f in found["findings"] if f["severity"] == "warning"]
    assert (found["n"], alarm["count"], alarm["share"], len(alarm["rows"])) == (401, 1, 1 / 401, 1)
    page = (tmp_path / "page.html").read_text()
    assert "default-src 'none'" in page
    assert "exact duplicates of an earlier row" in page

    evil = {"text": "<script>alert(1)</script> a b c", "label": "refund"}
    path = write(tmp_path / "rows.jsonl", [*make_clean_rows(), evil, {**evil, "label": "invoice"}])
    run(path, "--html", tmp_path / "page.html")
    assert "<script>" not in (tmp_path / "page.html").read_text()


def list_problems(*arguments, **asked):
    return refused(examine_rows, RowCheck(list(map(str, arguments)), **asked)).problems


def test_problems_of_all_files_come_at_once(tmp_path):
    (tmp_path / "header.csv").write_text("text,label\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a", "label": "b"}\n')[:-9])
    (tmp_path / "broken.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": \n')
    good = write(tmp_path / "rows.jsonl", make_clean_rows())
    names = ("header.csv", "cut.jsonl.gz", "broken.jsonl")
    found = list_problems(good, *(tmp_path / name for name in names))
    assert [Path(p.where.partition(":")[0]).name for p in found] == list(names)
    assert found[2].where.endswith("broken.jsonl:2")


def test_columns_and_files_that_do_not_fit_are_refused_with_the_next_step(tmp_path):
    path = write(tmp_path / "rows.jsonl", make_clean_rows())
    assert list_problems(path, date="lable")[0].next_step == "did you mean 'label'?"
    assert list_problems(path, prompt="txt")[0].next_step == "did you mean 'text'?"
    (problem,) = list_problems(path, tmp_path / "." / "rows.jsonl")
    assert (problem.found, bool(problem.next_step)) == ("a file that is named twice", True)

    rows = make_clean_rows()
    rows[4]["label"] = ["refund"]
    (problem,) = list_problems(write(tmp_path / "rows.jsonl", rows))
    assert problem.where.endswith("rows.jsonl:5")
    assert "'label' of mixed types" in problem.found


def test_the_rows_of_a_task_are_checked_as_the_task_reads_them(tmp_path, monkeypatch):
    from harness.experiment.check_rows import check_target

    monkeypatch.chdir(tmp_path)
    rows = make_clean_rows(60)
    data = {"train": write(tmp_path / "a.jsonl", rows), "test": write(tmp_path / "b.jsonl", rows[:5])}
    fields = {"prompt": "{text}", "reference": "{label}"}
    said = check_target(Task(name="rows", data=data, fields=fields, labels=LABELS))
    first = "error: training rows that a test row repeats, 8.3 % (5 of 60), first a.jsonl:1"
    assert (said.lines[0], said.lines[-1]) == (first, "1 error, 0 warnings")
    assert said.command == "harness data check a.jsonl --test b.jsonl --prompt text --reference label"


def test_a_page_is_never_written_over_rows(duplicate_file, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(Path(duplicate_file).read_bytes())
    (tmp_path / "link.html").symlink_to(rows)
    for page in (rows, tmp_path / "link.html"):
        found = run(rows, "--html", page).exception
        assert "a file that is there already; expected a new file, or an earlier page" in str(found)
    assert rows.read_bytes() == Path(duplicate_file).read_bytes()


@pytest.mark.e2e
def test_the_printed_commands_run_as_a_chain_and_what_they_leave_raises_no_alarm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a b.csv", "-c.csv"]
    for i, name in enumerate(names):
        write_csv(name, damage_rows(make_clean_rows(200, i)))
    with Path(names[1]).open("a", newline="") as file:
        again = damage_rows(make_clean_rows(200, 0))[40:50]
        csv.writer(file).writerows(list(row.values()) for row in again)
    files = [name if name[0] != "-" else f"./{name}" for name in names]
    only = ["missing_values", "encoding_damage", "repeated_rows"]
    found = examine_rows(RowCheck(files, only=[*only, "answer_formats"]))
    chain = order_commands(found.findings)
    verbs = [shlex.split(step)[2] for step in chain]
    assert verbs == ["clean", "clean", "mix", "dedup"]
    for step in chain:
        run_command(step)
    words = shlex.split(chain[-1])
    left = examine_rows(RowCheck([words[words.index("--out") + 1]], only=only))
    assert alarms(left.findings) == []
    for finding in alarms(found.findings):
        assert set(finding.steps) <= set(chain)


def test_duplicates_are_found_by_line_whatever_their_case_and_near_ones_where_the_label_is_the_same(find):
    rows = make_clean_rows()
    (found,) = alarms(find([*rows, {**rows[2], "text": rows[2]["text"].upper()}], "repeated_rows"))
    assert (lines(found), found.count, found.of) == ([401], 1, 401)
    assert found.example.endswith("rows.jsonl:401 repeats " + found.rows[0].replace("401", "3"))
    assert found.command.startswith("harness data dedup ")

    longer = [{**row, "text": f"{row['text']} {row['text'][::-1]} tum"} for row in rows]
    changed = {**longer[4], "text": longer[4]["text"].replace(" tum", " tam")}
    (found,) = alarms(find([*longer, changed], "repeated_rows"))
    assert lines(found) == [401]
    assert alarms(find([*longer, {**changed, "label": "delivery"}], "repeated_rows")) == []

    context = " ".join(WORDS[:120])
    asked = [(f"{WORDS[i]} {WORDS[-i]} {WORDS[100 + i]}?", WORDS[i]) for i in range(1, 60)]
    rows = [{"context": context, "question": question, "answer": answer} for question, answer in asked]
    assert alarms(find(rows, "repeated_rows")) == []


def test_conflicting_answers_are_an_error_at_both_lines(find):
    rows = make_clean_rows()
    (found,) = alarms(find([*rows, {**rows[7], "label": "refund"}], "conflicting_answers"))
    assert (found.severity, lines(found)) == ("error", [8, 401])
    assert "--conflicts drop" in found.command


@pytest.mark.parametrize(
    "settings",
    [
        [{"system": "Is it about a device?"}, {"system": "Is the writer angry?"}],
        [{"choices": ["b", "c", "d"]}, {"choices": ["a", "b", "c"]}],
    ],
    ids=["system prompts", "choices"],
)
def test_one_text_under_two_system_prompts_or_choices_is_two_questions(find, settings):
    rows = []
    for i, (n, setting) in product(range(40), enumerate(settings)):
        turns = [{"role": "user", "content": f"{WORDS[i]} {WORDS[-i]}?"}]
        if "system" in setting:
            turns, setting = [{"role": "system", "content": setting["system"]}, *turns], {}
        rows.append({"messages": turns, "reference": "bc"[(i * n) % 2], **setting})
    found = find(rows, "conflicting_answers") + find(rows, "repeated_rows")
    assert [f.title for f in found if f.severity != "note"] == []


@pytest.mark.e2e
def test_of_more_rows_than_memory_holds_a_draw_is_kept_and_duplicates_are_counted_among_all(tmp_path):
    rows = make_clean_rows(2_000)
    asked = RowCheck([write(tmp_path / "rows.jsonl", [*rows, rows[0]])])
    table = read_table(asked.files, recognise_rows(asked), held=800_000)
    assert 100 < len(table.entries) < 700
    assert table.n == 2_001
    found = check.check_rows(table, check.CheckContext(), ["repeated_rows", "amount"])
    assert next(lines(f) for f in found if f.title.startswith("exact")) == [2_001]
    assert any("sampled rows are looked at" in f.title for f in found)


@pytest.mark.e2e
def test_training_rows_that_test_repeats_are_errors(find, tmp_path):
    rows = make_clean_rows()
    test = [*make_clean_rows(60, seed=5), {**rows[9], "text": rows[9]["text"].upper()}]
    found = find(rows, "test_leaks", test=[write(tmp_path / "test.jsonl", test)])
    assert [(f.severity, lines(f)) for f in found] == [("error", [10])]
    assert found[0].command.startswith("harness data dedup ")
    run_command(found[0].command)
    left, tested = str(tmp_path / "rows.dedup.jsonl"), str(tmp_path / "test.jsonl")
    assert examine_rows(RowCheck([left], test=[tested], only=["test_leaks"])).findings == ()


def test_a_leak_in_other_words_is_a_warning_with_the_closest_pair(find, tmp_path):
    ask = "How do I open an account for my business in Germany"
    rows = [*make_clean_rows(), {"text": f"{ask}?", "label": LABELS[0]}]
    test = write(tmp_path / "test.jsonl", [{"text": f"{ask}, please?", "label": LABELS[0]}])
    [found] = find(rows, "test_leaks", test=[test])
    assert (found.severity, lines(found)) == ("warning", [len(rows)])
    assert "test.jsonl:1 (words in common 0.8" in found.example
    assert f"--against {test}" in found.command


def test_each_trait_is_a_figure_with_its_meaning(find, tmp_path):
    rows = [{**row, "day": f"2026-01-{1 + i % 28:02}"} for i, row in enumerate(make_clean_rows())]
    tested = [{**row, "day": "2026-02-01"} for row in make_clean_rows(100, seed=4)]
    test = write(tmp_path / "test.jsonl", tested)
    found = find(rows, "traits", "suspect_labels", test=[test], date="day")
    named = {f.title.partition(":")[0] for f in found}
    assert {"diversity", "relevance", "representativeness", "freshness", "label accuracy"} <= named
    assert alarms(found) == []
    assert all(f.meaning for f in found)
    assert any("18 days or older at 2026-02-01" in f.title for f in found), [f.title for f in found]


ASKED = (
    ("Can I cancel my order?", "Yes, until it is packed."),
    ("Is it possible to cancel my order?", "Yes, until it is packed."),
    ("How can I close my account?", "In the settings, on the last page."),
    ("What do I do to close my account?", "In the settings, on the last page."),
    ("How do I open an account?", "With a name and an e-mail address."),
    ("How tall is Mount Everest?", "8,849 m"),
    ("How tall is Mount Elbrus?", "5,642 m"),
    ("Hamlet was written by whom?", "Shakespeare"),
    ("Which bus goes to the harbour?", "Line 12"),
    ("My stove does not light", "Clean the nozzle first."),
)
TESTED = (
    ("What is the height of Mount Everest?", "8,849 m"),
    ("Who wrote Hamlet?", "Shakespeare"),
    ("Where is the nearest pharmacy?", "At the station"),
)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("train", ASKED), ("test", TESTED)):
        write(tmp_path / f"{name}.jsonl", [{"question": asks, "answer": says} for asks, says in rows])
    return ["train.jsonl", "--test", "test.jsonl"]


def check_by_sense(*words):
    """Run the command and return what it finds by sense."""
    done = CliRunner().invoke(app, ["data", "check", *words, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["findings"]
    return {f["check"]: f for f in found if "by sense" in f["title"]}


@pytest.mark.e2e
def test_a_real_encoder_finds_duplicates_and_leaks_that_share_few_words(files, minilm):
    assert check_by_sense(*files) == {}
    found = check_by_sense(*files, "--embeddings", str(minilm))
    assert found["repeated_rows"]["rows"] == ["train.jsonl:2", "train.jsonl:4"]
    assert found["test_leaks"]["rows"] == ["train.jsonl:6", "train.jsonl:8"]
    where = "# its Data page, where the target's `test:` is test.jsonl, with the model of --embeddings named there, "
    assert where in found["test_leaks"]["command"]
