"""Ratings: blind order, what counts, and what the votes say."""

import gzip
import json
from collections import Counter
from dataclasses import replace
from math import log10

import pytest
from conftest import find_shared_data
from test_measurements import RATING

from harness import stats
from harness.comparison import human_preferences
from harness.comparison.human_preferences import Turn

IDS = [f"item-{i}" for i in range(40)]


def make_rating(item, choice, rater="ann", **changes):
    return replace(
        RATING, rating_id=f"{rater}-{item}-{choice}", rater=rater, example_id=item, choice=choice, **changes
    )


def votes(n_a, n_b, n_tie=0, rater="ann"):
    choices = ["a"] * n_a + ["b"] * n_b + ["tie"] * n_tie
    return [make_rating(f"item-{i}", choice, rater) for i, choice in enumerate(choices)]


def test_a_rater_finds_the_same_order_again_and_another_rater_another_one():
    mine = human_preferences.turns(IDS, "ann", "aaa", "bbb")
    assert human_preferences.turns(IDS[::-1], "ann", "aaa", "bbb") == mine
    assert sorted(turn.example_id for turn in mine) == sorted(IDS)
    assert human_preferences.turns(IDS, "bob", "aaa", "bbb") != mine
    assert 8 < Counter(turn.left for turn in mine)["a"] < 32


def test_the_next_turn_is_the_first_that_is_not_done():
    first, second, *_ = human_preferences.turns(IDS, "ann", "aaa", "bbb")
    assert human_preferences.find_next_turn(IDS, [], "ann", "aaa", "bbb") == first
    assert (
        human_preferences.find_next_turn(IDS, [make_rating(first.example_id, "skip")], "ann", "aaa", "bbb")
        == second
    )
    assert (
        human_preferences.find_next_turn(
            IDS, [make_rating(first.example_id, "a", "bob")], "ann", "aaa", "bbb"
        )
        == first
    )
    assert human_preferences.find_next_turn([], [], "ann", "aaa", "bbb") is None
    assert isinstance(first, Turn)


def test_sixty_of_a_hundred_votes_are_seventy_elo():
    found = human_preferences.outcome(votes(40, 60), "aaa", "bbb")
    assert found.rate[:3] == (0.6, *stats.wilson(60, 100))
    assert found.strength.elo == pytest.approx(70.4365, abs=1e-3)
    assert found.rate.p == pytest.approx(stats.mcnemar(60, 40).exact)
    assert (found.n_items, found.n_ratings, found.n_skipped, found.agreement) == (100, 100, 0, None)


def test_ratings_count_once_an_item_by_the_last_of_each_rater_on_these_rows():
    found = human_preferences.outcome(
        [make_rating("x", "a"), make_rating("x", "b"), make_rating("y", "skip")], "aaa", "bbb"
    )
    assert (found.rate.wins, found.rate.losses, found.n_skipped) == (1, 0, 1)
    turned = make_rating("x", "a", run_a="lora-0", run_b="prompt-0", rows_a="bbb", rows_b="aaa")
    assert human_preferences.outcome([turned], "aaa", "bbb").rate.wins == 1
    assert human_preferences.outcome([make_rating("x", "a", rows_a="old")], "aaa", "bbb").rate is None
    found = human_preferences.outcome(
        [make_rating("x", "b", r) for r in ("ann", "bob", "cy")] + votes(1, 0, rater="di"), "aaa", "bbb"
    )
    assert (found.rate.wins, found.rate.losses, found.n_items, found.n_ratings) == (1, 1, 2, 4)
    assert found.raters == ("ann", "bob", "cy", "di")


def test_raters_who_agree_are_said_to():
    both = votes(10, 10) + votes(10, 10, rater="bob")
    assert human_preferences.outcome(both, "aaa", "bbb").agreement == 1.0
    against = votes(10, 10) + [make_rating(f"item-{i}", "b" if i < 10 else "a", "bob") for i in range(20)]
    assert human_preferences.outcome(against, "aaa", "bbb").agreement < 0


def test_published_human_labels_come_out_as_published_whatever_the_sides():
    with gzip.open(find_shared_data("rows/llmbar/llmbar.jsonl.gz"), "rt") as file:
        rows = [json.loads(line) for line in file]
    items = {f"{row['subset']}/{row['idx']}": int(row["label"]) for row in rows}
    given = []
    for turn in human_preferences.turns(list(items), "people", "aaa", "bbb"):
        # Whoever prefers output 1 points at the side on which it stands.
        side = "left" if (items[turn.example_id] == 1) == (turn.left == "a") else "right"
        other = "b" if turn.left == "a" else "a"
        choice = turn.left if side == "left" else other
        given.append(make_rating(turn.example_id, choice, "people", left=turn.left))
    found = human_preferences.outcome(given, "aaa", "bbb")
    n_second = sum(label == 2 for label in items.values())
    assert (found.n_items, found.rate.wins) == (419, n_second)
    assert found.rate[:3] == (n_second / 419, *stats.wilson(n_second, 419))
    assert found.strength.elo == pytest.approx(400 * log10(n_second / (419 - n_second)))


def test_ratings_count_up_to_where_nearly_all_of_the_drawn_pairs_have_one():
    order = [turn.example_id for turn in human_preferences.turns(IDS, "", "aaa", "bbb")]

    def count_ratings(items, rater="ann", **changes):
        ratings = [make_rating(item, "b", rater, **{"seconds": None} | changes) for item in items]
        return set(human_preferences.map_counted_shares(ratings, IDS, "aaa", "bbb"))

    assert count_ratings(order[:25]) == set(order[:25])
    assert count_ratings([*order[:19], order[20]]) == {*order[:19], order[20]}  # 20 of 21 have one
    assert count_ratings([*order[:10], *order[12:16]]) == set(order[:10])
    assert count_ratings(order[25:]) == set()
    own = [turn.example_id for turn in human_preferences.turns(IDS, "ann", "bbb", "aaa")]
    assert count_ratings(own[:12], rows_a="bbb", rows_b="aaa", seconds=2.0) == set(own[:12])  # the Rate page
