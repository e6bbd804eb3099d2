"""Admission by halves, and tasks that share items: what an equal or a worse model gets from the gate."""

import json
import math
from dataclasses import replace

import lmeval_folder
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import stats
from harness.analysis.admission import cluster_name, cut_tasks, cut_to_half
from harness.analysis.gate_verdict import apply_rules, judge
from harness.analysis.margins import DeltaPart, allocate_items, describe_more_items
from harness.analysis.verdict import TaskComparison
from harness.lifecycle import release
from harness.spec import GatePolicy, Task
from tests.fake_measurements import measurement
from tests.fake_rows import compare_flips, flips, rows

POLICY = GatePolicy()


def verdict(measured, **judged_by):
    return judge(measured, POLICY, target=None, identical=False, **judged_by).verdict


def macro_of(judgement):
    return next(r for r in judgement.rules if r.name == "macro")


def make_lopsided_task(passed, chance=0.5, n=100, seed=0):
    """Make a task where the base and the new model pass the same `passed` items of the two halves."""
    plain = measurement("t", np.ones(n), np.ones(n))
    cut = cut_tasks([plain], seed)
    passes_left = dict(zip(("search", "confirm"), passed, strict=True))
    scores = []
    for row in plain.base:
        half = cut.half_of[cluster_name(row)]
        scores.append(float(passes_left[half] > 0))
        passes_left[half] -= 1
    return measurement("t", np.array(scores), np.array(scores), chance=chance)


@pytest.mark.parametrize(
    ("passed", "n_items", "weight"), [((40, 40), 100, 1.0), ((40, 25), 50, 0.5), ((25, 40), 50, 0.5)]
)
def test_each_half_is_admitted_by_the_base_on_the_other(passed, n_items, weight):
    judgement = verdict([make_lopsided_task(passed)])
    assert judgement.macro.n == n_items
    assert ("only half of the items of t count, with half the weight" in macro_of(judgement).sentence) == (
        weight == 0.5
    )


def test_a_half_is_admitted_by_the_other_and_counts_half_as_much_as_a_whole_task():
    lost = measurement("sums", *flips(100, 0, 30))
    judgement = verdict([make_lopsided_task((40, 25)), lost])
    assert judgement.macro.score == pytest.approx((0.5 * 0.0 + 1.0 * -0.3) / 1.5)
    expected = ["t: on the other half the base scores 50.0 [37, 63] %, not above chance (50.0 %), n = 50"]
    assert macro_of(judgement).numbers["one_half"] == expected

    judgement = verdict([make_lopsided_task((25, 26))])
    assert judgement.outcome == "inconclusive"
    (reason,) = macro_of(judgement).numbers["left_out"]
    assert "t cannot show forgetting: on one half of its items the base scores 50.0 [37, 63] %" in reason
    assert "and on the other half the base scores 52.0 [39, 65] %, not above chance" in reason

    chat = measurement("chat", np.ones(9), np.ones(9))
    clustered = [rows(np.ones(9), task="chat", cluster_size=9) for _ in range(2)]
    judgement = verdict([chat._replace(base=clustered[0], new=clustered[1])])
    assert "its items form one cluster, which has no halves" in macro_of(judgement).numbers["left_out"][0]
    relative = judge([make_lopsided_task((40, 25))], GatePolicy(macro="10%"), target=None, identical=False)
    (half,) = [t.half for t in relative.tasks]
    assert half.admitting_score == 0.8


# Tasks that share items


def copies(rng, n_copies, n=1000, loss=0.02, together=1.0, disagreement=0.1):
    """Make copies of one task with a true loss of `loss`; a share `together` of the items moves alike."""
    documents = [f"document-{i}" for i in range(n)]

    def moves():
        return rng.choice(
            [1.0, -1.0, 0.0], n, p=[(disagreement - loss) / 2, (disagreement + loss) / 2, 1 - disagreement]
        )

    common, measurements = moves(), []
    for i in range(n_copies):
        moved = np.where(rng.random(n) < together, common, moves())
        measurements.append(measurement(f"c{i}", (moved <= 0) * 1.0, (moved >= 0) * 1.0, documents=documents))
    return measurements


def test_an_item_that_several_tasks_hold_is_counted_once():
    a, b = copies(np.random.default_rng(0), 2, n=200, loss=0.0)
    half = measurement("z", *flips(200, 12, 12), documents=[*list(a.documents.values())[:100], *range(100)])
    for measured, n in (([a], 200), ([a, b], 200), ([a, half], 300), ([a, b, half], 300)):
        judgement = verdict(measured)
        numbers = macro_of(judgement).numbers
        assert (judgement.macro.n, numbers["n_items"], numbers["n_clusters"]) == (n, n, n)


def test_tasks_that_share_clusters_show_no_more_than_one_of_them():
    rng = np.random.default_rng(0)
    moved = np.repeat(rng.choice([1.0, -1.0, 0.0], 40, p=[0.15, 0.15, 0.7]), 5)
    lone = [measurement(f"t{at}", (moved <= 0) * 1.0, (moved >= 0) * 1.0) for at in range(4)]

    def set_clusters(name):
        def rename(m, arm):
            return [replace(row, cluster=name(m, i // 5)) for i, row in enumerate(arm)]

        return [m._replace(base=rename(m, m.base), new=rename(m, m.new)) for m in lone]

    shared, apart = (set_clusters(name) for name in (lambda _, i: f"p{i}", lambda m, i: f"{m.task.name}-{i}"))
    single = verdict(shared[:1]).macro
    assert verdict(shared).macro.high == pytest.approx(single.high, abs=0.005)
    assert verdict(apart).macro.high < single.high - 0.02


def drop_first_items(m, k):
    return m._replace(base=m.base[k:], new=m.new[k:])


def test_copies_of_which_one_lacks_an_item_are_one_task_and_a_part_of_a_task_is_no_copy():
    lost = measurement("sums", *flips(200, 0, 60))
    a, b = copies(np.random.default_rng(0), 2, n=200, loss=0.0)
    near = verdict([a, drop_first_items(b, 1), lost])
    assert near.macro.score == pytest.approx(-0.15, abs=0.01)
    assert "c0 and c1 hold nearly the same items and count as one task" in macro_of(near).sentence
    partial = verdict([a, drop_first_items(b, 100), lost])
    assert partial.macro.score == pytest.approx(-0.1, abs=0.02)
    assert macro_of(partial).numbers["shared_items"] == ["c0 and c1 share 100 items"]


def test_tasks_that_share_some_items_are_correlated_named_and_gain_no_width():
    a, b = copies(np.random.default_rng(0), 2, n=400, loss=0.0)
    half = {item: f"other-{item}" if i % 2 else name for i, (item, name) in enumerate(b.documents.items())}
    partly, fully, none = (verdict([a, b._replace(documents=d)]).macro for d in (half, b.documents, {}))
    assert none.high < partly.high < fully.high
    shared_items = macro_of(verdict([a, b._replace(documents=half)])).numbers["shared_items"]
    assert shared_items == ["c0 and c1 share 200 items"]
    a, b = copies(np.random.default_rng(0), 2, n=400, loss=0.0, together=0.0)
    apart_, joint = verdict([m._replace(documents={}) for m in (a, b)]).macro, verdict([a, b]).macro
    assert joint.high - joint.low >= apart_.high - apart_.low - 1e-12
    twice = copies(np.random.default_rng(0), 2, n=200, loss=0.0)
    single, double = (macro_of(verdict(measured)).numbers for measured in (twice[:1], twice))
    assert (single["items_needed"], double["items_needed"]) == (1_480, 1_480)
    assert double["items_needed_by_task"] == ["c0 and c1 1,480"]


# The verdict's error probabilities, and the number of items it would need


def judge_comparisons(comparisons):
    tasks = [
        TaskComparison(Task(name=f"t{i}", data={}), "capability", c, True, "")
        for i, c in enumerate(comparisons)
    ]
    return apply_rules(tasks, POLICY, validity=None, target=None, identical=False)


def chances(judgement):
    return {(m.what, m.delta): m.probability for m in judgement.missed}


def test_the_chance_that_each_misses_does_not_hang_on_the_task_that_noise_singles_out():
    noisy = [*[compare_flips(200, 8, 8)] * 7, compare_flips(200, 20, 20)]
    even = [compare_flips(200, 9, 9)] * 6 + [compare_flips(200, 10, 11)] * 2
    probabilities = [chances(judge_comparisons(tasks))["each", -0.10] for tasks in (noisy, even)]
    assert probabilities[0] == pytest.approx(probabilities[1], abs=0.05)


def test_more_items_are_asked_of_the_small_tasks_and_what_none_of_them_settle_is_said():
    # One task of 14,000 items and eight of 50: growing all alike would need more than 37,000 items.
    judgement = judge_comparisons([compare_flips(14_000, 700, 700), *[compare_flips(50, 2, 2)] * 8])
    macro = next(r for r in judgement.rules if r.name == "macro")
    by_task = dict(entry.rsplit(" ", 1) for entry in macro.numbers["items_needed_by_task"])
    assert "t0" not in by_task
    assert judgement.items_needed == sum(map(int, by_task.values())) < 1_500
    se = (judgement.macro.high - judgement.macro.low) / (2 * 1.96)
    alike = [DeltaPart("all", se, 14_400)]
    assert describe_more_items(0.0, alike, 0.02, 0.05, 0.0).items > 20_000
    assert "(t1 " in macro.sentence

    for room, n in ((10, 30), (math.inf, 20)):
        parts = [DeltaPart("a", 0.03, 50, room=20), DeltaPart("b", 0.0, 50, room=room)]
        unsettled = None, f"the {n} items that the tasks still hold would not settle it"
        assert describe_more_items(0.0, parts, 0.02, 0.05, 0.03)[:2] == unsettled


@given(
    st.lists(st.tuples(st.floats(0.001, 0.1), st.integers(5, 5000)), min_size=1, max_size=6),
    st.floats(0.05, 0.95),
)
def test_the_allocation_reaches_what_is_wanted_with_no_more_than_growing_alike(given_parts, share):
    parts = [DeltaPart(f"t{i}", se, n) for i, (se, n) in enumerate(given_parts)]
    now = stats.quadrature([part.se for part in parts])
    more = allocate_items(parts, share * now)
    grown = [part.se * (part.n / (part.n + m)) ** 0.5 for part, m in zip(parts, more, strict=True)]
    assert stats.quadrature(grown) <= share * now * (1 + 1e-6)
    assert sum(more) <= sum(part.n for part in parts) * (share**-2 - 1) * (1 + 1e-6) + len(parts)


def test_a_rescues_half_is_admitted_by_the_base_on_the_other_and_counts_in_full():
    task = make_lopsided_task((40, 25))
    cut = cut_tasks([task], 0)
    searched, confirmed = (verdict(cut_to_half([task], cut, half)) for half in ("search", "confirm"))
    assert searched.macro is None
    (why,) = macro_of(searched).numbers["left_out"]
    assert "t cannot show forgetting: on its other half the base scores 50.0" in why
    assert confirmed.macro.n == 50
    assert "only half of the items" not in confirmed.sentence


def test_documents_of_other_evaluators_logs_are_known_by_their_hash_whatever_the_prompt(tmp_path):
    arms = [lmeval_folder.write(tmp_path / name, {"a": [1] * 60, "a_10shot": [1] * 60}) for name in "xy"]
    for file in tmp_path.rglob("samples_a_10shot_*"):
        text = file.read_text().replace("a_10shot question", "a question")
        lines = [json.loads(line) for line in text.splitlines()]
        for line in lines:
            line["doc_hash"] = lmeval_folder.sha(json.dumps(line["doc"]))
        file.write_text("\n".join(map(json.dumps, lines)))
    judgement = release.gate_folders(*arms, POLICY).verdict
    assert "a and a_10shot hold the same items and count as one task" in judgement.sentence
