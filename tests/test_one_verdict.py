"""One verdict of one pair of runs: every way of asking gives the same rules, numbers and outcome."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import rescue_worlds
import stored

import harness
from harness import experiment, release, report, store
from harness.comparison import compare_on_target
from harness.experiment import judge_labels
from harness.nightly.changes import compare_judged_answers

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("module_cache")]


@pytest.fixture(scope="module")
def judged_world(module_cache, tmp_path_factory):
    """A rescued fine-tune with people's labels, a failed answer, lost items in fp32 and a champion."""
    return stored.judged_world(tmp_path_factory.mktemp("one"))


def rules_of(verdict):
    return {rule.name: (rule.outcome, rule.sentence, rule.numbers) for rule in verdict.rules}


def find_facts(found, run):
    return next(f for f in found.facts if f.run_id == run.run_id)


def ask(world, run, way):
    if way == "compare":
        return find_facts(experiment.run_all(world.session, world.loaded), run).verdict
    if way == "report":
        return find_facts(experiment.report_stored(world.session, world.loaded.selected), run).verdict
    if way == "two selected":
        return find_facts(experiment.report_stored(world.session, ["prompt", "lora"]), run).verdict
    if way == "python":
        return harness.gate(world.path, candidate=run.run_id, baseline="base")
    (judged,) = release.gate(world.path, run.run_id, baseline="base")
    return judged.verdict


@pytest.mark.parametrize("way", ["compare", "report", "two selected", "python"])
def test_every_way_of_asking_for_the_verdict_on_a_run_gives_the_same(judged_world, way):
    world, runs = judged_world
    judged, told = (ask(world, runs["lora"], one) for one in ("gate", way))
    assert rules_of(told) == rules_of(judged)
    assert told == judged


@pytest.mark.parametrize(
    "policy",
    [
        {"gate.tasks": ["chat", "chat-pinned"]},
        {"gate.critical": ["sums"], "gate.macro": "10%"},
        {"gate.mode_collapse": None, "gate.target.min": None, "gate.drift": 0.1},
        {"gate.uncalibrated_judge": "allow", "gate.max_errors": 0.0, "seeds": [0]},
        {"decide.max_latency_s": 0.4},
    ],
)
def test_every_policy_is_judged_alike_by_a_report_and_the_gate(judged_world, policy):
    world, runs = judged_world
    overrides = [f"{key}={json.dumps(value)}" for key, value in policy.items()]
    other = rescue_worlds.open_world(world.path, stored.JUDGED, overrides)
    (judged,) = release.gate(world.path, "lora", overrides, baseline="base")
    told = find_facts(experiment.report_stored(other.session, other.loaded.selected), runs["lora"]).verdict
    assert rules_of(told) == rules_of(judged.verdict)


def test_what_people_and_fp32_said_and_the_first_base_are_in_the_verdict(judged_world):
    world, runs = judged_world
    rules = rules_of(ask(world, runs["lora"], "compare"))
    assert rules["regressions"][0] == "fail"
    assert rules["regressions"][2]["n_lost"] == 9
    assert rules["target"][0] == "inconclusive"  # 88 % by the judge alone
    assert rules["target"][2]["score"] == pytest.approx(0.71, abs=0.03)
    assert rules["cumulative"][2]["first_base"] == stored.FIRST_BASE


def test_tables_of_two_runs_correct_grades_as_a_gain_is_corrected(judged_world):
    """Of all fine-tunes people refuse the same fifth: by grades alone an adapter equals another one."""
    world, runs = judged_world
    found = experiment.report_stored(world.session, world.loaded.selected)
    (grid,) = found.ablations
    target, at = world.session.target, world.session.store
    labels = judge_labels(at, target.task, target.primary.name)
    rows = {name: store.read_rows(at, runs[name].rows["desk/test"]) for name in runs}
    pair = (rows[factor.candidate] for factor in grid.factors)
    corrected = compare_on_target(target.primary, *pair, labels, 0.01)
    assert corrected.estimator == "ppi"
    assert grid.factors[1].difference[:3] == (corrected.delta, corrected.low, corrected.high)
    (step,) = found.steps["again"]
    assert step.target == compare_on_target(target.primary, rows["lora"], rows["again"], labels, 0.01)
    facts = find_facts(found, runs["lora"])
    assert facts.slices["behaviour"][:3] == facts.target[:3] == pytest.approx((0.71, 0.64, 0.78), abs=0.02)
    one, other = (runs[name].run_id for name in ("knn", "lora"))
    said = release.differences(at, one, other).scores["desk/test"]["judge_right"]
    assert (said.difference, said.why_not.partition(";")[0]) == (None, "by the judge alone")
    _, champion = release.promote_named(world.path, "lora", despite="a test")
    assert champion.scores["desk judge_right"][0] == pytest.approx(facts.target.score, abs=1e-6)


def test_a_verdict_under_another_budget_is_one_by_other_settings(judged_world):
    world, runs = judged_world
    for overrides in ([], ["decide.max_latency_s=0.01"]):
        release.gate(world.path, "lora", overrides, baseline="base")
    files = (world.session.store.folder / "verdicts" / runs["lora"].run_id).glob("*.json")
    records = [json.loads(file.read_text()) for file in files]
    digests = {
        budget: {
            one["policy_digest"] for one in records if one["policy"].get("decide.max_latency_s") == budget
        }
        for budget in (None, 0.01)
    }
    assert digests[0.01]
    assert not digests[None] & digests[0.01]


def test_a_rescue_confirms_by_the_rules_of_the_gate(judged_world):
    """What is the same for half of the items is the same; the macro and what counts items are of its half."""
    world, runs = judged_world
    gate = rules_of(ask(world, runs["trial"], "gate"))
    confirmed = world.rescue().tried[-1].confirm
    rules = rules_of(confirmed.verdict)
    assert list(rules) == list(gate)
    same = ("regressions", "target", "mode collapse", "drift", "control")
    assert {name: rules[name] for name in same} == {name: gate[name] for name in same}
    assert confirmed.verdict.outcome == "inconclusive"
    assert "+37.5" in rules["target"][1]


def test_a_night_compares_judged_answers_as_a_gain_is(judged_world):
    world, runs = judged_world
    facts = find_facts(world.report, runs["lora"])
    at, target = world.session.store, world.session.target
    rows = [store.read_rows(at, runs[name].rows["desk/test"]) for name in ("lora", "knn")]
    labels = judge_labels(at, target.task, target.primary.name)
    night = compare_judged_answers(target.primary, *rows, labels, world.session.experiment.gate.max_errors)
    gain = facts.vs_untrained
    assert night.corrected == (gain.delta, gain.low, gain.high)


@pytest.fixture
def dashboard(judged_world, monkeypatch):
    streamlit = pytest.importorskip("streamlit")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "dashboards"))
    monkeypatch.setenv("HARNESS_CONFIG", str(judged_world[0].path))
    streamlit.cache_data.clear()
    streamlit.cache_resource.clear()
    return judged_world


def test_the_dashboard_compares_two_runs_on_the_target_as_a_gain_is(dashboard):
    from parts import scores

    world, runs = dashboard
    facts = find_facts(world.report, runs["lora"])
    found = scores.compare_on_every_task(runs["knn"], runs["lora"], None)["desk"][1]
    assert (found.estimator, found.delta, found.low, found.high) == (
        "ppi",
        facts.vs_untrained.delta,
        facts.vs_untrained.low,
        facts.vs_untrained.high,
    )


def test_the_dashboard_shows_the_verdict_that_a_gate_made_after_the_report_was_written(dashboard):
    from parts import project

    world, runs = dashboard
    before = find_facts(world.report, runs["lora"])
    stale = replace(before.verdict, outcome="pass", rules=(), lost=0)
    facts = tuple(replace(f, verdict=stale) if f.run_id == before.run_id else f for f in world.report.facts)
    report.write(replace(world.report, facts=facts), world.path.parent / "reports")
    for file in (world.path.parent / "reports").glob("*.json"):
        os.utime(file, (0, 0))  # written long before
    judged = ask(world, runs["lora"], "gate")
    (kept,) = project.reports().values()
    assert find_facts(kept, runs["lora"]).verdict == judged


def test_a_rescue_shows_no_gain_by_a_judge_before_people_have_labelled_the_trial(judged_world, tmp_path):
    folder = tmp_path / "unlabelled"
    shutil.copytree(judged_world[0].path.parent, folder)
    (folder / "runs" / "labels" / "people.json").unlink()
    lenient = ["gate={}"]  # nothing is declared of the target, so no rule of the gate waits for labels
    again = rescue_worlds.open_world(folder / "harness.yaml", stored.JUDGED, lenient)
    found = again.rescue()
    confirmed = found.tried[-1].confirm
    assert (confirmed.verdict.outcome, confirmed.gains, confirmed.passes) == ("pass", True, False)
    assert "no gain before 100 more labels of people" in confirmed.sentence
    assert harness.rescue.exit_code(found, again.session.experiment.gate) == 4
