"""`harness monitor`: its alarms, their absence without drift, and its notes when rows are too few."""

import json
import random
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import tiny_experiment
from conftest import find_shared_data
from fake_rows import rows as fake_rows
from scipy.stats import ks_2samp

from harness import stats, store
from harness.errors import UserError
from harness.lifecycle.production import compare_samples, monitor
from harness.records import Example, FeedbackRow
from harness.store import Store
from reports.studies.production_drift import Condition, alarms, draw

WORDS = {
    "parcel": "parcel depot letter lamp courier delivery package post van driver door street".split(),
    "money": "invoice refund charge price bill receipt payment bank card fee discount account".split(),
}
FRAMES = (
    "Where is the {} with the {} today?",
    "My {} and the {} are wrong.",
    "Please send the {} to the {}.",
)
GERMAN = ("Wo ist denn heute mein {} mit dem {}?", "Warum ist der {} noch nicht bei der {}?")


def ask(n, topic="parcel", seed=0, frames=FRAMES):
    """Write n different questions about a topic."""
    draw = random.Random(f"{seed} {topic}")
    return [f"{draw.choice(frames).format(*draw.sample(WORDS[topic], 2))} No. {i}" for i in range(n)]


def items(texts):
    return [Example(str(i), ({"role": "user", "content": text},)) for i, text in enumerate(texts)]


def feedback(texts, answers=None, senders=None, **of_all):
    return [
        FeedbackRow(
            f"{texts[i]} {i}", json.dumps([{"content": texts[i], "role": "user"}]),
            answers[i] if answers else "", sender=senders[i] if senders else "", **of_all,
        )
        for i in range(len(texts))
    ]  # fmt: skip


def answered(texts, answers):
    scored_rows = fake_rows([1.0] * len(texts))
    return [
        type(row)(**{**{f: getattr(row, f) for f in row.__slots__}, "prompt": text, "text": answer})
        for row, text, answer in zip(scored_rows, texts, answers, strict=True)
    ]


def moved(comparison):
    return {f"{test.of} {test.trait}" for test in comparison.tests if test.has_moved}


def test_distances_are_those_of_scipy_and_of_the_definition():
    draw = np.random.default_rng(0)
    old_values, new_values = draw.integers(0, 9, 40).astype(float), draw.integers(2, 9, 25).astype(float)
    all_values, weights = np.concatenate([old_values, new_values]), stats.split_weights(40, 25, 99)
    scipy_test = ks_2samp(old_values, new_values)
    assert stats.rank_distances(weights, all_values)[0] == pytest.approx(scipy_test.statistic)
    kernel = stats.gaussian_kernel(all_values[:, None])
    parts = kernel[:40, :40].mean(), kernel[:40, 40:].mean(), kernel[40:, 40:].mean()
    assert stats.kernel_distances(weights, kernel)[0] == pytest.approx(
        parts[0] - 2 * parts[1] + parts[2], abs=1e-5
    )
    categories = [str(value > 4) for value in all_values]
    rates = np.mean(old_values > 4), np.mean(new_values > 4)
    assert stats.category_distances(weights, categories)[0] == pytest.approx(abs(rates[0] - rates[1]))
    assert stats.permutation_p([2.0, 1.0, 2.0, 3.0]) == 0.75


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("requests", "answers", "expected", "step"),
    [
        (ask(120, seed=1), ["late"] * 120, set(), "no need to measure the champion again"),
        (
            ask(60, seed=1) + ask(60, "money", seed=1), ["late"] * 120, {"requests texts"},
            "then measure the champion again: harness compare",
        ),
        (
            ask(120, seed=1),
            ["I'm sorry, but I can't help with that."] * 40 + ["late"] * 80,
            {"answers length", "answers unparsable"},
            "while requests did not: measure what is served again: harness compare",
        ),
    ],
)  # fmt: skip
def test_what_moved_is_named_with_whether_to_measure_anew(requests, answers, expected, step):
    texts = ask(120)
    comparison = compare_samples(
        items(texts), answered(texts, ["late"] * 120), feedback(requests, answers), ["late", "money"]
    )
    assert moved(comparison) == expected
    assert step in comparison.sentence
    assert bool(comparison.nearest) == any("requests" in name for name in expected)


@pytest.mark.e2e
def test_many_requests_of_one_sender_alarm_only_where_senders_are_unknown():
    texts = ask(60) + ask(60, "money")
    one_topic = ask(5, seed=1) + ask(5, "money", seed=2)
    requests = one_topic + [f"{one_topic[0]} Again, {i}th time!" for i in range(90)]
    senders = [*map(str, range(10)), *["0"] * 90]
    by_sender, without_senders = (
        compare_samples(items(texts), [], feedback(requests, senders=ids)) for ids in (senders, None)
    )
    assert (moved(by_sender), by_sender.n_compared) == (set(), 10)
    assert "requests texts" in moved(without_senders)


@pytest.mark.e2e
def test_too_few_rows_say_what_would_not_have_been_seen_instead_of_that_nothing_moved():
    few_requests = compare_samples(items(ask(100)), [], feedback(ask(3, seed=1)))
    assert "among 3 requests even half that turn to one topic would be missed" in few_requests.sentence
    one_request = compare_samples(items(["42"]), [], feedback(["42"]))
    assert "among 1 request even half" in one_request.sentence
    many_requests = compare_samples(items(ask(100)), [], feedback(ask(100, seed=1)))
    assert "% of requests that turn to one topic would be seen (80.0 % power)" in many_requests.sentence
    assert max(many_requests.power.values()) > 0.99


@pytest.mark.e2e
def test_the_command_reads_stored_feedback_from_a_date_on(tmp_path, command):
    project = tiny_experiment.write(tmp_path, tmp_path / "model")
    with pytest.raises(UserError, match="next: harness feedback add FILE"):
        monitor(project)
    run_store = Store(project.parent / "runs")
    store.save_feedback(run_store, "old", feedback(ask(50, "money"), time="2026-10-01T00:00:00Z"))
    store.save_feedback(run_store, "new", feedback(ask(40, frames=GERMAN), time="2026-11-02T00:00:00Z"))
    store.save_feedback(run_store, "undated", feedback(ask(7, frames=GERMAN, seed=3)))
    words = ("monitor", "-c", project, "--since", "2026-11-01", "--json")
    document = json.loads(command(*words, check=0).stdout)
    assert document["n_requests"] == 40
    assert "requests moved: texts" in document["sentence"]
    assert document["notes"][0] == "7 rows without a time left out"
    assert "no champion: answers are compared with nothing" in document["notes"][1]
    assert len(store.read_feedback(run_store, added_since=datetime.now(UTC) + timedelta(days=1))) == 0


@pytest.mark.slow
def test_without_drift_the_stated_share_alarms_and_planted_drift_is_seen():
    find_shared_data("rows/banking77/train.jsonl.gz")
    samples = [draw(Condition("no drift", 100, 0.0, 40), seed) for seed in range(40)]
    any_alarms, text_alarms = alarms(samples)
    assert stats.clopper_pearson(sum(text_alarms), 40, 0.01).low <= 0.05
    assert stats.clopper_pearson(sum(any_alarms), 40, 0.01).low <= 0.05
    assert sum(alarms([draw(Condition("far", 100, 0.4, 5), seed) for seed in range(5)])[0]) == 5
