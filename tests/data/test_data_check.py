"""The check of rows: its page, its commands, repeated rows, and that clean rows raise no alarm."""

import csv
import gzip
import json
import random
import shlex
from importlib import import_module
from itertools import product
from pathlib import Path

import checked_rows
import pytest
from checked_rows import LABELS, WORDS, alarms, damage_rows, lines, make_clean_rows, run_command, write
from conftest import find_shared_data, refused
from typer.testing import CliRunner

from harness.cli import app
from harness.data import check
from harness.data.check import read_table
from harness.data.row_traits import RULES
from harness.experiment.check_rows import RowCheck, examine_rows
from harness.records import count_negations
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
    listed = find([*rows, rows[0], {"text": "", "label": "refund"}])
    assert [f.severity for f in listed] == sorted((f.severity for f in listed), key=check.SEVERITIES.index)
    assert listed[0].check == "missing_values"
    texts = [{"text": row["text"]} for row in rows]
    (finding,) = alarms(find([*texts, texts[0]]))
    assert (finding.check, lines(finding)) == ("repeated_rows", [61])

    rows = make_clean_rows(40)
    for n, row in enumerate(rows):
        row |= {f"c{i}": "x" for i in range(20) if n % 7 or i < 5}
    titles = [f.title for f in find(rows, "missing_values") if "empty" in f.title]
    assert len(titles) == 9
    assert (titles[0], titles[-1]) == ("column 'c5' is empty", "7 more columns with empty cells")


def plant_edge_cases(rows):
    """Turn a tenth of the rows into each edge case that training rows seldom have."""
    edge_rows = [dict(row) for row in rows]
    for i, row in enumerate(edge_rows):
        if i % 10 < 4:
            text = row["text"]
            row["text"] = (f"xq{i} zv{i} wk{i}", f"{text} {text}", f"{text} not", f"{text} crashed")[i % 10]
    return edge_rows


def test_edge_cases_are_counted_in_training_and_test_and_warned_of_where_training_has_none(find, tmp_path):
    clean, test_rows = (
        [r for r in make_clean_rows(500, seed) if not count_negations(r["text"])][:n]
        for seed, n in ((0, 400), (9, 200))
    )
    test = write(tmp_path / "test.jsonl", plant_edge_cases(test_rows))
    warnings = alarms(find(clean, "edge_cases", test=[test]))
    assert [(f.count, f.of) for f in warnings] == [(20, 200)] * 4
    assert {case for case in RULES for f in warnings if f"that test has: {case}: " in f.title} == set(RULES)
    assert {where.partition(":")[0] for f in warnings for where in f.rows} == {test}
    errors = [row | {"text": f"{row['text']} crashed"} for row in clean[195:200]]
    few = write(tmp_path / "few.jsonl", [*clean[100:195], *errors])
    (warning,) = alarms(find(clean[:100], "edge_cases", test=[few]))
    assert (warning.count, "that test has: edge: error handling" in warning.title) == (5, True)

    findings = find(plant_edge_cases(clean), "edge_cases", test=[test])
    assert [(f.severity, f.count, f.of) for f in findings] == [("note", 40, 400)] * 4
    assert {f.example for f in findings} == {"and 20 of 200 test items, reported as a slice"}


@pytest.mark.weekly
def test_a_random_test_set_of_real_rows_has_no_case_that_training_lacks(find, tmp_path):
    packed = find_shared_data("rows/dolly_3k/train.jsonl.gz").read_bytes()
    jsonl = gzip.decompress(packed).decode().splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if k != "id"} for line in jsonl]
    random.Random(0).shuffle(rows)
    n = len(rows) // 5
    findings = find(rows[n:], "edge_cases", test=[write(tmp_path / "test.jsonl", rows[:n])])
    assert findings
    assert alarms(findings) == []


def run(*arguments):
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


@pytest.fixture(scope="module")
def duplicate_file(tmp_path_factory):
    rows = make_clean_rows()
    return write(tmp_path_factory.mktemp("rows") / "rows.jsonl", [*rows, rows[0]])


@pytest.mark.e2e
def test_the_page_json_and_html_show_the_rows_their_meaning_and_the_command(duplicate_file, tmp_path):
    result = run(duplicate_file, "--fail-on", "error")
    assert result.exit_code == 0
    for text in ("warning", "rows: ", "e.g.: ", "means: ", "next: harness data dedup "):
        assert text in result.stdout
    json_result = run(duplicate_file, "--json", "--html", tmp_path / "page.html", "--fail-on", "warning")
    assert json_result.exit_code == 1
    printed = json.loads(json_result.stdout)
    (alarm,) = [f for f in printed["findings"] if f["severity"] == "warning"]
    assert (printed["n"], alarm["count"], alarm["share"], len(alarm["rows"])) == (401, 1, 1 / 401, 1)
    page = (tmp_path / "page.html").read_text()
    assert "default-src 'none'" in page
    assert "exact duplicates of an earlier row" in page

    evil = {"text": "<script>alert(1)</script> a b c", "label": "refund"}
    path = write(tmp_path / "rows.jsonl", [*make_clean_rows(), evil, {**evil, "label": "invoice"}])
    run(path, "--html", tmp_path / "page.html")
    assert "<script>" not in (tmp_path / "page.html").read_text()


def list_problems(*arguments, **settings):
    return refused(examine_rows, RowCheck(list(map(str, arguments)), **settings)).problems


def test_problems_of_all_files_come_at_once(tmp_path):
    (tmp_path / "header.csv").write_text("text,label\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a", "label": "b"}\n')[:-9])
    (tmp_path / "broken.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": \n')
    good = write(tmp_path / "rows.jsonl", make_clean_rows())
    names = ("header.csv", "cut.jsonl.gz", "broken.jsonl")
    problems = list_problems(good, *(tmp_path / name for name in names))
    assert [Path(p.where.partition(":")[0]).name for p in problems] == list(names)
    assert problems[2].where.endswith("broken.jsonl:2")


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
    summary = check_target(Task(name="rows", data=data, fields=fields, labels=LABELS))
    first = "error: training rows that a test row repeats, 8.3 % (5 of 60), first a.jsonl:1"
    assert (summary.lines[0], summary.lines[-1]) == (first, "1 error, 0 warnings")
    assert summary.command == "harness data check a.jsonl --test b.jsonl --prompt text --reference label"


def test_a_page_is_never_written_over_rows(duplicate_file, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(Path(duplicate_file).read_bytes())
    (tmp_path / "link.html").symlink_to(rows)
    for page in (rows, tmp_path / "link.html"):
        error = run(rows, "--html", page).exception
        assert "a file that is there already; expected a new file, or an earlier page" in str(error)
    assert rows.read_bytes() == Path(duplicate_file).read_bytes()


@pytest.mark.e2e
def test_the_printed_commands_run_as_a_chain_and_what_they_leave_raises_no_alarm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a b.csv", "-c.csv"]
    for i, name in enumerate(names):
        checked_rows.write_csv(name, damage_rows(make_clean_rows(200, i)))
    with Path(names[1]).open("a", newline="") as file:
        again = damage_rows(make_clean_rows(200, 0))[40:50]
        csv.writer(file).writerows(list(row.values()) for row in again)
    files = [name if name[0] != "-" else f"./{name}" for name in names]
    checks = ["missing_values", "encoding_damage", "repeated_rows"]
    report = examine_rows(RowCheck(files, only=[*checks, "answer_formats"]))
    chain = order_commands(report.findings)
    verbs = [shlex.split(step)[2] for step in chain]
    assert verbs == ["clean", "clean", "mix", "dedup"]
    for step in chain:
        run_command(step)
    words = shlex.split(chain[-1])
    remaining = examine_rows(RowCheck([words[words.index("--out") + 1]], only=checks))
    assert alarms(remaining.findings) == []
    for finding in alarms(report.findings):
        assert set(finding.steps) <= set(chain)


def test_duplicates_are_found_by_line_whatever_their_case_and_near_ones_where_the_label_is_the_same(find):
    rows = make_clean_rows()
    (finding,) = alarms(find([*rows, {**rows[2], "text": rows[2]["text"].upper()}], "repeated_rows"))
    assert (lines(finding), finding.count, finding.of) == ([401], 1, 401)
    assert finding.example.endswith("rows.jsonl:401 repeats " + finding.rows[0].replace("401", "3"))
    assert finding.command.startswith("harness data dedup ")

    longer = [{**row, "text": f"{row['text']} {row['text'][::-1]} tum"} for row in rows]
    changed_row = {**longer[4], "text": longer[4]["text"].replace(" tum", " tam")}
    (finding,) = alarms(find([*longer, changed_row], "repeated_rows"))
    assert lines(finding) == [401]
    assert alarms(find([*longer, {**changed_row, "label": "delivery"}], "repeated_rows")) == []

    context = " ".join(WORDS[:120])
    pairs = [(f"{WORDS[i]} {WORDS[-i]} {WORDS[100 + i]}?", WORDS[i]) for i in range(1, 60)]
    rows = [{"context": context, "question": question, "answer": answer} for question, answer in pairs]
    assert alarms(find(rows, "repeated_rows")) == []


def test_conflicting_answers_are_an_error_at_both_lines(find):
    rows = make_clean_rows()
    (finding,) = alarms(find([*rows, {**rows[7], "label": "refund"}], "conflicting_answers"))
    assert (finding.severity, lines(finding)) == ("error", [8, 401])
    assert "--conflicts drop" in finding.command


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
    findings = find(rows, "conflicting_answers") + find(rows, "repeated_rows")
    assert [f.title for f in findings if f.severity != "note"] == []


@pytest.mark.e2e
def test_of_more_rows_than_memory_holds_a_draw_is_kept_and_duplicates_are_counted_among_all(tmp_path):
    rows = make_clean_rows(2_000)
    row_check = RowCheck([write(tmp_path / "rows.jsonl", [*rows, rows[0]])])
    table = read_table(row_check.files, checked_rows.detect_rows(row_check), held=800_000)
    assert 100 < len(table.entries) < 700
    assert table.n == 2_001
    findings = check.check_rows(table, check.CheckContext(), ["repeated_rows", "amount"])
    assert next(lines(f) for f in findings if f.title.startswith("exact")) == [2_001]
    assert any("sampled rows are looked at" in f.title for f in findings)


@pytest.mark.e2e
def test_training_rows_that_test_repeats_are_errors(find, tmp_path):
    rows = make_clean_rows()
    test = [*make_clean_rows(60, seed=5), {**rows[9], "text": rows[9]["text"].upper()}]
    findings = find(rows, "test_leaks", test=[write(tmp_path / "test.jsonl", test)])
    assert [(f.severity, lines(f)) for f in findings] == [("error", [10])]
    assert findings[0].command.startswith("harness data dedup ")
    run_command(findings[0].command)
    cleaned_file, test_file = str(tmp_path / "rows.dedup.jsonl"), str(tmp_path / "test.jsonl")
    assert examine_rows(RowCheck([cleaned_file], test=[test_file], only=["test_leaks"])).findings == ()


def test_a_leak_in_other_words_is_a_warning_with_the_closest_pair(find, tmp_path):
    ask = "How do I open an account for my business in Germany"
    rows = [*make_clean_rows(), {"text": f"{ask}?", "label": LABELS[0]}]
    test = write(tmp_path / "test.jsonl", [{"text": f"{ask}, please?", "label": LABELS[0]}])
    [finding] = find(rows, "test_leaks", test=[test])
    assert (finding.severity, lines(finding)) == ("warning", [len(rows)])
    assert "test.jsonl:1 (words in common 0.8" in finding.example
    assert f"--against {test}" in finding.command


def test_each_trait_is_a_figure_with_its_meaning(find, tmp_path):
    rows = [{**row, "day": f"2026-01-{1 + i % 28:02}"} for i, row in enumerate(make_clean_rows())]
    test_rows = [{**row, "day": "2026-02-01"} for row in make_clean_rows(100, seed=4)]
    test = write(tmp_path / "test.jsonl", test_rows)
    findings = find(rows, "traits", "suspect_labels", test=[test], date="day")
    traits = {f.title.partition(":")[0] for f in findings}
    assert {"diversity", "relevance", "representativeness", "freshness", "label accuracy"} <= traits
    assert alarms(findings) == []
    assert all(f.meaning for f in findings)
    assert any("18 days or older at 2026-02-01" in f.title for f in findings), [f.title for f in findings]


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
    """Run the command; returns its embedding-based findings, by check."""
    result = CliRunner().invoke(app, ["data", "check", *words, "--json"])
    assert result.exit_code == 0, result.output
    findings = json.loads(result.stdout)["findings"]
    return {f["check"]: f for f in findings if "by sense" in f["title"]}


@pytest.mark.e2e
def test_a_real_encoder_finds_duplicates_and_leaks_that_share_few_words(files, minilm):
    assert check_by_sense(*files) == {}
    findings = check_by_sense(*files, "--embeddings", str(minilm))
    assert findings["repeated_rows"]["rows"] == ["train.jsonl:2", "train.jsonl:4"]
    assert findings["test_leaks"]["rows"] == ["train.jsonl:6", "train.jsonl:8"]
    where = "# its Data page, where the target's `test:` is test.jsonl, with the model of --embeddings named there, "
    assert where in findings["test_leaks"]["command"]
