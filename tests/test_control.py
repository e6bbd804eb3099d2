"""The control arm: a harness that moved is found by asking the base again, and no candidate is blamed."""

import json
import shutil

import pytest
import tiny_experiment
import tiny_model
from scipy import stats as scipy_stats

from harness import config, experiment, release, stats, store
from harness.cli.compare import exit_code
from harness.evaluation import control_arm
from harness.experiment import Scope, prepare_session
from harness.experiment.stored_rows import StoredRows
from harness.gating import ControlFacts, has_drifted
from harness.gating.target_rules import control_rule
from harness.models.hf import ModelHost
from harness.progress import SilentProgress
from harness.records import Noise, Origin, TaskNoise
from harness.spec import GatePolicy
from harness.store import References, Store

pytestmark = pytest.mark.usefixtures("own_cache")

CANDIDATES = "  prompt: {method: base}\n  shots: {prompting: {few_shot: {select: knn, shots: 2}}}\n"


@pytest.fixture(scope="module")
def begun_folder(tmp_path_factory, own_cache):
    """Ask the base and one candidate, of a model whose template writes one BOS."""
    folder = tmp_path_factory.mktemp("begun")
    model = tiny_model.build(tmp_path_factory.mktemp("started"), template=tiny_model.STARTED)
    path = tiny_experiment.write(folder, model, CANDIDATES)
    tiny_experiment.run(path, candidates=("prompt",))
    return folder


@pytest.fixture
def path(begun_folder, tmp_path):
    shutil.copytree(begun_folder, tmp_path / "copy")
    return tmp_path / "copy" / "harness.yaml"


def run_further(path, change=lambda host: None, overrides=(), candidates=()):
    """Ask what is left of the candidates, with a model in memory that `change` may alter."""
    loaded = config.load(path, overrides, candidates)
    session = prepare_session(loaded, Scope(), SilentProgress())
    session.slot.host = ModelHost(session.source, session.machine)
    change(session.slot.host)
    return experiment.run_all(session, loaded)


def double_bos(host):
    host.tokenizer.chat_template = "{{ bos_token }}" + host.tokenizer.chat_template


def change_template(host):
    host.tokenizer.chat_template = host.tokenizer.chat_template.replace("assistant", "system")


def negate_norm(host):
    """Compute as a library with a mistake might: the same prompts, other answers."""
    host.model.model.norm.weight.data *= -1


def verdict(found, name):
    return next(f.verdict for f in found.facts if f.name == name)


def rule(found, name="shots"):
    return next(r for r in verdict(found, name).rules if r.name == "control")


def open_store(path):
    return Store(path.parent / "runs")


@pytest.mark.e2e
def test_a_base_that_answers_as_stored_passes_and_its_stored_rows_stay(path):
    before = {p: p.read_bytes() for p in path.parent.glob("runs/rows/*/rows.parquet")}
    found = run_further(path)
    assert rule(found).outcome == "pass"
    measured = store.controls(open_store(path))[-1]
    n = sum(block.n for block in measured.blocks)
    assert f"{n} items of the base were re-evaluated and came back as stored" in rule(found).sentence
    assert {p: p.read_bytes() for p in before} == before
    kept = (path.parent / "runs" / "control" / measured.id).glob("*.jsonl")
    assert sum(len(store.read_measured(p)) for p in kept) == n >= 10


@pytest.mark.e2e
def test_where_everything_is_reused_nothing_is_measured(path):
    run_further(path)
    before = store.controls(open_store(path))
    again = run_further(path)
    assert store.controls(open_store(path)) == before
    assert rule(again).outcome == "pass"


@pytest.mark.e2e
def test_the_control_arm_can_be_turned_off(path):
    before = len(store.controls(open_store(path)))
    found = run_further(path, double_bos, ["gate.control_blocks=0"])
    assert len(store.controls(open_store(path))) == before
    assert rule(found).outcome == "skipped"


def test_each_measurement_asks_generated_answers_and_the_next_other_block_unless_a_limit_cuts_it(path):
    session = tiny_experiment.session(path)
    for _ in range(2):
        control_arm.measure(session, session.source, 2)
    asked = [{b.task for b in one.blocks} for one in store.controls(open_store(path))]
    assert all("facts" in tasks for tasks in asked)
    assert set().union(*asked) == {"facts", "sums", "prose"}
    session = tiny_experiment.session(path, limit=3)
    assert control_arm.measure(session, session.source, 3) == ""


@pytest.mark.e2e
@pytest.mark.parametrize("change", [double_bos, change_template])
def test_other_prompts_than_stored_are_drift_whatever_the_candidate_scores(path, change):
    found = run_further(path, change)
    assert verdict(found, "shots").outcome == "harness-drift"
    said = verdict(found, "shots").sentence
    n = sum(block.n for block in store.controls(open_store(path))[-1].blocks)
    assert said.startswith(f"DRIFT: control: 6 of {n} prompts of the base are other tokens now")
    assert "facts/fact-" in said
    assert verdict(found, "prompt").outcome == "pass"  # its rows are from before


@pytest.mark.e2e
def test_other_answers_in_the_same_environment_are_drift_and_exit_with_4(path):
    found = run_further(path, negate_norm)
    assert "came back otherwise in the same environment" in verdict(found, "shots").sentence
    assert rule(found).numbers["n_reworded"] == 0

    policy = GatePolicy(on_inconclusive="pass")
    found = run_further(path, double_bos, ["gate.on_inconclusive=pass"])
    judged = release.gate(path, "shots", ["gate.on_inconclusive=pass"])
    assert exit_code(found, policy, by_verdict=True) == release.combine_exit_codes(judged) == 4
    assert judged[0].verdict.sentence == verdict(found, "shots").sentence
    assert release.gate_document(judged[0]).last_line.startswith("shots: DRIFT")


@pytest.mark.e2e
def test_drift_is_remembered_until_the_rows_are_asked_anew(path):
    run_further(path, double_bos)
    assert verdict(run_further(path), "shots").outcome == "harness-drift"
    (drifted,) = [run for run in store.list_runs(open_store(path)) if run.candidate == "shots"]
    release.remove_run(open_store(path), drifted.run_id, References())
    assert verdict(run_further(path), "shots").outcome == "pass"


@pytest.mark.e2e
def test_answers_that_are_only_scored_again_stay_drifted(path):
    run_further(path, double_bos)
    found = run_further(path, overrides=["target.metrics=[exact_match]"])
    assert verdict(found, "shots").outcome == "harness-drift"


@pytest.mark.e2e
def test_a_template_changed_in_the_files_asks_both_arms_anew_and_is_no_drift(begun_folder, tmp_path):
    shutil.copytree(begun_folder, tmp_path / "copy")
    path = tmp_path / "copy" / "harness.yaml"
    other = tiny_model.build(tmp_path / "model", template=tiny_model.CHATML)
    found = run_further(path, overrides=[f"base_model={other}"], candidates=["shots"])
    assert verdict(found, "shots").outcome == "pass"


def mark_from_elsewhere(path):
    """Say of all stored rows that another machine computed them."""
    elsewhere = store.keep_environment(open_store(path), {"transformers": "5.1"})
    for file in path.parent.glob("runs/rows/*/origins.json"):
        origins = {k: [elsewhere, v[1]] for k, v in json.loads(file.read_text()).items()}
        file.write_text(json.dumps(origins))


@pytest.mark.e2e
def test_other_answers_than_in_another_environment_name_what_changed(path):
    mark_from_elsewhere(path)
    found = run_further(path, negate_norm, ["gate.control_blocks=3"])
    said = verdict(found, "shots").sentence
    assert verdict(found, "shots").outcome == "harness-drift"
    assert "have another score in another environment (transformers 5.1 → " in said
    assert "the A/A rate of 0.4 % allows" in said


@pytest.mark.e2e
def test_the_same_answers_elsewhere_are_no_drift_by_the_measured_noise_of_the_precision(path):
    mark_from_elsewhere(path)
    assert rule(run_further(path)).outcome == "pass"

    of_tasks = (TaskNoise("facts", 100, {"layout": 7}, None),)
    store.save_noise(open_store(path), Noise("1", "1", "m", "base", "fp32", "cpu", "e", "l", of_tasks))
    (run,) = [run for run in store.list_runs(open_store(path)) if run.candidate == "shots"]
    (found,) = StoredRows(open_store(path)).controls_of(run)
    assert (found.aa_flips, found.aa_n) == (7.0, 100.0)


def facts(flipped=0, n=320, aa=(22.0, 1000.0), **changes):
    named = tuple(f"facts/{i}" for i in range(flipped))
    fields = {"reworded": (), "differing": (), "flipped": named, "changed": "torch 2.8 → 2.9", **changes}
    return ControlFacts("one", 2, 0, n, aa_flips=aa[0], aa_n=aa[1], **fields)


def test_flips_are_drift_from_where_the_exact_binomial_test_is_below_one_percent():
    drifted = [k for k in range(40) if has_drifted(facts(k))]
    expected = [k for k in range(1, 40) if scipy_stats.binom.sf(k - 1, 320, 0.022) < 0.01]
    assert drifted == expected
    assert expected[0] == 15
    found = control_rule([facts(9)])
    assert found.outcome == "pass"
    assert "9 of them with another score, which the A/A rate of 2.2 % allows" in found.sentence
    assert has_drifted(facts(differing=("facts/1",)))
    assert control_rule([facts(), facts(differing=("facts/1",))]).outcome == "harness-drift"


@pytest.mark.parametrize(("k", "n", "rate"), [(0, 5, 0.1), (3, 10, 0.2), (10, 10, 0.5), (14, 320, 0.022)])
def test_the_binomial_p_is_scipys(k, n, rate):
    assert stats.binomial_p(k, n, rate) == pytest.approx(scipy_stats.binom.sf(k - 1, n, rate), rel=1e-9)


@pytest.mark.e2e
def test_flips_of_measurements_without_drift_make_the_rate_of_later_ones(path):
    mark_from_elsewhere(path)
    run_further(path)
    (run,) = [run for run in store.list_runs(open_store(path)) if run.candidate == "shots"]
    (first,) = StoredRows(open_store(path)).controls_of(run)
    assert (first.aa_flips, first.aa_n) == (0.5, 120.0)
    session = tiny_experiment.session(path)
    later = control_arm.measure(session, session.source, 2)
    for digest in run.rows.values():
        store.keep_origin(open_store(path), digest, 0, Origin("", later))
    (second,) = StoredRows(open_store(path)).controls_of(run)
    assert (second.aa_flips, second.aa_n) == (0.5, 120.0 + first.n_other)
