"""Fewer items in a whole comparison: which items are asked, what is said of it, and that nothing is asked twice."""

import json
import shutil

import pytest
import tiny_experiment
from fake_facts import tuned
from typer.testing import CliRunner

from harness import config, release, store
from harness.cli import app
from harness.decision.results import Standing
from harness.errors import IncompatibleRuns, UserError
from harness.evaluation import sampling
from harness.experiment import Scope, fewer_items, prepare_session
from harness.experiment.run_candidate import base_arm
from harness.gating import Rule, Verdict
from harness.progress import Silent
from harness.report import ExperimentReport

N = 5 * 160
CANDIDATES = """\
  prompt: {method: base}
  lora: {method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}
"""


def many_sums():
    """Make more sums than are asked, none like another."""
    return [
        {
            "id": f"sum-{n}",
            "prompt": f"{n} and {n % 7} make",
            "reference": str(n + n % 7),
            "choices": [str(n + n % 7), str(n + n % 7 + 1)],
        }
        for n in range(N)
    ]


@pytest.fixture(scope="module")
def asked(tiny, own_cache, tmp_path_factory):
    """Run the tiny experiment with one large task and a wide margin; returns its folder and report."""
    folder = tmp_path_factory.mktemp("fewer")
    path = tiny_experiment.write(folder, tiny, CANDIDATES, extra="gate: {macro: 0.3}\n")
    tiny_experiment.rows(folder / "suites" / "general" / "sums.jsonl", many_sums())
    return folder, tiny_experiment.run(path, fewer_items=True)


def runs_of(folder):
    at = store.Store(folder / "runs")
    return at, {run.candidate: run for run in store.list_runs(at)}


def of_sums(found):
    return next(c for c in found.comparisons["lora"] if (c.task, c.metric) == ("sums", "accuracy"))


def test_a_large_task_is_asked_in_part_and_small_ones_in_full(asked):
    at, runs = runs_of(asked[0])
    n = {key: len(store.read_rows(at, digest)) for key, digest in runs["lora"].rows.items()}
    assert 0 < n["sums/test"] < N
    assert n["sums/test"] % 160 == 0
    assert (n["facts/test"], n["prose/test"]) == (6, 4)


def test_base_and_candidate_answer_the_same_items_in_one_layout(asked):
    at, runs = runs_of(asked[0])
    ids = [
        [row.example_id for row in store.read_rows(at, runs[name].rows["sums/test"])]
        for name in ("prompt", "lora")
    ]
    assert ids[0] == ids[1]
    assert ids[0] != sorted(ids[0])


def test_the_delta_is_weighted_and_the_report_says_what_was_asked(asked):
    found = asked[1]
    c = of_sums(found)
    assert c.estimator == "stratified"
    assert c.n < N
    assert any(f"of {N} items of sums were asked" in note for note in found.notes)
    assert (found.experiment, found.sampled) == ("tiny-fewer", True)
    assert c.alpha <= 0.05


def test_a_second_call_asks_nothing_and_says_the_same(asked):
    folder, first = asked
    files = sorted((folder / "runs" / "rows").rglob("*.parquet"))
    before = {path: path.stat().st_mtime_ns for path in files}
    again = tiny_experiment.run(folder / "harness.yaml", fewer_items=True)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert [f.verdict for f in again.facts] == [f.verdict for f in first.facts]


def test_the_base_is_asked_again_beside_the_candidate(asked):
    verdict = next(f.verdict for f in asked[1].facts if f.name == "lora")
    control = next(rule for rule in verdict.rules if rule.name == "control")
    assert control.outcome == "pass"
    assert "came back as stored" in control.sentence


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"quick": True}, "--quick as well"),
        ({"limit": 700}, "--limit as well"),
        ({"quick": True, "limit": 700}, "--quick and --limit as well"),
    ],
)
def test_another_cut_of_the_items_is_refused(asked, options, named):
    with pytest.raises(UserError, match=named):
        tiny_experiment.run(asked[0] / "harness.yaml", fewer_items=True, **options)


def test_a_rescue_on_a_part_of_the_items_is_refused(asked):
    config_file = str(asked[0] / "harness.yaml")
    shown = CliRunner().invoke(app, ["compare", "-c", config_file, "--sequential", "--rescue"])
    assert isinstance(shown.exception, UserError)
    assert "--all-items" in str(shown.exception)


def test_a_stored_run_is_not_judged_without_its_weights(asked):
    run_id = next(f.run_id for f in asked[1].facts if f.name == "lora")
    with pytest.raises(IncompatibleRuns, match="--all-items"):
        release.gate_stored(asked[0] / "harness.yaml", run_id)


def test_no_reason_makes_a_run_on_a_part_of_the_items_a_champion(asked):
    run_id = next(f.run_id for f in asked[1].facts if f.name == "lora")
    with pytest.raises(IncompatibleRuns, match=r"expected whole tasks; next: harness compare --all-items"):
        release.promote_named(asked[0] / "harness.yaml", run_id, despite="we need one today")
    assert not (asked[0] / "baselines").exists()


def test_drawn_scores_of_two_runs_are_left_to_their_report(asked):
    at, runs = runs_of(asked[0])
    found = release.differences(at, runs["prompt"].run_id, runs["lora"].run_id)
    of_sums = found.scores["sums/test"]["accuracy"]
    assert of_sums[:3] == (None, None, None)
    assert "reports/tiny-fewer.md has them" in of_sums.why_not
    assert found.scores["letters/test"]["exact_match"].difference is not None


def test_without_a_large_task_all_is_asked_and_that_is_said(tiny, own_cache, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n")
    found = tiny_experiment.run(path, fewer_items=True)
    assert any("no task is large enough" in note for note in found.notes)
    assert (found.experiment, found.sampled) == ("tiny", False)  # so that the run can be promoted
    _, champion = release.promote_named(path, "prompt")
    assert champion.run_id == found.facts[0].run_id


def looks_with(asked, override):
    """Plan the interim analyses of the finished experiment with another gate."""
    loaded = config.load(asked[0] / "harness.yaml", [override])
    session = prepare_session(loaded, Scope(fewer=True), Silent())
    return fewer_items.plan_interim_analyses(session, base_arm(session, session.source))


def test_a_critical_task_is_asked_in_full(asked, own_cache):
    assert looks_with(asked, "gate.critical=[sums]") == []


def test_a_margin_of_the_bases_skill_asks_more_than_one_of_the_scale(asked, own_cache):
    of_scale, of_skill = (looks_with(asked, f"gate.macro={margin}")[-1] for margin in ("0.3", "30%"))
    assert len(of_skill.suites[0].items.test) > len(of_scale.suites[0].items.test)


def test_looks_grow_until_the_whole_task(asked, own_cache):
    looks = looks_with(asked, "gate.macro=0.001")
    sizes = [len(look.suites[0].items.test) for look in looks]
    assert sizes == sorted(sizes)
    assert sizes[-1] == N
    assert all(0 < look.alpha < 0.05 for look in looks)
    assert len(looks) <= sampling.N_LOOKS
    rows = [look.suites[0].versions["test"] for look in looks]
    assert len(set(rows)) == 1  # so that a look goes on where the one before stopped


def test_looks_that_settle_nothing_go_on_to_the_last_item_and_ask_each_once(asked, tmp_path):
    folder = shutil.copytree(asked[0], tmp_path / "copy")
    found = tiny_experiment.run(folder / "harness.yaml", "gate.macro=0.001", fewer_items=True)
    said = next(note for note in found.notes if note.startswith("fewer items"))
    assert f"{N} of {N} items of sums were asked" in said
    assert "interim analysis 3 of 3" in said
    c = of_sums(found)
    assert c.n == N
    assert c.alpha < 0.05
    at = store.Store(folder / "runs")
    runs = [run for run in store.list_runs(at) if run.candidate == "lora" and run.state == "done"]
    rows = {run.rows["sums/test"]: len(store.read_rows(at, run.rows["sums/test"])) for run in runs}
    assert sorted(rows.values()) == [of_sums(asked[1]).n, N]  # one set of rows for all three looks


@pytest.mark.parametrize(
    ("outcomes", "settled"),
    [
        ({"macro": "pass", "each": "pass", "target": "inconclusive"}, True),
        ({"macro": "inconclusive", "each": "pass"}, False),
        ({"macro": "inconclusive", "each": "fail"}, True),
    ],
)
def test_looking_ends_where_more_items_would_change_nothing(outcomes, settled):
    rules = tuple(Rule(name, outcome, "", {}) for name, outcome in outcomes.items())
    verdict = Verdict("inconclusive", rules, None, 0, 0, (), None, "")
    facts = (tuned("lora", 0.8, 0.1, verdict=verdict),)
    assert fewer_items.is_settled(ExperimentReport("x", "m", "exact_match", facts)) is settled


@pytest.mark.parametrize(("among_all", "settled"), [("inconclusive", False), ("pass", True)])
def test_looking_goes_on_while_a_pass_is_not_shown_among_all_fine_tunes(among_all, settled):
    alone, corrected = (
        Verdict(outcome, (Rule("macro", outcome, "", {}),), None, 0, 0, (), None, "")
        for outcome in ("pass", among_all)
    )
    standing = Standing(8, 0.05, 0.02, 0.16, 0.05 / 8, "lora")
    facts = (tuned("lora", 0.8, 0.1, verdict=alone, corrected=corrected, standing=standing),)
    assert fewer_items.is_settled(ExperimentReport("x", "m", "exact_match", facts)) is settled


def sums_that_the_base_passes(folder, tiny):
    """Ask the base many sums, and call right what it answered."""
    path = tiny_experiment.write(folder, tiny, "  prompt: {method: base}\n")
    tiny_experiment.rows(folder / "suites" / "general" / "sums.jsonl", many_sums())
    tiny_experiment.run(path)
    at, runs = runs_of(folder)
    passed = {
        row.example_id: row.parts["accuracy"] == (1.0,)
        for row in store.read_rows(at, runs["prompt"].rows["sums/test"])
    }
    return [{**row, "reference": row["choices"][0 if passed[row["id"]] else 1]} for row in many_sums()]


@pytest.fixture(scope="module")
def settled_early(tiny, own_cache, tmp_path_factory):
    """Run one fine-tune that collapses and one that hardly learns; returns the folder and the report."""
    folder = tmp_path_factory.mktemp("hopeless")
    candidates = """\
  prompt: {method: base}
  broken: {method: lora, params: {r: 8, num_train_epochs: 4, learning_rate: 0.5, max_length: 200}}
  gentle: {method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.0001, max_length: 200}}
"""
    items = sums_that_the_base_passes(tmp_path_factory.mktemp("base"), tiny)
    path = tiny_experiment.write(folder, tiny, candidates, extra="gate: {macro: 0.02, each: 0.9}\n")
    tiny_experiment.rows(folder / "suites" / "general" / "sums.jsonl", items)
    return folder, tiny_experiment.run(path, fewer_items=True)


def test_a_hopeless_candidate_is_asked_no_more_while_another_goes_on(settled_early):
    folder, found = settled_early
    n = {
        name: next(c for c in found.comparisons[name] if c.task == "sums").n for name in ("broken", "gentle")
    }
    assert n["broken"] < n["gentle"]
    verdicts = {f.name: f.verdict.outcome for f in found.facts if f.verdict}
    assert verdicts["broken"] == "fail"
    assert any(note.startswith("broken: its verdict was settled on") for note in found.notes)
    at, runs = runs_of(folder)
    assert len(store.read_rows(at, runs["broken"].rows["sums/test"])) == n["broken"]


def test_a_settled_verdict_is_the_same_when_the_comparison_is_repeated(settled_early):
    folder, first = settled_early
    again = tiny_experiment.run(folder / "harness.yaml", fewer_items=True)
    assert [(f.run_id, f.verdict) for f in again.facts] == [(f.run_id, f.verdict) for f in first.facts]
    assert again.flips.keys() == first.flips.keys()


def test_the_command_asks_fewer_items(asked, monkeypatch):
    monkeypatch.chdir(asked[0])
    shown = CliRunner().invoke(app, ["compare", "--sequential", "--json"])
    assert json.loads(shown.stdout)["experiment"] == "tiny-fewer"
    assert (asked[0] / "reports" / "tiny-fewer.md").exists()
