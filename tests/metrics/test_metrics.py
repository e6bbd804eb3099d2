"""Metrics: a contract for every file, then each metric against a second source or by hand."""

import json
import math
import random
import socket
import sqlite3
import sys
import threading
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, f1_score, mean_absolute_error, precision_score, recall_score

from harness import plugins
from harness.errors import Unscored, UserError
from harness.metrics import follows, load_metrics, normalize
from harness.metrics._run_code import ALLOWED
from harness.records import Example, Output, compose_letters
from harness.spec import Task, TaskData

NAMES = plugins.names("metrics")
QUICK = [name for name in NAMES if name not in ("code_tests", "sql_execution")]  # a process per answer
EACH = [pytest.param(name, marks=() if name in QUICK else pytest.mark.e2e) for name in NAMES]


@pytest.fixture(autouse=True, scope="module")
def code_may_run():
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(ALLOWED, "1")
        yield


LABELS = ("billing", "delivery", "other")


def task(*metrics, labels=LABELS):
    return Task(name="t", data=TaskData(), metrics=metrics, labels=labels)


def build_metric(name, **fields):
    return load_metrics(task(name, **fields))[name]


def example(*references, choices=()):
    messages = ({"role": "user", "content": "What is it about?"},)
    # For `follows` and `sql_execution`, which score only these.
    constraints = ({"kind": "lower"}, {"kind": "sqlite", "schema": "CREATE TABLE t (a)"})
    return Example("e", messages, references=references, choices=choices, constraints=constraints)


def write_gold(name, label):
    if name == "sql_execution":
        return f"SELECT '{label}'"
    if name == "json_fields":
        return json.dumps({"queue": label})
    return json.dumps({"name": label, "arguments": {}}) if name == "tool_call" else label


def answer(text, logprob=-20.0):
    return Output(text, n_prompt_tokens=9, gold_logprob=logprob, gold_bytes=8)


def one(name, text, *references, choices=()):
    metric = build_metric(name)
    parts = metric.score(answer(text), example(*references, choices=choices))
    return float(metric.aggregate(np.array([parts]), np.ones(1)))


ROWS = [answer("Billing."), answer("delivery", -40.0), answer("the other queue", -3.0), answer("billing")]
GOLD = ["billing", "delivery", "other", "delivery"]


def parts_of(metric):
    golds = [write_gold(metric.name, gold) for gold in GOLD]
    rows = [metric.score(row, example(gold)) for row, gold in zip(ROWS, golds, strict=True)]
    return np.array([row for row in rows if row is not None])


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_carries_the_name_of_its_file_whose_docstrings_say_where_lower_is_better(name):
    metric, module = build_metric(name), plugins.load("metrics", name)
    is_lower = "lower is better" in f"{module.__doc__} {module.metric.__doc__}"
    assert (metric.name, metric.higher_is_better) == (name, not is_lower), "say where lower is better"


@pytest.mark.parametrize("name", QUICK)
@given(text=st.text(max_size=40), gold=st.sampled_from(LABELS))
def test_every_answer_gets_all_parts_which_are_finite_and_its_score_is_within_the_bounds(name, text, gold):
    metric = build_metric(name)
    parts = metric.score(answer(text), example(write_gold(name, gold)))
    assert len(parts) == len(metric.parts) == len(metric.worst(example(gold)))
    assert np.isfinite(parts).all()
    lowest, highest = metric.bounds
    assert lowest <= metric.aggregate(np.array([parts], float), np.ones(1)) <= highest


@pytest.mark.e2e
@pytest.mark.parametrize("name", NAMES)
def test_no_answer_is_worse_than_the_worst(name):
    metric = build_metric(name)
    ones = np.ones(len(ROWS))
    worst = metric.aggregate(np.array([metric.worst(example(gold)) for gold in GOLD]), ones)
    scored = metric.aggregate(parts_of(metric), ones)
    assert worst <= scored if metric.higher_is_better else worst >= scored


@pytest.mark.parametrize("name", EACH)
def test_a_weight_of_two_is_the_item_twice_and_of_zero_is_its_absence(name):
    metric = build_metric(name)
    parts = parts_of(metric)
    weighted = metric.aggregate(parts, np.array([2.0, 1.0, 0.0, 1.0]))
    repeated = metric.aggregate(parts[[0, 0, 1, 3]], np.ones(4))
    assert weighted == pytest.approx(repeated)


@pytest.mark.parametrize("name", EACH)
@given(scale=st.floats(1e-3, 1e3))
def test_many_weightings_at_once_agree_with_one_at_a_time_and_only_proportions_count(name, scale):
    metric = build_metric(name)
    parts, weights = parts_of(metric), np.random.default_rng(0).random((2, 3, len(ROWS)))
    values = metric.aggregate(parts, weights)
    assert values.shape == (2, 3)
    assert values[1, 2] == pytest.approx(metric.aggregate(parts, weights[1, 2] * scale))


def test_a_metric_with_parameters_is_written_like_a_prompting_and_named_with_them():
    parameterised = task({"rouge": {"kind": "rougeLsum"}}, "rouge")
    assert list(load_metrics(parameterised)) == ["rouge(kind=rougeLsum)", "rouge"]
    assert [metric.name for metric in load_metrics(parameterised).values()] == list(parameterised.metrics)


def test_a_file_of_ones_own_takes_parameters_too(tmp_path):
    (tmp_path / "long.py").write_text(
        "from harness.metrics import mean_metric\nfrom harness.spec import Spec\n\n\n"
        "class Params(Spec):\n    least: int = 3\n\n\n"
        "def metric(task, params):\n"
        "    return mean_metric('long', lambda out, _: float(len(out.text) >= params.least))\n"
    )
    loaded_metrics = load_metrics(task({str(tmp_path / "long.py"): {"least": 5}}))
    assert loaded_metrics["long(least=5)"].score(Output("four"), example("x")) == (0.0,)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"rouge": {"kind": "rouge9"}}, "kind=rouge9"),
        ({"rouge": {"sort": "rougeL"}}, "sort=rougeL"),
        ({"accuracy": {"k": 2}}, "parameters"),
    ],
)
def test_parameters_that_a_metric_does_not_take_are_refused(written, said):
    with pytest.raises(UserError, match=said):
        load_metrics(task(written))


def test_no_weight_at_all_gives_nan_and_no_warning(recwarn):
    assert math.isnan(build_metric("exact_match").aggregate(np.ones((2, 1)), np.zeros(2)))
    assert not recwarn.list


def read_scores():
    """Yield metric, score, references, choices and answer of each case and of two very long answers."""
    for line in Path(__file__).parents[1].joinpath("scored_answers.txt").read_text("utf-8").splitlines()[1:]:
        name, score, *lists = line.split(" => ")
        references, choices, answers = map(json.loads, lists)
        yield from ((name, Fraction(score), references, choices, text) for text in answers)
    yield from ((name, 0, ['{"a": 1}'], [], "[" * 100_000) for name in ("json_valid", "json_fields"))


@pytest.mark.parametrize(("name", "score", "references", "choices", "text"), list(read_scores()))
def test_an_answer_scores_what_it_scores_by_hand(name, score, references, choices, text):
    assert one(name, text, *references, choices=tuple(choices)) == pytest.approx(float(score))


def test_answers_that_end_alike_are_one_to_a_majority():
    key_of = build_metric("final_answer").same
    assert key_of("6 * 7\nAnswer: 42") == key_of("42.") != key_of("41")


@pytest.mark.parametrize("text", ["\\boxed{" * 3000, "*" * 6000 + "x"])
def test_a_final_answer_that_repeats_itself_is_read_quickly(text):
    started_s = time.process_time()
    one("final_answer", text, "42")
    assert time.process_time() - started_s < 2


@given(st.text())
def test_normalizing_never_makes_something_out_of_nothing(text):
    assert bool(normalize(text)) == bool(text.strip())


MACRO = {"macro_f1": f1_score, "precision": precision_score, "recall": recall_score}


@pytest.mark.parametrize("name", MACRO)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from((*LABELS, "no label"))), min_size=1))
def test_an_average_over_labels_is_that_of_scikit_learn_over_those_that_occur(name, pairs):
    golds, texts = zip(*pairs, strict=True)
    metric = build_metric(name)
    parts = np.array([metric.score(answer(text), example(label)) for label, text in pairs])
    expected = MACRO[name](golds, texts, labels=sorted(set(golds)), average="macro", zero_division=0)
    assert metric.aggregate(parts, np.ones(len(pairs))) == pytest.approx(expected)


@pytest.mark.parametrize("name", MACRO)
def test_an_average_over_labels_is_refused_without_labels_and_scores_none_outside_them(name):
    with pytest.raises(UserError, match=f"{name} on a task without labels"):
        build_metric(name, labels=())
    assert build_metric(name).score(answer("billing"), example("weather")) is None


WORDS = ("a", "lamp", "cost", "of", "blue")
SENTENCE = st.lists(st.sampled_from(WORDS), max_size=8)
EXPECTED = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8)


def count_longest_common(a, b):
    if not a or not b:
        return 0
    if a[0] == b[0]:
        return 1 + count_longest_common(a[1:], b[1:])
    return max(count_longest_common(a[1:], b), count_longest_common(a, b[1:]))


@given(SENTENCE, EXPECTED)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(said, gold):
    expected = 2 * count_longest_common(said, gold) / (len(said) + len(gold))
    assert one("rouge", " ".join(said), " ".join(gold)) == pytest.approx(expected)


OF_SACREBLEU = {
    "bleu": (sacrebleu.corpus_bleu, sacrebleu.BLEU, SENTENCE.map(" ".join), EXPECTED.map(" ".join)),
    "chrf": (sacrebleu.corpus_chrf, sacrebleu.CHRF, st.text(max_size=12), st.text(max_size=12)),
}


@pytest.mark.parametrize("name", OF_SACREBLEU)
@given(drawn=st.data())
def test_a_corpus_scores_as_by_sacrebleu_with_the_settings_that_are_said(name, drawn):
    corpus, scorer, answers, gold = OF_SACREBLEU[name]
    pairs = drawn.draw(st.lists(st.tuples(answers, gold), min_size=1, max_size=6))
    metric = build_metric(name)
    texts, golds = (list(map(compose_letters, side)) for side in zip(*pairs, strict=True))
    parts = np.array([metric.score(answer(text), example(g)) for text, g in pairs])
    assert metric.aggregate(parts, np.ones(len(pairs))) == pytest.approx(corpus(texts, [golds]).score / 100)
    settings_of = scorer()
    settings_of.corpus_score(texts, [golds])
    assert f"nrefs:1|{metric.signature}" == str(settings_of.get_signature())


@pytest.mark.parametrize(
    ("name", "k", "corpus"), [("bleu", 9, sacrebleu.corpus_bleu), ("chrf", 6, sacrebleu.corpus_chrf)]
)
def test_bleu_and_chrf_with_several_references_are_those_of_sacrebleu(name, k, corpus):
    rng = random.Random(1)
    texts, refs_a, refs_b = ([" ".join(rng.choices(WORDS, k=k)) for _ in range(20)] for _ in range(3))
    metric = build_metric(name)
    rows = zip(texts, refs_a, refs_b, strict=True)
    parts = np.array([metric.score(answer(text), example(a, b)) for text, a, b in rows])
    expected = corpus(texts, [refs_a, refs_b]).score / 100
    assert expected > 0.1
    assert metric.aggregate(parts, np.ones(20)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("bits_per_byte", [(9, -10 * math.log(2), 10), (9, -90 * math.log(2), 30)], 100 / 40),
        ("perplexity", [(1 + 4, -8.0, 10), (1 + 16, -12.0, 30)], math.e),
    ],
)
def test_a_likelihood_is_of_all_bytes_or_tokens_together_and_unknown_without_one(name, rows, expected):
    metric = build_metric(name)
    outputs = [Output("", n_prompt_tokens=n, gold_logprob=lp, gold_bytes=size) for n, lp, size in rows]
    parts = np.array([metric.score(output, example("text")) for output in outputs])
    assert metric.aggregate(parts, np.ones(2)) == pytest.approx(expected)
    assert metric.score(Output("text", n_prompt_tokens=9), example("text")) is None


def test_the_worst_likelihood_is_the_text_uncompressed_or_a_guess_among_all_bytes():
    assert build_metric("bits_per_byte").worst(example("é1")) == (24.0, 3.0)
    metric = build_metric("perplexity")
    assert metric.aggregate(np.array([metric.worst(example("é1"))]), np.ones(1)) == pytest.approx(256)
    single_token = Output("", n_prompt_tokens=1, gold_logprob=-1.0, gold_bytes=1)
    assert metric.score(single_token, example("a")) is None


STARS = ("1", "2", "3", "4", "5")


def rate(name, answers, golds, labels=STARS):
    metric = build_metric(name, labels=labels)
    pairs = zip(answers, golds, strict=True)
    parts = [metric.score(answer(text), example(gold)) for text, gold in pairs]
    return float(metric.aggregate(np.array(parts), np.ones(len(parts))))


@given(st.lists(st.tuples(st.sampled_from(STARS), st.sampled_from(STARS)), min_size=2, max_size=12))
def test_ratings_are_measured_as_sklearn_measures_them(pairs):
    answers, golds = zip(*pairs, strict=True)
    numbers = list(map(int, answers)), list(map(int, golds))
    assert rate("mean_absolute_error", answers, golds) == pytest.approx(mean_absolute_error(*numbers))
    share_within = np.mean([abs(a - b) <= 1 for a, b in zip(*numbers, strict=True)])
    assert rate("within_one", answers, golds) == pytest.approx(share_within)
    if len(set(answers + golds)) > 1:
        expected = cohen_kappa_score(*numbers, labels=[1, 2, 3, 4, 5], weights="quadratic")
        assert rate("weighted_kappa", answers, golds) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "text", "gold", "error"),
    [
        (("bad", "fair", "good"), "bad", "good", 2.0),
        (("1 star", "2 stars", "5 stars"), "1 star", "5 stars", 4.0),
        (STARS, "excellent!", "1", 4.0),
    ],
)
def test_ratings_have_their_numbers_or_places_and_what_is_none_is_farthest_off(labels, text, gold, error):
    assert rate("mean_absolute_error", [text], [gold], labels) == error
    assert rate("within_one", [text], [gold], labels) == 0


def test_span_f1_is_that_of_the_corpus():
    metric = build_metric("span_f1")
    rows = [('["a", "b"]', '["a"]'), ("[]", '["c"]'), ('["d"]', '["d"]')]
    parts = [metric.score(answer(text), example(gold)) for text, gold in rows]
    assert metric.aggregate(np.array(parts), np.ones(3)) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


SHOP = "CREATE TABLE sold (item TEXT, n INT); INSERT INTO sold VALUES ('pen', 3), ('ink', 5);"


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ("```sql\nSELECT item FROM sold WHERE n > 4;\n```", "SELECT item FROM sold WHERE n >= 5", 1),
        ("SELECT item FROM sold ORDER BY n DESC", "SELECT item FROM sold", 1),
        ("SELECT item FROM sold ORDER BY n DESC", "SELECT item FROM sold ORDER BY n", 0),
        ("SELECT item FROM sole", "SELECT item FROM sold", 0),
    ],
)
def test_sql_is_right_where_it_finds_the_rows_of_the_reference(tmp_path, text, reference, score):
    database = {"schema": SHOP}
    if score:
        database = {"database": str(tmp_path / "shop.sqlite")}
        with sqlite3.connect(database["database"]) as connection:
            connection.executescript(SHOP)
    item = replace(example(reference), constraints=({"kind": "sqlite", **database},))
    assert build_metric("sql_execution").score(answer(text), item) == (score,)


def test_a_reference_that_fails_on_its_database_is_refused():
    item = replace(example("SELECT x FROM sold"), constraints=({"kind": "sqlite", "schema": SHOP},))
    with pytest.raises(UserError, match="a query that fails on its database"):
        build_metric("sql_execution").score(answer("SELECT 1"), item)


def test_sql_is_not_normalised_without_its_parser(monkeypatch):
    monkeypatch.setitem(sys.modules, "sqlglot", None)
    with pytest.raises(UserError, match=r"pip install 'harness-evals\[sql\]'"):
        build_metric("sql_match")


SCHEMA = {
    "type": "object",
    "properties": {"queue": {"enum": ["billing", "delivery"]}, "days": {"type": "integer", "minimum": 0}},
    "required": ["queue"],
    "additionalProperties": False,
}
CALL = '{"name": "refund", "arguments": {"order": 17, "reason": "late"}}'


def score_answer(name, text, *references, constraints=()):
    metric = load_metrics(Task(name="t", data=TaskData(), metrics=(name,)))[name]
    parts = metric.score(Output(text), Example("e", (), references, constraints=constraints))
    return None if parts is None else parts[0]


def test_fields_are_those_of_the_nearest_reference_and_calls_in_any_order():
    assert score_answer("json_fields", '{"a": 2}', '{"a": 1}', '{"a": 2}') == 1.0
    assert score_answer("json_fields", "{}", "billing") is None
    assert score_answer("tool_call", CALL, "billing") is None
    other_call = '{"name": "mail", "arguments": {}}'
    assert score_answer("tool_call", f"[{other_call}, {CALL}]", f"[{CALL}, {other_call}]") == 1.0


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"queue": "billing", "days": 3}', 1.0),
        ('{"queue": "sales"}', 0.0),
        ('{"queue": "billing", "days": -1}', 0.0),
        ('{"queue": "billing", "more": 1}', 0.0),
        ("queue: billing", 0.0),
    ],
)
def test_an_answer_keeps_a_json_schema_or_not(text, kept):
    assert score_answer("follows", text, constraints=({"kind": "json_schema", "schema": SCHEMA},)) == kept


def test_a_schema_that_is_none_or_would_be_fetched_is_refused():
    askers = []

    def listen(server):
        connection, asker = server.accept()
        askers.append(asker)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=listen, args=[server])
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        for schema in ({"type": "banana"}, {"$ref": address}):
            with pytest.raises(UserError, match="expected a JSON Schema"):
                score_answer("follows", "{}", constraints=({"kind": "json_schema", "schema": schema},))
        with socket.create_connection(server.getsockname()) as own_connection:  # must be the first connection
            thread.join()
            assert askers == [own_connection.getsockname()]


def test_a_pattern_that_takes_for_ever_on_an_answer_leaves_it_unscored(monkeypatch):
    monkeypatch.setattr(follows, "_MOST_S", 0.2)
    schema = {"type": "string", "pattern": "^(a+)+$"}
    with pytest.raises(Unscored, match=r"one that takes at most 0\.2 s"):
        score_answer("follows", f'"{"a" * 60}!"', constraints=({"kind": "json_schema", "schema": schema},))


@pytest.mark.parametrize(
    ("constraint", "text", "kept"),
    [
        ({"kind": "avoids", "words": ["苹果"]}, "我喜欢苹果。", False),
        ({"kind": "includes", "words": ["苹果"]}, "我喜欢苹果。", True),
        ({"kind": "avoids", "words": ["cat"]}, "a category", True),
        ({"kind": "n_words", "min": 5, "max": 9}, "我喜欢吃苹果和香蕉", True),
        ({"kind": "n_words", "min": 5}, "苹果", False),
    ],
)
def test_words_of_scripts_without_blanks_are_found_within_a_text(constraint, text, kept):
    item = Example("1", (), constraints=(constraint,))
    (metric,) = load_metrics(Task(name="t", data=TaskData(), metrics=("follows",))).values()
    assert metric.score(Output(text), item) == (float(kept),)
