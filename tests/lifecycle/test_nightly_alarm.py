"""Evidence over a series of nights: false alarms, early detection of a loss, and the choice of items."""

from dataclasses import replace

import numpy as np
import pytest
from years import find_first_alarm

from harness.lifecycle.nightly_alarm import DRIFT_E, build_report, drift_e
from harness.lifecycle.nightly_state import BaseNight, Night, NightCandidate, SeriesNight, State
from harness.lifecycle.nightly_verdicts import NightChanges, Seeds, judge, pass_alpha
from harness.lifecycle.nightly_watchlist import build_pool, choose_next_items, ids_by_task
from harness.records import Example
from harness.spec import NightlyPolicy

NIGHTS, ITEMS, ALPHA, SERIES = 30, 60, 0.05, 2


def night(changes, tested="t", at=0, **options):
    return NightChanges({f"{at}-{i}": float(change) for i, change in enumerate(changes)}, tested, **options)


def draw_nights(n_nights, rng, gain=0.05, loss=0.05, at=0):
    shares = [gain, loss, 1 - gain - loss]
    return [night(rng.choice([1, -1, 0], ITEMS, p=shares), at=at + k) for k in range(n_nights)]


def test_a_gain_is_no_alarm_and_a_suspicion_says_how_many_nights_would_settle_it():
    rng = np.random.default_rng(7)
    assert judge(draw_nights(NIGHTS, rng, 0.20, 0.02), ALPHA, SERIES).verdict == "ok"
    skewed_nights = [night(rng.choice([0.6, -0.02], ITEMS, p=[0.1, 0.9]), at=k) for k in range(NIGHTS)]
    assert judge(skewed_nights, ALPHA, SERIES).verdict == "ok"

    nights = draw_nights(NIGHTS, np.random.default_rng(8), 0.025, 0.075)
    judgements = [judge(nights[: k + 1], ALPHA, SERIES) for k in range(find_first_alarm(nights, Seeds()))]
    suspicions = [look for look in judgements if look.verdict == "suspect"]
    assert suspicions
    assert all(1 <= look.more_nights <= 30 for look in suspicions)
    assert judgements[-1].more_nights is None


def test_a_sudden_loss_after_many_quiet_nights_is_suspected_within_days():
    rng = np.random.default_rng(9)
    nights = [*draw_nights(60, rng), *draw_nights(10, rng, 0.02, 0.12, at=60)]
    assert next(k for k in range(10) if judge(nights[: 61 + k], ALPHA, SERIES).verdict != "ok") <= 4


def test_series_and_passes_share_the_chance_of_a_false_alarm_and_an_alarm_stays():
    thresholds = [judge([night([0.0])], ALPHA, n).needed for n in (1, SERIES)]
    assert thresholds == pytest.approx([25, 50])
    assert sum(pass_alpha(k, ALPHA) for k in range(1, 10_000)) == pytest.approx(ALPHA, rel=1e-4)
    assert pass_alpha(1, ALPHA) == pytest.approx(0.04)
    nights = [night([-1] * 14 + [0] * 46), night([1] * 12, at=1), night([1] * 12, at=2)]
    assert judge(nights, ALPHA, SERIES).verdict == "regression"


def test_an_item_counts_once_a_pass_and_never_again_by_the_same_answers():
    worse_night = night([-1] * 4 + [0] * 56)
    alone = judge([worse_night], ALPHA)
    assert judge([worse_night] * 5, ALPHA) == alone, "the same answers tell nothing new"
    second_pass = judge([worse_night, worse_night._replace(tested="other")], ALPHA)
    assert (second_pass.n_pass, second_pass.n, second_pass.e_value) == (2, 60, pytest.approx(alone.e_value))
    assert second_pass.needed == pytest.approx(1 / pass_alpha(2, ALPHA))
    assert second_pass.needed > alone.needed


def test_seeds_explain_a_small_loss_of_weights_made_anew_and_of_none_other():
    def year(making):
        changes = np.where(np.random.default_rng(3).random((60, 200)) < 0.02, -1.0, 0.0)
        return [night(row, str(k), k, making=making.format(k)) for k, row in enumerate(changes)]

    assert judge(year(""), ALPHA, 1, Seeds(0.01)).verdict == "regression"
    assert judge(year("making {}"), ALPHA, 1, Seeds(0.01)).verdict != "regression"
    assert judge(year("making {}"), ALPHA, 1, Seeds(0.0)).verdict == "regression"


def test_the_mean_change_lies_in_its_ends_which_exclude_none_where_the_evidence_suffices():
    nights = draw_nights(NIGHTS, np.random.default_rng(10), 0.02, 0.08)
    after_5, after_30 = judge(nights[:5], ALPHA), judge(nights, ALPHA)
    assert after_30.low < -0.06 < after_30.high
    assert after_30.high - after_30.low < after_5.high - after_5.low

    nights = draw_nights(NIGHTS, np.random.default_rng(11), 0.025, 0.075)
    looks = [judge(nights[: k + 1], ALPHA) for k in range(NIGHTS)]
    assert all((look.e_value >= look.needed) == (look.high < 0) for look in looks)
    assert {look.e_value >= look.needed for look in looks} == {True, False}


def test_the_interval_holds_the_mean_of_a_skewed_change_on_all_nights():
    rng, n_missed = np.random.default_rng(12), 0
    for _ in range(40):
        nights = [night(rng.choice([-0.05, 0.45], ITEMS, p=[0.9, 0.1]), at=k) for k in range(8)]
        looks = [judge(nights[: k + 1], ALPHA, SERIES) for k in (0, 3, 7)]
        n_missed += not all(look.low <= 0 <= look.high for look in looks)
    assert n_missed <= 2


# The report


def make_night(series, day=1, **watched):
    candidate = NightCandidate("lora", "run", f"t{day}", (), {"target": series}, **watched)
    return Night(f"2026-03-{day:02d}", "", "", "", "bf16", "e", {}, (candidate,), {}, {})


def report_line(*nights):
    (line,) = build_report("desk", NightlyPolicy(), nights, State()).lines
    return line


LOST = SeriesNight({f"chat/{i}": -1.0 for i in range(30)}, {"chat/a": -1.0}, n_asked=31)


def test_a_night_in_which_too_many_answers_failed_is_no_evidence_and_says_so():
    assert report_line(make_night(LOST)).verdict == "regression"
    night_line = report_line(make_night(replace(LOST, errors=3, valid=False)))
    assert (night_line.verdict, night_line.anchors) == ("error", {})
    assert night_line.sentence == (
        "lora: error: target: 3 of 31 answers failed tonight (9.7 %), more than gate.max_errors allows: "
        "the night is not evidence"
    )
    assert (
        report_line(make_night(LOST), make_night(replace(LOST, errors=3, valid=False), 2)).verdict
        == "regression"
    )


# The harness


def test_the_base_moves_at_the_a_a_rate_without_an_alarm_and_more_often_with_one():
    rng = np.random.default_rng(11)

    def month():
        flip_counts = [(int(k), 120) for k in rng.binomial(120, 0.022, NIGHTS)]
        return any(drift_e(flip_counts[: k + 1], 0.022) >= DRIFT_E for k in range(NIGHTS))

    assert np.mean([month() for _ in range(200)]) <= 0.05

    quiet_nights = [(2, 120)] * 200
    assert drift_e(quiet_nights, 0.022) < DRIFT_E
    assert drift_e([*quiet_nights, (20, 120), (20, 120)], 0.022) >= DRIFT_E


@pytest.mark.parametrize(
    ("aa_rate", "drifted"),
    [(None, "2.2 %, expected in bf16"), (0.15, "answers as in the reference"), (0.01, "1.0 %, measured")],
)
def test_the_a_a_rate_measured_on_the_device_says_which_nights_drifted(aa_rate, drifted):
    bases = ({"base": BaseNight({f"{day}/{i}": i < 20 for i in range(120)})} for day in (1, 2))
    head = "", "", "", "bf16", "e"
    nights = [Night(f"2026-03-0{n}", *head, b, (), {}, {}, (), aa_rate) for n, b in enumerate(bases, 1)]
    assert drifted in build_report("desk", NightlyPolicy(), nights, State()).harness


# The choice of items


def items(n, of=2, name="c"):
    return [Example(f"i{k}", (), ("x",), cluster=f"{name}{k // of}") for k in range(n)]


def make_items(n, shift=0):
    return [
        Example(f"{shift}-{k}", ({"role": "user", "content": f"document {k + shift}"},)) for k in range(n)
    ]


def test_clusters_are_asked_whole_anchors_every_night_and_the_others_in_turn():
    pool = build_pool({"a": items(40), "b": items(40, name="d")}, n_anchors=4)
    first_choice = choose_next_items(pool, 0, 10)
    second_choice = choose_next_items(pool, first_choice.taken, 10)
    assert first_choice.anchors == second_choice.anchors
    assert sum(map(len, first_choice.anchors)) == 4
    assert sum(map(len, first_choice.fresh)) == 10
    assert not set(first_choice.fresh) & set(second_choice.fresh)
    assert not set(first_choice.anchors) & {*first_choice.fresh, *second_choice.fresh}
    assert all(len(cluster) == 2 for cluster in first_choice.fresh)
    assert set(ids_by_task(first_choice.fresh)) == {"a", "b"}


@pytest.mark.parametrize(
    "tasks", [{"a": items(20), "b": items(20)}, {"a": make_items(20), "b": make_items(15, shift=5)}]
)
def test_items_of_one_document_and_clusters_of_one_name_are_one_cluster_in_all_tasks(tasks):
    pool = build_pool(tasks, n_anchors=0)
    where = {item: at for at, cluster in enumerate(pool.rest) for item in cluster}
    assert len(where) == sum(map(len, tasks.values()))
    name = {(task, x.id): x.cluster or x.prompt for task, examples in tasks.items() for x in examples}
    assert len({(name[item], at) for item, at in where.items()}) == len(set(name.values())) == len(pool.rest)


def test_a_pool_goes_round_and_says_when_it_is_used_up():
    pool = build_pool({"a": items(20, of=1)}, n_anchors=2)
    n_taken, n_left = 0, []
    for _ in range(4):
        choice = choose_next_items(pool, n_taken, 6)
        n_taken, n_left = choice.taken, [*n_left, choice.left]
    assert n_left == [12, 6, 0, 0]
    assert choose_next_items(pool, 18, 6).fresh == choose_next_items(pool, 0, 6).fresh
