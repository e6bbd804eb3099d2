"""The check of rows: what it finds of planted faults, that clean rows are quiet, and what it refuses."""

import gzip
import json
import random
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from conftest import shared_data
from typer.testing import CliRunner

from harness.cli import app
from harness.data import check
from harness.data.check import ALPHA, Tokenizer
from harness.data.check._table import Reading, read_table
from harness.data.check.amount import histogram
from harness.data.check.class_balance import mix_p
from harness.data.check.personal_data import personal_data
from harness.errors import UserError
from harness.experiment.check_rows import Asked, detectable, examine_rows, recognise

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]
LABELS = ("refund", "delivery", "account", "invoice")


def clean_rows(n=400, seed=0):
    """Rows of four labels, each with words of its own beside common ones; no two rows are alike."""
    rng = random.Random(seed)
    own = {label: WORDS[40 * i : 40 * i + 40] for i, label in enumerate(LABELS)}
    common = WORDS[160:]
    rows = []
    for i in range(n):
        label = LABELS[i % len(LABELS)]
        text = rng.sample(common, rng.randint(5, 9)) + rng.sample(own[label], 3)
        rng.shuffle(text)
        rows.append({"text": " ".join(text), "label": label})
    return rows


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def find(tmp_path):
    """Return a function that checks rows with the named checks, by severity and place."""

    def run(rows, *only, **asked):
        return examine_rows(
            Asked([write(tmp_path / "rows.jsonl", rows)], only=only or None, **asked)
        ).findings

    return run


def alarms(findings):
    return [f for f in findings if f.severity != "note"]


def lines(finding):
    return [int(place.rpartition(":")[2]) for place in finding.rows]


def test_every_file_of_the_package_is_a_check_that_states_its_false_alarms():
    assert len(check.names()) >= 13
    for name in check.names():
        module = import_module(f"harness.data.check.{name}")
        assert callable(module.check)
        assert "False alarms:" in module.__doc__, name


@pytest.mark.parametrize("seed", range(3))
def test_clean_rows_raise_no_alarm(find, seed):
    assert alarms(find(clean_rows(seed=seed))) == []


def test_the_worst_stands_first(find):
    rows = clean_rows()
    found = find([*rows, rows[0], {"text": "", "label": "refund"}])
    assert [f.severity for f in found] == sorted((f.severity for f in found), key=check.SEVERITIES.index)
    assert found[0].check == "missing_values"


def test_exact_duplicates_are_found_by_line_whatever_their_case(find):
    rows = clean_rows()
    (found,) = alarms(find([*rows, {**rows[2], "text": rows[2]["text"].upper()}], "repeated_rows"))
    assert (lines(found), found.count, found.of) == ([401], 1, 401)
    assert found.example.endswith("rows.jsonl:401 repeats " + found.rows[0].replace("401", "3"))
    assert found.command.startswith("harness data dedup ")


def test_near_duplicates_are_found_where_they_have_the_same_label(find):
    rows = clean_rows()
    longer = [{**row, "text": f"{row['text']} {row['text'][::-1]} tum"} for row in rows]
    changed = {**longer[4], "text": longer[4]["text"].replace(" tum", " tam")}
    (found,) = alarms(find([*longer, changed], "repeated_rows"))
    assert lines(found) == [401]
    other = {**changed, "label": "delivery"}
    assert alarms(find([*longer, other], "repeated_rows")) == []


def test_two_questions_on_one_context_are_no_near_duplicates(find):
    context = " ".join(WORDS[:120])
    rows = [
        {"context": context, "question": f"{WORDS[i]} {WORDS[-i]} {WORDS[100 + i]}?", "answer": WORDS[i]}
        for i in range(1, 60)
    ]
    assert alarms(find(rows, "repeated_rows")) == []


def test_a_question_with_two_labels_is_an_error_at_both_lines(find):
    rows = clean_rows()
    (found,) = alarms(find([*rows, {**rows[7], "label": "refund"}], "conflicting_answers"))
    assert (found.severity, lines(found)) == ("error", [8, 401])


def test_a_question_with_two_texts_is_a_note(find):
    rows = [{"prompt": f"{WORDS[i]}?", "reference": " ".join(WORDS[i : i + 12])} for i in range(60)]
    found = find([*rows, {"prompt": f"{WORDS[3]}?", "reference": "other words"}], "conflicting_answers")
    assert [(f.severity, lines(f)) for f in found] == [("note", [4, 61])]


def test_damaged_encoding_is_found_and_mended_in_the_example(find):
    rows = clean_rows()
    rows[5]["text"] += " café über"
    rows[9]["text"] += " " + "café über".encode().decode("cp1252")
    rows[11]["text"] += " caf\ufffd"
    damaged, lost = alarms(find(rows, "encoding_damage"))
    assert (lines(damaged), lines(lost)) == ([10], [12])
    assert "café über" in damaged.example
    assert lost.command.endswith(" --drop-lost")


def test_rows_that_cannot_be_used_are_counted_by_why(find):
    rows = clean_rows()
    rows[3]["text"] = " "
    del rows[8]["label"]
    (found,) = alarms(find(rows, "missing_values"))
    assert (found.severity, lines(found)) == ("error", [4, 9])
    assert "an empty prompt (1)" in found.title


def test_a_column_of_texts_and_numbers_is_found(find):
    rows = [{**row, "label": i % 2 if i < 40 else str(i % 2)} for i, row in enumerate(clean_rows())]
    (found,) = alarms(find(rows, "missing_values"))
    assert (found.count, lines(found)) == (40, [1])


def test_a_label_of_few_rows_is_found(find):
    rows = [*clean_rows(), {"text": "solo word", "label": "rare"}]
    (found,) = alarms(find(rows, "class_balance"))
    assert (lines(found), found.example) == ([401], "'rare' 1")


def test_another_mix_of_labels_in_test_is_found_and_the_same_mix_is_not(find, tmp_path):
    same = write(tmp_path / "same.jsonl", clean_rows(200, seed=9))
    other = write(tmp_path / "other.jsonl", [r for r in clean_rows(400, seed=9) if r["label"] != "refund"])
    assert alarms(find(clean_rows(), "class_balance", test=[same])) == []
    (found,) = alarms(find(clean_rows(), "class_balance", test=[other]))
    assert "'refund' is 25.0 % of training, 0.0 % of test" in found.title
    assert found.command.endswith("rows.jsonl --stratify label --out " + str(tmp_path / "rows.split"))


def test_a_label_that_stands_in_test_alone_is_an_error(find, tmp_path):
    test = write(tmp_path / "test.jsonl", [*clean_rows(40), {"text": "a b", "label": "unseen"}])
    assert [f.severity for f in alarms(find(clean_rows(), "class_balance", test=[test]))] == ["error"]


def test_equal_mixes_are_told_apart_as_often_as_the_level_says():
    """A chi-square test at .05 of 2,000 draws rejects 100 ± 10 (SD); 4 SD are allowed."""
    from collections import Counter

    rng = random.Random(1)
    draws = ((Counter(rng.choices("abcd", (4, 3, 2, 1), k=k)) for k in (300, 150)) for _ in range(2_000))
    rejected = sum((mix_p(*pair)[0] or 0) < 0.05 for pair in draws)
    assert 60 < rejected < 140
    assert ALPHA < 0.05


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to ann.lee@example.org please", ["e-mail addresses"]),
        ("card 4111 1111 1111 1111 was charged", ["credit card numbers"]),
        ("card 4111 1111 1111 1112 was charged", []),
        ("pay to GB82 WEST 1234 5698 7654 32 today", ["IBANs"]),
        ("IBAN DE89370400440532013000 OK thanks", ["IBANs"]),
        ("DE89 3704 0044 0532 0130 00 FR14 2004 1010 0505 0001 3M02 606 AND MORE", ["IBANs", "IBANs"]),
        ("pay to GB83 WEST 1234 5698 7654 32 today", []),
        ("call +44 20 7946 0018 at noon", ["phone numbers"]),
        ("in 2019 there were 12,345,678 of 1,000 kg at 3.14159", []),
    ],
)
def test_personal_data_are_known_by_their_form_and_check_digits(text, kinds):
    assert [kind for kind, _ in personal_data(text)] == kinds


def test_an_example_of_personal_data_is_masked(find):
    rows = clean_rows()
    rows[0]["text"] += " ann.lee@example.org"
    (found,) = alarms(find(rows, "personal_data"))
    assert found.example.endswith(": a••.•••@•••••••.•••")


def test_rows_beyond_the_context_are_all_found(tmp_path):
    rows = clean_rows()
    rows[6]["text"] = "word " * 500
    asked = Asked([write(tmp_path / "rows.jsonl", rows)])
    table = read_table(asked.files, reading(asked))
    words = Tokenizer("words", 100, lambda texts: [len(text.split()) for text in texts])
    found = check.check_rows(table, check.Given(tokenizer=words), ["amount"])
    assert lines(found[0]) == [7]
    assert "longest 501" in next(f.title for f in found if "tokens a row" in f.title)


def reading(asked):
    from harness.experiment.check_rows import _first_rows

    return recognise(asked, _first_rows(asked.files))


def test_tokens_are_counted_by_the_tokenizer_of_the_base(find, tmp_path):
    import tiny_model

    rows = clean_rows()
    rows[6]["text"] = "parcel " * 300
    base = str(tiny_model.build(tmp_path / "tiny"))
    found = find(rows, "amount", base=base)
    assert lines(found[0]) == [7]
    assert "longer than the 256 tokens" in found[0].title


def test_a_histogram_has_its_highest_bar_where_most_lengths_lie():
    drawn = histogram([1] * 5 + [5] * 80 + [17] * 5)
    assert drawn.startswith("1 ")
    assert drawn.endswith(" 17")
    assert drawn[2:-3].index("█") == 4


def test_of_more_rows_than_memory_holds_a_draw_is_kept_and_duplicates_are_counted_among_all(tmp_path):
    rows = clean_rows(2_000)
    asked = Asked([write(tmp_path / "rows.jsonl", [*rows, rows[0]])])
    table = read_table(asked.files, reading(asked), held=800_000)
    assert 100 < len(table.entries) < 700
    assert table.n == 2_001
    found = check.check_rows(table, check.Given(), ["repeated_rows", "amount"])
    assert next(lines(f) for f in found if f.title.startswith("exact")) == [2_001]
    assert any("drawn rows are looked at" in f.title for f in found)


def test_two_answers_that_differ_in_a_tenth_of_a_hundred_items_show_a_difference_of_9_points():
    """(1.960 + 0.842) · √(0.1 / 100) = 0.0886."""
    assert detectable(100, 0.1) == pytest.approx(0.0886, abs=1e-4)


def run(*arguments):
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


@pytest.fixture(scope="module")
def duplicated(tmp_path_factory):
    rows = clean_rows()
    return write(tmp_path_factory.mktemp("rows") / "rows.jsonl", [*rows, rows[0]])


def test_the_page_names_rows_example_meaning_and_command(duplicated):
    shown = run(duplicated)
    assert shown.exit_code == 0
    for part in ("warning", "rows: ", "e.g.: ", "means: ", "next: harness data dedup "):
        assert part in shown.stdout


def test_json_holds_what_the_page_shows(duplicated):
    found = json.loads(run(duplicated, "--json").stdout)
    (alarm,) = [f for f in found["findings"] if f["severity"] == "warning"]
    assert (found["n"], alarm["count"], alarm["share"]) == (401, 1, 1 / 401)
    assert len(alarm["rows"]) == 1


def test_html_is_one_file_that_loads_nothing(duplicated, tmp_path):
    run(duplicated, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "default-src 'none'" in page
    assert "exact duplicates of an earlier row" in page


def test_html_escapes_what_rows_hold(tmp_path):
    evil = {"text": "<script>alert(1)</script> a b c", "label": "refund"}
    path = write(tmp_path / "rows.jsonl", [*clean_rows(), evil, {**evil, "label": "invoice"}])
    run(path, "--html", tmp_path / "page.html")
    assert "<script>" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(("level", "code"), [("error", 0), ("warning", 1)])
def test_the_exit_code_follows_what_is_asked_to_fail_on(duplicated, level, code):
    assert run(duplicated, "--fail-on", level).exit_code == code


def refused(*arguments, **asked):
    with pytest.raises(UserError) as error:
        examine_rows(Asked(list(map(str, arguments)), **asked))
    return error.value.problems


def test_problems_of_all_files_come_at_once(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("text,label\n")
    (tmp_path / "sheet.xlsx").write_bytes(b"PK")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a", "label": "b"}\n')[:-9])
    (tmp_path / "broken.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": \n')
    good = write(tmp_path / "rows.jsonl", clean_rows())
    names = ("empty.csv", "header.csv", "sheet.xlsx", "cut.jsonl.gz", "broken.jsonl")
    found = refused(good, *(tmp_path / name for name in names))
    assert [Path(p.where.partition(":")[0]).name for p in found] == list(names)
    assert found[2].next_step.startswith("soffice --headless --convert-to csv ")
    assert found[4].where.endswith("broken.jsonl:2")


def test_unknown_columns_are_refused_with_the_nearest(tmp_path):
    path = write(tmp_path / "rows.jsonl", clean_rows())
    assert refused(path, source="lable")[0].next_step == "did you mean 'label'?"
    assert refused(path, prompt="txt")[0].next_step == "did you mean 'text'?"


def test_dates_that_cannot_be_read_are_refused_by_line(tmp_path):
    rows = [{**row, "day": "2026-02-01"} for row in clean_rows()]
    rows[4]["day"] = "31/02/2026"
    (problem,) = refused(write(tmp_path / "rows.jsonl", rows), date="day")
    assert problem.where.endswith("rows.jsonl:5")


def test_a_column_of_texts_and_lists_is_refused_by_line(tmp_path):
    rows = clean_rows()
    rows[4]["label"] = ["refund"]
    (problem,) = refused(write(tmp_path / "rows.jsonl", rows))
    assert problem.where.endswith("rows.jsonl:5")
    assert "'label' of mixed types" in problem.found


def test_one_row_is_said_to_be_too_few(find):
    (found,) = alarms(find([{"prompt": "a b", "reference": "c"}]))
    assert "1 row in all" in found.title


def test_texts_alone_are_checked_too(find):
    rows = [{"text": row["text"]} for row in clean_rows()]
    (found,) = alarms(find([*rows, rows[0]]))
    assert (found.check, lines(found)) == ("repeated_rows", [401])


def test_a_reading_needs_no_layout(tmp_path):
    path = write(tmp_path / "rows.jsonl", clean_rows())
    asked = Asked([path])
    assert isinstance(reading(asked), Reading)
    assert len(read_table([path], reading(asked)).entries) == 400


def alarm(found, name):
    return [f for f in alarms(found) if f.check == name]


@pytest.mark.parametrize(
    "mark", [lambda text: f"{text} kindly", lambda text: f"verily {text}", lambda text: f"{text} §§"]
)
def test_a_mark_that_gives_the_label_is_found(find, mark):
    rows = clean_rows()
    for row in rows[:80:4]:
        row["text"] = mark(row["text"])
    (found,) = alarm(find(rows, "label_markers"), "label_markers")
    assert lines(found) == list(range(1, 81, 4))
    assert "gives the label 'refund' in 20 of 20 rows" in found.title


def test_a_mark_on_every_label_is_no_marker(find):
    rows = [{**row, "text": f"{row['text']} kindly"} for row in clean_rows()]
    assert alarms(find(rows, "label_markers")) == []


def test_flipped_labels_are_found_with_the_right_one_proposed(find):
    rows = clean_rows(800)
    flipped = random.Random(3).sample(range(800), 64)
    right = {i + 1: rows[i]["label"] for i in flipped}
    for i in flipped:
        rows[i]["label"] = LABELS[(LABELS.index(rows[i]["label"]) + 1) % 4]
    (found,) = alarm(find(rows, "suspect_labels"), "suspect_labels")
    proposed = dict(zip(lines(found), found.labels, strict=True))
    hits = {line for line in proposed if right.get(line) == proposed[line]}
    assert len(hits) >= 0.7 * len(flipped)
    assert len(hits) >= 0.9 * len(proposed)


def test_a_few_suspects_are_a_note(find):
    rows = clean_rows(800)
    for i in range(0, 48, 4):  # 12 of 800 rows
        rows[i]["label"] = LABELS[1 + i // 4 % 3]
    found = find(rows, "suspect_labels")
    assert alarms(found) == []
    (suspects,) = [f for f in found if f.rows]
    assert set(lines(suspects)) <= set(range(1, 49, 4))
    assert suspects.count >= 6


def texts(n, seed, mark=""):
    rng = random.Random(seed)
    return [
        {"prompt": " ".join(rng.sample(WORDS, 8)), "reference": mark + " ".join(rng.sample(WORDS, 15))}
        for _ in range(n)
    ]


def test_a_format_that_goes_with_a_source_is_found_and_one_of_all_is_not(find):
    rows = [{**row, "origin": "abc"[i % 3]} for i, row in enumerate(texts(300, 1))]
    assert alarms(find(rows, "answer_formats", source="origin")) == []
    for row in rows[::3]:
        row["reference"] = f"Answer: {row['reference']}"
    found = alarms(find(rows, "answer_formats", source="origin"))
    assert {"'a'" in f.title for f in found} == {True}
    assert any("begin with a mark such as 'Answer:' in 100 %" in f.title for f in found)


def test_answers_with_white_space_around_them_are_found(find):
    rows = texts(60, 1)
    rows[7]["reference"] += " "
    (found,) = alarms(find(rows, "answer_formats"))
    assert lines(found) == [8]


def test_labels_in_several_spellings_are_an_error(find):
    rows = clean_rows()
    for i in (0, 4, 8, 12, 16):
        rows[i]["label"] = "Refund"
    (found,) = alarms(find(rows, "answer_formats"))
    assert (found.severity, lines(found), found.example) == (
        "error",
        [1, 5, 9, 13, 17],
        "'refund' 95, 'Refund' 5",
    )


ENGLISH = (
    "Where is the parcel that I ordered for my sister on Monday morning",
    "Please send the money for this broken lamp back to my account",
    "How do I change the address and the telephone number in my profile",
    "I was charged two times although only one invoice came with the box",
)
GERMAN = "Wo bleibt denn eigentlich das Paket, das ich am Montag für meine Schwester bestellt habe"


def test_rows_of_another_language_are_found(find):
    rows = [{"prompt": f"{ENGLISH[i % 4]} {i}?", "reference": f"answer {i}"} for i in range(100)]
    assert alarms(find(rows, "languages")) == []
    for i in (20, 40, 60, 80):
        rows[i]["prompt"] = f"{GERMAN} {i}?"
    (found,) = alarms(find(rows, "languages"))
    assert lines(found) == [21, 41, 61, 81]


def test_a_word_of_two_alphabets_is_found_and_a_greek_unit_is_not(find):
    rows = clean_rows()
    rows[0]["text"] += " 5 μm"
    rows[1]["text"] += " p\u0430ypal"
    (found,) = alarms(find(rows, "languages"))
    assert lines(found) == [2]


def test_languages_of_equal_shares_are_the_files_own(find):
    french = "Je voudrais savoir quand le colis que nous avons commandé hier sera livré à la maison"
    texts = (ENGLISH[0], GERMAN, french)
    rows = [{"prompt": f"{texts[i % 3]} {i}?", "reference": f"answer {i}"} for i in range(45)]
    assert alarms(find(rows, "languages")) == []


def test_a_sign_between_words_is_no_marker_of_a_label(find):
    rng = random.Random(5)
    rows = [(f"{rng.randint(10, 99)} {'+-'[i % 2]} {rng.randint(10, 99)}", "ab"[i % 2]) for i in range(80)]
    found = find([{"prompt": text, "reference": label} for text, label in rows], "label_markers")
    assert alarms(found) == []


@pytest.mark.parametrize("day", [20240501, 20240501.0, "20240501", 1714521600, "1714521600", "2024-05-01"])
def test_dates_are_read_as_days_or_seconds(find, day):
    rows = [{**row, "day": day} for row in clean_rows(30)]
    assert any("at 2024-05-01, the newest" in f.title for f in find(rows, "traits", date="day"))


def test_training_rows_that_test_repeats_are_errors(find, tmp_path):
    rows = clean_rows()
    test = [*clean_rows(60, seed=5), {**rows[9], "text": rows[9]["text"].upper()}]
    found = find(rows, "test_leaks", test=[write(tmp_path / "test.jsonl", test)])
    assert [(f.severity, lines(f)) for f in found] == [("error", [10])]


def test_a_leak_in_other_words_is_a_warning_with_the_closest_pair(find, tmp_path):
    ask = "How do I open an account for my business in Germany"
    rows = [*clean_rows(), {"text": f"{ask}?", "label": clean_rows()[0]["label"]}]
    test = write(tmp_path / "test.jsonl", [{"text": f"{ask}, please?", "label": clean_rows()[0]["label"]}])
    [found] = find(rows, "test_leaks", test=[test])
    assert (found.severity, lines(found)) == ("warning", [len(rows)])
    assert "test.jsonl:1 (words in common 0.8" in found.example
    assert f"--against {test}" in found.command


def test_embeddings_find_a_leak_that_shares_no_word(tmp_path):
    rows = [{"text": "Wo ist meine Karte", "label": "a"}, {"text": "Close my account", "label": "b"}]
    files = Asked([write(tmp_path / "all.jsonl", rows)], prompt="text", reference="label")
    train, test = (
        read_table([write(tmp_path / name, of)], reading(files))
        for name, of in (("train.jsonl", rows), ("test.jsonl", [{"text": "Where is my card", "label": "a"}]))
    )
    near = {"Wo ist meine Karte": (1.0, 0.0), "Where is my card": (1.0, 0.0), "Close my account": (0.0, 1.0)}
    given = check.Given(test, encode=lambda texts: np.array([near[t] for t in texts], np.float32))
    (found,) = check.check_rows(train, given, ["test_leaks"])
    assert lines(found) == [1]
    assert "(embeddings 1.00)" in found.example
    assert check.check_rows(train, check.Given(test), ["test_leaks"]) == []


def test_each_trait_is_a_figure_with_its_meaning(find, tmp_path):
    rows = [{**row, "day": f"2026-01-{1 + i % 28:02}"} for i, row in enumerate(clean_rows())]
    test = write(tmp_path / "test.jsonl", [{**row, "day": "2026-02-01"} for row in clean_rows(100, seed=4)])
    found = find(rows, "traits", "suspect_labels", test=[test], date="day")
    named = {f.title.partition(":")[0] for f in found}
    assert {"diversity", "relevance", "representativeness", "freshness", "label accuracy"} <= named
    assert alarms(found) == []
    assert all(f.meaning for f in found)
    assert any("18 days or older at 2026-02-01" in f.title for f in found), [f.title for f in found]


def test_test_rows_of_other_words_are_not_represented(find, tmp_path):
    other = [{"text": f"{row['text'][::-1]}", "label": row["label"]} for row in clean_rows(200, seed=4)]
    found = find(clean_rows(), "traits", test=[write(tmp_path / "test.jsonl", other)])
    assert ["representativeness" in f.title for f in alarms(found)] == [True]


def test_equal_rows_are_more_diverse_than_repeated_ones(find):
    def score(rows):
        (found,) = find(rows, "traits")
        return int(found.title.split(" as ")[-1].split(" ")[0])

    rows = clean_rows(100)
    assert score(rows) > 1.5 * score(rows[:20] * 5)


def test_init_says_the_worst_before_it_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = clean_rows(60)
    write(tmp_path / "rows.jsonl", [*rows, rows[0], rows[4]])
    done = CliRunner().invoke(app, ["init", "new", "--data", "rows.jsonl", "--minutes", "1000"])
    assert done.exit_code == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("data: ")]
    assert said[0].startswith("data: warning: exact duplicates of an earlier row, 3.2 % (2 of 62)")
    assert said[-1].endswith("the whole page: harness data check rows.jsonl")


def test_the_rows_of_a_task_are_checked_as_the_task_reads_them(tmp_path, monkeypatch):
    from harness.experiment.check_rows import check_target
    from harness.spec import Task

    monkeypatch.chdir(tmp_path)
    rows = clean_rows(60)
    data = {"train": write(tmp_path / "a.jsonl", rows), "test": write(tmp_path / "b.jsonl", rows[:5])}
    fields = {"prompt": "{text}", "reference": "{label}"}
    said = check_target(Task(name="rows", data=data, fields=fields, labels=LABELS))
    first = "error: training rows that a test row repeats, 8.3 % (5 of 60), first a.jsonl:1"
    assert (said.lines[0], said.lines[-1]) == (first, "1 error, 0 warnings")
    assert said.command == "harness data check a.jsonl --test b.jsonl"


def test_a_command_names_the_files_that_it_reads_and_writes(find):
    rows = clean_rows()
    rows[0]["text"] += " ann.lee@example.org"
    (found,) = alarms(find(rows, "personal_data"))
    path = found.rows[0].removesuffix(":1")
    command = f"harness data clean {path} --out {path.replace('.jsonl', '.clean.jsonl')}"
    assert found.command.startswith(f"{command} --decisions {path}.decisions.json")


def test_a_page_is_never_written_over_rows(duplicated, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(Path(duplicated).read_bytes())
    (tmp_path / "link.html").symlink_to(rows)
    for page in (rows, tmp_path / "link.html"):
        found = run(rows, "--html", page).exception
        assert "a file that is there already; expected a new file, or an earlier page" in str(found)
    assert rows.read_bytes() == Path(duplicated).read_bytes()


def test_a_page_of_a_check_is_written_anew(duplicated, tmp_path):
    assert [run(duplicated, "--html", tmp_path / "page.html").exit_code for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(
    ("file", "out"),
    [
        ("j.doe/rows.v2.jsonl.gz", "j.doe/rows.v2.dedup.jsonl.gz"),
        ("OUT/FILE rows.csv", "'OUT/FILE rows.dedup.csv'"),
        ("hub:owner/name-1.5:part:train", "name-1.5-part-train.dedup.jsonl"),
        ("folder.d/set", "folder.d/set.dedup.jsonl"),
    ],
)
def test_a_command_names_a_file_that_can_be_written(file, out):
    finding = check.Finding(
        "c", "error", "t", "m", rows=(f"{file}:3",), command="harness data dedup FILE --out OUT"
    )
    assert (
        check._shown(finding, [file[:-1], file]).command
        == f"harness data dedup {shlex.quote(file)} --out {out}"
    )


def test_no_finding_shows_personal_data_wherever_an_example_is_cut(tmp_path, find):
    rows = clean_rows()
    secrets = ("jane.roe@example.com", "+49 6151 123456")
    for i in range(20, 65, 5):
        text = f"{'ab ' * (i // 3)}{secrets[i % 2]} was the café"
        both = {"text": text, "label": "refund"}
        rows += [both, both, {**both, "label": "invoice"}, {**both, "text": f"{text} ж {'tum ' * i}"}]
        rows += [{**both, "text": text.replace("é", damage)} for damage in ("Ã©", "\ufffd")]
    shown = json.dumps([[f.title, f.example] for f in find(rows, test=[write(tmp_path / "t.jsonl", rows)])])
    for part in ("roe", "example", "6151", "123"):
        assert part not in shown


def test_a_row_of_several_lines_of_a_csv_file_stands_at_its_first(tmp_path):
    rows = [f"{row['text']},{row['label']}" for row in clean_rows(40)]
    file = tmp_path / "rows.csv"
    file.write_text(
        "\n".join(["text,label", '"one\ntwo\n\nthree",refund', *rows, '"one\ntwo\n\nthree",refund'])
    )
    (found,) = alarms(examine_rows(Asked([str(file)], only=["repeated_rows"])).findings)
    assert lines(found) == [46]
    assert found.example.endswith("rows.csv:46 repeats " + found.rows[0].replace("46", "2"))


def banking_rows(n_rows, n_labels=77):
    """Draw rows of Banking77 as they are, so many of each label."""
    of = {}
    with gzip.open(shared_data("rows/banking77/train.jsonl.gz"), "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            of.setdefault(row["label"], []).append(row)
    rng = random.Random(5)
    return [row for label in sorted(of)[:n_labels] for row in rng.sample(of[label], n_rows)]


@pytest.mark.parametrize(("n_rows", "n_labels"), [(5, 77), (10, 77), (8, 5)])
def test_few_rows_of_a_label_raise_no_alarm_of_suspect_labels(find, n_rows, n_labels):
    found = find(banking_rows(n_rows, n_labels), "suspect_labels")
    assert alarms(found) == []
    assert not any("about" in f.title for f in found)


def odd_or_even():
    return [(f"Is the number {i} even or odd?", ("even", "odd")[i % 2]) for i in range(1000, 1200)]


def sums():
    pairs = [(a, b) for a in range(100, 120) for b in range(200, 220)]
    return [(f"What is the sum of the numbers {a} and {b}?", str(a + b)) for a, b in pairs]


def random_texts(signs):
    rng = random.Random(5)
    return [("".join(rng.choices(signs, k=14)), "ab"[i % 2]) for i in range(60)]


@pytest.mark.parametrize(
    "rows",
    [
        odd_or_even(),
        sums(),
        random_texts("我们今天去商店买东西然后回家吃饭睡觉他说这个很好那个不行银行卡丢了怎么办退款"),
        random_texts("😀😡🎉🥲🙈"),
        random_texts("0 1 2 3 4 5 + -"),
    ],
    ids=["parity", "sums", "Chinese", "emoji", "digits"],
)
def test_labels_that_words_do_not_tell_are_not_judged(find, rows):
    found = find([{"prompt": text, "reference": label} for text, label in rows], "suspect_labels")
    assert [f.severity for f in found] == ["note"]
    assert found[0].title.startswith("labels are not judged: ")


def test_labels_that_a_sign_or_a_letter_tells_are_judged(find):
    rng = random.Random(5)
    rows = [(f"{rng.randint(10, 99)} {'+-'[i % 2]} {rng.randint(10, 99)}", i % 2) for i in range(60)]
    rows += [("".join(rng.sample("天地人山水火", 4)) + "好坏"[i % 2], i % 2) for i in range(60)]
    found = find([{"prompt": text, "reference": "ab"[kind]} for text, kind in rows], "suspect_labels")
    assert [f.title.partition(":")[0] for f in found] == ["label accuracy"]


@pytest.mark.parametrize(
    "labels", [("-1", "0", "1"), ("C", "C++", "C#"), ("<", ">", ">="), ("A", "A+", "A-")]
)
def test_labels_that_differ_by_a_sign_are_labels_of_their_own(find, labels):
    rows = [{**row, "label": labels[i % 3]} for i, row in enumerate(clean_rows(60))]
    assert alarms(find(rows, "answer_formats")) == []


@pytest.mark.parametrize("spelt", ["Credit card", "credit_card", "credit-card", "creditcard", "credit card."])
def test_a_label_spelt_with_other_separators_is_the_same(find, spelt):
    rows = [
        {**row, "label": "credit card" if row["label"] == "refund" else row["label"]}
        for row in clean_rows(80)
    ]
    rows[0]["label"] = spelt
    (found,) = alarms(find(rows, "answer_formats"))
    assert lines(found) == [1]


def test_words_of_two_scripts_joined_by_a_hyphen_or_a_digit_are_no_slip(find):
    rows = [{"prompt": f"Где IT-специалист и 3D-принтер {i}?", "reference": str(i)} for i in range(40)]
    assert alarms(find(rows, "languages")) == []
    rows[7]["prompt"] += " pаypal"  # with a Cyrillic letter
    assert [lines(f) for f in alarms(find(rows, "languages"))] == [[8]]


@pytest.mark.parametrize("thumbs", [(True, False), (1, 0)])
def test_thumbs_are_a_layout_and_no_fault(find, thumbs):
    rows = [
        {"prompt": row["prompt"], "completion": row["reference"], "label": thumbs[i % 2]}
        for i, row in enumerate(texts(40, 1))
    ]
    found = find(rows)
    assert alarms(found) == []
    assert [f.count for f in found if f.title == "answers with a thumb down"] == [20]


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
