"""Fronts, diversity and win rates: published numbers and a second source."""

import csv
import gzip
import json

import numpy as np
import pytest
from conftest import find_shared_data
from hypothesis import given
from hypothesis import strategies as st

from harness import stats

points = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12)


def read_learned_and_kept():
    """Return the code instruction-tuning points of "LoRA Learns Less and Forgets Less", by method and epoch."""
    with find_shared_data("rows/published/biderman_tables.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if "code_IFT" in row["table"]]
    learned = {(r["method"], r["duration"]): float(r["value"]) for r in rows if "HumanEval" in r["table"]}
    kept = {(r["method"], r["duration"]): float(r["value"]) for r in rows if "forget" in r["table"]}
    return {key: (learned[key], kept[key]) for key in learned}


def test_the_published_front_of_learning_and_forgetting_is_found():
    p = read_learned_and_kept()
    assert len(p) == 20
    front = [list(p)[i] for i in stats.pareto_front(list(p.values()))]
    assert front == [("r256", "2"), ("r64", "4"), ("r256", "4")]


@pytest.mark.parametrize(
    ("method", "area"), [("r16", 0.090413), ("r64", 0.103434), ("r256", 0.125818), ("full", 0.089802)]
)
def test_the_published_points_span_the_known_areas(method, area):
    p = [point for (name, _), point in read_learned_and_kept().items() if name == method]
    assert stats.hypervolume(p, (0.0, 0.40)) == pytest.approx(area, abs=1e-6)


def is_dominated(p, points):
    return any(q[0] >= p[0] and q[1] >= p[1] and tuple(q) != tuple(p) for q in points)


@given(points)
def test_the_front_is_what_nothing_dominates(p):
    front = {p[i] for i in stats.pareto_front(p)}
    assert front == {q for q in p if not is_dominated(q, p)}


@given(points)
def test_the_front_lists_the_first_goal_rising_and_the_second_falling(p):
    front = [p[i] for i in stats.pareto_front(p)]
    assert front == sorted(front)
    assert [y for _, y in front] == sorted((y for _, y in front), reverse=True)


@given(points)
def test_the_hypervolume_is_the_dominated_share_of_a_grid(p):
    x, y = np.meshgrid(*[(np.arange(200) + 0.5) / 200] * 2)
    covered = np.zeros_like(x, dtype=bool)
    for a, b in p:
        covered |= (x < a) & (y < b)
    assert stats.hypervolume(p, (0.0, 0.0)) == pytest.approx(covered.mean(), abs=0.011)


def test_points_below_the_reference_add_nothing():
    assert stats.hypervolume([(0.2, 0.9)], (0.3, 0.1)) == 0


def test_no_answers_have_no_diversity_rather_than_none():
    assert stats.unique_share([]) is None


def test_a_collapsed_model_gives_one_answer():
    assert stats.unique_share(["sea", " sea", "sea\n", "sea"]) == 0.25


def test_the_commonest_answer_has_the_largest_share():
    answers = ["sea", "lake", " sea", "sea\n", "river"]
    counted = max({a.strip() for a in answers}, key=lambda a: sum(b.strip() == a for b in answers))
    assert stats.commonest(answers) == (counted, 0.6)
    assert stats.commonest([]) is None


def test_signal_to_noise_is_the_spread_over_repeats():
    assert stats.signal_to_noise([0.3, 0.5, 0.4], [0.40, 0.42]) == pytest.approx(0.2 / 0.0141421, rel=1e-4)
    assert stats.signal_to_noise([0.3, 0.5], [0.4, 0.4]) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.pareto_front([]),
        lambda: stats.hypervolume([[0.1, 0.2, 0.3]], (0, 0)),
        lambda: stats.signal_to_noise([0.1], [0.1, 0.2]),
    ],
)
def test_impossible_input_is_refused(call):
    with pytest.raises(ValueError):  # noqa: PT011 (each says its own numbers)
        call()


WINS = {
    "weighted_alpaca_eval_gpt4_turbo": lambda p: p - 1,
    "alpaca_eval_gpt4": lambda p: {1: 0.0, 2: 1.0}.get(p, 0.5),
}


@pytest.mark.parametrize(("file", "n_published"), [(name, n) for name, n in zip(WINS, (59, 52), strict=True)])
def test_published_win_rates_and_their_standard_errors_are_found(file, n_published):
    """AlpacaEval's leaderboards: a win rate is a mean over prompts, its error the plain one of the mean."""
    with gzip.open(find_shared_data(f"rows/alpaca_eval_annotations/{file}.jsonl.gz"), "rt") as lines:
        rows = [row for row in map(json.loads, lines) if row["published"]]
    assert len(rows) == n_published
    for row in rows:
        wins = [100 * WINS[file](p) for p in row["preference"] if p is not None]
        found = stats.clustered_mean(wins, range(len(wins)))
        assert found.mean == pytest.approx(float(row["published"]["win_rate"]), abs=0.05)
        assert found.se == pytest.approx(float(row["published"]["standard_error"]), abs=0.01)
