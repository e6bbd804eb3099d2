"""Fewer items in a whole comparison: which items are asked, what is reported, and nothing asked twice."""

import json
import shutil

import pytest
import tiny_experiment
from fake_facts import make_fine_tune
from typer.testing import CliRunner

from harness import config, store
from harness.analysis.candidate_facts import FamilyRank
from harness.analysis.verdict import Rule, Verdict
from harness.cli import app
from harness.errors import IncompatibleRuns, UserError
from harness.evaluation import sampling
from harness.evaluation.stored_scores import base_arm
from harness.experiment import Scope, interim_analyses, prepare_session, rescue
from harness.lifecycle import release
from harness.progress import SilentProgress

pytestmark = pytest.mark.e2e

N = 5 * 160


def make_sums():
    """Make more distinct sums than a comparison asks."""
    sums = ((n, n % 7, f"{n + n % 7}") for n in range(N))
    return [
        {"id": f"sum-{a}", "prompt": f"{a} and {b} make", "reference": c, "choices": [c, f"{a + b + 1}"]}
        for a, b, c in sums
    ]


@pytest.fixture(scope="module")
def folder_and_report(tiny, own_cache, tmp_path_factory):
    """Run the tiny experiment with one large task and a wide margin; returns its folder and report."""
    folder = tmp_path_factory.mktemp("fewer")
    path = tiny_experiment.write(folder, tiny, tiny_experiment.TUNED, extra="gate: {macro: 0.3}\n")
    tiny_experiment.rows(folder / "suites" / "general" / "sums.jsonl", make_sums())
    return folder, tiny_experiment.run(path, fewer_items=True)


def runs_of(folder):
    run_store = store.Store(folder / "runs")
    return run_store, {run.candidate: run for run in store.list_runs(run_store)}


def find_sums(report):
    return next(c for c in report.comparisons["lora"] if (c.task, c.metric) == ("sums", "accuracy"))


def test_a_large_task_is_asked_in_part_the_same_items_for_all_and_its_delta_is_weighted(folder_and_report):
    run_store, runs = runs_of(folder_and_report[0])
    n_rows = {key: len(store.read_rows(run_store, digest)) for key, digest in runs["lora"].rows.items()}
    assert 0 < n_rows["sums/test"] < N
    assert n_rows["sums/test"] % 160 == 0
    assert (n_rows["facts/test"], n_rows["prose/test"]) == (6, 4)
    ids = [
        [row.example_id for row in store.read_rows(run_store, runs[name].rows["sums/test"])]
        for name in ("prompt", "lora")
    ]
    assert ids[0] == ids[1]
    assert ids[0] != sorted(ids[0])

    report = folder_and_report[1]
    comparison = find_sums(report)
    assert comparison.estimator == "stratified"
    assert comparison.n < N
    assert any(f"of {N} items of sums were evaluated" in note for note in report.notes)
    assert (report.experiment, report.sampled) == ("tiny-fewer", True)
    assert comparison.alpha <= 0.05
    verdict = next(fact.verdict for fact in folder_and_report[1].facts if fact.name == "lora")
    control = next(rule for rule in verdict.rules if rule.name == "control")
    assert control.outcome == "pass"
    assert "came back as stored" in control.sentence

    differences = release.differences(run_store, runs["prompt"].run_id, runs["lora"].run_id)
    sums_score = differences.scores["sums/test"]["accuracy"]
    assert sums_score[:3] == (None, None, None)
    assert "reports/tiny-fewer.md has them" in sums_score.why_not
    assert differences.scores["letters/test"]["exact_match"].difference is not None


def test_a_second_call_asks_nothing_and_what_was_not_planned_for_is_refused(folder_and_report):
    folder, first_report = folder_and_report
    files = sorted((folder / "runs" / "rows").rglob("*.parquet"))
    times_before = {path: path.stat().st_mtime_ns for path in files}
    second_report = tiny_experiment.run(folder / "harness.yaml", fewer_items=True)
    assert {path: path.stat().st_mtime_ns for path in files} == times_before
    assert [fact.verdict for fact in second_report.facts] == [fact.verdict for fact in first_report.facts]

    config_file = str(folder_and_report[0] / "harness.yaml")
    result = CliRunner().invoke(app, ["compare", "-c", config_file, "--sequential", "--rescue"])
    assert isinstance(result.exception, UserError)
    assert "--all-items" in str(result.exception)
    with pytest.raises(UserError, match="--quick and --limit as well"):
        tiny_experiment.run(folder / "harness.yaml", fewer_items=True, quick=True, limit=700)
    with pytest.raises(IncompatibleRuns, match=r"planned for gate.alpha 0.05; expected 0.01"):
        release.gate(folder_and_report[0] / "harness.yaml", "lora", overrides=["gate.alpha=0.01"])


def copy_experiment(folder, to):
    return shutil.copytree(folder, to / "copy") / "harness.yaml"


def summarize_verdict(fact):
    """Return the parts of a verdict that must agree: outcome, sentence, rules and numbers, macro and interval."""
    verdict = fact.verdict
    return verdict.outcome, verdict.sentence, verdict.rules, verdict.macro, verdict.lost, verdict.gained


def test_the_gate_gives_the_verdict_and_the_interval_of_the_comparison(folder_and_report):
    reported_fact = next(fact for fact in folder_and_report[1].facts if fact.name == "lora")
    (gate_result,) = release.gate(folder_and_report[0] / "harness.yaml", reported_fact.run_id)
    assert summarize_verdict(gate_result) == summarize_verdict(reported_fact)
    comparison = next(task.comparison for task in gate_result.tasks if task.task.name == "sums")
    assert comparison == find_sums(folder_and_report[1])
    (note,) = [note for note in gate_result.notes if "interim analysis" in note]
    assert f"judged at alpha {comparison.alpha:.2g} on {comparison.n} items of sums" in note


@pytest.mark.weekly
def test_a_run_is_judged_at_the_analysis_that_settled_it_and_a_hopeless_one_is_asked_no_more(settled_early):
    folder, report = settled_early
    for reported_fact in (f for f in report.facts if f.name in ("broken", "gentle")):
        (gate_result,) = release.gate(folder / "harness.yaml", reported_fact.name)
        assert summarize_verdict(gate_result) == summarize_verdict(reported_fact)
    run_store, runs = runs_of(folder)
    first, last = (store.read_sampling(run_store, runs[name].run_id) for name in ("broken", "gentle"))
    assert (first.analysis, last.analysis) == ("interim analysis 1 of 3", "interim analysis 3 of 3")
    assert len(first.weights["sums"]) < len(last.weights["sums"])
    assert first.alpha != last.alpha
    assert max(first.alpha, last.alpha) < 0.05

    verdicts = {f.name: f.verdict.outcome for f in report.facts if f.verdict}
    assert verdicts["broken"] == "fail"
    assert any(note.startswith("broken: its verdict was settled on") for note in report.notes)
    (sums_comparison,) = (c for c in report.comparisons["broken"] if c.task == "sums")
    assert len(store.read_rows(run_store, runs["broken"].rows["sums/test"])) == sums_comparison.n

    again = tiny_experiment.run(folder / "harness.yaml", fewer_items=True)
    assert [(f.run_id, f.verdict) for f in again.facts] == [(f.run_id, f.verdict) for f in report.facts]


@pytest.mark.weekly
def test_a_run_without_its_sampling_or_whose_items_changed_is_refused(folder_and_report, tmp_path):
    path = copy_experiment(folder_and_report[0], tmp_path)
    run_store, runs = runs_of(path.parent)
    run_store.run_file(runs["lora"].run_id).with_name("sampling.json").unlink()
    with pytest.raises(IncompatibleRuns, match=r"no record of how its items were sampled.*--sequential"):
        release.gate(path, "lora")
    tiny_experiment.run(path, fewer_items=True)
    assert release.gate(path, "lora")

    file = path.parent / "suites" / "general" / "sums.jsonl"
    file.write_text(file.read_text().replace('"9 and 2 make"', '"9 and 2 give"'))
    with pytest.raises(IncompatibleRuns, match=r"sums/test \(task_version"):
        release.gate(path, "lora")


def test_promoting_answers_whole_tasks_by_which_a_sampled_run_is_gated_and_trains_nothing_anew(
    folder_and_report, own_cache, tmp_path
):
    path = copy_experiment(folder_and_report[0], tmp_path)
    run_store, runs = runs_of(path.parent)
    _, champion = release.promote_named(path, runs["prompt"].run_id)
    assert (champion.candidate, champion.experiment, champion.verdict) == ("prompt", "tiny", "pass")
    assert len(store.read_rows(run_store, champion.rows["sums/test"])) == N
    assert champion.scores["sums accuracy"][3] == N

    run_id, fact = runs["lora"].run_id, next(f for f in folder_and_report[1].facts if f.name == "lora")
    (gate_result,) = release.gate(path, run_id)
    assert gate_result.baseline.startswith("the champion prompt (tiny-prompt")
    assert gate_result.verdict.macro == fact.verdict.macro  # the champion's weights are the base's
    shutil.rmtree(run_store.rows(runs["prompt"].rows["sums/test"]))
    with pytest.raises(
        IncompatibleRuns, match=r"whole task of the champion.*harness promote tiny-fewer-lora"
    ):
        release.gate(path, run_id)

    shutil.rmtree(path.parent / "runs" / "weights")
    with pytest.raises(IncompatibleRuns, match="found no weights"):
        release.promote_named(path, runs["lora"].run_id, despite="a test")


@pytest.mark.weekly
def test_a_rescue_of_a_sampled_run_begins_on_whole_tasks_and_it_is_promoted_with_a_reason_alone(
    settled_early, own_cache, tmp_path
):
    path = copy_experiment(settled_early[0], tmp_path)
    at, runs = runs_of(path.parent)
    with pytest.raises(UserError, match="not a pass against the base"):
        release.promote_named(path, "broken")
    assert not any(run.experiment == "tiny" for run in store.list_runs(at))  # refused before any computation

    loaded = config.load(path)
    session = prepare_session(loaded, Scope(), SilentProgress())
    with pytest.raises(UserError, match=r"rescue tiny-broken-s0-\w+|rescue broken"):  # it gains nothing
        rescue.prepare(session, loaded.selected, runs["broken"].run_id)
    whole_runs = {run.candidate: run for run in store.list_runs(at, "tiny")}
    assert whole_runs.keys() == {"prompt", "broken"}
    assert whole_runs["broken"].weights_digest == runs["broken"].weights_digest
    _, champion = release.promote_named(path, "broken", despite="a test")
    assert (champion.experiment, champion.verdict) == ("tiny", "fail")
    assert len(store.read_rows(at, champion.rows["sums/test"])) == N
    with pytest.raises(IncompatibleRuns, match=r"to \d+ of the 800 sampled items"):
        release.gate(path, "gentle")  # it answered more of them than the champion


def looks_with(experiment, override):
    """Plan the interim analyses of the finished experiment with another gate."""
    loaded = config.load(experiment[0] / "harness.yaml", [override])
    session = prepare_session(loaded, Scope(fewer=True), SilentProgress())
    return interim_analyses.plan_interim_analyses(session, base_arm(session, session.source))


def test_a_critical_task_is_asked_in_full_and_a_smaller_margin_asks_more_until_the_whole_task(
    folder_and_report, own_cache
):
    assert looks_with(folder_and_report, "gate.critical=[sums]") == []

    absolute_look, relative_look = (
        looks_with(folder_and_report, f"gate.macro={margin}")[-1] for margin in ("0.3", "30%")
    )
    assert len(relative_look.suites[0].items.test) > len(absolute_look.suites[0].items.test)

    looks = looks_with(folder_and_report, "gate.macro=0.001")
    n_items = [len(look.suites[0].items.test) for look in looks]
    assert n_items == sorted(n_items)
    assert n_items[-1] == N
    assert all(0 < look.sampling.alpha < 0.05 for look in looks)
    assert len(looks) <= sampling.N_LOOKS
    row_versions = [look.suites[0].versions["test"] for look in looks]
    assert len(set(row_versions)) == 1  # so that each look continues the previous one


@pytest.mark.parametrize(("among_all", "settled"), [("inconclusive", False), ("pass", True)])
def test_looking_goes_on_while_a_pass_is_not_shown_among_all_fine_tunes(among_all, settled):
    verdict, corrected_verdict = (
        Verdict(outcome, (Rule("macro", outcome, "", {}),), None, 0, 0, (), None, "")
        for outcome in ("pass", among_all)
    )
    rank = FamilyRank(8, 0.05, 0.02, 0.16, 0.05 / 8, "lora")
    facts = (make_fine_tune("lora", 0.8, 0.1, verdict=verdict, corrected=corrected_verdict, standing=rank),)
    assert interim_analyses.is_settled(facts) is settled


def sums_that_the_base_passes(folder, tiny):
    """Ask the base many sums and use its answers as references."""
    path = tiny_experiment.write(folder, tiny, "  prompt: {method: base}\n")
    tiny_experiment.rows(folder / "suites" / "general" / "sums.jsonl", make_sums())
    tiny_experiment.run(path)
    run_store, runs = runs_of(folder)
    texts = {row.example_id: row.text for row in store.read_rows(run_store, runs["prompt"].rows["sums/test"])}
    return [{**row, "reference": texts[row["id"]]} for row in make_sums()]


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


def test_the_command_asks_fewer_items(folder_and_report, monkeypatch):
    monkeypatch.chdir(folder_and_report[0])
    result = CliRunner().invoke(app, ["compare", "--sequential", "--json"])
    assert json.loads(result.stdout)["experiment"] == "tiny-fewer"
    assert (folder_and_report[0] / "reports" / "tiny-fewer.md").exists()
