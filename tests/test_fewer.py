"""Fewer items in a whole comparison: which items are asked, what is said of it, and that nothing is asked twice."""

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
from harness.evaluation.judging_stage import base_arm
from harness.experiment import Scope, fewer_items, prepare_session
from harness.lifecycle import release, rescue
from harness.progress import SilentProgress

pytestmark = pytest.mark.e2e

N = 5 * 160
CANDIDATES = """\
  prompt: {method: base}
  lora: {method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}
"""


def make_sums():
    """Make more sums than are asked, none like another."""
    sums = ((n, n % 7, n + n % 7) for n in range(N))
    return [
        {
            "id": f"sum-{a}",
            "prompt": f"{a} and {b} make",
            "reference": f"{c}",
            "choices": [f"{c}", f"{c + 1}"],
        }
        for a, b, c in sums
    ]


@pytest.fixture(scope="module")
def folder_and_report(tiny, own_cache, tmp_path_factory):
    """Run the tiny experiment with one large task and a wide margin; returns its folder and report."""
    folder = tmp_path_factory.mktemp("fewer")
    path = tiny_experiment.write(folder, tiny, CANDIDATES, extra="gate: {macro: 0.3}\n")
    tiny_experiment.rows(folder / "suites" / "general" / "sums.jsonl", make_sums())
    return folder, tiny_experiment.run(path, fewer_items=True)


def runs_of(folder):
    at = store.Store(folder / "runs")
    return at, {run.candidate: run for run in store.list_runs(at)}


def find_sums(found):
    return next(c for c in found.comparisons["lora"] if (c.task, c.metric) == ("sums", "accuracy"))


def test_a_large_task_is_asked_in_part_the_same_items_for_all_and_its_delta_is_weighted(folder_and_report):
    at, runs = runs_of(folder_and_report[0])
    n = {key: len(store.read_rows(at, digest)) for key, digest in runs["lora"].rows.items()}
    assert 0 < n["sums/test"] < N
    assert n["sums/test"] % 160 == 0
    assert (n["facts/test"], n["prose/test"]) == (6, 4)
    ids = [
        [row.example_id for row in store.read_rows(at, runs[name].rows["sums/test"])]
        for name in ("prompt", "lora")
    ]
    assert ids[0] == ids[1]
    assert ids[0] != sorted(ids[0])

    found = folder_and_report[1]
    c = find_sums(found)
    assert c.estimator == "stratified"
    assert c.n < N
    assert any(f"of {N} items of sums were evaluated" in note for note in found.notes)
    assert (found.experiment, found.sampled) == ("tiny-fewer", True)
    assert c.alpha <= 0.05
    verdict = next(f.verdict for f in folder_and_report[1].facts if f.name == "lora")
    control = next(rule for rule in verdict.rules if rule.name == "control")
    assert control.outcome == "pass"
    assert "came back as stored" in control.sentence

    found = release.differences(at, runs["prompt"].run_id, runs["lora"].run_id)
    of_sums = found.scores["sums/test"]["accuracy"]
    assert of_sums[:3] == (None, None, None)
    assert "reports/tiny-fewer.md has them" in of_sums.why_not
    assert found.scores["letters/test"]["exact_match"].difference is not None


def test_a_second_call_asks_nothing_and_what_was_not_planned_for_is_refused(folder_and_report):
    folder, first = folder_and_report
    files = sorted((folder / "runs" / "rows").rglob("*.parquet"))
    before = {path: path.stat().st_mtime_ns for path in files}
    again = tiny_experiment.run(folder / "harness.yaml", fewer_items=True)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert [f.verdict for f in again.facts] == [f.verdict for f in first.facts]

    config_file = str(folder_and_report[0] / "harness.yaml")
    shown = CliRunner().invoke(app, ["compare", "-c", config_file, "--sequential", "--rescue"])
    assert isinstance(shown.exception, UserError)
    assert "--all-items" in str(shown.exception)
    with pytest.raises(UserError, match="--quick and --limit as well"):
        tiny_experiment.run(folder / "harness.yaml", fewer_items=True, quick=True, limit=700)
    with pytest.raises(IncompatibleRuns, match=r"planned for gate.alpha 0.05; expected 0.01"):
        release.gate(folder_and_report[0] / "harness.yaml", "lora", overrides=["gate.alpha=0.01"])


def copy_experiment(folder, to):
    return shutil.copytree(folder, to / "copy") / "harness.yaml"


def summarize_verdict(judged):
    """Return what has to be the same of a verdict: outcome, sentence, rules with numbers, macro with interval."""
    v = judged.verdict
    return v.outcome, v.sentence, v.rules, v.macro, v.lost, v.gained


def test_the_gate_gives_the_verdict_and_the_interval_of_the_comparison(folder_and_report):
    reported = next(f for f in folder_and_report[1].facts if f.name == "lora")
    (judged,) = release.gate(folder_and_report[0] / "harness.yaml", reported.run_id)
    assert summarize_verdict(judged) == summarize_verdict(reported)
    c = next(t.comparison for t in judged.tasks if t.task.name == "sums")
    assert c == find_sums(folder_and_report[1])
    (note,) = [note for note in judged.notes if "interim analysis" in note]
    assert f"judged at alpha {c.alpha:.2g} on {c.n} items of sums" in note


@pytest.mark.weekly
def test_each_run_is_judged_at_the_analysis_that_settled_it_and_a_hopeless_one_is_asked_no_more(
    settled_early,
):
    folder, found = settled_early
    for reported in (f for f in found.facts if f.name in ("broken", "gentle")):
        (judged,) = release.gate(folder / "harness.yaml", reported.name)
        assert summarize_verdict(judged) == summarize_verdict(reported)
    at, runs = runs_of(folder)
    first, last = (store.read_sampling(at, runs[name].run_id) for name in ("broken", "gentle"))
    assert (first.analysis, last.analysis) == ("interim analysis 1 of 3", "interim analysis 3 of 3")
    assert len(first.weights["sums"]) < len(last.weights["sums"])
    assert first.alpha != last.alpha
    assert max(first.alpha, last.alpha) < 0.05

    verdicts = {f.name: f.verdict.outcome for f in found.facts if f.verdict}
    assert verdicts["broken"] == "fail"
    assert any(note.startswith("broken: its verdict was settled on") for note in found.notes)
    (compared,) = (c for c in found.comparisons["broken"] if c.task == "sums")
    assert len(store.read_rows(at, runs["broken"].rows["sums/test"])) == compared.n

    again = tiny_experiment.run(folder / "harness.yaml", fewer_items=True)
    assert [(f.run_id, f.verdict) for f in again.facts] == [(f.run_id, f.verdict) for f in found.facts]


@pytest.mark.weekly
def test_a_run_without_its_sampling_or_whose_items_changed_is_refused(folder_and_report, tmp_path):
    path = copy_experiment(folder_and_report[0], tmp_path)
    at, runs = runs_of(path.parent)
    at.run_file(runs["lora"].run_id).with_name("sampling.json").unlink()
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
    at, runs = runs_of(path.parent)
    _, champion = release.promote_named(path, runs["prompt"].run_id)
    assert (champion.candidate, champion.experiment, champion.verdict) == ("prompt", "tiny", "pass")
    assert len(store.read_rows(at, champion.rows["sums/test"])) == N
    assert champion.scores["sums accuracy"][3] == N

    run_id, reported = runs["lora"].run_id, next(f for f in folder_and_report[1].facts if f.name == "lora")
    (judged,) = release.gate(path, run_id)
    assert judged.baseline.startswith("the champion prompt (tiny-prompt")
    assert judged.verdict.macro == reported.verdict.macro  # the champion's weights are the base's
    shutil.rmtree(at.rows(runs["prompt"].rows["sums/test"]))
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
    assert not any(run.experiment == "tiny" for run in store.list_runs(at))  # refused before it computed

    loaded = config.load(path)
    session = prepare_session(loaded, Scope(), SilentProgress())
    with pytest.raises(UserError, match=r"rescue tiny-broken-s0-\w+|rescue broken"):  # it gains nothing
        rescue.prepare(session, loaded.selected, runs["broken"].run_id)
    whole = {run.candidate: run for run in store.list_runs(at, "tiny")}
    assert whole.keys() == {"prompt", "broken"}
    assert whole["broken"].weights_digest == runs["broken"].weights_digest
    _, champion = release.promote_named(path, "broken", despite="a test")
    assert (champion.experiment, champion.verdict) == ("tiny", "fail")
    assert len(store.read_rows(at, champion.rows["sums/test"])) == N
    with pytest.raises(IncompatibleRuns, match=r"to \d+ of the 800 sampled items"):
        release.gate(path, "gentle")  # which was asked more of them than the champion


def looks_with(asked, override):
    """Plan the interim analyses of the finished experiment with another gate."""
    loaded = config.load(asked[0] / "harness.yaml", [override])
    session = prepare_session(loaded, Scope(fewer=True), SilentProgress())
    return fewer_items.plan_interim_analyses(session, base_arm(session, session.source))


def test_a_critical_task_is_asked_in_full_and_a_smaller_margin_asks_more_until_the_whole_task(
    folder_and_report, own_cache
):
    assert looks_with(folder_and_report, "gate.critical=[sums]") == []

    of_scale, of_skill = (
        looks_with(folder_and_report, f"gate.macro={margin}")[-1] for margin in ("0.3", "30%")
    )
    assert len(of_skill.suites[0].items.test) > len(of_scale.suites[0].items.test)

    looks = looks_with(folder_and_report, "gate.macro=0.001")
    sizes = [len(look.suites[0].items.test) for look in looks]
    assert sizes == sorted(sizes)
    assert sizes[-1] == N
    assert all(0 < look.sampling.alpha < 0.05 for look in looks)
    assert len(looks) <= sampling.N_LOOKS
    rows = [look.suites[0].versions["test"] for look in looks]
    assert len(set(rows)) == 1  # so that a look goes on where the one before stopped


@pytest.mark.parametrize(("among_all", "settled"), [("inconclusive", False), ("pass", True)])
def test_looking_goes_on_while_a_pass_is_not_shown_among_all_fine_tunes(among_all, settled):
    alone, corrected = (
        Verdict(outcome, (Rule("macro", outcome, "", {}),), None, 0, 0, (), None, "")
        for outcome in ("pass", among_all)
    )
    standing = FamilyRank(8, 0.05, 0.02, 0.16, 0.05 / 8, "lora")
    facts = (make_fine_tune("lora", 0.8, 0.1, verdict=alone, corrected=corrected, standing=standing),)
    assert fewer_items.is_settled(facts) is settled


def sums_that_the_base_passes(folder, tiny):
    """Ask the base many sums, and call right what it answered."""
    path = tiny_experiment.write(folder, tiny, "  prompt: {method: base}\n")
    tiny_experiment.rows(folder / "suites" / "general" / "sums.jsonl", make_sums())
    tiny_experiment.run(path)
    at, runs = runs_of(folder)
    said = {row.example_id: row.text for row in store.read_rows(at, runs["prompt"].rows["sums/test"])}
    return [{**row, "reference": said[row["id"]]} for row in make_sums()]


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
    shown = CliRunner().invoke(app, ["compare", "--sequential", "--json"])
    assert json.loads(shown.stdout)["experiment"] == "tiny-fewer"
    assert (folder_and_report[0] / "reports" / "tiny-fewer.md").exists()
