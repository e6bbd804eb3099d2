"""Cleaning and deduplication: what is changed or dropped and why; equal texts are equal everywhere."""

import json
import random
import shlex
import unicodedata
from pathlib import Path

import edited_rows
import pytest
from checked_rows import LABELS, WORDS, alarms, fill_layout, lines, make_clean_rows, run_command, write
from conftest import find_shared_data
from edited_rows import ASKED, LONG, jsonl, list_rows, manifest, read, read_refusal, run_data, run_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu
from test_formats import ROWS as LAYOUT_ROWS
from test_metrics import one
from typer.testing import CliRunner

from harness.cli import app
from harness.config.yaml_loading import parse
from harness.data import readers
from harness.data.column_roles import find_roles
from harness.data.edit.changes import RowDecision, keep_decision, several_spellings
from harness.data.edit.clean import clean, clean_text
from harness.data.edit.dedup import dedup
from harness.data.row_forms import has_choices
from harness.errors import UserError
from harness.experiment.check_rows import RowCheck, examine_rows
from harness.metrics import load_metrics
from harness.records import Example, checksum, compose_letters, fold_text, normalize
from harness.spec import Task


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


def write_sentences(path, n=80):
    """Write English answers of 8 to 14 words, four of them damaged; returns path and traits by line."""
    rng = random.Random(0)
    nouns = "table garden engine letter window river market teacher bottle ticket".split()
    rows = []
    for i in range(n):
        a, b, c, d = rng.sample(nouns, 4)
        longer = f" and nobody else has seen the {d} there" if rng.random() < 0.5 else ""
        answer = f"It is kept with the {b} in the old {c}{longer}."
        rows.append({"question": f"Where is the {a} {i}?", "answer": answer})
    damaged_answers = {
        "repetition": "in the old garden " * 5 + ".",
        "refusal": "I'm sorry, but I can't help you with that.",
        "language": "Das weiß ich leider auch nicht, bitte fragen Sie morgen noch einmal im alten Garten nach.",
        "end": "It is kept with the",
    }
    for line, answer in zip((11, 29, 47, 63), damaged_answers.values(), strict=True):
        rows[line - 1]["answer"] = answer
    return write(path, rows), dict(zip((11, 29, 47, 63), damaged_answers, strict=True))


def test_answers_of_low_quality_are_listed_and_dropped_with_their_trait_and_others_are_kept(tmp_path):
    path, traits = write_sentences(tmp_path / "rows.jsonl")
    (note,) = examine_rows(RowCheck([path], only=["quality"])).findings
    assert ([int(p.rpartition(":")[2]) for p in note.rows], note.severity) == ([*traits], "note")
    assert note.example.endswith(", 0.5 95.0 %, 0.6 95.0 %, 0.7 95.0 %, 0.8 95.0 %, 0.9 95.0 %")
    assert note.command.startswith(f"harness data clean {path} --out ")
    result = CliRunner().invoke(app, shlex.split(note.command)[1:])
    assert result.stdout.startswith("80 read, 76 written, 4 dropped\n"), result.stderr
    (written,) = tmp_path.glob("*.manifest.json")
    dropped = json.loads(written.read_text())["rows"]
    reasons = {int(row["row"].rpartition(":")[2]): row["reason"] for row in dropped}
    assert {line: reason.partition(": ")[2] for line, reason in reasons.items()} == traits
    for wrong in (["--min-quality", "2"], ["--perplexity"], ["--min-quality", "0.5", "--perplexity"]):
        refused = CliRunner().invoke(app, ["data", "clean", path, "--dry-run", *wrong])
        assert isinstance(refused.exception, UserError), wrong


@pytest.mark.weekly
def test_at_most_one_in_two_hundred_real_answers_is_of_low_quality():
    file = find_shared_data("rows/dolly_3k/train.jsonl.gz")
    (finding,) = examine_rows(RowCheck([str(file)], only=["quality"])).findings
    assert (finding.severity, finding.of > 1_000) == ("note", True)
    assert finding.count <= finding.of / 200


@given(st.text())
def test_cleaning_a_clean_text_changes_nothing(text):
    once = clean_text(text)[0]
    assert clean_text(once) == (once, [])


@given(edited_rows.draw_rows("text", "label", "other"))
def test_every_row_is_written_or_dropped_once_and_in_order(rows):
    outcomes = list(clean(rows, ASKED))
    assert [(o.row or o.change).where for o in outcomes] == [row.where for row in rows]
    for row, (new, change) in zip(rows, outcomes, strict=True):
        assert (new is None) == (bool(change) and change.kind == "dropped")
        assert new is None or new.fields.keys() == row.fields.keys()
        assert new is None or change or new == row


def test_rows_that_ask_or_answer_nothing_are_dropped_with_the_reason():
    rows = edited_rows.rows_of(
        {"text": "a", "label": "x"}, {"text": " ", "label": "x"}, {"text": "b", "label": None}
    )
    outcomes = list(clean(rows, ASKED))
    assert [o.row is None for o in outcomes] == [False, True, True]
    expected = ["r.jsonl:2: dropped, an empty question", "r.jsonl:3: dropped, an empty answer"]
    assert [str(o.change) for o in outcomes[1:]] == expected
    rows = {"text": "Ann is here.", "entities": [{"text": "Ann"}]}, {"text": "Rain.", "entities": []}
    assert [outcome.row.fields for outcome in run_rows(clean, *rows)] == [*rows]

    user, reply = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "  "}
    talks = [user, reply], [user, {**reply, "content": "Yes "}]
    outcomes = run_rows(clean, *({"messages": talk} for talk in talks))
    assert outcomes[0].change.reason == "an empty answer"
    assert outcomes[1].row.fields["messages"][1]["content"] == "Yes"

    lost = {"text": "caf\ufffd", "label": "a"}
    assert run_rows(clean, lost)[0].row
    assert run_rows(clean, lost, drop_lost=True)[0].change.reason == "lost signs (U+FFFD)"

    pair = {"prompt": "a", "chosen": "x", "rejected": "y"}
    question = {"question": "a", "answers": ["", "x"]}
    for bad, good, reason in (
        ({**pair, "rejected": ""}, pair, "an empty answer"),
        ({**pair, "chosen": "x  y", "rejected": "x y"}, pair, "two equal answers"),
        ({**question, "answers": []}, question, "an empty answer"),
    ):
        outcomes = run_rows(clean, bad, good)
        assert (outcomes[0].change.reason, outcomes[1].row.fields) == (reason, good)


def test_clean_writes_a_new_file_beside_its_manifest_twice_the_same(data):
    Path("t.csv").write_text("text;label;no\nRÃ¼ck;refund;1\n;refund;2\nHi ;card;3\n", encoding="utf-8")
    output = run_data(data, "clean", "t.csv", "--out", "a.csv", "--license", "CC0", "--note", "no names")
    run_data(data, "clean", "t.csv", "--out", "b.csv", "--license", "CC0", "--note", "no names")
    assert output.startswith("3 read, 2 written, 1 dropped, 2 changed\n")
    expected = [{"text": "Rück", "label": "refund", "no": "1"}, {"text": "Hi", "label": "card", "no": "3"}]
    assert read("a.csv") == expected
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()
    text = Path("a.csv.manifest.json").read_text()
    assert text.replace("a.csv", "b.csv") == Path("b.csv.manifest.json").read_text()
    saved = manifest("a.csv")
    assert saved["inputs"] == [{"file": "t.csv", "sha256": checksum(Path("t.csv"))}]
    assert saved["outputs"] == [{"file": "a.csv", "rows": 2, "sha256": checksum(Path("a.csv"))}]
    assert [row["row"] for row in saved["rows"]] == ["t.csv:2", "t.csv:3", "t.csv:4"]
    assert (saved["licenses"], saved["notes"]) == (["CC0"], ["no names"])


def test_a_dry_run_writes_nothing_and_prints_nothing_that_a_terminal_would_obey(data):
    jsonl(Path("r.jsonl"), [{"prompt": "a", "reference": "x"}, {"prompt": "b", "reference": ""}])
    output = run_data(data, "clean", "r.jsonl", "--dry-run")
    assert "r.jsonl:2: dropped, an empty answer" in output
    assert sorted(p.name for p in Path().iterdir()) == ["r.jsonl"]

    jsonl(Path("r\x1b[31m.jsonl"), [{"text": "a", "label": "b"}])
    code, _, err = data("clean", "r\x1b[31m.jsonl", "--out", "x.jsonl")
    assert (code, "\x1b" in err, "r.jsonl" in err) == (0, False, True)
    assert "\x1b" not in read_refusal(data, "clean", "r\x1b[31m.jsonl", "--out", "r\x1b[31m.jsonl")


def test_decisions_drop_keep_and_relabel(data):
    file = jsonl(Path("r.jsonl"), [{"text": t, "label": "x"} for t in "abc"])
    rows = {"1": {"decision": "drop"}, "2": {"decision": "relabel", "label": "y"}, "3": {"decision": "keep"}}
    decisions = {"file": "r.jsonl", "digest": checksum(file), "column": "label", "rows": rows}
    Path("d.json").write_text(json.dumps(decisions))
    run_data(data, "clean", "r.jsonl", "--decisions", "d.json", "--out", "n.jsonl")
    assert read("n.jsonl") == [{"text": "b", "label": "y"}, {"text": "c", "label": "x"}]
    assert [row["reason"] for row in manifest("n.jsonl")["rows"]] == ["decided", "relabelled in 'label'"]
    expected = [{"file": "d.json", "sha256": checksum(Path("d.json"))}]
    assert manifest("n.jsonl")["parameters"]["decisions"] == expected


@pytest.mark.parametrize(
    ("decisions", "found"),
    [
        ({"digest": "0" * 64, "rows": {}}, "decisions on another content"),
        ({"rows": {"9": {"decision": "drop"}}}, "no row in that line"),
        ({"rows": {"1": {"decision": "mend"}}}, "no decisions (ValueError"),
        ({"rows": {"1": {"decision": "relabel", "label": "y"}}}, 'add "column" to the decisions'),
        ({"rows": 3}, "no decisions (AttributeError"),
    ],
)
def test_decisions_that_do_not_fit_are_refused(data, decisions, found):
    file = jsonl(Path("r.jsonl"), [{"text": "a", "label": "x"}])
    Path("d.json").write_text(json.dumps({"file": "r.jsonl", "digest": checksum(file), **decisions}))
    assert found in read_refusal(data, "clean", "r.jsonl", "--decisions", "d.json", "--out", "n.jsonl")


DECIDED = ("clean", "r.jsonl", "--decisions", "r.jsonl.decisions.json", "--out", "n.jsonl")


def test_a_label_goes_into_the_column_that_was_looked_at_and_a_file_holds_decisions_on_one_column(data):
    file = jsonl(Path("r.jsonl"), [{"text": t, "label": "open", "category": "x"} for t in "abc"])
    digest = checksum(file)
    keep_decision("r.jsonl", 2, RowDecision("relabel", "y"), digest, "category")
    error = read_refusal(data, *DECIDED, "--reference", "label")
    assert "labels of the column 'category', where 'label' answers" in error
    run_data(data, *DECIDED)
    expected = [("open", "x"), ("open", "y"), ("open", "x")]
    assert [(row["label"], row["category"]) for row in read("n.jsonl")] == expected
    expected = "decisions on the column 'category'; expected those on the column 'label'"
    with pytest.raises(UserError, match=expected):
        keep_decision("r.jsonl", 1, RowDecision("keep"), digest, "label")

    Path("r.jsonl.decisions.json").write_text("my notes")
    with pytest.raises(UserError, match="no decisions"):
        keep_decision("r.jsonl", 1, RowDecision("keep"), digest)
    assert Path("r.jsonl.decisions.json").read_text() == "my notes"


NESTED = ("chat", "MMLU", "preference as turns")


@pytest.mark.parametrize("layout", NESTED)
def test_labels_in_several_spellings_are_mended_in_every_layout(find, tmp_path, layout):
    rows = make_clean_rows(40)
    for i in (0, 4, 8):
        rows[i]["label"] = ("Refund", "REFUND", "refund.")[i // 4]
    findings = find([fill_layout(LAYOUT_ROWS[layout], *row.values()) for row in rows], "answer_formats")
    (finding,) = (f for f in alarms(findings) if "spellings" in f.title)
    assert (finding.count, finding.command.endswith("rows.clean.jsonl --spellings")) == (3, True)
    run_command(finding.command)
    cleaned = [json.loads(line) for line in (tmp_path / "rows.clean.jsonl").read_text().splitlines()]
    expected = [fill_layout(LAYOUT_ROWS[layout], row["text"], LABELS[i % 4]) for i, row in enumerate(rows)]
    assert cleaned == expected


def kept_fields(*fields, **options):
    return [row.fields for row in list_rows(run_rows(dedup, *fields, **options))]


def dedup_texts(*rows, **options):
    """Return the numbers of the written rows, and the changes."""
    content = edited_rows.rows_of(*({"text": text, "label": label} for text, label in rows))
    outcomes = dedup(content, ASKED, **options)
    numbers = [int(row.where[8:]) for row in list_rows(outcomes)]
    return numbers, [str(outcome.change) for outcome in outcomes if outcome.change]


def test_equal_and_nearly_equal_rows_are_dropped_and_name_the_one_that_stays():
    expected = ([1, 2], ["r.jsonl:3: dropped, a duplicate of r.jsonl:1"])
    assert dedup_texts(("Hi there", "x"), ("other", "x"), ("hi  THERE", "X")) == expected
    numbers, changes = dedup_texts((LONG, "x"), (LONG + " now", "x"), ("Where is my card?", "x"))
    assert numbers == [1, 3]
    assert changes[0].startswith("r.jsonl:2: dropped, a near duplicate of r.jsonl:1 (0.9")

    rows = (LONG, "x"), (f"{LONG} now", "x"), (f"{LONG} NOW", "x")
    numbers, changes = dedup_texts(*rows)
    assert numbers == [1]
    assert all("of r.jsonl:1 (0.9" in change for change in changes)

    rows = (LONG, "parcel"), (f"{LONG} now", "address"), (f"{LONG} ok", "address")
    numbers, changes = dedup_texts(*rows)
    assert numbers == [1, 2]
    assert "r.jsonl:3: dropped, a near duplicate of r.jsonl:2" in changes[0]
    assert dedup_texts(*rows, alike=1)[0] == [1, 2, 3]


def test_questions_in_another_context_or_beside_other_tools_are_no_duplicates():
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me"}]
    for name in ("French", "German"):
        system = {"role": "system", "content": f"Answer politely and in {name}"}
        assert len(kept_fields({"messages": [system, *turns]}, {"messages": turns})) == 2
    item = {"prompt": "Which is larger?", "reference": "b"}
    choices = [{**item, "choices": [*letters]} for letters in ("ab", "cb", "ab")]
    assert kept_fields(*choices, conflicts="drop") == choices[:2]

    user = {"role": "user", "content": "What is the weather in Paris?"}
    weather, refund = ({"name": name, "parameters": {}} for name in ("weather", "refund"))
    chats = [
        {"messages": [user, {"role": "assistant", "content": answer}], "tools": tools}
        for answer, tools in (("Rain", [weather]), ("Rain", [weather, refund]), ("Unknown", [refund]))
    ]
    assert kept_fields(*chats, conflicts="drop") == chats

    first, second = (" ".join(f"{letter}{i}" for i in range(30)) for letter in "ab")
    built = {"question": "When was it built?", "answer": "1912", "context": first}
    rows = built, {**built, "context": second}, {**built, "question": "Who built it?"}
    assert kept_fields(*rows, {**built, "question": "when was it built"}) == [*rows]


def test_an_answer_with_two_thumbs_is_a_contradiction_and_no_duplicate():
    rows = ({"prompt": "Who?", "completion": "Me", "label": up} for up in (True, False, True))
    assert [o.change.kind for o in run_rows(dedup, *rows)] == ["reported", "reported", "dropped"]


def test_conflicting_answers_are_reported_and_stay_unless_they_are_to_be_dropped():
    rows = ("Where?", "here"), ("other", "x"), ("where?", "there")
    reason = "r.jsonl:{}: reported, another answer to the question of r.jsonl:{}"
    assert dedup_texts(*rows) == ([1, 2, 3], [reason.format(1, 3), reason.format(3, 1)])
    assert dedup_texts(*rows, conflicts="drop")[0] == [2]


@settings(max_examples=50)
@given(edited_rows.draw_rows("text", "label"), st.sampled_from(["keep", "drop"]))
def test_dedup_keeps_a_row_of_every_kind_and_invents_none(rows, conflicts):
    outcomes = dedup(rows, ASKED, conflicts=conflicts)
    assert [(o.row or o.change).where for o in outcomes] == [row.where for row in rows]
    written = list_rows(outcomes)
    assert [row for row in rows if row in written] == written
    places = {row.where for row in written}
    assert all(o.change.of in places for o in outcomes if o.change and "duplicate" in o.change.reason)
    assert list_rows(dedup(written, ASKED, conflicts=conflicts)) == written


def test_rows_too_like_a_test_file_are_dropped(data):
    jsonl(Path("r.jsonl"), [{"text": text, "label": "x"} for text in (LONG, "Where is my card?", "Fees")])
    Path("t.csv").write_text(f"prompt,reference\nwhere is my card?,card\n{LONG} now,parcel\n")
    output = run_data(data, "dedup", "r.jsonl", "--against", "t.csv", "--out", "n.jsonl")
    assert output.startswith("3 read, 1 written, 2 dropped")
    reasons = {row["of"]: row["reason"] for row in manifest("n.jsonl")["rows"]}
    expected = {"t.csv:3": "in the test file by words in common", "t.csv:2": "a question of the test file"}
    assert reasons == expected
    run_data(data, "dedup", "r.jsonl", "--against", "t.csv", "--out", "m.jsonl")
    assert Path("m.jsonl").read_bytes() == Path("n.jsonl").read_bytes()
    error = read_refusal(data, "dedup", "r.jsonl", "--against", "t.csv", "--out", "t.csv")
    assert "never changed in place" in error


OTHERS = [f"{WORDS[i]} {WORDS[2 * i]} {WORDS[-i]} {WORDS[-2 * i]}?" for i in range(1, 30)]
PRIMARY = "Name a primary colour of light."


@pytest.mark.parametrize("layout", NESTED)
def test_the_check_names_what_dedup_drops(find, tmp_path, layout):
    """Equal and nearly equal rows are repeats; the same question with another answer is not."""
    pairs = [(question, f"It is {question[:9]}") for question in OTHERS]
    pairs += [(LONG, "Blue."), (PRIMARY, "red"), (PRIMARY, "blue"), (LONG.upper(), "blue.")]
    pairs += [(f"{LONG} now", "Blue."), (f"{LONG} now", "Green.")]
    pairs += [(f"{LONG} {word}", f"{LONG} {WORDS[i]}") for word, i in (("ok", 3), ("so", 4))]
    rows = [fill_layout(LAYOUT_ROWS[layout], *pair) for pair in pairs]
    n = len(OTHERS)
    # A rarer answer to a question with choices comes with other choices, which makes it another question.
    repeats = [n + 5] if has_choices({*LAYOUT_ROWS[layout]}) else [n + 4, n + 5, n + 8]
    found = sorted(line for f in alarms(find(rows, "repeated_rows")) for line in lines(f))
    content = readers.read(str(tmp_path / "rows.jsonl"), "train")
    outcomes = dedup(content.rows, find_roles(content))
    assert found == [i for i, outcome in enumerate(outcomes, start=1) if outcome.row is None] == repeats


EQUAL = {
    "composed": ("Tra\u0302n o\u031b\u0309 Hue\u0302\u0301", "Tr\u00e2n \u1edf Hu\u1ebf"),
    "zero width": ("new\u200b York\u2060\ufeff", "New York"),
    "directions": ("\u200f\u202bשלום\u202c\u200e", "שלום"),
    "soft hyphen": ("Donau\u00addampfer", "donaudampfer"),
    "apostrophe": ("it\u2019s Kya\u02bcs", "it's kya's"),
    "quotes": ("«oui» said „ja“", '"oui" said "ja"'),
    "dashes": ("1939\u20131945 \u2212 5", "1939-1945 - 5"),
    "non-breaking": ("10\u00a0km\u202fout\u3000now", "10 km out now"),
    "widths": ("ＡＢＣ－１２３ ｶﾞ", "abc-123 ガ"),
    "sharp s": ("STRASSE", "straße"),
    "variation": ("\u2764\ufe0f love", "\u2764 love"),
    "ellipsis": ("so\u2026 what", "so... what"),
}
SIGNS = st.text(
    st.characters() | st.sampled_from("\u0301\u0323\u200b\u2019\u00a0.\"'`İßﬀͅ" + "ｶﾞ한가"), max_size=12
)


@pytest.mark.parametrize(
    "name", ["exact_match", "token_f1", "contains", "rouge", "final_answer", "json_fields"]
)
def test_equal_texts_are_right_by_every_metric_of_texts(name):
    write = (lambda text: json.dumps({"a": text})) if name == "json_fields" else str
    for form, (one_form, twin) in EQUAL.items():
        assert one(name, write(one_form), write(twin)) == one(name, write(twin), write(one_form)) == 1, form


@given(SIGNS)
def test_the_normalisation_changes_nothing_in_what_it_returned(text):
    for fold in (compose_letters, fold_text, normalize):
        assert fold(fold(text)) == fold(text)


@given(SIGNS)
def test_the_forms_of_unicode_and_the_order_of_steps_do_not_matter(text):
    normal_form = normalize(text)
    assert normalize(unicodedata.normalize("NFD", text)) == normalize(unicodedata.normalize("NFC", text))
    assert normalize(fold_text(text)) == normalize(compose_letters(text)) == normal_form
    assert normalize(f" {text}\u200b\u00a0") == normal_form


def test_scripts_without_blanks_or_with_vowel_signs_are_scored_by_their_words():
    assert one("contains", "रामा आया", "राम") == 0
    assert one("contains", "राम आया", "राम") == 1
    metric = load_metrics(Task(name="t", data={}, metrics=("rouge",)))["rouge"]
    assert not metric.reads(Example("e", (), ("🙂 !!",)))
    assert metric.reads(Example("e", (), ("да",)))
    new, gold = "我们在北京大学学习，2024 年。", "我们在北京大学读书，2024 年。"
    assert one("bleu", new, gold) == pytest.approx(corpus_bleu([new], [[gold]], tokenize="zh").score / 100)
    assert one("bleu", "ฉันรักเมืองไทย", "ฉันรักเมืองจีน") > 0.5


def test_rows_and_labels_in_two_forms_are_duplicates_to_the_commands(data):
    jsonl(Path("r.jsonl"), [{"text": f"What is {t}?", "label": t} for pair in EQUAL.values() for t in pair])
    output = run_data(data, "dedup", "r.jsonl", "--out", "n.jsonl")
    assert output.startswith(f"{2 * len(EQUAL)} read, {len(EQUAL)} written, {len(EQUAL)} dropped")
    assert "exact duplicates of an earlier row 50.0 % (12 of 24)" in run_data(data, "check", "r.jsonl")
    for pair in EQUAL.values():
        (spellings,) = several_spellings(pair)
        assert {label for label, _ in spellings} == {*pair}


@given(st.text("abcXYZ019 .,'-_()\n", max_size=30), st.text("abcXYZ019 .,'-_()\n", max_size=30))
def test_rouge_of_english_is_that_of_the_package(said, gold):
    for kind in ("rougeL", "rougeLsum", "rouge1", "rouge2"):
        published = RougeScorer([kind]).score(gold, said)[kind].fmeasure
        assert one(f"rouge(kind={kind})", said, gold) == pytest.approx(published)


@pytest.mark.parametrize("labels", [("true", "1"), ("a", "A.")])
def test_a_suite_of_labels_that_are_one_is_refused(labels):
    with pytest.raises(ValueError, match="are one to metrics: keep one of them"):
        Task(name="t", data={}, labels=labels)


def test_labels_in_yaml_keep_their_text():
    written = "007 on off yes no null ~ 1e3 1_000 0x1F 2024-01-02 true 1.50".split()
    parsed, _ = parse(f"labels: [{', '.join(written)}]\nstop:\n- 007\nlimit: 0x1F\n", "suite.yaml")
    assert parsed == {"labels": written, "stop": ["007"], "limit": 31}
