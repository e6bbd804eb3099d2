"""The check of rows: what repeats, contradicts or leaks, by words and by sense, and the traits of the whole."""

import json
import random
import re

import numpy as np
import pytest
import tiny_experiment
from checked_rows import LABELS, WORDS, alarms, lines, make_clean_rows, recognise_rows, run_command, write
from typer.testing import CliRunner

from harness.cli import app
from harness.data import check
from harness.data.check import read_table
from harness.experiment.check_rows import RowCheck, detectable, examine_rows


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
    other = {**changed, "label": "delivery"}
    assert alarms(find([*longer, other], "repeated_rows")) == []

    rows = make_clean_rows(40)
    tickets = [
        {**row, "text": f"Ticket {500 + 3 * i}: {row['text']}"} for i, row in enumerate((*rows, *rows))
    ]
    (found,) = alarms(find(tickets, "repeated_rows"))
    assert lines(found) == list(range(41, 81))
    assert found.beside[0].partition(" ")[0].endswith("rows.jsonl:1")


def test_two_questions_on_one_context_are_no_near_duplicates(find):
    context = " ".join(WORDS[:120])
    rows = [
        {"context": context, "question": f"{WORDS[i]} {WORDS[-i]} {WORDS[100 + i]}?", "answer": WORDS[i]}
        for i in range(1, 60)
    ]
    assert alarms(find(rows, "repeated_rows")) == []


def test_conflicting_answers_are_an_error_at_both_lines_and_no_command_drops_all_rows(find):
    rows = make_clean_rows()
    (found,) = alarms(find([*rows, {**rows[7], "label": "refund"}], "conflicting_answers"))
    assert (found.severity, lines(found)) == ("error", [8, 401])

    rows = [{**row, "label": label} for row in make_clean_rows(20) for label in LABELS[:2]]
    (found,) = alarms(find(rows, "conflicting_answers"))
    assert "--conflicts drop" not in found.command
    assert "its Data page" in found.command


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
    for i in range(40):
        for n, setting in enumerate(settings):
            turns = [{"role": "user", "content": f"{WORDS[i]} {WORDS[-i]}?"}]
            if "system" in setting:
                turns.insert(0, {"role": "system", "content": setting["system"]})
            rows.append({"messages": turns, "reference": "bc"[(i * n) % 2], **setting})
    for row in rows:
        row.pop("system", None)
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


def test_two_answers_that_differ_in_a_tenth_of_a_hundred_items_show_a_difference_of_9_points():
    """(1.960 + 0.842) · √(0.1 / 100) = 0.0886."""
    assert detectable(100, 0.1) == pytest.approx(0.0886, abs=1e-4)


@pytest.mark.parametrize(
    "day",
    [
        20240501, 20240501.0, "20240501", 1714521600, "1714521600", "2024-05-01", "2024-05",
        "2024-05-01T23:00:00Z", "2024-05-02T01:00:00+02:00",
    ],
)  # fmt: skip
def test_dates_are_read_as_days_months_or_seconds(find, day):
    rows = [{**row, "day": day} for row in make_clean_rows(30)]
    assert any("at 2024-05-01, the newest" in f.title for f in find(rows, "traits", date="day"))


@pytest.mark.e2e
def test_training_rows_that_test_repeats_are_errors(find, tmp_path):
    rows = make_clean_rows()
    test = [*make_clean_rows(60, seed=5), {**rows[9], "text": rows[9]["text"].upper()}]
    found = find(rows, "test_leaks", test=[write(tmp_path / "test.jsonl", test)])
    assert [(f.severity, lines(f)) for f in found] == [("error", [10])]
    assert found[0].command.startswith("harness data dedup ")
    run_command(found[0].command)
    left = RowCheck(
        [str(tmp_path / "rows.dedup.jsonl")], test=[str(tmp_path / "test.jsonl")], only=["test_leaks"]
    )
    assert examine_rows(left).findings == ()


def test_a_leak_in_other_words_is_a_warning_with_the_closest_pair(find, tmp_path):
    ask = "How do I open an account for my business in Germany"
    rows = [*make_clean_rows(), {"text": f"{ask}?", "label": make_clean_rows()[0]["label"]}]
    test = write(
        tmp_path / "test.jsonl", [{"text": f"{ask}, please?", "label": make_clean_rows()[0]["label"]}]
    )
    [found] = find(rows, "test_leaks", test=[test])
    assert (found.severity, lines(found)) == ("warning", [len(rows)])
    assert "test.jsonl:1 (words in common 0.8" in found.example
    assert f"--against {test}" in found.command


def test_of_rows_that_are_all_in_the_test_it_is_said_and_no_command_empties_the_file(find, tmp_path):
    rows = make_clean_rows(40)
    (found,) = alarms(find(rows, "test_leaks", test=[write(tmp_path / "test.jsonl", make_clean_rows(40))]))
    assert found.title == f"all 40 rows of {tmp_path / 'rows.jsonl'} are in the test"
    assert "dedup" not in found.command
    assert found.command.endswith("# and test on its part, or on another file")
    run_command(found.command)


def test_each_trait_is_a_figure_with_its_meaning(find, tmp_path):
    rows = [{**row, "day": f"2026-01-{1 + i % 28:02}"} for i, row in enumerate(make_clean_rows())]
    test = write(
        tmp_path / "test.jsonl", [{**row, "day": "2026-02-01"} for row in make_clean_rows(100, seed=4)]
    )
    found = find(rows, "traits", "suspect_labels", test=[test], date="day")
    named = {f.title.partition(":")[0] for f in found}
    assert {"diversity", "relevance", "representativeness", "freshness", "label accuracy"} <= named
    assert alarms(found) == []
    assert all(f.meaning for f in found)
    assert any("18 days or older at 2026-02-01" in f.title for f in found), [f.title for f in found]


def test_a_test_file_of_other_groups_is_not_told_apart_in_alarm(find, tmp_path):
    rng = random.Random(3)
    own = {group: rng.sample(WORDS, 25) for group in range(30)}
    rows = [
        {"prompt": " ".join(rng.sample(own[g], 6)), "reference": "ab"[i % 2], "article": g}
        for g in own
        for i in range(20)
    ]
    test = write(tmp_path / "test.jsonl", rows[480:])
    (told,) = [f for f in find(rows[:480], "traits", test=[test]) if "representativeness" in f.title]
    (apart,) = [
        f
        for f in find(rows[:480], "traits", test=[test], source="article")
        if "representativeness" in f.title
    ]
    assert (told.severity, apart.severity) == ("warning", "note")
    assert "other values of 'article'" in apart.meaning


def test_rows_found_by_embeddings_alone_are_decided_by_hand(tmp_path):
    ask = "How do I open an account for my business in Germany"
    rows = [{"text": f"{ask}?", "label": "a"}, {"text": "Wo ist meine Karte", "label": "b"}]
    items = [{"text": f"{ask}, please?", "label": "a"}, {"text": "Where is my card", "label": "b"}]
    reads = recognise_rows(
        RowCheck([write(tmp_path / "train.jsonl", rows)], prompt="text", reference="label")
    )
    train, test = (
        read_table([write(tmp_path / f"{n}.jsonl", of)], reads)
        for n, of in (("train", rows), ("test", items))
    )
    given = check.CheckContext(
        test, encode=lambda texts: np.array([("card" in t or "Karte" in t,) for t in texts], float)
    )
    words, sense = check.check_rows(train, given, ["test_leaks"])
    assert (lines(words), lines(sense)) == ([1], [2])
    assert "(embeddings 1.00)" in sense.example
    assert check.check_rows(train, check.CheckContext(test), ["test_leaks"]) == [words]
    assert "data dedup" in words.command
    assert "--decisions" in sense.command


def test_rows_of_one_sense_and_label_are_found_by_embeddings(tmp_path):
    others = [
        "Close my account",
        "I want a loan",
        "Stop the direct debit",
        "Open a joint account",
        "Raise my limit",
    ]
    asks = [
        "Where is my card",
        *others,
        "Wo ist meine Karte",
        "Wo bleibt denn die Karte",
        "Where is my card?",
    ]
    rows = [{"text": ask, "label": "ab"[i in (1, 2, 3, 4, 7)]} for i, ask in enumerate([*asks, "Bye"])]
    asked = RowCheck([write(tmp_path / "rows.jsonl", rows)], prompt="text", reference="label")
    table = read_table(list(asked.files), recognise_rows(asked))

    def encode(texts):
        return np.eye(20)[[0 if re.search("card|Karte", text) else 1 + len(text) % 19 for text in texts]]

    sense, near = check.check_rows(table, check.CheckContext(encode=encode), ["repeated_rows"])
    assert (lines(near), lines(sense)) == ([9], [7])
    assert sense.beside[0].endswith("rows.jsonl:1 (embeddings 1.00): 'Where is my card'")
    assert "--decisions" in sense.command
    assert check.check_rows(table, check.CheckContext(), ["repeated_rows"]) == [near]


def test_test_rows_with_columns_of_their_own_are_read_by_them(find, tmp_path):
    rows = make_clean_rows(60)
    test = [{"question": row["text"], "answer": row["label"]} for row in make_clean_rows(60)[:9]]
    (found,) = alarms(find(rows, "test_leaks", test=[write(tmp_path / "test.jsonl", test)]))
    assert lines(found) == list(range(1, 10))


@pytest.mark.parametrize(
    ("columns", "repeated"),
    [(("text", "label"), "exact"), (("Customer text", "Team"), "exact"), (("text", "label"), "answer")],
)
def test_what_repeats_between_two_files_is_mended_by_joining_them(tmp_path, columns, repeated):
    rows = [dict(zip(columns, row.values(), strict=True)) for row in make_clean_rows(80)]
    others = [{**row, columns[1]: LABELS[0]} if repeated == "answer" else row for row in rows[1:40:4]]
    files = [write(tmp_path / "a.jsonl", rows[:40]), write(tmp_path / "b.jsonl", [*rows[40:], *others])]
    only = ["repeated_rows", "conflicting_answers"]
    (found,) = alarms(examine_rows(RowCheck(files, only=only)).findings)
    run_command(found.command)
    mended = tmp_path / "a.mixed.dedup.jsonl"
    named = {"prompt": columns[0], "reference": columns[1]}
    assert alarms(examine_rows(RowCheck([str(mended)], only=only, **named)).findings) == []
    assert len(mended.read_text().splitlines()) == (70 if repeated == "answer" else 80)


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


@pytest.mark.e2e
def test_the_doctor_holds_training_rows_against_every_suite_by_sense(tiny, minilm, own_cache, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny)
    letters, facts = (tmp_path / "suites" / file for file in ("letters/train.jsonl", "general/facts.jsonl"))
    rows = [json.loads(line) for line in letters.read_text().splitlines()]
    rows[0]["prompt"] = "Is it possible to cancel my order?"
    tiny_experiment.rows(letters, rows)
    tested = [{"id": "cancel", "prompt": "Can I cancel my order?", "reference": "Yes"}]
    tiny_experiment.rows(facts, [*tiny_experiment.facts(), *tested])
    assert not any("embeddings" in line for line in _run_doctor(path))
    (line,) = [line for line in _run_doctor(path, "--embeddings", str(minilm)) if "(embeddings 0." in line]
    assert "letters/train.jsonl:1 and " in line
    assert "general/facts.jsonl:7 (embeddings 0." in line


def _run_doctor(path, *words):
    """Return what the doctor says of the experiment."""
    done = CliRunner().invoke(app, ["doctor", "--config", str(path), "--json", *words])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["experiment"]
