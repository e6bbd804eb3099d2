"""The check of labels: balance, spellings, markers and suspects, on rows whose labels are known."""

import gzip
import json
import random
import shlex
from pathlib import Path

import pytest
from checked_rows import LABELS, alarm, alarms, lines, make_clean_rows, texts, write
from conftest import find_shared_data
from typer.testing import CliRunner

from harness.cli import app
from harness.data.check import ALPHA
from harness.data.check.labels import mix_p
from harness.data.edit.decisions import RowDecision, keep_decision
from harness.errors import UserError
from harness.experiment.check_rows import RowCheck, examine_rows
from harness.records import checksum


def test_one_answer_to_all_rows_is_warned_of(find):
    content = [{"prompt": f"Case {i}?", "reference": "same"} for i in range(20)]
    (found,) = alarms(find(content, "class_balance"))
    assert (found.severity, found.title) == ("warning", "all rows have the same answer, 'same'")
    others = [{"prompt": f"Cases {i}?", "reference": "other"} for i in range(5)]
    assert alarms(find([*content, *others], "class_balance")) == []


def test_a_label_of_few_rows_is_found(find):
    rows = [*make_clean_rows(), {"text": "solo word", "label": "rare"}]
    (found,) = alarms(find(rows, "class_balance"))
    assert (lines(found), found.example) == ([401], "'rare' 1")


def test_another_mix_of_labels_in_test_is_found_and_the_same_mix_is_not(find, tmp_path):
    same = write(tmp_path / "same.jsonl", make_clean_rows(200, seed=9))
    other = write(
        tmp_path / "other.jsonl", [r for r in make_clean_rows(400, seed=9) if r["label"] != "refund"]
    )
    assert alarms(find(make_clean_rows(), "class_balance", test=[same])) == []
    (found,) = alarms(find(make_clean_rows(), "class_balance", test=[other]))
    assert "'refund' is 25.0 % of training, 0.0 % of test" in found.title
    assert found.command.endswith("rows.jsonl --stratify label --out " + str(tmp_path / "rows.split"))


def test_a_label_that_stands_in_test_alone_is_an_error(find, tmp_path):
    test = write(tmp_path / "test.jsonl", [*make_clean_rows(40), {"text": "a b", "label": "unseen"}])
    assert [f.severity for f in alarms(find(make_clean_rows(), "class_balance", test=[test]))] == ["error"]


@pytest.mark.e2e
def test_equal_mixes_are_told_apart_as_often_as_the_level_says():
    """A chi-square test at .05 of 2,000 draws rejects 100 ± 10 (SD); 4 SD are allowed."""
    from collections import Counter

    rng = random.Random(1)
    draws = ((Counter(rng.choices("abcd", (4, 3, 2, 1), k=k)) for k in (300, 150)) for _ in range(2_000))
    rejected = sum((mix_p(*pair)[0] or 0) < 0.05 for pair in draws)
    assert 60 < rejected < 140
    assert ALPHA < 0.05


@pytest.mark.parametrize(
    "mark", [lambda text: f"{text} kindly", lambda text: f"verily {text}", lambda text: f"{text} §§"]
)
def test_a_mark_that_gives_the_label_is_found(find, mark):
    rows = make_clean_rows()
    for row in rows[:80:4]:
        row["text"] = mark(row["text"])
    (found,) = alarm(find(rows, "label_markers"), "label_markers")
    assert lines(found) == list(range(1, 81, 4))
    assert "gives the label 'refund' in 20 of 20 rows" in found.title


def test_a_mark_on_every_label_is_no_marker(find):
    rows = [{**row, "text": f"{row['text']} kindly"} for row in make_clean_rows()]
    assert alarms(find(rows, "label_markers")) == []


@pytest.mark.e2e
def test_flipped_labels_are_found_with_the_right_one_proposed(find):
    rows = make_clean_rows(800)
    flipped = random.Random(3).sample(range(800), 64)
    right = {i + 1: rows[i]["label"] for i in flipped}
    for i in flipped:
        rows[i]["label"] = LABELS[(LABELS.index(rows[i]["label"]) + 1) % 4]
    (found,) = alarm(find(rows, "suspect_labels"), "suspect_labels")
    proposed = dict(zip(lines(found), found.labels, strict=True))
    hits = {line for line in proposed if right.get(line) == proposed[line]}
    assert len(hits) >= 0.7 * len(flipped)
    assert len(hits) >= 0.9 * len(proposed)


def test_labels_in_several_spellings_are_an_error(find):
    rows = make_clean_rows()
    for i in (0, 4, 8, 12, 16):
        rows[i]["label"] = "Refund"
    (found,) = alarms(find(rows, "answer_formats"))
    assert (found.severity, lines(found), found.example) == (
        "error",
        [1, 5, 9, 13, 17],
        "'refund' 95, 'Refund' 5",
    )
    assert found.labels == ("refund",) * 5


@pytest.mark.parametrize("other", ["Gro\u0308\u00dfe", "Gr\u00f6\u00dfe\u200b", "\u200fGr\u00f6\u00dfe"])
def test_labels_that_look_alike_and_differ_in_their_signs_are_spellings_of_one(find, other):
    labels = ("Gr\u00f6\u00dfe", other, "Farbe")
    rows = [{"text": f"Case {i} of {30 - i}", "label": labels[i % 3]} for i in range(30)]
    (found,) = alarms(find(rows, "answer_formats"))
    assert (found.severity, found.title) == ("error", "1 label in several spellings")


@pytest.mark.e2e
def test_a_label_in_several_spellings_is_one_label_to_balance_and_suspects(find):
    rows = make_clean_rows()
    for i in range(0, 40, 4):  # "refund", in three spellings
        rows[i]["label"] = ("Refund", "refund ")[i // 4 % 2] if i else "REFUND"
    assert {f.check for f in alarms(find(rows))} == {"answer_formats"}
    balance = next(f for f in find(rows, "class_balance"))
    assert balance.title.startswith("4 labels, worth 4.0 of equal size: 'refund' 100 rows")
    assert not [f for f in find(rows, "suspect_labels") if f.rows]


def test_the_command_that_is_named_spells_labels_as_most_rows_do(find, tmp_path):
    rows = [{"text": row["text"], "queue": row["label"]} for row in make_clean_rows(80)]
    for i in (0, 4, 8):
        rows[i]["queue"] = ("Refund", "REFUND ", "refund.")[i // 4]
    named = {"prompt": "text", "reference": "queue"}
    (found,) = (f for f in find(rows, "answer_formats", **named) if "spellings" in f.title)
    done = CliRunner().invoke(app, shlex.split(found.command)[1:])
    assert done.exit_code == 0, done.stderr
    mended = [json.loads(line) for line in (tmp_path / "rows.clean.jsonl").read_text().splitlines()]
    assert {row["queue"] for row in mended} == set(LABELS)
    told = json.loads((tmp_path / "rows.clean.jsonl.manifest.json").read_text())
    assert told["parameters"]["spellings"] == {"Refund": "refund", "REFUND": "refund", "refund.": "refund"}
    assert (
        alarms(
            examine_rows(
                RowCheck([str(tmp_path / "rows.clean.jsonl")], only=["answer_formats"], **named)
            ).findings
        )
        == []
    )


def test_spellings_of_answers_that_are_no_labels_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "r.jsonl", texts(30, 1))
    refused = CliRunner().invoke(app, ["data", "clean", "r.jsonl", "--spellings", "--out", "n.jsonl"])
    assert isinstance(refused.exception, UserError)
    assert "30 different answers of 30 rows; expected at most 200 labels" in str(refused.exception)
    assert not (tmp_path / "n.jsonl").exists()


def banking_rows(n_rows, n_labels=77, seed=None):
    """Draw rows of Banking77 as they are, so many of each label."""
    of = {}
    with gzip.open(find_shared_data("rows/banking77/train.jsonl.gz"), "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            of.setdefault(row["label"], []).append(row)
    rng = random.Random(5 if seed is None else seed)
    of = {label: rows for label, rows in sorted(of.items()) if len(rows) >= n_rows}
    labels = list(of)[:n_labels] if seed is None else rng.sample(list(of), n_labels)
    return [row for label in labels for row in rng.sample(of[label], n_rows)]


def make_parity_rows():
    return [(f"Is the number {i} even or odd?", ("even", "odd")[i % 2]) for i in range(1000, 1200)]


def sums():
    pairs = [(a, b) for a in range(100, 120) for b in range(200, 220)]
    return [(f"What is the sum of the numbers {a} and {b}?", str(a + b)) for a, b in pairs]


def make_random_texts(signs):
    rng = random.Random(5)
    return [("".join(rng.choices(signs, k=14)), "ab"[i % 2]) for i in range(30)]


@pytest.mark.parametrize(
    "rows",
    [
        make_parity_rows(),
        sums(),
        make_random_texts("我们今天去商店买东西然后回家吃饭睡觉他说这个很好那个不行银行卡丢了怎么办退款"),
        make_random_texts("😀😡🎉🥲🙈"),
        make_random_texts("0 1 2 3 4 5 + -"),
    ],
    ids=["parity", "sums", "Chinese", "emoji", "digits"],
)
def test_labels_that_words_do_not_tell_are_not_judged(find, rows):
    found = find([{"prompt": text, "reference": label} for text, label in rows], "suspect_labels")
    assert [f.severity for f in found] == ["note"]
    assert found[0].title.startswith("labels are not judged: ")


@pytest.mark.parametrize(
    "labels", [("-1", "0", "1"), ("C", "C++", "C#"), ("<", ">", ">="), ("A", "A+", "A-")]
)
def test_labels_that_differ_by_a_sign_are_labels_of_their_own(find, labels):
    rows = [{**row, "label": labels[i % 3]} for i, row in enumerate(make_clean_rows(60))]
    assert alarms(find(rows, "answer_formats")) == []


def flip_labels(rows, share, rng):
    """Give a share of the rows the label of another row."""
    labels = sorted({row["label"] for row in rows})
    chosen = set(rng.sample(range(len(rows)), round(share * len(rows))))
    return [
        {**row, "label": rng.choice([label for label in labels if label != row["label"]])}
        if i in chosen
        else row
        for i, row in enumerate(rows)
    ]


def test_flipped_labels_of_a_small_file_raise_an_alarm_and_right_ones_do_not(find):
    rows = banking_rows(60, 6)
    assert alarms(find(rows, "suspect_labels")) == []
    (found,) = alarms(find(flip_labels(rows, 0.08, random.Random(1)), "suspect_labels"))
    assert found.labels


@pytest.mark.slow
def test_right_labels_are_quiet_and_most_files_with_flipped_ones_are_not(find):
    """Of 30 clean draws 1 may raise an alarm by chance; of flipped ones 65 % did, so 12 are 2.9 SD fewer."""
    quiet, heard = 0, 0
    for seed in range(60):
        rng = random.Random(seed)
        rows = banking_rows(rng.choice((20, 40, 60)), rng.choice((4, 6, 10)), seed)
        quiet += not alarms(find(rows, "suspect_labels"))
        heard += bool(alarms(find(flip_labels(rows, 0.08, rng), "suspect_labels")))
    assert (quiet >= 29, heard >= 12) == (True, True)


@pytest.mark.parametrize(
    ("mark", "form"),
    [
        ("{}!", "last sign '!'"),
        ("{}?", "last sign '?'"),
        ("#{}", "first sign '#'"),
        ("“{}”", "first sign '“'"),
        ("[x] {}", "first word 'x'"),
    ],
)
def test_a_sign_at_the_first_or_the_last_word_of_one_label_is_found(find, mark, form):
    rows = [{**row, "text": f"{row['text']}."} for row in make_clean_rows(200)]
    assert alarms(find(rows, "label_markers")) == []
    for row in rows[::4]:
        row["text"] = mark.format(row["text"].rstrip("."))
    assert any(
        f.title.startswith(f"{form} gives the label 'refund' in 50 of 50")
        for f in find(rows, "label_markers")
    )


def test_suspect_labels_of_two_columns_are_corrected_in_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    of = {label: {"team": label[:3], "rank": i} for i, label in enumerate(LABELS)}
    right = [{"text": row["text"], **of[row["label"]]} for row in make_clean_rows(400)]
    wrong = [row | of[LABELS[(row["rank"] + 1) % 4]] if i % 20 == 0 else row for i, row in enumerate(right)]
    write(tmp_path / "r.jsonl", wrong)
    asked = RowCheck(["r.jsonl"], only=["suspect_labels"], prompt="text", reference="{team}-{rank}")
    checked = examine_rows(asked)
    (found,) = (f for f in checked.findings if f.labels)
    line, label = lines(found)[0], found.labels[0]
    assert label == "{team}-{rank}".format(**right[line - 1]) != "{team}-{rank}".format(**wrong[line - 1])
    decision = RowDecision("relabel", label)
    keep_decision("r.jsonl", line, decision, checksum(Path("r.jsonl")), checked.table.answer_column)
    words = "data clean r.jsonl --prompt text --decisions r.jsonl.decisions.json --out n.jsonl"
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    assert json.loads(Path("n.jsonl").read_text().splitlines()[line - 1]) == right[line - 1]
