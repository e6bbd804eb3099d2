"""Creep: what a chain of champions has lost against the first base is judged by its own margin."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from fake_rows import EXACT, rows

from harness import gating, release, store
from harness.errors import IncompatibleRuns, UserError
from harness.gating import Measurement, Rule
from harness.spec import GatePolicy, Task
from harness.store import Store

POLICY = GatePolicy()


def make_measurements(base_lost: float, new_lost: float, n: int = 500) -> list[Measurement]:
    """Put two arms of four tasks beside each other, each of which lost the first items of them all."""
    places = (np.arange(n) * 7919) % n / n  # spread evenly over both halves of a task
    arms = [np.where(places < lost, 0.0, 1.0) for lost in (base_lost, new_lost)]
    return [
        Measurement(Task(name=f"t{i}", data={}), "capability", "s", {"exact_match": EXACT}, *pair)
        for i in range(4)
        for pair in [[rows(arm, task=f"t{i}") for arm in arms]]
    ]


def judge_tasks(against, policy=POLICY, **options):
    return gating.judge(against, policy, target=None, identical=False, **options).verdict


def judge_cumulative(lost: float, policy=POLICY) -> Rule:
    """Judge a loss against the first base, which lost nothing."""
    found = judge_tasks(make_measurements(0.0, lost), gating.cumulative_policy(policy))
    return gating.cumulative_rule(found, "b" * 16)


@pytest.mark.e2e
def test_a_chain_of_champions_that_each_pass_is_stopped_at_the_margin_against_the_first_base():
    """Each loses one point against the one before, so that the sixth has lost six of them and still passes."""
    steps = [judge_tasks(make_measurements(k / 100, (k + 1) / 100)).outcome for k in range(6)]
    assert steps == ["pass"] * 6
    guarded = [
        judge_tasks(
            make_measurements(k / 100, (k + 1) / 100), cumulative=judge_cumulative((k + 1) / 100)
        ).outcome
        for k in range(6)
    ]
    assert guarded == ["pass"] * 4 + ["fail"] * 2


def test_the_loss_against_the_first_base_is_said_with_its_own_margin():
    rule = judge_cumulative(0.06)
    assert rule.outcome == "fail"
    assert rule.sentence.startswith("cumulative: against the first base, macro over 4 tasks: −6.0 [")
    assert "margin 4.0 pp: a loss beyond it is shown" in rule.sentence
    assert (rule.numbers["margin"], rule.numbers["delta"]) == (0.04, pytest.approx(-0.06))


@pytest.mark.parametrize(
    ("policy", "margin"),
    [
        ({}, 0.04),
        ({"macro": "10%"}, "20%"),
        ({"macro": 0.01}, 0.02),
        ({"cumulative": 0.03}, 0.03),
        ({"macro": 0.6}, 0.99),
        ({"macro": "60%"}, "99%"),
        ({"macro": 0.995}, 0.995),
    ],
)
def test_its_margin_is_twice_the_macros_unless_it_is_written(policy, margin):
    assert gating.cumulative_policy(GatePolicy(**policy)).macro == margin


def test_two_tasks_of_one_name_are_refused():
    """Only one of them would be judged."""
    arms = make_measurements(0.0, 0.0)
    with pytest.raises(IncompatibleRuns, match="several tasks named t0"):
        judge_tasks([*arms, arms[0]])


def test_a_loss_that_is_not_ruled_out_stops_no_gate_and_says_that_promote_asks():
    rule = judge_cumulative(0.04)
    assert rule.outcome == "skipped"
    assert rule.sentence.endswith("; harness promote asks for a reason")
    assert judge_tasks(make_measurements(0.03, 0.04), cumulative=rule).outcome == "pass"


def promote_other_weights(copy, candidate: str, digest: str) -> None:
    """Make a champion of rows that say another model than the base gave them."""
    path, champion = release.promote_named(copy, candidate, despite="a test")
    raw = json.loads(path.read_text())
    at, moved = Store(copy.parent / "runs"), {}
    for key, rows_digest in champion.rows.items():
        other = replace(store.read_identity(at, rows_digest), weights_digest=digest)
        shutil.copytree(at.rows(rows_digest), at.rows(other.digest), dirs_exist_ok=True)
        file = at.rows(other.digest) / "identity.json"
        file.write_text(file.read_text().replace(champion.weights_digest, digest))
        moved[key] = other.digest
    path.write_text(json.dumps(raw | {"weights_digest": digest, "rows": moved}))


def rule_of(judged) -> Rule | None:
    return gating.cumulative_of(judged.verdict)


def test_the_gate_against_a_champion_compares_with_the_first_base_too(copy):
    assert rule_of(release.gate(copy, "lora")[0]) is None
    _, first = release.promote_named(copy, "lora", despite="a test")
    assert first.cumulative == pytest.approx(
        list(release.gate(copy, "lora", baseline="base")[0].verdict.macro[:4]), abs=1e-6
    )
    (against,) = release.gate(copy, "lora")
    rule = rule_of(against)
    assert rule is not None
    assert rule.numbers["first_base"] == first.base_digest
    assert [rule.numbers[name] for name in ("delta", "low", "high", "n_items")] == pytest.approx(
        first.cumulative, abs=1e-6
    )


def test_promote_asks_where_a_loss_against_the_first_base_is_not_ruled_out_and_carries_it_along(copy):
    promote_other_weights(copy, "lora", "f" * 16)
    (against,) = release.gate(copy, "lora")
    rule = rule_of(against)
    assert rule is not None
    if against.verdict.outcome == "pass":
        with pytest.raises(UserError, match=r"loss against the first base.*--force"):
            release.promote_named(copy, "lora")
    _, second = release.promote_named(copy, "lora", despite="it is known")
    assert second.first_base == against.verdict.rules[-1].numbers["first_base"]
    assert second.cumulative[0] == pytest.approx(rule.numbers["delta"], abs=1e-6)


def test_a_first_base_without_rows_is_said_and_promote_asks(copy):
    path, _ = release.promote_named(copy, "lora", despite="a test")
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"first_base": "e" * 16}))
    (against,) = release.gate(copy, "lora")
    rule = rule_of(against)
    assert rule is not None
    assert (rule.outcome, against.verdict.outcome) == ("skipped", "pass")  # the champion's own weights
    assert "found no rows of the first base eeee" in rule.sentence
    with pytest.raises(UserError, match="loss against the first base that is not ruled out"):
        release.promote_named(copy, "lora")
