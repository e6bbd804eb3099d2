"""Equal texts: one normalisation for metrics, labels, duplicates and contamination, in every script."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from edited_rows import jsonl, run_data
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu
from test_metrics import one

from harness.config import load
from harness.config.yaml_values import parse
from harness.data import load_task
from harness.data.edit.changes import several_spellings
from harness.errors import UserError
from harness.metrics import load_metrics
from harness.records import Example, Output, compose_letters, fold_text, normalize
from harness.spec import Task

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


@pytest.mark.parametrize(("one_form", "other"), EQUAL.values(), ids=EQUAL)
@pytest.mark.parametrize(
    "name", ["exact_match", "token_f1", "contains", "rouge", "final_answer", "json_fields"]
)
def test_equal_texts_are_right_by_every_metric_of_texts(name, one_form, other):
    write = json.dumps if name == "json_fields" else str
    for answer, reference in ((one_form, other), (other, one_form)):
        answer, reference = (
            write({"a": text}) if name == "json_fields" else text for text in (answer, reference)
        )
        assert one(name, answer, reference) == 1


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_letters_are_composed_for_metrics_that_count_case(name):
    said, gold = "Tra\u0302n thi\u0323 o\u031b\u0309 Hue\u0302\u0301 ne\u0300", "Trân thị ở Huế nè"
    assert one(name, said, gold) == pytest.approx(1)
    assert one(name, said.lower(), gold) < 0.9


@given(SIGNS)
def test_the_normalisation_changes_nothing_in_what_it_returned(text):
    for fold in (compose_letters, fold_text, normalize):
        assert fold(fold(text)) == fold(text)


@given(SIGNS)
def test_the_forms_of_unicode_and_the_order_of_steps_do_not_matter(text):
    folded = normalize(text)
    assert normalize(unicodedata.normalize("NFD", text)) == normalize(unicodedata.normalize("NFC", text))
    assert normalize(fold_text(text)) == normalize(compose_letters(text)) == folded
    assert normalize(f" {text}\u200b\u00a0") == folded


def test_scripts_without_blanks_or_with_vowel_signs_are_scored_by_their_words():
    assert one("contains", "रामा आया", "राम") == 0
    assert one("contains", "राम आया", "राम") == 1
    metric = load_metrics(Task(name="t", data={}, metrics=("rouge",)))["rouge"]
    assert not metric.reads(Example("e", (), ("🙂 !!",)))
    assert metric.reads(Example("e", (), ("да",)))
    said, gold = "我们在北京大学学习，2024 年。", "我们在北京大学读书，2024 年。"
    assert one("bleu", said, gold) == pytest.approx(corpus_bleu([said], [[gold]], tokenize="zh").score / 100)
    assert one("bleu", "ฉันรักเมืองไทย", "ฉันรักเมืองจีน") > 0.5


@pytest.mark.parametrize(("one_form", "other"), EQUAL.values(), ids=EQUAL)
def test_contamination_between_two_forms_is_the_error_that_it_is_between_equal_texts(
    tmp_path, one_form, other
):
    for name, texts in (("train", [one_form, "b", "c"]), ("test", [other, "d"])):
        jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"Say {t}", "reference": "x"} for t in texts])
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    with pytest.raises(UserError, match=r"the question of .*test\.jsonl:1 too"):
        load_task(Task(name="t", data=files), 0)


def test_rows_and_labels_in_two_forms_are_duplicates_to_the_commands(data):
    jsonl(Path("r.jsonl"), [{"text": f"What is {t}?", "label": t} for pair in EQUAL.values() for t in pair])
    said = run_data(data, "dedup", "r.jsonl", "--out", "n.jsonl")
    assert said.startswith(f"{2 * len(EQUAL)} read, {len(EQUAL)} written, {len(EQUAL)} dropped")
    assert "exact duplicates of an earlier row 50.0 % (12 of 24)" in run_data(data, "check", "r.jsonl")
    for pair in EQUAL.values():
        (found,) = several_spellings(pair)
        assert {label for label, _ in found} == {*pair}


@given(st.text("abcXYZ019 .,'-_()\n", max_size=30), st.text("abcXYZ019 .,'-_()\n", max_size=30))
def test_rouge_of_english_is_that_of_the_package(said, gold):
    for kind in ("rougeL", "rougeLsum", "rouge1", "rouge2"):
        published = RougeScorer([kind]).score(gold, said)[kind].fmeasure
        assert one(f"rouge(kind={kind})", said, gold) == pytest.approx(published)


LABELS = {
    "case": (["US", "us", "US", "de"], ["US", "de"]),
    "numbers": ([1, 1.0, "1", "1.0", 0, 2], ["0", "1", "2"]),
    "floats of a column with gaps": ([1.0, 0.0, "1", 0.0], ["0", "1"]),
    "truth values": ([True, 1, "1", "false", 0, "TRUE"], ["0", "1"]),
    "true and false": ([True, "True", True, "false", False], ["false", "true"]),
    "leading zeros": (["007", "7", 7, "07"], ["007", "07", "7"]),
    "forms": (["Hue\u0301", "Hué", "caf\u200be", "Cafe."], None),
    "words of YAML": (["on", "off", "null", "1e3", "0x1F", "2024-01-02", "~", "1_000"], None),
}


@pytest.mark.e2e
@pytest.mark.parametrize(("answers", "labels"), LABELS.values(), ids=LABELS)
def test_init_writes_labels_that_metrics_tell_apart_and_all_rows_are_read_as_them(command, answers, labels):
    rows = [{"text": f"Question {i} {j}?", "label": a} for i in range(15) for j, a in enumerate(answers)]
    jsonl(Path("r.jsonl"), rows)
    code, _, said = command("init", "new", "--data", "r.jsonl", "--task", "labels")
    assert code == 0, said
    task = load(Path("new/harness.yaml")).experiment.target
    assert labels is None or sorted(task.labels) == labels
    items = load_task(task, 0)
    metric = load_metrics(task)["macro_f1"]
    for example in (*items.train, *items.validation, *items.test):
        assert example.references[0] in task.labels
        parts = np.array([metric.score(Output(example.references[0].upper()), example)])
        assert metric.aggregate(parts, np.ones(1)) == 1
        assert metric.aggregate(np.array([metric.worst(example)]), np.ones(1)) == 0


@pytest.mark.parametrize(
    "labels", [("US", "us"), ("1", "1.0"), ("true", "1"), ("Hue\u0301", "Hué"), ("a", "A.")]
)
def test_a_suite_of_labels_that_are_one_is_refused(labels):
    with pytest.raises(ValueError, match="are one to metrics: keep one of them"):
        Task(name="t", data={}, labels=labels)


def test_labels_in_yaml_keep_their_text():
    written = "007 on off yes no null ~ 1e3 1_000 0x1F 2024-01-02 true 1.50".split()
    read, _ = parse(f"labels: [{', '.join(written)}]\nstop:\n- 007\nlimit: 0x1F\n", "suite.yaml")
    assert read == {"labels": written, "stop": ["007"], "limit": 31}
