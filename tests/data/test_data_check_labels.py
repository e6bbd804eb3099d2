"""The check of rows: labels, their balance, spellings and markers, and the content of texts and answers."""

import gzip
import json
import random
import shlex
from itertools import pairwise

import pytest
from checked_rows import LABELS, WORDS, alarm, alarms, detect_rows, fill_layout, lines, make_clean_rows, write
from conftest import find_shared_data
from test_formats import ROWS as LAYOUT_ROWS
from typer.testing import CliRunner

from harness.cli import app
from harness.data import check
from harness.data.check import Tokenizer, read_table
from harness.data.check.personal_data import find_personal_data
from harness.experiment.check_rows import RowCheck, examine_rows


def test_answers_that_are_all_the_same_or_labels_of_few_rows_are_warned_of(find):
    content = [{"prompt": f"Case {i}?", "reference": "same"} for i in range(20)]
    (finding,) = alarms(find(content, "class_balance"))
    assert (finding.severity, finding.title) == ("warning", "all rows have the same answer, 'same'")
    other_rows = [{"prompt": f"Cases {i}?", "reference": "other"} for i in range(5)]
    assert alarms(find([*content, *other_rows], "class_balance")) == []
    rows = [*make_clean_rows(), {"text": "solo word", "label": "rare"}]
    (finding,) = alarms(find(rows, "class_balance"))
    assert (lines(finding), finding.example) == ([401], "'rare' 1")


def test_a_label_that_stands_in_test_alone_is_an_error(find, tmp_path):
    same = write(tmp_path / "same.jsonl", make_clean_rows(200, seed=9))
    assert alarms(find(make_clean_rows(), "class_balance", test=[same])) == []
    test = write(tmp_path / "test.jsonl", [*make_clean_rows(40), {"text": "a b", "label": "unseen"}])
    (finding,) = alarms(find(make_clean_rows(), "class_balance", test=[test]))
    assert (finding.severity, finding.title) == ("error", "1 labels stand in test alone: 'unseen'")


def test_a_mark_that_gives_the_label_is_found_and_one_on_every_label_is_none(find):
    rows = make_clean_rows()
    for row in rows[:80:4]:
        row["text"] = f"{row['text']} kindly"
    (finding,) = alarm(find(rows, "label_markers"), "label_markers")
    assert lines(finding) == list(range(1, 81, 4))
    assert "gives the label 'refund' in 20 of 20 rows" in finding.title
    rows = [{**row, "text": f"{row['text']} kindly"} for row in make_clean_rows()]
    assert alarms(find(rows, "label_markers")) == []


@pytest.mark.e2e
def test_flipped_labels_are_found_with_the_right_one_proposed(find):
    rows = make_clean_rows(800)
    flipped = random.Random(3).sample(range(800), 64)
    right = {i + 1: rows[i]["label"] for i in flipped}
    for i in flipped:
        rows[i]["label"] = LABELS[(LABELS.index(rows[i]["label"]) + 1) % 4]
    (finding,) = alarm(find(rows, "suspect_labels"), "suspect_labels")
    proposed = dict(zip(lines(finding), finding.labels, strict=True))
    hits = {line for line in proposed if right.get(line) == proposed[line]}
    assert len(hits) >= 0.7 * len(flipped)
    assert len(hits) >= 0.9 * len(proposed)


@pytest.mark.e2e
def test_labels_in_several_spellings_are_an_error_and_one_label_to_balance_and_suspects(find):
    rows = make_clean_rows()
    for i in (0, 4, 8, 12, 16):
        rows[i]["label"] = "Refund"
    (finding,) = alarms(find(rows, "answer_formats"))
    expected = ("error", [1, 5, 9, 13, 17], "'refund' 95, 'Refund' 5")
    assert (finding.severity, lines(finding), finding.example) == expected
    assert finding.labels == ("refund",) * 5

    for i in range(0, 40, 4):  # "refund", in three spellings
        rows[i]["label"] = ("Refund", "refund ")[i // 4 % 2] if i else "REFUND"
    assert {f.check for f in alarms(find(rows))} == {"answer_formats"}
    balance = next(f for f in find(rows, "class_balance"))
    assert balance.title.startswith("4 labels, worth 4.0 of equal size: 'refund' 100 rows")
    assert not [f for f in find(rows, "suspect_labels") if f.rows]


def banking_rows(n_rows, n_labels=77, seed=None):
    """Draw `n_rows` rows of each of `n_labels` labels of Banking77."""
    rows_by_label = {}
    with gzip.open(find_shared_data("rows/banking77/train.jsonl.gz"), "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            rows_by_label.setdefault(row["label"], []).append(row)
    rng = random.Random(5 if seed is None else seed)
    rows_by_label = {label: rows for label, rows in sorted(rows_by_label.items()) if len(rows) >= n_rows}
    labels = list(rows_by_label)[:n_labels] if seed is None else rng.sample(list(rows_by_label), n_labels)
    return [row for label in labels for row in rng.sample(rows_by_label[label], n_rows)]


PARITY = [(f"Is the number {i} even or odd?", ("even", "odd")[i % 2]) for i in range(1000, 1200)]


def sums():
    pairs = [(a, b) for a in range(100, 120) for b in range(200, 220)]
    return [(f"What is the sum of the numbers {a} and {b}?", str(a + b)) for a, b in pairs]


@pytest.mark.parametrize("rows", [PARITY, sums()], ids=["parity", "sums"])
def test_labels_that_words_do_not_tell_are_not_judged(find, rows):
    findings = find([{"prompt": text, "reference": label} for text, label in rows], "suspect_labels")
    assert [f.severity for f in findings] == ["note"]
    assert findings[0].title.startswith("labels are not judged: ")


def flip_labels(rows, share, rng):
    """Give a share of the rows another label."""
    labels, flipped = sorted({row["label"] for row in rows}), list(rows)
    for i in sorted(rng.sample(range(len(rows)), round(share * len(rows)))):
        other_labels = [label for label in labels if label != rows[i]["label"]]
        flipped[i] = {**rows[i], "label": rng.choice(other_labels)}
    return flipped


@pytest.mark.slow
def test_flipped_labels_raise_an_alarm_and_right_ones_do_not_in_files_of_any_size(find):
    rows = banking_rows(60, 6)
    assert alarms(find(rows, "suspect_labels")) == []
    (finding,) = alarms(find(flip_labels(rows, 0.08, random.Random(1)), "suspect_labels"))
    assert finding.labels

    quiet, heard = 0, 0
    for seed in range(60):
        rng = random.Random(seed)
        rows = banking_rows(rng.choice((20, 40, 60)), rng.choice((4, 6, 10)), seed)
        quiet += not alarms(find(rows, "suspect_labels"))
        heard += bool(alarms(find(flip_labels(rows, 0.08, rng), "suspect_labels")))
    assert (quiet >= 29, heard >= 12) == (True, True)


def test_damaged_encoding_is_found_and_mended_in_the_example(find):
    rows = make_clean_rows()
    rows[5]["text"] += " café über"
    rows[9]["text"] += " " + "café über".encode().decode("cp1252")
    rows[11]["text"] += " caf\ufffd"
    damaged, lost = alarms(find(rows, "encoding_damage"))
    assert (lines(damaged), lines(lost)) == ([10], [12])
    assert "café über" in damaged.example
    assert lost.command.endswith(" --drop-lost")


def test_rows_that_cannot_be_used_or_change_their_type_are_counted(find):
    rows = make_clean_rows()
    rows[3]["text"] = " "
    del rows[8]["label"]
    (finding,) = alarms(find(rows, "missing_values"))
    assert (finding.severity, lines(finding)) == ("error", [4, 9])
    assert "an empty prompt (1)" in finding.title
    rows = [{**row, "label": i % 2 if i < 40 else str(i % 2)} for i, row in enumerate(make_clean_rows())]
    (finding,) = alarms(find(rows, "missing_values"))
    assert (finding.count, lines(finding)) == (40, list(range(1, 41)))


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
    assert [kind for kind, _ in find_personal_data(text)] == kinds


def test_rows_beyond_the_context_are_all_found_by_words_or_the_tokenizer_of_the_base(tmp_path, find):
    rows = make_clean_rows()
    rows[6]["text"] = "word " * 500
    row_check = RowCheck([write(tmp_path / "rows.jsonl", rows)])
    table = read_table(row_check.files, detect_rows(row_check))
    words = Tokenizer("words", 100, lambda texts: [len(text.split()) for text in texts])
    findings = check.check_rows(table, check.CheckContext(tokenizer=words), ["amount"])
    assert lines(findings[0]) == [7]
    assert "longest 501" in next(f.title for f in findings if "tokens a row" in f.title)

    import tiny_model

    rows = make_clean_rows()
    rows[6]["text"] = "parcel " * 300
    findings = find(rows, "amount", base=str(tiny_model.build(tmp_path / "tiny")))
    assert lines(findings[0]) == [7]
    assert "longer than the 256 tokens" in findings[0].title


@pytest.mark.parametrize("layout", ["chat", "SQuAD"])
def test_answers_with_white_space_around_them_are_found_and_cut_in_every_layout(find, tmp_path, layout):
    pairs = [(f"{a} {b}?", f"It is {b}") for a, b in pairwise(WORDS[:40])]
    assert alarms(find([fill_layout(LAYOUT_ROWS[layout], *p) for p in pairs], "answer_formats")) == []
    pairs[7:10:2] = [("What now?", f"{WORDS[7]} \n"), ("What then?", f" {WORDS[8]}")]
    findings = alarms(find([fill_layout(LAYOUT_ROWS[layout], *p) for p in pairs], "answer_formats"))
    assert [(f.title, lines(f)) for f in findings] == [
        ("answers with white space behind them", [8]),
        ("answers with white space in front of them", [10]),
    ]
    behind, in_front = (shlex.split(f.command, comments=True)[1:] for f in findings)
    assert in_front == behind
    assert behind[-1] == "--leading-spaces"
    result = CliRunner().invoke(app, in_front)
    assert result.exit_code == 0, result.stderr
    assert ", 2 changed" in result.stdout
    mended = RowCheck([str(tmp_path / "rows.clean.jsonl")], only=["answer_formats"])
    assert alarms(examine_rows(mended).findings) == []


def test_white_space_in_front_of_answers_is_cut_only_when_asked(find, tmp_path):
    pairs = [(f"Code of {a}?", f"    return {b}") for a, b in pairwise(WORDS[:30])]
    rows = [{"prompt": asks, "reference": says} for asks, says in pairs]
    write(tmp_path / "code.jsonl", rows)
    command = ["data", "clean", str(tmp_path / "code.jsonl"), "--out"]
    for options in ([], ["--leading-spaces"]):
        path = tmp_path / f"out{len(options)}.jsonl"
        assert CliRunner().invoke(app, [*command, str(path), *options]).exit_code == 0
        cut = [{**row, "reference": row["reference"].lstrip()} for row in rows] if options else rows
        assert [json.loads(line) for line in path.read_text().splitlines()] == cut


@pytest.mark.e2e
def test_no_finding_shows_personal_data_wherever_an_example_is_cut(tmp_path, find):
    rows = make_clean_rows()
    secrets = ("jane.roe@example.com", "+49 6151 123456")
    for i in range(20, 65, 5):
        text = f"{'ab ' * (i // 3)}{secrets[i % 2]} was the café"
        row = {"text": text, "label": "refund"}
        rows += [row, row, {**row, "label": "invoice"}, {**row, "text": f"{text} ж {'tum ' * i}"}]
        rows += [{**row, "text": text.replace("é", damage)} for damage in ("Ã©", "\ufffd")]
    dump = json.dumps([[f.title, f.example] for f in find(rows, test=[write(tmp_path / "t.jsonl", rows)])])
    for secret in ("roe", "example", "6151", "123"):
        assert secret not in dump
